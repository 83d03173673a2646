// Lists as people and programs read them: a table, JSON, YAML, CSV, or names alone.
internal import ArgumentParser
internal import Foundation

/// How a list is printed.
enum ListFormat: String, ExpressibleByArgument, CaseIterable {
    case table, json, yaml, csv
}

/// What every list takes.
struct ListOptions: ParsableArguments {
    @Option(help: "How to print it: table, json, yaml or csv.")
    var format: ListFormat = .table

    @Flag(name: .shortAndLong, help: "Print names only.")
    var quiet = false

    /// Prints a list; the first column is the name.
    func show(_ listing: Listing, ifEmpty: String) {
        if quiet {
            for row in listing.rows { print(row.first?.plain ?? "") }
        } else if format == .table && listing.rows.isEmpty {
            print(ifEmpty)
        } else {
            print(listing.text(format), terminator: "")
        }
    }
}

/// Rows of values under names.
struct Listing {
    /// A value.
    enum Field {
        case text(String)
        case number(UInt64)
        /// Bytes: a number to programs, shortened for people.
        case bytes(UInt64)
        case fraction(Double)
        case none

        init(_ text: String?) { self = text.map { .text($0) } ?? .none }
        init(_ number: UInt64?) { self = number.map { .number($0) } ?? .none }

        /// As it is, for programs.
        var plain: String {
            switch self {
            case .text(let text): text
            case .number(let number), .bytes(let number): String(number)
            case .fraction(let number): String(format: "%.1f", number)
            case .none: ""
            }
        }

        /// As people like it.
        var shown: String {
            switch self {
            case .bytes(let number): Listing.short(number)
            case .none: "-"
            default: plain
            }
        }

        fileprivate var json: String {
            switch self {
            case .text(let text):
                (try? JSONEncoder.plain.encode(text)).map { String(decoding: $0, as: UTF8.self) } ?? "null"
            case .none: "null"
            default: plain
            }
        }
    }

    /// Names of the columns, as keys: lower camel case.
    var columns: [String]
    var rows: [[Field]] = []

    /// Bytes in few digits.
    static func short(_ bytes: UInt64) -> String {
        var (value, place) = (Double(bytes), 0)
        while value >= 1024 && place < 4 {
            value /= 1024
            place += 1
        }
        let unit = ["B", "K", "M", "G", "T"][place]
        return
            (place == 0 || value >= 100 || value == value.rounded()
            ? String(format: "%.0f", value)
            : String(format: "%.1f", value)) + unit
    }

    /// The list in a format, lines with their ends.
    func text(_ format: ListFormat) -> String {
        switch format {
        case .table: table
        case .json:
            "["
                + rows.map { row in
                    "\n  {" + zip(columns, row).map { "\"\($0)\": \($1.json)" }.joined(separator: ", ") + "}"
                }.joined(separator: ",") + (rows.isEmpty ? "]\n" : "\n]\n")
        // JSON's strings are YAML's double-quoted ones (YAML 1.2, 5.7).
        case .yaml:
            rows.isEmpty
                ? "[]\n"
                : rows.map { row in
                    "- " + zip(columns, row).map { "\($0): \($1.json)" }.joined(separator: "\n  ") + "\n"
                }.joined()
        case .csv:
            ([columns] + rows.map { $0.map(\.plain) }).map { row in row.map(Self.quoted).joined(separator: ",") + "\r\n"
            }
            .joined()
        }
    }

    /// A field of CSV (RFC 4180, 2).
    private static func quoted(_ text: String) -> String {
        guard text.unicodeScalars.contains(where: { ",\"\r\n".unicodeScalars.contains($0) }) else { return text }
        return "\"" + text.replacingOccurrences(of: "\"", with: "\"\"") + "\""
    }

    private var table: String {
        let lines = [columns.map(Self.heading)] + rows.map { $0.map { $0.shown.filter { !$0.isNewline } } }
        let widths = columns.indices.map { column in lines.map { $0[column].count }.max() ?? 0 }
        return lines.map { line in
            let padded = zip(line, widths).map { $0.padding(toLength: $1, withPad: " ", startingAt: 0) }
            return padded.joined(separator: "  ").trimmingCharacters(in: .whitespaces) + "\n"
        }.joined()
    }

    /// diskRead becomes DISK READ.
    private static func heading(_ column: String) -> String {
        column.map { $0.isUppercase ? " \($0)" : $0.uppercased() }.joined()
    }
}

extension JSONEncoder {
    fileprivate static var plain: JSONEncoder {
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.withoutEscapingSlashes]
        return encoder
    }
}
