// Pausing, saving and restoring whole machines with a stock kernel in them.
import Foundation
import Images
import Machine
import Storage
import Testing

/// A machine whose guest counts on its console, in a file.
final class CountingMachine: @unchecked Sendable {
    let machine: Machine
    private let console: String
    private var outcome: MachineOutcome?
    private let done = DispatchSemaphore(value: 0)

    init(_ configuration: MachineConfiguration, folder: String) throws {
        console = folder + "/console-\(UUID())"
        var configuration = configuration
        configuration.console = .file(console)
        machine = try Machine(configuration)
    }

    func start() {
        Thread.detachNewThread { [self] in
            outcome = machine.run()
            done.signal()
        }
    }

    var output: String { (try? String(contentsOfFile: console, encoding: .utf8)) ?? "" }

    /// The numbers that the guest has counted.
    var counts: [Int] {
        output.split(separator: "\r\n").compactMap { line in
            line.hasPrefix("COUNT ") ? Int(line.split(separator: " ")[1]) : nil
        }
    }

    /// Waits until it has counted to a number.
    func wait(for number: Int, seconds: Double = 90) -> Bool {
        let end = Date().addingTimeInterval(seconds)
        while Date() < end {
            if let last = counts.last, last >= number { return true }
            Thread.sleep(forTimeInterval: 0.02)
        }
        return false
    }

    /// Waits until its output is so, or it has ended.
    func wait(seconds: Double = 20, until isSo: (String) -> Bool) -> Bool {
        let end = Date().addingTimeInterval(seconds)
        while Date() < end && !isSo(output) {
            guard done.wait(timeout: .now() + 0.002) == .success else { continue }
            done.signal()
            break
        }
        return isSo(output)
    }

    func removeConsole() { try? FileManager.default.removeItem(atPath: console) }

    func end() -> MachineOutcome? {
        machine.end()
        done.wait()
        return outcome
    }
}

@Suite(
    "Snapshots", .serialized, .enabled("needs `make kernels`") { (try? DebianKernel.fetched(.cloud)) != nil })
struct SnapshotTests {
    private let folder = FileManager.default.temporaryDirectory.appendingPathComponent("roost-snapshots-\(UUID())").path

    init() throws { try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: true) }

    private func configuration(_ engine: EngineKind = .translator, processors: Int = 1) throws -> MachineConfiguration {
        let kernel = try DebianKernel.fetched(.cloud)
        let initrd = folder + "/initrd"
        try Data(SelfCheckImage.initramfs(for: kernel)).write(to: URL(fileURLWithPath: initrd))
        var configuration = MachineConfiguration(
            boot: BootSource(
                kernel: kernel.image, initrd: initrd,
                commandLine: "console=ttyS0 quiet selfcheck.only=modules selfcheck.end=count"))
        configuration.engine = engine
        configuration.processors = processors
        configuration.memory = 256 << 20
        configuration.networks = []
        return configuration
    }

    @Test(
        "a machine stands still while it is paused, goes on from its snapshot, and so does a copy", arguments: [1, 2])
    func saveAndRestore(processors: Int) throws {
        defer { try? FileManager.default.removeItem(atPath: folder) }
        var configuration = try configuration(processors: processors)
        let disk = folder + "/disk"
        try Data(count: 17 << 20).write(to: URL(fileURLWithPath: disk))
        configuration.disks = [DiskConfiguration(path: disk)]
        let first = try CountingMachine(configuration, folder: folder)
        first.start()
        #expect(first.wait(for: 5), "\(first.output.suffix(2000))")
        try first.machine.pause()
        let before = first.counts.last
        Thread.sleep(forTimeInterval: 0.5)
        #expect(first.counts.last == before)
        try first.machine.resume()
        #expect(first.wait(for: (before ?? 0) + 5))
        let result = try first.machine.saveSnapshot(
            to: folder + "/snapshot",
            whilePaused: { try? FileManager.default.copyItem(atPath: disk, toPath: disk + "-copy") })
        let saved = first.counts.last ?? 0
        #expect(first.wait(for: saved + 5), "\(first.output.suffix(500))")
        #expect(first.end() == .ended)
        #expect(!first.output.contains("FAIL"))

        configuration.disks = [DiskConfiguration(path: disk + "-copy")]
        configuration.snapshot = try Snapshot(folder + "/snapshot")
        let second = try CountingMachine(configuration, folder: folder)
        second.start()
        #expect(second.wait(for: saved + 20), "\(second.output.suffix(2000))")
        #expect(second.end() == .ended)
        let counts = second.counts
        #expect((counts.first ?? 0) <= saved + 2 && (counts.first ?? 0) > 5)
        #expect(counts == Array((counts.first ?? 0)...(counts.last ?? 0)))
        #expect(!second.output.contains("FAIL") && !second.output.contains("WARN"), "\(second.output.suffix(2000))")
        print("snapshot: paused for \(result.pause / 1000) us, \(result.bytes >> 20) MiB of memory")
    }
}
