// The virtio entropy device.
//
// Virtual I/O Device (VIRTIO) 1.2, 5.4. Queue 0: buffers to fill with random bytes.
public import DeviceModel
internal import Synchronization

/// A source of randomness for the guest: the door's.
public final class VirtioEntropy: VirtioDevice {
    static let mostBytes = 65536

    private let door: any Door
    private let reference = Mutex(WeakTransport())

    /// Makes a source.
    public init(door: any Door) { self.door = door }

    /// Entropy source.
    public var deviceID: UInt16 { 4 }
    /// Unclassified, other.
    public var classCode: UInt32 { 0x00FF00 }
    /// One queue.
    public var queueSizes: [UInt16] { [64] }
    /// None of its own.
    public var features: UInt64 { 0 }
    /// None.
    public var configuration: [UInt8] { [] }
    /// Keeps a weak reference.
    public func attach(to transport: VirtioPCI) { reference.withLock { $0.transport = transport } }
    /// Nothing to do.
    public func activate(features: UInt64) {}
    /// Nothing to forget.
    public func reset() {}

    /// Fills buffers, at most 64 KiB each.
    public func notified(queue: Int) {
        guard let transport = reference.withLock({ $0.transport }) else { return }
        transport.drain(0, limit: 256) { chain, _ in
            let bytes = door.randomBytes(min(chain.writableLength, Self.mostBytes))
            return transport.memory.scatter(bytes, into: chain.writable)
        }
    }
}
