// The one door for everything asynchronous (law 2): time, timers, host input, finished requests, randomness.

/// Everything outside the guest that can reach it, through one interface for each machine.
///
/// *Free* mode: an event takes effect at once, on the thread that has it. *Ordered* mode (recording, replay): events
/// queue and take effect at an exact instruction count. A device is written once, against this protocol, and never reads
/// a host clock, a random source or a socket behind its back.
public protocol Door: AnyObject, Sendable {
    /// Guest time in nanoseconds since the machine started; never goes back.
    var now: UInt64 { get }

    /// Wall-clock time in nanoseconds since 1970 (UTC), for the RTC and the paravirtual clock.
    var wallClock: UInt64 { get }

    /// Whether events take effect at an exact count of instructions, with all that they bring; else what a transfer
    /// brings may be in guest memory before the event that says so.
    var isOrdered: Bool { get }

    /// Makes a one-shot timer; `fire` runs (on any thread) once for each `arm` that comes due.
    func makeTimer(_ fire: @escaping @Sendable () -> Void) -> any DoorTimer

    /// Lets an event from outside in: `body` changes device state and raises interrupts. In free mode it runs at once.
    func admit(_ event: ExternalEvent, _ body: @escaping @Sendable (ExternalEvent) -> Void)

    /// The same, unless that has to wait since the door is closed: then nothing happens, and it is false.
    func admitNow(_ event: ExternalEvent, _ body: @escaping @Sendable (ExternalEvent) -> Void) -> Bool

    /// `count` bytes from the host's random source (at most 64 KiB are returned).
    func randomBytes(_ count: Int) -> [UInt8]

    /// Stops time and holds back timers and events. Returns when nothing that was let in is still at work; no vCPU may
    /// run. The host's time (`CLOCK_MONOTONIC`, nanoseconds) at which guest time stopped; nil where that doesn't go by it.
    @discardableResult
    func close() -> UInt64?

    /// Goes on after `close`; the host's time at which guest time did.
    @discardableResult
    func open() -> UInt64?
}

extension Door {
    /// In free mode.
    public var isOrdered: Bool { false }

    /// It never has to wait.
    public func admitNow(_ event: ExternalEvent, _ body: @escaping @Sendable (ExternalEvent) -> Void) -> Bool {
        admit(event, body)
        return true
    }

    /// Nothing comes in while no vCPU runs.
    public func close() -> UInt64? { nil }

    /// Nothing was held back.
    public func open() -> UInt64? { nil }
}

/// A one-shot timer behind the door.
public protocol DoorTimer: AnyObject, Sendable {
    /// Fires at guest time `deadline` in nanoseconds; replaces what was armed. In the past: as soon as possible.
    func arm(at deadline: UInt64)
    /// Forgets what was armed. A firing already under way may still run: check state in `fire`.
    func disarm()
}

/// An event from outside the guest, as plain data so that it can be recorded.
public enum ExternalEvent: Sendable, Codable, Equatable {
    /// Bytes typed at, or sent to, a console or serial port.
    case input([UInt8])
    /// One Ethernet frame received from the network.
    case packet([UInt8])
    /// A disk request finished: its identifier, 0 or an errno, and the bytes it read.
    case blockCompletion(id: UInt64, error: Int32, data: [UInt8])
    /// Several things happened at once.
    case several([ExternalEvent])
    /// The other side of a console or link went away or came back.
    case connected(Bool)
    /// What the host's side of a stream (a socket) does; its identifier.
    case stream(UInt64, StreamEvent)
    /// The guest is to have so many processors.
    case processors(Int)
    /// The guest is to have so many bytes of memory.
    case memory(UInt64)
    /// The user or the manager asks for something (power button).
    case powerButton
}

/// What the host's side of a stream between host and guest does.
public enum StreamEvent: Sendable, Codable, Equatable {
    /// Opens it, to a port of the guest's.
    case open(guestPort: UInt32)
    /// Accepts what the guest has opened.
    case accept
    /// Sends bytes.
    case data([UInt8])
    /// Has handed on so many of the guest's bytes.
    case taken(Int)
    /// Sends no more.
    case end
    /// Neither sends nor takes any more.
    case close
}
