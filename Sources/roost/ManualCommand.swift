// `roost manual`: writes the manual pages, from the same descriptions as `--help`. For `make install`.
internal import ArgumentParser
internal import Foundation

/// `roost manual`.
struct ManualCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "manual", abstract: "Write the manual pages.", shouldDisplay: false)

    @Argument(help: "The folder to write them to.")
    var folder: String

    func run() throws {
        let tool = try JSONDecoder().decode(ManualPage.Tool.self, from: Data(Roost._dumpHelp().utf8))
        try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: true)
        for page in ManualPage.pages(tool.command, above: []) {
            try Data(page.text.utf8).write(to: URL(fileURLWithPath: "\(folder)/\(page.name).1"))
        }
    }
}

/// A manual page (`man(7)`).
struct ManualPage {
    /// What the parser tells of a program.
    struct Tool: Decodable {
        var command: Command
    }

    /// What it tells of a command.
    struct Command: Decodable {
        var commandName: String
        var abstract: String?
        var discussion: String?
        var shouldDisplay: Bool?
        var subcommands: [Command]?
        var arguments: [Argument]?
    }

    /// What it tells of an argument.
    struct Argument: Decodable {
        struct Name: Decodable {
            var kind: String
            var name: String
            var text: String { (kind == "long" ? "--" : "-") + name }
        }

        var kind: String
        var shouldDisplay: Bool
        var isOptional: Bool
        var isRepeating: Bool
        var names: [Name]?
        var valueName: String?
        var defaultValue: String?
        var abstract: String?
    }

    /// The page's name, without its section.
    var name: String
    /// The page.
    var text: String

    /// The pages of a command and all below it.
    static func pages(_ command: Command, above: [String]) -> [ManualPage] {
        let words = above + [command.commandName]
        let below = (command.subcommands ?? []).filter { $0.shouldDisplay != false && $0.commandName != "help" }
        return [ManualPage(command, words, below)] + below.flatMap { pages($0, above: words) }
    }

    private init(_ command: Command, _ words: [String], _ below: [Command]) {
        name = words.joined(separator: "-")
        let arguments = (command.arguments ?? []).filter(\.shouldDisplay)
        var lines = [".TH \(name.uppercased()) 1 \"\" \"Roost\" \"Roost's manual\"", ".ad l", ".SH NAME"]
        lines.append("\(Self.escape(name)) \\- \(Self.escape(command.abstract ?? ""))")
        lines += [".SH SYNOPSIS", ".B \(Self.escape(words.joined(separator: " ")))"]
        if !below.isEmpty { lines.append(".I command") }
        if arguments.contains(where: { $0.kind != "positional" }) { lines.append("[\\fIoptions\\fR]") }
        for argument in arguments where argument.kind == "positional" { lines.append(Self.synopsis(argument)) }
        lines += [".SH DESCRIPTION", Self.escape(command.abstract ?? "")]
        if let discussion = command.discussion, !discussion.isEmpty { lines += [".PP", Self.escape(discussion)] }
        for (title, isPositional) in [("ARGUMENTS", true), ("OPTIONS", false)] {
            let chosen = arguments.filter { ($0.kind == "positional") == isPositional }
            if !chosen.isEmpty { lines += [".SH \(title)"] + chosen.flatMap(Self.entry) }
        }
        if !below.isEmpty {
            lines.append(".SH COMMANDS")
            for command in below {
                lines += [
                    ".TP", ".BR \(Self.escape(name + "-" + command.commandName)) (1)",
                    Self.escape(command.abstract ?? ""),
                ]
            }
        }
        if words.count > 1 {
            lines += [".SH SEE ALSO", ".BR \(Self.escape(words.dropLast().joined(separator: "-"))) (1)"]
        }
        text = lines.joined(separator: "\n") + "\n"
    }

    private static func synopsis(_ argument: Argument) -> String {
        let value = "\\fI\(escape(argument.valueName ?? "value"))\\fR\(argument.isRepeating ? "..." : "")"
        return argument.isOptional ? "[\(value)]" : value
    }

    private static func entry(_ argument: Argument) -> [String] {
        var head = (argument.names ?? []).map { "\\fB\(escape($0.text))\\fR" }.joined(separator: ", ")
        if argument.kind != "flag" {
            head += (head.isEmpty ? "" : " ") + "\\fI\(escape(argument.valueName ?? "value"))\\fR"
        }
        var words = escape(argument.abstract ?? "")
        if let value = argument.defaultValue, !value.isEmpty, argument.kind != "flag" {
            words += " (default: \(escape(value)))"
        }
        return [".TP", head, words]
    }

    /// Text that troff takes as it is.
    private static func escape(_ text: String) -> String {
        let escaped = text.replacing("\\", with: "\\e").replacing("-", with: "\\-").replacing("\n", with: " ")
        return escaped.hasPrefix(".") || escaped.hasPrefix("'") ? "\\&" + escaped : escaped
    }
}
