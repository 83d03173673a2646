// Snapshots of kept machines whose processes are killed at any moment, or whose disk is full. ROOST_SNAPSHOT_KILLS says
// how many moments, ROOST_FUZZ_SEED which.
import Foundation
import Glibc
import Testing

/// A machine that is kept, whose guest looks at its memory for ever.
private final class WatchfulMachine {
    let home: MachineHome
    var folder: String { home.folder + "/data/machines/m" }

    /// Makes it, running.
    init(_ home: MachineHome, run prefix: [String] = []) throws {
        self.home = home
        let image = try home.image(TinyGuest.watchful)
        let roost = try #require(TerminalSession.roost)
        let words =
            prefix + [
                roost, "run", "-d", "--name", "m", "--net", "none", "--memory", "16M", "--engine", "translator", image,
            ]
        #expect(try launch(words).status == 0)
    }

    /// Starts a program; nothing of it is shown.
    func begin(_ words: [String]) throws -> Process {
        let process = Process()
        process.executableURL = URL(fileURLWithPath: "/usr/bin/env")
        process.arguments = words
        process.environment = ProcessInfo.processInfo.environment.merging(home.environment) { $1 }
        process.standardInput = FileHandle.nullDevice
        process.standardOutput = FileHandle.nullDevice
        process.standardError = FileHandle.nullDevice
        try process.run()
        return process
    }

    /// Runs a program to its end; what it printed on standard output comes by a file.
    func launch(_ words: [String]) throws -> (status: Int32, output: String) {
        let path = home.folder + "/output"
        let process = try begin(["sh", "-c", "exec \"$@\" >\"$0\" 2>&1", path] + words)
        process.waitUntilExit()
        return (process.terminationStatus, (try? String(contentsOfFile: path, encoding: .utf8)) ?? "")
    }

    func roost(_ words: String...) throws -> Process { try begin([try #require(TerminalSession.roost)] + words) }

    /// The process that runs it.
    func process() throws -> Int32? {
        ((try home.info("m")["latestRun"] as? [String: Any])?["process"] as? Int).map(Int32.init)
    }

    var snapshots: Set<String> {
        get throws { Set(try home.succeed("snapshot", "list", "m", "-q").split(separator: "\n").map(String.init)) }
    }

    var log: String { get throws { try home.succeed("logs", "m") } }

    /// Whether the guest goes on, and has looked at all of its memory.
    func goesOn() throws -> Bool {
        let before = try log.count
        return try MachineHome.eventually { try log.count >= before + 2 } && !log.contains("X")
    }

    /// Fills the disk's start; nothing runs.
    func fillDisk(_ pattern: Int) throws {
        let result = try launch(["qemu-io", "-c", "write -P \(pattern) 0 64k", folder + "/disk.qcow2"])
        #expect(result.status == 0, "\(result.output)")
    }

    /// Whether the disk's start is filled so.
    func hasDisk(_ pattern: Int) throws -> Bool {
        let result = try launch(["qemu-io", "-r", "-c", "read -P \(pattern) 0 64k", folder + "/disk.qcow2"])
        return result.status == 0 && !result.output.contains("verification failed")
    }

    /// qemu-img's complaints about disks and layers; a process that was killed may hold them for a moment.
    func checkDisks() throws {
        for name in try FileManager.default.contentsOfDirectory(atPath: folder)
        // What a killed process was making has a name with a dot, and may stand on a layer that is gone.
        where name.hasSuffix(".qcow2") && !name.hasPrefix(".") {
            var result: (status: Int32, output: String) = (1, "")
            _ = try MachineHome.eventually {
                result = try launch(["qemu-img", "check", folder + "/" + name])
                return !result.output.contains("lock")
            }
            #expect(result.status == 0, "\(name): \(result.output)")
        }
    }

    /// What there is of snapshots beside those that are whole.
    func remains() throws -> [String] {
        try FileManager.default.contentsOfDirectory(atPath: folder + "/snapshots").filter { $0.hasPrefix(".") }
    }
}

/// Reproducible numbers (SplitMix64).
private struct Numbers: RandomNumberGenerator {
    var state: UInt64

    mutating func next() -> UInt64 {
        state &+= 0x9E37_79B9_7F4A_7C15
        var z = state
        z = (z ^ (z >> 30)) &* 0xBF58_476D_1CE4_E5B9
        z = (z ^ (z >> 27)) &* 0x94D0_49BB_1331_11EB
        return z ^ (z >> 31)
    }
}

@Suite(
    "Snapshots whose processes are killed, and full disks", .serialized,
    .enabled("needs the built command and qemu-img") {
        TerminalSession.roost != nil && FileManager.default.isExecutableFile(atPath: "/usr/bin/qemu-io")
    })
struct SnapshotKillTests {
    private static let environment = ProcessInfo.processInfo.environment
    private static let moments = environment["ROOST_SNAPSHOT_KILLS"].flatMap { Int($0) } ?? 20
    private static let seed = environment["ROOST_FUZZ_SEED"].flatMap { UInt64($0) } ?? 1

    @Test("Killed while a snapshot is taken, restored or deleted: all that are listed are whole")
    func killed() throws {
        var random = Numbers(state: Self.seed)
        let machine = try WatchfulMachine(try MachineHome())
        let home = machine.home
        // What the disk held when a snapshot was taken.
        var patterns: [String: Int] = [:]
        var counts: [String: Int] = [:]
        for moment in 0..<Self.moments {
            _ = try home.roost("kill", "m")
            let listed = try machine.snapshots
            let pattern = 1 + moment % 250
            try machine.fillDisk(pattern)
            let isRunning = Bool.random(using: &random)
            if isRunning { try home.succeed("start", "m") }
            let worker = isRunning ? try machine.process() : nil

            var verb = ["take", "restore", "delete"].randomElement(using: &random) ?? "take"
            if listed.isEmpty { verb = "take" } else if listed.count >= 4 { verb = "delete" }
            let chosen = verb == "take" ? "s\(moment)" : listed.sorted().randomElement(using: &random) ?? ""
            if verb == "take" { patterns[chosen] = pattern }
            let command =
                switch verb {
                case "take": try machine.roost("snapshot", "take", "m", chosen)
                case "restore": try machine.roost("restore", "m", chosen, "--yes", "--no-start")
                default: try machine.roost("snapshot", "delete", "m", chosen, "--yes")
                }
            usleep(UInt32.random(in: 0..<150_000, using: &random))
            let wasOver = !command.isRunning
            if let worker, verb != "restore" { kill(worker, SIGKILL) }
            if worker == nil || verb == "restore" || Bool.random(using: &random) {
                kill(command.processIdentifier, SIGKILL)
            }
            command.waitUntilExit()
            _ = try home.roost("kill", "m")

            let now = try machine.snapshots
            let what = "moment \(moment) of seed \(Self.seed): \(verb) \(chosen)\(isRunning ? ", running" : "")"
            counts["\(verb)\(wasOver ? ", over" : now == listed ? ", undone" : ", done")", default: 0] += 1
            let others = listed.subtracting([chosen])
            #expect(now.subtracting([chosen]) == others, "\(what)")
            if verb == "restore" { #expect(now == listed, "\(what)") }
            if wasOver && verb != "restore" { #expect(now.contains(chosen) == (verb == "take"), "\(what)") }
            for name in now.sorted() {
                try home.succeed("restore", "m", name, "--yes", "--no-start")
                #expect(try machine.hasDisk(patterns[name] ?? 0), "\(what); \(name)'s disk")
            }
            try machine.checkDisks()
            try home.succeed("start", "m")
            #expect(try machine.goesOn(), "\(what)")
            if !now.isEmpty { #expect(try machine.remains().isEmpty, "\(what)") }
        }
        print(
            "kill -9 at \(Self.moments) moments: \(counts.sorted { $0.key < $1.key }.map { "\($0.key) \($0.value)" })")
    }

    @Test("A limit of file sizes: the machine goes on, and no snapshot is left")
    func limited() throws {
        let machine = try WatchfulMachine(try MachineHome())
        // Its memory is a file too, and as long as the snapshot's: the limit comes when that is made.
        let info = try JSONSerialization.jsonObject(with: Data(machine.home.roost("info", "m", "--json").output.utf8))
        let run = try #require((info as? [String: Any])?["latestRun"] as? [String: Any])
        let process = try #require(run["process"] as? Int)
        let limit = try machine.begin(["prlimit", "--pid", "\(process)", "--fsize=8388608"])
        limit.waitUntilExit()
        #expect(limit.terminationStatus == 0)
        try machine.home.fail("snapshot", "take", "m", "one", status: 94, "File too large")
        #expect(try machine.goesOn())
        #expect(try machine.snapshots.isEmpty)
        #expect(try machine.remains().isEmpty)
        try machine.home.succeed("kill", "m")
        try machine.checkDisks()
    }

    @Test(
        "No room while saving: the machine goes on, and what was there before is whole",
        .enabled("needs mount(8)") {
            canMount
        })
    func full() throws {
        let home = try MachineHome()
        #expect(try mounts("mount", "-t", "tmpfs", "-o", "size=10m,mode=0700", "roost", home.folder + "/data"))
        defer { _ = try? mounts("umount", "-l", home.folder + "/data") }
        let machine = try WatchfulMachine(home)
        defer { _ = try? home.roost("kill", "m") }
        #expect(try machine.goesOn())
        var taken: Set<String> = []
        while taken.count < 10 {
            let run = try home.roost("snapshot", "take", "m", "s\(taken.count)")
            if run.status != 0 {
                #expect(run.status == 94 && run.error.contains("No space left"), "\(run.error)")
                break
            }
            taken.insert("s\(taken.count)")
        }
        #expect(taken.count > 0 && taken.count < 10)
        #expect(try machine.goesOn())
        #expect(try machine.snapshots == taken)
        #expect(try machine.remains().isEmpty)
        for name in taken {
            try home.succeed("restore", "m", name, "--yes")
            #expect(try machine.goesOn())
        }
        try home.succeed("kill", "m")
        try machine.checkDisks()
    }

    private static let canMount: Bool = {
        let folder = "/tmp/roost-mount-\(UUID().uuidString.prefix(8))"
        guard mkdir(folder, 0o700) == 0 else { return false }
        defer { rmdir(folder) }
        return (try? mounts("mount", "-t", "tmpfs", "roost", folder)) == true
            && (try? mounts("umount", folder)) == true
    }()
}

/// Runs mount(8) or umount(8); whether it did it.
private func mounts(_ words: String...) throws -> Bool {
    let process = Process()
    process.executableURL = URL(fileURLWithPath: "/usr/bin/env")
    process.arguments = words
    process.standardError = FileHandle.nullDevice
    try process.run()
    process.waitUntilExit()
    return process.terminationStatus == 0
}
