// `roost reset`, the button on a PC's case, `roost pause` and `roost resume`.
internal import ArgumentParser
internal import Machines

/// `roost reset`.
struct ResetCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "reset", abstract: "Reset a running machine, as the button on a PC's case does.",
        discussion: "What the guest has not written to its disks is lost.")

    @OptionGroup var machine: MachineArgument

    func run() throws { try machine.find().control().call(MachineRequest.reset) }
}

/// `roost pause`.
struct PauseCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "pause", abstract: "Stop a machine's processors; its clocks stand still.")

    @OptionGroup var machine: MachineArgument

    func run() throws { try machine.find().control().call(MachineRequest.pause) }
}

/// `roost resume`.
struct ResumeCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "resume", abstract: "Let a paused machine go on where it stopped.")

    @OptionGroup var machine: MachineArgument

    func run() throws { try machine.find().control().call(MachineRequest.resume) }
}
