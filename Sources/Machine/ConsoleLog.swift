// The console's file: what the guest sends, up to a limit, and as much again from before.
internal import HostOS
internal import Synchronization

/// A file that keeps what a console shows.
public struct ConsoleLog: Sendable, Equatable {
    /// Where; older output is in `PATH.1`.
    public var path: String
    /// Bytes of each of the two files.
    public var limit: Int

    /// Names a file.
    public init(path: String, limit: Int = 4 << 20) {
        self.path = path
        self.limit = limit
    }

    private final class File: Sendable {
        let log: Mutex<LimitedLog>
        init(_ log: consuming LimitedLog) { self.log = Mutex(log) }
    }

    /// Writes what comes on a thread that ends with the history.
    func follow(_ history: ByteLog) throws(HostError) -> HostThread {
        let file = File(try LimitedLog(path: path, limit: limit))
        let reader = try history.follow(from: 0)
        return try HostThread(name: "roost-log") {
            while let part = reader.wait(limit: 65536) {
                let note = part.lost > 0 ? Array("\n[\(part.lost) bytes lost]\n".utf8) : []
                file.log.withLock { $0.append(note + part.bytes) }
                // Guests write byte by byte; the disk gets more at once.
                HostClock.sleep(nanoseconds: 10_000_000)
            }
        }
    }
}
