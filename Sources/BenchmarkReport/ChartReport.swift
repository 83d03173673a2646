// The chart: for each program a bar for Roost and one for TCG, as a share of native speed.
internal import Foundation

package enum ChartReport {
    private static let left = 110.0
    private static let width = 640.0
    private static let bar = 9.0
    /// The right end of the axis; a longer bar is cut there and says its length.
    private static let most = 1.25
    private static let colors: [System: String] = [.roost: "#2563a8", .tcg: "#d08a2c"]

    package static func svg(_ comparison: Comparison) -> String {
        let rows = comparison.rows.filter { $0.median(.native) != nil }
        var shapes: [String] = []
        var y = 56.0
        for set in ["compute", "system"] {
            let members = rows.filter { $0.program.set == set }
            if members.isEmpty { continue }
            shapes.append(
                label(
                    set == "compute" ? "Compute" : "Operating system", x: 8, y: y + 10, extra: " font-weight=\"bold\""))
            y += 20
            for row in members {
                shapes.append(label(row.program.name, x: left - 6, y: y + bar + 3, extra: " text-anchor=\"end\""))
                for system in [System.roost, .tcg] {
                    if let speed = row.speed(system, relativeTo: .native) { shapes += bars(speed, system, y) }
                    y += bar
                }
                y += 5
            }
            y += 8
        }
        let height = y + 30
        let axis = stride(from: 0.0, through: most, by: 0.25).flatMap { value -> [String] in
            let x = left + value / most * width
            let stroke = value == 1 ? "#444" : "#ddd"
            return [
                line(x, 48, x, y, stroke),
                label(String(format: "%g", value), x: x, y: y + 14, extra: " text-anchor=\"middle\""),
            ]
        }
        let total = left + width + 50
        return
            ([
                "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 \(number(total)) \(number(height))\" "
                    + "font-family=\"sans-serif\" font-size=\"11\" fill=\"#222\">",
                "<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>",
                label(
                    "Speed as a share of native (1 = native, longer is faster)", x: 8, y: 18, extra: " font-size=\"14\""
                ),
            ] + legend() + axis + shapes + ["</svg>", ""]).joined(separator: "\n")
    }

    private static func legend() -> [String] {
        [System.roost, .tcg].enumerated().flatMap { index, system -> [String] in
            let x = left + Double(index) * 110
            return [rectangle(x, 30, 10, 10, system), label(system.title, x: x + 15, y: 39)]
        }
    }

    private static func bars(_ speed: Double, _ system: System, _ y: Double) -> [String] {
        let length = min(speed, most) / most * width
        let text = String(format: "%.2f", speed)
        return [
            rectangle(left, y, length, bar - 1, system),
            label(text, x: left + length + 3, y: y + bar - 1, extra: " font-size=\"8\""),
        ]
    }

    private static func rectangle(_ x: Double, _ y: Double, _ width: Double, _ height: Double, _ system: System)
        -> String
    {
        "<rect x=\"\(number(x))\" y=\"\(number(y))\" width=\"\(number(width))\" height=\"\(number(height))\" "
            + "fill=\"\(colors[system] ?? "#888")\"/>"
    }

    private static func line(_ x1: Double, _ y1: Double, _ x2: Double, _ y2: Double, _ stroke: String) -> String {
        "<line x1=\"\(number(x1))\" y1=\"\(number(y1))\" x2=\"\(number(x2))\" y2=\"\(number(y2))\" stroke=\"\(stroke)\"/>"
    }

    private static func label(_ text: String, x: Double, y: Double, extra: String = "") -> String {
        "<text x=\"\(number(x))\" y=\"\(number(y))\"\(extra)>\(text)</text>"
    }

    private static func number(_ value: Double) -> String { String(format: "%.1f", value) }
}
