// Test doubles for devices: a manual clock and door, a recording interrupt line, message target and power control.
public import DeviceModel
internal import Synchronization

/// A door whose time moves only when told; timers fire from `advance`.
public final class ManualDoor: Door {
    private struct Contents {
        var now: UInt64 = 0
        var wallClock: UInt64 = 1_700_000_000_000_000_000
        var timers: [ManualTimer] = []
        var random: UInt64 = 0x9E37_79B9_7F4A_7C15
        var isClosed = false
        /// Events that wait for the door to open.
        var held: [@Sendable () -> Void] = []
    }

    private let contents = Mutex(Contents())

    /// A door at time 0.
    public init() {}

    /// Current time in nanoseconds.
    public var now: UInt64 { contents.withLock { $0.now } }

    /// A fixed start plus `now`.
    public var wallClock: UInt64 { contents.withLock { $0.wallClock &+ $0.now } }

    /// Makes a timer that `advance` fires.
    public func makeTimer(_ fire: @escaping @Sendable () -> Void) -> any DoorTimer {
        let timer = ManualTimer(fire)
        contents.withLock { $0.timers.append(timer) }
        return timer
    }

    /// Runs the event at once, or when the door opens.
    public func admit(_ event: ExternalEvent, _ body: @escaping @Sendable (ExternalEvent) -> Void) {
        let isHeld = contents.withLock { contents in
            if contents.isClosed { contents.held.append { body(event) } }
            return contents.isClosed
        }
        if !isHeld { body(event) }
    }

    /// Runs the event, unless the door is closed.
    public func admitNow(_ event: ExternalEvent, _ body: @escaping @Sendable (ExternalEvent) -> Void) -> Bool {
        if contents.withLock({ $0.isClosed }) { return false }
        body(event)
        return true
    }

    /// Stops time; timers and events wait.
    @discardableResult
    public func close() -> UInt64? {
        contents.withLock { $0.isClosed = true }
        return nil
    }

    /// Goes on after `close`.
    @discardableResult
    public func open() -> UInt64? {
        let held = contents.withLock { contents in
            defer { contents.held = [] }
            contents.isClosed = false
            return contents.held
        }
        for event in held { event() }
        return nil
    }

    /// A fixed pseudo-random sequence.
    public func randomBytes(_ count: Int) -> [UInt8] {
        contents.withLock { contents in
            (0..<max(0, min(count, 65536))).map { _ in
                contents.random = contents.random &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
                return UInt8(truncatingIfNeeded: contents.random >> 33)
            }
        }
    }

    /// Moves time forward, firing due timers in order, each at its own time; not while the door is closed.
    public func advance(by nanoseconds: UInt64) {
        if contents.withLock({ $0.isClosed }) { return }
        let end = now &+ nanoseconds
        while true {
            let due = contents.withLock { contents -> ManualTimer? in
                let next = contents.timers.filter { ($0.deadline ?? .max) <= end && $0.deadline != nil }
                    .min { ($0.deadline ?? 0) < ($1.deadline ?? 0) }
                if let next { contents.now = max(contents.now, next.deadline ?? 0) }
                return next
            }
            guard let due else { break }
            due.fireNow()
        }
        contents.withLock { $0.now = end }
    }
}

/// A timer of a `ManualDoor`.
public final class ManualTimer: DoorTimer {
    private let armed = Mutex<UInt64?>(nil)
    private let fire: @Sendable () -> Void

    init(_ fire: @escaping @Sendable () -> Void) { self.fire = fire }

    /// When it fires next, if armed.
    public var deadline: UInt64? { armed.withLock { $0 } }
    /// Arms it.
    public func arm(at deadline: UInt64) { armed.withLock { $0 = deadline } }
    /// Disarms it.
    public func disarm() { armed.withLock { $0 = nil } }

    func fireNow() {
        disarm()
        fire()
    }
}

/// An interrupt line that remembers its level and counts its rising edges.
public final class RecordingLine: InterruptLine {
    private let contents = Mutex((level: false, edges: 0))

    /// A low line.
    public init() {}

    /// Sets the level.
    public func set(_ level: Bool) {
        contents.withLock {
            if level && !$0.level { $0.edges += 1 }
            $0.level = level
        }
    }

    /// The level now.
    public var level: Bool { contents.withLock { $0.level } }
    /// Rising edges so far.
    public var edges: Int { contents.withLock { $0.edges } }
}

/// A message target that remembers what it was sent.
public final class RecordingMessages: MessageInterruptTarget {
    private let contents = Mutex<[(address: UInt64, data: UInt32)]>([])

    /// An empty record.
    public init() {}

    /// Appends a message.
    public func deliver(address: UInt64, data: UInt32) { contents.withLock { $0.append((address, data)) } }

    /// All messages so far.
    public var messages: [(address: UInt64, data: UInt32)] { contents.withLock { $0 } }
}

/// A power control that remembers what was asked.
public final class RecordingPower: PowerControl {
    private let contents = Mutex<[PowerEvent]>([])

    /// An empty record.
    public init() {}

    /// Appends an event.
    public func request(_ event: PowerEvent) { contents.withLock { $0.append(event) } }

    /// All events so far.
    public var events: [PowerEvent] { contents.withLock { $0 } }
}
