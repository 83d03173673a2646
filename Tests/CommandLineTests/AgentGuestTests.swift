// The agent in a Debian guest, and `roost exec` with it, where programs, readers and guests don't behave.
import Foundation
import Glibc
import Images
import Testing

@Suite(
    "The agent in a guest",
    .enabled("needs the built command and Debian's image with its agent") {
        TerminalSession.roost != nil
            && (try? ImageStore(root: "/").locate(testImage("debian")))?.manifest.isCurrent == true
    })
struct AgentGuestTests {
    private let home: MachineHome

    init() throws {
        home = try MachineHome()
        try home.succeed(
            "run", "-d", "--name", "m", "--engine", "translator",
            try ImageStore(root: "/").locate(testImage("debian")).folder)
        try home.succeed("exec", "m", "--", "true")
    }

    /// Starts a program in the guest that is not waited for.
    private func start(_ command: [String], input: FileHandle = .nullDevice, output: Pipe? = nil) throws -> Process {
        let process = Process()
        process.executableURL = URL(fileURLWithPath: try #require(TerminalSession.roost))
        process.arguments = ["exec", "m", "--"] + command
        process.environment = ProcessInfo.processInfo.environment.merging(home.environment) { $1 }
        process.standardInput = input
        if let output { process.standardOutput = output } else { process.standardOutput = FileHandle.nullDevice }
        process.standardError = FileHandle.nullDevice
        try process.run()
        try output?.fileHandleForWriting.close()
        return process
    }

    /// Whether a program of the guest's has these words.
    private func runs(_ words: String) throws -> Bool {
        let look = "for f in /proc/[0-9]*/cmdline; do tr '\\0' ' ' <$f; echo; done 2>/dev/null; true"
        return try home.succeed("exec", "m", "--", "sh", "-c", look).contains(words)
    }

    /// Hundredths of a second of a processor's that a process has had (proc(5), /proc/PID/stat).
    private func time(_ process: Process) throws -> Int {
        let text = try String(contentsOfFile: "/proc/\(process.processIdentifier)/stat", encoding: .utf8)
        let words = text[(text.lastIndex(of: ")") ?? text.startIndex)...].split(separator: " ")
        return (words.count > 13 ? Int(words[12]) : nil).map { $0 + (Int(words[11]) ?? 0) } ?? 0
    }

    @Test("sees a program's end, its user and its host, whatever else goes on; a guest that hangs keeps nobody")
    func programs() throws {
        try background()
        try users()
        try home.fail(
            "exec", "m", "--", "true", String(repeating: "a", count: 100_000), String(repeating: "b", count: 100_000),
            String(repeating: "c", count: 100_000), status: 126, "too long")
        try hostGone()
        try unread()
        try paused()
    }

    /// A program's end is told though another one goes on writing.
    private func background() throws {
        for options in [["--no-tty"], ["--tty"]] {
            let run = try RoostRun(
                ["exec", "m"] + options + ["--", "sh", "-c", "yes & sleep 0.2; echo told"],
                environment: home.environment)
            #expect(run.status == 0 && run.output.contains("told"), "\(options)")
        }
        try home.succeed("exec", "m", "--", "true")
    }

    /// What a user's program has for its streams, it may open.
    private func users() throws {
        let script = "echo out >/dev/stdout; echo err >/dev/stderr; cat /dev/stdin"
        let run = try home.roost(
            "exec", "m", "--user", "nobody", "--", "sh", "-c", script, input: Data("in\n".utf8))
        #expect(run.status == 0 && run.output == "out\nin\n" && run.error == "err\n", "\(run)")
        let terminal = try home.roost(
            "exec", "m", "--user", "nobody", "--tty", "--", "sh", "-c", "echo seen >$(tty); stat -c %U:%G $(tty)")
        #expect(terminal.status == 0 && terminal.output.contains("seen\r\nnobody:tty\r\n"), "\(terminal)")
    }

    /// A program that doesn't read its input ends with the command that it belongs to, and the agent goes on.
    private func hostGone() throws {
        let agent = try home.succeed("exec", "m", "--", "pidof", "agent")
        for _ in 0..<10 {
            let process = try start(["yes"])
            usleep(200_000)
            kill(process.processIdentifier, SIGKILL)
        }
        #expect(try home.succeed("exec", "m", "--", "pidof", "agent") == agent)
        let path = home.folder + "/input"
        try Data(count: 8 << 20).write(to: URL(fileURLWithPath: path))
        let process = try start(["sleep", "4712"], input: try #require(FileHandle(forReadingAtPath: path)))
        let isThere = try MachineHome.eventually(30) { try runs("sleep 4712") }
        #expect(isThere)
        kill(process.processIdentifier, SIGKILL)
        let isGone = try MachineHome.eventually(30) { try !runs("sleep 4712") }
        #expect(isGone, "the program goes on in the guest")
    }

    /// A command whose program has ended only waits for its reader.
    private func unread() throws {
        let output = Pipe()
        let process = try start(["head", "-c", "200000", "/dev/zero"], output: output)
        defer { kill(process.processIdentifier, SIGKILL) }
        // The pipe is full: all that it does from now on is too much.
        usleep(1_000_000)
        let isOver = try MachineHome.eventually(30) { try !runs("head -c 200000") }
        #expect(isOver)
        let before = try time(process)
        usleep(2_000_000)
        #expect(process.isRunning)
        #expect(try time(process) - before < 50)
        #expect(output.fileHandleForReading.readData(ofLength: 200000).count == 200000)
        let isThrough = MachineHome.eventually { !process.isRunning }
        try #require(isThrough)
        #expect(process.terminationStatus == 0)
    }

    /// A guest that does nothing keeps the command for ten seconds.
    private func paused() throws {
        let process = try start(["sleep", "4713"])
        defer { kill(process.processIdentifier, SIGKILL) }
        let isThere = try MachineHome.eventually(30) { try runs("sleep 4713") }
        #expect(isThere)
        try home.succeed("pause", "m")
        kill(process.processIdentifier, SIGTERM)
        let isOver = MachineHome.eventually(25) { !process.isRunning }
        try #require(isOver)
        #expect(process.terminationReason == .exit && process.terminationStatus == 128 + SIGTERM)
        try home.succeed("resume", "m")
    }
}
