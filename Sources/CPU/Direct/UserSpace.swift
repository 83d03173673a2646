// One guest address space that user code has run directly in: its stub process, and what is mapped there.
//
// Invariant: a page is recorded exactly when the stub maps it (after `flush`); what is recorded was allowed by the guest's
// page tables and by the page's state when it was last looked at, and is looked at again before the stub runs whenever
// the guest has flushed translations or a page has changed between data and code.
internal import CHost
internal import GuestMemory
internal import HostOS

/// What an access needs of a page beyond what it has.
enum PageDemand {
    case none, read, write, execute
}

/// The pages of 2 MiB as the stub has them.
struct UserRegion {
    /// Linear address >> 21.
    let number: UInt64
    /// For each page: guest-physical page << 3 | 1 readable | 2 writable | 4 executable; 0 not mapped.
    let pages: UnsafeMutablePointer<UInt64>
}

/// A guest address space.
final class UserSpace {
    static let mapped: UInt64 = 1
    static let writable: UInt64 = 2
    static let executable: UInt64 = 4
    private static let mostRegions = 4096
    /// A process may have 65,530 mappings.
    private static let mostMappings = 40_000

    /// Guest-physical address of its top page table.
    let root: UInt64
    var stub: StubProcess?
    var policy = UserSpacePolicy()
    /// Value of the direct generation when the mappings were last looked at.
    var generation: UInt64 = 0
    /// All mappings must be looked at again.
    var isStale = false
    /// 2 MiB regions to be looked at again.
    private var staleRegions: [UInt64] = []
    /// Where a page fault was raised: it will be mapped by the next entry.
    var faultAddress: UInt64?
    private var knownFault: UInt64 = 0
    /// Pages of code for the translator that execution has come to lately.
    private var foreign = [UInt64](repeating: ~0, count: 8)
    private var nextForeign = 0
    /// Linear pages that run in a private copy, their forbidden instructions replaced by one that faults.
    private var guarded: [UInt64: GuardedPage] = [:]
    private static let mostGuarded = 256
    /// Places to be patched once the calls that wait are made.
    private var patches: [UInt64] = []
    /// The stub's extended state is not what `stub.extended` says.
    var mustLoadExtended = true
    private(set) var regions: [UserRegion] = []
    private var index: [UInt64: Int] = [:]
    private var holdsHugePieces = false
    private var calls = 0
    private var mappings = 0
    private(set) var pagesMapped: UInt64 = 0
    private(set) var failed = false
    /// The stub has so many mappings that it is to be made anew.
    private(set) var isFull = false

    init(root: UInt64) { self.root = root }

    deinit { for region in regions { region.pages.deallocate() } }

    /// Leaves the stub and everything recorded of it behind.
    func dropStub() {
        stub = nil
        for region in regions { region.pages.deallocate() }
        regions = []
        index = [:]
        staleRegions = []
        (isStale, holdsHugePieces, failed, isFull, mustLoadExtended) = (false, false, false, false, true)
        (calls, mappings, faultAddress) = (0, 0, nil)
        guarded = [:]
        patches = []
    }

    /// INVLPG.
    func forget(_ linear: UInt64) {
        if isStale || linear >> 47 != 0 || index.isEmpty { return }
        if holdsHugePieces || staleRegions.count >= 64 {
            isStale = true
            return
        }
        let number = linear >> 21
        if index[number] != nil && staleRegions.last != number { staleRegions.append(number) }
    }

    /// The pages around a linear address, recorded from now on; nil: there is no room.
    func region(at linear: UInt64) -> UserRegion? {
        let number = linear >> 21
        if let known = index[number] { return regions[known] }
        if regions.count >= Self.mostRegions { return nil }
        let pages = UnsafeMutablePointer<UInt64>.allocate(capacity: 512)
        pages.initialize(repeating: 0, count: 512)
        let region = UserRegion(number: number, pages: pages)
        index[number] = regions.count
        regions.append(region)
        return region
    }

    /// What is recorded of a page.
    func record(of linear: UInt64) -> UInt64 {
        guard linear >> 47 == 0, let known = index[linear >> 21] else { return 0 }
        return regions[known].pages[Int((linear >> 12) & 511)]
    }

    /// Notes that a linear page's code is the translator's.
    func noteForeign(_ page: UInt64) {
        if isForeign(page) { return }
        foreign[nextForeign & 7] = page
        nextForeign &+= 1
    }

    /// Whether it is known to be.
    func isForeign(_ page: UInt64) -> Bool { foreign.contains(page) }

    // MARK: Looking at mappings again

    /// Brings the stub up to date with the guest's page tables and the pages' states; false: the stub is of no use.
    func update(_ tables: GuestTables, _ states: borrowing PageStates, lastFault: UInt64) -> Bool {
        if isStale {
            isStale = false
            for n in 0..<8 { foreign[n] = ~0 }
            staleRegions.removeAll(keepingCapacity: true)
            generation = states.generation
            for region in regions { synchronize(region, tables, states, onlyRecorded: true) }
        }
        while let number = staleRegions.popLast() {
            if let known = index[number] { synchronize(regions[known], tables, states, onlyRecorded: true) }
        }
        if let address = faultAddress {
            faultAddress = nil
            map(address, tables, states, .read)
        } else if record(of: lastFault) == 0 && lastFault != knownFault {
            // A page fault that was raised and served while the translator ran.
            knownFault = lastFault
            map(lastFault, tables, states, .read)
        }
        // Two rounds at most: the first may turn pages from data to code, never back.
        var rounds = 0
        while generation != states.generation && rounds < 4 {
            generation = states.generation
            for region in regions { sweep(region, tables, states) }
            rounds += 1
        }
        return generation == states.generation && flush()
    }

    /// Maps what the guest allows around a linear address, `demand` fulfilled for its own page.
    func map(_ linear: UInt64, _ tables: GuestTables, _ states: borrowing PageStates, _ demand: PageDemand) {
        guard linear < StubProcess.limit, linear &- StubProcess.address >= StubProcess.size else { return }
        guard let region = region(at: linear) else {
            isFull = true
            return
        }
        synchronize(
            region, tables, states, onlyRecorded: false, demanded: Int((linear >> 12) & 511), demand)
    }

    /// Makes the stub agree with the guest's tables on 2 MiB, or on what is recorded of them.
    private func synchronize(
        _ region: UserRegion, _ tables: GuestTables, _ states: borrowing PageStates, onlyRecorded: Bool,
        demanded: Int = -1, _ demand: PageDemand = .none
    ) {
        let (table, isHuge) = tables.leaf(region.number << 21)
        if isHuge { holdsHugePieces = true }
        var run = PendingRun()
        for n in 0..<512 {
            let old = region.pages[n]
            if onlyRecorded && old == 0 { continue }
            let linearPage = region.number << 9 | UInt64(n)
            // A copy is executable: the others needn't be looked for.
            let wasCopy = old & Self.executable != 0 && !guarded.isEmpty && guarded[linearPage] != nil
            var new: UInt64 = 0
            if let page = tables.page(n, of: table), isMappable(region.number << 21 | UInt64(n) << 12) {
                let neighbors = PageNeighbors(
                    previous: n > 0 ? tables.page(n - 1, of: table)?.page : nil,
                    next: n < 511 ? tables.page(n + 1, of: table)?.page : nil)
                new = states.rights(page, neighbors, n == demanded ? demand : .none)
                // Code that is changed is no place for HLT: what looks like an instruction may be read as data.
                if new & 6 == 0 && page.executable && !page.writable {
                    let isWanted = n == demanded && demand == .execute
                    if let starts = guardedStarts(linearPage, page.page, neighbors, states, isWanted, old) {
                        new |= Self.executable
                        if new != old || !starts.isEmpty {
                            issue(run, region)
                            run = PendingRun()
                            region.pages[n] = new
                            issueGuarded(linearPage, page.page, starts, states)
                        }
                        continue
                    }
                }
            }
            if new == old && !wasCopy { continue }
            region.pages[n] = new
            if wasCopy { guarded[linearPage] = nil }
            // Where only rights change, whole ranges take one call: a fork takes the right to write from everything. Other
            // rights to a private copy would not bring the page itself back.
            let call = old != 0 && old >> 3 == new >> 3 && !wasCopy ? PendingRun.protects | new & 7 : new
            if !run.extend(n, call) {
                issue(run, region)
                run = PendingRun(n, call)
            }
        }
        issue(run, region)
    }

    // MARK: Guarded pages

    /// Whether a page runs in a private copy.
    func isGuarded(_ linearPage: UInt64) -> Bool { guarded[linearPage] != nil }

    /// Whether the instruction at a linear address was replaced there.
    func isPatched(_ linear: UInt64) -> Bool {
        guarded[linear >> 12]?.starts.contains(Int(linear & 4095)) ?? false
    }

    /// The forbidden instructions of a page that may run in a private copy; nil: it may not. It stays there as long as
    /// the page does (`old`: what is recorded of it), and comes there when that is `wanted`.
    private func guardedStarts(
        _ linearPage: UInt64, _ page: UInt64, _ neighbors: PageNeighbors, _ states: borrowing PageStates,
        _ wanted: Bool,
        _ old: UInt64
    ) -> [Int]? {
        if old >> 3 == page && old & Self.executable != 0 && isCurrentCopy(linearPage, page, states) { return [] }
        if !wanted || guarded.count >= Self.mostGuarded { return nil }
        return states.guardPage(Int(page), neighbors)
    }

    /// Whether the private copy of a page is what the page is now.
    private func isCurrentCopy(_ linearPage: UInt64, _ page: UInt64, _ states: borrowing PageStates) -> Bool {
        guarded[linearPage]?.version == states.version(Int(page)) && states.isGuarded(Int(page))
    }

    private func issueGuarded(
        _ linearPage: UInt64, _ page: UInt64, _ starts: [Int], _ states: borrowing PageStates
    ) {
        guard let stub else { return }
        if calls >= StubProcess.capacity && !flush() { return }
        stub.map(
            calls, at: linearPage << 12, length: 4096, offset: fileOffset(page), writable: false, executable: true,
            isPrivate: true)
        calls += 1
        mappings += 1
        pagesMapped &+= 1
        guarded[linearPage] = GuardedPage(version: states.version(Int(page)), starts: starts)
        for start in starts { patches.append(linearPage << 12 | UInt64(start)) }
    }

    /// Looks at those pages again whose state has changed.
    private func sweep(_ region: UserRegion, _ tables: GuestTables, _ states: borrowing PageStates) {
        for n in 0..<512 where region.pages[n] & 6 != 0 {
            let linearPage = region.number << 9 | UInt64(n)
            let isCurrent =
                guarded.isEmpty || guarded[linearPage] == nil
                ? states.isCurrent(region.pages[n]) : isCurrentCopy(linearPage, region.pages[n] >> 3, states)
            if !isCurrent { return synchronize(region, tables, states, onlyRecorded: true) }
        }
    }

    /// The stub's own pages and the host's lowest are never the guest's.
    @inline(__always)
    private func isMappable(_ linear: UInt64) -> Bool {
        linear >= 0x10000 && linear < StubProcess.limit && linear &- StubProcess.address >= StubProcess.size
    }

    // MARK: The list of calls

    private func issue(_ run: PendingRun, _ region: UserRegion) {
        guard run.count > 0, let stub else { return }
        if calls >= StubProcess.capacity && !flush() { return }
        let address = region.number << 21 | UInt64(run.first) << 12
        let length = UInt64(run.count) << 12
        if run.value == 0 {
            stub.unmap(calls, at: address, length: length)
        } else if run.value & PendingRun.protects != 0 {
            stub.protect(
                calls, at: address, length: length, writable: run.value & Self.writable != 0,
                executable: run.value & Self.executable != 0)
        } else {
            stub.map(
                calls, at: address, length: length, offset: fileOffset(run.value >> 3),
                writable: run.value & Self.writable != 0, executable: run.value & Self.executable != 0)
            pagesMapped &+= UInt64(run.count)
            mappings += 1
            if mappings > Self.mostMappings { isFull = true }
        }
        calls += 1
    }

    /// Where a guest-physical page is in the memfd.
    private func fileOffset(_ page: UInt64) -> UInt64 {
        let address = page << 12
        return address < GuestMemory.highStart ? address : address - GuestMemory.highStart + lowEnd
    }

    /// End of the low RAM.
    var lowEnd: UInt64 = 0

    /// Whether calls wait to be made.
    var hasCalls: Bool { calls > 0 }

    /// Makes the calls that wait.
    func flush() -> Bool {
        if calls > 0, let stub {
            if !stub.apply(calls) { failed = true }
            calls = 0
            // HLT: a general protection fault in user code, which the interpreter settles by the real instruction.
            for address in patches where !stub.patch(address, 0xF4) { failed = true }
            patches.removeAll(keepingCapacity: true)
        }
        return !failed
    }
}

/// A page that runs in a private copy.
private struct GuardedPage {
    /// The version of the code that was copied.
    var version: UInt32
    /// Where in the page instructions were replaced.
    var starts: [Int]
}

/// Pages next to each other that one call maps, unmaps or gives other rights.
private struct PendingRun {
    /// In `value`: only the rights in bits 2:0 change.
    static let protects: UInt64 = 1 << 63

    var first = 0
    var count = 0
    var value: UInt64 = 0

    init() {}

    init(_ n: Int, _ value: UInt64) {
        first = n
        count = 1
        self.value = value
    }

    /// Takes in another page if it goes on where the run ends.
    mutating func extend(_ n: Int, _ new: UInt64) -> Bool {
        if count == 0 {
            self = PendingRun(n, new)
            return true
        }
        let wanted = value == 0 || value & Self.protects != 0 ? value : value &+ UInt64(count) << 3
        if n != first + count || new != wanted { return false }
        count += 1
        return true
    }
}
