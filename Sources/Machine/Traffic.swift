// How much a machine's disks and network cards have moved.
internal import Synchronization

/// Bytes moved since the machine began.
public struct TrafficCount: Sendable, Codable, Equatable {
    /// Read from disks.
    public var diskRead: UInt64 = 0
    /// Written to disks.
    public var diskWritten: UInt64 = 0
    /// Received by network cards.
    public var received: UInt64 = 0
    /// Sent by network cards.
    public var sent: UInt64 = 0
}

/// The counters; any thread adds to them.
final class Traffic: Sendable {
    private let diskRead = Atomic<UInt64>(0)
    private let diskWritten = Atomic<UInt64>(0)
    private let received = Atomic<UInt64>(0)
    private let sent = Atomic<UInt64>(0)

    func addDiskRead(_ bytes: Int) { diskRead.wrappingAdd(UInt64(bytes), ordering: .relaxed) }
    func addDiskWritten(_ bytes: Int) { diskWritten.wrappingAdd(UInt64(bytes), ordering: .relaxed) }
    func addReceived(_ bytes: Int) { received.wrappingAdd(UInt64(bytes), ordering: .relaxed) }
    func addSent(_ bytes: Int) { sent.wrappingAdd(UInt64(bytes), ordering: .relaxed) }

    var count: TrafficCount {
        TrafficCount(
            diskRead: diskRead.load(ordering: .relaxed), diskWritten: diskWritten.load(ordering: .relaxed),
            received: received.load(ordering: .relaxed), sent: sent.load(ordering: .relaxed))
    }
}
