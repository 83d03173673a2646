// `roost start`: runs a machine that is kept, in the background.
internal import ArgumentParser
internal import Machines

/// `roost start`.
struct StartCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "start", abstract: "Run a machine again, in the background.")

    @OptionGroup var machine: MachineArgument

    @Flag(name: .shortAndLong, help: "Attach to its console.")
    var attach = false

    func run() throws {
        let machine = try machine.find()
        if machine.isRunning {
            throw MachinesError(.running, "machine '\(machine.name)' runs already")
        }
        try MonitorProcess.launch(machine)
        if attach { try ConsoleCommand.attach(machine, history: .max) } else { print(machine.name) }
    }
}
