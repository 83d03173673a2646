// The host's end of a stream to the agent in a guest.
public import AgentProtocol
public import HostOS

/// What the agent could not do, or that it isn't there.
public struct AgentError: Error, CustomStringConvertible, Equatable, Sendable {
    /// The guest's errno; 0 where the stream itself failed.
    public var errno: Int32
    /// In one line.
    public var description: String

    /// Makes an error. A guest has its say in some: what would steer a terminal is left out.
    public init(errno: Int32 = 0, _ description: String) {
        self.errno = errno
        self.description = String(
            String.UnicodeScalarView(description.unicodeScalars.filter(Self.isPlain).prefix(1000)))
    }

    private static func isPlain(_ scalar: Unicode.Scalar) -> Bool {
        !(scalar.value < 0x20 || 0x7F...0x9F ~= scalar.value)
    }
}

/// A stream to the agent, for one thread.
public final class AgentConnection {
    let stream: FileDescriptor
    var parser = MessageParser()

    /// Takes a stream to `agentPort` over, of which `received` has been read; waits for the agent's greeting.
    public init(
        _ stream: consuming FileDescriptor, received: [UInt8] = [], milliseconds: Int32 = 10000
    ) throws(AgentError) {
        stream.setNonBlocking()
        self.stream = stream
        parser.append(received)
        guard case .hello(let version) = try receive(milliseconds: milliseconds) else {
            throw AgentError("the guest's agent speaks another language")
        }
        guard version == AgentMessage.version else {
            throw AgentError("the guest's agent speaks version \(version), this Roost \(AgentMessage.version)")
        }
    }

    /// Has the agent do one thing; what it answers.
    @discardableResult
    public func perform(_ message: AgentMessage, milliseconds: Int32 = 10000) throws(AgentError) -> [String] {
        try send([message])
        return try answer(milliseconds)
    }

    /// Has the agent do things in turn, all told at once.
    public func perform(_ messages: [AgentMessage], milliseconds: Int32 = 10000) throws(AgentError) {
        try send(messages)
        for _ in messages { _ = try answer(milliseconds) }
    }

    private func answer(_ milliseconds: Int32) throws(AgentError) -> [String] {
        switch try receive(milliseconds: milliseconds) {
        case .done(let texts): return texts
        case .failed(let errno, let text): throw AgentError(errno: errno, "in the guest: \(text)")
        default: throw AgentError("the guest's agent gave an answer that fits nothing")
        }
    }

    /// Sends messages, waiting for room.
    func send(_ messages: [AgentMessage]) throws(AgentError) {
        var rest = messages.flatMap(\.bytes)[...]
        while !rest.isEmpty {
            do throws(HostError) {
                rest = rest.dropFirst(try stream.writeAvailable(rest))
            } catch {
                throw AgentError("the guest's agent is gone: \(error.reason)")
            }
            guard !rest.isEmpty else { return }
            var waiting = [Readiness(stream.rawValue, read: false, write: true)]
            Readiness.wait(&waiting)
        }
    }

    /// The next message. One that comes in small pieces has no more time than one that comes at once.
    private func receive(milliseconds: Int32) throws(AgentError) -> AgentMessage {
        let deadline = HostClock.monotonic &+ UInt64(max(0, milliseconds)) &* 1_000_000
        while true {
            if let message = try nextMessage() { return message }
            let now = HostClock.monotonic
            var waiting = [Readiness(stream.rawValue)]
            Readiness.wait(&waiting, milliseconds: now < deadline ? Int32((deadline - now) / 1_000_000) + 1 : 0)
            guard waiting[0].canRead, now < deadline else { throw AgentError("the guest's agent does not answer") }
            try read()
        }
    }

    /// The next message that has come whole.
    func nextMessage() throws(AgentError) -> AgentMessage? {
        do throws(AgentProtocolError) { return try parser.next() } catch { throw AgentError(error.description) }
    }

    /// Takes what has come.
    func read() throws(AgentError) {
        do throws(HostError) {
            guard let bytes = try FileDescriptor.readAvailable(stream.rawValue, limit: AgentMessage.piece) else {
                return
            }
            if bytes.isEmpty { throw HostError("read", errno: 104) }
            parser.append(bytes)
        } catch {
            throw AgentError("the guest's agent is gone: \(error.reason)")
        }
    }
}
