// The translator: guest code to host code, block by block, chained to one another.
internal import CHost
public import GuestMemory
internal import Glibc
public import HostOS

/// Runs one vCPU by translating blocks of 64-bit code; the interpreter serves the rest.
public final class Translator {
    /// The vCPU that it runs.
    public let cpu: VirtualCPU
    private let interpreter: Interpreter
    private let cache: UnsafeMutablePointer<TranslationCache>

    /// Makes a translator for a vCPU attached to its machine's memory, with a code cache of `codeCache` bytes; blocks are
    /// translated once the interpreter has run them `after` times.
    public init(
        cpu: VirtualCPU, memory: GuestMemory, codeCache: Int = 32 << 20, after: UInt8 = 3
    ) throws(HostError) {
        self.cpu = cpu
        interpreter = Interpreter(cpu: cpu, memory: memory)
        cache = .allocate(capacity: 1)
        cache.initialize(to: try TranslationCache(size: codeCache))
        cache.pointee.heatWanted = after
        let s = cpu.state
        s.pointee.translation = UnsafeMutableRawPointer(cache)
        s.pointee.self_ = UnsafeMutableRawPointer(s)
        s.pointee.jump_table = UnsafeMutableRawPointer(cache.pointee.jumps)
    }

    deinit {
        cpu.state.pointee.translation = nil
        cache.pointee.jumps.deallocate()
        cache.deinitialize(count: 1)
        cache.deallocate()
    }

    /// Runs until something outside the CPU is needed.
    public func run() -> VMExit { interpreter.run() }

    /// Answers the access that the last exit asked for; the instruction goes on with the next `run`.
    public func complete(_ value: UInt64) { interpreter.complete(value) }

    /// Refuses the MSR access that the last exit asked for: #GP(0).
    public func completeWithGeneralProtection() { interpreter.completeWithGeneralProtection() }

    /// Whether an external interrupt can be injected now.
    public var canTakeInterrupt: Bool { interpreter.canTakeInterrupt }

    /// Delivers an external interrupt; only when `canTakeInterrupt`. False when delivery itself shut the vCPU down.
    public func inject(vector: UInt8) -> Bool { interpreter.inject(vector: vector) }
}

/// An entry of the jump table: where the block at a linear address is in host memory.
struct JumpEntry {
    var rip: UInt64 = ~0
    var key: UInt64 = ~0
    var code: UInt64 = 0
    var padding: UInt64 = 0
}

/// One vCPU's translated code.
///
/// Invariants: code is written through the writable mapping and run through the other; `position` is 16-aligned.
struct TranslationCache {
    static let jumpEntries = 4096
    /// No block's code is longer.
    static let longestBlock = 32 << 10

    let memory: CodeMemory
    let jumps: UnsafeMutablePointer<JumpEntry>
    let common: CommonRoutines
    let enter: @convention(c) (UnsafeMutableRawPointer, UnsafeRawPointer) -> Int
    private let firstPosition: Int
    var position: Int
    var heatWanted: UInt8 = 3
    /// Where the guest was to go on after the last jump that waits to be patched, and under which key.
    var waitingSite: UInt64 = 0
    var waitingRIP: UInt64 = 0
    var waitingKey: UInt64 = 0

    init(size: Int) throws(HostError) {
        memory = try CodeMemory(size: size)
        jumps = .allocate(capacity: Self.jumpEntries)
        jumps.initialize(repeating: JumpEntry(), count: Self.jumpEntries)
        var routines = RoutineWriter(code: HostAssembler(start: memory.writable + 64))
        let enterAt = 64 + routines.writeEnter()
        common = routines.writeCommon(origin: 64)
        enter = unsafeBitCast(
            memory.executable + enterAt, to: (@convention(c) (UnsafeMutableRawPointer, UnsafeRawPointer) -> Int).self)
        firstPosition = (64 + routines.code.count + 63) & ~63
        position = firstPosition
    }

    /// Whether another block fits.
    var hasRoom: Bool { position + Self.longestBlock <= memory.size }

    /// Forgets all code.
    mutating func removeAll() {
        position = firstPosition
        waitingSite = 0
        jumps.update(repeating: JumpEntry(), count: Self.jumpEntries)
    }
}

extension VCPU {
    @inline(__always)
    private var translations: UnsafeMutablePointer<TranslationCache> {
        s.pointee.translation.unsafelyUnwrapped.assumingMemoryBound(to: TranslationCache.self)
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
        if s.pointee.code_size != 8 { return runBlock() }
        if block.pointee.host == 0 {
            // A block that ends on another page is validated on every entry: by the interpreter.
            if block.pointee.heat < translations.pointee.heatWanted
                || block.pointee.secondPage != block.pointee.physical >> 12
            {
                block.pointee.heat &+= block.pointee.heat < 255 ? 1 : 0
                return runBlock()
            }
            translate(block)
        }
        let cache = translations
        let code = UInt64(UInt(bitPattern: cache.pointee.memory.executable)) &+ UInt64(block.pointee.host)
        chain(to: Int(block.pointee.host))
        let slot = cache.pointee.jumps + Int(truncatingIfNeeded: (s.pointee.rip ^ s.pointee.rip >> 12) & 4095)
        slot.pointee = JumpEntry(rip: s.pointee.rip, key: s.pointee.jump_key, code: code)
        s.pointee.chain_site = 0
        let result = cache.pointee.enter(
            UnsafeMutableRawPointer(s), UnsafeRawPointer(bitPattern: UInt(truncatingIfNeeded: code)).unsafelyUnwrapped)
        cache.pointee.waitingSite = s.pointee.chain_site
        cache.pointee.waitingRIP = s.pointee.rip
        cache.pointee.waitingKey = s.pointee.jump_key
        return result != 2
    }

    /// Makes the jump that translated code last left by lead to the block that is entered now.
    @inline(__always)
    private func chain(to host: Int) {
        let cache = translations
        let site = Int(truncatingIfNeeded: cache.pointee.waitingSite)
        if site == 0 { return }
        if cache.pointee.waitingRIP == s.pointee.rip && cache.pointee.waitingKey == s.pointee.jump_key {
            UnsafeMutableRawPointer(cache.pointee.memory.writable + site)
                .storeBytes(of: Int32(truncatingIfNeeded: host - site - 4), as: Int32.self)
        }
        cache.pointee.waitingSite = 0
    }

    @inline(never)
    private func translate(_ block: UnsafeMutablePointer<Block>) {
        let cache = translations
        if !cache.pointee.hasRoom { dropTranslations() }
        let position = cache.pointee.position
        let page = Int(block.pointee.physical >> 12)
        var translator = BlockTranslator(
            code: HostAssembler(start: cache.pointee.memory.writable + position), origin: position,
            common: cache.pointee.common, first: UnsafePointer(blocks.pointee.instructions + Int(block.pointee.first)),
            count: Int(block.pointee.count), pageOffset: Int(block.pointee.physical & 4095), liveOut: .all)
        translator.translate(
            version: UnsafePointer(s.pointee.code_versions + page), current: block.pointee.version,
            endsInBranch: block.pointee.endsInBranch)
        block.pointee.host = UInt32(position)
        cache.pointee.position = (position + translator.code.count + 15) & ~15
    }

    /// Forgets all translated code: the cache is full, or its blocks are gone.
    @inline(never)
    func dropTranslations() {
        if s.pointee.translation == nil { return }
        translations.pointee.removeAll()
        for n in 0..<BlockCache.tableSize { blocks.pointee.table[n].host = 0 }
    }

    /// What an entry of the jump table must carry to be used now.
    @inline(__always)
    func updateJumpKey() {
        s.pointee.jump_key =
            UInt64(s.pointee.address_space) | UInt64(s.pointee.cpl) << 16 | UInt64(s.pointee.code_size) << 20
            | s.pointee.jump_generation << 24
    }
}

/// What translated code calls for an instruction that it leaves to the interpreter: 0 go on, 1 look for events, 2 an exit
/// waits.
func translatedStep(
    _ state: UnsafeMutablePointer<roost_vcpu>, _ instruction: UnsafeRawPointer, _ remaining: Int
) -> Int {
    let v = VCPU(state)
    let i = instruction.assumingMemoryBound(to: Instruction.self)
    state.pointee.block_end = instruction
    do throws(CPUException) {
        try v.execute(i)
    } catch {
        state.pointee.instructions &-= UInt64(truncatingIfNeeded: remaining)
        return v.settle(error, i) ? 1 : 2
    }
    if state.pointee.block_end == nil {
        // The instruction changed code, perhaps its own block.
        state.pointee.instructions &-= UInt64(truncatingIfNeeded: remaining - 1)
        state.pointee.rip = v.truncatedRIP(v.nextRIP(i))
        return 1
    }
    return 0
}

/// The same for an instruction that ends its block.
func translatedStepAndEnd(
    _ state: UnsafeMutablePointer<roost_vcpu>, _ instruction: UnsafeRawPointer, _ remaining: Int
) -> Int {
    let v = VCPU(state)
    let i = instruction.assumingMemoryBound(to: Instruction.self)
    state.pointee.block_end = instruction
    do throws(CPUException) {
        try v.execute(i)
    } catch {
        state.pointee.instructions &-= UInt64(truncatingIfNeeded: remaining)
        return v.settle(error, i) ? 1 : 2
    }
    if !v.setsRIP(i) { state.pointee.rip = v.truncatedRIP(v.nextRIP(i)) }
    let careful =
        state.pointee.interrupt_shadow != 0 || state.pointee.slow_memory != 0 || state.pointee.interrupt_window != 0
        || state.pointee.pending_nmi != 0 || state.pointee.pending_debug != 0 || state.pointee.code_size != 8
        || state.pointee.rflags & 0x100 != 0 || state.pointee.dr.7 & 0xFF != 0
    return careful ? 1 : 0
}
