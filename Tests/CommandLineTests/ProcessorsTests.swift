// Machines with several processors: the self-check, memory ordering, and user code that is hard on whoever runs it.
import Foundation
import Images
import Testing

/// The guest program, compiled once.
private enum LitmusProgram {
    static let initramfs = guestInitramfs("litmus.c")
}

@Suite(
    "Several processors", .serialized,
    .enabled("needs `make kernels` and a C compiler that links statically") {
        (try? DebianKernel.fetched(.cloud)) != nil && LitmusProgram.initramfs != nil
    })
struct ProcessorsTests {
    /// Runs the cloud kernel with an initramfs.
    private func run(
        _ initramfs: [UInt8], _ words: String, _ options: [String], network: String = "none"
    ) throws -> RoostRun {
        let kernel = try DebianKernel.fetched(.cloud)
        let path = FileManager.default.temporaryDirectory.appendingPathComponent("roost-initramfs-\(UUID())")
        try Data(initramfs).write(to: path)
        defer { try? FileManager.default.removeItem(at: path) }
        return try RoostRun(
            [
                "run", "--kernel", kernel.image, "--initrd", path.path, "--net", network, "--no-reboot",
                "--append", "console=ttyS0 panic=-1 \(words)",
            ] + options)
    }

    /// What the kernel complains of.
    private func complaints(_ output: String) -> [String] {
        let words = ["WARNING:", "BUG:", "lockup", "stall", "TSC unstable", "skew", "Call Trace"]
        return output.split(whereSeparator: \.isNewline).map(String.init).filter { line in
            words.contains { line.contains($0) } && !line.contains("Speculative Return")
        }
    }

    @Test("memory is ordered as on the hardware, and locked instructions are atomic, on each engine")
    func litmus() throws {
        let engines: [([String], Int)] = [
            (["--engine", "translator", "--user-mode", "translate"], 300_000),
            (["--engine", "translator", "--user-mode", "auto"], 300_000),
            (["--engine", "interpreter"], 30_000),
        ]
        for (engine, rounds) in engines {
            let result = try run(LitmusProgram.initramfs ?? [], "quiet rounds=\(rounds)", engine + ["--cpus", "2"])
            #expect(result.status == 0, "\(result.error)")
            let lines = result.output.split(whereSeparator: \.isNewline).map(String.init)
            #expect(lines.contains("processors 2"))
            #expect(lines.filter { $0.hasSuffix(": 0 forbidden") }.count == 6, "\(engine): \(lines)")
            #expect(lines.contains("counters right") && lines.contains("end"), "\(engine): \(lines)")
            #expect(complaints(result.output) == [])
        }
    }

    @Test("four processors come up and pass the self-check", arguments: ["auto", "translate"])
    func selfCheck(mode: String) throws {
        let disk = FileManager.default.temporaryDirectory.appendingPathComponent("roost-disk-\(UUID())")
        try Data(count: 16 << 20).write(to: disk)
        defer { try? FileManager.default.removeItem(at: disk) }
        let image = try SelfCheckImage.initramfs(for: try DebianKernel.fetched(.cloud))
        let result = try run(
            image, "", ["--cpus", "4", "--engine", "translator", "--user-mode", mode, "--disk", disk.path],
            network: "user")
        #expect(result.status == 0, "\(result.error)")
        #expect(result.output.contains("smp: Brought up 1 node, 4 CPUs"), "\(result.output.suffix(4000))")
        #expect(result.output.contains("0 failed"), "\(result.output.suffix(4000))")
        #expect(complaints(result.output) == [])
    }

    @Test("what one processor can't do is refused with a reason")
    func refusals() throws {
        for (options, status, words) in [
            (["--cpus", "0"], 64, "there can be 1 to 64"), (["--cpus", "65"], 64, "there can be 1 to 64"),
            (["--cpus", "2", "--clock", "virtual"], 80, "one processor"),
        ] as [([String], Int32, String)] {
            let result = try run([], "", options)
            #expect(result.status == status, "\(options): \(result.status) \(result.error)")
            #expect(result.error.contains(words), "\(result.error)")
        }
    }
}

/// An initramfs whose init is a program of `GuestTests`; nil: there is no compiler.
func guestInitramfs(_ name: String) -> [UInt8]? {
    guard let program = guestProgram(name) else { return nil }
    var archive = CPIOArchive()
    archive.addDirectory("dev")
    archive.addCharacterDevice("dev/console", major: 5, minor: 1)
    archive.addFile("init", contents: program, mode: 0o755)
    return archive.serialized()
}

/// A program of `GuestTests`, compiled statically; nil: there is no compiler.
func guestProgram(_ name: String) -> [UInt8]? {
    let compilers = ["/usr/bin/gcc", "/usr/bin/cc"]
    guard let compiler = compilers.first(where: FileManager.default.isExecutableFile(atPath:)) else { return nil }
    let source = URL(fileURLWithPath: #filePath).deletingLastPathComponent()
        .appendingPathComponent("../../GuestTests/\(name)").standardized.path
    let target = FileManager.default.temporaryDirectory.appendingPathComponent("roost-program-\(UUID())").path
    defer { try? FileManager.default.removeItem(atPath: target) }
    let process = Process()
    process.executableURL = URL(fileURLWithPath: compiler)
    process.arguments = ["-O2", "-static", "-pthread", "-fno-toplevel-reorder", "-w", "-o", target, source, "-lm"]
    guard (try? process.run()) != nil else { return nil }
    process.waitUntilExit()
    guard process.terminationStatus == 0, let program = FileManager.default.contents(atPath: target) else { return nil }
    return [UInt8](program)
}
