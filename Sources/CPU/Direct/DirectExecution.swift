// Direct execution of user code: which address spaces, when, and what it cost.
//
// Belongs to one vCPU's thread. The vCPU's state block points at it (unretained); whoever makes it keeps it.
internal import CHost
public import GuestMemory
internal import HostOS

/// How eagerly user code runs directly.
public enum DirectMode: Sendable {
    /// Where it pays.
    case automatic
    /// Always at once: for tests.
    case always
}

/// What direct execution did.
public struct DirectStatistics: Sendable, Codable, Equatable {
    /// Times a stub was entered.
    public var entries: UInt64 = 0
    /// Why it was left, by cause.
    public var leaves: [String: UInt64] = [:]
    /// Pages mapped into stubs.
    public var pagesMapped: UInt64 = 0
    /// Stub processes made.
    public var stubs: UInt64 = 0
    /// Time-stamp counts spent in stubs.
    public var ticks: UInt64 = 0
    /// Time-stamp counts that the way into a stub and out of it takes.
    public var wayTicks: UInt64 = 0
    /// Pages that turned from code to data or back because they were both.
    public var flips: UInt64 = 0
    /// Times an address space was given back to the translator.
    public var suspensions: UInt64 = 0
    /// Why there is none, in words.
    public var unavailable: String?

    /// An empty count.
    public init() {}
}

/// Runs one vCPU's user code in stub processes.
public final class DirectExecution {
    static let mostSpaces = 32
    static let mostStubs = 6
    /// Interrupts in a row that must find an address space in user mode before a stub is made for it.
    private let ticksWanted: Int
    let v: VCPU
    let mode: DirectMode
    let memory: GuestMemory
    let states: PageStates
    /// The most recently used first.
    var spaces: [UserSpace] = []
    private var lastTick: UInt64 = ~0
    private var retiredPages: UInt64 = 0
    var counts = DirectCounts()
    private(set) var unavailable: String?

    /// Makes a vCPU's user code run directly from now on. The vCPU is attached to its memory and has its engine.
    public init(cpu: VirtualCPU, memory: GuestMemory, mode: DirectMode = .automatic) {
        v = cpu.vcpu
        self.mode = mode
        self.memory = memory
        states = PageStates(cpu.vcpu, memory: memory)
        ticksWanted = mode == .always ? 0 : 2
        v.s.pointee.direct = Unmanaged.passUnretained(self).toOpaque()
        v.s.pointee.direct_armed = mode == .always ? 1 : 0
    }

    deinit {
        v.s.pointee.direct = nil
        v.s.pointee.direct_armed = 0
    }

    /// Ends all stubs; they are made anew when user code is to run directly again.
    public func stop() { for space in spaces { space.dropStub() } }

    /// What was done so far.
    public var statistics: DirectStatistics {
        var result = DirectStatistics()
        result.entries = counts.entries
        result.stubs = counts.stubs
        result.ticks = counts.ticks
        result.wayTicks = counts.wayCost
        result.flips = states.flips
        result.suspensions = counts.suspensions
        result.pagesMapped = retiredPages + spaces.reduce(0) { $0 + $1.pagesMapped }
        result.unavailable = unavailable
        for cause in DirectCause.allCases where counts.leaves[cause.rawValue] > 0 {
            result.leaves[cause.name] = counts.leaves[cause.rawValue]
        }
        return result
    }

    /// Process numbers of the stubs.
    public var stubProcesses: [Int32] { spaces.compactMap { $0.stub?.processID } }

    // MARK: Address spaces

    private var root: UInt64 { v.s.pointee.cr3 & VCPU.frameMask }

    /// The address space in force, at the front of the list from now on.
    private func currentSpace() -> UserSpace {
        let root = root
        if let first = spaces.first, first.root == root { return first }
        if let place = spaces.firstIndex(where: { $0.root == root }) {
            let space = spaces.remove(at: place)
            spaces.insert(space, at: 0)
            return space
        }
        let space = UserSpace(root: root)
        space.lowEnd = v.s.pointee.ram_low_end
        if spaces.count >= Self.mostSpaces, let last = spaces.popLast() { retiredPages += last.pagesMapped }
        spaces.insert(space, at: 0)
        return space
    }

    /// The address space in force with its stub; nil: none can be made.
    func spaceToRun() -> UserSpace? {
        if unavailable != nil { return nil }
        let space = currentSpace()
        if !space.policy.mayRun && mode != .always { return nil }
        if let stub = space.stub {
            if stub.owner == StubProcess.thread { return space }
            // Another thread runs this vCPU now: ptrace obeys only the one that made the stubs.
            for space in spaces { space.dropStub() }
        }
        var others = 0
        for other in spaces where other.stub != nil {
            others += 1
            if others >= Self.mostStubs { other.dropStub() }
        }
        do {
            space.dropStub()
            let stub = try StubProcess(memory: memory.descriptor)
            space.stub = stub
            counts.stubs += 1
            stub.join()
            measure(stub, &space.policy)
            stub.separate()
        } catch {
            unavailable = "\(error)"
            v.s.pointee.direct_armed = 0
            return nil
        }
        space.policy.open()
        return space
    }

    /// What a way in and out costs here.
    private func measure(_ stub: StubProcess, _ policy: inout UserSpacePolicy) {
        var best = UInt64.max
        for _ in 0..<6 {
            let start = roost_read_tsc()
            _ = stub.apply(0)
            best = min(best, roost_read_tsc() &- start)
        }
        policy.cost = Int64(truncatingIfNeeded: min(best, 1 << 24))
        counts.wayCost = best
    }

    /// Gives a space's stub up, and the space to the translator for a while.
    func abandon(_ space: UserSpace) {
        space.dropStub()
        suspend(space)
    }

    /// Gives a space to the translator for a while.
    func suspend(_ space: UserSpace) {
        counts.suspensions += 1
        space.policy.suspend()
        updateArmed()
    }

    func updateArmed() {
        if mode == .always || unavailable != nil { return }
        let armed = spaces.contains { $0.policy.mayRun && $0.policy.seen >= ticksWanted }
        v.s.pointee.direct_armed = armed ? 1 : 0
    }

    /// Whether the address space in force is to run directly.
    func wants() -> Bool {
        if mode == .always { return unavailable == nil }
        let root = root
        for space in spaces where space.root == root {
            return space.policy.mayRun && space.policy.seen >= ticksWanted
        }
        return false
    }

    /// Whether to go on directly from a return to user mode.
    func wantsReturn() -> Bool {
        if mode == .always { return unavailable == nil }
        let root = root
        for space in spaces where space.root == root && space.policy.seen >= ticksWanted {
            return space.policy.takesReturn() && !space.isForeign(v.s.pointee.rip >> 12)
        }
        return false
    }

    /// An interrupt came while user code ran.
    func tick() {
        if unavailable != nil || mode == .always { return }
        let space = currentSpace()
        let calls = v.s.pointee.system_calls &+ v.s.pointee.exceptions
        defer { callsAtTick = calls }
        if lastTick != space.root {
            lastTick = space.root
            if space.stub == nil { space.policy.seen = 0 }
        } else if calls &- callsAtTick > 200 && space.stub == nil {
            // Too often in its kernel to be worth a trial.
            space.policy.seen = 0
            return
        }
        space.policy.tick()
        updateArmed()
        // Kernels clear accessed bits without a flush and count on translations to be forgotten at some time.
        ticks &+= 1
        if ticks & 255 == 0 { flush(page: nil) }
    }
    private var ticks: UInt32 = 0
    private var callsAtTick: UInt64 = 0

    // MARK: What the guest does to its translations

    func flush(page: UInt64?) {
        for space in spaces where space.stub != nil {
            if let page { space.forget(page) } else { space.isStale = true }
        }
    }

    func flushAddressSpace() {
        let root = root
        for space in spaces where space.root == root { space.isStale = true }
    }
}

/// Counts without a dictionary.
struct DirectCounts {
    var entries: UInt64 = 0
    var stubs: UInt64 = 0
    var ticks: UInt64 = 0
    var suspensions: UInt64 = 0
    var wayCost: UInt64 = 0
    var leaves = [UInt64](repeating: 0, count: DirectCause.allCases.count)
}

/// Why a stub was left.
enum DirectCause: Int, CaseIterable {
    case systemCall, kick, fill, fault, code, guarded, trap

    var name: String {
        switch self {
        case .systemCall: "system call"
        case .kick: "attention"
        case .fill: "page to map"
        case .fault: "fault"
        case .code: "code for the translator"
        case .guarded: "guarded instruction"
        case .trap: "trap"
        }
    }
}

extension VCPU {
    @inline(__always)
    private var execution: DirectExecution? {
        guard let pointer = s.pointee.direct else { return nil }
        return Unmanaged<DirectExecution>.fromOpaque(pointer).takeUnretainedValue()
    }

    /// The guest forgets one page's translation, or all of them.
    @inline(never)
    func directFlush(page: UInt64?) { execution?.flush(page: page) }

    /// The guest forgets the translations of the address space in force.
    @inline(never)
    func directFlushAddressSpace() { execution?.flushAddressSpace() }

    /// Another thread asked for attention while this vCPU ran.
    @inline(never)
    func directTick() {
        if s.pointee.cpl != 3 || s.pointee.code_size != 8 { return }
        execution?.tick()
        directWish()
    }

    /// The guest is in user mode again: asks the loop to go on directly, if that is wanted.
    @inline(never)
    func directWish() {
        if s.pointee.cpl != 3 || s.pointee.code_size != 8 { return }
        if let execution, execution.wantsReturn() { roost_attention_set(s, ROOST_ATTENTION_DIRECT) }
    }

    /// Runs user code directly as long as that works.
    @inline(never)
    func runDirectly() -> DirectOutcome { execution?.run() ?? .goOn }
}
