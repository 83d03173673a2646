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
}

extension BlockBackend {
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

/// A virtio disk; requests are done on workers, by turns, and finish through the door.
public final class VirtioBlock: VirtioDevice {
    /// What a request asks for.
    enum Operation: Sendable {
        case read(offset: UInt64, count: Int)
        case write(offset: UInt64)
        case flush
        case discard([Range<UInt64>])
        case writeZeroes([(range: Range<UInt64>, mayUnmap: Bool)])
        case identify
        case refused(UInt8)
    }

    private struct Contents: Sendable {
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
    static let largestRequest = 16 << 20
    static let largestRange: UInt32 = 1 << 22
    static let mostRanges: UInt32 = 16

    private let backend: any BlockBackend
    private let door: any Door
    private let workers: [any Worker]
    private let queues: Int
    private let gate = TransferGate()
    private let identifier: String
    private let contents: Mutex<Contents>

    /// Makes a disk; `identifier` is what the guest reads as its serial number (20 bytes of it).
    public init(
        backend: any BlockBackend, door: any Door, identifier: String = "roost", queues: Int = 1,
        workers: [any Worker] = [QueueWorker(name: "roost.block")]
    ) {
        precondition(queues > 0 && !workers.isEmpty)
        self.backend = backend
        self.door = door
        self.workers = workers
        self.queues = queues
        self.identifier = identifier
        contents = Mutex(Contents(isWriteCacheOn: !backend.writesThrough))
    }

    // MARK: Identity

    /// Block.
    public var deviceID: UInt16 { 2 }
    /// Mass storage, other.
    public var classCode: UInt32 { 0x018000 }
    /// As many queues as there are to be.
    public var queueSizes: [UInt16] { Array(repeating: 256, count: queues) }

    /// SEG_MAX, BLK_SIZE, FLUSH, TOPOLOGY, CONFIG_WCE, MQ if there are several; read-only or DISCARD and WRITE_ZEROES.
    public var features: UInt64 {
        let common = 1 << 2 | 1 << 6 | Self.flushFeature | 1 << 10 | Self.cacheFeature
        return common | (queues > 1 ? Self.queuesFeature : 0) | (backend.isReadOnly ? 1 << 5 : 1 << 13 | 1 << 14)
    }

    /// Capacity, limits and topology.
    public var configuration: [UInt8] {
        var bytes = littleEndian(backend.byteCount / Self.sector) + littleEndian(UInt32(0)) + littleEndian(UInt32(254))
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
    public func attach(to transport: VirtioPCI) { contents.withLock { $0.reference.transport = transport } }

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
        if value & 1 == 0, !backend.isReadOnly { workers[0].run { [backend] in try? backend.flush() } }
    }

    /// Forgets requests under way, as their queue has, when they no longer use the guest's memory.
    public func reset() {
        gate.cut()
        contents.withLock { contents in
            contents.inFlight = [:]
            contents.isWriteCacheOn = !backend.writesThrough
        }
    }

    /// Takes requests and gives them to the worker.
    public func notified(queue index: Int) {
        guard let transport = contents.withLock({ $0.reference.transport }) else { return }
        var jobs: [Job] = []
        transport.withQueue(index) { (queue) throws(VirtqueueError) in
            repeat {
                while let chain = try queue.pop() { jobs.append(try keep(chain, in: queue, index)) }
            } while try queue.enableNotifications()
        }
        submit(jobs, transport)
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
        var jobs: [Job] = []
        for held in state.inFlight {
            transport.withQueue(held.queue) { (queue) throws(VirtqueueError) in
                jobs.append(try keep(try queue.chain(from: held.head), in: queue, held.queue))
            }
        }
        submit(jobs, transport)
        for queue in 0..<queues { notified(queue: queue) }
    }

    // MARK: Requests

    /// A request taken from the queue.
    private struct Job: Sendable {
        var request: UInt64
        var queue: Int
        var chain: DescriptorChain
        var epoch: UInt64
        var life: UInt64
    }

    /// Notes a chain as under way, under the queue's lock; a driver can't have more of them than descriptors.
    private func keep(_ chain: DescriptorChain, in queue: Virtqueue, _ index: Int) throws(VirtqueueError) -> Job {
        let limit = queues * 256
        let request = contents.withLock { contents -> UInt64? in
            guard contents.inFlight.count < limit else { return nil }
            let request = contents.nextRequest
            contents.nextRequest = request &+ 1
            contents.inFlight[request] = HeldChain(queue: index, head: chain.head)
            return request
        }
        guard let request else { throw .tooManyInFlight }
        return Job(request: request, queue: index, chain: chain, epoch: queue.epoch, life: gate.life)
    }

    private func submit(_ jobs: [Job], _ transport: VirtioPCI) {
        for job in jobs {
            let worker = workers[Int(job.request % UInt64(workers.count))]
            worker.run { [weak self] in self?.perform(job, transport) }
        }
    }

    /// On the worker.
    private func perform(_ job: Job, _ transport: VirtioPCI) {
        var status: UInt8 = 0
        var result = Transferred()
        do {
            result = try perform(parse(job.chain, transport), job, transport)
        } catch let error as BlockStatus {
            status = error.rawValue
        } catch {
            status = BlockStatus.ioError.rawValue
        }
        let count = result.count
        door.admit(.blockCompletion(id: job.request, error: Int32(status), data: result.data)) { [weak self] event in
            guard case .blockCompletion(_, let error, let data) = event else { return }
            self?.finish(job, transport, UInt8(truncatingIfNeeded: error), Transferred(data: data, count: count))
        }
    }

    /// What a request brings: bytes that are yet to be put in the guest's memory, or how many are there.
    private struct Transferred {
        var data: [UInt8] = []
        var count = 0
    }

    private func finish(_ job: Job, _ transport: VirtioPCI, _ status: UInt8, _ result: Transferred) {
        let chain = job.chain
        transport.complete(job.queue, head: chain.head, epoch: job.epoch) {
            contents.withLock { _ = $0.inFlight.removeValue(forKey: job.request) }
            let room = chain.writableLength
            guard room > 0 else { return 0 }
            let data = result.data.count < room ? result.data : Array(result.data.prefix(room - 1))
            let written = result.count + transport.memory.scatter(data, into: chain.writable)
            _ = transport.memory.scatter([status], into: chain.writable, offset: room - 1)
            return written + 1
        }
    }

    /// Reads the header; what it asks for is checked against the disk.
    ///
    /// - Spec: virtio 1.2, 5.2.6
    private func parse(_ chain: DescriptorChain, _ transport: VirtioPCI) -> Operation {
        let header = transport.memory.gather(chain.readable, limit: 16)
        guard header.count == 16, chain.writableLength >= 1 else { return .refused(1) }
        let type = number(header[0..<4])
        let sector = number(header[8..<16])
        switch type {
        case 0:
            let count = chain.writableLength - 1
            guard let range = extent(sector, count), count <= Self.largestRequest else { return .refused(1) }
            return .read(offset: range.lowerBound, count: count)
        case 1:
            let count = chain.readableLength - 16
            guard let range = extent(sector, count), count <= Self.largestRequest, !backend.isReadOnly else {
                return .refused(1)
            }
            return .write(offset: range.lowerBound)
        case 4: return .flush
        case 8: return .identify
        case 11, 13: return backend.isReadOnly ? .refused(1) : parseRanges(chain, transport, isDiscard: type == 11)
        default: return .refused(2)
        }
    }

    /// A range of bytes inside the disk, whole sectors.
    private func extent(_ sector: UInt64, _ count: Int) -> Range<UInt64>? {
        let sectors = backend.byteCount / Self.sector
        guard count >= 0, count % Int(Self.sector) == 0, sector <= sectors,
            UInt64(count) / Self.sector <= sectors - sector
        else { return nil }
        return sector * Self.sector..<sector * Self.sector + UInt64(count)
    }

    private func parseRanges(_ chain: DescriptorChain, _ transport: VirtioPCI, isDiscard: Bool) -> Operation {
        let length = chain.readableLength - 16
        guard length >= 16, length % 16 == 0, length <= Int(Self.mostRanges) * 16 else { return .refused(2) }
        let bytes = transport.memory.gather(chain.readable, offset: 16, limit: length)
        guard bytes.count == length else { return .refused(1) }
        var ranges: [(range: Range<UInt64>, mayUnmap: Bool)] = []
        for start in stride(from: 0, to: length, by: 16) {
            let count = number(bytes[start + 8..<start + 12])
            let flags = number(bytes[start + 12..<start + 16])
            guard flags & ~1 == 0, !(isDiscard && flags & 1 != 0), count <= UInt64(Self.largestRange) else {
                return .refused(2)
            }
            guard let range = extent(number(bytes[start..<start + 8]), Int(count) * 512) else { return .refused(1) }
            ranges.append((range, flags & 1 != 0))
        }
        return isDiscard ? .discard(ranges.map { $0.range }) : .writeZeroes(ranges)
    }

    private func perform(_ operation: Operation, _ job: Job, _ transport: VirtioPCI) throws -> Transferred {
        switch operation {
        case .read(let offset, let count):
            if door.isOrdered { return Transferred(data: try backend.read(at: offset, count: count)) }
            try backend.read(at: offset, into: buffer(job, transport, count, isFilled: true))
            return Transferred(count: count)
        case .write(let offset):
            let count = job.chain.readableLength - 16
            try backend.write(buffer(job, transport, count, isFilled: false), at: offset)
            try makeDurable()
        case .flush: try backend.flush()
        case .discard(let ranges):
            for range in ranges { try backend.discard(at: range.lowerBound, length: UInt64(range.count)) }
        case .writeZeroes(let ranges):
            for (range, mayUnmap) in ranges {
                try backend.writeZeroes(at: range.lowerBound, length: UInt64(range.count), mayUnmap: mayUnmap)
            }
            try makeDurable()
        case .identify:
            let bytes = Array(identifier.utf8.prefix(20))
            return Transferred(data: bytes + [UInt8](repeating: 0, count: 20 - bytes.count))
        case .refused(let status): throw BlockStatus(rawValue: status) ?? .ioError
        }
        return Transferred()
    }

    /// Where a request's data are.
    private func buffer(_ job: Job, _ transport: VirtioPCI, _ count: Int, isFilled: Bool) -> TransferBuffer {
        TransferBuffer(
            transport.memory, isFilled ? job.chain.writable : job.chain.readable, from: isFilled ? 0 : 16,
            count: count, isFilled: isFilled, gate: gate, life: job.life)
    }

    /// After a write, where there is no write cache.
    private func makeDurable() throws {
        if !contents.withLock({ $0.isWriteCacheOn }) { try backend.flush() }
    }
}

/// How a request that failed ends.
///
/// - Spec: virtio 1.2, 5.2.6
enum BlockStatus: UInt8, Error {
    case ioError = 1
    case unsupported = 2
}
