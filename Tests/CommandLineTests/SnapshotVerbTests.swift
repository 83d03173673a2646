// What `roost restore`, `clone`, `snapshot delete` and `export` make of machines, by real processes.
import Foundation
import HostOS
import MachineTesting
import Testing

@Suite("Restores, clones and exports", .enabled("needs the built command") { TerminalSession.roost != nil })
struct SnapshotVerbTests {
    /// What a machine is made of.
    private func configuration(_ home: MachineHome, _ name: String) throws -> [String: Any] {
        let manifest = try #require(try home.info(name)["manifest"] as? [String: Any])
        return try #require(manifest["machine"] as? [String: Any])
    }

    private func networks(_ home: MachineHome, _ name: String) throws -> String {
        let cards = try configuration(home, name)["networks"] ?? []
        return String(decoding: try JSONSerialization.data(withJSONObject: cards, options: .sortedKeys), as: UTF8.self)
    }

    private func text(_ home: MachineHome, _ path: String) throws -> String {
        try String(contentsOfFile: home.folder + "/data/machines/" + path, encoding: .utf8)
    }

    @Test("A machine that goes when it stops is restored while it runs, and goes when it stops then")
    func temporary() throws {
        let home = try MachineHome()
        try home.start("m", try home.kernel(TinyGuest.say("up") + KeptMachineTests.obedient), "--rm")
        try home.succeed("snapshot", "take", "m", "s")
        try home.succeed("restore", "m", "s", "--yes")
        #expect(try home.status("m") == "running")
        #expect(try home.succeed("snapshot", "list", "m", "-q") == "s\n")
        try home.succeed("stop", "m")
        #expect(try home.list().isEmpty)
    }

    @Test("A clone with memory that is restored is told again that it is one, and keeps its own network")
    func clone() throws {
        let home = try MachineHome()
        let port = try freeLoopbackPort()
        try home.succeed(
            "run", "-d", "--name", "m", "--kernel", try home.kernel(KeptMachineTests.obedient), "--memory", "32M",
            "--engine", "translator", "--net", "user,forward=tcp:\(port):22,pcap=\(home.folder)/packets")
        try home.succeed("snapshot", "take", "m", "s")
        #expect(try home.succeed("clone", "m", "c", "--snapshot", "s", "--no-start") == "c\n")
        let before = try networks(home, "c")
        #expect(!before.contains("\(port)") && !before.contains("packets"), "\(before)")
        for _ in 0..<2 {
            try home.succeed("restore", "c", "s", "--yes", "--no-start")
            #expect(try networks(home, "c") == before)
            #expect(try text(home, "c/goes-on.json").contains("\"isClone\" : true"))
        }
        // Its port is the first one's, which has it.
        try home.succeed("start", "c")
        try home.succeed("stop", "c")
        try home.succeed("restore", "m", "s", "--yes", "--no-start")
        #expect(try text(home, "m/goes-on.json").contains("\"isClone\" : false"))
        #expect(try networks(home, "m").contains("\(port)"))
    }

    @Test("A clone that can't be made leaves no snapshot behind")
    func taken() throws {
        let home = try MachineHome()
        try home.start("m", try home.kernel(KeptMachineTests.obedient))
        try home.fail("clone", "m", "m", status: 94, "already")
        try home.fail("clone", "m", "../c", status: 64, "cannot be a machine's name")
        #expect(try home.succeed("snapshot", "list", "m", "-q").isEmpty)
        try home.succeed("stop", "m")
    }

    @Test("What goes on from a snapshot keeps its processors and memory until it has")
    func sizes() throws {
        let home = try MachineHome()
        try home.start("m", try home.kernel(KeptMachineTests.obedient))
        try home.succeed("snapshot", "take", "m", "s")
        try home.succeed("restore", "m", "s", "--yes", "--no-start")
        for option in [("--memory", "64M"), ("--memory", "32M,max=160M"), ("--cpus", "2"), ("--cpus", "1,max=2")] {
            try home.fail("set", "m", option.0, option.1, status: 64, "goes on from a snapshot")
        }
        try home.succeed("set", "m", "--memory", "32M", "--balloon", "1M")
        try home.succeed("start", "m")
        try home.succeed("stop", "m")
        try home.succeed("set", "m", "--memory", "64M")
    }

    @Test("A balloon that is set while the machine runs is kept; what can't be is refused")
    func balloon() throws {
        let home = try MachineHome()
        try home.start("m", try home.kernel(KeptMachineTests.obedient))
        try home.succeed("set", "m", "--balloon", "8M")
        #expect(try configuration(home, "m")["balloon"] as? Int == 8 << 20)
        try home.fail("set", "m", "--balloon", "8000T", status: 64, "balloon")
        #expect(try configuration(home, "m")["balloon"] as? Int == 8 << 20)
        try home.succeed("stop", "m")
        try home.fail("set", "m", "--memory", "32M,max=8000T", status: 64, "maximumMemory")
        #expect(try home.status("m") == "stopped")
    }

    @Test("A machine that another command has is told from one that runs")
    func inUse() throws {
        let home = try MachineHome()
        try home.start("m", try home.kernel(KeptMachineTests.obedient))
        try home.succeed("stop", "m")
        var lock: SharedDescriptor? = SharedDescriptor(
            try DurableFile.openLock(home.folder + "/data/machines/m/lock"))
        let isTaken = try lock?.descriptor.lock(exclusive: true)
        // Given back before the home goes, which kills whoever has a machine: here, the tests.
        defer {
            lock = nil
            withExtendedLifetime(home) {}
        }
        #expect(isTaken == true)
        let words = "another command is at work on it"
        try home.fail("start", "m", status: 94, words)
        try home.fail("stop", "m", status: 94, words)
        try home.fail("set", "m", "--memory", "64M", status: 94, words)
        try home.fail("delete", "m", "--yes", status: 94, words)
    }

    @Test("A snapshot with memory that is deleted while it is exported comes out whole")
    func exported() throws {
        let home = try MachineHome()
        // Compressing this takes longer than deleting the snapshot.
        let random = try FileHandle(forReadingFrom: URL(fileURLWithPath: "/dev/urandom"))
        let noise = try #require(try random.read(upToCount: 48 << 20))
        try home.succeed(
            "run", "-d", "--name", "m", "--net", "none", "--memory", "16M", "--engine", "translator",
            try home.image(TinyGuest.watchful, disk: noise))
        try home.succeed("snapshot", "take", "m", "s")
        let path = home.folder + "/s.tar"
        let export = Process()
        export.executableURL = URL(fileURLWithPath: try #require(TerminalSession.roost))
        export.arguments = ["export", "m", path, "--snapshot", "s"]
        export.environment = ProcessInfo.processInfo.environment.merging(home.environment) { $1 }
        export.standardOutput = FileHandle.nullDevice
        try export.run()
        let image = "\(path).\(export.processIdentifier).exporting/disk0.qcow2"
        let hasBegun = MachineHome.eventually { FileManager.default.fileExists(atPath: image) || !export.isRunning }
        #expect(hasBegun)
        try home.succeed("snapshot", "delete", "m", "s", "--yes")
        export.waitUntilExit()
        #expect(export.terminationStatus == 0)
        #expect(try home.succeed("snapshot", "list", "m", "-q").isEmpty)
        let folder = home.folder + "/data/machines/m/snapshots"
        #expect(try FileManager.default.contentsOfDirectory(atPath: folder).isEmpty)
        try home.succeed("import", path, "--name", "c")
        try home.succeed("start", "c")
        let goesOn = try MachineHome.eventually { try home.succeed("logs", "c").count > 2 }
        #expect(goesOn)
        #expect(try !home.succeed("logs", "c").contains("X"))
    }
}
