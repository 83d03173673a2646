// `roost console`: a running machine's console on this terminal.
internal import ArgumentParser
internal import Foundation
internal import HostOS
internal import Machines

/// `roost console`.
struct ConsoleCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "console", abstract: "Attach to a running machine's console.",
        discussion: """
            Ctrl-A d leaves it, the machine goes on; Ctrl-A h lists the keys. Several may be attached at a time, and what \
            any of them types reaches the guest.
            """)

    @OptionGroup var machine: MachineArgument

    @Option(help: "How much of what was shown before to show again: bytes, or a number with K.")
    var history: MemorySize = MemorySize(bytes: 16 << 10)

    func run() throws { try Self.attach(try machine.find(), history: history.bytes) }

    /// Attaches, and says how that ended where a person sees it.
    static func attach(_ machine: StoredMachine, history: UInt64) throws {
        let ending = try AttachedConsole.run(machine, history: history)
        guard Terminal.isTerminal(2) else { return }
        let name = machine.name
        switch ending {
        case .detached: Terminal.note("\nroost: machine '\(name)' goes on; `roost console \(name)` comes back")
        case .machineEnded: Terminal.note("\nroost: machine '\(name)' has ended")
        }
    }
}
