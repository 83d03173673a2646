// `roost monitor NAME`: the process of a machine that runs in the background. Not for people, so it is no command: reading
// those takes longer than restoring the machine.
internal import Foundation
internal import HostOS
internal import Machine
internal import Machines

/// What this program does as a machine's process.
enum MonitorProcess {
    /// The first argument.
    static let word = "monitor"

    /// Starts a machine in the background; returns when its guest runs.
    static func launch(_ machine: StoredMachine) throws { try machine.launch([word, machine.name]) }

    /// Runs the machine of a name to its end.
    static func run(_ name: String) throws {
        let report = LaunchReport()
        let monitor: MachineMonitor
        do { monitor = try MachineMonitor(try MachineStore.standard.find(name), in: .standard) } catch {
            report.finish(failure(error))
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
            pending.take()?.finish(failure(error))
            throw error
        }
    }

    private static func failure(_ error: any Error) -> StartFailure {
        let status = ExitStatus(known: error)
        return StartFailure(status: status?.code ?? ExitStatus.failure, status?.message ?? "\(error)")
    }
}
