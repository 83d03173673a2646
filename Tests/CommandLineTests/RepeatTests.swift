// Virtual time: Debian's cloud kernel boots the same way each time, instruction by instruction.
import Foundation
import Images
import Testing

@Suite(
    "repeating a run", .serialized,
    .enabled("needs `make kernels` and the built command") {
        TerminalSession.roost != nil && (try? DebianKernel.fetched(.cloud)) != nil
    })
struct RepeatTests {
    /// What one boot left: console output, the interrupts with their places, and what was counted.
    private struct Boot: Equatable {
        var output: String
        var interrupts: [Substring]
        var instructions: UInt64
        var elapsed: UInt64
        var memoryHash: UInt64
    }

    private struct Counts: Decodable {
        var instructions: UInt64
        var elapsed: UInt64
        var memoryHash: UInt64
    }

    private func boot(_ options: [String]) throws -> Boot {
        let kernel = try DebianKernel.fetched(.cloud)
        let folder = FileManager.default.temporaryDirectory.appendingPathComponent("roost-repeat-\(UUID())")
        try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
        defer { try? FileManager.default.removeItem(at: folder) }
        let initramfs = folder.appendingPathComponent("initramfs").path
        try Data(SelfCheckImage.initramfs(for: kernel)).write(to: URL(fileURLWithPath: initramfs))
        let disk = folder.appendingPathComponent("disk.raw").path
        try Data(count: 8 << 20).write(to: URL(fileURLWithPath: disk))
        let run = try RoostRun(
            [
                "run", "--kernel", kernel.image, "--initrd", initramfs, "--disk", disk, "--memory", "256M", "--clock",
                "virtual", "--json", "--trace", "interrupts", "--append",
                "console=ttyS0 quiet selfcheck.only=modules,disk",
            ] + options)
        #expect(run.status == 0, "\(run.error.suffix(2000))")
        let start = try #require(run.error.range(of: "\n{\n"), "\(run.error.suffix(2000))")
        let counts = try JSONDecoder().decode(Counts.self, from: Data(run.error[start.lowerBound...].utf8))
        return Boot(
            output: run.output, interrupts: run.error[..<start.lowerBound].split(separator: "\n"),
            instructions: counts.instructions, elapsed: counts.elapsed, memoryHash: counts.memoryHash)
    }

    @Test("two boots have the same instructions, interrupts, output and memory")
    func twice() throws {
        let first = try boot([])
        let second = try boot([])
        #expect(first.output.contains("SELFCHECK disk ok"), "\(first.output.suffix(2000))")
        #expect(first.instructions > 10_000_000)
        #expect(first.interrupts.count > 100)
        #expect(first.interrupts.allSatisfy { $0.contains("interrupt ") }, "\(first.interrupts.prefix(3))")
        #expect(first == second)
    }

    @Test("other code cache, other pace: the same run")
    func smallCache() throws {
        #expect(try boot([]) == boot(["--code-cache", "2M"]))
    }
}
