// The virtio file system device: FUSE messages for a folder of the host's.
//
// Virtual I/O Device (VIRTIO) 1.2, 5.11. Queues: 0 high priority (what needs no answer), 1 requests.
//
//   configuration  00 tag 36 bytes, padded with zeroes   24 num_request_queues 32
public import DeviceModel
internal import Synchronization

/// What answers FUSE messages.
public protocol FileServer: AnyObject, Sendable {
    /// The answer to a request, with at most so many bytes; nil if there is none.
    func answer(_ request: [UInt8], room: Int) -> [UInt8]?
    /// Forgets all that the guest knows.
    func reset()
    /// All that the guest knows.
    func saveState() -> SharedFolderState
    /// Puts it back.
    func restoreState(_ state: SharedFolderState) throws
}

/// A virtio file system.
public final class VirtioFileSystem: VirtioDevice {
    private struct Contents: Sendable {
        var reference = WeakTransport()
        /// Chains that the worker has, with their answers once there are any.
        var inFlight: [UInt64: (held: HeldChain, answer: [UInt8])] = [:]
        var next: UInt64 = 0
        /// The server is yet to forget, on the worker, behind what it is at.
        var owesReset = false
    }

    private struct Job: Sendable {
        var number: UInt64
        var queue: Int
        var chain: DescriptorChain
        var epoch: UInt64
    }

    /// Bytes of a request and of an answer at most: a megabyte and what comes with it.
    static let longestMessage = (1 << 20) + 4096
    /// Bytes of a tag.
    public static let longestTag = 36

    private let tag: [UInt8]
    private let door: any Door
    private let server: any FileServer
    private let worker: any Worker
    private let contents = Mutex(Contents())
    /// Held while a request is done: a saved state has it either not yet done or with its answer.
    private let working = Mutex(())
    /// Held while one is read from the guest.
    private let reading = Mutex(())

    /// Makes a device; the guest mounts it by its tag.
    public init(tag: String, door: any Door, server: any FileServer, worker: any Worker) {
        let bytes = Array(tag.utf8.prefix(Self.longestTag))
        self.tag = bytes + [UInt8](repeating: 0, count: Self.longestTag - bytes.count)
        self.door = door
        self.server = server
        self.worker = worker
    }

    /// File system.
    public var deviceID: UInt16 { 26 }
    /// Mass storage, other.
    public var classCode: UInt32 { 0x01_80_00 }
    /// High priority and requests.
    public var queueSizes: [UInt16] { [64, 256] }
    /// None of its own.
    public var features: UInt64 { 0 }
    /// Tag and number of request queues.
    public var configuration: [UInt8] { tag + littleEndian(UInt32(1)) }
    /// Keeps a weak reference.
    public func attach(to transport: VirtioPCI) { contents.withLock { $0.reference.transport = transport } }
    /// Nothing to do until the first request.
    public func activate(features: UInt64) {}

    /// The guest knows nothing any more; requests under way find their queue gone, and none is read from now on: its memory
    /// may be cleared next.
    public func reset() {
        reading.withLock { _ in
            contents.withLock { contents in
                contents.inFlight = [:]
                contents.owesReset = true
            }
        }
        worker.run { [weak self] in self?.resetServer() }
    }

    private func resetServer() {
        contents.withLock { contents in
            if contents.owesReset { server.reset() }
            contents.owesReset = false
        }
    }

    /// Takes requests and gives them to the worker.
    public func notified(queue: Int) {
        guard let transport = contents.withLock({ $0.reference.transport }) else { return }
        var jobs: [Job] = []
        transport.withQueue(queue) { (locked) throws(VirtqueueError) in
            repeat {
                while let chain = try locked.pop() { jobs.append(try keep(chain, queue, in: locked)) }
            } while try locked.enableNotifications()
        }
        submit(jobs, transport)
    }

    /// Notes a chain as under way, under the queue's lock; a driver can't have more of them than descriptors.
    private func keep(_ chain: DescriptorChain, _ queue: Int, in locked: Virtqueue) throws(VirtqueueError) -> Job {
        let limit = Int(locked.size)
        let number = contents.withLock { contents -> UInt64? in
            guard contents.inFlight.values.count(where: { $0.held.queue == queue }) < limit else { return nil }
            contents.next &+= 1
            contents.inFlight[contents.next] = (HeldChain(queue: queue, head: chain.head), [])
            return contents.next
        }
        guard let number else { throw .tooManyInFlight }
        return Job(number: number, queue: queue, chain: chain, epoch: locked.epoch)
    }

    private func submit(_ jobs: [Job], _ transport: VirtioPCI) {
        for job in jobs { worker.run { [weak self] in self?.perform(job, transport) } }
    }

    /// On the worker.
    private func perform(_ job: Job, _ transport: VirtioPCI) {
        let answer = working.withLock { _ -> [UInt8]? in
            let length = job.chain.readableLength
            guard length <= Self.longestMessage else { return [] }
            let request = reading.withLock { _ in
                let isWanted = contents.withLock { $0.inFlight[job.number] != nil }
                return isWanted ? transport.memory.gather(job.chain.readable, limit: length) : nil
            }
            guard let request else { return nil }
            let answer = server.answer(request, room: min(job.chain.writableLength, Self.longestMessage)) ?? []
            contents.withLock { $0.inFlight[job.number]?.answer = answer }
            return answer
        }
        guard let answer else { return }
        door.admit(.blockCompletion(id: job.number, error: 0, data: answer)) { [weak self] event in
            guard let self, case .blockCompletion(_, _, let data) = event else { return }
            transport.complete(job.queue, head: job.chain.head, epoch: job.epoch) {
                self.contents.withLock { _ = $0.inFlight.removeValue(forKey: job.number) }
                return transport.memory.scatter(data, into: job.chain.writable)
            }
        }
    }

    // MARK: State

    /// What the guest knows, and requests under way: those done have their answers with them.
    public func saveDeviceState() -> VirtioDeviceState {
        working.withLock { _ in
            var state = VirtioDeviceState()
            state.folder = server.saveState()
            let all = contents.withLock { $0.inFlight.sorted { $0.key < $1.key }.map(\.value) }
            state.inFlight = all.map(\.held)
            state.frames = all.map(\.answer)
            return state
        }
    }

    /// Puts back what the guest knows; requests that weren't done are done now.
    public func restoreDeviceState(_ state: VirtioDeviceState) throws {
        guard state.frames.count == state.inFlight.count else { throw StateError("saved requests without answers") }
        // What is put back is not for a reset to take that came before.
        contents.withLock { $0.owesReset = false }
        if let folder = state.folder { try server.restoreState(folder) }
        guard let transport = contents.withLock({ $0.reference.transport }) else { return }
        for queue in 0..<2 {
            var jobs: [Job] = []
            transport.withQueue(queue) { (locked) throws(VirtqueueError) in
                for (held, answer) in zip(state.inFlight, state.frames) where held.queue == queue {
                    let chain = try locked.chain(from: held.head)
                    guard answer.isEmpty else {
                        let written = transport.memory.scatter(answer, into: chain.writable)
                        try locked.push(head: chain.head, written: written)
                        continue
                    }
                    jobs.append(try keep(chain, queue, in: locked))
                }
                if try locked.shouldInterrupt() { transport.interrupt(queue: queue) }
            }
            submit(jobs, transport)
            notified(queue: queue)
        }
    }
}
