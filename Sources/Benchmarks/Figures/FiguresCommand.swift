// The figures that Roost promises, measured one by one. Each line is a name, a value, a unit and what it should be;
// `--json` prints the same for scripts; words pick benchmarks by the beginning of their names.
import ArgumentParser
import Foundation
import HostOS

/// One measured figure.
struct Figure: Codable {
    var name: String
    var value: Double
    var unit: String
    /// What it should be, in words ("at least 30").
    var wanted: String
    var met: Bool?
}

/// `roost-bench figures`.
struct FiguresCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "figures", abstract: "Measure instruction rate, boot time, memory and the cost of an idle guest.")

    @Argument(help: "Measure only what begins with one of these: loop, boot, idle.")
    var picked: [String] = []

    @Flag(help: "Print JSON.")
    var json = false

    func run() throws {
        var figures: [Figure] = []
        for benchmark in Self.all where picked.isEmpty || picked.contains(where: { benchmark.name.hasPrefix($0) }) {
            do {
                for figure in try benchmark.measure() {
                    figures.append(figure)
                    if !json { print(Self.line(figure)) }
                }
            } catch {
                FileHandle.standardError.write(Data("\(benchmark.name): not measured: \(error)\n".utf8))
            }
        }
        if json {
            let encoder = JSONEncoder()
            encoder.outputFormatting = [.prettyPrinted, .sortedKeys]
            print(String(decoding: try encoder.encode(figures), as: UTF8.self))
        }
    }

    static let all: [(name: String, measure: @Sendable () throws -> [Figure])] = [
        ("loop", measureLoops),
        ("boot", BootBenchmark.measure),
        ("idle", BootBenchmark.measureIdle),
    ]

    static func line(_ figure: Figure) -> String {
        let name = figure.name.padding(toLength: 44, withPad: " ", startingAt: 0)
        let value = String(format: "%9.2f", figure.value)
        let unit = figure.unit.padding(toLength: 10, withPad: " ", startingAt: 0)
        let verdict = figure.met.map { $0 ? "ok" : "MISSED" } ?? ""
        return "\(name)\(value) \(unit) \(figure.wanted) \(verdict)"
    }

    static func measureLoops() throws -> [Figure] {
        try [false, true].flatMap { translates in
            try [(Loop.registers, 30.0), (Loop.memory, 20.0)].map { loop, least in
                let rate = try loop.rate(rounds: translates ? 30_000_000 : 3_000_000, translates: translates)
                return Figure(
                    name: "loop.\(loop.name) (\(translates ? "translator" : "interpreter"))", value: rate,
                    unit: "M insn/s",
                    wanted: "at least \(Int(least))", met: rate >= least)
            }
        }
    }
}
