// `roost-bench devices`: disks, networks and processors, natively, in Roost and in QEMU's TCG, alternating.
import ArgumentParser
import BenchmarkReport
import Foundation
import HostOS

/// `roost-bench devices`.
struct DevicesCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "devices", abstract: "Measure disks, networks, several processors and memory given back.",
        discussion: "The table goes to standard output, progress to standard error. See docs/performance.md.")

    @Option(help: "How often everything runs; medians are reported.")
    var rounds: Int = 2

    @Flag(help: "One round of short runs.")
    var quick = false

    @Option(help: "Only these parts, comma-separated: processors, disks, network, guests, memory.")
    var parts: String = "processors,disks,network,guests,memory"

    @Option(help: "Only these systems, comma-separated: native, roost, tcg.")
    var systems: String = "native,roost,tcg"

    @Option(help: "Passed on to `roost run`.")
    var engine: String?

    @Option(help: "The roost executable (default: beside this one).")
    var roost: String?

    @Option(help: "A Debian image with gcc, make, fio and iperf3, as `make bench` builds it.")
    var image: String

    @Option(help: "QEMU's processor.")
    var qemuCPU: String = "max,erms=off,fsrm=off"

    @Option(
        parsing: .unconditional,
        help: "The niceness of all that is measured; below 0 (as root) it holds its own on a busy host.")
    var niceness: Int = 0

    @Option(help: "Write the table here as Markdown; a file with table markers keeps what is around them.")
    var markdown: String?

    func validate() throws {
        guard rounds > 0 else { throw ValidationError("numbers must be positive") }
        for name in systems.split(separator: ",") where System(rawValue: String(name)) == nil {
            throw ValidationError("there is no system named \(name)")
        }
    }

    func run() throws {
        let executable = URL(fileURLWithPath: CommandLine.arguments[0]).deletingLastPathComponent()
        let bench = try DeviceBench(
            roost: roost ?? executable.appendingPathComponent("roost").path, engine: engine, image: image,
            qemuCPU: qemuCPU, seconds: quick ? 1 : 3, niceness: niceness)
        defer { bench.removeScratch() }
        let wanted = systems.split(separator: ",").compactMap { System(rawValue: String($0)) }
        let picked = Set(parts.split(separator: ",").map(String.init))
        let rounds = quick ? 1 : rounds
        var comparison = DeviceComparison(host: bench.description, rounds: rounds, systems: wanted)
        try SessionNiceness.with(niceness) {
            try measure(bench, picked, wanted, rounds, into: &comparison)
        }
        print(comparison.text)
        if let markdown { try MarkdownReport.write(comparison.markdown, of: "devices", to: markdown) }
        if !comparison.failures.isEmpty { throw ExitCode(1) }
    }

    private func measure(
        _ bench: DeviceBench, _ picked: Set<String>, _ wanted: [System], _ rounds: Int,
        into comparison: inout DeviceComparison
    ) throws {
        try Interruption.hold {
            for round in 1...rounds {
                for system in wanted {
                    Progress.say("round \(round) of \(rounds): \(system.title)")
                    try bench.run(system, picked, into: &comparison)
                    if Interruption.requested { throw ExitCode(130) }
                }
            }
        }
    }
}
