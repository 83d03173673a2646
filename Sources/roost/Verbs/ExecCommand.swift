// `roost exec` and `roost shell`: programs in a machine's guest, through its agent.
internal import AgentClient
internal import AgentProtocol
internal import ArgumentParser
internal import Foundation
internal import HostOS
internal import Machines

/// How a program in a guest is run.
struct ProgramOptions: ParsableArguments {
    @Option(help: "The guest's user that it runs as.")
    var user: String = "root"

    @Option(help: "The guest's folder that it begins in (default: the user's home).")
    var workdir: String?

    @Option(help: ArgumentHelp("A variable of its environment; repeatable.", valueName: "name=value"))
    var env: [String] = []

    @Flag(
        inversion: .prefixedNo, help: "Give it a terminal (default: if standard input and output are one).")
    var tty: Bool?

    @Option(help: ArgumentHelp("End it after so long, with status 124.", valueName: "seconds"))
    var timeout: Double?

    /// Which of them are not as they are by default.
    var given: [String] {
        [
            (user != "root", "--user"), (workdir != nil, "--workdir"), (!env.isEmpty, "--env"), (tty != nil, "--tty"),
            (timeout != nil, "--timeout"),
        ].filter(\.0).map(\.1)
    }

    /// What is asked of the agent.
    func request(_ command: [String]) throws -> ProgramRequest {
        for variable in env where !variable.contains("=") || variable.hasPrefix("=") {
            throw ValidationError("--env wants NAME=VALUE, not '\(variable)'")
        }
        if let timeout, !(timeout > 0 && timeout < 1e9) { throw ValidationError("--timeout wants seconds") }
        var request = ProgramRequest(command: command)
        request.user = user
        request.folder = workdir ?? ""
        request.environment = env
        if tty ?? (Terminal.isTerminal(0) && Terminal.isTerminal(1)) {
            let size = Terminal.size(1) ?? (80, 24)
            request.terminal = TerminalSize(
                columns: UInt16(clamping: size.columns), rows: UInt16(clamping: size.rows))
            if let kind = ProcessInfo.processInfo.environment["TERM"], !env.contains(where: { $0.hasPrefix("TERM=") }) {
                request.environment.append("TERM=" + kind)
            }
        }
        return request
    }

    /// Ends the process as the program has ended.
    static func finish(_ end: CommandEnd) -> Never {
        Terminal.restore()
        switch end {
        case .program(let end): Foundation.exit(end.status)
        case .timedOut: Foundation.exit(124)
        }
    }
}

/// `roost exec`.
struct ExecCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "exec", abstract: "Run a program in a running machine's guest.",
        discussion: """
            Its standard streams, its signals and the size of its terminal are those of this command, which ends with its \
            status: 126 if it can't be run, 127 if it isn't there, 128 and the signal's number if one ended it.
            """)

    @OptionGroup var machine: MachineArgument
    @OptionGroup var options: ProgramOptions

    @Argument(parsing: .postTerminator, help: "The program and its arguments, after --.")
    var command: [String] = []

    func run() throws {
        guard !command.isEmpty else { throw ValidationError("nothing to run: give a program after --") }
        try Self.run(try machine.find(), try options.request(command), timeout: options.timeout)
    }

    /// Runs it, and ends this process as it ends.
    static func run(_ machine: StoredMachine, _ request: ProgramRequest, timeout: Double?) throws -> Never {
        Terminal.prepareStandardStreams()
        let agent = try machine.agent(within: 60)
        if request.terminal != nil { _ = Terminal.makeRaw(0) }
        let deadline = timeout.map { HostClock.monotonic &+ UInt64($0 * 1e9) } ?? .max
        let end = try agent.run(request, .standard, deadline: deadline)
        if end == nil { Terminal.note("roost: the program was ended after its \(timeout ?? 0) s; the machine goes on") }
        ProgramOptions.finish(end.map { .program($0) } ?? .timedOut)
    }
}

/// `roost shell`.
struct ShellCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "shell", abstract: "Open a shell in a machine's guest; starts the machine if it doesn't run.")

    @OptionGroup var machine: MachineArgument
    @OptionGroup var options: ProgramOptions

    func run() throws {
        let machine = try machine.find()
        if !machine.isRunning { try MonitorProcess.launch(machine) }
        let login = "exec \"${SHELL:-/bin/sh}\" -l"
        try ExecCommand.run(machine, try options.request(["/bin/sh", "-c", login]), timeout: options.timeout)
    }
}
