// The console in every form: input that is a file, at its end or closed, a pseudo-terminal, a terminal that is raw while
// the guest has it and as before on every way out.
import Foundation
import Glibc
import HostOS
import MachineTesting
import Testing

@Suite("Console", .enabled("needs the built command") { TerminalSession.roost != nil })
struct ConsoleTests {
    /// Waits for bytes from the serial port and sends them back; `q` ends with status 5.
    static let echo: [UInt8] =
        [
            0x66, 0xBA, 0xFD, 0x03, 0xEC, 0xA8, 0x01, 0x74, 0xF7, 0x66, 0xBA, 0xF8, 0x03, 0xEC, 0xEE, 0x3C, 0x71, 0x75,
            0xED,
        ] + TinyGuest.exit(2)
    /// cli; hlt, for ever.
    static let halted: [UInt8] = [0xFA, 0xF4, 0xEB, 0xFD]

    private final class Scratch {
        let path = FileManager.default.temporaryDirectory.appendingPathComponent("roost-console-\(UUID())").path
        init() throws { try FileManager.default.createDirectory(atPath: path, withIntermediateDirectories: true) }
        deinit { try? FileManager.default.removeItem(atPath: path) }
        func file(_ name: String, _ bytes: [UInt8]) throws -> String {
            try Data(bytes).write(to: URL(fileURLWithPath: path + "/" + name))
            return path + "/" + name
        }
    }

    private func arguments(_ kernel: String) -> [String] {
        ["run", "--kernel", kernel, "--net", "none", "--memory", "32M", "--debug-exit", "0xf4"]
    }

    /// Runs `roost` from a shell, with redirections.
    private func shell(_ code: [UInt8], _ redirections: String) throws -> (lines: [String], status: Int32?) {
        let scratch = try Scratch()
        let kernel = try scratch.file("kernel", MultibootImage.make(code))
        _ = try scratch.file("input", Array("abcq".utf8))
        let words = ([TerminalSession.roost ?? ""] + arguments(kernel)).map { "'\($0)'" }.joined(separator: " ")
        var lines: [String] = []
        let deadline = Date().addingTimeInterval(30)
        let ending = try ChildProcess.run(
            "/bin/sh", ["-c", "cd '\(scratch.path)'; exec \(words) \(redirections)"],
            environment: ProcessInfo.processInfo.environment,
            // Why `--engine auto` took the translator is the host's affair.
            line: { if !$0.hasPrefix("roost: the translator runs this machine: ") { lines.append($0) } },
            proceed: { Date() < deadline })
        if case .exited(let status) = ending { return (lines, status) }
        return (lines, nil)
    }

    @Test("Standard input may be a file, at its end, or closed; standard output may be closed")
    func inputs() throws {
        let fromFile = try shell(Self.echo, "<input")
        #expect(fromFile.status == 5)
        #expect(fromFile.lines == ["abcq"])
        for redirection in ["</dev/null", "<&-", "<&- >&- 2>&-", ">&-"] {
            let run = try shell(TinyGuest.say("on") + TinyGuest.exit(4), redirection)
            #expect(run.status == 9, "\(redirection)")
            #expect(run.lines == (redirection.contains(">&-") ? [] : ["on"]), "\(redirection)")
        }
    }

    @Test("Output that nobody reads any more doesn't end the guest")
    func brokenPipe() throws {
        let run = try shell(Self.echo, "<input | true; wait; echo done")
        #expect(run.lines == ["done"])
    }

    @Test("Output to a pipe comes as the guest writes it")
    func flushing() throws {
        let scratch = try Scratch()
        let kernel = try scratch.file("kernel", MultibootImage.make(TinyGuest.say("prompt> ") + Self.halted))
        let process = Process()
        process.executableURL = URL(fileURLWithPath: TerminalSession.roost ?? "")
        process.arguments = arguments(kernel)
        let (input, output) = (Pipe(), Pipe())
        process.standardInput = input
        process.standardOutput = output
        try process.run()
        defer { process.terminate() }
        let reader = ByteStream(writing: output.fileHandleForReading.fileDescriptor)
        var text: [UInt8] = []
        while text.count < 8 { text += reader.read(limit: 8 - text.count) }
        #expect(String(decoding: text, as: UTF8.self) == "prompt> ")
        #expect(process.isRunning)
    }

    @Test("--console pty names a terminal that can be opened and typed into")
    func pseudoTerminal() throws {
        let scratch = try Scratch()
        let kernel = try scratch.file("kernel", MultibootImage.make(Self.echo))
        let process = Process()
        process.executableURL = URL(fileURLWithPath: TerminalSession.roost ?? "")
        process.arguments = arguments(kernel) + ["--console", "pty"]
        let errors = Pipe()
        process.standardError = errors
        process.standardInput = FileHandle.nullDevice
        try process.run()
        defer { process.terminate() }
        // Other lines may come before it, in as many reads as they like.
        let reader = ByteStream(writing: errors.fileHandleForReading.fileDescriptor)
        var note = ""
        while !note.contains(/\/dev\/pts\/[0-9]+\s/) {
            let more = reader.read(limit: 200)
            try #require(!more.isEmpty, "\(note)")
            note += String(decoding: more, as: UTF8.self)
        }
        let path = String(try #require(note.firstMatch(of: /\/dev\/pts\/[0-9]+/)?.output))
        let terminal = try FileDescriptor.open(path, O_RDWR | O_NOCTTY)
        let stream = ByteStream(writing: terminal.rawValue)
        // Ctrl-A x is the guest's here, as is Ctrl-C.
        #expect(stream.write([1, 0x78, 3]) == nil)
        var answer: [UInt8] = []
        while answer.count < 3 { answer += stream.read(limit: 3 - answer.count) }
        #expect(answer == [1, 0x78, 3])
        #expect(process.isRunning)
        #expect(stream.write(Array("q".utf8)) == nil)
        process.waitUntilExit()
        #expect(process.terminationStatus == 5)
    }

    @Test("The terminal is raw while the guest has it, and as before after every kind of end")
    func terminalMode() throws {
        let scratch = try Scratch()
        let kernel = try scratch.file("kernel", MultibootImage.make(TinyGuest.say("ready") + Self.echo))
        let crash = try scratch.file(
            "crash", MultibootImage.make(TinyGuest.say("ready") + [0x0F, 0x01, 0x1D, 0, 0, 9, 0, 0x0F, 0x0B]))
        func start(_ kernel: String) throws -> TerminalSession {
            let session = try TerminalSession(arguments(kernel))
            try #require(session.expect("ready", seconds: 30) != nil)
            return session
        }
        // The guest ends, the user ends it.
        for (keys, status) in [("q", 5), ("\u{1}x", 0)] as [(String, Int32)] {
            let session = try start(kernel)
            for _ in 0..<100 where !session.isRaw { usleep(10_000) }
            #expect(session.isRaw)
            session.send(Array(keys.utf8))
            #expect(session.wait(seconds: 30) == status)
            #expect(!session.isRaw, "\(keys)")
        }
        // Ctrl-A h lists the keys; Ctrl-C is the guest's.
        do {
            let session = try start(kernel)
            for _ in 0..<100 where !session.isRaw { usleep(10_000) }
            session.send([1, 0x68])
            #expect(session.expect("Ctrl-A x", seconds: 30) != nil)
            session.send([3])
            #expect(session.expect("\u{3}", seconds: 30) != nil)
            session.send([1, 1])
            #expect(session.expect("\u{1}", seconds: 30) != nil)
            session.send([0x71])
            #expect(session.wait(seconds: 30) == 5)
        }
        // A triple fault; signals, a crash among them (Swift's own crash report would wait for a key).
        setenv("SWIFT_BACKTRACE", "enable=no", 1)
        let fault = try TerminalSession(arguments(crash))
        #expect(fault.wait(seconds: 30) == 86)
        #expect(!fault.isRaw)
        for signal in [SIGTERM, SIGINT, SIGHUP, SIGSEGV, SIGABRT] {
            let session = try start(kernel)
            for _ in 0..<100 where !session.isRaw { usleep(10_000) }
            session.signal(signal)
            #expect(session.wait(seconds: 60) == -signal, "signal \(signal)")
            #expect(!session.isRaw, "signal \(signal)")
        }
    }
}
