// The table as Markdown, into a file of its own or between the markers of one that says more.
internal import Foundation

package enum MarkdownReport {
    package static let end = "<!-- end of table -->"

    /// The line before the table that a command of `roost-bench` writes.
    package static func begin(_ command: String) -> String { "<!-- table: written by roost-bench \(command) -->" }

    package static func text(_ comparison: Comparison, chart: String? = nil) -> String {
        var lines = chart.map { ["![Speed as a share of native](\($0))", ""] } ?? []
        lines += table(TextReport.titles, comparison.rows.map(TextReport.cells))
        lines.append("")
        lines.append("Medians of \(comparison.rounds). \(comparison.host.sentence).")
        lines.append("")
        lines += TextReport.summary(comparison).map { "- " + $0 }
        lines += comparison.warnings.map { "- Note: " + $0 }
        return lines.joined(separator: "\n")
    }

    /// A table whose first two columns are text.
    static func table(_ titles: [String], _ rows: [[String]]) -> [String] {
        [
            "| " + titles.joined(separator: " | ") + " |",
            "|" + titles.indices.map { $0 < 2 ? "---|" : "---:|" }.joined(),
        ] + rows.map { "| " + $0.joined(separator: " | ") + " |" }
    }

    /// Writes a command's table between its markers; one that isn't there yet goes to the end of what the file has.
    package static func write(_ table: String, of command: String, to path: String) throws {
        let former = (try? String(contentsOfFile: path, encoding: .utf8)) ?? ""
        var text = former + "\(begin(command))\n\n\(table)\n\n\(end)\n"
        if let first = former.range(of: begin(command)),
            let last = former.range(of: end, range: first.upperBound..<former.endIndex)
        {
            text = former[..<first.upperBound] + "\n\n" + table + "\n\n" + former[last.lowerBound...]
        }
        try text.write(toFile: path, atomically: true, encoding: .utf8)
    }
}
