// What Roost and the agent in a guest say to each other, over a stream of the guest's sockets (port 1024).
//
// A message is its length (32 bits, little-endian: kind and body), its kind (8 bits) and its body. The host opens a stream
// for each thing that it wants; the agent greets with `hello`. Numbers are little-endian; a text is its length in bytes
// (32 bits) and UTF-8; a list of texts is their number (32 bits) and the texts.
//
//   to the agent      start (run a program), input, inputEnd, outputEnd, signal, resize; or one of
//                     setClock, addEntropy, setIdentity, setLinkAddress, addresses, powerOff, reboot, synchronizeMounts
//   from the agent    hello; for a program: started, output, errors, exited or failed; else done or failed

/// The port that the agent listens on.
public let agentPort: UInt32 = 1024

/// How a program is to be run.
public struct ProgramRequest: Sendable, Equatable {
    /// The program, looked for in PATH, and its arguments.
    public var command: [String]
    /// `NAME=value`, beyond the agent's own.
    public var environment: [String] = []
    /// Where it begins; empty: the home of the user.
    public var folder = ""
    /// Who it runs as; empty: root.
    public var user = ""
    /// The terminal that it has; nil: three pipes.
    public var terminal: TerminalSize?

    /// Asks for a program.
    public init(command: [String]) { self.command = command }
}

/// Columns and rows.
public struct TerminalSize: Sendable, Equatable {
    /// Width in characters.
    public var columns: UInt16
    /// Height in characters.
    public var rows: UInt16

    /// Makes a size.
    public init(columns: UInt16, rows: UInt16) {
        self.columns = columns
        self.rows = rows
    }
}

/// How a program ended.
public enum ProgramEnd: Sendable, Equatable {
    /// With an exit status.
    case exited(Int32)
    /// By a signal.
    case killed(Int32)
}

/// One message.
public enum AgentMessage: Sendable, Equatable {
    /// The first that the agent sends: its version of all this.
    case hello(version: UInt32)
    /// Runs a program.
    case start(ProgramRequest)
    /// Bytes for its standard input.
    case input([UInt8])
    /// Its standard input is at its end.
    case inputEnd
    /// Nobody reads its standard output, or error, any more.
    case outputEnd(isErrors: Bool)
    /// A signal for it and its children.
    case signal(Int32)
    /// Its terminal has another size.
    case resize(TerminalSize)
    /// The program runs.
    case started(process: Int32)
    /// What it wrote to standard output, or to its terminal.
    case output([UInt8])
    /// What it wrote to standard error.
    case errors([UInt8])
    /// It has ended, and all that it wrote has been sent.
    case exited(ProgramEnd)
    /// What was asked for can't be done: an errno and words.
    case failed(Int32, String)
    /// Nanoseconds since 1970.
    case setClock(UInt64)
    /// Bytes for the kernel's random number generator, which counts them as random.
    case addEntropy([UInt8])
    /// A machine identifier (32 hexadecimal digits) and a host name; empty: as it is.
    case setIdentity(machine: String, host: String)
    /// A network interface's hardware address.
    case setLinkAddress(interface: String, [UInt8])
    /// Asks for the addresses of the network interfaces.
    case addresses
    /// Shuts the guest down.
    case powerOff
    /// Starts it again.
    case reboot
    /// It is done; what was asked for.
    case done([String])
    /// Mounts the host's folders that are listed now, and no others; forced, what is in use goes too.
    case synchronizeMounts(isForced: Bool)

    /// The version that this side speaks.
    public static let version: UInt32 = 1
    /// Bytes of kind and body at most.
    public static let longest = 256 << 10
    /// Bytes of a stream that one message brings at most.
    public static let piece = 64 << 10
}

extension AgentMessage {
    private enum Kind: UInt8 {
        case hello = 1, start, input, inputEnd, signal, resize, started, output, errors, exited, failed
        case setClock, addEntropy, setIdentity, addresses, powerOff, reboot, done, setLinkAddress, synchronizeMounts
        case outputEnd
    }

    /// The message as it goes over the stream.
    public var bytes: [UInt8] {
        var body = MessageWriter()
        let kind: Kind
        switch self {
        case .hello(let version): kind = .hello; body.put(version)
        case .start(let request): kind = .start; body.put(request)
        case .input(let bytes): kind = .input; body.bytes += bytes
        case .inputEnd: kind = .inputEnd
        case .outputEnd(let isErrors): kind = .outputEnd; body.put(isErrors ? 1 : 0)
        case .signal(let number): kind = .signal; body.put(UInt32(bitPattern: number))
        case .resize(let size): kind = .resize; body.put(size)
        case .started(let process): kind = .started; body.put(UInt32(bitPattern: process))
        case .output(let bytes): kind = .output; body.bytes += bytes
        case .errors(let bytes): kind = .errors; body.bytes += bytes
        case .exited(.exited(let status)): kind = .exited; body.put(0); body.put(UInt32(bitPattern: status))
        case .exited(.killed(let signal)): kind = .exited; body.put(1); body.put(UInt32(bitPattern: signal))
        case .failed(let errno, let text): kind = .failed; body.put(UInt32(bitPattern: errno)); body.put(text)
        case .setClock(let time):
            kind = .setClock; body.put(UInt32(truncatingIfNeeded: time)); body.put(UInt32(time >> 32))
        case .addEntropy(let bytes): kind = .addEntropy; body.bytes += bytes
        case .setIdentity(let machine, let host): kind = .setIdentity; body.put(machine); body.put(host)
        case .setLinkAddress(let interface, let address):
            kind = .setLinkAddress; body.put(interface); body.bytes += address
        case .addresses: kind = .addresses
        case .powerOff: kind = .powerOff
        case .reboot: kind = .reboot
        case .done(let texts): kind = .done; body.put(texts)
        case .synchronizeMounts(let isForced): kind = .synchronizeMounts; body.put(isForced ? 1 : 0)
        }
        var message = MessageWriter()
        message.put(UInt32(body.bytes.count + 1))
        return message.bytes + [kind.rawValue] + body.bytes
    }

    /// Reads kind and body; nil if they are malformed.
    init?(kindAndBody: ArraySlice<UInt8>) {
        guard let first = kindAndBody.first, let kind = Kind(rawValue: first) else { return nil }
        var body = MessageReader(kindAndBody.dropFirst())
        let message: AgentMessage?
        switch kind {
        case .hello: message = body.number().map { .hello(version: $0) }
        case .start: message = body.request().map { .start($0) }
        case .input: message = .input(body.rest())
        case .inputEnd: message = .inputEnd
        case .outputEnd: message = body.number().map { .outputEnd(isErrors: $0 != 0) }
        case .signal: message = body.number().map { .signal(Int32(bitPattern: $0)) }
        case .resize: message = body.size().map { .resize($0) }
        case .started: message = body.number().map { .started(process: Int32(bitPattern: $0)) }
        case .output: message = .output(body.rest())
        case .errors: message = .errors(body.rest())
        case .exited: message = body.end().map { .exited($0) }
        case .failed: message = body.failure().map { .failed($0.0, $0.1) }
        case .setClock: message = body.wideNumber().map { .setClock($0) }
        case .addEntropy: message = .addEntropy(body.rest())
        case .setIdentity: message = body.identity().map { .setIdentity(machine: $0.0, host: $0.1) }
        case .setLinkAddress: message = body.text().map { .setLinkAddress(interface: $0, body.rest()) }
        case .addresses: message = .addresses
        case .powerOff: message = .powerOff
        case .reboot: message = .reboot
        case .done: message = body.texts().map { .done($0) }
        case .synchronizeMounts: message = body.number().map { .synchronizeMounts(isForced: $0 != 0) }
        }
        guard let message, body.isEmpty else { return nil }
        self = message
    }
}
