// `roost run`: makes a machine of the options and runs it.
internal import AgentClient
internal import AgentProtocol
internal import ArgumentParser
internal import Foundation
internal import HostOS
internal import Images
internal import Machine
internal import Machines
internal import Storage

/// `roost run`.
struct RunCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "run", abstract: "Run a virtual machine until it powers off.",
        discussion: """
            The terminal belongs to the guest while it runs. Ctrl-A x ends the machine, Ctrl-A h lists the keys, \
            Ctrl-A Ctrl-A sends Ctrl-A. A machine with a name is kept: 'roost start' runs it again, 'roost delete' deletes it.
            """)

    @OptionGroup var machine: MachineOptions

    @Option(help: "Keep the machine under this name; its disk is its own, over the image's.")
    var name: String?

    @Flag(name: .shortAndLong, help: "Run it in the background, under a name; see 'roost console'.")
    var detach = false

    @Flag(name: .customLong("rm"), help: "Delete the machine when it stops.")
    var isTemporary = false

    @Option(help: "Where the console is: stdio, file:PATH or pty.")
    var console: ConsoleOption = ConsoleOption(value: .standard)

    @Option(help: "Print to standard error: exits, interrupts, instructions, blocks; comma-separated.")
    var trace: TraceOption = TraceOption(value: [])

    @Flag(help: "Name translated code for perf, in /tmp/perf-PID.map.")
    var perf = false

    @Flag(help: "Print statistics to standard error at the end.")
    var stats = false

    @Flag(help: "Print them as JSON.")
    var json = false

    @OptionGroup var program: ProgramOptions

    @Argument(parsing: .postTerminator, help: "A program to run in a throw-away machine of the image, after --.")
    var command: [String] = []

    /// Refuses what would be ignored.
    func validate() throws {
        if command.isEmpty, let word = program.given.first {
            throw ValidationError(
                "\(word) is for a program, which comes after --: roost run IMAGE \(word) … -- PROGRAM")
        }
        var ofTerminal: [String] = []
        if console.value != .standard { ofTerminal.append("--console") }
        if !trace.value.isEmpty { ofTerminal.append("--trace") }
        if perf { ofTerminal.append("--perf") }
        if stats || json { ofTerminal.append(stats ? "--stats" : "--json") }
        if detach, let word = ofTerminal.first {
            throw ValidationError(
                "\(word) is for a machine in the foreground; leave out --detach, or see 'roost console'")
        }
        if machine.cloudInit != nil { ofTerminal.append("--cloud-init") }
        if !command.isEmpty, let word = ofTerminal.first {
            throw ValidationError("\(word) doesn't go with a program after --, whose machine has booted before")
        }
    }

    func run() throws {
        if !command.isEmpty { return try runProgram() }
        let image = try machine.guestImage()
        let configuration = try machine.configuration(image)
        guard name != nil || detach || isTemporary else { return try runUnnamed(image, configuration) }
        let store = MachineStore.standard
        let name = name ?? store.freeName()
        let fixed = detach ? nil : commandLine(of: image)
        var progress = ProgressLine()
        let stored = try store.make(
            name, image: image, imageName: machine.image, configuration, isTemporary: isTemporary,
            userData: machine.cloudInit
        ) { progress.show($0, $1, $2) }
        progress.finish()
        var hasRun = false
        do {
            if detach {
                try MonitorProcess.launch(stored)
                print(name)
            } else {
                try runHere(try MachineMonitor(stored, in: store), commandLine: fixed) { hasRun = true }
            }
        } catch {
            // A machine that never ran is of no use under its name.
            if !hasRun { try? store.delete(stored) }
            throw error
        }
    }

    /// Runs a program in a machine that goes when it has ended.
    private func runProgram() throws {
        guard let image = try machine.guestImage(), name == nil, !detach else {
            throw ValidationError("a program after -- wants an image, and neither --name nor --detach")
        }
        var configuration = try machine.configuration(image)
        // Code that nobody trusts has no network unless that is said.
        if machine.net.isEmpty { configuration.networks = [] }
        let request = try program.request(command)
        Terminal.prepareStandardStreams()
        var progress = ProgressLine()
        let end = try ThrowAwayMachine.run(
            request, image: image, configuration, seconds: program.timeout, streams: .standard
        ) { stage, done, total in
            if !stage.isEmpty { return progress.show(stage, done, total) }
            progress.finish()
            if request.terminal != nil { _ = Terminal.makeRaw(0) }
        }
        if end == .timedOut {
            Terminal.note("roost: the program was ended after its \(program.timeout ?? 0) s, and its machine with it")
        }
        ProgramOptions.finish(end)
    }

    /// Runs a machine that nobody keeps; the image's disk keeps what the guest writes.
    private func runUnnamed(_ image: GuestImage?, _ configuration: MachineConfiguration) throws {
        var configuration = configuration
        if let image {
            var progress = ProgressLine()
            try image.separateDisk { progress.show($0, $1, $2) }
            progress.finish()
            configuration.disks.insert(DiskConfiguration(path: image.disk), at: 0)
            if let line = commandLine(of: image) { configuration.boot.commandLine = line }
        }
        let volume = try self.machine.cloudInit.map { try CloudInitVolume.temporary(userData: $0) }
        defer { if let volume { try? FileManager.default.removeItem(atPath: volume) } }
        if let volume {
            configuration.disks.append(
                DiskConfiguration(path: volume, options: DiskOptions(isReadOnly: true, format: .raw)))
        }
        adjust(&configuration)
        let machine = try Machine(configuration)
        // It is open now.
        if let volume { try FileManager.default.removeItem(atPath: volume) }
        let outcome = machine.run()
        try finish(outcome, machine)
    }

    /// Runs a machine that is kept in this process.
    private func runHere(_ monitor: MachineMonitor, commandLine: String?, started: () -> Void) throws {
        let (outcome, machine) = try monitor.run(
            adjust: { configuration in
                adjust(&configuration)
                if let commandLine { configuration.boot.commandLine = commandLine }
            }, started: { _ in started() })
        try finish(outcome, machine)
    }

    /// What belongs to this run, not to the machine.
    private func adjust(_ configuration: inout MachineConfiguration) {
        configuration.countsInstructions = stats || json
        configuration.console = console.value
        configuration.namesForPerf = perf
        configuration.trace = trace.value
    }

    /// Ends the process as the run has ended.
    private func finish(_ outcome: MachineOutcome, _ machine: Machine) throws {
        if stats || json { try printStatistics(machine.statistics) }
        let status = ExitStatus(outcome)
        if let message = status.message { FileHandle.standardError.write(Data("roost: \(message)\n".utf8)) }
        Foundation.exit(status.code)
    }

    /// The image's command line where a console on a terminal says which; nil where there is nothing to add.
    private func commandLine(of image: GuestImage?) -> String? {
        guard let image, machine.append == nil, case .standard = console.value, let size = Terminal.size(STDIN_FILENO)
        else { return nil }
        let kind = ProcessInfo.processInfo.environment["TERM"]
        return image.commandLine(terminal: kind, columns: size.columns, rows: size.rows)
    }

    private func printStatistics(_ statistics: RunStatistics) throws {
        var text = statistics.report
        if json {
            let encoder = JSONEncoder()
            encoder.outputFormatting = [.prettyPrinted, .sortedKeys, .withoutEscapingSlashes]
            text = String(decoding: try encoder.encode(statistics), as: UTF8.self)
        }
        FileHandle.standardError.write(Data((text + "\n").utf8))
    }
}
