// What each guest-physical page is to code that runs directly: data that it may write, code that it may execute, or
// neither yet. Never both: then a page's content can't change behind the scan that let it be executed.
//
// The flags are the truth (`PageFlags.directWritable`, `.directExecutable`); stubs whose mappings say otherwise are
// corrected before they run, which the generation tells them to. An executable page is also marked as code with all of
// its chunks, so that every engine and device that writes to it says so.
internal import CHost
internal import Glibc
internal import GuestMemory

/// The guest-physical pages that stand before and after a page linearly; nil: unknown.
struct PageNeighbors {
    var previous: UInt64?
    var next: UInt64?
}

/// The states of all pages.
struct PageStates: ~Copyable {
    private let v: VCPU
    private let deviceChanges: UnsafeMutablePointer<UInt32>
    /// For each page, the code version that was last scanned, and the verdict; none: good before the page that followed
    /// then, others may follow elsewhere.
    private let scanned: UnsafeMutablePointer<UInt64>
    private static let good: UInt64 = 1 << 33
    /// It has forbidden instructions, and may run in private copies without them.
    private static let guarded: UInt64 = 1 << 34
    private static let bad: UInt64 = 1 << 32
    private static let code = PageFlags.code.rawValue
    private static let data = PageFlags.directWritable.rawValue
    private static let runs = PageFlags.directExecutable.rawValue

    init(_ v: VCPU, memory: GuestMemory) {
        self.v = v
        deviceChanges = memory.directChanges
        let count = Int(memory.limit / GuestMemory.pageSize)
        scanned = PageStates.zeroed(count)
        flipCount = PageStates.zeroed(1)
    }

    deinit {
        free(scanned)
        free(flipCount)
    }

    /// Changes whenever a page that stubs may map changes between data and code.
    var generation: UInt64 {
        UInt64(v.s.pointee.direct_generation) | UInt64(roost_load(deviceChanges)) << 32
    }

    /// Pages that turned from code to data or back on demand.
    var flips: UInt64 { UInt64(flipCount.pointee) }
    private let flipCount: UnsafeMutablePointer<UInt64>

    private var flags: UnsafeMutablePointer<UInt8> { v.s.pointee.page_flags }

    /// Whether a recorded mapping still agrees with its page's state.
    @inline(__always)
    func isCurrent(_ record: UInt64) -> Bool {
        let page = Int(record >> 3)
        if record & UserSpace.writable != 0 { return flags[page] & Self.data != 0 }
        return flags[page] & Self.runs != 0 && scanned[page] | Self.good == wanted(page)
    }

    /// The version of a page's code.
    func version(_ page: Int) -> UInt32 { v.s.pointee.code_versions[page] }

    private func wanted(_ page: Int) -> UInt64 { UInt64(v.s.pointee.code_versions[page]) | Self.good }

    /// The record for a page that the guest allows; its neighbors are for the scan.
    @inline(__always)
    func rights(_ page: UserPage, _ neighbors: PageNeighbors, _ demand: PageDemand) -> UInt64 {
        if flags[Int(page.page)] & PageFlags.absent.rawValue != 0 {
            // What nobody asks for stays in the saved memory.
            if demand == .none { return 0 }
            v.bringIn(page.page)
        }
        let record = page.page << 3 | UserSpace.mapped
        if page.writable && mayWrite(Int(page.page), demand, orRun: page.executable) {
            return record | UserSpace.writable
        }
        if page.executable && mayRun(Int(page.page), neighbors, demand) { return record | UserSpace.executable }
        return record
    }

    /// Whether private copies of a page, as it is now, may run.
    func isGuarded(_ page: Int) -> Bool {
        flags[page] & Self.runs != 0 && scanned[page] == UInt64(v.s.pointee.code_versions[page]) | Self.guarded
    }

    /// Lets private copies of a page run that was refused, if it is clear where its forbidden instructions begin.
    func guardPage(_ page: Int, _ neighbors: PageNeighbors) -> [Int]? {
        let version = UInt64(v.s.pointee.code_versions[page])
        let known = scanned[page]
        guard flags[page] & Self.data == 0, known == version | Self.bad || known == version | Self.guarded else {
            return nil
        }
        guard let starts = CodeScan.forbidden(contents(page, neighbors), most: 512) else { return nil }
        v.markWholePage(UInt64(page))
        scanned[page] = version | Self.guarded
        _ = roost_set_flags(flags + page, Self.runs)
        return starts
    }

    private func contents(_ page: Int, _ neighbors: PageNeighbors) -> CodeScan.Page {
        let ram = UnsafePointer(v.s.pointee.ram.unsafelyUnwrapped)
        for neighbor in [neighbors.previous, neighbors.next] {
            if let neighbor, flags[Int(neighbor)] & PageFlags.absent.rawValue != 0 { v.bringIn(neighbor) }
        }
        return CodeScan.Page(
            ram + page << 12, previous: neighbors.previous.map { ram + Int($0 << 12) },
            next: neighbors.next.map { ram + Int($0 << 12) })
    }

    private func mayWrite(_ page: Int, _ demand: PageDemand, orRun: Bool) -> Bool {
        let now = flags[page]
        if now & Self.data != 0 { return !(orRun && demand == .execute) }
        if now & 4 != 0 { return false }
        if now & Self.code != 0 {
            if demand != .write { return false }
            flipCount.pointee &+= 1
            v.blocks.pointee.chunks[page] = ~0
            v.codeWritten(UInt64(page) << 12, 4096)
            return setData(page)
        }
        if orRun && demand == .execute { return false }
        return setData(page)
    }

    /// Makes a page data, unless another vCPU has just made it code.
    private func setData(_ page: Int) -> Bool {
        v.noteDirty(UInt64(page))
        if roost_set_flags(flags + page, Self.data) & Self.code == 0 { return true }
        roost_clear_flags(flags + page, Self.data)
        return false
    }

    private func mayRun(_ page: Int, _ neighbors: PageNeighbors, _ demand: PageDemand) -> Bool {
        if flags[page] & Self.data != 0 {
            if demand != .execute { return false }
            flipCount.pointee &+= 1
            roost_clear_flags(flags + page, Self.data)
            v.directStatesChanged()
        }
        let version = UInt64(v.s.pointee.code_versions[page])
        if flags[page] & Self.runs != 0 && scanned[page] == version | Self.good { return true }
        if flags[page] & Self.code != 0
            && (scanned[page] == version | Self.bad || scanned[page] == version | Self.guarded)
        {
            return false
        }
        // Marked before it is looked at: a device that writes now raises the version.
        v.markWholePage(UInt64(page))
        let contents = contents(page, neighbors)
        let good = CodeScan.mayRun(contents)
        scanned[page] = version | (!good ? Self.bad : contents.dependsOnNext ? 0 : Self.good)
        if good { _ = roost_set_flags(flags + page, Self.runs) }
        return good
    }

    private static func zeroed(_ count: Int) -> UnsafeMutablePointer<UInt64> {
        // calloc: untouched pages cost nothing.
        calloc(max(count, 1), 8).unsafelyUnwrapped.bindMemory(to: UInt64.self, capacity: max(count, 1))
    }
}

extension VCPU {
    /// Marks all of a page as code.
    func markWholePage(_ page: UInt64) {
        blocks.pointee.chunks[Int(page)] = ~0
        if s.pointee.page_flags[Int(page)] & 1 == 0 {
            if hasGroup { return shareCodePage(page) }
            _ = roost_set_flags(s.pointee.page_flags + Int(page), 1)
            if mayPassStores(to: page) { s.pointee.direct_sweep = 1 }
        }
    }

    /// After marking pages: no engine's store may pass them by.
    func protectMarkedPages() {
        if s.pointee.direct_sweep == 0 { return }
        s.pointee.direct_sweep = 0
        protectCodePages()
    }
}
