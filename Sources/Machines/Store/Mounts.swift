// Folders of the host that a machine's guest has: in its manifest, and while it runs behind its file system device too.
internal import AgentClient
internal import AgentProtocol
internal import HostOS
public import Machine
internal import Storage
internal import Synchronization

/// What is to be unmounted.
public struct UnmountParameters: Codable, Sendable {
    /// Where the guest has it.
    public var path: String
    /// Also if the guest uses it: what it has open is lost.
    public var isForced: Bool

    /// Names a path.
    public init(path: String, isForced: Bool = false) {
        self.path = path
        self.isForced = isForced
    }
}

/// Whether the guest has what was mounted.
public struct MountAnswer: Codable, Sendable {
    /// It has it now; else it gets it when its agent starts.
    public var isThere: Bool
}

extension StoredMachine {
    /// Gives the guest a folder of the host's, from now on and at each start. Whether it has it now.
    public func mount(_ mount: MountConfiguration) throws -> Bool {
        if isRunning {
            return try control().call(MachineRequest.mount, mount, returning: MountAnswer.self).isThere
        }
        let lock = try lock()
        defer { withExtendedLifetime(lock) {} }
        do { _ = try FolderPlace(folder: mount.folder) } catch {
            throw MachinesError(.badRequest, "\(mount.folder): \(error.reason)")
        }
        return try self.mount(mount, in: nil)
    }

    /// Takes a folder of the host's from the guest, for good.
    public func unmount(_ wanted: UnmountParameters) throws {
        if isRunning {
            _ = try control().call(MachineRequest.unmount, wanted) as NoParameters
            return
        }
        let lock = try lock()
        defer { withExtendedLifetime(lock) {} }
        try unmount(wanted, in: nil)
    }

    /// The same in the process that has the machine. A guest without an agent, or still booting, gets it later; one that
    /// can't mount it leaves all as it was.
    func mount(_ mount: MountConfiguration, in running: Machine?) throws -> Bool {
        try mountsInTurn.withLock { _ in
            guard MountConfiguration.isPath(mount.path) else {
                throw MachinesError(
                    .badRequest, "'\(mount.path)' can't be a folder's place in a guest: it must be absolute and plain")
            }
            try check(mount, isRunning: running != nil)
            try running?.mount(mount)
            do {
                let isThere = try running?.synchronizeMounts() ?? false
                try edit { $0.machine.mounts = ($0.machine.mounts ?? []) + [mount] }
                return isThere
            } catch {
                try? running?.setMountListed(false, at: mount.path)
                _ = try? running?.synchronizeMounts(isForced: true)
                try? running?.unmount(mount.path)
                throw error
            }
        }
    }

    private func check(_ mount: MountConfiguration, isRunning: Bool) throws {
        let machine = try manifest().machine
        guard machine.clock == .host else {
            throw MachinesError(
                .badRequest, "with virtual time folders don't come and go: the run could not be repeated")
        }
        guard machine.mounts != nil || !isRunning else {
            throw MachinesError(
                .running, "machine '\(name)' is from before folders could be mounted while it runs; stop it first")
        }
        guard machine.mounts != nil || pendingRestore == nil else {
            throw MachinesError(
                .badRequest,
                "machine '\(name)' goes on from a snapshot of before folders could be mounted; start it first, and stop it"
            )
        }
        let mounts = machine.mounts ?? []
        if let other = mounts.first(where: { $0.path == mount.path }) {
            throw MachinesError(.exists, "machine '\(name)' has \(other.folder) at \(mount.path) already")
        }
        guard mounts.count < MountConfiguration.most else {
            throw MachinesError(.badRequest, "a machine has at most \(MountConfiguration.most) mounted folders")
        }
    }

    /// The same in the process that has the machine.
    func unmount(_ wanted: UnmountParameters, in running: Machine?) throws {
        try mountsInTurn.withLock { _ in
            guard try manifest().machine.mounts?.contains(where: { $0.path == wanted.path }) == true else {
                throw MachinesError(.notFound, "machine '\(name)' has nothing mounted at \(wanted.path)")
            }
            if let running {
                try running.setMountListed(false, at: wanted.path)
                do { _ = try running.synchronizeMounts(isForced: wanted.isForced) } catch {
                    if !wanted.isForced {
                        try running.setMountListed(true, at: wanted.path)
                        throw error
                    }
                }
                try running.unmount(wanted.path)
            }
            try edit { $0.machine.mounts?.removeAll { $0.path == wanted.path } }
        }
    }
}

/// One mount at a time comes or goes.
private let mountsInTurn = Mutex(())

extension Machine {
    /// Has the guest mount and unmount what it is to have now; false if no agent answers.
    func synchronizeMounts(isForced: Bool = false) throws -> Bool {
        let agent: AgentConnection
        do { agent = try self.agent() } catch let error as MachineError where error.code == .agent {
            return false
        } catch is AgentError {
            return false
        }
        do throws(AgentError) {
            try agent.perform(.synchronizeMounts(isForced: isForced), milliseconds: Self.answerPatience)
            return true
        } catch {
            if error.errno == 0 {
                throw MachinesError(
                    .notAnswering,
                    "\(error): an agent from before folders could be mounted? `roost image build --replace` makes the image anew"
                )
            }
            let advice = error.errno == HostErrorNumber.busy ? "; --force takes it away all the same" : ""
            throw MachinesError(.guest, "\(error)\(advice)")
        }
    }
}
