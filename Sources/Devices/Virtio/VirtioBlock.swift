// The virtio block device.
//
// Virtual I/O Device (VIRTIO) 1.2, 5.2.
//
//   configuration  00 capacity 64   08 size_max 32   0C seg_max 32   10 geometry   14 blk_size 32
//                  18 physical_block_exp 8, alignment_offset 8, min_io_size 16, opt_io_size 32   20 writeback 8
//                  22 num_queues 16   24 max_discard_sectors 32   28 max_discard_seg 32   2C discard_sector_alignment 32
//                  30 max_write_zeroes_sectors 32   34 max_write_zeroes_seg 32   38 write_zeroes_may_unmap 8
//   request        type 32, reserved 32, sector 64; data; status 8 (0 done, 1 I/O error, 2 unsupported)
public import DeviceModel
public import GuestMemory
internal import Synchronization

/// What a block device stores to: a disk of 512-byte sectors.
public protocol BlockBackend: AnyObject, Sendable {
    /// Bytes, a multiple of 512.
    var byteCount: UInt64 { get }
    /// Whether writes fail.
    var isReadOnly: Bool { get }
    /// Whether every write is to be durable when it is done, unless the guest wants otherwise.
    var writesThrough: Bool { get }
    /// Fills a buffer from `offset`.
    func read(at offset: UInt64, into buffer: TransferBuffer) throws
    /// Writes a buffer's bytes at `offset`.
    func write(_ buffer: TransferBuffer, at offset: UInt64) throws
    /// Makes everything written durable.
    func flush() throws
    /// Says that a range isn't needed any more; what it reads as is undefined.
    func discard(at offset: UInt64, length: UInt64) throws
    /// Makes a range read as zeroes.
    func writeZeroes(at offset: UInt64, length: UInt64, mayUnmap: Bool) throws
    /// Discards for a request, a transfer of no bytes: nothing is done if its device has been reset, which waits for it.
    func discard(at offset: UInt64, length: UInt64, for request: TransferBuffer) throws
    /// Zeroes for a request, in the same way.
    func writeZeroes(at offset: UInt64, length: UInt64, mayUnmap: Bool, for request: TransferBuffer) throws
}

extension BlockBackend {
    /// Discards as the request's transfer.
    public func discard(at offset: UInt64, length: UInt64, for request: TransferBuffer) throws {
        try request.withMemory { _ in try discard(at: offset, length: length) }
    }

    /// Zeroes as the request's transfer.
    public func writeZeroes(
        at offset: UInt64, length: UInt64, mayUnmap: Bool, for request: TransferBuffer
    ) throws {
        try request.withMemory { _ in try writeZeroes(at: offset, length: length, mayUnmap: mayUnmap) }
    }

    /// Reads `count` bytes from `offset`.
    func read(at offset: UInt64, count: Int) throws -> [UInt8] {
        let buffer = TransferBuffer(count: count)
        try read(at: offset, into: buffer)
        return buffer.bytes
    }

    /// Writes bytes at `offset`.
    func write(_ bytes: [UInt8], at offset: UInt64) throws { try write(TransferBuffer(bytes), at: offset) }
}

/// What a backend throws where the guest can be told more than that it failed.
public enum BlockError: Error, Sendable {
    /// The host has no room left.
    case noRoom
}

/// A virtio disk; a server takes its requests and carries them out, and they finish through the door.
public final class VirtioBlock: VirtioDevice {
    struct Contents: Sendable {
        var inFlight: [UInt64: HeldChain] = [:]
        var nextRequest: UInt64 = 0
        var isWriteCacheOn: Bool
        var reference = WeakTransport()
    }

    private static let flushFeature: UInt64 = 1 << 9
    private static let cacheFeature: UInt64 = 1 << 11
    private static let queuesFeature: UInt64 = 1 << 12
    /// Where `writeback` is in the configuration.
    private static let cacheOffset = 0x20

    static let sector: UInt64 = 512
    /// Room for a request of 1 MiB in scattered pages, with its header and status.
    private static let queueSize: UInt16 = 512
    static let largestRequest = 16 << 20
    static let largestRange: UInt32 = 1 << 22
    static let mostRanges: UInt32 = 16

    let backend: any BlockBackend
    let door: any Door
    private let server: any BlockServer
    private let queues: Int
    private let sources = Mutex<[BlockSource]>([])
    let gate = TransferGate()
    let identifier: String
    let contents: Mutex<Contents>
    /// Fires when the queues are to be looked at.
    private let timer = Mutex<(any DoorTimer)?>(nil)

    /// Makes a disk; `identifier` is what the guest reads as its serial number (20 bytes of it).
    public init(
        backend: any BlockBackend, door: any Door, identifier: String = "roost", queues: Int = 1,
        server: any BlockServer
    ) {
        precondition(queues > 0)
        self.backend = backend
        self.door = door
        self.server = server
        self.queues = queues
        self.identifier = identifier
        contents = Mutex(Contents(isWriteCacheOn: !backend.writesThrough))
        let look = door.makeTimer { [weak self] in self?.lookAtAll() }
        timer.withLock { $0 = look }
    }

    // MARK: Identity

    /// Block.
    public var deviceID: UInt16 { 2 }
    /// Mass storage, other.
    public var classCode: UInt32 { 0x018000 }
    /// As many queues as there are to be.
    public var queueSizes: [UInt16] { Array(repeating: Self.queueSize, count: queues) }

    /// SEG_MAX, BLK_SIZE, FLUSH, TOPOLOGY, CONFIG_WCE, MQ if there are several; read-only or DISCARD and WRITE_ZEROES.
    public var features: UInt64 {
        let common = 1 << 2 | 1 << 6 | Self.flushFeature | 1 << 10 | Self.cacheFeature
        return common | (queues > 1 ? Self.queuesFeature : 0) | (backend.isReadOnly ? 1 << 5 : 1 << 13 | 1 << 14)
    }

    /// Capacity, limits and topology.
    public var configuration: [UInt8] {
        var bytes =
            littleEndian(backend.byteCount / Self.sector) + littleEndian(UInt32(0))
            + littleEndian(UInt32(Self.queueSize - 2))
        bytes += [0, 0, 0, 0] + littleEndian(UInt32(512))
        bytes += [3, 0] + littleEndian(UInt16(8)) + littleEndian(UInt32(0))
        bytes += [contents.withLock { $0.isWriteCacheOn } ? 1 : 0, 0] + littleEndian(UInt16(queues))
        for _ in 0..<2 {
            bytes += littleEndian(Self.largestRange) + littleEndian(Self.mostRanges) + littleEndian(UInt32(8))
        }
        // The second triple ends in write_zeroes_may_unmap instead of an alignment.
        bytes.replaceSubrange(0x38..<0x3C, with: [1, 0, 0, 0])
        return bytes
    }

    // MARK: Life

    /// Keeps a weak reference.
    public func attach(to transport: VirtioPCI) {
        contents.withLock { $0.reference.transport = transport }
        sources.withLock { $0 = (0..<queues).map { BlockSource(self, transport, queue: $0) } }
    }

    /// A driver that can't flush gets every write made durable.
    ///
    /// - Spec: virtio 1.2, 5.2.5.2
    public func activate(features: UInt64) {
        if features & (Self.flushFeature | Self.cacheFeature) == 0 { contents.withLock { $0.isWriteCacheOn = false } }
    }

    /// `writeback`: whether writes may stay in a cache until they are flushed.
    public func configure(offset: Int, value: UInt8) {
        guard offset == Self.cacheOffset else { return }
        contents.withLock { $0.isWriteCacheOn = value & 1 != 0 }
        if value & 1 == 0, !backend.isReadOnly { server.run { [backend] in try? backend.flush() } }
    }

    /// Forgets requests under way, as their queue has, when they no longer use the guest's memory.
    public func reset() {
        gate.cut()
        contents.withLock { contents in
            contents.inFlight = [:]
            contents.isWriteCacheOn = !backend.writesThrough
        }
    }

    /// Has the server look at a queue.
    public func notified(queue index: Int) {
        let source = sources.withLock { $0.indices.contains(index) ? $0[index] : nil }
        if let source, source.begins() { server.wake(source) }
    }

    private func lookAtAll() { for queue in 0..<queues { notified(queue: queue) } }

    /// Has the queues looked at, at a time or when the door opens after it.
    func look(at time: UInt64) {
        let timer = timer.withLock { $0 }
        timer?.arm(at: time)
    }

    /// Heads of the requests under way.
    public func saveDeviceState() -> VirtioDeviceState {
        var state = VirtioDeviceState()
        contents.withLock { contents in
            state.inFlight = contents.inFlight.sorted { $0.key < $1.key }.map { $0.value }
            state.isWriteCacheOn = contents.isWriteCacheOn
        }
        return state
    }

    /// Does the requests again that were under way: reads and writes may be repeated.
    public func restoreDeviceState(_ state: VirtioDeviceState) throws {
        guard let transport = contents.withLock({ $0.reference.transport }) else { return }
        if let isOn = state.isWriteCacheOn { contents.withLock { $0.isWriteCacheOn = isOn } }
        for held in state.inFlight {
            guard let source = sources.withLock({ $0.indices.contains(held.queue) ? $0[held.queue] : nil }) else {
                continue
            }
            transport.withQueue(held.queue) { (queue) throws(VirtqueueError) in
                source.again(try keep(try queue.chain(from: held.head), in: queue, held.queue))
            }
        }
        // A timer that isn't due yet holds up nobody if the machine goes away before the door has ever been open.
        let isOpen = door.admitNow(.several([])) { [weak self] _ in self?.lookAtAll() }
        if !isOpen { look(at: door.now &+ 1) }
    }

    /// Notes a chain as under way, under the queue's lock; a driver can't have more of them than descriptors.
    func keep(_ chain: DescriptorChain, in queue: Virtqueue, _ index: Int) throws(VirtqueueError) -> BlockJob {
        let limit = queues * Int(Self.queueSize)
        let request = contents.withLock { contents -> UInt64? in
            guard contents.inFlight.count < limit else { return nil }
            let request = contents.nextRequest
            contents.nextRequest = request &+ 1
            contents.inFlight[request] = HeldChain(queue: index, head: chain.head)
            return request
        }
        guard let request else { throw .tooManyInFlight }
        return BlockJob(request: request, chain: chain, epoch: queue.epoch, life: gate.life)
    }
}
