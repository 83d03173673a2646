// Machines that are kept: real processes, guests of a few instructions.
import Foundation
import Glibc
import HostOS
import MachineTesting
import Testing

@Suite("Machines that are kept", .enabled("needs the built command") { TerminalSession.roost != nil })
struct KeptMachineTests {
    /// Echoes what comes on the serial port, for ever.
    static let echo: [UInt8] = [
        0x66, 0xBA, 0xFD, 0x03, 0xEC, 0xA8, 0x01, 0x74, 0xF7, 0x66, 0xBA, 0xF8, 0x03, 0xEC, 0xEE, 0xEB, 0xEF,
    ]
    /// Waits for the power button (PM1_STS bit 8) and switches off.
    static let obedient: [UInt8] =
        [0x66, 0xBA, 0x00, 0x06, 0x66, 0xED, 0xF6, 0xC4, 0x01, 0x74, 0xF5] + TinyGuest.powerOff

    @Test("A machine runs in the background, is listed, stopped by its power button, started again, deleted")
    func life() throws {
        let home = try MachineHome()
        try home.start("one", try home.kernel(TinyGuest.say("up") + Self.obedient))
        #expect(try home.status("one") == "running")
        #expect(try home.succeed("list", "-q") == "one\n")
        try home.fail("start", "one", status: 94, "runs already")
        try home.fail("delete", "one", "--yes", status: 94, "roost stop one")
        try home.succeed("stop", "one")
        #expect(try home.status("one") == "stopped")
        #expect(try home.events("one") == ["started", "powerButton", "ended"])
        #expect(try home.succeed("logs", "one") == "up")
        try home.fail("stop", "one", status: 94, "roost start one")
        try home.succeed("rename", "one", "two")
        try home.fail("info", "one", status: 94, "there is two")
        #expect(try home.succeed("start", "two") == "two\n")
        #expect(try home.status("two") == "running")
        try home.succeed("stop", "two")
        #expect(try home.succeed("logs", "two", "--lines", "1") == "upup")
        try home.fail("delete", "two", status: 64, "--yes")
        try home.succeed("delete", "two", "--yes")
        #expect(try home.list().isEmpty)
        #expect(try FileManager.default.contentsOfDirectory(atPath: home.folder + "/data/machines").isEmpty)
    }

    @Test("A machine answers whatever the runtime folder is or becomes, and however long its folder's path is")
    func reachable() throws {
        let home = try MachineHome()
        let data = home.folder + "/" + String(repeating: "long", count: 40)
        try FileManager.default.createDirectory(
            atPath: data, withIntermediateDirectories: true, attributes: [.posixPermissions: 0o700])
        func roost(_ arguments: String..., runtime: String = "") throws -> RoostRun {
            try RoostRun(arguments, environment: ["ROOST_HOME": data, "XDG_RUNTIME_DIR": runtime])
        }
        let kernel = try home.kernel(TinyGuest.say("up") + Self.obedient)
        let start = try roost(
            "run", "-d", "--name", "m", "--kernel", kernel, "--net", "none", "--memory", "32M", "--engine",
            "translator", runtime: home.folder + "/run")
        try #require(start.status == 0, "\(start.error)")
        defer { _ = try? roost("kill", "m") }
        try FileManager.default.removeItem(atPath: home.folder + "/run")
        #expect(try roost("pause", "m").status == 0)
        #expect(try roost("resume", "m", runtime: "/nonexistent").status == 0)
        let socket = data + "/machines/m/control.sock"
        var mode = stat()
        #expect(stat(socket, &mode) == 0 && mode.st_mode & 0o777 == 0o600)
        let stop = try roost("stop", "m")
        #expect(stop.status == 0, "\(stop.error)")
        #expect(!FileManager.default.fileExists(atPath: socket))
    }

    @Test("What a process that was killed has left of its control socket keeps no start, copy or export from its work")
    func staleSocket() throws {
        let home = try MachineHome()
        try home.start("m", try home.kernel(Self.obedient))
        try home.succeed("snapshot", "take", "m", "s")
        try home.succeed("kill", "m")
        let socket = try home.socket()
        #expect(FileManager.default.fileExists(atPath: socket))
        try home.succeed("export", "m", home.folder + "/m.tar")
        try home.succeed("clone", "m", "copy", "--snapshot", "s", "--no-start")
        #expect(!FileManager.default.fileExists(atPath: home.folder + "/data/machines/copy/control.sock"))
        try home.succeed("start", "m")
        #expect(try home.info("m")["running"] != nil)
        try home.succeed("stop", "m")
        #expect(!FileManager.default.fileExists(atPath: socket))
    }

    @Test(
        "A machine that runs gets another name: it is reset, snapshotted and restored under it, and tells events by it")
    func renamed() throws {
        let home = try MachineHome()
        try home.start("one", try home.kernel(TinyGuest.say("up") + Self.obedient))
        try home.start("other", try home.kernel(Self.echo, "other"))
        try home.fail("rename", "one", "other", status: 94, "already")
        try home.succeed("rename", "one", "two")
        try home.fail("info", "one", status: 94, "there is other, two")
        #expect(try home.status("two") == "running")
        // A new machine of the old name is another one.
        try home.start("one", try home.kernel(TinyGuest.say("new") + Self.obedient, "new"))
        try home.succeed("reset", "two")
        let isReset = try MachineHome.eventually { try home.succeed("logs", "two") == "upup" }
        #expect(isReset)
        try home.succeed("snapshot", "take", "two", "s")
        #expect(try home.succeed("snapshot", "list", "two", "-q") == "s\n")
        try home.succeed("rename", "two", "three")
        try home.succeed("restore", "three", "s", "--yes")
        try home.succeed("rename", "three", "four")
        try home.succeed("stop", "four")
        #expect(try home.succeed("logs", "one") == "new")
        #expect(try home.succeed("snapshot", "list", "one", "-q").isEmpty)
        let names = try home.succeed("events", "four").split(separator: "\n").compactMap {
            (try JSONSerialization.jsonObject(with: Data($0.utf8)) as? [String: Any])?["machine"] as? String
        }
        #expect(names.first == "one" && names.contains("two") && names.contains("three") && names.last == "four")
    }

    @Test("What a process that was killed had half written goes at the next start, and nothing else")
    func halfWritten() throws {
        let home = try MachineHome()
        try home.start("m", try home.kernel(Self.obedient))
        try home.succeed("snapshot", "take", "m", "s")
        try home.succeed("stop", "m")
        let folder = home.folder + "/data/machines/m"
        let left = ["machine.json.4711.new", "run.json.1.new", "snapshots/s/record.json.99.new"]
        let others = ["mine.new", "machine.json.old", "4711.new"]
        for name in left + others { try Data("x".utf8).write(to: URL(fileURLWithPath: folder + "/" + name)) }
        try home.succeed("start", "m")
        for name in left { #expect(!FileManager.default.fileExists(atPath: folder + "/" + name), "\(name)") }
        for name in others { #expect(FileManager.default.fileExists(atPath: folder + "/" + name), "\(name)") }
        try home.succeed("stop", "m")
    }

    @Test("Limits are set while a machine runs and while it doesn't, and are kept")
    func limits() throws {
        let home = try MachineHome()
        try home.succeed(
            "run", "-d", "--name", "m", "--kernel", try home.kernel(Self.obedient), "--net", "user,rate=1M", "--memory",
            "32M", "--engine", "translator")
        func limit() throws -> [String: Any] {
            let manifest = try #require(try home.info("m")["manifest"] as? [String: Any])
            let machine = try #require(manifest["machine"] as? [String: Any])
            return try #require((machine["networks"] as? [[String: Any]])?.last)
        }
        #expect(try limit()["bitsPerSecond"] as? Int == 1_000_000 && limit()["burst"] as? Int == 65536)
        try home.succeed("set", "m", "--net-rate", "80M")
        #expect(try limit()["bitsPerSecond"] as? Int == 80_000_000 && limit()["burst"] as? Int == 1_000_000)
        try home.succeed("set", "m", "--net-burst", "2M")
        try home.succeed("set", "m", "--net-rate", "8k")
        #expect(try limit()["bitsPerSecond"] as? Int == 8000 && limit()["burst"] as? Int == 2 << 20)
        try home.fail("set", "m", "--memory", "64M", "--net-rate", "1M", status: 94, "runs")
        try home.fail("set", "m", "--net-rate", "1T", status: 64, "--net-rate")
        try home.succeed("set", "m", "--net-rate", "0")
        #expect(try limit()["bitsPerSecond"] == nil)
        try home.succeed("stop", "m")
        try home.succeed("set", "m", "--net-rate", "1G", "--memory", "64M")
        #expect(try limit()["bitsPerSecond"] as? Int == 1_000_000_000)
    }

    @Test("The console is attached to by several, shows what came before, and takes input byte for byte")
    func console() throws {
        let home = try MachineHome()
        try home.start("echo", try home.kernel(TinyGuest.say("ready") + Self.echo))
        let first = try TerminalSession(["console", "echo"], environment: home.environment)
        #expect(first.expect("ready", seconds: 30) != nil)
        let second = try TerminalSession(["console", "echo"], environment: home.environment)
        #expect(second.expect("ready", seconds: 30) != nil)
        for _ in 0..<100 where !first.isRaw { usleep(10_000) }
        first.send(Array("from-one".utf8) + [3])
        #expect(first.expect("from-one\u{3}", seconds: 30) != nil)
        #expect(second.expect("from-one\u{3}", seconds: 30) != nil)
        // Ctrl-A d leaves; the machine and the other stay.
        first.send([1, 0x64])
        #expect(first.wait(seconds: 30) == 0)
        #expect(!first.isRaw)
        second.send(Array("from-two".utf8))
        #expect(second.expect("from-two", seconds: 30) != nil)
        #expect(try home.status("echo") == "running")
        // A pipe's input is lost nowhere, though the guest takes it byte by byte.
        let text = (0..<4000).map { "line \($0)\n" }.joined()
        let pipe = try RoostRun(
            ["logs", "echo", "--lines", "0"], environment: home.environment)
        #expect(pipe.status == 0)
        let feeder = Process()
        feeder.executableURL = URL(fileURLWithPath: try #require(TerminalSession.roost))
        feeder.arguments = ["console", "echo", "--history", "0"]
        feeder.environment = ProcessInfo.processInfo.environment.merging(home.environment) { $1 }
        let input = Pipe()
        feeder.standardInput = input
        feeder.standardOutput = FileHandle.nullDevice
        try feeder.run()
        input.fileHandleForWriting.write(Data(text.utf8))
        let isThere = try MachineHome.eventually(30) { try home.succeed("logs", "echo").hasSuffix(text) }
        #expect(isThere)
        feeder.terminate()
        // The end of the machine is the end of those who watch.
        try home.succeed("stop", "echo", "--force", "--timeout", "0")
        #expect(second.wait(seconds: 30) == 0)
        #expect(second.transcript.contains("has ended"))
    }

    @Test("A guest that ignores its power button goes on, and its last lines are shown; --force ends it")
    func stubborn() throws {
        let home = try MachineHome()
        try home.start("stubborn", try home.kernel(TinyGuest.say("hello\nlast words\n") + Self.echo))
        try home.fail("stop", "stubborn", "--timeout", "1", status: 94, "last words")
        #expect(try home.status("stubborn") == "running")
        try home.succeed("stop", "stubborn", "--timeout", "0", "--force")
        #expect(try home.status("stubborn") == "stopped")
    }

    @Test("A process that is killed leaves a machine that is said to be killed, and starts again")
    func killed() throws {
        let home = try MachineHome()
        try home.start("k", try home.kernel(TinyGuest.say("on") + Self.echo))
        let run = try #require(try home.info("k")["latestRun"] as? [String: Any])
        kill(Int32(try #require(run["process"] as? Int)), SIGKILL)
        let isKilled = try MachineHome.eventually { try home.status("k") == "killed" }
        #expect(isKilled)
        try home.succeed("start", "k")
        #expect(try home.status("k") == "running")
        try home.succeed("kill", "k")
        #expect(try home.status("k") == "killed")
        try home.succeed("delete", "k", "--yes")
    }

    @Test("A paused machine takes nothing in, and goes on where it stopped")
    func paused() throws {
        let home = try MachineHome()
        try home.start("p", try home.kernel(TinyGuest.say("on") + Self.echo))
        try home.succeed("pause", "p")
        #expect(try home.status("p") == "paused")
        try home.fail("stop", "p", status: 64, "roost resume")
        try home.fail("exec", "p", "--", "true", status: 64, "roost resume")
        let connection = try LocalConnection(to: try home.socket())
        let request = "{\"version\":1,\"verb\":\"console\",\"parameters\":{\"bytes\":0}}\nhello"
        #expect(connection.write(Array(request.utf8)) == nil)
        #expect(connection.readLine(limit: 1000) == "{\"result\":{},\"version\":1}")
        #expect(try home.succeed("logs", "p") == "on")
        try home.succeed("resume", "p")
        let isEchoed = try MachineHome.eventually { try home.succeed("logs", "p") == "onhello" }
        #expect(isEchoed)
        #expect(try home.events("p") == ["started", "paused", "resumed"])
        try home.succeed("pause", "p")
        try home.succeed("kill", "p")
        #expect(try home.status("p") == "killed")
    }

    @Test("A machine made from an image keeps what the image was, whatever becomes of the image")
    func images() throws {
        let home = try MachineHome()
        let disk = Data((0..<1 << 20).map { UInt8(truncatingIfNeeded: $0 &* 13) })
        let image = try home.image(TinyGuest.powerOff, disk: disk)
        try Data("#cloud-config\n".utf8).write(to: URL(fileURLWithPath: home.folder + "/user-data"))
        let options = ["--net", "none", "--memory", "32M", "--cloud-init", home.folder + "/user-data", image]
        let run = try RoostRun(["run", "--name", "m"] + options, environment: home.environment)
        #expect(run.status == 0, "\(run.error)")
        #expect(try home.status("m") == "stopped")
        let folder = home.folder + "/data/machines/m"
        func number(_ path: String) throws -> UInt64? {
            try FileManager.default.attributesOfItem(atPath: path)[.systemFileNumber] as? UInt64
        }
        let base = try number(folder + "/base.raw")
        #expect(try base == number(image + "/disk.raw"))
        #expect(try Data(contentsOf: URL(fileURLWithPath: folder + "/cidata.iso")).count % 2048 == 0)
        // A run without a name writes to the image's disk: that becomes a file of its own first.
        let unnamed = try RoostRun(["run"] + options, environment: home.environment)
        #expect(unnamed.status == 0, "\(unnamed.error)")
        #expect(try number(image + "/disk.raw") != base && number(folder + "/base.raw") == base)
        #expect(try Data(contentsOf: URL(fileURLWithPath: image + "/disk.raw")) == disk)
        try FileManager.default.removeItem(atPath: image)
        try home.succeed("start", "m")
        try home.succeed("disk", "convert", "-f", "raw", folder + "/disk.qcow2", home.folder + "/out.raw")
        #expect(try Data(contentsOf: URL(fileURLWithPath: home.folder + "/out.raw")) == disk)
    }

    @Test("A reset starts the guest again")
    func reset() throws {
        let home = try MachineHome()
        try home.start("r", try home.kernel(TinyGuest.say("R") + Self.echo))
        try home.succeed("reset", "r")
        let isReset = try MachineHome.eventually { try home.succeed("logs", "r") == "RR" }
        #expect(isReset)
        #expect(try home.events("r") == ["started", "reset"])
    }

    @Test("What can't be started is told as in the foreground, and leaves nothing behind")
    func failures() throws {
        let home = try MachineHome()
        let kernel = try home.kernel(Self.echo)
        try home.fail("run", "-d", "--name", "m", "--kernel", "/nonexistent", status: 66, "No such file")
        try home.fail("run", "-d", "--kernel", kernel, "--disk", "/nonexistent", status: 68, "no such file")
        try home.fail("run", "-d", "--name", "../m", "--kernel", kernel, status: 64, "cannot be a machine's name")
        #expect(try home.list().isEmpty)
        try home.start("m", kernel)
        try home.fail("run", "-d", "--name", "m", "--kernel", kernel, status: 94, "already")
        try home.fail("stop", "other", status: 94, "there is m")
    }

    @Test("A machine without a name gets one; --rm deletes it when it stops")
    func nameless() throws {
        let home = try MachineHome()
        let kernel = try home.kernel(Self.obedient)
        let run = try home.roost("run", "-d", "--rm", "--kernel", kernel, "--net", "none", "--memory", "32M")
        #expect(run.status == 0, "\(run.error)")
        let name = run.output.trimmingCharacters(in: .newlines)
        #expect(try home.status(name) == "running")
        try home.succeed("stop", name)
        #expect(try home.list().isEmpty)
    }

    @Test("Clients that send garbage, too much or nothing, or never read, do a machine no harm")
    func hostileClients() throws {
        let home = try MachineHome()
        try home.start("h", try home.kernel(TinyGuest.say("h") + Self.echo))
        let path = try home.socket()
        var mode = stat()
        #expect(stat(path, &mode) == 0 && mode.st_mode & 0o777 == 0o600)
        var kept: [LocalConnection] = []
        let requests = [
            "", "\n", "{}\n", "{\"version\":1}\n", "{\"version\":2,\"verb\":\"report\"}\n",
            "{\"version\":1,\"verb\":\"nothing\"}\n", "{\"version\":1,\"verb\":\"balloon\"}\n",
            "{\"version\":1,\"verb\":\"balloon\",\"parameters\":{\"bytes\":-1}}\n", "\u{0}\u{1}\u{2}\n",
            String(repeating: "[", count: 60_000) + "\n", String(repeating: "x", count: 1 << 20),
            "{\"version\":1,\"verb\":\"console\",\"parameters\":{\"bytes\":18446744073709551615}}\n",
            "{\"version\":1,\"verb\":\"events\",\"parameters\":{}}\n",
        ]
        for request in requests {
            let connection = try LocalConnection(to: path)
            _ = connection.write(Array(request.utf8))
            kept.append(connection)
        }
        #expect(try home.info("h")["running"] != nil)
        for _ in 0..<100 { if let connection = try? LocalConnection(to: path) { kept.append(connection) } }
        kept.removeAll()
        let isBack = try MachineHome.eventually { try home.info("h")["running"] != nil }
        #expect(isBack)
        #expect(try home.status("h") == "running")
    }

    @Test("A manifest that is damaged or newer is refused with a reason, and its machine can be deleted")
    func manifests() throws {
        let home = try MachineHome()
        try home.start("m", try home.kernel(Self.obedient))
        try home.succeed("stop", "m")
        let path = home.folder + "/data/machines/m/machine.json"
        let text = try String(contentsOfFile: path, encoding: .utf8)
        for (old, new, words) in [
            ("\"version\" : 1", "\"version\" : 2", "newer"), ("\"kernel\"", "\"kernle\"", "kernel"),
            ("translator", "warp", "engine"), ("{", "", "not a machine's manifest"),
        ] {
            try text.replacingOccurrences(of: old, with: new).write(toFile: path, atomically: true, encoding: .utf8)
            try home.fail("start", "m", status: 94, words)
            #expect(try home.status("m") == "damaged")
        }
        try home.succeed("delete", "m", "--yes")
    }
}
