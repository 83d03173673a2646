// `roost set`, `roost rename`, `roost delete`: changes to machines that are kept.
internal import ArgumentParser
internal import HostOS
internal import Machine
internal import Machines
internal import Storage

/// `roost set`.
struct SetCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "set", abstract: "Change what a machine is made of.",
        discussion:
            "Processors, memory, balloon and limits can be set while the machine runs, the rest when it doesn't.")

    @OptionGroup var machine: MachineArgument

    @Option(
        help: "Number of processors: N[,max=M]; N at once if it runs, up to the M that it was started with.",
        transform: ProcessorsOption.init(parsing:))
    var cpus: ProcessorsOption?

    @Option(
        help: "Memory: SIZE[,max=SIZE]; SIZE at once if it runs, from what it was started with to the max.",
        transform: MemoryOption.init(parsing:))
    var memory: MemoryOption?

    @Option(help: "Memory that the guest is asked to give back; at once if it runs.")
    var balloon: MemorySize?

    @Option(help: "What runs the processor.")
    var engine: EngineKind?

    @OptionGroup var limits: LimitOptions

    func validate() throws {
        if let memory, memory.bytes < 1 << 20 || memory.bytes % 4096 != 0 {
            throw ValidationError("memory is at least 1M, and a multiple of 4K")
        }
        let isChange = cpus != nil || memory != nil || balloon != nil || engine != nil
        if !isChange && limits.change.isEmpty { throw ValidationError("nothing to change; see 'roost set --help'") }
    }

    func run() throws {
        let stored = try machine.find()
        if stored.isRunning, cpus?.maximum == nil, memory?.maximum == nil, engine == nil {
            if let cpus { try stored.setProcessors(cpus.count) }
            if let memory { try stored.setMemory(memory.bytes) }
            if let balloon { try stored.setBalloon(balloon.bytes) }
            if !limits.change.isEmpty { try stored.setLimits(limits.change) }
            return
        }
        try stored.change { machine in
            cpus?.apply(to: &machine)
            memory?.apply(to: &machine)
            if let balloon { machine.balloon = balloon.bytes }
            if let engine { machine.engine = engine }
        }
        if !limits.change.isEmpty { try stored.setLimits(limits.change) }
    }
}

/// `roost rename`.
struct RenameCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "rename", abstract: "Give a machine another name, whether it runs or not.")

    @OptionGroup var machine: MachineArgument

    @Argument(help: "The new name.")
    var to: String

    func run() throws { _ = try MachineStore.standard.rename(try machine.find(), to: to) }
}

/// `roost delete`.
struct DeleteCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "delete", abstract: "Delete machines with their disks.", aliases: ["rm"])

    @Argument(help: "The machines' names.", completion: MachineNames.completion)
    var names: [String]

    @Flag(name: .shortAndLong, help: "Don't ask.")
    var yes = false

    @Flag(help: "End those that run first.")
    var force = false

    func run() throws {
        let store = MachineStore.standard
        let machines = try names.map { try store.find($0) }
        for machine in machines where machine.isRunning && !force {
            throw MachinesError(
                .running, "machine '\(machine.name)' runs; `roost stop \(machine.name)` stops it, --force ends it")
        }
        try Confirmation.require("Delete \(names.joined(separator: ", ")) with all their disks hold?", yes: yes)
        for machine in machines {
            if machine.isRunning {
                try? machine.control().call(MachineRequest.end)
                _ = machine.hasStopped(within: 10)
            }
            // One that ran with --rm is gone by now.
            if FileDescriptor.exists(machine.folder) { try store.delete(machine) }
        }
    }
}
