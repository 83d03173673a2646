// The virtio memory balloon: memory that the guest gives back, on request or because it is free anyway.
//
// Virtual I/O Device (VIRTIO) 1.2, 5.5. Queues: 0 inflate, 1 deflate, 2 statistics if agreed on, then free page reporting.
//
//   configuration  00 num_pages 32: wanted, in pages of 4 KiB   04 actual 32 (W): reached
//   inflate, deflate   arrays of page numbers, 32 bits each
//   statistics         tag 16, value 64, packed; the buffer is kept until the next statistics are wanted
//   reporting          the free ranges themselves, as buffers
internal import DeviceModel
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
    private static let names = [
        "swap-in", "swap-out", "major-faults", "minor-faults", "free", "total", "available", "caches",
        "hugetlb-allocations", "hugetlb-failures",
    ]

    private struct Contents: Sendable {
        var wanted: UInt32 = 0
        var actual: UInt32 = 0
        var features: UInt64 = 0
        var statistics = BalloonStatistics()
        /// The statistics buffer that the guest waits for: head and epoch.
        var held: (head: UInt16, epoch: UInt64)?
        var reference = WeakTransport()
    }

    private let contents: Mutex<Contents>

    /// Makes a balloon that is to hold `wanted` bytes, rounded down to pages.
    public init(wanted: UInt64 = 0) {
        var first = Contents()
        first.wanted = UInt32(clamping: wanted >> 12)
        contents = Mutex(first)
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
            contents.statistics.inflated = 0
        }
    }

    /// What is known of the guest's memory; the next statistics are asked for.
    public func readStatistics() -> BalloonStatistics {
        let (statistics, held, transport) = contents.withLock { contents in
            defer { contents.held = nil }
            return (contents.statistics, contents.held, contents.reference.transport)
        }
        if let held, let transport { transport.complete(2, head: held.head, epoch: held.epoch) { 0 } }
        return statistics
    }

    /// Sets how many bytes the balloon is to hold.
    public func setWanted(_ bytes: UInt64) {
        let transport = contents.withLock { contents in
            contents.wanted = UInt32(clamping: bytes >> 12)
            return contents.reference.transport
        }
        transport?.configurationChanged()
    }

    /// Buffers in a queue.
    public func notified(queue: Int) {
        let (features, transport) = contents.withLock { ($0.features, $0.reference.transport) }
        guard let transport else { return }
        let hasStatistics = features & Self.statisticsFeature != 0
        switch queue {
        case 0: transport.drain(0) { chain, _ in self.move(chain, transport.memory, inflates: true) }
        case 1: transport.drain(1) { chain, _ in self.move(chain, transport.memory, inflates: false) }
        case 2 where hasStatistics: transport.drain(2) { chain, epoch in self.takeStatistics(chain, epoch, transport) }
        case hasStatistics ? 3 : 2 where features & Self.reporting != 0:
            transport.drain(queue) { chain, _ in self.report(chain, transport.memory) }
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

    /// Free ranges: the guest doesn't touch them until it has the buffers back.
    private func report(_ chain: DescriptorChain, _ memory: GuestMemory) -> Int {
        var total: UInt64 = 0
        for segment in chain.writable where memory.giveBack(segment.address, length: segment.length) {
            total &+= UInt64(segment.length)
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
}
