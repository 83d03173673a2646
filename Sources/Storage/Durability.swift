// What the host's word is worth when data couldn't be made durable.
internal import HostOS
internal import Synchronization

/// Whether what is written to a file can still be made durable.
///
/// The host tells once of data that it couldn't write, and forgets them: the next `fdatasync(2)` succeeds without them. So
/// a failure is for good, and none that goes away by waiting.
package final class Durability: Sendable {
    private let isLost = Atomic(false)

    /// Nothing is lost yet.
    package init() {}

    /// Makes what was written to `path` durable by a call of the host's, which must never have failed before.
    package func keep(_ path: String, _ synchronize: () throws -> Void) throws(StorageError) {
        guard !isLost.load(ordering: .acquiring) else {
            throw StorageError(.host, "disk \(path): what was written to it before couldn't be made durable")
        }
        do { try synchronize() } catch {
            isLost.store(true, ordering: .releasing)
            let reason = (error as? HostError)?.reason ?? "\(error)"
            throw StorageError(.host, "disk \(path): what was written to it can't be made durable: \(reason)")
        }
    }
}
