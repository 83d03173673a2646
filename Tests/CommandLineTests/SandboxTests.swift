// Programs in machines that nobody keeps, and in one that is kept: streams byte for byte, how they end, what is left.
import Foundation
import Glibc
import Images
import Testing

/// A program with files for its streams.
private final class StreamedRun {
    let folder: String
    private let process = Process()

    init(_ words: [String], program: String? = nil, input: Data = Data(), home: MachineHome) throws {
        folder = "/tmp/roost-streams-\(UUID().uuidString.prefix(8))"
        try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: true)
        try input.write(to: URL(fileURLWithPath: folder + "/in"))
        process.executableURL = URL(fileURLWithPath: try program ?? #require(TerminalSession.roost))
        process.currentDirectoryURL = URL(fileURLWithPath: folder)
        process.arguments = words
        process.environment = ProcessInfo.processInfo.environment.merging(home.environment) { $1 }
        process.standardInput = try FileHandle(forReadingFrom: URL(fileURLWithPath: folder + "/in"))
        for name in ["out", "err"] { _ = FileManager.default.createFile(atPath: folder + "/" + name, contents: nil) }
        process.standardOutput = FileHandle(forWritingAtPath: folder + "/out")
        process.standardError = FileHandle(forWritingAtPath: folder + "/err")
        try process.run()
    }

    deinit {
        if process.isRunning { kill(process.processIdentifier, SIGKILL) }
        try? FileManager.default.removeItem(atPath: folder)
    }

    var output: Data { (try? Data(contentsOf: URL(fileURLWithPath: folder + "/out"))) ?? Data() }
    var errors: Data { (try? Data(contentsOf: URL(fileURLWithPath: folder + "/err"))) ?? Data() }

    func expect(_ text: String) -> Bool { MachineHome.eventually(60) { output.range(of: Data(text.utf8)) != nil } }

    func signal(_ number: Int32) { kill(process.processIdentifier, number) }

    /// Its status; negative: the signal that ended it, nil: it hasn't.
    func status(within seconds: Double = 120) -> Int32? {
        guard MachineHome.eventually(seconds, { !process.isRunning }) else { return nil }
        return process.terminationReason == .exit ? process.terminationStatus : -process.terminationStatus
    }
}

/// The store of these tests: Debian has been booted there and waits.
private final class WarmHome {
    static let image = testImage("debian")
    let home: MachineHome
    /// What a program is run with: in a machine of its own, or in the one that is kept.
    let words: [String]

    init(isKept: Bool) throws {
        home = try MachineHome()
        if isKept {
            try home.succeed("run", "-d", "--name", "kept", "--engine", "translator", Self.image)
            words = ["exec", "kept"]
        } else {
            words = ["run", "--engine", "translator", Self.image]
        }
        let first = try run(["true"])
        let status = first.status(within: 300)
        try #require(status == 0, "\(String(decoding: first.errors, as: UTF8.self))")
    }

    func run(_ command: [String], _ options: [String] = [], input: Data = Data()) throws -> StreamedRun {
        try StreamedRun(words + options + ["--"] + command, input: input, home: home)
    }

    /// Runs it as a shell does, with its output into another command, which is waited for or ended then; its status is what
    /// counts.
    func shell(
        _ command: [String], _ options: [String] = [], into reader: String, output: String = "", waits: Bool = false
    ) throws -> StreamedRun {
        let words = ([try #require(TerminalSession.roost)] + self.words + options + ["--"] + command)
            .map { "'" + $0.replacingOccurrences(of: "'", with: "'\\''") + "'" }.joined(separator: " ")
        let script = """
            mkfifo pipe; (exec \(reader)) <pipe & \(words) \(output.isEmpty ? ">pipe" : output)
            status=$?; \(waits ? "wait" : "kill -9") $!; exit $status
            """
        return try StreamedRun(["-c", script], program: "/bin/bash", home: home)
    }

    /// Processes that have this store.
    var processes: [Int32] {
        ((try? FileManager.default.contentsOfDirectory(atPath: "/proc")) ?? []).compactMap { Int32($0) }.filter {
            number in
            let environment = FileManager.default.contents(atPath: "/proc/\(number)/environ") ?? Data()
            return environment.range(of: Data("ROOST_HOME=\(home.folder)".utf8)) != nil
        }
    }

    /// All files, and all mounts.
    var files: Set<String> {
        let names = FileManager.default.enumerator(atPath: home.folder)?.allObjects as? [String] ?? []
        let mounts = (try? String(contentsOfFile: "/proc/self/mounts", encoding: .utf8)) ?? ""
        return Set(names).union(mounts.split(separator: "\n").map(String.init).filter { $0.contains("roost") })
    }
}

@Suite(
    "Programs in throw-away machines, and by roost exec", .serialized,
    .enabled("needs the built command and Debian's image with an agent") {
        TerminalSession.roost != nil
            && (try? ImageStore(root: "/").locate(testImage("debian")))?.manifest.agent != nil
    })
struct SandboxTests {
    @Test("Streams are byte-exact, statuses and signals are passed on, and nothing is left", arguments: [false, true])
    func programs(isKept: Bool) throws {
        let warm = try WarmHome(isKept: isKept)
        let (files, processes) = (warm.files, Set(warm.processes))
        try streams(warm, bytes: isKept ? 1 << 20 : 100 << 20)
        try statuses(warm)
        try signals(warm)
        try time(warm)
        try terminal(warm)
        if !isKept {
            let cards = try warm.run(["ls", "/sys/class/net"])
            #expect(cards.status() == 0 && cards.output == Data("lo\n".utf8))
        }
        let isClean = MachineHome.eventually { Set(warm.processes) == processes }
        #expect(isClean)
        #expect(warm.files.symmetricDifference(files).isEmpty)
        if !isKept { try otherBoot(warm) }
    }

    /// A machine that boots otherwise doesn't go on from one that was saved.
    private func otherBoot(_ warm: WarmHome) throws {
        let image = try ImageStore(root: "/").locate(WarmHome.image)
        let line = image.manifest.commandLine + " roost.mark=1"
        let run = try warm.run(["cat", "/proc/cmdline"], ["--append", line])
        #expect(run.status(within: 300) == 0 && String(decoding: run.output, as: UTF8.self).contains("roost.mark=1"))
        let plain = try warm.run(["cat", "/proc/cmdline"])
        #expect(plain.status() == 0 && !String(decoding: plain.output, as: UTF8.self).contains("roost.mark"))
    }

    private func streams(_ warm: WarmHome, bytes: Int) throws {
        var number: UInt64 = 1
        var input = Data(capacity: bytes)
        while input.count < bytes {
            number = number &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
            withUnsafeBytes(of: number ^ number >> 31) { input.append(contentsOf: $0) }
        }
        let run = try warm.run(["tee", "/dev/stderr"], input: input)
        #expect(run.status(within: 300) == 0)
        #expect(run.output == input, "\(run.output.count) bytes of output")
        #expect(run.errors == input, "\(run.errors.count) bytes of errors")
    }

    private func statuses(_ warm: WarmHome) throws {
        for (command, status) in [
            ("exit 7", 7), ("kill -9 $$", 137), ("kill -15 $$", 143), ("exec /nonexistent", 127), ("exec /etc", 126),
        ] {
            #expect(try warm.run(["sh", "-c", command]).status() == Int32(status), "\(command)")
        }
        #expect(try warm.run(["/nonexistent"]).status() == 127)
        #expect(try warm.run(["/etc/passwd"]).status() == 126)
    }

    private func signals(_ warm: WarmHome) throws {
        let script = "trap 'echo got; exit 9' TERM; echo ready; while :; do sleep 0.1; done"
        let run = try warm.run(["sh", "-c", script])
        #expect(run.expect("ready\n"))
        run.signal(SIGTERM)
        #expect(run.status() == 9)
        #expect(run.output == Data("ready\ngot\n".utf8))
    }

    private func time(_ warm: WarmHome) throws {
        let run = try warm.run(["sleep", "4711"], ["--timeout", "1"])
        #expect(run.status() == 124)
        #expect(String(decoding: run.errors, as: UTF8.self).contains("was ended after its 1"))
        guard warm.words.contains("exec") else { return }
        let isGone = try MachineHome.eventually(30) {
            let look = try warm.run(["sh", "-c", "for f in /proc/[0-9]*/cmdline; do tr '\\0' ' ' <$f; done 2>&1"])
            return look.status() == 0 && look.output.range(of: Data("sleep 4711".utf8)) == nil
        }
        #expect(isGone, "the program goes on in the guest")
    }

    @Test("Readers that go, that don't read, and that have no room", arguments: [false, true])
    func readers(isKept: Bool) throws {
        let warm = try WarmHome(isKept: isKept)
        let python = "import sys\ntry:\n  while True: print('y' * 99)\nexcept BrokenPipeError: sys.exit(5)"
        for (program, status) in [(["yes"], 141), (["python3", "-u", "-c", python], 5)] {
            let run = try warm.shell(program, into: "head -c 100000 | wc -c", waits: true)
            #expect(run.status() == Int32(status))
            #expect(run.output == Data("100000\n".utf8))
        }
        let unread = try warm.shell(["yes"], ["--timeout", "2"], into: "sleep 30")
        #expect(unread.status(within: 20) == 124, "the time is over, whoever reads")
        let full = try warm.shell(["echo", "hi"], into: "cat", output: ">/dev/full")
        #expect(full.status() == 94)
        #expect(String(decoding: full.errors, as: UTF8.self).contains("No space left on device"))
    }

    @Test("A program gets no more memory than its machine has")
    func memory() throws {
        let warm = try WarmHome(isKept: false)
        let greedy = "x=[]\nwhile True: x.append(bytearray(b'x')*(1<<20)); print(len(x), flush=True)"
        let run = try warm.run(["python3", "-c", greedy], ["--memory", "160M"])
        #expect(run.status() == 137)
        let numbers = String(decoding: run.output, as: UTF8.self).split(separator: "\n").compactMap { Int($0) }
        #expect((20..<160).contains(numbers.last ?? 0), "\(numbers.suffix(2)) MiB")
    }

    private func terminal(_ warm: WarmHome) throws {
        let script = "trap 'stty size' WINCH; stty size; echo ready; while :; do sleep 0.1; done"
        let session = try TerminalSession(
            warm.words + ["--", "sh", "-c", script], environment: warm.home.environment)
        let first = session.expect("ready", seconds: 60)
        #expect(first?.contains("25 100") == true, "\(session.transcript)")
        session.resize(rows: 40, columns: 120)
        #expect(session.expect("40 120", seconds: 30) != nil, "\(session.transcript)")
        // Keys reach the guest's terminal: that makes a signal of this one.
        session.send([3])
        #expect(session.wait(seconds: 60) == 130, "\(session.transcript)")
    }
}
