// A stream's last bytes, kept for whoever comes later, and followed by readers that it never waits for.
internal import Synchronization

/// The last bytes of a stream: a bounded buffer that one side appends to and any number of readers follow.
///
/// A reader that is too slow loses the oldest bytes; the writer never waits.
public final class ByteLog: Sendable {
    private struct Reader: Sendable {
        let wake: SharedDescriptor
        var position: UInt64
        /// It has read all and wants to be woken.
        var isWaiting = false
    }

    private struct Contents: Sendable {
        var ring: [UInt8]
        /// Bytes ever appended.
        var end: UInt64 = 0
        var isClosed = false
        var readers: [UInt64: Reader] = [:]
        var nextReader: UInt64 = 0

        var start: UInt64 { end - min(end, UInt64(ring.count)) }

        func bytes(_ range: Range<UInt64>) -> [UInt8] {
            let capacity = UInt64(ring.count)
            return range.map { ring[Int($0 % capacity)] }
        }

        mutating func wake() {
            for (number, reader) in readers where reader.isWaiting {
                reader.wake.descriptor.signal()
                readers[number]?.isWaiting = false
            }
        }
    }

    private let contents: Mutex<Contents>

    /// An empty log that keeps so many bytes.
    public init(capacity: Int) {
        contents = Mutex(Contents(ring: [UInt8](repeating: 0, count: max(1, capacity))))
    }

    /// Adds bytes; nothing happens once it is closed.
    public func append(_ bytes: [UInt8]) {
        contents.withLock { contents in
            if contents.isClosed || bytes.isEmpty { return }
            let capacity = contents.ring.count
            for byte in bytes.suffix(capacity) {
                contents.ring[Int(contents.end % UInt64(capacity))] = byte
                contents.end &+= 1
            }
            contents.wake()
        }
    }

    /// Wakes all readers though there may be nothing to read.
    public func wakeReaders() { contents.withLock { $0.wake() } }

    /// Nothing more comes.
    public func close() {
        contents.withLock { contents in
            contents.isClosed = true
            contents.wake()
        }
    }

    /// The last bytes, at most `limit`.
    public func tail(_ limit: Int) -> [UInt8] {
        contents.withLock { contents in
            contents.bytes(max(contents.start, contents.end - min(contents.end, UInt64(max(0, limit))))..<contents.end)
        }
    }

    /// A reader that begins so many bytes before the end.
    public func follow(from before: Int) throws(HostError) -> ByteLogReader {
        let wake = SharedDescriptor(try FileDescriptor.eventCounter())
        let number = contents.withLock { contents in
            contents.nextReader += 1
            let position = max(contents.start, contents.end - min(contents.end, UInt64(max(0, before))))
            contents.readers[contents.nextReader] = Reader(wake: wake, position: position)
            return contents.nextReader
        }
        return ByteLogReader(log: self, number: number, wake: wake)
    }

    fileprivate func read(_ number: UInt64, _ limit: Int) -> ByteLogReader.Part? {
        contents.withLock { contents in
            guard var reader = contents.readers[number] else { return nil }
            var part = ByteLogReader.Part()
            let start = max(reader.position, contents.start)
            part.lost = start - reader.position
            part.bytes = contents.bytes(start..<min(contents.end, start + UInt64(max(1, limit))))
            reader.position = start + UInt64(part.bytes.count)
            reader.isWaiting = part.bytes.isEmpty
            contents.readers[number] = reader
            return part.bytes.isEmpty && contents.isClosed ? nil : part
        }
    }

    fileprivate func forget(_ number: UInt64) { contents.withLock { $0.readers[number] = nil } }
}

/// One who follows a `ByteLog`; used by one thread.
public final class ByteLogReader: Sendable {
    /// What was read.
    public struct Part: Sendable {
        /// The bytes; none if there is nothing now.
        public var bytes: [UInt8] = []
        /// Bytes before them that this reader was too slow for.
        public var lost: UInt64 = 0
    }

    private let log: ByteLog
    private let number: UInt64
    private let wake: SharedDescriptor

    fileprivate init(log: ByteLog, number: UInt64, wake: SharedDescriptor) {
        self.log = log
        self.number = number
        self.wake = wake
    }

    deinit { log.forget(number) }

    /// Can be read when there is something new after `read` returned no bytes.
    public var descriptor: Int32 { wake.descriptor.rawValue }

    /// The next bytes, at most `limit`; nil at the end.
    public func read(limit: Int) -> Part? {
        wake.descriptor.drain()
        return log.read(number, limit)
    }

    /// Makes `descriptor` unreadable without reading; the next `read` sees what there was.
    public func calm() { wake.descriptor.drain() }

    /// The next bytes, waiting for them; nil at the end.
    public func wait(limit: Int) -> Part? {
        while let part = read(limit: limit) {
            if !part.bytes.isEmpty { return part }
            _ = FileDescriptor.waitForInput(descriptor, -1)
        }
        return nil
    }
}

/// A descriptor that several threads use and its last user closes.
public final class SharedDescriptor: Sendable {
    /// The descriptor.
    public let descriptor: FileDescriptor

    /// Takes the descriptor.
    public init(_ descriptor: consuming FileDescriptor) { self.descriptor = descriptor }
}
