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
    /// running then.
    public func run(
        _ request: ProgramRequest, _ streams: ProgramStreams, deadline: UInt64 = .max
    ) throws(AgentError) -> ProgramEnd? {
        let signals: SignalWatch
        do {
            signals = try SignalWatch(streams.signals + (request.terminal == nil ? [] : [SIGWINCH]))
        } catch {
            throw AgentError("\(error)")
        }
        try send([.start(request)])
        var input = streams.input
        if input == nil { try send([.inputEnd]) }
        var outgoing: [UInt8] = []
        var sent = 0
        while true {
            while let message = try nextMessage() {
                if let end = try take(message, streams) { return end }
            }
            let now = HostClock.monotonic
            if now >= deadline { return nil }
            let isIdle = sent == outgoing.count
            var waiting = [
                Readiness(stream.rawValue, read: true, write: !isIdle), Readiness(signals.descriptor.rawValue),
                Readiness(isIdle ? input ?? -1 : -1),
            ]
            let left = deadline == .max ? -1 : Int32(min((deadline - now) / 1_000_000 + 1, 60000))
            Readiness.wait(&waiting, milliseconds: left)
            if waiting[1].canRead {
                while let signal = signals.next() { outgoing += Self.message(for: signal, streams).bytes }
            }
            if waiting[2].canRead, let source = input {
                let bytes = (try? FileDescriptor.readAvailable(source, limit: AgentMessage.piece)) ?? []
                outgoing += bytes.isEmpty ? AgentMessage.inputEnd.bytes : AgentMessage.input(bytes).bytes
                if bytes.isEmpty { input = nil }
            }
            if sent < outgoing.count {
                do throws(HostError) {
                    sent += try stream.writeAvailable(outgoing[sent...])
                } catch {
                    throw AgentError("the guest's agent is gone: \(error.reason)")
                }
                if sent == outgoing.count {
                    outgoing.removeAll(keepingCapacity: true)
                    sent = 0
                }
            }
            if waiting[0].canRead { try read() }
        }
    }

    private static func message(for signal: Int32, _ streams: ProgramStreams) -> AgentMessage {
        guard signal == SIGWINCH else { return .signal(signal) }
        let size = Terminal.size(streams.output) ?? Terminal.size(streams.input ?? 0) ?? (80, 24)
        return .resize(TerminalSize(columns: UInt16(clamping: size.columns), rows: UInt16(clamping: size.rows)))
    }

    /// Does what a message of the agent's says; how the program ended, if that is it.
    private func take(_ message: AgentMessage, _ streams: ProgramStreams) throws(AgentError) -> ProgramEnd? {
        switch message {
        case .output(let bytes): _ = ByteStream(writing: streams.output).write(bytes)
        case .errors(let bytes): _ = ByteStream(writing: streams.errors).write(bytes)
        case .exited(let end): return end
        case .failed(let errno, let text): throw AgentError(errno: errno, text)
        default: break
        }
        return nil
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
