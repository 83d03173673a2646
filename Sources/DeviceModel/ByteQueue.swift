// Bytes on their way: put in at one end, taken out at the other.

/// A queue of bytes.
public struct ByteQueue: Sendable {
    private var bytes: [UInt8] = []
    private var head = 0

    /// An empty queue.
    public init() {}

    /// Bytes in it.
    public var count: Int { bytes.count - head }
    /// Whether there are none.
    public var isEmpty: Bool { head == bytes.count }

    /// Puts bytes in.
    public mutating func append(_ more: some Collection<UInt8>) {
        if head > bytes.count / 2 {
            bytes.removeFirst(head)
            head = 0
        }
        bytes.append(contentsOf: more)
    }

    /// The first bytes, at most `limit`; they stay in the queue.
    public func first(_ limit: Int) -> ArraySlice<UInt8> { bytes[head...].prefix(max(limit, 0)) }

    /// Drops the first bytes, at most as many as there are.
    public mutating func drop(_ number: Int) {
        head += min(max(number, 0), count)
        if isEmpty { self = ByteQueue() }
    }
}
