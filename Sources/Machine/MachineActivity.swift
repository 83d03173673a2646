// What a machine does, as those who look after it see it.
internal import Synchronization

/// What a machine is doing.
public enum MachineState: String, Sendable, Codable {
    /// It is set up and has not run.
    case prepared
    /// Its processors run.
    case running
    /// Its processors stand still.
    case paused
    /// It has come to its end.
    case ended
}

/// Something that happened to a machine.
public enum MachineEvent: String, Sendable, Codable {
    /// The guest's first instruction is about to run.
    case started
    /// The guest was reset and starts again.
    case reset
    /// The processors stand still.
    case paused
    /// The processors go on.
    case resumed
    /// The power button was pressed.
    case powerButton
    /// The guest's kernel has panicked.
    case panicked
    /// The guest's kernel has panicked, and its crash kernel goes on.
    case crashKernel
    /// The guest's watchdog has expired.
    case watchdog
    /// The run is over.
    case ended

    fileprivate var state: MachineState? {
        switch self {
        case .started: .running
        case .ended: .ended
        case .paused, .resumed, .reset, .powerButton, .panicked, .crashKernel, .watchdog: nil
        }
    }
}

/// Keeps a machine's state, but for its pauses, and tells of events.
final class MachineActivity: Sendable {
    private struct Contents: Sendable {
        var state = MachineState.prepared
        var listener: (@Sendable (MachineEvent) -> Void)?
        var reaction: (@Sendable (MachineEvent) -> Void)?
    }

    private let contents = Mutex(Contents())

    var state: MachineState { contents.withLock { $0.state } }

    func listen(_ listener: @escaping @Sendable (MachineEvent) -> Void) { contents.withLock { $0.listener = listener } }

    /// Sets what the machine itself does about events.
    func react(_ reaction: @escaping @Sendable (MachineEvent) -> Void) { contents.withLock { $0.reaction = reaction } }

    func note(_ event: MachineEvent) {
        let (listener, reaction) = contents.withLock { contents in
            if let state = event.state { contents.state = state }
            return (contents.listener, contents.reaction)
        }
        listener?(event)
        reaction?(event)
    }
}
