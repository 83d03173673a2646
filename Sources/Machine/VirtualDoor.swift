// The door in ordered mode: time is the vCPU's count of instructions, and everything happens at one of them.
//
// A nanosecond passes with each instruction. While the vCPU is halted, time jumps to the next timer. Timers fire on the
// vCPU's thread, in the order of their deadlines and, for the same deadline, of their arming. Nothing comes from outside:
// randomness is a fixed sequence, the time of day begins at a fixed date, input is refused.
internal import CHost
package import CPU
public import DeviceModel
internal import HostOS
internal import Synchronization

/// The door of a machine whose run can be repeated.
public final class VirtualDoor: Door, Saveable, @unchecked Sendable {
    // SAFETY of @unchecked: `cpu` is set before anything runs; its counts are read by the vCPU's thread, which is where
    // devices are called while time is virtual.
    private var cpu: VirtualCPU?
    private let contents = Mutex(Contents())

    /// Ticks a second of the guest's counter: one an instruction.
    package static let frequency: UInt64 = 1_000_000_000
    /// The time of day at the start: 2026-01-01 00:00:00 UTC.
    package static let startOfTime: UInt64 = 1_767_225_600_000_000_000
    /// Timers fired in a row before the vCPU must go on: one that arms itself for the past doesn't stop the guest.
    private static let mostInARow = 64

    private struct Contents {
        struct Timer {
            var deadline = UInt64.max
            var order: UInt64 = 0
            var action: (@Sendable () -> Void)?
        }
        var timers: [Timer] = []
        var armings: UInt64 = 0
        var random: UInt64 = 0x2026_0101_0000_0000
        var hasRefused = false

        /// The armed timer that fires first.
        var first: Int? {
            timers.indices.filter { timers[$0].deadline != .max }
                .min { (timers[$0].deadline, timers[$0].order) < (timers[$1].deadline, timers[$1].order) }
        }
    }

    /// A door at time zero.
    public init() {}

    /// Sets whose instructions are time; before anything runs.
    package func attach(_ cpu: VirtualCPU) {
        self.cpu = cpu
        // SAFETY: the vCPU doesn't run yet.
        unsafe cpu.state.pointee.virtual_clock = 1
    }

    /// Instructions executed, and time skipped.
    public var now: UInt64 { cpu?.vcpu.rawCounter ?? 0 }

    /// A fixed date and `now`.
    public var wallClock: UInt64 { Self.startOfTime &+ now }

    /// Always.
    public var isOrdered: Bool { true }

    /// Makes a timer that fires on the vCPU's thread.
    public func makeTimer(_ fire: @escaping @Sendable () -> Void) -> any DoorTimer {
        let slot = contents.withLock { contents in
            contents.timers.append(Contents.Timer(action: fire))
            return contents.timers.count - 1
        }
        return VirtualTimer(self, slot)
    }

    /// Lets in what the guest itself has asked for, at once; what comes by itself is refused.
    public func admit(_ event: ExternalEvent, _ body: @escaping @Sendable (ExternalEvent) -> Void) {
        switch event {
        case .blockCompletion, .several: return body(event)
        default: break
        }
        guard case .input = event else { return }
        let isFirst = contents.withLock { contents in
            defer { contents.hasRefused = true }
            return !contents.hasRefused
        }
        if isFirst { Terminal.note("roost: with virtual time the guest gets no input (Ctrl-A x still ends it)") }
    }

    /// The next of a fixed sequence.
    public func randomBytes(_ count: Int) -> [UInt8] {
        contents.withLock { contents in
            (0..<min(max(count, 0), 65536)).map { _ in
                contents.random = contents.random &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
                return UInt8(truncatingIfNeeded: contents.random >> 56)
            }
        }
    }

    // MARK: For the vCPU's thread

    /// Fires the timers that are due.
    package func fireDue() {
        for _ in 0..<Self.mostInARow {
            let now = now
            let action = contents.withLock { contents -> (@Sendable () -> Void)? in
                guard let first = contents.first, contents.timers[first].deadline <= now else { return nil }
                contents.timers[first].deadline = .max
                return contents.timers[first].action
            }
            guard let action else { return }
            action()
        }
    }

    /// The count of instructions at which the next timer is due, later than now; the maximum if none is armed.
    package var limit: UInt64 {
        guard let cpu, let deadline = deadline else { return .max }
        // SAFETY: see above.
        let (instructions, skipped) = unsafe (cpu.state.pointee.instructions, cpu.state.pointee.skipped_time)
        let now = instructions &+ skipped
        let (limit, isNever) = instructions.addingReportingOverflow(deadline > now ? deadline - now : 1)
        return isNever ? .max : limit
    }

    /// Moves time to the next timer; false if none is armed.
    package func skipToDeadline() -> Bool {
        guard let cpu, let deadline = deadline else { return false }
        let now = now
        // SAFETY: see above.
        if deadline > now { unsafe cpu.state.pointee.skipped_time &+= deadline - now }
        return true
    }

    private var deadline: UInt64? {
        contents.withLock { contents in contents.first.map { contents.timers[$0].deadline } }
    }

    // MARK: State

    /// All that the door remembers; armed timers are their devices'.
    public struct State: Codable, Sendable, Equatable {
        /// The layout's version.
        public var version = 1
        /// Guest time.
        public var now: UInt64
        /// Where the random sequence is.
        public var random: UInt64
    }

    /// The state; nothing may run.
    public func saveState() -> State { State(now: now, random: contents.withLock { $0.random }) }

    /// Goes on from a state, whatever the vCPU has counted; before devices arm their timers.
    public func restoreState(_ state: State) throws {
        guard state.version == 1 else { throw StateError("virtual time: version \(state.version) is not known") }
        contents.withLock { $0.random = state.random }
        // SAFETY: see above.
        if let cpu { unsafe cpu.state.pointee.skipped_time = state.now &- cpu.state.pointee.instructions }
    }

    // MARK: For timers

    func arm(_ slot: Int, at deadline: UInt64) {
        contents.withLock { contents in
            contents.armings &+= 1
            contents.timers[slot].deadline = deadline
            contents.timers[slot].order = contents.armings
        }
    }

    func forget(_ slot: Int) { contents.withLock { $0.timers[slot] = Contents.Timer() } }
}

/// A timer of a `VirtualDoor`.
final class VirtualTimer: DoorTimer {
    private let door: VirtualDoor
    private let slot: Int

    init(_ door: VirtualDoor, _ slot: Int) {
        self.door = door
        self.slot = slot
    }

    deinit { door.forget(slot) }

    func arm(at deadline: UInt64) { door.arm(slot, at: min(deadline, .max - 1)) }

    func disarm() { door.arm(slot, at: .max) }
}
