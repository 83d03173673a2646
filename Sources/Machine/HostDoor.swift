// The free-mode door: host time, timers on one thread, everything else at once.
public import DeviceModel
internal import HostOS
internal import Synchronization

/// The door of a machine that runs freely: events take effect at once, on the thread that has them.
public final class HostDoor: Door {
    private let time: GuestTime
    private let timers: TimerThread
    /// Held for reading while something is let in, for writing while the door is closed.
    private let gate = ReadersWriterLock()

    /// Starts guest time at `now`, and the thread that fires timers.
    public init(at now: UInt64 = 0) throws {
        time = GuestTime(at: now)
        timers = try TimerThread(time: time, gate: gate)
    }

    deinit { timers.stop() }

    /// Nanoseconds since the machine was first started, without those for which the door was closed.
    public var now: UInt64 { time.now }

    /// The host's time of day.
    public var wallClock: UInt64 { HostClock.realTime }

    /// Makes a timer that fires on the timer thread.
    public func makeTimer(_ fire: @escaping @Sendable () -> Void) -> any DoorTimer {
        HostTimer(timers, slot: timers.add(fire))
    }

    /// Runs the event at once, or when the door opens.
    public func admit(_ event: ExternalEvent, _ body: @escaping @Sendable (ExternalEvent) -> Void) {
        gate.read { body(event) }
    }

    /// Runs the event, unless the door is closed.
    public func admitNow(_ event: ExternalEvent, _ body: @escaping @Sendable (ExternalEvent) -> Void) -> Bool {
        gate.readNow { body(event) }
    }

    /// Bytes from `getrandom(2)`.
    public func randomBytes(_ count: Int) -> [UInt8] { HostRandom.bytes(min(max(count, 0), 65536)) }

    /// Stops time; timers and events wait. Returns when nothing that was let in is still at work.
    public func close() -> UInt64? {
        gate.lockForWriting()
        return time.stop()
    }

    /// Goes on after `close`.
    public func open() -> UInt64? {
        let started = time.start()
        gate.unlock()
        timers.timeHasMoved()
        return started
    }
}

/// Guest time against the host's: nanoseconds since the machine's first start, with a stop now and then.
final class GuestTime: Sendable {
    /// Host time at guest time zero, wrapping.
    private let origin: Atomic<UInt64>
    /// Guest time while it is stopped; the maximum while it runs.
    private let stopped = Atomic<UInt64>(.max)

    init(at now: UInt64) { origin = Atomic(HostClock.monotonic &- now) }

    var now: UInt64 {
        let stopped = stopped.load(ordering: .acquiring)
        return stopped != .max ? stopped : HostClock.monotonic &- origin.load(ordering: .acquiring)
    }

    /// Whether it stands still.
    var isStopped: Bool { stopped.load(ordering: .acquiring) != .max }

    /// Host time at a guest time, if time goes on as it does.
    func hostTime(of deadline: UInt64) -> UInt64 {
        min(origin.load(ordering: .acquiring) &+ min(deadline, .max >> 1), .max - 1)
    }

    /// Both return the host's time at which that was.
    func stop() -> UInt64 {
        let host = HostClock.monotonic
        stopped.store(host &- origin.load(ordering: .acquiring), ordering: .releasing)
        return host
    }

    func start() -> UInt64 {
        let (now, host) = (now, HostClock.monotonic)
        origin.store(host &- now, ordering: .releasing)
        stopped.store(.max, ordering: .releasing)
        return host
    }
}

/// A timer of a `HostDoor`.
final class HostTimer: DoorTimer {
    private let thread: TimerThread
    private let slot: Int

    init(_ thread: TimerThread, slot: Int) {
        self.thread = thread
        self.slot = slot
    }

    deinit { thread.remove(slot) }

    func arm(at deadline: UInt64) { thread.set(slot, min(deadline, .max - 1)) }

    func disarm() { thread.set(slot, .max) }
}

/// One thread that sleeps on a timerfd until the earliest deadline. A board has some twenty timers: a linear search.
final class TimerThread: Sendable {
    private struct Timers {
        /// Guest time of each slot; the maximum means not armed.
        var deadlines: [UInt64] = []
        var actions: [(@Sendable () -> Void)?] = []
        /// The guest time that the timerfd is set to.
        var programmed = UInt64.max
        var stopped = false
    }

    private let timers = Mutex(Timers())
    private let clock: SharedDescriptor
    private let wake: SharedDescriptor
    private let thread = Mutex<HostThread?>(nil)
    private let time: GuestTime
    private let gate: ReadersWriterLock

    init(time: GuestTime, gate: ReadersWriterLock) throws {
        self.time = time
        self.gate = gate
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
            if deadline < timers.programmed && !time.isStopped {
                timers.programmed = deadline
                clock.descriptor.arm(at: time.hostTime(of: deadline))
            }
        }
    }

    /// Host times have changed: looks at all deadlines anew.
    func timeHasMoved() { wake.descriptor.signal() }

    private func run() {
        while true {
            let (due, woken) = FileDescriptor.waitForInput(clock.descriptor.rawValue, wake.descriptor.rawValue)
            if due { clock.descriptor.drain() }
            if woken { wake.descriptor.drain() }
            guard let due = takeDue() else { return }
            for (slot, action) in due where !gate.readNow(action) {
                // The door was closed at this moment: it fires when that opens, which wakes this thread.
                timers.withLock { timers in
                    if timers.actions[slot] != nil { timers.deadlines[slot] = min(timers.deadlines[slot], time.now) }
                }
            }
        }
    }

    /// The timers that have come due, and sets the clock to the next one; none while time stands still. Nil: it is over.
    private func takeDue() -> [(Int, @Sendable () -> Void)]? {
        timers.withLock { timers in
            if timers.stopped { return nil }
            if time.isStopped {
                timers.programmed = .max
                clock.descriptor.arm(at: nil)
                return []
            }
            let now = time.now
            var due: [(Int, @Sendable () -> Void)] = []
            var next = UInt64.max
            for slot in timers.deadlines.indices {
                if timers.deadlines[slot] <= now {
                    timers.deadlines[slot] = .max
                    if let action = timers.actions[slot] { due.append((slot, action)) }
                }
                next = min(next, timers.deadlines[slot])
            }
            timers.programmed = next
            clock.descriptor.arm(at: next == .max ? nil : time.hostTime(of: next))
            return due
        }
    }
}
