// A machine that runs on a thread of this process.
internal import Foundation
internal import HostOS
public import Machine
internal import Synchronization

/// Runs a machine until it ends or is ended.
public final class BackgroundRun: Sendable {
    private let machine: Machine
    private let result: Outcome
    private let thread: HostThread

    private final class Outcome: Sendable {
        let value = Mutex<MachineOutcome?>(nil)
    }

    /// Begins to run it.
    public init(_ machine: Machine) throws {
        self.machine = machine
        let result = Outcome()
        self.result = result
        thread = try HostThread(name: "roost-machine") {
            let outcome = machine.run()
            result.value.withLock { $0 = outcome }
        }
    }

    /// How it has ended; nil while it runs.
    public var outcome: MachineOutcome? { result.value.withLock { $0 } }

    /// Ends it and waits.
    public func end() {
        machine.end()
        thread.join()
    }
}
