// Streams between processes of one host (`unix(7)`).
internal import Glibc

/// A path as the address of a socket.
enum LocalAddress {
    /// Calls `body` with a path's address; not zero is an error.
    static func with(
        _ path: String, _ operation: String, _ body: (UnsafePointer<sockaddr>, socklen_t) -> Int32
    ) throws(HostError) {
        var name = sockaddr_un()
        name.sun_family = sa_family_t(AF_UNIX)
        let bytes = Array(path.utf8)
        guard bytes.count < MemoryLayout.size(ofValue: name.sun_path) else {
            throw HostError("\(operation) \(path)", errno: ENAMETOOLONG)
        }
        withUnsafeMutableBytes(of: &name.sun_path) { $0.copyBytes(from: bytes) }
        let result = withUnsafePointer(to: &name) { pointer in
            pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                body($0, socklen_t(MemoryLayout<sockaddr_un>.size))
            }
        }
        if result != 0 { throw HostError.last("\(operation) \(path)") }
    }
}

/// How a transfer that doesn't wait went.
public enum StreamTransfer: Sendable, Equatable {
    /// So many bytes were moved.
    case moved(Int)
    /// There is nothing to read, or no room to write.
    case wait
    /// The other side sends no more.
    case end
    /// The other side is gone.
    case gone
}

/// A stream socket that never waits.
public final class LocalStream: Sendable {
    /// The descriptor, for waiting.
    public let descriptor: FileDescriptor

    /// Takes a descriptor of a stream socket over.
    fileprivate init(owning descriptor: consuming FileDescriptor) {
        self.descriptor = descriptor
        let flags = fcntl(self.descriptor.rawValue, F_GETFL)
        _ = fcntl(self.descriptor.rawValue, F_SETFL, flags | O_NONBLOCK)
    }

    /// Connects to the socket at a path.
    public convenience init(to path: String) throws(HostError) {
        self.init(owning: try Self.make())
        try LocalAddress.with(path, "connect") { connect(descriptor.rawValue, $0, $1) }
    }

    /// Two ends of one stream; the second one, a descriptor that waits, is the caller's to close.
    public static func pair() throws(HostError) -> (own: LocalStream, other: Int32) {
        var ends: [Int32] = [-1, -1]
        _ = try retrying("socketpair") {
            socketpair(AF_UNIX, Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue), 0, &ends)
        }
        return (LocalStream(owning: FileDescriptor(owning: ends[0])), ends[1])
    }

    fileprivate static func make() throws(HostError) -> FileDescriptor {
        FileDescriptor(
            owning: try retrying("socket") { socket(AF_UNIX, Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue), 0) })
    }

    /// Reads at most `limit` bytes into the beginning of an array, which has room for them. `peeking` leaves them there.
    public func read(into buffer: inout [UInt8], limit: Int, peeking: Bool = false) -> StreamTransfer {
        precondition(limit > 0 && limit <= buffer.count)
        let flags = Int32(MSG_DONTWAIT) | (peeking ? Int32(MSG_PEEK) : 0)
        while true {
            let count = buffer.withUnsafeMutableBytes { recv(descriptor.rawValue, $0.baseAddress, limit, flags) }
            if count > 0 { return .moved(count) }
            if count == 0 { return .end }
            if errno != EINTR { return errno == EAGAIN ? .wait : .gone }
        }
    }

    /// Writes as many bytes as there is room for.
    public func write(_ bytes: ArraySlice<UInt8>) -> StreamTransfer {
        let flags = Int32(MSG_DONTWAIT) | Int32(MSG_NOSIGNAL)
        while true {
            let count = bytes.withUnsafeBytes { send(descriptor.rawValue, $0.baseAddress, $0.count, flags) }
            if count >= 0 { return .moved(count) }
            if errno != EINTR { return errno == EAGAIN ? .wait : .gone }
        }
    }

    /// Ends directions: the other side reads the end of the stream, or can't write any more.
    public func shutDown(writing: Bool, reading: Bool) {
        if writing { shutdown(descriptor.rawValue, Int32(SHUT_WR)) }
        if reading { shutdown(descriptor.rawValue, Int32(SHUT_RD)) }
    }
}

/// A socket at a path that takes connections.
public final class LocalListener: Sendable {
    /// The descriptor, for waiting.
    public let descriptor: FileDescriptor
    private let path: String

    /// Listens at a path, for this user only; a socket there that nobody listens at goes.
    public init(at path: String) throws(HostError) {
        self.path = path
        if (try? LocalStream(to: path)) != nil { throw HostError("listen at \(path)", errno: EADDRINUSE) }
        var status = stat()
        if lstat(path, &status) == 0, status.st_mode & S_IFMT == S_IFSOCK { unlink(path) }
        descriptor = try LocalStream.make()
        let mask = umask(0o077)
        defer { umask(mask) }
        try LocalAddress.with(path, "listen at") { bind(descriptor.rawValue, $0, $1) }
        guard listen(descriptor.rawValue, 64) == 0 else { throw HostError.last("listen at \(path)") }
        _ = fcntl(descriptor.rawValue, F_SETFL, O_NONBLOCK)
    }

    /// The next connection, if there is one.
    public func accept() -> LocalStream? {
        let other = Glibc.accept(descriptor.rawValue, nil, nil)
        guard other >= 0 else { return nil }
        _ = fcntl(other, F_SETFD, FD_CLOEXEC)
        return LocalStream(owning: FileDescriptor(owning: other))
    }

    /// Takes the socket out of its folder.
    public func remove() { unlink(path) }
}

extension FileDescriptor {
    /// Waits until it can be read, at most so long; whether it can.
    public func waitForInput(milliseconds: Int32) -> Bool {
        var descriptor = pollfd(fd: rawValue, events: Int16(POLLIN), revents: 0)
        while true {
            let count = poll(&descriptor, 1, milliseconds)
            if count >= 0 { return count > 0 }
            if errno != EINTR { return false }
        }
    }

    /// Reads one byte; nil at the end.
    public func readByte() -> UInt8? {
        var byte: UInt8 = 0
        while true {
            let count = Glibc.read(rawValue, &byte, 1)
            if count == 1 { return byte }
            if count == 0 || errno != EINTR { return nil }
        }
    }
}
