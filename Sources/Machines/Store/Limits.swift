// Limits on a machine's disks and network cards: in its manifest, and while it runs in its devices too.
internal import Machine

/// A change to the limits of every disk or every network card; what is nil stays as it is, and 0 is no limit.
public struct LimitChange: Codable, Sendable {
    /// Requests a second.
    public var diskOperations: UInt64?
    /// Bytes a second.
    public var diskBytes: UInt64?
    /// Bits a second, each way by itself.
    public var networkRate: UInt64?
    /// Bytes that may pass at once after a pause; 0: what goes with the rate.
    public var networkBurst: UInt64?

    /// Changes nothing.
    public init() {}

    /// Whether nothing changes.
    public var isEmpty: Bool {
        [diskOperations, diskBytes, networkRate, networkBurst].allSatisfy { $0 == nil }
    }

    func apply(to limits: inout DiskLimits) {
        if let diskOperations { limits.operations = diskOperations }
        if let diskBytes { limits.bytes = diskBytes }
    }

    func apply(to limit: inout NetworkLimit?) {
        guard networkRate != nil || networkBurst != nil else { return }
        let rate = networkRate ?? limit?.rate ?? 0
        // A burst that was given with another rate stays; one that came of that rate goes with it.
        let given = limit.flatMap { $0 == NetworkLimit(rate: $0.rate) ? nil : $0.burst }
        let burst = networkBurst ?? given ?? 0
        limit = rate == 0 ? nil : NetworkLimit(rate: rate, burst: burst == 0 ? nil : burst)
    }
}

extension StoredMachine {
    /// Changes limits, from now on and at each start.
    public func setLimits(_ change: LimitChange) throws {
        if isRunning {
            _ = try control().call(MachineRequest.setLimits, change) as NoParameters
            return
        }
        let lock = try lock()
        defer { withExtendedLifetime(lock) {} }
        try setLimits(change, of: nil)
    }

    /// The same in the process that has the machine.
    func setLimits(_ change: LimitChange, of running: Machine?) throws {
        try edit { manifest in
            for index in manifest.machine.disks.indices { change.apply(to: &manifest.machine.disks[index].limits) }
            for index in manifest.machine.networks.indices { change.apply(to: &manifest.machine.networks[index].limit) }
        }
        if change.diskOperations != nil || change.diskBytes != nil { running?.changeDiskLimits(change.apply) }
        if change.networkRate != nil || change.networkBurst != nil { running?.changeNetworkLimits(change.apply) }
    }
}
