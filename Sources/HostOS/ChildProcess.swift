// Running another program to its end: its output line by line, a look around while it works, no trace if stopped.
//
// INVARIANT: the C arrays handed to posix_spawn live until it returns; the pipe's reading end is owned by `run`.
internal import Glibc
internal import Synchronization

/// A program run as a child, in a process group of its own.
public enum ChildProcess {
    /// How a child ended.
    public enum Ending: Sendable, Equatable {
        /// It exited with this status.
        case exited(Int32)
        /// This signal ended it.
        case signaled(Int32)
        /// The caller asked for its end.
        case stopped
    }

    /// Runs a program; its output and errors come to `line`, and `proceed` is asked at least five times a second.
    ///
    /// Standard input is empty. When `proceed` says false, the child's whole group is asked to end (SIGTERM, then after
    /// twenty seconds SIGKILL).
    public static func run(
        _ path: String, _ arguments: [String], environment: [String: String],
        line: (String) -> Void, proceed: () -> Bool
    ) throws(HostError) -> Ending {
        var ends: [Int32] = [-1, -1]
        _ = try retrying("pipe") { pipe(&ends) }
        for end in ends { _ = fcntl(end, F_SETFD, FD_CLOEXEC) }
        let output = FileDescriptor(owning: ends[0])
        let child: pid_t
        do {
            let input = FileDescriptor(owning: ends[1])
            child = try spawn(path, arguments, environment, output: input.rawValue)
        }

        var pending: [UInt8] = []
        var buffer = [UInt8](repeating: 0, count: 16384)
        var stopping = false
        var patience = 100
        while true {
            if !stopping && !proceed() {
                stopping = true
                kill(-child, SIGTERM)
            } else if stopping {
                patience -= 1
                if patience == 0 { kill(-child, SIGKILL) }
            }
            var polled = pollfd(fd: output.rawValue, events: Int16(POLLIN), revents: 0)
            guard poll(&polled, 1, 200) > 0 else { continue }
            let count = read(output.rawValue, &buffer, buffer.count)
            if count < 0 && Glibc.errno == EINTR { continue }
            if count <= 0 { break }
            for byte in buffer[..<count] {
                if byte == 10 || byte == 13 {
                    line(String(decoding: pending, as: UTF8.self))
                    pending.removeAll(keepingCapacity: true)
                } else if pending.count < 4096 {
                    pending.append(byte)
                }
            }
        }
        if !pending.isEmpty { line(String(decoding: pending, as: UTF8.self)) }
        var status: Int32 = 0
        _ = try retrying("waitpid") { waitpid(child, &status, 0) }
        if stopping { return .stopped }
        let signal = status & 0x7F
        return signal == 0 ? .exited((status >> 8) & 0xFF) : .signaled(signal)
    }

    /// Starts a program, a group of its own, its standard input empty; `socket` is its descriptor 3.
    static func spawn(
        _ path: String, _ arguments: [String], _ environment: [String: String], output: Int32, socket: Int32? = nil
    ) throws(HostError) -> pid_t {
        var actions = posix_spawn_file_actions_t()
        posix_spawn_file_actions_init(&actions)
        defer { posix_spawn_file_actions_destroy(&actions) }
        posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0)
        posix_spawn_file_actions_adddup2(&actions, output, 1)
        posix_spawn_file_actions_adddup2(&actions, output, 2)
        if let socket { posix_spawn_file_actions_adddup2(&actions, socket, ConnectedProcess.programEnd) }

        var attributes = posix_spawnattr_t()
        posix_spawnattr_init(&attributes)
        defer { posix_spawnattr_destroy(&attributes) }
        var defaults = sigset_t()
        sigemptyset(&defaults)
        for signal in [SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGPIPE] { sigaddset(&defaults, signal) }
        posix_spawnattr_setsigdefault(&attributes, &defaults)
        // A worker thread's signal mask must not become the child's.
        var mask = sigset_t()
        sigemptyset(&mask)
        posix_spawnattr_setsigmask(&attributes, &mask)
        posix_spawnattr_setpgroup(&attributes, 0)
        let flags = POSIX_SPAWN_SETPGROUP | POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETSIGMASK
        posix_spawnattr_setflags(&attributes, Int16(flags))

        var argv: [UnsafeMutablePointer<CChar>?] = ([path] + arguments).map { strdup($0) } + [nil]
        var envp: [UnsafeMutablePointer<CChar>?] = environment.map { strdup("\($0.key)=\($0.value)") } + [nil]
        defer { for string in argv + envp { free(string) } }
        var child: pid_t = 0
        let code = posix_spawn(&child, path, &actions, &attributes, &argv, &envp)
        guard code == 0 else { throw HostError("run \(path)", errno: code) }
        return child
    }
}

/// While it is held, SIGINT, SIGTERM and SIGHUP set a flag instead of ending the process.
public enum Interruption {
    private static let seen = Atomic<Bool>(false)

    /// Whether one of the signals came since `hold` began.
    public static var requested: Bool { seen.load(ordering: .relaxed) }

    /// Runs a body with the signals held, and puts their former actions back.
    public static func hold<Result, Failure: Error>(
        _ body: () throws(Failure) -> Result
    ) throws(Failure) -> Result {
        let signals = [SIGINT, SIGTERM, SIGHUP]
        seen.store(false, ordering: .relaxed)
        var former = Array(repeating: sigaction(), count: signals.count)
        for (index, signal) in signals.enumerated() {
            var action = sigaction()
            action.__sigaction_handler.sa_handler = { _ in Interruption.seen.store(true, ordering: .relaxed) }
            sigaction(signal, &action, &former[index])
        }
        defer {
            for (index, signal) in signals.enumerated() { sigaction(signal, &former[index], nil) }
        }
        return try body()
    }
}

/// Programs of the host.
public enum HostProgram {
    /// Where a program is, in `PATH` or the usual folders.
    public static func find(_ name: String) -> String? {
        let path = getenv("PATH").map { String(cString: $0) } ?? ""
        let folders = path.split(separator: ":").map(String.init).filter { $0.hasPrefix("/") } + ["/usr/bin", "/bin"]
        return folders.map { $0 + "/" + name }.first { access($0, X_OK) == 0 }
    }
}
