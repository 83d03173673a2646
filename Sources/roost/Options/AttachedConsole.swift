// A machine's console on this terminal, until the user leaves it or the machine ends.
internal import Glibc
internal import HostOS
internal import Machine
internal import Machines
internal import Synchronization

/// What follows the standard streams of a verb that attaches.
enum TerminalInput {
    /// Whether somebody can answer.
    static var isTerminal: Bool { Terminal.isTerminal(0) && Terminal.isTerminal(1) }

    /// Shows what was printed without a line's end.
    static func flush() { _ = fflush(nil) }
}

/// A console that was attached.
enum AttachedConsole {
    static let help = """
        Ctrl-A d  leave the console; the machine goes on
        Ctrl-A h  this list
        Ctrl-A Ctrl-A  send Ctrl-A to the guest
        """

    /// How it ended.
    enum Ending {
        case detached
        case machineEnded
    }

    /// Shows the console from so many bytes back, and sends what is typed.
    static func run(_ machine: StoredMachine, history: UInt64) throws -> Ending {
        let connection = try machine.control().stream(MachineRequest.console, ByteCountParameters(bytes: history))
        Terminal.prepareStandardStreams()
        let isTerminal = Terminal.makeRaw(0)
        let detached = DetachFlag()
        try HostThread.detached(name: "roost-input") {
            let input = ByteStream(writing: 0)
            var filter = EscapeFilter(keys: EscapeFilter.attachedKeys)
            while true {
                let bytes = input.read(limit: 4096)
                // What is piped in may end; what the guest prints is still of interest.
                if bytes.isEmpty { return isTerminal ? leave(connection, detached) : connection.finishWriting() }
                let (forGuest, actions) = filter.filter(bytes)
                if !forGuest.isEmpty, connection.write(forGuest) != nil { return }
                for action in actions {
                    switch action {
                    case .detach: return leave(connection, detached)
                    case .help: Terminal.note(help)
                    case .end: break
                    }
                }
            }
        }
        let output = ByteStream(writing: 1)
        while true {
            let bytes = connection.read(limit: 65536)
            if bytes.isEmpty || output.write(bytes) != nil { break }
        }
        Terminal.restore()
        return detached.isSet ? .detached : .machineEnded
    }

    private static func leave(_ connection: LocalConnection, _ detached: DetachFlag) {
        detached.set()
        connection.close()
    }
}

/// Whether the user has left.
private final class DetachFlag: Sendable {
    private let flag = Atomic(false)
    var isSet: Bool { flag.load(ordering: .acquiring) }
    func set() { flag.store(true, ordering: .releasing) }
}
