// Disks whose transfers the kernel carries out while their thread goes on (io_uring).
internal import Devices
internal import HostOS
internal import Storage
internal import Synchronization

/// A ring and a thread for each queue of a disk. What the host's cache takes at once is done on the thread, as
/// `WorkerThreads` does it; those do what the kernel can't, or couldn't, do by itself.
final class DiskRings: BlockServer {
    private let backend: DiskBackend
    private let threads: WorkerThreads
    private let rings = Mutex<[RingThread]>([])

    /// `threads` at most for what isn't a transfer.
    init(_ backend: DiskBackend, threads: Int) {
        self.backend = backend
        self.threads = WorkerThreads(name: "roost-disk", width: threads)
    }

    deinit { for ring in rings.withLock({ $0 }) { ring.stop() } }

    func run(_ job: @escaping @Sendable () -> Void) { threads.run(job) }

    func wake(_ source: BlockSource) {
        let ring = rings.withLock { rings -> RingThread? in
            if let ring = rings.first(where: { $0.source === source }) { return ring }
            guard let ring = try? RingThread(source, backend, threads) else { return nil }
            rings.append(ring)
            return ring
        }
        if let ring { ring.wake() } else { threads.wake(source) }
    }
}

/// The thread of one queue, with its ring.
private final class RingThread: Sendable {
    let source: BlockSource
    private let threads: WorkerThreads
    private let signals: RingSignals

    /// The thread keeps the disk's image open only while it works.
    init(_ source: BlockSource, _ backend: DiskBackend, _ threads: WorkerThreads) throws(HostError) {
        self.source = source
        self.threads = threads
        signals = try RingSignals()
        let disk = WeakBackend(backend: backend)
        try HostThread.detached(name: "roost-disk-ring") { [self] in serve(disk) }
    }

    func wake() {
        signals.want()
        if signals.isBroken { handOver() }
    }

    func stop() { signals.stop() }

    private func serve(_ disk: WeakBackend) {
        do throws(HostError) {
            var queue = RingQueue(try IORing(entries: 128), source, disk, threads)
            try queue.serve(signals)
        } catch {
            signals.breakDown()
            handOver()
        }
    }

    /// There is no ring: threads drain the source.
    private func handOver() { if signals.takeWish() { threads.wake(source) } }
}

/// A reference that doesn't keep an image open.
private struct WeakBackend: Sendable {
    weak var backend: DiskBackend?
}

/// What other threads want of a ring's thread, and how to wake it.
private final class RingSignals: Sendable {
    /// Where the thread is: at work, asleep, or waiting for the ring.
    private enum Place: UInt8, AtomicRepresentable { case working, asleep, inRing }

    private let place = Atomic(Place.working)
    private let isWanted = Atomic(false)
    private let stopped = Atomic(false)
    private let broken = Atomic(false)
    private let flag = WakeFlag()
    private let event: SharedDescriptor

    init() throws(HostError) { event = SharedDescriptor(try FileDescriptor.eventCounter()) }

    /// There may be requests.
    func want() {
        isWanted.store(true, ordering: .sequentiallyConsistent)
        wake()
    }

    func stop() {
        stopped.store(true, ordering: .sequentiallyConsistent)
        wake()
    }

    func breakDown() { broken.store(true, ordering: .sequentiallyConsistent) }

    private func wake() {
        switch place.load(ordering: .sequentiallyConsistent) {
        case .working: break
        case .asleep: flag.raise()
        case .inRing: event.descriptor.signal()
        }
    }

    var isBroken: Bool { broken.load(ordering: .sequentiallyConsistent) }
    var isStopped: Bool { stopped.load(ordering: .acquiring) }
    /// Can be read when the thread is woken while it waits for the ring.
    var descriptor: Int32 { event.descriptor.rawValue }

    /// Whether something was wanted.
    func takeWish() -> Bool { isWanted.exchange(false, ordering: .sequentiallyConsistent) }

    /// Sleeps until it is woken.
    func sleep() {
        if announce(.asleep), !stopped.load(ordering: .sequentiallyConsistent) { flag.wait() }
        place.store(.working, ordering: .sequentiallyConsistent)
    }

    /// Runs `wait` if nothing is wanted.
    func inRing<Failure: Error>(_ wait: (Bool) throws(Failure) -> Void) throws(Failure) {
        let waits = announce(.inRing)
        defer { place.store(.working, ordering: .sequentiallyConsistent) }
        try wait(waits)
    }

    /// Says where the thread waits from now on; false if it need not.
    private func announce(_ waiting: Place) -> Bool {
        place.store(waiting, ordering: .sequentiallyConsistent)
        return !isWanted.load(ordering: .sequentiallyConsistent)
    }

    func drain() { event.descriptor.drain() }
}

/// What the thread works with.
private struct RingQueue: ~Copyable {
    private struct Slot {
        var job: BlockJob
        var transfer: DiskBackend.DirectTransfer
        var backend: DiskBackend
    }

    private var ring: IORing
    private let source: BlockSource
    private let disk: WeakBackend
    private let threads: WorkerThreads
    private var slots: [Slot?]
    private var free: [Int]
    private var batch = CompletionBatch()
    /// The ring tells when the thread is to wake.
    private var isWatching = false

    /// Most transfers at once.
    private static let most = 64
    private static let eventTag = UInt64.max

    init(_ ring: consuming IORing, _ source: BlockSource, _ disk: WeakBackend, _ threads: WorkerThreads) {
        self.ring = ring
        self.source = source
        self.disk = disk
        self.threads = threads
        slots = Array(repeating: nil, count: Self.most)
        free = Array(0..<Self.most)
    }

    private var isIdle: Bool { free.count == Self.most }

    mutating func serve(_ signals: RingSignals) throws(HostError) {
        var isActive = false
        while !(signals.isStopped && isIdle) {
            if signals.takeWish() { isActive = true }
            if isActive { isActive = take() }
            let isHeld = !finish()
            if isIdle && !isActive {
                signals.sleep()
            } else if isHeld || !isActive || free.isEmpty {
                try waitForRing(signals)
            } else if !isIdle {
                try ring.submit(waits: false)
            }
            while let (tag, result) = ring.next() {
                if tag == Self.eventTag {
                    signals.drain()
                    isWatching = false
                } else {
                    complete(Int(tag), result)
                }
            }
        }
    }

    private mutating func waitForRing(_ signals: RingSignals) throws(HostError) {
        if !isWatching { isWatching = ring.watch(signals.descriptor, tag: Self.eventTag) }
        try signals.inRing { (waits) throws(HostError) in try ring.submit(waits: waits) }
    }

    /// Takes requests and begins them; false if the source rests.
    private mutating func take() -> Bool {
        if free.isEmpty { return true }
        let jobs = source.take(free.count)
        var others: [BlockJob] = []
        for job in jobs where !begin(job) {
            // What the kernel would give to a thread of its own, and what isn't a transfer.
            if threads.pace.isSlow(job) {
                others.append(job)
            } else {
                batch.append(threads.pace.perform(job, of: source))
                if batch.isRipe { _ = finish() }
            }
        }
        if !others.isEmpty { threads.perform(others, of: source) }
        return !(jobs.isEmpty && source.rests())
    }

    /// Has the kernel carry out a request, if it can without waiting: it has reads wait for nobody, but not writes that go
    /// to its cache.
    private mutating func begin(_ job: BlockJob) -> Bool {
        guard let backend = disk.backend, let slot = free.last else { return false }
        if case .write = job.operation, backend.isCached || source.makesDurable { return false }
        guard let transfer = backend.beginDirect(job.operation) else { return false }
        let place = transfer.place
        guard
            ring.move(transfer.list, place.descriptor, at: place.offset, fills: transfer.fills, tag: UInt64(slot))
        else {
            backend.end(transfer)
            return false
        }
        free.removeLast()
        slots[slot] = Slot(job: job, transfer: transfer, backend: backend)
        return true
    }

    private mutating func complete(_ index: Int, _ result: Int32) {
        guard slots.indices.contains(index), let slot = slots[index] else { return }
        slots[index] = nil
        free.append(index)
        slot.backend.end(slot.transfer)
        // What failed, or ended early, is done again by who knows what that means.
        if Int(result) == slot.transfer.list.count {
            batch.append(BlockCompletion(done: slot.job))
        } else {
            threads.perform([slot.job], of: source)
        }
    }

    /// Lets requests finish; false if they have to wait for transfers to end, since the machine is paused: somebody may
    /// wait for those.
    private mutating func finish() -> Bool {
        if !isIdle { return batch.finishNow(source) }
        batch.finish(source)
        return true
    }
}
