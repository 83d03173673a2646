// Looks up where and with what the figures are measured.
import BenchmarkReport
import Foundation
import HostOS
import Images

extension HostDescription {
    /// The host as it is now, and what runs on it.
    init(kernel: DebianKernel, memoryMiB: Int, engine: String?, qemu: String?, qemuCPU: String) {
        func contents(_ path: String) -> String { (try? String(contentsOfFile: path, encoding: .utf8)) ?? "" }
        func trimmed(_ text: some StringProtocol) -> String { text.trimmingCharacters(in: .whitespacesAndNewlines) }
        let model = contents("/proc/cpuinfo").split(separator: "\n").first { $0.hasPrefix("model name") }
        var version = "none"
        if let program = qemu {
            _ = try? ChildProcess.run(
                program, ["--version"], environment: [:],
                line: {
                    if version == "none", let last = $0.split(separator: " ", maxSplits: 3).last {
                        version = "\(last)"
                    }
                },
                proceed: { true })
        }
        self.init(
            processor: trimmed(model?.split(separator: ":").last ?? "unknown"),
            processors: ProcessInfo.processInfo.activeProcessorCount,
            kernel: trimmed(contents("/proc/sys/kernel/osrelease")),
            guestKernel: trimmed(contents(kernel.root + "/version")), guestMemoryMiB: memoryMiB,
            engine: engine ?? "default", qemu: version, qemuCPU: qemuCPU,
            date: ISO8601DateFormatter().string(from: Date()),
            loadAtStart: contents("/proc/loadavg").split(separator: " ").first.flatMap { Double($0) } ?? 0)
    }
}
