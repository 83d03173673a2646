// `roost stop` and `roost kill`: the ends of a machine's run, gentle and not.
internal import ArgumentParser
internal import HostOS
internal import Machines

/// `roost stop`.
struct StopCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "stop", abstract: "Shut a machine down and wait until it is off.",
        discussion: """
            Where Roost's agent answers in the guest, it shuts the guest down; elsewhere the power button is pressed, and what \
            that does is the guest's affair. A guest that is still there when the time is over goes on; --force ends it.
            """)

    @OptionGroup var machine: MachineArgument

    @Option(help: "Seconds to wait.")
    var timeout: Int = 60

    @Flag(help: "End it when the time is over, or at once with --timeout 0; its disks are written.")
    var force = false

    func validate() throws {
        guard 0...86400 ~= timeout else { throw ValidationError("--timeout is 0 to 86400 seconds") }
    }

    func run() throws {
        let machine = try machine.find()
        let control = try machine.control()
        if timeout > 0 || !force {
            try control.call(MachineRequest.shutDown)
            if machine.hasStopped(within: timeout) { return }
        }
        guard force else {
            let lines = machine.plainConsoleTail(lines: 10).joined(separator: "\n")
            throw MachinesError(
                .stillRuns,
                "machine '\(machine.name)' still runs after \(timeout) s; --force ends it. Its console shows last:\n\(lines)"
            )
        }
        try control.call(MachineRequest.end)
        if !machine.hasStopped(within: 30) {
            throw MachinesError(
                .stillRuns, "machine '\(machine.name)' doesn't end; `roost kill \(machine.name)` ends its process")
        }
    }
}

/// `roost kill`.
struct KillCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "kill", abstract: "End a machine's process at once, as a power failure does.")

    @OptionGroup var machine: MachineArgument

    func run() throws {
        let machine = try machine.find()
        guard machine.isRunning, let process = machine.holder else {
            throw MachinesError(.stopped, "machine '\(machine.name)' doesn't run")
        }
        DetachedProcess.kill(process)
        if !machine.hasStopped(within: 30) {
            throw MachinesError(.stillRuns, "machine '\(machine.name)': process \(process) doesn't end")
        }
    }
}
