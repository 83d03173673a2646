// The table as Markdown, into a file of its own or between the markers of one that says more.
internal import Foundation

package enum MarkdownReport {
    package static let begin = "<!-- table: written by roost-bench compare -->"
    package static let end = "<!-- end of table -->"

    package static func text(_ comparison: Comparison, chart: String? = nil) -> String {
        var lines = chart.map { ["![Speed as a share of native](\($0))", ""] } ?? []
        lines += [
            "| " + TextReport.titles.joined(separator: " | ") + " |",
            "|" + TextReport.titles.indices.map { $0 < 2 ? "---|" : "---:|" }.joined(),
        ]
        for row in comparison.rows { lines.append("| " + TextReport.cells(row).joined(separator: " | ") + " |") }
        lines.append("")
        lines.append("Medians of \(comparison.rounds). \(comparison.host.sentence).")
        lines.append("")
        lines += TextReport.summary(comparison).map { "- " + $0 }
        lines += comparison.warnings.map { "- Note: " + $0 }
        return lines.joined(separator: "\n")
    }

    /// Writes the table, after the chart (a path as seen from there); what a file has outside the markers stays.
    package static func write(_ comparison: Comparison, chart: String? = nil, to path: String) throws {
        var text = text(comparison, chart: chart) + "\n"
        if let former = try? String(contentsOfFile: path, encoding: .utf8),
            let first = former.range(of: begin),
            let last = former.range(of: end, range: first.upperBound..<former.endIndex)
        {
            text = former[..<first.upperBound] + "\n\n" + text + "\n" + former[last.lowerBound...]
        }
        try text.write(toFile: path, atomically: true, encoding: .utf8)
    }
}
