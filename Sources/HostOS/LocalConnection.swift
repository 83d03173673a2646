// Streams between processes of one user on one host that wait, read lines, and know whose process is at the other end
// (`unix(7)`). Those of LocalStreams.swift never wait.
internal import CHost
internal import Glibc
internal import Synchronization

/// A socket that other processes of this user connect to by a path.
public final class LocalServer: Sendable {
    private let descriptor: FileDescriptor
    /// Where it is.
    public let path: String

    /// Listens at a path; a socket that a process that was killed left there goes.
    public init(at path: String) throws(HostError) {
        self.path = path
        descriptor = FileDescriptor(
            owning: try retrying("socket") { socket(AF_UNIX, Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue), 0) })
        var status = stat()
        if lstat(path, &status) == 0, status.st_mode & S_IFMT == S_IFSOCK { unlink(path) }
        // The mode that the socket gets when it is bound; nobody else may connect, not for a moment.
        _ = fchmod(descriptor.rawValue, 0o600)
        try LocalAddress.with(path, "bind") { bind(descriptor.rawValue, $0, $1) }
        _ = try retrying("mode of \(path)") { chmod(path, 0o600) }
        _ = try retrying("listen at \(path)") { listen(descriptor.rawValue, 16) }
    }

    /// Waits for somebody of this user; nil once `close` was called.
    public func accept() -> LocalConnection? {
        while true {
            let other = roost_accept(descriptor.rawValue)
            if other < 0 {
                switch errno {
                case EINTR, ECONNABORTED: continue
                case EMFILE, ENFILE, ENOBUFS, ENOMEM:
                    usleep(50_000)
                    continue
                default: return nil
                }
            }
            let connection = LocalConnection(owning: other)
            if let user = connection.peerUser, user == geteuid() || user == 0 { return connection }
        }
    }

    /// Ends the waiting, for good, and takes the path away.
    public func close() {
        unlink(path)
        shutdown(descriptor.rawValue, Int32(SHUT_RDWR))
    }
}

/// One end of a connected stream socket; any thread may use it.
public final class LocalConnection: Sendable {
    /// The descriptor.
    public let descriptor: FileDescriptor
    /// Read with a line, and after it.
    private let pending = Mutex<[UInt8]>([])

    init(owning number: Int32) { descriptor = FileDescriptor(owning: number) }

    /// Connects to who listens at a path.
    public init(to path: String) throws(HostError) {
        descriptor = FileDescriptor(
            owning: try retrying("socket") { socket(AF_UNIX, Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue), 0) })
        try LocalAddress.with(path, "connect") { connect(descriptor.rawValue, $0, $1) }
    }

    /// Connects to who listens at a name in a folder, whose path may be longer than one of a socket.
    public convenience init(to name: String, in folder: String) throws(HostError) {
        let place = try FileDescriptor.open(folder, O_RDONLY | O_DIRECTORY)
        do throws(HostError) { try self.init(to: "/proc/self/fd/\(place.rawValue)/\(name)") } catch {
            throw HostError("connect \(folder)/\(name)", errno: error.errno)
        }
    }

    /// Whose process is at the other end (SO_PEERCRED).
    public var peerUser: UInt32? {
        // struct ucred, which Swift doesn't import: process, user, group.
        var credentials: [UInt32] = [0, 0, 0]
        var size = socklen_t(12)
        guard getsockopt(descriptor.rawValue, SOL_SOCKET, SO_PEERCRED, &credentials, &size) == 0 else { return nil }
        return credentials[1]
    }

    /// Makes reading and writing fail that takes longer than this; 0 waits without end.
    public func setTimeout(milliseconds: Int) {
        var time = timeval(tv_sec: milliseconds / 1000, tv_usec: milliseconds % 1000 * 1000)
        let size = socklen_t(MemoryLayout<timeval>.size)
        _ = setsockopt(descriptor.rawValue, SOL_SOCKET, SO_RCVTIMEO, &time, size)
        _ = setsockopt(descriptor.rawValue, SOL_SOCKET, SO_SNDTIMEO, &time, size)
    }

    /// Waits for bytes; empty at the end, when the time is over, or when the other end is gone.
    public func read(limit: Int) -> [UInt8] {
        let kept = pending.withLock { pending in
            let kept = Array(pending.prefix(limit))
            pending.removeFirst(kept.count)
            return kept
        }
        return kept.isEmpty ? receive(limit, flags: 0) ?? [] : kept
    }

    private func receive(_ limit: Int, flags: Int32) -> [UInt8]? {
        var bytes = [UInt8](repeating: 0, count: max(1, limit))
        while true {
            let count = bytes.withUnsafeMutableBytes { recv(descriptor.rawValue, $0.baseAddress, $0.count, flags) }
            if count >= 0 { return Array(bytes[..<count]) }
            if errno == EAGAIN && flags != 0 { return nil }
            if errno != EINTR { return [] }
        }
    }

    /// Reads a line, without its end; nil if there is none, or none so short.
    public func readLine(limit: Int) -> String? {
        var line: [UInt8] = []
        while line.count <= limit {
            let bytes = read(limit: 4096)
            if bytes.isEmpty { return nil }
            if let end = bytes.firstIndex(of: 10) {
                pending.withLock { $0 = Array(bytes[(end + 1)...]) + $0 }
                line += bytes[..<end]
                return line.count <= limit ? String(decoding: line, as: UTF8.self) : nil
            }
            line += bytes
        }
        return nil
    }

    /// Writes all bytes; the error if the other end is gone or takes none for too long.
    public func write(_ bytes: [UInt8]) -> HostError? {
        var written = 0
        while written < bytes.count {
            let count = bytes.withUnsafeBytes {
                send(descriptor.rawValue, $0.baseAddress! + written, $0.count - written, Int32(MSG_NOSIGNAL))
            }
            if count > 0 { written += count } else if errno != EINTR { return HostError.last("write") }
        }
        return nil
    }

    /// Writes all bytes, and gives the other process descriptors with the first of them (`unix(7)`, SCM_RIGHTS).
    public func write(_ bytes: [UInt8], descriptors: [Int32]) -> HostError? {
        if descriptors.isEmpty { return write(bytes) }
        // struct cmsghdr, whose macros Swift doesn't import: length 64, level 32, type 32, and what is given.
        let length = 16 + 4 * descriptors.count
        var control = [UInt64](repeating: 0, count: (length + 7) / 8)
        var data = bytes
        let sent = control.withUnsafeMutableBytes { control in
            control.storeBytes(of: length, as: Int.self)
            control.storeBytes(of: Int32(SOL_SOCKET), toByteOffset: 8, as: Int32.self)
            control.storeBytes(of: Int32(SCM_RIGHTS), toByteOffset: 12, as: Int32.self)
            for (index, one) in descriptors.enumerated() {
                control.storeBytes(of: one, toByteOffset: 16 + 4 * index, as: Int32.self)
            }
            return data.withUnsafeMutableBytes { sendOnce($0, control: control, length) }
        }
        return sent < 0 ? HostError.last("write") : write(Array(bytes.dropFirst(sent)))
    }

    private func sendOnce(
        _ data: UnsafeMutableRawBufferPointer, control: UnsafeMutableRawBufferPointer, _ length: Int
    ) -> Int {
        var vector = iovec(iov_base: data.baseAddress, iov_len: data.count)
        return withUnsafeMutablePointer(to: &vector) { vector in
            var message = msghdr()
            message.msg_iov = vector
            message.msg_iovlen = 1
            message.msg_control = control.baseAddress
            message.msg_controllen = length
            while true {
                let sent = sendmsg(descriptor.rawValue, &message, Int32(MSG_NOSIGNAL))
                if sent >= 0 || errno != EINTR { return sent }
            }
        }
    }

    /// Writes as many bytes as fit now; nil if the other end is gone.
    public func writeNow(_ bytes: ArraySlice<UInt8>) -> Int? {
        if bytes.isEmpty { return 0 }
        let count = bytes.withUnsafeBytes {
            send(descriptor.rawValue, $0.baseAddress, $0.count, Int32(MSG_NOSIGNAL) | Int32(MSG_DONTWAIT))
        }
        if count >= 0 { return count }
        return errno == EAGAIN || errno == EINTR ? 0 : nil
    }

    /// What a wait found.
    public struct Readiness: Sendable {
        /// Bytes can be read, or the other end is gone.
        public var canRead = false
        /// Bytes can be written.
        public var canWrite = false
        /// The other descriptor can be read.
        public var other = false
        /// The other end is gone.
        public var isGone = false
    }

    /// Waits until one of what is wanted is so, or the other end is gone; `other` is one more descriptor to read, or to write.
    public func wait(
        reading: Bool, writing: Bool, other: Int32, readingOther: Bool = true, writingOther: Bool = false
    ) -> Readiness {
        if reading, pending.withLock({ !$0.isEmpty }) { return Readiness(canRead: true) }
        var events: Int16 = 0
        if reading { events |= Int16(POLLIN) }
        if writing { events |= Int16(POLLOUT) }
        var otherEvents: Int16 = 0
        if readingOther { otherEvents |= Int16(POLLIN) }
        if writingOther { otherEvents |= Int16(POLLOUT) }
        // One of which nothing is wanted would tell of its end without end.
        var polled = [
            pollfd(fd: descriptor.rawValue, events: events, revents: 0),
            pollfd(fd: otherEvents == 0 ? -1 : other, events: otherEvents, revents: 0),
        ]
        while poll(&polled, 2, -1) < 0 {
            if errno != EINTR { return Readiness(isGone: true) }
        }
        let found = Int32(polled[0].revents)
        return Readiness(
            canRead: found & POLLIN != 0, canWrite: found & POLLOUT != 0,
            other: polled[1].revents & ~Int16(POLLOUT) != 0, isGone: found & (POLLHUP | POLLERR) != 0)
    }

    /// Another descriptor of the connection, for who goes on with it; what `takeReceived` returns comes first.
    public func duplicate() throws(HostError) -> FileDescriptor {
        FileDescriptor(owning: try retrying("duplicate a socket") { fcntl(descriptor.rawValue, F_DUPFD_CLOEXEC, 3) })
    }

    /// What was read and not asked for yet.
    public func takeReceived() -> [UInt8] {
        pending.withLock { pending in
            defer { pending = [] }
            return pending
        }
    }

    /// Says that nothing more is written.
    public func finishWriting() { shutdown(descriptor.rawValue, Int32(SHUT_WR)) }

    /// Ends the connection for both sides; the descriptor stays until the last use of it.
    public func close() { shutdown(descriptor.rawValue, Int32(SHUT_RDWR)) }
}
