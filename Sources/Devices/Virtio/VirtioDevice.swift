// What a virtio device is to its transport, and the transport to a device.
public import DeviceModel

/// Feature bits that every device shares.
///
/// - Spec: virtio 1.2, 6
public enum VirtioFeature {
    /// Descriptors may point to tables of descriptors.
    public static let indirectDescriptors: UInt64 = 1 << 28
    /// Notifications are suppressed by index.
    public static let eventIndex: UInt64 = 1 << 29
    /// The modern interface.
    public static let version1: UInt64 = 1 << 32
}

/// What sits behind a virtio transport.
public protocol VirtioDevice: AnyObject, Sendable {
    /// The device ID (virtio 1.2, 5): 1 network, 2 block, 3 console, 4 entropy.
    var deviceID: UInt16 { get }
    /// The PCI class code, 24 bits.
    var classCode: UInt32 { get }
    /// Features of its own; the transport adds those every device shares.
    var features: UInt64 { get }
    /// The largest size of each queue, powers of two.
    var queueSizes: [UInt16] { get }
    /// The device-specific configuration as it is now.
    var configuration: [UInt8] { get }
    /// The driver wrote one byte of the device-specific configuration.
    func configure(offset: Int, value: UInt8)
    /// The device has been put behind a transport; it may keep a weak reference.
    func attach(to transport: VirtioPCI)
    /// The driver is ready; `features` were agreed on.
    func activate(features: UInt64)
    /// The driver has put buffers in a queue (called on the vCPU's thread).
    func notified(queue: Int)
    /// Forgets everything of the driver; no buffer may be touched any more.
    func reset()
    /// What it holds beside its queues.
    func saveDeviceState() -> VirtioDeviceState
    /// Puts back what it held, after the queues.
    func restoreDeviceState(_ state: VirtioDeviceState) throws
}

extension VirtioDevice {
    /// Ignored.
    public func configure(offset: Int, value: UInt8) {}
    /// Nothing.
    public func saveDeviceState() -> VirtioDeviceState { VirtioDeviceState() }
    /// Nothing.
    public func restoreDeviceState(_ state: VirtioDeviceState) throws {}
}

/// What a device holds beside its queues, as plain data.
public struct VirtioDeviceState: Codable, Sendable, Equatable {
    /// Version of this layout.
    public var version = 1
    /// Chains taken and not yet given back: they are done again.
    public var inFlight: [HeldChain] = []
    /// Input not yet delivered.
    public var input: [UInt8] = []
    /// Frames not yet delivered.
    public var frames: [[UInt8]] = []
    /// Of a disk: whether writes may stay in a cache until they are flushed.
    public var isWriteCacheOn: Bool?
    /// Of a SCSI controller.
    public var scsi: VirtioSCSI.State?
    /// What the guest knows of a shared folder.
    public var folder: SharedFolderState?
    /// Of memory that comes and goes.
    public var memory: VirtioMemory.State?
    /// What a network card's driver has set.
    public var network: VirtioNetControl?
    /// What a balloon holds, and is to hold.
    public var balloon: VirtioBalloon.State?

    /// Nothing held.
    public init() {}
}

/// A chain that a device has taken from a queue.
public struct HeldChain: Codable, Sendable, Equatable {
    /// The queue.
    public var queue: Int
    /// The chain's first descriptor.
    public var head: UInt16

    /// Names a chain.
    public init(queue: Int, head: UInt16) {
        self.queue = queue
        self.head = head
    }
}

/// Where a device does what would hold up a virtual CPU: jobs run one after the other, in order.
public protocol Worker: Sendable {
    /// Runs a job later, after those given before.
    func run(_ job: @escaping @Sendable () -> Void)
}

/// A worker that runs a job at once: where time is virtual, and for tests.
public struct InlineWorker: Worker {
    /// Makes one.
    public init() {}
    /// Runs the job.
    public func run(_ job: @escaping @Sendable () -> Void) { job() }
}

/// A reference to a transport that doesn't keep it alive.
struct WeakTransport: Sendable {
    weak var transport: VirtioPCI?
}

/// Little-endian bytes of a number.
func littleEndian<T: FixedWidthInteger>(_ value: T) -> [UInt8] {
    (0..<T.bitWidth / 8).map { UInt8(truncatingIfNeeded: value >> T($0 * 8)) }
}

/// A number from little-endian bytes; missing bytes are zero.
func number(_ bytes: some Sequence<UInt8>) -> UInt64 {
    var value: UInt64 = 0
    for (index, byte) in bytes.prefix(8).enumerated() { value |= UInt64(byte) << UInt64(index * 8) }
    return value
}
