// `roost logs` and `roost events`: what a machine's console showed, and what happened to it.
internal import ArgumentParser
internal import Foundation
internal import HostOS
internal import Machines

/// `roost logs`.
struct LogsCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "logs", abstract: "Print what a machine's console showed, of earlier runs too.")

    @OptionGroup var machine: MachineArgument

    @Flag(name: .shortAndLong, help: "Go on with what comes, until the machine stops.")
    var follow = false

    @Option(name: .shortAndLong, help: "Only so many lines from the end.")
    var lines: Int?

    func validate() throws {
        if let lines, lines < 0 { throw ValidationError("--lines is a number of lines") }
    }

    func run() throws {
        let machine = try machine.find()
        guard follow, machine.isRunning else {
            return ConsoleText.print(machine.consoleTail(lines: lines ?? .max).joined(separator: "\n"))
        }
        // The stream holds the last of what the file has, and then what comes.
        let stream = try machine.control().stream(
            MachineRequest.console, ByteCountParameters(bytes: lines == nil ? .max : 0))
        if let lines { ConsoleText.print(machine.consoleTail(lines: lines).joined(separator: "\n")) }
        stream.finishWriting()
        let output = ByteStream(writing: 1)
        while true {
            let bytes = stream.read(limit: 65536)
            if bytes.isEmpty || output.write(bytes) != nil { return }
        }
    }
}

/// `roost events`.
struct EventsCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "events", abstract: "Print what happened to a machine, as JSON lines.",
        discussion: """
            Events are started, paused, resumed, reset, shutDown (by the agent), powerButton, snapshot (one was taken), \
            panicked (the kernel said so, on the console or by its device), crashKernel (it panicked, and its crash kernel \
            goes on), watchdog (nobody fed it), ended and failed.
            """)

    @OptionGroup var machine: MachineArgument

    @Flag(name: .shortAndLong, help: "This run's events, and those that come, until the machine stops.")
    var follow = false

    func run() throws {
        let machine = try machine.find()
        guard follow else {
            for path in [machine.eventsPath + ".1", machine.eventsPath] {
                _ = ByteStream(writing: 1).write((try? HostFile.contents(of: path, limit: 16 << 20)) ?? [])
            }
            return
        }
        let stream = try machine.control().stream(MachineRequest.events, NoParameters())
        while true {
            let bytes = stream.read(limit: 65536)
            if bytes.isEmpty || ByteStream(writing: 1).write(bytes) != nil { return }
        }
    }
}

/// Text of a console on standard output.
private enum ConsoleText {
    static func print(_ text: String) { _ = ByteStream(writing: 1).write(Array(text.utf8)) }
}
