// Numbers, texts and lists as bytes, and back with nothing trusted.

/// Puts a message's body together.
struct MessageWriter {
    var bytes: [UInt8] = []

    mutating func put(_ number: UInt32) {
        for shift: UInt32 in [0, 8, 16, 24] { bytes.append(UInt8(truncatingIfNeeded: number >> shift)) }
    }

    mutating func put(_ text: String) {
        let text = Array(text.utf8)
        put(UInt32(text.count))
        bytes += text
    }

    mutating func put(_ texts: [String]) {
        put(UInt32(texts.count))
        for text in texts { put(text) }
    }

    mutating func put(_ size: TerminalSize) { put(UInt32(size.columns) | UInt32(size.rows) << 16) }

    mutating func put(_ request: ProgramRequest) {
        put(request.command)
        put(request.environment)
        put(request.folder)
        put(request.user)
        put(request.terminal == nil ? 0 : 1)
        put(request.terminal ?? TerminalSize(columns: 0, rows: 0))
    }
}

/// Takes a message's body apart; nil is what isn't there.
struct MessageReader {
    private var bytes: ArraySlice<UInt8>

    init(_ bytes: ArraySlice<UInt8>) { self.bytes = bytes }

    var isEmpty: Bool { bytes.isEmpty }

    /// All that is left.
    mutating func rest() -> [UInt8] {
        defer { bytes = [] }
        return Array(bytes)
    }

    mutating func number() -> UInt32? {
        guard bytes.count >= 4 else { return nil }
        let value = bytes.prefix(4).reversed().reduce(0) { $0 << 8 | UInt32($1) }
        bytes = bytes.dropFirst(4)
        return value
    }

    mutating func wideNumber() -> UInt64? {
        guard let low = number(), let high = number() else { return nil }
        return UInt64(high) << 32 | UInt64(low)
    }

    mutating func text() -> String? {
        guard let length = number(), length <= bytes.count else { return nil }
        defer { bytes = bytes.dropFirst(Int(length)) }
        return String(validating: bytes.prefix(Int(length)), as: UTF8.self)
    }

    mutating func texts() -> [String]? {
        guard let count = number(), count <= bytes.count / 4 else { return nil }
        var texts: [String] = []
        for _ in 0..<count {
            guard let text = text() else { return nil }
            texts.append(text)
        }
        return texts
    }

    mutating func size() -> TerminalSize? {
        number().map {
            TerminalSize(columns: UInt16(truncatingIfNeeded: $0), rows: UInt16(truncatingIfNeeded: $0 >> 16))
        }
    }

    mutating func request() -> ProgramRequest? {
        guard let command = texts(), let environment = texts(), let folder = text(), let user = text(),
            let hasTerminal = number(), let size = size(), !command.isEmpty
        else { return nil }
        var request = ProgramRequest(command: command)
        request.environment = environment
        request.folder = folder
        request.user = user
        request.terminal = hasTerminal != 0 ? size : nil
        return request
    }

    /// A status is a byte, a signal one that Linux has.
    mutating func end() -> ProgramEnd? {
        guard let kind = number(), let value = number() else { return nil }
        switch (kind, value) {
        case (0, 0...255): return .exited(Int32(value))
        case (1, 1...64): return .killed(Int32(value))
        default: return nil
        }
    }

    mutating func failure() -> (Int32, String)? {
        guard let number = number(), let text = text() else { return nil }
        return (Int32(bitPattern: number), text)
    }

    mutating func identity() -> (String, String)? {
        guard let machine = text(), let host = text() else { return nil }
        return (machine, host)
    }
}

/// A stream that is nothing of this protocol.
public struct AgentProtocolError: Error, Equatable, Sendable, CustomStringConvertible {
    /// In one line.
    public var description: String { "the other side does not speak the agent's protocol" }
}

/// Finds messages in a stream of bytes, in whatever pieces they come.
public struct MessageParser: Sendable {
    private var bytes: [UInt8] = []
    private var start = 0

    /// A parser at the beginning of a stream.
    public init() {}

    /// Bytes that are no whole message yet.
    public var pending: Int { bytes.count - start }

    /// Takes bytes of the stream.
    public mutating func append(_ new: some Sequence<UInt8>) {
        if start > 0 && start == bytes.count {
            bytes.removeAll(keepingCapacity: true)
            start = 0
        }
        bytes.append(contentsOf: new)
    }

    /// The next message, nil if it isn't whole yet.
    public mutating func next() throws(AgentProtocolError) -> AgentMessage? {
        var header = MessageReader(bytes[start...])
        guard let length = header.number() else { return nil }
        guard length >= 1, length <= AgentMessage.longest else { throw AgentProtocolError() }
        let end = start + 4 + Int(length)
        guard end <= bytes.count else { return nil }
        guard let message = AgentMessage(kindAndBody: bytes[start + 4..<end]) else { throw AgentProtocolError() }
        start = end
        if start > AgentMessage.longest {
            bytes.removeSubrange(..<start)
            start = 0
        }
        return message
    }
}
