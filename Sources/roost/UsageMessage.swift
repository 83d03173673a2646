// What is said about a command line that makes no sense: one line that tells what was wanted.
internal import ArgumentParser
internal import Foundation

enum UsageMessage {
    /// The error in one line: with the option's own help where a value is wrong, with the nearest command where that is.
    static func text(for error: any Error) -> String {
        let message = firstLine(Roost.message(for: error))
        if let command = mistypedCommand(Array(CommandLine.arguments.dropFirst())),
            message.contains("'\(command.word)'")
        {
            let nearest = command.known.min { distance($0, command.word) < distance($1, command.word) }
            let hint = nearest.flatMap { distance($0, command.word) <= 2 ? " Did you mean '\($0)'?" : nil }
            return "there is no command '\(command.word)'."
                + (hint ?? " There are: \(command.known.joined(separator: ", ")).")
        }
        // Some values tell themselves what is wrong with them.
        guard message.contains("is invalid for"), !message.contains("Please provide"), !message.contains("': "),
            let help = help(in: Roost.fullMessage(for: error))
        else { return message }
        return "\(message). \(help)"
    }

    private static func firstLine(_ text: String) -> String {
        text.split(separator: "\n").first.map(String.init) ?? text
    }

    /// The words after the option's name in the line that begins with "Help:".
    private static func help(in text: String) -> String? {
        guard let line = text.split(separator: "\n").first(where: { $0.hasPrefix("Help:") }),
            let end = line.range(of: ">  ")
        else { return nil }
        return line[end.upperBound...].split(separator: " ").joined(separator: " ")
    }

    /// A word that stands where a command is wanted and is none.
    private static func mistypedCommand(_ arguments: [String]) -> (word: String, known: [String])? {
        guard let first = arguments.first, !first.hasPrefix("-") else { return nil }
        let commands =
            Roost.configuration.subcommands.filter { $0.configuration.shouldDisplay }.compactMap {
                $0.configuration.commandName
            }
            + ["help"]
        if !commands.contains(first) { return (first, commands) }
        let further = [
            "image": ["build", "list"], "disk": ["create", "info", "convert", "check", "resize", "snapshot"],
        ]
        guard let known = further[first], arguments.count > 1, !arguments[1].hasPrefix("-") else { return nil }
        return known.contains(arguments[1]) ? nil : (arguments[1], known)
    }

    /// How many letters must change to make one word of the other.
    private static func distance(_ a: String, _ b: String) -> Int {
        let (a, b) = (Array(a.utf8), Array(b.utf8))
        var row = Array(0...b.count)
        for (i, letter) in a.enumerated() {
            var diagonal = row[0]
            row[0] = i + 1
            for (j, other) in b.enumerated() {
                let change = diagonal + (letter == other ? 0 : 1)
                diagonal = row[j + 1]
                row[j + 1] = min(change, diagonal + 1, row[j] + 1)
            }
        }
        return row[b.count]
    }
}
