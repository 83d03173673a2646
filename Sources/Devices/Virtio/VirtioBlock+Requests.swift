// The requests of a virtio block device: taken from a queue, checked, carried out, given back.
//
// Virtual I/O Device (VIRTIO) 1.2, 5.2.6.
internal import DeviceModel
public import GuestMemory
internal import Synchronization

/// Who carries out the requests of a disk's queues, on threads of its own or at once.
public protocol BlockServer: Sendable {
    /// There may be requests: `source` is to be drained until it rests.
    func wake(_ source: BlockSource)
    /// Runs something that would hold up a virtual CPU.
    func run(_ job: @escaping @Sendable () -> Void)
}

/// A request that was taken from a queue.
public struct BlockJob: Sendable {
    let request: UInt64
    let chain: DescriptorChain
    let epoch: UInt64
    let life: UInt64
    /// What it asks for.
    public internal(set) var operation = BlockOperation.refused(BlockStatus.ioError.rawValue)

    init(request: UInt64, chain: DescriptorChain, epoch: UInt64, life: UInt64) {
        self.request = request
        self.chain = chain
        self.epoch = epoch
        self.life = life
    }
}

/// What a request asks for, inside the disk.
public enum BlockOperation: Sendable {
    /// Fills the buffer from an offset.
    case read(offset: UInt64, TransferBuffer)
    /// Writes the buffer at an offset.
    case write(offset: UInt64, TransferBuffer)
    /// Makes what was written durable.
    case flush
    /// Ranges aren't needed any more.
    case discard([Range<UInt64>])
    /// Ranges are to read as zeroes.
    case writeZeroes([(range: Range<UInt64>, mayUnmap: Bool)])
    /// The disk's name.
    case identify
    /// Malformed.
    case refused(UInt8)
}

/// A request that was carried out.
public struct BlockCompletion: Sendable {
    let job: BlockJob
    let status: UInt8
    let data: [UInt8]

    /// A transfer that did all it was asked to.
    public init(done job: BlockJob) { self.init(job, status: 0) }

    fileprivate init(_ job: BlockJob, status: UInt8, data: [UInt8] = []) {
        self.job = job
        self.status = status
        self.data = data
    }
}

/// One queue of a disk: where requests come from, and go back to.
public final class BlockSource: Sendable {
    private struct Owner: Sendable {
        weak var disk: VirtioBlock?
        weak var transport: VirtioPCI?
    }

    private let owner: Mutex<Owner>
    private let queue: Int
    private let isActive = Atomic(false)
    /// Requests that were under way when the machine was saved.
    private let repeated = Mutex<[BlockJob]>([])

    init(_ disk: VirtioBlock, _ transport: VirtioPCI, queue: Int) {
        owner = Mutex(Owner(disk: disk, transport: transport))
        self.queue = queue
    }

    private var parts: (disk: VirtioBlock, transport: VirtioPCI)? {
        owner.withLock { owner in
            guard let disk = owner.disk, let transport = owner.transport else { return nil }
            return (disk, transport)
        }
    }

    /// Whether the server must be woken: nobody drains the queue.
    func begins() -> Bool { !isActive.exchange(true, ordering: .acquiringAndReleasing) }

    /// Has a request taken again that was under way when the machine was saved.
    func again(_ job: BlockJob) { repeated.withLock { $0.append(job) } }

    // MARK: For the server

    /// Takes at most `limit` requests; none if there are none now, or the device or the machine doesn't run.
    ///
    /// While the door is closed the queue stays as it is: it is being saved, and so is what has been taken from it.
    public func take(_ limit: Int) -> [BlockJob] {
        guard let door = parts?.disk.door else { return [] }
        let taken = Mutex<[BlockJob]>([])
        _ = door.admitNow(.several([])) { [self] _ in
            let jobs = takeNow(limit)
            taken.withLock { $0 = jobs }
        }
        return taken.withLock { $0 }
    }

    private func takeNow(_ limit: Int) -> [BlockJob] {
        guard let (disk, transport) = parts else { return [] }
        var jobs = repeated.withLock { repeated in
            defer { repeated = [] }
            return repeated
        }
        transport.withQueue(queue) { (queue) throws(VirtqueueError) in
            try queue.disableNotifications()
            while jobs.count < limit, let chain = try queue.pop() {
                jobs.append(try disk.keep(chain, in: queue, self.queue))
            }
        }
        for index in jobs.indices { jobs[index].operation = disk.parse(jobs[index], transport) }
        return jobs
    }

    /// Says that the source isn't looked at any more, since it was empty; false if it isn't empty any more, and goes on.
    /// If nothing could be taken, the server is woken when the door opens.
    public func rests() -> Bool {
        isActive.store(false, ordering: .releasing)
        guard let door = parts?.disk.door else { return true }
        let hasMore = Mutex(false)
        let isOpen = door.admitNow(.several([])) { [self] _ in
            let isPending = enableNotifications()
            hasMore.withLock { $0 = isPending }
        }
        guard isOpen else {
            parts?.disk.look(at: door.now)
            return true
        }
        return !(hasMore.withLock { $0 } && begins())
    }

    private func enableNotifications() -> Bool {
        let isPending = parts?.transport.withQueue(queue) { (queue) throws(VirtqueueError) in
            try queue.enableNotifications()
        }
        return isPending == true || repeated.withLock { !$0.isEmpty }
    }

    /// Carries a request out.
    public func perform(_ job: BlockJob) -> BlockCompletion {
        guard let (disk, transport) = parts else {
            return BlockCompletion(job, status: BlockStatus.ioError.rawValue)
        }
        do {
            return BlockCompletion(job, status: 0, data: try disk.perform(job, transport))
        } catch let error as BlockStatus {
            return BlockCompletion(job, status: error.rawValue)
        } catch {
            return BlockCompletion(job, status: BlockStatus.ioError.rawValue)
        }
    }

    /// Whether a write is to be durable when it is done.
    public var makesDurable: Bool { parts.map { !$0.disk.contents.withLock { $0.isWriteCacheOn } } ?? false }

    /// Lets requests that were carried out finish; the driver gets one interrupt at most.
    public func finish(_ completions: [BlockCompletion]) {
        guard !completions.isEmpty, let door = parts?.disk.door else { return }
        door.admit(Self.event(completions)) { [weak self] event in self?.giveBack(completions, event) }
    }

    /// The same, unless that has to wait because the machine is paused: then nothing happens, and it is false.
    public func finishNow(_ completions: [BlockCompletion]) -> Bool {
        guard !completions.isEmpty, let door = parts?.disk.door else { return true }
        return door.admitNow(Self.event(completions)) { [weak self] event in self?.giveBack(completions, event) }
    }

    private static func event(_ completions: [BlockCompletion]) -> ExternalEvent {
        .several(
            completions.map { .blockCompletion(id: $0.job.request, error: Int32($0.status), data: $0.data) })
    }

    /// Gives requests back whose queue still lives as it did when they were taken.
    private func giveBack(_ completions: [BlockCompletion], _ event: ExternalEvent) {
        guard let (disk, transport) = parts, case .several(let events) = event else { return }
        transport.withQueue(queue) { (queue) throws(VirtqueueError) in
            var count: UInt16 = 0
            for (completion, event) in zip(completions, events) {
                guard case .blockCompletion(let id, let error, let data) = event, queue.epoch == completion.job.epoch
                else { continue }
                disk.contents.withLock { _ = $0.inFlight.removeValue(forKey: id) }
                let written = completion.job.fill(transport.memory, UInt8(truncatingIfNeeded: error), data)
                try queue.place(head: completion.job.chain.head, written: written, ahead: count)
                count += 1
            }
            try queue.publish(count)
            if count > 0, try queue.shouldInterrupt() { transport.interrupt(queue: self.queue) }
        }
    }
}

extension TransferBuffer {
    /// A transfer of no bytes: what isn't one, and must end with its device's life as they do.
    init(_ memory: GuestMemory, gate: TransferGate, life: UInt64) {
        self.init(memory, [], from: 0, count: 0, isFilled: false, gate: gate, life: life)
    }
}

extension BlockJob {
    /// Puts data that aren't there yet, and the status, into the guest's memory; returns how many bytes were written.
    fileprivate func fill(_ memory: GuestMemory, _ status: UInt8, _ data: [UInt8]) -> Int {
        let room = chain.writableLength
        guard room > 0 else { return 0 }
        var written = memory.scatter(data.count < room ? data : Array(data.prefix(room - 1)), into: chain.writable)
        if data.isEmpty, status == 0, case .read(_, let buffer) = operation { written = buffer.count }
        _ = memory.scatter([status], into: chain.writable, offset: room - 1)
        return written + 1
    }
}

// MARK: What a request asks for

extension VirtioBlock {
    /// Reads the header; what it asks for is checked against the disk.
    ///
    /// - Spec: virtio 1.2, 5.2.6
    func parse(_ job: BlockJob, _ transport: VirtioPCI) -> BlockOperation {
        let chain = job.chain
        let header = transport.memory.gather(chain.readable, limit: 16)
        guard header.count == 16, chain.writableLength >= 1 else { return .refused(1) }
        let sector = number(header[8..<16])
        switch number(header[0..<4]) {
        case 0:
            let count = chain.writableLength - 1
            guard let range = extent(sector, count), count <= Self.largestRequest else { return .refused(1) }
            // In order, the bytes come with the event.
            if door.isOrdered { return .read(offset: range.lowerBound, TransferBuffer(count: count)) }
            let buffer = TransferBuffer(
                transport.memory, chain.writable, from: 0, count: count, isFilled: true, gate: gate, life: job.life)
            return .read(offset: range.lowerBound, buffer)
        case 1:
            let count = chain.readableLength - 16
            guard let range = extent(sector, count), count <= Self.largestRequest, !backend.isReadOnly else {
                return .refused(1)
            }
            let buffer = TransferBuffer(
                transport.memory, chain.readable, from: 16, count: count, isFilled: false, gate: gate, life: job.life)
            return .write(offset: range.lowerBound, buffer)
        case 4: return .flush
        case 8: return .identify
        case 11: return backend.isReadOnly ? .refused(1) : parseRanges(chain, transport, isDiscard: true)
        case 13: return backend.isReadOnly ? .refused(1) : parseRanges(chain, transport, isDiscard: false)
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

    private func parseRanges(_ chain: DescriptorChain, _ transport: VirtioPCI, isDiscard: Bool) -> BlockOperation {
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

    /// What a request brings beside what it leaves in the guest's memory.
    func perform(_ job: BlockJob, _ transport: VirtioPCI) throws -> [UInt8] {
        let request = TransferBuffer(transport.memory, gate: gate, life: job.life)
        switch job.operation {
        case .read(let offset, let buffer):
            try backend.read(at: offset, into: buffer)
            return door.isOrdered ? buffer.bytes : []
        case .write(let offset, let buffer):
            try backend.write(buffer, at: offset)
            try makeDurable()
        case .flush: try backend.flush()
        case .discard(let ranges):
            for range in ranges {
                try backend.discard(at: range.lowerBound, length: UInt64(range.count), for: request)
            }
        case .writeZeroes(let ranges):
            for (range, mayUnmap) in ranges {
                try backend.writeZeroes(
                    at: range.lowerBound, length: UInt64(range.count), mayUnmap: mayUnmap, for: request)
            }
            try makeDurable()
        case .identify:
            let bytes = Array(identifier.utf8.prefix(20))
            return bytes + [UInt8](repeating: 0, count: 20 - bytes.count)
        case .refused(let status): throw BlockStatus(rawValue: status) ?? .ioError
        }
        return []
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

/// Carries requests out one after the other on a worker.
public struct WorkerServer: BlockServer {
    private let worker: any Worker

    /// A server on a worker.
    public init(_ worker: any Worker) { self.worker = worker }

    /// Drains the source on the worker.
    public func wake(_ source: BlockSource) {
        worker.run {
            repeat {
                while case let jobs = source.take(64), !jobs.isEmpty {
                    for job in jobs { source.finish([source.perform(job)]) }
                }
            } while !source.rests()
        }
    }

    /// Runs something on the worker.
    public func run(_ job: @escaping @Sendable () -> Void) { worker.run(job) }
}
