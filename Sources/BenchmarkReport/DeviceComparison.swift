// Rates of devices in every system: medians, ratios, and whether they are what is wanted.
internal import Foundation

/// Everything that `roost-bench devices` measured.
package struct DeviceComparison: Codable {
    package var host: HostDescription
    package var rounds: Int
    package var systems: [System]
    /// Rates in units, by figure and system, in the order of the rounds.
    package private(set) var rates: [String: [String: [Double]]] = [:]
    /// Why a figure is missing.
    package private(set) var failures: [String] = []
    /// MiB that came back to the host of those that a guest freed.
    package var returnedMemory: [Double] = []

    package init(host: HostDescription, rounds: Int, systems: [System]) {
        self.host = host
        self.rounds = rounds
        self.systems = systems
    }

    /// Takes what one guest, or the host, printed of what it was to measure.
    package mutating func add(_ run: SystemRun, of system: System, wanted: [DeviceFigure]) {
        for figure in wanted {
            if let result = run.results[figure.name] {
                let rate = Double(result.operations) / result.seconds / figure.scale
                rates[figure.name, default: [:]][system.rawValue, default: []].append(rate)
            } else {
                let reason = run.failures[figure.name] ?? "did not run: \(run.lastWords)"
                failures.append("\(figure.name) failed in \(system.title): \(reason)")
            }
        }
    }

    /// The median of a figure's rates.
    package func rate(_ name: String, _ system: System) -> Double? {
        rates[name]?[system.rawValue].map(Series.median)
    }

    /// A system's rate by another's.
    package func ratio(_ name: String, _ system: System, _ other: System) -> Double? {
        guard let rate = rate(name, system), let reference = self.rate(name, other), reference > 0 else { return nil }
        return rate / reference
    }

    /// How many times as fast two processors are as one.
    package func speedupOfTwo(_ system: System) -> Double? {
        guard let one = rate("make-1cpu", system), let two = rate("make-2cpu", system), one > 0 else { return nil }
        return two / one
    }

    // MARK: Printing

    package static let titles = ["figure", "unit", "native", "Roost", "TCG", "Roost/native", "Roost/TCG", "wanted"]

    /// The table's rows.
    package var rows: [[String]] {
        DeviceFigure.all.filter { rates[$0.name] != nil }.map { figure in
            let ratio = ratio(figure.name, .roost, .tcg)
            let verdict = figure.wanted.map { wanted in
                String(format: "%g", wanted) + (ratio.map { $0 >= wanted ? ": ok" : ": MISSED" } ?? "")
            }
            return [figure.name, figure.unit]
                + [System.native, .roost, .tcg].map { Self.number(rate(figure.name, $0)) }
                + [Self.number(self.ratio(figure.name, .roost, .native)), Self.number(ratio), verdict ?? ""]
        }
    }

    private static func number(_ value: Double?) -> String {
        value.map { String(format: $0 < 10 ? "%.2f" : $0 < 100 ? "%.1f" : "%.0f", $0) } ?? ""
    }

    /// The lines below the table.
    package var summary: [String] {
        var lines: [String] = []
        let speedups = systems.compactMap { system in
            speedupOfTwo(system).map { (system, String(format: "%@ %.2f", system.title, $0)) }
        }
        if !speedups.isEmpty {
            let verdict = speedupOfTwo(.roost).map { $0 >= DeviceFigure.wantedOfTwo ? "ok" : "MISSED" }
            lines.append(
                "two processors by one: " + speedups.map(\.1).joined(separator: ", ")
                    + (verdict.map { "; wanted of Roost: \(DeviceFigure.wantedOfTwo): \($0)" } ?? ""))
        }
        if !returnedMemory.isEmpty {
            let median = Series.median(of: returnedMemory)
            lines.append(
                "memory that came back within 15 s, of 256 MiB that a guest freed: "
                    + String(format: "%.0f MiB; wanted: %.0f: ", median, DeviceFigure.wantedMemory)
                    + (median >= DeviceFigure.wantedMemory ? "ok" : "MISSED"))
        }
        return lines + failures.map { "Note: " + $0 }
    }

    /// The whole report as plain text.
    package var text: String {
        let lines = TextReport.aligned([Self.titles] + rows)
        return (lines + ["", "Medians of \(rounds). \(host.sentence)."] + summary).joined(separator: "\n")
    }

    /// The whole report as Markdown.
    package var markdown: String {
        let lines = MarkdownReport.table(Self.titles, rows)
        return
            (lines + ["", "Medians of \(rounds). \(host.sentence).", ""] + summary.map { "- " + $0 })
            .joined(separator: "\n")
    }
}
