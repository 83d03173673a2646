// A program in a guest with the standard streams, the terminal and the signals of this process.
public import AgentProtocol
internal import Glibc
internal import HostOS

/// Where a program's streams come from and go to, and what else reaches it.
public struct ProgramStreams: Sendable {
    /// Descriptor of its standard input; nil: it has none.
    public var input: Int32?
    /// Descriptor for its standard output.
    public var output: Int32
    /// Descriptor for its standard error.
    public var errors: Int32
    /// Signals that are passed on.
    public var signals: [Int32]

    /// Those of this process.
    public static var standard: ProgramStreams {
        ProgramStreams(input: 0, output: 1, errors: 2, signals: [SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2])
    }

    /// Names them.
    public init(input: Int32?, output: Int32, errors: Int32, signals: [Int32] = []) {
        self.input = input
        self.output = output
        self.errors = errors
        self.signals = signals
    }
}

extension AgentConnection {
    /// Runs a program to its end, at most until `deadline` (nanoseconds of `HostClock.monotonic`); nil: it was still
    /// running then, or what it wrote had not been read.
    ///
    /// A program whose reader has gone is told so as by a pipe (SIGPIPE). One that doesn't end in ten seconds when it is
    /// told to, because its guest is paused, say, counts as ended by that signal.
    public func run(
        _ request: ProgramRequest, _ streams: ProgramStreams, deadline: UInt64 = .max
    ) throws(AgentError) -> ProgramEnd? {
        let start = AgentMessage.start(request).bytes
        guard start.count - 4 <= AgentMessage.longest else {
            throw AgentError(errno: E2BIG, "the program's arguments and environment are too long: there can be 256 KiB")
        }
        let signals: SignalWatch
        do {
            signals = try SignalWatch(streams.signals + (request.terminal == nil ? [] : [SIGWINCH]))
        } catch {
            throw AgentError("\(error)")
        }
        var pump = ProgramPump(streams, start)
        pump.send(to: stream)
        while true {
            while !pump.isFull, let message = try nextMessage() { try pump.take(message) }
            let wasFull = pump.isFull
            try pump.passOn()
            if let end = pump.end { return end }
            let now = HostClock.monotonic
            if now >= deadline { return nil }
            if let patience = pump.patience, now >= patience.deadline {
                return pump.ending ?? .killed(patience.signal)
            }
            // There may be messages that nothing more comes after.
            if wasFull && !pump.isFull { continue }
            let next = min(deadline, pump.patience?.deadline ?? .max)
            let left = next == .max ? -1 : Int32(min((next - now) / 1_000_000 + 1, 60000))
            if pump.wait(stream, signals, milliseconds: left) { try read() }
            pump.send(to: stream)
        }
    }
}

/// The streams of a running program, between this process and the agent.
private struct ProgramPump {
    private let streams: ProgramStreams
    private var input: Int32?
    private var outputs: [ProgramOutput]
    /// What the agent is to get, and how much of it has been sent.
    private var outgoing: [UInt8] = []
    private var sent = 0
    private(set) var ending: ProgramEnd?
    private var interruptions = 0
    /// How long the program is waited for that this signal is to end.
    private(set) var patience: (deadline: UInt64, signal: Int32)?

    init(_ streams: ProgramStreams, _ start: [UInt8]) {
        self.streams = streams
        input = streams.input
        outgoing = start
        if input == nil { outgoing += AgentMessage.inputEnd.bytes }
        outputs = [ProgramOutput(streams.output), ProgramOutput(streams.errors)]
    }

    /// How it ended, when all that it wrote is where it belongs.
    var end: ProgramEnd? { outputs.allSatisfy(\.isEmpty) ? ending : nil }

    /// What the program writes isn't read fast enough.
    var isFull: Bool { outputs.contains(where: \.isFull) }

    /// Does what a message of the agent's says.
    mutating func take(_ message: AgentMessage) throws(AgentError) {
        switch message {
        case .output(let bytes): outputs[0].append(bytes)
        case .errors(let bytes): outputs[1].append(bytes)
        case .exited(let end): ending = end
        case .failed(let errno, let text): throw AgentError(errno: errno, text)
        default: break
        }
    }

    /// Passes on what can be written now.
    mutating func passOn() throws(AgentError) {
        for index in outputs.indices {
            do throws(HostError) {
                if try outputs[index].passOn() { outgoing += AgentMessage.outputEnd(isErrors: index == 1).bytes }
            } catch {
                throw AgentError("standard \(index == 0 ? "output" : "error") can't be written: \(error.reason)")
            }
        }
    }

    /// Waits until something can be done; whether the agent has sent something. Signals and input are taken.
    mutating func wait(_ stream: borrowing FileDescriptor, _ signals: borrowing SignalWatch, milliseconds: Int32)
        -> Bool
    {
        let isIdle = sent == outgoing.count
        let wantsMessages = !isFull && ending == nil
        let wantsStream = ending == nil && (wantsMessages || !isIdle)
        var waiting = [
            // One that is polled for nothing says again and again that the other end has gone.
            Readiness(wantsStream ? stream.rawValue : -1, read: wantsMessages, write: !isIdle),
            Readiness(signals.descriptor.rawValue), Readiness(isIdle ? input ?? -1 : -1),
        ]
        waiting += outputs.map { Readiness($0.isEmpty ? -1 : $0.descriptor, read: false, write: true) }
        Readiness.wait(&waiting, milliseconds: milliseconds)
        if waiting[1].canRead {
            while let signal = signals.next() {
                outgoing += message(for: signal).bytes
                losePatience(signal)
                // It is for this process then, which only waits for a reader.
                if ending != nil && signal != SIGWINCH { for index in outputs.indices { outputs[index].close() } }
            }
        }
        if waiting[2].canRead, let source = input {
            let bytes = (try? FileDescriptor.readAvailable(source, limit: AgentMessage.piece)) ?? []
            outgoing += bytes.isEmpty ? AgentMessage.inputEnd.bytes : AgentMessage.input(bytes).bytes
            if bytes.isEmpty { input = nil }
        }
        return waiting[0].canRead
    }

    /// Sends the agent what there is room for.
    mutating func send(to stream: borrowing FileDescriptor) {
        // The agent is through, and may have gone.
        guard sent < outgoing.count, ending == nil else { return }
        do throws(HostError) {
            sent += try stream.writeAvailable(outgoing[sent...])
        } catch {
            // It is gone: what it said before that, the program's end perhaps, is still to be read.
            input = nil
            sent = outgoing.count
        }
        if sent == outgoing.count {
            outgoing.removeAll(keepingCapacity: true)
            sent = 0
        }
    }

    /// Three interruptions, or one order to end, are meant: a guest that hangs doesn't keep this process.
    private mutating func losePatience(_ signal: Int32) {
        if signal == SIGINT { interruptions += 1 }
        guard patience == nil, [SIGTERM, SIGHUP].contains(signal) || signal == SIGINT && interruptions == 3 else {
            return
        }
        patience = (HostClock.monotonic &+ 10_000_000_000, signal)
    }

    private func message(for signal: Int32) -> AgentMessage {
        guard signal == SIGWINCH else { return .signal(signal) }
        let size = Terminal.size(streams.output) ?? Terminal.size(streams.input ?? 0) ?? (80, 24)
        return .resize(TerminalSize(columns: UInt16(clamping: size.columns), rows: UInt16(clamping: size.rows)))
    }
}

extension ProgramEnd {
    /// The exit status that a shell gives it.
    public var status: Int32 {
        switch self {
        case .exited(let status): status
        case .killed(let signal): 128 + signal
        }
    }
}
