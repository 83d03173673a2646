// Debian's kernels from the command to user space, beside QEMU's TCG with the same files; and what a guest that has
// nothing to do costs.
import Foundation
import HostOS
import Images

enum BootBenchmark {
    /// Seconds to the first line of the guest's init.
    static func measure() throws -> [Figure] {
        var figures: [Figure] = []
        for (flavor, most) in [(DebianKernel.Flavor.cloud, 90.0), (.standard, 180.0)] {
            let kernel = try DebianKernel.fetched(flavor)
            let initramfs = try temporaryInitramfs(kernel)
            defer { try? FileManager.default.removeItem(atPath: initramfs) }
            let append = "console=ttyS0 selfcheck.only=none"
            for engine in ["interpreter", "translator"] {
                let seconds = try secondsToInit(
                    roost,
                    [
                        "run", "--engine", engine, "--kernel", kernel.image, "--initrd", initramfs, "--append",
                        append,
                        "--net", "none", "--no-reboot",
                    ])
                figures.append(
                    Figure(
                        name: "boot.\(flavor.rawValue) to user space (\(engine))", value: seconds, unit: "s",
                        wanted: "at most \(Int(most))", met: seconds <= most))
            }
            if FileManager.default.isExecutableFile(atPath: qemu) {
                let peer = try secondsToInit(
                    qemu,
                    [
                        "-accel", "tcg", "-m", "512", "-kernel", kernel.image, "-initrd", initramfs, "-append", append,
                        "-nographic", "-no-reboot", "-nodefaults", "-serial", "stdio",
                    ])
                figures.append(
                    Figure(
                        name: "boot.\(flavor.rawValue) to user space (QEMU TCG)", value: peer, unit: "s", wanted: "",
                        met: nil))
            }
        }
        return figures
    }

    /// Processor time and memory of a machine whose guest sleeps.
    static func measureIdle() throws -> [Figure] {
        let kernel = try DebianKernel.fetched(.cloud)
        let initramfs = try temporaryInitramfs(kernel)
        defer { try? FileManager.default.removeItem(atPath: initramfs) }
        var asleep: ContinuousClock.Instant?
        var start: (seconds: Double, at: ContinuousClock.Instant)?
        var share = 0.0
        var overhead = 0.0
        _ = try ChildProcess.run(
            roost,
            [
                "run", "--engine", "interpreter", "--kernel", kernel.image, "--initrd", initramfs, "--memory", "512M",
                "--append", "console=ttyS0 selfcheck.only=none selfcheck.end=sleep", "--net", "none",
            ],
            environment: ProcessInfo.processInfo.environment,
            line: { if $0.contains("SELFCHECK DONE") { asleep = .now } },
            proceed: {
                guard let asleep, let child = ProcessReport.children().first else { return true }
                if ContinuousClock.now - asleep < .seconds(3) { return true }
                guard let first = start else {
                    start = (ProcessReport.processorSeconds(child), .now)
                    return true
                }
                let elapsed = ContinuousClock.now - first.at
                if elapsed < .seconds(20) { return true }
                let wall = Double(elapsed.components.seconds) + Double(elapsed.components.attoseconds) / 1e18
                share = (ProcessReport.processorSeconds(child) - first.seconds) / wall * 100
                overhead = ProcessReport.residentBeyondGuest(child)
                return false
            })
        return [
            Figure(
                name: "idle.processor share of a halted guest", value: share, unit: "%", wanted: "under 3",
                met: share < 3),
            Figure(
                name: "idle.memory beyond the guest's RAM", value: overhead, unit: "MiB", wanted: "under 64",
                met: overhead > 0 && overhead < 64),
        ]
    }

    // MARK: Helpers

    private static var roost: String {
        URL(fileURLWithPath: CommandLine.arguments[0]).deletingLastPathComponent().appendingPathComponent("roost").path
    }
    private static let qemu = "/usr/bin/qemu-system-x86_64"

    private static func temporaryInitramfs(_ kernel: DebianKernel) throws -> String {
        let path = NSTemporaryDirectory() + "/roost-bench-\(ProcessInfo.processInfo.processIdentifier).cpio"
        try Data(SelfCheckImage.initramfs(for: kernel)).write(to: URL(fileURLWithPath: path))
        return path
    }

    private static func secondsToInit(_ program: String, _ arguments: [String]) throws -> Double {
        let start = ContinuousClock.now
        var reached: Duration?
        var lines: [String] = []
        _ = try ChildProcess.run(
            program, arguments, environment: ProcessInfo.processInfo.environment,
            line: {
                lines.append($0)
                if $0.contains("SELFCHECK BEGIN"), reached == nil { reached = ContinuousClock.now - start }
            }, proceed: { reached == nil && ContinuousClock.now - start < .seconds(300) })
        guard let reached else {
            throw Unmeasured(
                description: "\(program) did not get there; it ended with: \(lines.suffix(3).joined(separator: " | "))")
        }
        return Double(reached.components.seconds) + Double(reached.components.attoseconds) / 1e18
    }
}
