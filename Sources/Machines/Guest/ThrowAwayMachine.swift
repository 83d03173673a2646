// One command in a machine that nobody keeps.
public import AgentClient
public import AgentProtocol
internal import Foundation
internal import HostOS
public import Images
public import Machine

/// How a command in a throw-away machine ended.
public enum CommandEnd: Sendable, Equatable {
    /// As a program ends.
    case program(ProgramEnd)
    /// Its time was over.
    case timedOut
}

/// Runs commands in machines that go when they have ended.
public enum ThrowAwayMachine {
    /// Runs one; `seconds` is the time that the command has, nil: any.
    public static func run(
        _ request: ProgramRequest, image: GuestImage, _ configuration: MachineConfiguration, seconds: Double?,
        streams: ProgramStreams, progress: ProgressReport
    ) throws -> CommandEnd {
        let machine = try warmMachine(image, configuration, progress)
        progress("", 0, 0)
        let run = try BackgroundRun(machine)
        defer { run.end() }
        let agent = try AgentConnection(try machine.connectAgent(milliseconds: 20000))
        let identity = UUID().uuidString.replacingOccurrences(of: "-", with: "").lowercased()
        try agent.refresh(identity: (machine: identity, host: ""))
        let deadline = seconds.map { HostClock.monotonic &+ UInt64($0 * 1e9) } ?? .max
        do throws(AgentError) {
            guard let end = try agent.run(request, streams, deadline: deadline) else { return .timedOut }
            return .program(end)
        } catch {
            if let outcome = run.outcome, error.errno == 0 {
                throw MachinesError(.startFailed, "the machine ended under the command: \(outcome.inWords.text)")
            }
            throw error
        }
    }

    private static func warmMachine(
        _ image: GuestImage, _ configuration: MachineConfiguration, _ progress: ProgressReport
    ) throws -> Machine {
        let warm = try WarmImage(image, configuration, progress: progress)
        do { return try warm.machine() } catch let error as MachineError where error.code == .state {
            // Saved by another Roost, or damaged.
            warm.remove()
            return try WarmImage(image, configuration, progress: progress).machine()
        }
    }
}
