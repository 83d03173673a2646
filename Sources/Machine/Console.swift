// The machine's console: where the first serial port's bytes go and come from.
public import HostOS
internal import Synchronization

/// Where the console is.
public enum ConsoleChoice: Sendable, Equatable {
    /// Standard input and output.
    case standard
    /// Output to a file, no input.
    case file(String)
    /// A pseudo-terminal of its own; its path is printed.
    case pseudoTerminal
    /// Nowhere but the history, for those who attach.
    case detached
}

/// The guest's side of a console: a serial port.
protocol ConsolePort: AnyObject, Sendable {
    /// Bytes that `receive` takes now.
    var room: Int { get }
    /// Takes input.
    func receive(_ bytes: [UInt8])
}

/// Pumps bytes between a port and the host: where the user said, and whoever attaches.
public final class Console: Sendable {
    static let help = """
        Ctrl-A x  end Roost and the machine
        Ctrl-A h  this list
        Ctrl-A Ctrl-A  send Ctrl-A to the guest
        """
    /// Bytes that are kept for who attaches later.
    static let historyCapacity = 256 << 10

    /// Bytes typed at the terminal of a paused machine that are kept.
    static let mostHeld = 4096

    private struct Entry: Sendable {
        let port: any ConsolePort
        /// Takes bytes to the port; false if the machine is paused.
        let admit: @Sendable ([UInt8]) -> Bool
        /// What was typed while it was.
        var held: [UInt8] = []
    }

    /// What the guest has sent last.
    public let history = ByteLog(capacity: historyCapacity)
    private let choice: ConsoleChoice
    private let output: ByteStream?
    private let input: ByteStream?
    /// Keeps descriptors open.
    private let kept: (any Sendable)?
    private let failed = Mutex(false)
    private let drained = WakeFlag()
    private let entry = Mutex<Entry?>(nil)
    private let logging = Mutex<HostThread?>(nil)

    /// Opens the console.
    init(_ choice: ConsoleChoice, log: ConsoleLog?) throws {
        self.choice = choice
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
        case .detached:
            output = nil
            input = nil
            kept = nil
        }
        if let log {
            let thread = try log.follow(history)
            logging.withLock { $0 = thread }
        }
    }

    /// Writes what the guest sends. An output that fails is told of once; the guest goes on.
    func write(_ bytes: [UInt8]) {
        history.append(bytes)
        guard let error = output?.write(bytes) else { return }
        let first = failed.withLock { failed in
            defer { failed = true }
            return !failed
        }
        if first && error.errno != 32 { Terminal.note("roost: console output: \(error.reason)") }
    }

    /// Gives the guest input; returns how many bytes it had room for: none while the machine is paused. Readers of
    /// `history` are woken when it has more.
    public func type(_ bytes: [UInt8]) -> Int {
        entry.withLock { entry in
            guard let entry else { return 0 }
            let count = min(bytes.count, max(0, entry.port.room))
            return count > 0 && entry.admit(Array(bytes.prefix(count))) ? count : 0
        }
    }

    /// The same for keys, which don't wait: those that the guest has no room for are lost, those of a pause come after it.
    private func typeKeys(_ bytes: [UInt8]) {
        entry.withLock { entry in
            guard let present = entry else { return }
            let keys = present.held + bytes
            let count = min(keys.count, max(0, present.port.room))
            let isTaken = present.held.isEmpty && count == 0 || present.admit(Array(keys.prefix(count)))
            entry?.held = isTaken ? [] : Array(keys.prefix(Self.mostHeld))
        }
    }

    /// The machine goes on after a pause.
    func goOn() {
        typeKeys([])
        portDrained()
    }

    /// The port has taken input: there is room again.
    func portDrained() {
        drained.raise()
        history.wakeReaders()
    }

    /// Nothing more comes: who follows gets what is left, and the log is written to its end.
    func finish() {
        history.close()
        logging.withLock { $0.take() }?.join()
        entry.withLock { $0 = nil }
        drained.raise()
    }

    /// Gives the guest all of this, waiting for it.
    private func typeAll(_ bytes: [UInt8]) {
        var left = bytes[...]
        while true {
            left = left.dropFirst(type(Array(left)))
            if left.isEmpty || entry.withLock({ $0 == nil }) { return }
            drained.wait()
        }
    }

    /// Starts reading for a port, in raw mode where it is a terminal; `ended` runs when the user ends the machine.
    func start(
        _ port: any ConsolePort, admit: @escaping @Sendable ([UInt8]) -> Bool, ended: @escaping @Sendable () -> Void
    ) throws {
        entry.withLock { $0 = Entry(port: port, admit: admit) }
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
                        case .detach: break
                        }
                    }
                }
                if isTerminal {
                    typeKeys(forGuest)
                } else {
                    typeAll(forGuest)
                }
            }
        }
    }
}

/// A pseudo-terminal that stays open as long as its console.
private final class SharedPseudoTerminal: Sendable {
    let terminal: PseudoTerminal

    init(_ terminal: consuming PseudoTerminal) { self.terminal = terminal }
}
