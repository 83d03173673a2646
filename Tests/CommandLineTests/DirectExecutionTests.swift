// User code that is hard on whoever runs it directly (GuestTests/usermode.c), under Debian's cloud kernel, in each way
// that user code can run: what it prints must be the same.
import Foundation
import Images
import Testing

/// The guest program, compiled once.
private enum UserModeProgram {
    static let initramfs = guestInitramfs("usermode.c")
}

@Suite(
    "User code run directly", .serialized,
    .enabled("needs `make kernels` and a C compiler that links statically") {
        (try? DebianKernel.fetched(.cloud)) != nil && UserModeProgram.initramfs != nil
    })
struct DirectExecutionTests {
    /// Runs the program; its lines, and the statistics.
    private func run(_ mode: String, _ words: String = "") throws -> (lines: [String], statistics: String) {
        let kernel = try DebianKernel.fetched(.cloud)
        let path = FileManager.default.temporaryDirectory.appendingPathComponent("roost-initramfs-\(UUID())")
        try Data(UserModeProgram.initramfs ?? []).write(to: path)
        defer { try? FileManager.default.removeItem(at: path) }
        let result = try RoostRun([
            "run", "--engine", "translator", "--user-mode", mode, "--kernel", kernel.image, "--initrd", path.path,
            "--net", "none", "--stats", "--no-reboot", "--append", "console=ttyS0 quiet loglevel=1 panic=-1 \(words)",
        ])
        #expect(result.status == 0, "\(result.error)")
        var lines: [String] = []
        var inside = false
        for line in result.output.split(whereSeparator: \.isNewline).map(String.init) {
            if line == "end" { break }
            // The kernel reports faults.
            if inside && !line.hasPrefix("[") { lines.append(line) }
            if line == "begin" { inside = true }
        }
        #expect(inside, "\(result.output.suffix(2000))")
        return (lines, result.error)
    }

    @Test("signals, faults, mappings, forks, changing code, CPUID, time, tracing, threads: the same in each mode")
    func modesAgree() throws {
        let translated = try run("translate")
        #expect(translated.lines.count == 15, "\(translated.lines)")
        #expect(!translated.statistics.contains("direct"))
        let always = try run("always")
        #expect(always.lines == translated.lines)
        for cause in ["system call", "fault", "attention", "page to map", "code for the translator", "trap"] {
            #expect(always.statistics.contains("direct leaves \(cause)"), "\(always.statistics)")
        }
        let auto = try run("auto")
        #expect(auto.lines == translated.lines)
        #expect(auto.statistics.contains("direct        entries"), "\(auto.statistics)")
    }

    @Test("processes that compute for long share the processor, each in a stub of its own")
    func sharing() throws {
        let auto = try run("auto", "only=sharing,alarms,threads scale=12")
        let always = try run("always", "only=sharing,alarms,threads scale=12")
        #expect(auto.lines == always.lines)
        #expect(!auto.statistics.contains("entries 0,"), "\(auto.statistics)")
        #expect(auto.statistics.contains("stubs"), "\(auto.statistics)")
    }

    @Test("no stub outlives Roost, however that ends")
    func nothingIsLeftBehind() throws {
        let kernel = try DebianKernel.fetched(.cloud)
        let path = FileManager.default.temporaryDirectory.appendingPathComponent("roost-initramfs-\(UUID())")
        try Data(UserModeProgram.initramfs ?? []).write(to: path)
        defer { try? FileManager.default.removeItem(at: path) }
        let folder = URL(fileURLWithPath: CommandLine.arguments[0]).deletingLastPathComponent()
        let process = Process()
        process.executableURL = folder.appendingPathComponent("roost")
        process.arguments = [
            "run", "--user-mode", "always", "--kernel", kernel.image, "--initrd", path.path, "--net", "none",
            "--append", "console=ttyS0 quiet only=alarms scale=100000",
        ]
        process.standardOutput = FileHandle.nullDevice
        process.standardError = FileHandle.nullDevice
        process.standardInput = FileHandle.nullDevice
        try process.run()
        var stubs: [Int32] = []
        let deadline = Date(timeIntervalSinceNow: 120)
        while stubs.isEmpty && Date() < deadline {
            Thread.sleep(forTimeInterval: 0.1)
            stubs = children(of: process.processIdentifier)
        }
        #expect(!stubs.isEmpty)
        kill(process.processIdentifier, SIGKILL)
        process.waitUntilExit()
        Thread.sleep(forTimeInterval: 0.5)
        for stub in stubs { #expect(!isAlive(stub), "process \(stub) is still there") }
    }

    private func status(_ process: Int32) -> [Substring] {
        guard let text = try? String(contentsOfFile: "/proc/\(process)/stat", encoding: .utf8),
            let name = text.lastIndex(of: ")")
        else { return [] }
        return text[text.index(after: name)...].split(separator: " ")
    }

    /// Alive: there, and no zombie that waits for its new parent.
    private func isAlive(_ process: Int32) -> Bool {
        let fields = status(process)
        return !fields.isEmpty && fields[0] != "Z" && fields[0] != "X"
    }

    private func children(of parent: Int32) -> [Int32] {
        let all = (try? FileManager.default.contentsOfDirectory(atPath: "/proc"))?.compactMap { Int32($0) } ?? []
        return all.filter { process in
            let fields = status(process)
            return fields.count > 1 && fields[1] == "\(parent)" && isAlive(process)
        }
    }
}
