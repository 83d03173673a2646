// The virtio memory balloon: memory that the guest gives back, on request or because it is free anyway.
//
// Virtual I/O Device (VIRTIO) 1.2, 5.5. Queues: 0 inflate, 1 deflate, 2 statistics if agreed on, then free page reporting.
//
//   configuration  00 num_pages 32: wanted, in pages of 4 KiB   04 actual 32 (W): reached
//   inflate, deflate   arrays of page numbers, 32 bits each
//   statistics         tag 16, value 64, packed; the buffer is kept until the next statistics are wanted
//   reporting          the free ranges themselves, as buffers
public import DeviceModel
internal import GuestMemory
internal import Synchronization

/// What the guest says of its memory, in bytes and counts.
public struct BalloonStatistics: Sendable, Equatable, Codable {
    /// Values by the names of the specification's table (5.5.6.3), as far as the guest gives them.
    public var values: [String: UInt64] = [:]
    /// Bytes in the balloon.
    public var inflated: UInt64 = 0
    /// Bytes given back to the host so far, by the balloon and by reports of free pages.
    public var returned: UInt64 = 0
}

/// A balloon with free page reporting.
public final class VirtioBalloon: VirtioDevice {
    private static let statisticsFeature: UInt64 = 1 << 1
    private static let deflateOnOutOfMemory: UInt64 = 1 << 2
    private static let reporting: UInt64 = 1 << 5
    /// Page numbers taken from one buffer at most.
    private static let mostNumbers = 4096
    /// Buffers looked at in one go: giving back takes time.
    private static let mostChains = 32
    private static let statisticsQueue = 2
    private static let names = [
        "swap-in", "swap-out", "major-faults", "minor-faults", "free", "total", "available", "caches",
        "hugetlb-allocations", "hugetlb-failures",
    ]

    /// What the device holds beside its queues and a statistics buffer.
    public struct State: Codable, Sendable, Equatable {
        /// Pages wanted, and reached.
        var wanted, actual: UInt32
        /// Bytes in the balloon.
        var inflated: UInt64
    }

    private struct Contents: Sendable {
        var wanted: UInt32 = 0
        var actual: UInt32 = 0
        var features: UInt64 = 0
        var statistics = BalloonStatistics()
        /// The statistics buffer that the guest waits for: head and epoch.
        var held: (head: UInt16, epoch: UInt64)?
        /// What the guest hasn't been told yet: that another size is wanted, that statistics are.
        var isResized = false
        var isAsking = false
        var reference = WeakTransport()
        /// Tells it, when the door lets that in.
        var timer: (any DoorTimer)?
    }

    private let contents: Mutex<Contents>
    private let door: any Door

    /// Makes a balloon that is to hold `wanted` bytes, rounded down to pages.
    public init(wanted: UInt64 = 0, door: any Door) {
        var first = Contents()
        first.wanted = UInt32(clamping: wanted >> 12)
        contents = Mutex(first)
        self.door = door
        let timer = door.makeTimer { [weak self] in self?.tell() }
        contents.withLock { $0.timer = timer }
    }

    /// Memory balloon.
    public var deviceID: UInt16 { 5 }
    /// Memory controller, other.
    public var classCode: UInt32 { 0x05_80_00 }
    /// Inflate, deflate, statistics, reporting.
    public var queueSizes: [UInt16] { [128, 128, 64, 32] }
    /// Statistics, deflate on OOM, free page reporting.
    public var features: UInt64 { Self.statisticsFeature | Self.deflateOnOutOfMemory | Self.reporting }

    /// Wanted and reached, free_page_hint_cmd_id and poison_val.
    public var configuration: [UInt8] {
        let (wanted, actual) = contents.withLock { ($0.wanted, $0.actual) }
        return littleEndian(wanted) + littleEndian(actual) + [0, 0, 0, 0, 0, 0, 0, 0]
    }

    /// `actual`, a byte at a time.
    public func configure(offset: Int, value: UInt8) {
        guard 4..<8 ~= offset else { return }
        let shift = UInt32(offset - 4) * 8
        contents.withLock { $0.actual = ($0.actual & ~(0xFF << shift)) | UInt32(value) << shift }
    }

    /// Keeps a weak reference.
    public func attach(to transport: VirtioPCI) { contents.withLock { $0.reference.transport = transport } }

    /// Notes what was agreed on: it says which queue is which.
    public func activate(features: UInt64) { contents.withLock { $0.features = features } }

    /// The guest has its memory back; what it gave is nobody's any more.
    public func reset() {
        contents.withLock { contents in
            contents.actual = 0
            contents.features = 0
            contents.held = nil
            contents.isAsking = false
            contents.statistics.inflated = 0
        }
    }

    /// What is known of the guest's memory, without waiting for the guest; the next statistics are asked for.
    public func readStatistics() -> BalloonStatistics {
        let (statistics, canAsk) = contents.withLock { contents in
            contents.isAsking = contents.held != nil
            return (contents.statistics, contents.isAsking)
        }
        if canAsk { tellSoon() }
        return statistics
    }

    /// Sets how many bytes the balloon is to hold. The guest hears of it soon, or when its machine goes on.
    public func setWanted(_ bytes: UInt64) {
        contents.withLock { contents in
            contents.wanted = UInt32(clamping: bytes >> 12)
            contents.isResized = true
        }
        tellSoon()
    }

    private func tellSoon() {
        let timer = contents.withLock { $0.timer }
        timer?.arm(at: door.now)
    }

    /// Tells the guest what it is to know.
    private func tell() {
        let (isResized, held, transport) = contents.withLock { contents in
            let held = contents.isAsking ? contents.held : nil
            if contents.isAsking { contents.held = nil }
            defer { (contents.isResized, contents.isAsking) = (false, false) }
            return (contents.isResized, held, contents.reference.transport)
        }
        guard let transport else { return }
        if isResized { transport.configurationChanged() }
        if let held { transport.complete(Self.statisticsQueue, head: held.head, epoch: held.epoch) { 0 } }
    }

    /// Buffers in a queue.
    public func notified(queue: Int) {
        let (features, transport) = contents.withLock { ($0.features, $0.reference.transport) }
        guard let transport else { return }
        let (memory, limit) = (transport.memory, Self.mostChains)
        let hasStatistics = features & Self.statisticsFeature != 0
        switch queue {
        case 0, 1: transport.drain(queue, limit: limit) { chain, _ in self.move(chain, memory, inflates: queue == 0) }
        case Self.statisticsQueue where hasStatistics:
            transport.drain(queue, limit: limit) { chain, epoch in self.takeStatistics(chain, epoch, transport) }
        case hasStatistics ? 3 : 2 where features & Self.reporting != 0:
            // What is free is no more than there is; ranges beyond that lie over each other.
            var left = memory.ramSize
            transport.drain(queue, limit: limit) { chain, _ in self.report(chain, memory, &left) }
        default: break
        }
    }

    /// Pages that go into the balloon or come out of it.
    private func move(_ chain: DescriptorChain, _ memory: GuestMemory, inflates: Bool) -> Int {
        let bytes = memory.gather(chain.readable, limit: Self.mostNumbers * 4)
        var count: UInt64 = 0
        for n in 0..<(bytes.count / 4) {
            let number = (0..<4).reduce(UInt64(0)) { $0 | UInt64(bytes[n * 4 + $1]) << UInt64($1 * 8) }
            count &+= 1
            if inflates { memory.giveBack(GuestPhysicalAddress(number << 12), length: 4096) }
        }
        contents.withLock { contents in
            let moved = count << 12
            if inflates {
                contents.statistics.inflated &+= moved
                contents.statistics.returned &+= moved
            } else {
                contents.statistics.inflated &-= min(moved, contents.statistics.inflated)
            }
        }
        return 0
    }

    /// Free ranges, at most `left` bytes: the guest doesn't touch them until it has the buffers back.
    private func report(_ chain: DescriptorChain, _ memory: GuestMemory, _ left: inout UInt64) -> Int {
        var total: UInt64 = 0
        for segment in chain.writable {
            let length = UInt64(segment.length)
            guard length <= left else { break }
            left -= length
            if memory.giveBack(segment.address, length: segment.length) { total &+= length }
        }
        contents.withLock { $0.statistics.returned &+= total }
        return 0
    }

    /// Statistics: the buffer goes back when the next ones are wanted.
    private func takeStatistics(_ chain: DescriptorChain, _ epoch: UInt64, _ transport: VirtioPCI) -> Int? {
        let bytes = transport.memory.gather(chain.readable, limit: 10 * 64)
        var values: [String: UInt64] = [:]
        for start in stride(from: 0, to: bytes.count - 9, by: 10) {
            let tag = Int(bytes[start]) | Int(bytes[start + 1]) << 8
            guard tag < Self.names.count else { continue }
            values[Self.names[tag]] = (0..<8).reduce(UInt64(0)) { $0 | UInt64(bytes[start + 2 + $1]) << UInt64($1 * 8) }
        }
        contents.withLock { contents in
            contents.statistics.values = values
            contents.held = (chain.head, epoch)
        }
        return nil
    }

    // MARK: State

    /// How much the balloon holds and is to hold, and the statistics buffer that the guest waits for.
    public func saveDeviceState() -> VirtioDeviceState {
        var state = VirtioDeviceState()
        contents.withLock { contents in
            state.balloon = State(
                wanted: contents.wanted, actual: contents.actual, inflated: contents.statistics.inflated)
            if let held = contents.held { state.inFlight = [HeldChain(queue: Self.statisticsQueue, head: held.head)] }
        }
        return state
    }

    /// Puts that back. Older states have nothing of it.
    public func restoreDeviceState(_ state: VirtioDeviceState) throws {
        guard let saved = state.balloon else { return }
        let transport = contents.withLock { contents in
            (contents.wanted, contents.actual) = (saved.wanted, saved.actual)
            contents.statistics.inflated = saved.inflated
            contents.isResized = saved.wanted != saved.actual
            return contents.reference.transport
        }
        // It may not have been told before the state was taken.
        if saved.wanted != saved.actual { tellSoon() }
        guard let held = state.inFlight.first(where: { $0.queue == Self.statisticsQueue }) else { return }
        transport?.withQueue(Self.statisticsQueue) { (queue) throws(VirtqueueError) in
            let head = try queue.chain(from: held.head).head
            contents.withLock { $0.held = (head, queue.epoch) }
        }
    }
}
