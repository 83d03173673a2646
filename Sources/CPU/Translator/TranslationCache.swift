// One vCPU's translated code: where it is, what it was made from, and how it is forgotten.
//
// A translation is entered by the dispatcher, by jumps patched to lead to it, through the jump table and by returns. When
// the code of a guest page changes, the entries of all its translations are overwritten by a jump to the dispatcher, so
// that none of these ways needs to check anything.
//
// Invariants: code is written through the writable mapping and run through the other; `position` is 16-aligned; nothing
// jumps into the first eleven bytes of a translation except to its start.
internal import CHost
internal import Glibc
internal import HostOS

/// An entry of the jump table: where the block at an instruction address is in host memory. Two are in a cache line: those
/// that an address may be in.
struct JumpEntry {
    var rip: UInt64 = ~0
    var key: UInt64 = ~0
    var code: UInt64 = 0
    var codePage: UInt64 = 0
}

/// What is known of one translation.
struct TranslationRecord {
    /// The page's next record, 0 none.
    var next: UInt32
    /// Where its code is.
    var position: UInt32
    /// Offset of its first instruction in the page.
    var pageOffset: UInt32
    var modeKey: UInt32
    /// The record of the same code for the second page that it was made from, 0 none.
    var twin: UInt32 = 0
    /// Whether its code is still good.
    var isLive: Bool
    /// Its address, if it is absolute, else 0.
    var absolute: UInt64
    var page: UInt64
}

/// All of one vCPU's translated code.
struct TranslationCache {
    static let jumpEntries = 65536
    /// Spreads addresses over the jump table; functions begin at multiples of 16, so that the lowest bits say little.
    static let jumpMultiplier: Int32 = -0x61C8_864F
    static let jumpShift: UInt8 = 24
    /// No block's code is longer.
    static let longestBlock = 32 << 10
    static let maximumRecords = 1 << 19
    /// Bytes that overwrite the entry of a translation whose code has changed.
    static let entryBytes = 11
    /// Blocks laid out one after the other.
    static let longestRun = 8

    /// A jump to absolute code in another page: good as long as the kernel's mappings stay.
    struct CrossChain: BitwiseCopyable {
        var site: Int
        var unchained: Int32
        var record: UInt32
    }

    let memory: CodeMemory
    let jumps: UnsafeMutablePointer<JumpEntry>
    let common: CommonRoutines
    let enter: @convention(c) (UnsafeMutableRawPointer, UnsafeRawPointer) -> Int
    let usesRORX: Bool
    /// What the host has, as `roost_vcpu.features` says it.
    let hostFeatures: UInt64
    var options: TranslationOptions
    /// Where the common routines end, at the end of a page.
    let routinesEnd: Int
    /// Where the first translation may be; code that was adopted is before it.
    private(set) var firstPosition: Int
    private(set) var position: Int
    /// Times that a block is interpreted before it is translated.
    var heatWanted: UInt8
    /// Translations made and times that all were dropped.
    private(set) var translations: UInt64 = 0
    private(set) var flushes: UInt64 = 0
    /// Times that translated code was entered from the dispatcher.
    var entries: UInt64 = 0
    /// Is told of each translation.
    var observer: ((TranslatedBlock) -> Void)?

    /// How often each row of the instruction table was left to the interpreter.
    let callouts: UnsafeMutablePointer<UInt64>
    private let records: UnsafeMutablePointer<TranslationRecord>
    private(set) var recordCount = 1
    /// Each guest-physical page's first record, 0 none.
    private let pageHeads: UnsafeMutablePointer<UInt32>
    let pageCount: Int
    private(set) var crossChains: [CrossChain] = []

    /// Where the guest was to go on after the last jump that waits to be patched, and under which key.
    private var waitingSite: Int = 0
    private var waitingRIP: UInt64 = 0
    private var waitingKey: UInt64 = 0
    /// The dead translation by which translated code was left, 0 none.
    var staleRecord = 0

    init(
        size: Int, pages: Int, options: TranslationOptions, heatWanted: UInt8, isAnonymous: Bool
    ) throws(HostError) {
        memory = try CodeMemory(size: size, isAnonymous: isAnonymous)
        self.options = options
        self.heatWanted = heatWanted
        pageCount = max(pages, 1)
        // calloc: untouched pages cost nothing.
        pageHeads = calloc(pageCount, 4)!.bindMemory(to: UInt32.self, capacity: pageCount)
        records = PageMemory.allocate(Self.maximumRecords * MemoryLayout<TranslationRecord>.stride)
            .bindMemory(to: TranslationRecord.self, capacity: Self.maximumRecords)
        callouts = .allocate(capacity: InstructionTable.count)
        callouts.initialize(repeating: 0, count: InstructionTable.count)
        jumps = UnsafeMutableRawPointer.allocate(
            byteCount: Self.jumpEntries * MemoryLayout<JumpEntry>.stride, alignment: 64
        ).bindMemory(to: JumpEntry.self, capacity: Self.jumpEntries)
        jumps.initialize(repeating: JumpEntry(), count: Self.jumpEntries)
        var routines = RoutineWriter(code: HostAssembler(start: memory.writable + 64), origin: 64)
        let enterAt = 64 + routines.writeEnter()
        common = routines.writeCommon()
        enter = unsafeBitCast(
            memory.executable + enterAt, to: (@convention(c) (UnsafeMutableRawPointer, UnsafeRawPointer) -> Int).self)
        routinesEnd = PageMemory.rounded(64 + routines.code.count)
        firstPosition = routinesEnd
        position = firstPosition
        usesRORX = CPUModel.host.isAvailable(.bmi2)
        hostFeatures = CPUModel.host.features
    }

    /// Has the jump table lead to a block; what it led to last with the same place in the table stays for now.
    func setJump(_ new: JumpEntry) {
        let product = (new.rip &* UInt64(bitPattern: Int64(Self.jumpMultiplier))) >> UInt64(Self.jumpShift)
        let set = jumps + (Int(truncatingIfNeeded: product) & (Self.jumpEntries - 2))
        // Another address space's entry for the same address stays, an older generation's is worth nothing.
        let isReplaced = set[0].rip == new.rip && (set[0].key == new.key || (set[0].key ^ new.key) >> 32 != 0)
        if !isReplaced { set[1] = set[0] }
        set[0] = new
    }

    func deallocate() {
        jumps.deallocate()
        callouts.deallocate()
        free(pageHeads)
        PageMemory.free(records, Self.maximumRecords * MemoryLayout<TranslationRecord>.stride)
    }

    /// Whether another block fits.
    var hasRoom: Bool {
        position + Self.longestBlock * Self.longestRun <= memory.size
            && recordCount + 2 * Self.longestRun < Self.maximumRecords
    }

    /// Takes up a translation written at `position`, made from one page or two; the next one is at `end`.
    mutating func add(
        pageOffset: Int, absolute: UInt64, page: UInt64, secondPage: UInt64, modeKey: UInt32, end: Int
    ) {
        let first = recordCount
        addRecord(pageOffset: pageOffset, absolute: absolute, page: page, modeKey: modeKey)
        if secondPage != page {
            addRecord(pageOffset: pageOffset, absolute: absolute, page: secondPage, modeKey: modeKey)
            records[first].twin = UInt32(first + 1)
            records[first + 1].twin = UInt32(first)
        }
        translations &+= 1
        position = end
    }

    /// Leaves room for the slow paths of the translations added last.
    mutating func endRun(at end: Int) { position = (end + 15) & ~15 }

    private mutating func addRecord(pageOffset: Int, absolute: UInt64, page: UInt64, modeKey: UInt32) {
        let n = recordCount
        recordCount += 1
        records[n] = TranslationRecord(
            next: pageHeads[Int(page)], position: UInt32(position), pageOffset: UInt32(pageOffset),
            modeKey: modeKey, isLive: true, absolute: absolute, page: page)
        pageHeads[Int(page)] = UInt32(n)
    }

    /// Bytes of the translation at a position, padding included.
    func codeLength(at place: Int) -> Int {
        for n in 1..<max(recordCount, 1) where Int(records[n].position) == place {
            return (n + 1 < recordCount ? Int(records[n + 1].position) : position) - place
        }
        return 0
    }

    func record(_ n: Int) -> TranslationRecord { records[min(max(n, 0), recordCount - 1)] }

    /// Forgets all code.
    mutating func removeAll() {
        for n in 1..<recordCount { pageHeads[Int(records[n].page)] = 0 }
        recordCount = 1
        position = firstPosition
        staleRecord = 0
        waitingSite = 0
        flushes &+= 1
        crossChains.removeAll(keepingCapacity: true)
        jumps.update(repeating: JumpEntry(), count: Self.jumpEntries)
    }

    /// A page's code has changed: its translations lead to the dispatcher.
    mutating func removePage(_ page: Int) {
        guard page < pageCount else { return }
        var n = Int(pageHeads[page])
        pageHeads[page] = 0
        while n != 0 {
            remove(n)
            n = Int(records[n].next)
        }
    }

    /// One translation leads to the dispatcher from now on.
    mutating func remove(_ n: Int) {
        waitingSite = 0
        let record = records[n]
        overwrite(Int(record.position)) { patch in
            patch.byte(0x41)
            patch.byte(0xBA)
            patch.word32(Int32(n))
            let place = patch.jump()
            patch.patch(place, to: common.leaveStale - Int(record.position))
        }
        records[n].isLive = false
        if record.twin != 0 { records[Int(record.twin)].isLive = false }
    }

    /// Makes a dead translation lead to the one that replaces it: jumps from other pages still come there.
    mutating func redirect(_ n: Int, to host: Int, page: UInt64, pageOffset: UInt64, modeKey: UInt32) {
        guard n > 0, n < recordCount, !records[n].isLive, records[n].page == page,
            UInt64(records[n].pageOffset) == pageOffset, records[n].modeKey == modeKey
        else { return }
        let position = Int(records[n].position)
        overwrite(position) { patch in
            let place = patch.jump()
            patch.patch(place, to: host - position)
        }
    }

    /// Overwrites the entry of a translation.
    private func overwrite(_ position: Int, _ write: (inout HostAssembler) -> Void) {
        withUnsafeTemporaryAllocation(of: UInt8.self, capacity: 2 * Self.entryBytes) { room in
            var patch = HostAssembler(start: room.baseAddress!)
            write(&patch)
            memory.patch(position, UnsafeRawBufferPointer(start: room.baseAddress, count: patch.count))
        }
    }

    // MARK: Saved code

    /// Each page's first record.
    func head(of page: Int) -> UInt32 { pageHeads[page] }

    /// Its records, the first of which stands for none.
    var recordBytes: UnsafeRawBufferPointer {
        UnsafeRawBufferPointer(start: records, count: recordCount * MemoryLayout<TranslationRecord>.stride)
    }

    /// Takes up code that was saved, before any was made: its pages of a file, its records, the jumps between pages in it. The
    /// heads are set by `setHead` then.
    mutating func adopt(
        _ file: borrowing FileDescriptor, code: Range<Int>, records other: Int, count: Int, chains: [CrossChain]
    ) throws(HostError) -> Bool {
        guard position == firstPosition, recordCount == 1, count <= Self.maximumRecords,
            firstPosition + code.count + Self.longestBlock * Self.longestRun <= memory.size,
            PageMemory.lay(
                file, from: other, count: count * MemoryLayout<TranslationRecord>.stride, over: records)
        else { return false }
        try memory.adopt(file, from: code.lowerBound, count: code.count, at: firstPosition)
        firstPosition += code.count
        position = firstPosition
        recordCount = count
        crossChains = chains
        return true
    }

    func setHead(of page: Int, _ record: UInt32) { pageHeads[page] = record }

    // MARK: Chains

    /// Remembers by which jump translated code was left, and for where.
    @inline(__always)
    mutating func wait(site: UInt64, rip: UInt64, key: UInt64) {
        waitingSite = Int(truncatingIfNeeded: site)
        waitingRIP = rip
        waitingKey = key
    }

    /// Whether a jump waits for the block at `rip`.
    @inline(__always)
    func isWaiting(rip: UInt64, key: UInt64) -> Bool {
        waitingSite != 0 && waitingRIP == rip && waitingKey == key
    }

    /// Makes the jump that waits lead to code; `isGlobal`: the target is there in every address space; `endsElsewhere`: it
    /// goes on in another page than it begins in.
    mutating func chain(to host: Int, isGlobal: Bool, endsElsewhere: Bool) {
        let site = waitingSite & Int(ChainSite.mask)
        let isCache = UInt64(waitingSite) & ChainSite.cache != 0
        if isCache { endFilling(site) }
        if endsElsewhere || UInt64(waitingSite) & ChainSite.crossesPage != 0 {
            if !isGlobal { return }
            let record = recordHolding(site)
            if record == 0 { return }
            crossChains.append(
                CrossChain(site: site, unchained: memory.word(at: site), record: UInt32(record)))
        }
        memory.patch(site, Int32(truncatingIfNeeded: host - site - 4))
        if isCache { memory.patch(site - 11, Int32(truncatingIfNeeded: waitingRIP)) }
    }

    /// Other targets of an inline cache go through the jump table from now on.
    private func endFilling(_ site: Int) {
        let other = site - 1 + Int(memory.word(at: site - 5))
        guard other > 0, other + 5 <= position else { return }
        memory.patch(other + 1, Int32(truncatingIfNeeded: common.lookup - other - 5))
    }

    mutating func stopWaiting() { waitingSite = 0 }

    /// The record whose code holds a position (they are in the order of their positions), 0 if that is dead.
    func recordHolding(_ site: Int) -> Int {
        var low = 1
        var high = recordCount
        while low < high {
            let middle = (low + high) / 2
            if Int(records[middle].position) <= site { low = middle + 1 } else { high = middle }
        }
        return low > 1 && records[low - 1].isLive ? low - 1 : 0
    }

    /// Undoes every jump to absolute code in another page.
    mutating func unchainPages() {
        waitingSite = 0
        for chain in crossChains where records[Int(chain.record)].isLive {
            memory.patch(chain.site, chain.unchained)
        }
        crossChains.removeAll(keepingCapacity: true)
    }
}
