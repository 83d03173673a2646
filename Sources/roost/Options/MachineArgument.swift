// The machine that a verb is about, by name; shells complete it.
internal import ArgumentParser
internal import Machines

/// A machine that is kept.
struct MachineArgument: ParsableArguments {
    @Argument(help: "The machine's name; see 'roost list'.", completion: MachineNames.completion)
    var name: String

    /// The machine.
    func find() throws -> StoredMachine { try MachineStore.standard.find(name) }
}

/// The names of machines, for shells.
enum MachineNames {
    static let completion = CompletionKind.custom { _, _, _ in MachineStore.standard.list().map(\.name) }
}

/// Asking before something is lost.
enum Confirmation {
    /// Asks on the terminal; where there is none, `--yes` is needed.
    static func require(_ question: String, yes: Bool) throws {
        if yes { return }
        guard TerminalInput.isTerminal else {
            throw ValidationError("\(question) Say --yes to do it without being asked.")
        }
        print("\(question) [y/N] ", terminator: "")
        TerminalInput.flush()
        let answer = readLine()?.lowercased() ?? ""
        guard answer == "y" || answer == "yes" else {
            throw ExitStatus(code: ExitStatus.machine, message: "nothing done")
        }
    }
}
