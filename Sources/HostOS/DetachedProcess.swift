// A process of its own session, which outlives who starts it and tells over a pipe how its start went.
//
// INVARIANT: the C arrays handed to posix_spawn live until it returns.
internal import CHost
internal import Glibc

/// Programs that go on when their starter has ended.
public enum DetachedProcess {
    /// The descriptor on which a detached process finds the pipe to its starter.
    public static let reportDescriptor: Int32 = 3
    /// Bytes at which its log begins anew.
    private static let longestLog = 1 << 20

    /// A process that was started, and what it reports.
    public struct Start: ~Copyable, Sendable {
        /// Its number.
        public let process: Int32
        /// Comes to its end when the process closes its pipe, or ends.
        public let report: FileDescriptor

        /// Whether it has ended, waiting for that at most so long; only its starter can ask.
        public func hasEnded(within milliseconds: Int) -> Bool {
            var status: Int32 = 0
            for _ in 0...max(0, milliseconds / 10) {
                if waitpid(process, &status, WNOHANG) != 0 { return true }
                usleep(10_000)
            }
            return false
        }
    }

    /// Starts a program in a new session: no input, output and errors to the end of a file.
    public static func start(_ path: String, _ arguments: [String], log: String) throws(HostError) -> Start {
        var ends: [Int32] = [-1, -1]
        _ = try retrying("pipe") { roost_pipe(&ends) }
        let report = FileDescriptor(owning: ends[0])
        let input = FileDescriptor(owning: ends[1])
        var actions = posix_spawn_file_actions_t()
        posix_spawn_file_actions_init(&actions)
        defer { posix_spawn_file_actions_destroy(&actions) }
        posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0)
        posix_spawn_file_actions_addopen(&actions, 1, log, O_WRONLY | O_CREAT | O_TRUNC | O_APPEND, 0o600)
        posix_spawn_file_actions_adddup2(&actions, 1, 2)
        posix_spawn_file_actions_adddup2(&actions, input.rawValue, reportDescriptor)
        // What the starter's own starter left open is waited for by it: a pipe, a socket.
        _ = roost_spawn_close_from(&actions, reportDescriptor + 1)
        var attributes = posix_spawnattr_t()
        posix_spawnattr_init(&attributes)
        defer { posix_spawnattr_destroy(&attributes) }
        var mask = sigset_t()
        sigemptyset(&mask)
        posix_spawnattr_setsigmask(&attributes, &mask)
        // POSIX_SPAWN_SETSID of <spawn.h>, which Swift doesn't import.
        posix_spawnattr_setflags(&attributes, Int16(0x80 | POSIX_SPAWN_SETSIGMASK))
        var argv: [UnsafeMutablePointer<CChar>?] = ([path] + arguments).map { strdup($0) } + [nil]
        defer { for string in argv { free(string) } }
        var child: pid_t = 0
        let code = posix_spawn(&child, path, &actions, &attributes, &argv, environ)
        guard code == 0 else { throw HostError("run \(path)", errno: code) }
        return Start(process: child, report: report)
    }

    /// The starter's pipe, in the process that was started; nil if it was started otherwise. What it notes from now on
    /// doesn't let its log grow without end.
    public static func takeReport() -> FileDescriptor? {
        var status = stat()
        guard fstat(reportDescriptor, &status) == 0, status.st_mode & S_IFMT == S_IFIFO else { return nil }
        _ = fcntl(reportDescriptor, F_SETFD, FD_CLOEXEC)
        Terminal.limitNotes(to: longestLog)
        return FileDescriptor(owning: reportDescriptor)
    }

    /// The program that runs now.
    public static var ownPath: String { PrivateFolder.canonical("/proc/self/exe") }

    /// The number of this process.
    public static var ownNumber: Int32 { getpid() }

    /// Ends a process at once.
    public static func kill(_ process: Int32) { Glibc.kill(process, SIGKILL) }
}

/// Signals that ask a process to end.
public enum TerminationSignals {
    /// Has a thread call `body` when SIGTERM, SIGINT or SIGHUP comes, instead of ending the process. For the main thread.
    public static func onArrival(_ body: @escaping @Sendable () -> Void) throws(HostError) {
        var signals = sigset_t()
        sigemptyset(&signals)
        for signal in [SIGTERM, SIGINT, SIGHUP] { sigaddset(&signals, signal) }
        pthread_sigmask(SIG_BLOCK, &signals, nil)
        let waited = signals
        try HostThread.detached(name: "roost-signals") {
            var waited = waited
            while true {
                var signal: Int32 = 0
                if sigwait(&waited, &signal) == 0 { body() }
            }
        }
    }
}
