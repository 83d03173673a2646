// Waiting for descriptors of any kind, and for signals as bytes on one.
internal import CHost
internal import Glibc

/// A descriptor and what is waited for.
public struct Readiness: Sendable {
    /// The descriptor.
    public var descriptor: Int32
    /// Whether bytes, or an end, are waited for; afterwards whether they are there.
    public var canRead: Bool
    /// Whether room is waited for; afterwards whether it is there.
    public var canWrite: Bool

    /// Names a descriptor.
    public init(_ descriptor: Int32, read: Bool = true, write: Bool = false) {
        self.descriptor = descriptor
        canRead = read
        canWrite = write
    }

    /// Waits until any of these is ready (`poll(2)`), at most so long (-1: for ever), and says which are. Files are always
    /// ready.
    public static func wait(_ all: inout [Readiness], milliseconds: Int32 = -1) {
        var entries = all.map { one in
            pollfd(
                fd: one.descriptor, events: Int16((one.canRead ? POLLIN : 0) | (one.canWrite ? POLLOUT : 0)), revents: 0
            )
        }
        while poll(&entries, nfds_t(entries.count), milliseconds) < 0 && errno == EINTR {}
        for (index, entry) in entries.enumerated() {
            let isOver = entry.revents & Int16(POLLHUP | POLLERR | POLLNVAL) != 0
            all[index].canRead = all[index].canRead && (entry.revents & Int16(POLLIN) != 0 || isOver)
            all[index].canWrite = all[index].canWrite && (entry.revents & Int16(POLLOUT) != 0 || isOver)
        }
    }
}

/// Signals that arrive on a descriptor instead of interrupting (`signalfd(2)`), as long as this lives. For the main
/// thread: all others have their signals blocked anyway.
public struct SignalWatch: ~Copyable {
    /// Readable when a signal has come.
    public let descriptor: FileDescriptor
    private var before = sigset_t()

    /// Takes signals over.
    public init(_ signals: [Int32]) throws(HostError) {
        var set = sigset_t()
        sigemptyset(&set)
        for signal in signals { sigaddset(&set, signal) }
        pthread_sigmask(SIG_BLOCK, &set, &before)
        descriptor = FileDescriptor(
            owning: try retrying("signalfd") { signalfd(-1, &set, Int32(SFD_CLOEXEC | SFD_NONBLOCK)) })
    }

    deinit {
        // What came last would end the process now.
        while next() != nil {}
        var before = before
        pthread_sigmask(SIG_SETMASK, &before, nil)
    }

    /// The next signal that has come.
    public func next() -> Int32? {
        var info = signalfd_siginfo()
        let count = read(descriptor.rawValue, &info, MemoryLayout<signalfd_siginfo>.size)
        return count == MemoryLayout<signalfd_siginfo>.size ? Int32(info.ssi_signo) : nil
    }
}

extension FileDescriptor {
    /// Makes reads and writes never wait.
    public func setNonBlocking() {
        _ = fcntl(rawValue, F_SETFL, fcntl(rawValue, F_GETFL) | O_NONBLOCK)
    }

    /// Reads what is there, at most `limit` bytes; empty at the end, nil if nothing is there yet.
    public static func readAvailable(_ descriptor: Int32, limit: Int) throws(HostError) -> [UInt8]? {
        var failure: Int32 = 0
        let bytes = [UInt8](unsafeUninitializedCapacity: limit) { buffer, count in
            var got = Glibc.read(descriptor, buffer.baseAddress, limit)
            while got < 0 && errno == EINTR { got = Glibc.read(descriptor, buffer.baseAddress, limit) }
            if got < 0 { failure = errno }
            count = max(got, 0)
        }
        if failure == EAGAIN { return nil }
        // A terminal whose other side has gone.
        if failure == EIO { return [] }
        if failure != 0 { throw HostError("read", errno: failure) }
        return bytes
    }

    /// Writes what there is room for; how many bytes.
    public func writeAvailable(_ bytes: ArraySlice<UInt8>) throws(HostError) -> Int {
        var failure: Int32 = 0
        let count = bytes.withUnsafeBytes { buffer -> Int in
            var done = Glibc.write(rawValue, buffer.baseAddress, buffer.count)
            while done < 0 && errno == EINTR { done = Glibc.write(rawValue, buffer.baseAddress, buffer.count) }
            if done < 0 { failure = errno }
            return done
        }
        if failure == EAGAIN { return 0 }
        if failure != 0 { throw HostError("write", errno: failure) }
        return count
    }
}
