// The table as plain text, and the cells it has in common with the Markdown one.
internal import Foundation

package enum TextReport {
    /// The columns' titles.
    package static let titles = [
        "program", "set", "native s", "Roost s", "TCG s", "Roost/native", "TCG/native", "Roost/TCG",
    ]

    /// A row's cells, in the order of the titles.
    package static func cells(_ row: Row) -> [String] {
        func seconds(_ system: System) -> String {
            guard let series = row.series[system.rawValue] else { return "" }
            return series.median.map { String(format: "%.3f", $0) } ?? "failed"
        }
        func ratio(_ system: System, _ other: System) -> String {
            row.speed(system, relativeTo: other).map { String(format: $0 < 10 ? "%.2f" : "%.1f", $0) } ?? ""
        }
        return [
            row.program.name, row.program.set, seconds(.native), seconds(.roost), seconds(.tcg),
            ratio(.roost, .native), ratio(.tcg, .native), ratio(.roost, .tcg),
        ]
    }

    /// The lines below the table.
    package static func summary(_ comparison: Comparison) -> [String] {
        var lines = comparison.aggregates.map { aggregate in
            let programs = aggregate.programs == 1 ? "1 program" : "\(aggregate.programs) programs"
            var text =
                "\(aggregate.set) set, \(aggregate.of.title)'s speed by \(aggregate.relativeTo.title)'s: "
                + String(format: "geometric mean %.2f, ", aggregate.geometricMean)
                + String(format: "minimum %.2f", aggregate.minimum) + " (\(aggregate.slowest)), \(programs)"
                + (aggregate.failed > 0 ? ", \(aggregate.failed) failed" : "")
            let wanted = [
                aggregate.wantedMean.map { String(format: "mean at least %g", $0) },
                aggregate.wantedMinimum.map { String(format: "none under %g", $0) },
            ].compactMap(\.self)
            if !wanted.isEmpty, let isMet = aggregate.isMet {
                text += "; wanted: \(wanted.joined(separator: ", ")): \(isMet ? "ok" : "MISSED")"
            }
            return text
        }
        for system in [System.roost, .tcg] {
            guard let resident = comparison.residentBeyondGuest[system.rawValue] else { continue }
            let verdict = system == .roost ? "; wanted: under 96: \(resident < 96 ? "ok" : "MISSED")" : ""
            lines.append(
                "\(system.title)'s memory beyond the guest's, the most seen: \(String(format: "%.1f", resident)) MiB"
                    + verdict)
        }
        return lines
    }

    /// A table of text, titles first, in columns: two at the left, the others at the right.
    static func aligned(_ table: [[String]]) -> [String] {
        let widths = table[0].indices.map { column in table.map { $0[column].count }.max() ?? 0 }
        var lines = table.map { cells in
            cells.enumerated().map { column, cell in
                let space = String(repeating: " ", count: widths[column] - cell.count)
                return column < 2 ? cell + space : space + cell
            }.joined(separator: "  ")
        }
        lines.insert(String(repeating: "-", count: lines[0].count), at: 1)
        return lines
    }

    /// The whole report.
    package static func text(_ comparison: Comparison) -> String {
        var lines = aligned([titles] + comparison.rows.map(cells))
        lines.append("")
        lines.append("Seconds are medians of \(comparison.rounds); a ratio is a speed, larger is faster.")
        lines.append(comparison.host.sentence)
        lines += summary(comparison)
        lines += comparison.warnings.map { "NOTE: " + $0 }
        return lines.joined(separator: "\n")
    }
}
