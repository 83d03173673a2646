// The machine's console: where the first serial port's bytes go and come from.
internal import HostOS
internal import Synchronization

/// Where the console is.
public enum ConsoleChoice: Sendable, Equatable {
    /// Standard input and output.
    case standard
    /// Output to a file, no input.
    case file(String)
    /// A pseudo-terminal of its own; its path is printed.
    case pseudoTerminal
}

/// What the user asks for with the escape key.
package enum ConsoleAction: Equatable, Sendable {
    /// End the machine at once.
    case end
    /// List the keys.
    case help
}

/// Finds Ctrl-A sequences in what the user types.
package struct EscapeFilter: Sendable {
    private var escaped = false

    /// A filter that has seen nothing.
    package init() {}

    /// Splits input into what the guest gets and what Roost does.
    package mutating func filter(_ bytes: [UInt8]) -> (forGuest: [UInt8], actions: [ConsoleAction]) {
        var forGuest: [UInt8] = []
        var actions: [ConsoleAction] = []
        for byte in bytes {
            guard escaped else {
                if byte == 1 { escaped = true } else { forGuest.append(byte) }
                continue
            }
            escaped = false
            switch byte {
            case UInt8(ascii: "x"), UInt8(ascii: "X"): actions.append(.end)
            case UInt8(ascii: "h"), UInt8(ascii: "H"), UInt8(ascii: "?"): actions.append(.help)
            case 1: forGuest.append(1)
            default: forGuest += [1, byte]
            }
        }
        return (forGuest, actions)
    }
}

/// The guest's side of a console: a serial port.
protocol ConsolePort: AnyObject, Sendable {
    /// Bytes that `receive` takes now.
    var room: Int { get }
    /// Takes input.
    func receive(_ bytes: [UInt8])
}

/// Pumps bytes between a port and the host.
final class Console: Sendable {
    static let help = """
        Ctrl-A x  end Roost and the machine
        Ctrl-A h  this list
        Ctrl-A Ctrl-A  send Ctrl-A to the guest
        """

    private let choice: ConsoleChoice
    private let output: ByteStream
    private let input: ByteStream?
    /// Keeps descriptors open.
    private let kept: (any Sendable)?
    private let failed = Mutex(false)
    private let drained = WakeFlag()
    private let ended: @Sendable () -> Void

    /// Opens the console; `ended` runs when the user ends the machine.
    init(_ choice: ConsoleChoice, ended: @escaping @Sendable () -> Void) throws {
        self.choice = choice
        self.ended = ended
        switch choice {
        case .standard:
            output = ByteStream(writing: 1)
            input = ByteStream(writing: 0)
            kept = nil
        case .file(let path):
            // O_WRONLY | O_CREAT | O_TRUNC
            let file = SharedDescriptor(try FileDescriptor.open(path, 0o1 | 0o100 | 0o1000))
            output = ByteStream(writing: file.descriptor.rawValue)
            input = nil
            kept = file
        case .pseudoTerminal:
            let pair = SharedPseudoTerminal(try PseudoTerminal.make())
            output = ByteStream(writing: pair.terminal.controller.rawValue, dropsWhenFull: true)
            input = output
            kept = pair
            Terminal.note("roost: the console is \(pair.terminal.path)")
        }
    }

    /// Writes what the guest sends. An output that fails is told of once; the guest goes on.
    func write(_ bytes: [UInt8]) {
        guard let error = output.write(bytes) else { return }
        let first = failed.withLock { failed in
            defer { failed = true }
            return !failed
        }
        if first && error.errno != 32 { Terminal.note("roost: console output: \(error.reason)") }
    }

    /// The port has taken input: there is room again.
    func portDrained() { drained.raise() }

    /// Starts reading for a port, in raw mode where it is a terminal.
    func start(_ port: any ConsolePort, admit: @escaping @Sendable ([UInt8]) -> Void) throws {
        guard let input else { return }
        let isTerminal = choice == .standard && Terminal.makeRaw(0)
        let isStandard = choice == .standard
        _ = try HostThread(name: "roost-console") { [self] in
            var filter = EscapeFilter()
            while true {
                // A terminal is always read, so that Ctrl-A x works; a pipe waits until the guest has room.
                while !isTerminal && port.room == 0 { drained.wait() }
                let bytes = input.read(limit: isTerminal ? 4096 : min(4096, port.room))
                if bytes.isEmpty { return }
                var forGuest = bytes
                if isStandard {
                    let (rest, actions) = filter.filter(bytes)
                    forGuest = rest
                    for action in actions {
                        switch action {
                        case .end: ended()
                        case .help: Terminal.note(Self.help)
                        }
                    }
                }
                if !forGuest.isEmpty { admit(Array(forGuest.prefix(port.room))) }
            }
        }
    }
}

/// A pseudo-terminal that stays open as long as its console.
private final class SharedPseudoTerminal: Sendable {
    let terminal: PseudoTerminal

    init(_ terminal: consuming PseudoTerminal) { self.terminal = terminal }
}
