// What a machine's process writes of its run: `run.json`.
internal import Foundation
internal import HostOS
public import Machine
internal import Synchronization

/// The latest run of a machine.
public struct RunRecord: Codable, Sendable, Equatable {
    /// The version of this layout.
    public private(set) var version = 1
    /// The process that runs it, or did.
    public var process: Int32
    /// When it began, in ISO 8601.
    public var started: String
    /// Whether the processors run.
    public var state = MachineState.running
    /// When it came to its end; nil while it runs, and if the process was killed.
    public var ended: String?
    /// How it ended, in words.
    public var outcome: String?
    /// Whether that was a failure.
    public var isFailure: Bool?

    init() {
        process = DetachedProcess.ownNumber
        started = Date().formatted(.iso8601)
    }

    mutating func end(_ words: String, isFailure: Bool) {
        state = .ended
        ended = Date().formatted(.iso8601)
        outcome = words
        self.isFailure = isFailure
    }
}

/// The record of a run and its file, which holds what was changed last, by whichever thread.
package final class RunKeeper: Sendable {
    private let machine: StoredMachine
    private let record = Mutex(RunRecord())

    /// Begins the record of a run of this process.
    package init(_ machine: StoredMachine) { self.machine = machine }

    /// Changes it.
    package func change(_ body: (inout RunRecord) -> Void) throws(MachinesError) {
        try record.withLock { (record) throws(MachinesError) in
            body(&record)
            try machine.save(record)
        }
    }
}

/// What a machine that is kept is doing.
public enum MachineStatus: String, Sendable, Codable {
    /// Its processors run.
    case running
    /// Its processors stand still.
    case paused
    /// It doesn't run.
    case stopped
    /// Its last run ended with a failure.
    case failed
    /// The process of its last run was killed.
    case killed
}

extension MachineOutcome {
    /// In words, and whether it is a failure.
    public var inWords: (text: String, isFailure: Bool) {
        switch self {
        case .poweredOff: ("powered off", false)
        case .reset: ("reset", false)
        case .ended: ("ended", false)
        case .debugExit(let status): ("wrote the debug-exit port: status \(status)", false)
        case .panicked: ("the kernel has panicked", true)
        case .tripleFault(let report), .engineFailed(let report), .difference(let report): (report, true)
        case .failed(let text): (text, true)
        }
    }
}
