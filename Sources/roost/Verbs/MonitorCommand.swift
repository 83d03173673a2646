// `roost monitor`: the process of a machine that runs in the background. Not for people.
internal import ArgumentParser
internal import Foundation
internal import HostOS
internal import Machine
internal import Machines

/// `roost monitor`.
struct MonitorCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "monitor", abstract: "Be the process of a machine.", shouldDisplay: false)

    @OptionGroup var machine: MachineArgument

    /// Starts a machine in the background; returns when its guest runs.
    static func launch(_ machine: StoredMachine) throws { try machine.launch(["monitor", machine.name]) }

    func run() throws {
        let report = LaunchReport()
        let monitor: MachineMonitor
        do { monitor = try MachineMonitor(try machine.find(), in: .standard) } catch {
            report.finish(Self.failure(error))
            throw error
        }
        var pending: LaunchReport? = consume report
        do {
            let (outcome, _) = try monitor.run(adjust: { $0.console = .detached }) { machine in
                try TerminationSignals.onArrival { machine.end() }
                pending.take()?.finish()
            }
            let status = ExitStatus(outcome)
            if let message = status.message { FileHandle.standardError.write(Data("roost: \(message)\n".utf8)) }
            Foundation.exit(status.code)
        } catch {
            pending.take()?.finish(Self.failure(error))
            throw error
        }
    }

    private static func failure(_ error: any Error) -> StartFailure {
        let status = ExitStatus(known: error)
        return StartFailure(status: status?.code ?? ExitStatus.failure, status?.message ?? "\(error)")
    }
}
