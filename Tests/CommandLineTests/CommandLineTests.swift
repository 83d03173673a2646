// Bad input on the command line: one clear line on standard error and a status of its own kind.
import Foundation
import Glibc
import MachineTesting
import Testing

/// What one run of the executable printed and how it ended.
struct RoostRun {
    var output: String
    var error: String
    var status: Int32
    /// Why `--engine auto` took the translator, if it said so.
    var choice: String?
    private static let choicePrefix = "roost: the translator runs this machine: "

    /// Runs the executable that stands beside the test bundle.
    init(_ arguments: [String], input: Data? = nil, environment: [String: String] = [:]) throws {
        let folder = URL(fileURLWithPath: CommandLine.arguments[0]).deletingLastPathComponent()
        let process = Process()
        process.executableURL = folder.appendingPathComponent("roost")
        process.arguments = arguments
        if !environment.isEmpty {
            process.environment = ProcessInfo.processInfo.environment.merging(environment) { $1 }
        }
        // Files, not pipes: a program that another test starts meanwhile would inherit a pipe and keep it open.
        let scratch = FileManager.default.temporaryDirectory.appendingPathComponent("roost-run-\(UUID())")
        try FileManager.default.createDirectory(at: scratch, withIntermediateDirectories: true)
        defer { try? FileManager.default.removeItem(at: scratch) }
        let (out, err) = (scratch.appendingPathComponent("out"), scratch.appendingPathComponent("err"))
        for file in [out, err] { try Data().write(to: file) }
        process.standardOutput = try FileHandle(forWritingTo: out)
        process.standardError = try FileHandle(forWritingTo: err)
        let into = Pipe()
        process.standardInput = into
        try process.run()
        // Written beside the waiting: the guest may not read it all.
        let writer = into.fileHandleForWriting
        Thread.detachNewThread {
            if let input { try? writer.write(contentsOf: input) }
            try? writer.close()
        }
        let deadline = Date().addingTimeInterval(60)
        while process.isRunning && Date() < deadline { usleep(2000) }
        if process.isRunning { kill(process.processIdentifier, SIGKILL) }
        process.waitUntilExit()
        output = String(decoding: try Data(contentsOf: out), as: UTF8.self)
        let complaints = String(decoding: try Data(contentsOf: err), as: UTF8.self)
        // Why `--engine auto` took the translator is the host's affair; its own tests ask for it.
        choice = complaints.split(separator: "\n").map(String.init).first { $0.hasPrefix(Self.choicePrefix) }
        error = complaints.split(separator: "\n", omittingEmptySubsequences: false)
            .filter { !$0.hasPrefix(Self.choicePrefix) }.joined(separator: "\n")
        status = process.terminationReason == .exit ? process.terminationStatus : -process.terminationStatus
    }
}

@Suite("Bad input")
struct CommandLineTests {
    let folder: URL

    init() throws {
        folder = FileManager.default.temporaryDirectory.appendingPathComponent("roost-cli-\(UUID())")
        try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
    }

    func file(_ name: String, _ bytes: [UInt8]) throws -> String {
        let path = folder.appendingPathComponent(name).path
        try Data(bytes).write(to: URL(fileURLWithPath: path))
        return path
    }

    func expect(_ arguments: [String], status: Int32, _ words: String) throws {
        let run = try RoostRun(arguments)
        #expect(run.status == status, "\(arguments): \(run.error)")
        #expect(run.error.contains(words), "\(arguments): \(run.error)")
        #expect(run.error.split(separator: "\n").count == 1, "\(arguments): \(run.error)")
        #expect(run.output.isEmpty)
    }

    /// A bzImage whose header is right and whose kernel is zeros.
    var kernel: [UInt8] {
        var image = [UInt8](repeating: 0, count: 5 * 512 + 4096)
        image[0x1F1] = 4
        image.replaceSubrange(0x1FE..<0x200, with: [0x55, 0xAA])
        image[0x201] = 0x6A
        image.replaceSubrange(0x202..<0x208, with: Array("HdrS".utf8) + [0x0F, 0x02])
        image[0x211] = 1
        image.replaceSubrange(0x22C..<0x230, with: [0xFF, 0xFF, 0xFF, 0x7F])
        image[0x236] = 1
        image[0x239] = 8
        image[0x25B] = 1
        image[0x262] = 0x10
        return image
    }

    @Test("An unknown option suggests the nearest")
    func unknownOption() throws {
        try expect(["run", "--memry", "1G"], status: 64, "Did you mean '--memory'?")
        try expect(["run"], status: 64, "nothing to run")
        try expect(["run", "--kernel", "k", "--net", "bridge"], status: 64, "--net")
        try expect(["run", "--kernel", "k", "--engine", "warp"], status: 64, "interpreter")
    }

    @Test("Kernels: missing, a directory, empty, text, truncated, another architecture, too large")
    func kernels() throws {
        try expect(["run", "--kernel", "/nonexistent"], status: 66, "No such file")
        try expect(["run", "--kernel", "/tmp"], status: 66, "Is a directory")
        try expect(["run", "--kernel", try file("empty", [])], status: 66, "empty")
        try expect(["run", "--kernel", try file("text", Array("hello".utf8))], status: 66, "not a Linux")
        try expect(["run", "--kernel", try file("cut", Array(kernel.prefix(3000)))], status: 66, "truncated")
        var arm = [UInt8](repeating: 0, count: 4096)
        arm.replaceSubrange(0x38..<0x3C, with: Array("ARMd".utf8))
        try expect(["run", "--kernel", try file("arm", arm)], status: 66, "aarch64")
        try expect(["run", "--memory", "8M", "--kernel", try file("big", kernel)], status: 66, "8 MiB of memory")
    }

    @Test("An initrd that is missing or doesn't fit")
    func initrds() throws {
        let path = try file("kernel", kernel)
        try expect(["run", "--kernel", path, "--initrd", "/nonexistent"], status: 66, "initrd")
        let big = try file("initrd", [UInt8](repeating: 0, count: 40 << 20))
        try expect(["run", "--memory", "32M", "--kernel", path, "--initrd", big], status: 66, "doesn't fit")
    }

    @Test("Memory of 0, of 1 byte, of more than the host has", arguments: ["0", "1", "1000000G"])
    func memory(size: String) throws {
        try expect(["run", "--memory", size, "--kernel", "k"], status: 78, "memory")
    }

    @Test("Disks: missing, a directory, too small")
    func disks() throws {
        let path = try file("kernel", kernel)
        try expect(["run", "--kernel", path, "--disk", "/nonexistent"], status: 68, "no such file")
        try expect(["run", "--kernel", path, "--disk", "/tmp"], status: 68, "is a directory")
        try expect(["run", "--kernel", path, "--disk", try file("small", [1])], status: 68, "sector")
    }

    @Test("A value that makes no sense is answered with what is wanted, a mistyped command with the nearest")
    func usage() throws {
        for (option, value, words) in [
            ("--memory", "12Q", "12Q is no size"), ("--memory", "2G,max=1G", "less than"),
            ("--memory", "1G,most=2G", "no 'most' here; there are max="), ("--balloon", "x", "a number with K, M or G"),
            ("--cpus", "65", "there can be 1 to 64"), ("--cpus", "4,max=3", "max=3: a number from 4 to 64"),
            ("--net", "usr", "there are user, passt"), ("--console", "file:", "file:PATH or pty"),
            ("--trace", "exit", "exits, interrupts, instructions, blocks"), ("--debug-exit", "0x10000", "(v << 1) | 1"),
            ("--disk", "", "no file"), ("--disk", "d,bus=ide", "bus=ide: there are virtio and scsi"),
            ("--disk", "d,cache=some", "there are writeback, writethrough, none and unsafe"),
            ("--disk", "d,format=img", "there are raw, qcow2, vmdk, vdi, vhd and vhdx"),
            ("--disk", "d,queues=33", "from 1 to 32"), ("--disk", "d,iops=0", "a number from 1 on"),
            ("--disk", "d,readonly=yes", "readonly takes no value"), ("--disk", "d,bps=fast", "a size such as 512M"),
            ("--share", ",readonly", "no folder"), ("--share", "/tmp,rw", "there are readonly and tag="),
            ("--vsock", "/tmp/v,cid=2", "cid=2: a number from 3"),
        ] {
            try expect(["run", "--kernel", "k", option, value], status: 64, "invalid for '\(option)")
            try expect(["run", "--kernel", "k", option, value], status: 64, words)
        }
        for (words, refusal) in [
            (["--timeout", "5"], "--timeout is for a program"), (["--env", "A=b"], "--env is for a program"),
            (["-d", "--stats"], "--stats is for a machine in the foreground"),
            (["-d", "--console", "pty"], "--console is for"),
            (["--trace", "exits", "--", "ls"], "--trace doesn't go with"),
            (["--cloud-init", "f", "--", "ls"], "--cloud-init doesn't go with"),
        ] { try expect(["run", "image"] + words, status: 64, refusal) }
        try expect(["rnu"], status: 64, "Did you mean 'run'?")
        try expect(["image", "biuld"], status: 64, "Did you mean 'build'?")
        try expect(["elephant"], status: 64, "There are: run, exec")
        try expect(["run", "--kernel", "k", "--console", "file:/nonexistent/file"], status: 82, "No such file")
    }

    @Test("A disk that another machine writes is refused, with the process that has it; one that can't be written too")
    func disksInUse() throws {
        let kernel = try file("guest", MultibootImage.make(TinyGuest.say("on") + ConsoleTests.halted))
        let disk = try file("disk", [UInt8](repeating: 0, count: 65536))
        let first = Process()
        first.executableURL = URL(fileURLWithPath: CommandLine.arguments[0]).deletingLastPathComponent()
            .appendingPathComponent("roost")
        first.arguments = ["run", "--kernel", kernel, "--net", "none", "--memory", "32M", "--disk", disk]
        first.standardInput = Pipe()
        let output = Pipe()
        first.standardOutput = output
        try first.run()
        defer { first.terminate() }
        // It has the disk before its guest says anything.
        #expect(output.fileHandleForReading.readData(ofLength: 2) == Data("on".utf8))
        let arguments = ["run", "--kernel", kernel, "--net", "none", "--memory", "32M", "--disk"]
        try expect(arguments + [disk], status: 74, "process \(first.processIdentifier)")
        try expect(arguments + [disk + ",readonly"], status: 74, "process \(first.processIdentifier)")
        // A program that runs can't be written, not even by root.
        let busy = try file("busy", Array(try Data(contentsOf: URL(fileURLWithPath: "/bin/sleep"))))
        try FileManager.default.setAttributes([.posixPermissions: 0o700], ofItemAtPath: busy)
        let sleep = try startWhenWritten(busy)
        // The tests' threads block SIGTERM, and so do their children.
        defer { kill(sleep.processIdentifier, SIGKILL) }
        try expect(arguments + [busy], status: 68, "busy")
    }

    /// Starts a program that was just written: another test's child may have it open for writing until it executes.
    private func startWhenWritten(_ path: String) throws -> Process {
        for _ in 0..<100 {
            if let process = try? Process.run(URL(fileURLWithPath: path), arguments: ["100"]) { return process }
            usleep(10_000)
        }
        return try Process.run(URL(fileURLWithPath: path), arguments: ["100"])
    }

    @Test("Help goes to standard output with status 0")
    func help() throws {
        let run = try RoostRun(["run", "--help"])
        #expect(run.status == 0)
        #expect(run.output.contains("--debug-exit"))
        #expect(run.error.isEmpty)
    }
}
