// The user's terminal, pseudo-terminals, and byte streams that outlive their other end.
internal import CHost
internal import Glibc
internal import Synchronization

/// The mode of the user's terminal.
public enum Terminal {
    /// Puts a terminal into raw mode until the process ends in any way; false if it isn't a terminal in the foreground.
    public static func makeRaw(_ descriptor: Int32) -> Bool { roost_terminal_raw(descriptor) != 0 }

    /// Puts the terminal back as it was.
    public static func restore() { roost_terminal_restore() }

    /// Whether the terminal is raw now: lines must end in CR LF.
    public static var isRaw: Bool { roost_terminal_is_raw() != 0 }

    /// Whether a descriptor is a terminal.
    public static func isTerminal(_ descriptor: Int32) -> Bool { isatty(descriptor) == 1 }

    /// Columns and rows of a terminal; nil if it is none or does not know.
    public static func size(_ descriptor: Int32) -> (columns: Int, rows: Int)? {
        var size = winsize()
        guard ioctl(descriptor, UInt(TIOCGWINSZ), &size) == 0, size.ws_col > 0, size.ws_row > 0 else { return nil }
        return (Int(size.ws_col), Int(size.ws_row))
    }

    /// Makes broken pipes and background reads errors instead of signals, and closed standard streams `/dev/null`.
    public static func prepareStandardStreams() {
        roost_open_standard_streams()
        roost_ignore_pipe_signals()
    }

    /// Bytes at which the file that standard error leads to begins anew; zero: it may grow.
    private static let noteLimit = Atomic<Int>(0)

    /// Has the file that standard error leads to begin anew when notes have made it so long: it is a log of ours.
    static func limitNotes(to bytes: Int) { noteLimit.store(bytes, ordering: .relaxed) }

    /// Writes a line of our own to standard error, whatever mode the terminal is in.
    public static func note(_ text: String) {
        let end = isRaw ? "\r\n" : "\n"
        let lines =
            isRaw ? text.split(separator: "\n", omittingEmptySubsequences: false).joined(separator: "\r\n") : text
        let stream = ByteStream(writing: 2)
        let limit = noteLimit.load(ordering: .relaxed)
        if limit > 0 { stream.emptyFile(of: limit) }
        _ = stream.write(Array((lines + end).utf8))
    }
}

/// A pseudo-terminal with both ends open, so that it works before and after anyone opens its path.
public struct PseudoTerminal: ~Copyable, Sendable {
    /// The controlling end, non-blocking.
    public let controller: FileDescriptor
    private let other: FileDescriptor
    /// The path that users open.
    public let path: String

    /// Makes one, in raw mode.
    public static func make() throws(HostError) -> PseudoTerminal {
        var name = [CChar](repeating: 0, count: 128)
        let controller = FileDescriptor(
            owning: try retrying("open a pseudo-terminal") { roost_pseudo_terminal(&name, name.count) })
        let path = String(decoding: name.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self)
        let other = try FileDescriptor.open(path, O_RDWR | O_NOCTTY)
        var mode = termios()
        if tcgetattr(other.rawValue, &mode) == 0 {
            cfmakeraw(&mode)
            tcsetattr(other.rawValue, TCSANOW, &mode)
        }
        return PseudoTerminal(controller: controller, other: other, path: path)
    }
}

/// A descriptor that is read or written whole; it doesn't own the descriptor.
public struct ByteStream: Sendable {
    /// The descriptor.
    public let descriptor: Int32
    /// What doesn't fit at once is dropped instead of waited for.
    public let dropsWhenFull: Bool

    /// Names the descriptor.
    public init(writing descriptor: Int32, dropsWhenFull: Bool = false) {
        self.descriptor = descriptor
        self.dropsWhenFull = dropsWhenFull
    }

    /// Empties a file that has so many bytes or more; what isn't a file stays as it is.
    public func emptyFile(of limit: Int) {
        var status = stat()
        guard fstat(descriptor, &status) == 0, status.st_mode & S_IFMT == S_IFREG, status.st_size >= limit else {
            return
        }
        _ = ftruncate(descriptor, 0)
    }

    /// Writes everything; the error if the other end is gone or the device is full.
    public func write(_ bytes: [UInt8]) -> HostError? {
        var written = 0
        while written < bytes.count {
            let count = bytes.withUnsafeBytes { Glibc.write(descriptor, $0.baseAddress! + written, $0.count - written) }
            if count >= 0 {
                written += count
                continue
            }
            switch errno {
            case EINTR: continue
            case EAGAIN:
                if dropsWhenFull { return nil }
                var ready = pollfd(fd: descriptor, events: Int16(POLLOUT), revents: 0)
                poll(&ready, 1, -1)
            default: return HostError.last("write")
            }
        }
        return nil
    }

    /// Writes what its reader has room for now, though the descriptor may be one that waits; how many bytes that were.
    public func writeAvailable(_ bytes: ArraySlice<UInt8>) throws(HostError) -> Int {
        var status = stat()
        let isFile = fstat(descriptor, &status) == 0 && status.st_mode & S_IFMT == S_IFREG
        // A pipe that says it is ready has room for so much.
        let piece = isFile ? bytes.count : Int(PIPE_BUF)
        var written = 0
        while written < bytes.count {
            var ready = pollfd(fd: descriptor, events: Int16(POLLOUT), revents: 0)
            if poll(&ready, 1, 0) == 0 { break }
            let count = bytes.withUnsafeBytes {
                Glibc.write(descriptor, $0.baseAddress! + written, min(piece, $0.count - written))
            }
            if count >= 0 {
                written += count
            } else if errno == EAGAIN {
                break
            } else if errno != EINTR {
                // What was written comes first; the error comes again.
                if written > 0 { break }
                throw HostError.last("write")
            }
        }
        return written
    }

    /// Waits for bytes and reads up to `limit` of them; empty at the end or when the other end is gone.
    public func read(limit: Int) -> [UInt8] {
        var bytes = [UInt8](repeating: 0, count: max(1, limit))
        while true {
            let count = Glibc.read(descriptor, &bytes, bytes.count)
            if count >= 0 { return Array(bytes.prefix(count)) }
            switch errno {
            case EINTR: continue
            case EAGAIN:
                var ready = pollfd(fd: descriptor, events: Int16(POLLIN), revents: 0)
                poll(&ready, 1, -1)
            default: return []
            }
        }
    }
}
