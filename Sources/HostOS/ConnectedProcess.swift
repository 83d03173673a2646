// A program that runs beside this one, at the other end of a stream socket.
//
// The program has its end as descriptor 3, and ends when that is closed: also when this process is killed.
internal import Glibc
internal import Synchronization

/// A program and the socket that leads to it.
public final class ConnectedProcess: Sendable {
    /// The program's end of the socket, as a number among its arguments.
    public static let programEnd: Int32 = 3

    /// Our end of the socket.
    public let descriptor: FileDescriptor
    private let output: FileDescriptor
    private let child: Mutex<pid_t?>

    /// Starts a program; what it prints to its standard output and error is for `said`.
    public init(_ path: String, _ arguments: [String]) throws(HostError) {
        var ends: [Int32] = [-1, -1]
        _ = try retrying("socketpair") {
            socketpair(AF_UNIX, Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue), 0, &ends)
        }
        descriptor = FileDescriptor(owning: ends[0])
        let other = FileDescriptor(owning: ends[1])
        _ = try retrying("pipe") { pipe(&ends) }
        for end in ends { _ = fcntl(end, F_SETFD, FD_CLOEXEC) }
        output = FileDescriptor(owning: ends[0])
        let input = FileDescriptor(owning: ends[1])
        // What nobody reads is lost instead of holding the program up. It may have become another user by then.
        _ = fcntl(input.rawValue, F_SETFL, O_NONBLOCK)
        _ = fchmod(input.rawValue, 0o666)
        let process = try ChildProcess.spawn(
            path, arguments, ["PATH": "/usr/sbin:/usr/bin:/sbin:/bin"], output: input.rawValue, socket: other.rawValue)
        child = Mutex(process)
    }

    deinit { stop() }

    /// Waits until the program has printed a line that `test` is true of. What it printed, if it ended instead or took too
    /// long.
    public func waitForLine(milliseconds: Int, _ test: (String) -> Bool) -> String? {
        let deadline = HostClock.monotonic &+ UInt64(milliseconds) * 1_000_000
        var text: [UInt8] = []
        var buffer = [UInt8](repeating: 0, count: 1024)
        while text.count < 65536 {
            let left = Int64(bitPattern: deadline &- HostClock.monotonic) / 1_000_000
            var polled = pollfd(fd: output.rawValue, events: Int16(POLLIN), revents: 0)
            guard left > 0, poll(&polled, 1, Int32(left)) > 0 else { break }
            let count = read(output.rawValue, &buffer, buffer.count)
            if count <= 0 { break }
            text += buffer[..<count]
            let lines = text.split(separator: 10, omittingEmptySubsequences: false).dropLast()
            if lines.contains(where: { test(String(decoding: $0, as: UTF8.self)) }) { return nil }
        }
        return String(decoding: text, as: UTF8.self)
    }

    /// Sends all bytes, waiting for room; false if the program is gone.
    public func send(_ bytes: [UInt8]) -> Bool {
        bytes.withUnsafeBytes { buffer in
            var done = 0
            while done < buffer.count {
                let rest = UnsafeRawBufferPointer(rebasing: buffer[done...])
                let sent = Glibc.send(descriptor.rawValue, rest.baseAddress, rest.count, Int32(MSG_NOSIGNAL))
                if sent < 0 && errno == EINTR { continue }
                if sent <= 0 { return false }
                done += sent
            }
            return true
        }
    }

    /// Takes what has come, behind the first `start` bytes of a buffer: the number of bytes, zero at the end, negative if
    /// there is none now.
    public func receive(into buffer: inout [UInt8], from start: Int) -> Int {
        buffer.withUnsafeMutableBytes { buffer in
            let rest = UnsafeMutableRawBufferPointer(rebasing: buffer[start...])
            return recv(descriptor.rawValue, rest.baseAddress, rest.count, Int32(MSG_DONTWAIT))
        }
    }

    /// Ends the connection and with it the program: after a second by force.
    public func stop() {
        shutdown(descriptor.rawValue, Int32(SHUT_RDWR))
        guard let process = child.withLock({ $0.take() }) else { return }
        for _ in 0..<100 {
            if waitpid(process, nil, WNOHANG) != 0 { return }
            usleep(10_000)
        }
        kill(process, SIGKILL)
        _ = try? retrying("waitpid") { waitpid(process, nil, 0) }
    }
}
