// The free-mode door: host time, timers on one thread, everything else at once.
public import DeviceModel
internal import HostOS
internal import Synchronization

/// The door of a machine that runs freely: events take effect at once, on the thread that has them.
public final class HostDoor: Door {
    private let start: UInt64
    private let timers: TimerThread

    /// Starts guest time at zero, and the thread that fires timers.
    public init() throws {
        start = HostClock.monotonic
        timers = try TimerThread()
    }

    deinit { timers.stop() }

    /// Nanoseconds since the door was made.
    public var now: UInt64 { HostClock.monotonic &- start }

    /// The host's time of day.
    public var wallClock: UInt64 { HostClock.realTime }

    /// Makes a timer that fires on the timer thread.
    public func makeTimer(_ fire: @escaping @Sendable () -> Void) -> any DoorTimer {
        HostTimer(timers, start: start, slot: timers.add(fire))
    }

    /// Runs the event at once.
    public func admit(_ event: ExternalEvent, _ body: @escaping @Sendable (ExternalEvent) -> Void) { body(event) }

    /// Bytes from `getrandom(2)`.
    public func randomBytes(_ count: Int) -> [UInt8] { HostRandom.bytes(min(max(count, 0), 65536)) }
}

/// A timer of a `HostDoor`.
final class HostTimer: DoorTimer {
    private let thread: TimerThread
    private let start: UInt64
    private let slot: Int

    init(_ thread: TimerThread, start: UInt64, slot: Int) {
        self.thread = thread
        self.start = start
        self.slot = slot
    }

    deinit { thread.remove(slot) }

    func arm(at deadline: UInt64) {
        let (sum, overflow) = start.addingReportingOverflow(deadline)
        thread.set(slot, overflow ? .max - 1 : min(sum, .max - 1))
    }

    func disarm() { thread.set(slot, .max) }
}

/// One thread that sleeps on a timerfd until the earliest deadline. A board has some twenty timers: a linear search.
final class TimerThread: Sendable {
    private struct Timers {
        /// Host time of each slot; the maximum means not armed.
        var deadlines: [UInt64] = []
        var actions: [(@Sendable () -> Void)?] = []
        /// What the timerfd is set to.
        var programmed = UInt64.max
        var stopped = false
    }

    private let timers = Mutex(Timers())
    private let clock: SharedDescriptor
    private let wake: SharedDescriptor
    private let thread = Mutex<HostThread?>(nil)

    init() throws {
        clock = SharedDescriptor(try FileDescriptor.timer())
        wake = SharedDescriptor(try FileDescriptor.eventCounter())
        let started = try HostThread(name: "roost-timers") { [unowned self] in run() }
        thread.withLock { $0 = started }
    }

    /// Ends the thread; its owner calls it before letting go.
    func stop() {
        timers.withLock { $0.stopped = true }
        wake.descriptor.signal()
        thread.withLock { thread in
            thread?.join()
            thread = nil
        }
    }

    func add(_ action: @escaping @Sendable () -> Void) -> Int {
        timers.withLock { timers in
            if let free = timers.actions.firstIndex(where: { $0 == nil }) {
                timers.actions[free] = action
                return free
            }
            timers.deadlines.append(.max)
            timers.actions.append(action)
            return timers.actions.count - 1
        }
    }

    func remove(_ slot: Int) {
        timers.withLock { timers in
            timers.deadlines[slot] = .max
            timers.actions[slot] = nil
        }
    }

    func set(_ slot: Int, _ deadline: UInt64) {
        timers.withLock { timers in
            timers.deadlines[slot] = deadline
            // A later deadline needs no system call: the thread wakes once for nothing and looks again.
            if deadline < timers.programmed {
                timers.programmed = deadline
                clock.descriptor.arm(at: deadline)
            }
        }
    }

    private func run() {
        while true {
            let (due, _) = FileDescriptor.waitForInput(clock.descriptor.rawValue, wake.descriptor.rawValue)
            if due { clock.descriptor.drain() }
            let now = HostClock.monotonic
            let actions = timers.withLock { timers -> [@Sendable () -> Void]? in
                if timers.stopped { return nil }
                var actions: [@Sendable () -> Void] = []
                var next = UInt64.max
                for slot in timers.deadlines.indices {
                    if timers.deadlines[slot] <= now {
                        timers.deadlines[slot] = .max
                        if let action = timers.actions[slot] { actions.append(action) }
                    }
                    next = min(next, timers.deadlines[slot])
                }
                timers.programmed = next
                clock.descriptor.arm(at: next == .max ? nil : next)
                return actions
            }
            guard let actions else { return }
            for action in actions { action() }
        }
    }
}

/// A descriptor that several threads use and its owner closes.
final class SharedDescriptor: Sendable {
    let descriptor: FileDescriptor

    init(_ descriptor: consuming FileDescriptor) { self.descriptor = descriptor }
}
