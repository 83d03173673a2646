// A person at a terminal: starts the built `roost` on a pseudo-terminal, reads what it prints, types.
import Foundation
import Glibc
import HostOS

/// A program on a pseudo-terminal.
final class TerminalSession {
    private let terminal: FileDescriptor
    /// The process.
    private(set) var child: pid_t = 0
    private var unread: [UInt8] = []
    private var status: Int32?
    // Not imported by Swift: TIOCSPTLCK and TIOCGPTN of <asm/ioctls.h>, POSIX_SPAWN_SETSID of <spawn.h>.
    private static let setLock: UInt = 0x4004_5431
    private static let getNumber: UInt = 0x8004_5430
    private static let newSession: Int32 = 0x80

    /// All that was printed so far.
    private(set) var transcript = ""

    /// The `roost` that was built with these tests, or nil.
    ///
    /// The environment's `ROOST` names another, to compare with.
    static let roost: String? = {
        if let other = ProcessInfo.processInfo.environment["ROOST"], !other.isEmpty { return other }
        // The test runner's first argument, or the working directory, leads to the build folder.
        let folders =
            CommandLine.arguments.map { ($0 as NSString).deletingLastPathComponent }
            + [FileManager.default.currentDirectoryPath + "/.build/release"]
        return folders.map { $0 + "/roost" }.first { FileManager.default.isExecutableFile(atPath: $0) }
    }()

    /// Starts `roost` with arguments, the terminal its standard input, output and error.
    init(_ arguments: [String], environment: [String: String] = [:]) throws {
        struct Failure: Error { var what: String }
        guard let program = Self.roost else { throw Failure(what: "roost is not built") }
        terminal = try FileDescriptor.open("/dev/ptmx", O_RDWR | O_NOCTTY)
        var locked: Int32 = 0
        var number: Int32 = 0
        guard ioctl(terminal.rawValue, Self.setLock, &locked) == 0,
            ioctl(terminal.rawValue, Self.getNumber, &number) == 0
        else { throw Failure(what: "no pseudo-terminal") }
        let name = "/dev/pts/\(number)"
        var size = winsize(ws_row: 25, ws_col: 100, ws_xpixel: 0, ws_ypixel: 0)
        _ = ioctl(terminal.rawValue, UInt(TIOCSWINSZ), &size)

        var actions = posix_spawn_file_actions_t()
        posix_spawn_file_actions_init(&actions)
        defer { posix_spawn_file_actions_destroy(&actions) }
        posix_spawn_file_actions_addopen(&actions, 0, name, O_RDWR, 0)
        posix_spawn_file_actions_adddup2(&actions, 0, 1)
        posix_spawn_file_actions_adddup2(&actions, 0, 2)
        var attributes = posix_spawnattr_t()
        posix_spawnattr_init(&attributes)
        defer { posix_spawnattr_destroy(&attributes) }
        var mask = sigset_t()
        sigemptyset(&mask)
        posix_spawnattr_setsigmask(&attributes, &mask)
        posix_spawnattr_setflags(&attributes, Int16(Self.newSession | POSIX_SPAWN_SETSIGMASK))
        var argv: [UnsafeMutablePointer<CChar>?] = ([program] + arguments).map { strdup($0) } + [nil]
        let variables = ProcessInfo.processInfo.environment.merging(environment) { $1 }
        var envp: [UnsafeMutablePointer<CChar>?] = variables.map { strdup("\($0.key)=\($0.value)") } + [nil]
        defer { for string in argv + envp { free(string) } }
        let code = posix_spawn(&child, program, &actions, &attributes, &argv, &envp)
        guard code == 0 else { throw Failure(what: "cannot start \(program): \(String(cString: strerror(code)))") }
    }

    deinit {
        guard status == nil else { return }
        kill(child, SIGKILL)
        var ignored: Int32 = 0
        waitpid(child, &ignored, 0)
    }

    /// Whether the terminal hands every key on at once, unedited.
    var isRaw: Bool {
        var mode = termios()
        return tcgetattr(terminal.rawValue, &mode) == 0 && mode.c_lflag & tcflag_t(ICANON | ECHO | ISIG) == 0
    }

    /// Sends bytes as they are.
    func send(_ bytes: [UInt8]) { _ = write(terminal.rawValue, bytes, bytes.count) }

    /// Makes the terminal another size; the program is told.
    func resize(rows: UInt16, columns: UInt16) {
        var size = winsize(ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0)
        _ = ioctl(terminal.rawValue, UInt(TIOCSWINSZ), &size)
    }

    /// Sends the program a signal.
    func signal(_ number: Int32) { kill(child, number) }

    /// Types a line.
    func type(_ line: String) {
        let bytes = Array((line + "\r").utf8)
        _ = write(terminal.rawValue, bytes, bytes.count)
    }

    /// Reads until the text appears and returns what came before it; nil when time or the program is at its end.
    func expect(_ text: String, seconds: Double) -> String? {
        let wanted = Array(text.utf8)
        let deadline = Date().addingTimeInterval(seconds)
        var buffer = [UInt8](repeating: 0, count: 65536)
        var searched = 0
        while true {
            if let place = Self.find(wanted, in: unread, from: max(0, searched - wanted.count)) {
                let before = String(decoding: unread[..<place], as: UTF8.self)
                unread.removeFirst(place + wanted.count)
                return before
            }
            searched = unread.count
            if Date() >= deadline { return nil }
            var polled = pollfd(fd: terminal.rawValue, events: Int16(POLLIN), revents: 0)
            guard poll(&polled, 1, 200) > 0 else { continue }
            let count = read(terminal.rawValue, &buffer, buffer.count)
            guard count > 0 else { return nil }
            unread.append(contentsOf: buffer[..<count])
            transcript += String(decoding: buffer[..<count], as: UTF8.self)
        }
    }

    /// Waits for the program's end and returns its exit status; nil when time is up, negative for a signal.
    func wait(seconds: Double) -> Int32? {
        // The program must be able to print its last words.
        _ = expect("\u{0}\u{0}nothing prints this", seconds: seconds)
        var raw: Int32 = 0
        for _ in 0..<50 {
            if waitpid(child, &raw, WNOHANG) == child {
                status = raw & 0x7F == 0 ? (raw >> 8) & 0xFF : -(raw & 0x7F)
                return status
            }
            usleep(20000)
        }
        return nil
    }

    private static func find(_ wanted: [UInt8], in bytes: [UInt8], from start: Int) -> Int? {
        guard bytes.count >= wanted.count, start <= bytes.count - wanted.count else { return nil }
        return (start...(bytes.count - wanted.count)).first {
            bytes[$0] == wanted[0] && bytes[$0...].starts(with: wanted)
        }
    }
}
