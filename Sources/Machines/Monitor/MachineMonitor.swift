// The process of a machine that is kept: takes it, runs it, answers for it, and writes down how it ended.
internal import Foundation
internal import HostOS
public import Machine
internal import Synchronization

/// Runs a machine that is kept, in this process.
public final class MachineMonitor: Sendable {
    private let stored: StoredMachine
    private let store: MachineStore
    private let lock: MachineLock
    private let manifest: MachineManifest
    private let goesOn: GoingOn
    private let record: RunKeeper
    private let refresh = GuestRefresh()
    /// It stays though it is one that goes when it stops.
    private let isKept = Atomic(false)

    /// Takes a machine; nobody else has it until this object goes. Its folder is this process's from now on.
    public init(_ stored: StoredMachine, in store: MachineStore) throws {
        self.store = store
        lock = try stored.lock()
        self.stored = try stored.enter(with: lock)
        self.stored.sweepHalfWritten()
        goesOn = try self.stored.finishRestore()
        manifest = try self.stored.manifest()
        record = RunKeeper(self.stored)
    }

    /// Runs it to its end. `adjust` has the last word on what it is made of; `started` is called when the guest is about to
    /// run and requests are answered.
    public func run(
        adjust: (inout MachineConfiguration) -> Void = { _ in }, started: (Machine) throws -> Void
    ) throws -> (outcome: MachineOutcome, machine: Machine) {
        let events = try EventLog(stored)
        try record.change { _ in }
        let machine: Machine
        let server: ControlServer
        do {
            var configuration = manifest.machine.resolved(in: stored.folder)
            configuration.consoleLog = ConsoleLog(path: stored.consoleLogPath)
            configuration.snapshot = goesOn.snapshot
            adjust(&configuration)
            machine = try Machine(configuration)
            let note: @Sendable (MachineEvent) -> Void = { [unowned machine] event in
                if event != .ended { events.note(event.rawValue) }
                guard event == .paused || event == .resumed else { return }
                // The end has the last word.
                try? self.record.change { if $0.ended == nil { $0.state = machine.state } }
            }
            machine.onEvent(note)
            server = try ControlServer(
                path: stored.socketPath,
                handlers: MachineRequest.handlers(
                    machine, stored, events, refresh, note: note,
                    keep: { self.isKept.store(true, ordering: .releasing) }))
            try events.watch(machine.console.history)
            stored.hasGoneOn()
            if goesOn.snapshot != nil { try refresh.start(machine, stored, manifest, goesOn) }
            try started(machine)
            if configuration.wantedMemory != nil { stored.bringOnline(machine) }
        } catch {
            events.note("failed", "\(error)")
            try record.change { $0.end("\(error)", isFailure: true) }
            throw error
        }
        let outcome = machine.run()
        let (words, isFailure) = outcome.inWords
        events.note("ended", words)
        events.lines.close()
        server.close()
        try record.change { $0.end(words, isFailure: isFailure) }
        if manifest.isTemporary == true, !isKept.load(ordering: .acquiring) { try store.deleteLocked(stored) }
        return (outcome, machine)
    }
}
