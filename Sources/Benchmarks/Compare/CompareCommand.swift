// `roost-bench compare`: the same static programs natively, in Roost and in QEMU's TCG, alternating, several rounds.
import ArgumentParser
import BenchmarkReport
import Foundation
import HostOS
import Images

/// `roost-bench compare`.
struct CompareCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "compare", abstract: "Run the same programs natively, in Roost and in QEMU's TCG.",
        discussion: """
            The table goes to standard output, progress to standard error. Programs are picked by the beginnings of \
            their names or by their set (compute, system). See docs/performance.md.
            """)

    @Option(help: "How often everything runs; medians are reported.")
    var rounds: Int = 3

    @Option(help: "Only these programs, comma-separated.")
    var programs: String?

    @Option(help: "Only these systems, comma-separated: native, roost, tcg.")
    var systems: String = "native,roost,tcg"

    @Option(help: "Multiplies the work of each program.")
    var scale: Double = 1

    @Option(help: "Passed on to `roost run`.")
    var engine: String?

    @Option(help: "The roost executable (default: beside this one).")
    var roost: String?

    @Option(help: "Seconds after which a program, or a boot, counts as hung.")
    var timeout: Int = 120

    @Option(
        parsing: .unconditional,
        help: "The niceness of all that is measured; below 0 (as root) it holds its own on a busy host.")
    var niceness: Int = 0

    @Option(help: "Where the built programs lie (default: .build/bench).")
    var guest: String = ".build/bench"

    @Option(help: "Where their sources lie.")
    var sources: String = "Benchmarks/Guest"

    @Option(
        help: "QEMU's processor. 'max' alone has 'rep movs' and 'rep stos' marked as fast, which they are not in TCG.")
    var qemuCPU: String = "max,erms=off,fsrm=off"

    @Option(help: "Write the results here as JSON.")
    var json: String?

    @Option(help: "Write the chart here, as SVG.")
    var svg: String?

    @Option(help: "Write the table here as Markdown; a file with table markers keeps what is around them.")
    var markdown: String?

    func validate() throws {
        guard rounds > 0, timeout > 0, scale > 0 else { throw ValidationError("numbers must be positive") }
        for name in systems.split(separator: ",") where System(rawValue: String(name)) == nil {
            throw ValidationError("there is no system named \(name)")
        }
    }

    func run() throws {
        let guest = try GuestPrograms(folder: guest, sources: sources)
        let chosen = guest.programs.filter { program in
            guard let programs else { return true }
            return programs.split(separator: ",").contains { program.set == $0 || program.name.hasPrefix($0) }
        }
        let names = programs.map { $0.split(separator: ",").map(String.init) }
        guard !chosen.isEmpty || names?.contains("boot") == true else {
            throw ValidationError("no such program; there are: \(guest.programs.map(\.name).joined(separator: " "))")
        }
        let executable = URL(fileURLWithPath: CommandLine.arguments[0]).deletingLastPathComponent()
        let bench = try Bench(
            programs: chosen, guest: guest, scale: scale, timeout: .seconds(timeout), niceness: niceness,
            engine: engine,
            qemuCPU: qemuCPU, roost: roost ?? executable.appendingPathComponent("roost").path)
        let wanted = systems.split(separator: ",").compactMap { System(rawValue: String($0)) }
        var comparison = Comparison(
            host: bench.description, programs: chosen, rounds: rounds, scale: scale, systems: wanted)
        try SessionNiceness.with(niceness) { try measure(bench, wanted, into: &comparison) }
        comparison.finish()
        print(TextReport.text(comparison))
        if let json { try comparison.encoded().write(to: URL(fileURLWithPath: json)) }
        if let svg { try Data(ChartReport.svg(comparison).utf8).write(to: URL(fileURLWithPath: svg)) }
        if let markdown {
            let chart = svg.map { URL(fileURLWithPath: $0).lastPathComponent }
            try MarkdownReport.write(MarkdownReport.text(comparison, chart: chart), of: "compare", to: markdown)
        }
        if !comparison.failures.isEmpty { throw ExitCode(1) }
    }

    private func measure(_ bench: Bench, _ wanted: [System], into comparison: inout Comparison) throws {
        try Interruption.hold {
            for round in 1...rounds {
                for system in wanted {
                    Progress.say("round \(round) of \(rounds): \(system.title)")
                    let run = try bench.run(system)
                    if Interruption.requested { throw ExitCode(130) }
                    comparison.add(run, of: system)
                }
            }
        }
    }
}

/// What is going on, on standard error.
enum Progress {
    static func say(_ text: String) {
        FileHandle.standardError.write(Data("bench: \(text)\n".utf8))
    }
}
