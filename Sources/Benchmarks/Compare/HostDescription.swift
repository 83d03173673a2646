// Where and with what the figures were measured.
import Foundation
import HostOS
import Images

/// The host, the guest's kernel, the versions.
struct HostDescription: Codable {
    var processor: String
    var processors: Int
    var kernel: String
    var guestKernel: String
    var qemu: String
    var engine: String
    var qemuCPU: String
    var date: String
    /// The load average of the last minute, before anything ran.
    var loadAtStart: Double

    init(_ bench: Bench) {
        func contents(_ path: String) -> String { (try? String(contentsOfFile: path, encoding: .utf8)) ?? "" }
        let model = contents("/proc/cpuinfo").split(separator: "\n").first { $0.hasPrefix("model name") }
        processor = model?.split(separator: ":").last?.trimmingCharacters(in: .whitespaces) ?? "unknown"
        processors = ProcessInfo.processInfo.activeProcessorCount
        kernel = contents("/proc/sys/kernel/osrelease").trimmingCharacters(in: .whitespacesAndNewlines)
        guestKernel = contents(bench.kernel.root + "/version").trimmingCharacters(in: .whitespacesAndNewlines)
        qemuCPU = bench.qemuCPU
        engine = bench.engine ?? "default"
        date = ISO8601DateFormatter().string(from: Date())
        loadAtStart = contents("/proc/loadavg").split(separator: " ").first.flatMap { Double($0) } ?? 0
        var version = "none"
        if let program = bench.qemu {
            _ = try? ChildProcess.run(
                program, ["--version"], environment: [:],
                line: {
                    if version == "none", let last = $0.split(separator: " ", maxSplits: 3).last { version = "\(last)" }
                },
                proceed: { true })
        }
        qemu = version
    }

    /// One sentence.
    var sentence: String {
        "\(date.prefix(10)), \(processor) (\(processors) processors), Linux \(kernel); guest kernel \(guestKernel), "
            + "1 CPU, \(Bench.memoryMiB) MiB; Roost's engine: \(engine); QEMU \(qemu) with -cpu \(qemuCPU)"
    }
}
