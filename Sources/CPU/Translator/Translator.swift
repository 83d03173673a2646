// The translator: guest code to host code, block by block, chained to one another.
internal import CHost
public import GuestMemory
internal import Glibc
public import HostOS
internal import Synchronization

/// Runs one vCPU by translating blocks; the interpreter serves the rest.
public final class Translator {
    /// The vCPU that it runs.
    public let cpu: VirtualCPU
    private let interpreter: Interpreter
    private let memory: GuestMemory
    private let cache: UnsafeMutablePointer<TranslationCache>
    private let written: WrittenPages

    /// How it translates.
    public struct Settings: Sendable {
        /// Bytes of translated code.
        public var codeCache = 128 << 20
        /// Times that a block is interpreted before it is translated.
        public var heat: UInt8 = 2
        /// Count every instruction.
        public var counts = false
        /// Return exactly at `instruction_limit`; with `counts` and `exactFlags`.
        public var stopsExactly = false
        /// Keep dead flags as the interpreter does.
        public var exactFlags = false
        /// Jump from block to block without the dispatcher.
        public var chains = true
        /// Keep the code where perf names it by a map (see `CodeMemory`).
        public var visibleToPerf = false

        /// The defaults.
        public init() {}
    }

    /// Makes a translator for a vCPU attached to its machine's memory.
    public init(cpu: VirtualCPU, memory: GuestMemory, settings: Settings = Settings()) throws(HostError) {
        self.cpu = cpu
        self.memory = memory
        interpreter = Interpreter(cpu: cpu, memory: memory, codeCache: settings.codeCache)
        let options = TranslationOptions(
            counts: settings.counts || settings.stopsExactly, stopsExactly: settings.stopsExactly,
            exactFlags: settings.exactFlags || settings.stopsExactly, chains: settings.chains)
        let created = try TranslationCache(
            size: max(settings.codeCache, 1 << 20), pages: Int(memory.limit / GuestMemory.pageSize), options: options,
            heatWanted: settings.heat, isAnonymous: settings.visibleToPerf)
        cache = .allocate(capacity: 1)
        cache.initialize(to: created)
        let s = cpu.state
        s.pointee.translation = UnsafeMutableRawPointer(cache)
        s.pointee.self_ = UnsafeMutableRawPointer(s)
        s.pointee.jump_table = UnsafeMutableRawPointer(cache.pointee.jumps)
        written = WrittenPages(cpu: cpu)
        memory.onCodeWritten(vcpu: cpu.id) { [written] page in written.add(page) }
    }

    deinit {
        cpu.state.pointee.translation = nil
        cache.pointee.deallocate()
        cache.deinitialize(count: 1)
        cache.deallocate()
    }

    /// Runs until something outside the CPU is needed.
    public func run() -> VMExit {
        forgetWritten()
        return interpreter.run()
    }

    /// Forgets the code of pages that devices have written to.
    func forgetWritten() {
        guard let pages = written.take() else { return cpu.vcpu.dropTranslations() }
        for page in pages { cpu.vcpu.forgetTranslations(page: Int(truncatingIfNeeded: page)) }
    }

    /// Sets what is told of each block as it is translated; before the first run.
    public func onTranslation(_ observer: @escaping (TranslatedBlock) -> Void) { cache.pointee.observer = observer }

    /// The routines that all translated code shares.
    public var routines: (address: UInt64, size: Int) {
        (UInt64(UInt(bitPattern: cache.pointee.memory.executable)), cache.pointee.routinesEnd)
    }

    /// Blocks translated so far.
    public var translations: UInt64 { cache.pointee.translations }
    /// Times that translated code was entered from the dispatcher.
    public var entries: UInt64 { cache.pointee.entries }
    /// Bytes of translated code.
    public var codeBytes: UInt64 { UInt64(cache.pointee.position) }
    /// Bytes of it that it began with.
    public var savedCodeBytes: UInt64 { UInt64(cache.pointee.firstPosition - cache.pointee.routinesEnd) }
    /// Times that all code was dropped because the cache was full.
    public var codeFlushes: UInt64 { cache.pointee.flushes }

    /// How often translated code left an instruction to the interpreter, by mnemonic.
    public var callouts: [String: UInt64] {
        var result: [String: UInt64] = [:]
        for n in 0..<InstructionTable.count where cache.pointee.callouts[n] > 0 {
            result[InstructionTable.row(UInt16(n)).mnemonic, default: 0] += cache.pointee.callouts[n]
        }
        return result
    }

    /// Answers the access that the last exit asked for; the instruction goes on with the next `run`.
    public func complete(_ value: UInt64) { interpreter.complete(value) }

    /// Refuses the MSR access that the last exit asked for: #GP(0).
    public func completeWithGeneralProtection() { interpreter.completeWithGeneralProtection() }

    /// Whether an external interrupt can be injected now.
    public var canTakeInterrupt: Bool { interpreter.canTakeInterrupt }

    /// Delivers an external interrupt; only when `canTakeInterrupt`. False when delivery itself shut the vCPU down.
    public func inject(vector: UInt8) -> Bool { interpreter.inject(vector: vector) }
}

/// Pages of translated code that devices have written to, on their threads.
final class WrittenPages: Sendable {
    /// More are not kept apart: a vCPU that doesn't run may not look at them for long.
    private static let most = 1024

    private let pages = Mutex<[UInt64]>([])
    private let isEmpty = Atomic<Bool>(true)
    // SAFETY: only the attention word is touched, which is atomic; the block lives as long as `cpu`.
    private let cpu: VirtualCPU

    init(cpu: VirtualCPU) { self.cpu = cpu }

    func add(_ page: UInt64) {
        pages.withLock { pages in
            if pages.last != page && pages.count < Self.most { pages.append(page) }
            isEmpty.store(false, ordering: .releasing)
        }
        roost_attention_set(cpu.state, ROOST_ATTENTION_KICK)
    }

    /// The pages since the last time; nil: too many of them.
    func take() -> [UInt64]? {
        if isEmpty.load(ordering: .acquiring) { return [] }
        return pages.withLock { pages in
            isEmpty.store(true, ordering: .relaxed)
            defer { pages = [] }
            return pages.count < Self.most ? pages : nil
        }
    }
}

extension VCPU {
    @inline(__always)
    var translations: UnsafeMutablePointer<TranslationCache> {
        s.pointee.translation.unsafelyUnwrapped.assumingMemoryBound(to: TranslationCache.self)
    }

    /// Runs translated code from the current RIP, alone or beside the interpreter. False: an exit waits.
    @inline(__always)
    func runTranslations() -> Bool {
        s.pointee.lockstep == nil ? runTranslated() : runLockstep()
    }

    /// Runs translated code from the current RIP. False: an exit waits.
    @inline(__always)
    func runTranslated() -> Bool {
        let block: UnsafeMutablePointer<Block>
        do throws(CPUException) {
            block = UnsafeMutablePointer(mutating: try findBlock())
        } catch {
            return raise(error)
        }
        if exceedsLimit(block.pointee.count) { return runOne() }
        let cache = translations
        let codePage = s.pointee.rip &- (block.pointee.physical & 4095)
        if cache.pointee.staleRecord != 0 { forgetDead(block) }
        if block.pointee.host == 0 {
            if block.pointee.heat < cache.pointee.heatWanted || !canTranslate(block, codePage) {
                block.pointee.heat &+= block.pointee.heat < 255 ? 1 : 0
                return runBlock()
            }
            translate(block)
        } else if s.pointee.code_size != 8 && !isInsideLimit(codePage) {
            return runBlock()
        }
        let code = UInt64(UInt(bitPattern: cache.pointee.memory.executable)) &+ UInt64(block.pointee.host)
        s.pointee.code_page = codePage
        link(block, code, codePage)
        s.pointee.chain_site = 0
        cache.pointee.entries &+= 1
        let left = cache.pointee.enter(
            UnsafeMutableRawPointer(s), UnsafeRawPointer(bitPattern: UInt(truncatingIfNeeded: code)).unsafelyUnwrapped)
        cache.pointee.wait(site: s.pointee.chain_site, rip: s.pointee.rip, key: s.pointee.jump_key)
        switch left {
        case LeaveReason.exit.rawValue: return false
        case LeaveReason.interpret.rawValue:
            noteBail()
            return runBlock()
        case LeaveReason.stale.rawValue: findStale()
        default: break
        }
        return true
    }

    /// So many times may the interpreter run the rest of a block before that is translated without access groups.
    private static var mostBails: UInt8 { 100 }

    /// The interpreter is to run the rest of the block whose code is at `entry`.
    @inline(never)
    private func noteBail() {
        let cache = translations
        let number = cache.pointee.recordHolding(Int(truncatingIfNeeded: s.pointee.entry))
        let record = cache.pointee.record(number)
        let physical = record.page << 12 | UInt64(record.pageOffset)
        let set = blocks.pointee.table + blocks.pointee.slot(physical, record.modeKey)
        for way in 0..<BlockCache.ways where set[way].host == record.position {
            set[way].bails += set[way].bails < 255 ? 1 : 0
            if set[way].bails == Self.mostBails {
                set[way].host = 0
                cache.pointee.remove(number)
            }
        }
    }

    /// RIP of a block that was entered after its code had changed.
    @inline(never)
    private func findStale() {
        let number = Int(truncatingIfNeeded: s.pointee.entry)
        let record = translations.pointee.record(number)
        translations.pointee.staleRecord = number
        s.pointee.rip =
            record.absolute != 0 ? record.absolute : truncatedRIP(s.pointee.code_page &+ UInt64(record.pageOffset))
    }

    /// Translated code was left by a dead translation: it isn't the block's any more. The block itself may be good: read
    /// anew after a store of another vCPU, but before that was told of.
    private func forgetDead(_ block: UnsafeMutablePointer<Block>) {
        let dead = translations.pointee.record(translations.pointee.staleRecord)
        if block.pointee.host == dead.position { block.pointee.host = 0 }
    }

    /// Whether all of the code page is inside CS, and in 16-bit code what follows it too.
    func isInsideLimit(_ codePage: UInt64) -> Bool {
        let limit = UInt64(segment(Int(ROOST_CS)).pointee.limit)
        if s.pointee.code_size == 2 { return codePage < 0x1_0000 && codePage &+ 4096 <= min(limit, 0xFFFF) }
        return codePage < 0x1_0000_0000 && codePage &+ 4095 <= limit
    }

    func canTranslate(_ block: UnsafeMutablePointer<Block>, _ codePage: UInt64) -> Bool {
        if s.pointee.code_size != 8 {
            return isInsideLimit(codePage) && block.pointee.secondPage == block.pointee.physical >> 12
        }
        // A branch beyond the last canonical page faults itself.
        if codePage >> 12 == 0x7_FFFF_FFFF { return false }
        if block.pointee.secondPage == block.pointee.physical >> 12 { return true }
        // A block that goes on in another page is good as long as that page is where it was. What is in the jump table is,
        // for user code: it carries the address space, and goes when either page does. So nothing is chained to such a
        // block, and it is entered through the table only. Of the kernel's pages it is known that they stay.
        return s.pointee.cpl == 3 || isKernelAcross(codePage)
    }

    /// Whether a page and the next one are the kernel's, there in every address space.
    private func isKernelAcross(_ page: UInt64) -> Bool {
        if page < BlockTranslator.absoluteStart || page &+ 4096 < page { return false }
        guard (try? translateFetch(page)) != nil, isGlobalCode(page) else { return false }
        return (try? translateFetch(page &+ 4096)) != nil && isGlobalCode(page &+ 4096)
    }

    /// Makes the ways to a block that was just found lead to its code.
    @inline(__always)
    private func link(_ block: UnsafeMutablePointer<Block>, _ code: UInt64, _ codePage: UInt64) {
        let cache = translations
        if !cache.pointee.options.chains { return }
        let rip = s.pointee.rip
        let isAcross = block.pointee.secondPage != block.pointee.physical >> 12
        if cache.pointee.staleRecord != 0 {
            // Other address spaces come by the old one too, and may have another page after the first.
            if !isAcross || block.pointee.absolute != 0 {
                cache.pointee.redirect(
                    cache.pointee.staleRecord, to: Int(block.pointee.host), page: block.pointee.physical >> 12,
                    pageOffset: block.pointee.physical & 4095, modeKey: block.pointee.modeKey)
            }
            cache.pointee.staleRecord = 0
        }
        let isWaiting = cache.pointee.isWaiting(rip: rip, key: s.pointee.jump_key)
        if isWaiting {
            cache.pointee.chain(
                to: Int(block.pointee.host), isGlobal: block.pointee.absolute != 0 && isGlobalCode(rip),
                endsElsewhere: isAcross)
            cache.pointee.stopWaiting()
            if s.pointee.code_size == 8 && s.pointee.cpl != 3 { return }
        }
        if s.pointee.cpl != 3 && !isGlobalCode(rip) { s.pointee.local_code = 1 }
        cache.pointee.setJump(JumpEntry(rip: rip, key: s.pointee.jump_key, code: code, codePage: codePage))
    }

    /// Translates a block, and after it those that it goes on to and that have been run but not translated: the host falls
    /// from one into the next. Slow paths come after all of them.
    @inline(never)
    func translate(_ block: UnsafeMutablePointer<Block>) {
        let cache = translations
        if !cache.pointee.hasRoom { dropTranslations() }
        var run: [(block: UnsafeMutablePointer<Block>, translator: BlockTranslator, body: Int)] = []
        var next: UnsafeMutablePointer<Block>? = block
        // Of an absolute block the address is its place in the linear page.
        let base = s.pointee.rip &- (block.pointee.physical & 4095)
        while let current = next {
            next = run.count + 1 < TranslationCache.longestRun ? successor(of: current) : nil
            let translator = translateAlone(current, base, successor: next)
            run.append((current, translator, translator.code.count))
        }
        var end = cache.pointee.position
        for n in run.indices {
            run[n].translator.writeSlowPaths(at: end - run[n].translator.origin)
            end = run[n].translator.origin + run[n].translator.code.count
        }
        cache.pointee.endRun(at: end)
        if cache.pointee.observer == nil { return }
        for (block, translator, body) in run {
            let rip = base &+ (block.pointee.physical & 4095)
            report(block, translator, rip: rip, length: run.count == 1 ? translator.code.count : body)
        }
    }

    /// Writes one block at the cache's position and takes it up.
    private func translateAlone(
        _ block: UnsafeMutablePointer<Block>, _ base: UInt64, successor: UnsafeMutablePointer<Block>?
    ) -> BlockTranslator {
        let cache = translations
        let position = cache.pointee.position
        let pageOffset = Int(block.pointee.physical & 4095)
        let absolute = block.pointee.absolute != 0 ? base &+ UInt64(pageOffset) : 0
        var translator = BlockTranslator(
            code: HostAssembler(start: cache.pointee.memory.writable + position), origin: position,
            common: cache.pointee.common, options: cache.pointee.options, usesRORX: cache.pointee.usesRORX,
            page: block.pointee.physical >> 12,
            first: UnsafePointer(blocks.pointee.instructions + Int(block.pointee.first)),
            firstNumber: Int(block.pointee.first), count: Int(block.pointee.count), pageOffset: pageOffset,
            absolute: absolute, vcpu: self,
            liveOut: cache.pointee.options.exactFlags ? .all : flagsWanted(after: block))
        if cache.pointee.observer != nil { translator.marks = [] }
        translator.successor = successor.map { Int($0.pointee.physical & 4095) }
        translator.translate(
            endsInBranch: block.pointee.endsInBranch, usesGroups: block.pointee.bails < Self.mostBails)
        block.pointee.host = UInt32(position)
        cache.pointee.add(
            pageOffset: pageOffset, absolute: absolute, page: block.pointee.physical >> 12,
            secondPage: block.pointee.secondPage, modeKey: block.pointee.modeKey,
            end: position + translator.code.count)
        return translator
    }

    /// The block that one goes on to within its page, by falling through, by a jump or by not jumping, if it has been run
    /// and isn't translated yet.
    private func successor(of block: UnsafeMutablePointer<Block>) -> UnsafeMutablePointer<Block>? {
        if !translations.pointee.options.chains || block.pointee.secondPage != block.pointee.physical >> 12 {
            return nil
        }
        let last = blocks.pointee.instructions + Int(block.pointee.first) + Int(block.pointee.count) - 1
        var place = Int(block.pointee.physical & 4095) + Int(last.pointee.endOffset)
        switch last.pointee.operation {
        case .jmp: place += Int(last.pointee.immediate)
        case .jcc, .loop, .jcxz: break
        // What follows runs in another TLB context.
        case .stac, .clac: return nil
        default: if block.pointee.endsInBranch { return nil }
        }
        guard place >= 0, place < 4096 else { return nil }
        let physical = block.pointee.physical & ~4095 | UInt64(place)
        let set = blocks.pointee.table + blocks.pointee.slot(physical, block.pointee.modeKey)
        for way in 0..<BlockCache.ways {
            let found = set + way
            if found.pointee.physical == physical && found.pointee.modeKey == block.pointee.modeKey
                && found.pointee.absolute == block.pointee.absolute && found.pointee.host == 0
                && found.pointee.heat > 0 && found.pointee.secondPage == physical >> 12
                && found.pointee.version == s.pointee.code_versions[Int(physical >> 12)] && found != block
            {
                return found
            }
        }
        return nil
    }

    /// Whether a block at a place in a page is known to go on in another page.
    func isAcross(_ place: Int, in page: UInt64, modeKey: UInt32) -> Bool {
        let physical = page << 12 | UInt64(place)
        let set = blocks.pointee.table + blocks.pointee.slot(physical, modeKey)
        return (0..<BlockCache.ways).contains { way in
            set[way].physical == physical && set[way].modeKey == modeKey && set[way].secondPage != page
        }
    }

    /// Forgets all translated code: the cache is full, or its blocks are gone.
    @inline(never)
    func dropTranslations() {
        if s.pointee.translation == nil { return }
        translations.pointee.removeAll()
        for n in 0..<blocks.pointee.tableSize { blocks.pointee.table[n].host = 0 }
    }

    /// A page's code has changed.
    @inline(never)
    func forgetTranslations(page: Int) {
        if s.pointee.translation == nil { return }
        translations.pointee.removePage(page)
    }

    /// Undoes jumps between pages of the kernel: they may be elsewhere now.
    @inline(never)
    func unchainPages() {
        if s.pointee.translation == nil { return }
        translations.pointee.unchainPages()
    }

    /// What an entry of the jump table must carry to be used now; to be called whenever the address space changes.
    @inline(__always)
    func updateJumpKey() {
        s.pointee.tlb_tag = UInt64(s.pointee.address_space)
        let space = s.pointee.cpl == 3 ? UInt64(s.pointee.address_space) << 16 : 0
        // Outside 64-bit mode instruction addresses are relative to CS's base.
        let base = s.pointee.code_size == 8 ? 0 : codeBaseNumber() << 28
        s.pointee.jump_key =
            UInt64(s.pointee.mode_key) | space | UInt64(base) | UInt64(s.pointee.jump_generation) << 32
    }

    /// The number that stands for CS's base: real mode changes it all the time.
    private func codeBaseNumber() -> UInt32 {
        let base = UInt32(truncatingIfNeeded: segment(Int(ROOST_CS)).pointee.base)
        let current = s.pointee.code_base_number & 15
        if roost_code_base_at(s, Int(current)).pointee == base { return current }
        for n in 0..<16 where roost_code_base_at(s, n).pointee == base {
            s.pointee.code_base_number = UInt32(n)
            return UInt32(n)
        }
        let number = s.pointee.next_code_base & 15
        s.pointee.next_code_base &+= 1
        // The number may have stood for another base, zero at first.
        s.pointee.jump_generation &+= 1
        roost_code_base_at(s, Int(number)).pointee = base
        s.pointee.code_base_number = number
        return number
    }
}
