// Telling a guest that goes on from a snapshot what has changed since.
internal import AgentClient
internal import AgentProtocol
internal import Foundation
internal import HostOS
internal import Machine

/// The news for a guest; who wants something of its agent waits until it has them.
final class GuestRefresh: @unchecked Sendable {
    // SAFETY of @unchecked: `isAtWork` is touched with the lock held.
    private let lock = ConditionLock()
    private var isAtWork = false

    /// Tells the guest, as soon as its agent answers, what time it is, and a copy that it is one; then a copy's files, which
    /// it was made without waiting for, are put on the disk.
    func start(_ machine: Machine, _ stored: StoredMachine, _ manifest: MachineManifest, _ goesOn: GoingOn) throws {
        let isClone = goesOn.isClone
        let identity = isClone ? (machine: manifest.id.hexadecimal, host: stored.name) : nil
        let cards = isClone ? manifest.machine.networks.map { $0.macAddress ?? [] } : []
        lock.update { isAtWork = true }
        try HostThread.detached(name: "roost-refresh") { [self] in
            if let stream = try? machine.connectAgent(milliseconds: 30000) {
                do throws(AgentError) {
                    let agent = try AgentConnection(stream)
                    try agent.refresh(identity: identity, addresses: cards)
                    if goesOn.hasOtherMounts { try agent.perform(.synchronizeMounts(isForced: true)) }
                } catch {
                    Terminal.note("roost: \(error)")
                }
            }
            lock.update { isAtWork = false }
            if isClone {
                do { try stored.synchronize() } catch { Terminal.note("roost: machine '\(stored.name)': \(error)") }
            }
        }
    }

    /// Waits until the guest knows.
    func wait() { lock.wait(until: { !isAtWork }) }
}

extension UUID {
    /// Its 32 digits.
    var hexadecimal: String { uuidString.lowercased().filter { $0 != "-" } }
}
