// A split virtqueue.
//
// Virtual I/O Device (VIRTIO) 1.2, 2.7.
//
//   descriptor   16 bytes: address 64, length 32, flags 16 (1 next, 2 device writes, 4 indirect), next 16
//   available    flags 16 (1 no interrupt), index 16, ring of heads 16, used_event 16
//   used         flags 16 (1 no notify), index 16, ring of (head 32, length 32), avail_event 16
//
// The guest writes all of it while we read: every value is loaded once, checked, and only then used.
internal import DeviceModel
public import GuestMemory
internal import Synchronization

/// Why a queue is broken; the device then needs a reset.
public enum VirtqueueError: Error, Equatable, Sendable {
    /// A ring lies outside RAM.
    case ringOutsideMemory
    /// The available index ran ahead by more than the queue's size.
    case availableIndexTooFar
    /// A head or a next field names no descriptor.
    case noSuchDescriptor
    /// A chain has more descriptors than its table, or loops.
    case chainTooLong
    /// A buffer lies outside RAM.
    case bufferOutsideMemory
    /// A readable buffer follows a writable one.
    case readableAfterWritable
    /// An indirect descriptor that may not be, or whose table is malformed.
    case badIndirect
    /// More chains taken and not given back than the queue has descriptors: some were made available twice.
    case tooManyInFlight
}

/// A buffer that the driver made available: first what the device reads, then what it writes.
public struct DescriptorChain: Sendable, Equatable {
    /// Index of its first descriptor, its name in the used ring.
    public var head: UInt16
    /// What the device reads.
    public var readable: [GuestMemoryRange]
    /// What the device writes.
    public var writable: [GuestMemoryRange]

    /// Bytes the device may read.
    public var readableLength: Int { readable.reduce(0) { $0 + $1.length } }
    /// Bytes the device may write.
    public var writableLength: Int { writable.reduce(0) { $0 + $1.length } }
}

/// The device's side of one split virtqueue.
public struct Virtqueue: Sendable {
    /// Most descriptors followed in one chain.
    static let longestChain = 1024

    let memory: GuestMemory
    /// Number of descriptors, a power of two.
    public private(set) var size: UInt16 = 0
    private var descriptors = GuestPhysicalAddress(0)
    private var available = GuestPhysicalAddress(0)
    private var used = GuestPhysicalAddress(0)
    private var hasEventIndex = false
    private var hasIndirect = false
    private var nextAvailable: UInt16 = 0
    private var nextUsed: UInt16 = 0
    private var signalledUsed: UInt16?
    /// Whether the driver enabled it and it isn't broken.
    public private(set) var isReady = false
    /// Counts resets, so that a request of an earlier life isn't completed in a later one.
    public private(set) var epoch: UInt64 = 0

    /// A queue that isn't enabled.
    public init(memory: GuestMemory) { self.memory = memory }

    /// Enables the queue as the driver laid it out; rings must be aligned and lie in RAM.
    ///
    /// - Spec: virtio 1.2, 2.7
    public mutating func enable(
        size: UInt16, descriptors: UInt64, available: UInt64, used: UInt64, eventIndex: Bool, indirect: Bool
    ) throws(VirtqueueError) {
        let count = Int(size)
        guard size.nonzeroBitCount == 1, size <= 32768, descriptors & 15 == 0, available & 1 == 0, used & 3 == 0,
            memory.isRAM(GuestPhysicalAddress(descriptors), length: 16 * count),
            memory.isRAM(GuestPhysicalAddress(available), length: 6 + 2 * count),
            memory.isRAM(GuestPhysicalAddress(used), length: 6 + 8 * count)
        else { throw .ringOutsideMemory }
        self.size = size
        self.descriptors = GuestPhysicalAddress(descriptors)
        self.available = GuestPhysicalAddress(available)
        self.used = GuestPhysicalAddress(used)
        hasEventIndex = eventIndex
        hasIndirect = indirect
        nextAvailable = 0
        nextUsed = 0
        signalledUsed = nil
        isReady = true
    }

    /// Back to the state before it was enabled.
    public mutating func reset() {
        let next = epoch &+ 1
        self = Virtqueue(memory: memory)
        epoch = next
    }

    /// Stops the queue after an error, until the device is reset.
    public mutating func stop() { isReady = false }

    // MARK: Taking

    /// Takes the next available chain, or nil.
    public mutating func pop() throws(VirtqueueError) -> DescriptorChain? {
        guard isReady, try hasPending() else { return nil }
        let slot = UInt64(nextAvailable & (size &- 1))
        let head = try load(available + (4 &+ 2 &* slot), as: UInt16.self)
        guard head < size else { throw .noSuchDescriptor }
        let chain = try chain(from: head)
        nextAvailable = nextAvailable &+ 1
        return chain
    }

    /// Whether chains are available.
    private func hasPending() throws(VirtqueueError) -> Bool {
        let index = try load(available + 2, as: UInt16.self)
        guard index != nextAvailable else { return false }
        guard index &- nextAvailable <= size else { throw .availableIndexTooFar }
        atomicMemoryFence(ordering: .acquiring)
        return true
    }

    /// Asks to be notified of the next chain that is added; true if one is available already.
    ///
    /// The event index is where the driver stands, not where we do: a device may leave chains because they are too few.
    /// A driver that adds while we look is looked at again, within bounds.
    public mutating func enableNotifications() throws(VirtqueueError) -> Bool {
        guard isReady else { return false }
        if !hasEventIndex { try store(UInt16(0), at: used) }
        var index = try load(available + 2, as: UInt16.self)
        for _ in 0..<64 {
            if hasEventIndex { try store(index, at: used + (4 &+ 8 &* UInt64(size))) }
            atomicMemoryFence(ordering: .sequentiallyConsistent)
            let again = try load(available + 2, as: UInt16.self)
            if again == index { break }
            index = again
        }
        return try hasPending()
    }

    /// Asks not to be notified while the queue is looked at anyway: with the event index the driver stays silent by itself.
    mutating func disableNotifications() throws(VirtqueueError) {
        if isReady, !hasEventIndex { try store(UInt16(1), at: used) }
    }

    /// The chain that begins at a descriptor, checked.
    ///
    /// - Spec: virtio 1.2, 2.7.4.2, 2.7.5.3 (where a table is, "device writes" says nothing: 2.7.5.3.2)
    public func chain(from head: UInt16) throws(VirtqueueError) -> DescriptorChain {
        var chain = DescriptorChain(head: head, readable: [], writable: [])
        var table = descriptors
        var count = UInt32(size)
        var index = UInt32(head)
        var followed = 0
        var isIndirect = false
        while true {
            guard index < count else { throw .noSuchDescriptor }
            followed += 1
            guard followed <= min(Int(count), Self.longestChain) else { throw .chainTooLong }
            let place = table + UInt64(index) * 16
            let address = try load(place, as: UInt64.self)
            let length = try load(place + 8, as: UInt32.self)
            let flags = try load(place + 12, as: UInt16.self)
            let next = try load(place + 14, as: UInt16.self)
            if flags & 4 != 0 {
                guard hasIndirect, !isIndirect, flags & 1 == 0, length >= 16, length & 15 == 0,
                    memory.isRAM(GuestPhysicalAddress(address), length: Int(length))
                else { throw .badIndirect }
                table = GuestPhysicalAddress(address)
                count = length / 16
                index = 0
                followed = 0
                isIndirect = true
                continue
            }
            try append(address, length, writable: flags & 2 != 0, to: &chain)
            guard flags & 1 != 0 else { return chain }
            index = UInt32(next)
        }
    }

    private func append(_ address: UInt64, _ length: UInt32, writable: Bool, to chain: inout DescriptorChain)
        throws(VirtqueueError)
    {
        let segment = GuestMemoryRange(address: GuestPhysicalAddress(address), length: Int(length))
        guard memory.isRAM(segment.address, length: segment.length) else { throw .bufferOutsideMemory }
        if writable {
            if segment.length > 0 { chain.writable.append(segment) }
        } else {
            guard chain.writable.isEmpty else { throw .readableAfterWritable }
            if segment.length > 0 { chain.readable.append(segment) }
        }
    }

    // MARK: Giving back

    /// Puts a chain in the used ring; `written` bytes of it were written.
    public mutating func push(head: UInt16, written: Int) throws(VirtqueueError) {
        try place(head: head, written: written, ahead: 0)
        try publish(1)
    }

    /// Puts a chain in the used ring `ahead` places beyond the next, to be seen when `publish` says so.
    mutating func place(head: UInt16, written: Int, ahead: UInt16) throws(VirtqueueError) {
        guard isReady else { return }
        let slot = UInt64((nextUsed &+ ahead) & (size &- 1))
        try store(UInt32(head), at: used + (4 &+ 8 &* slot))
        try store(UInt32(truncatingIfNeeded: written), at: used + (8 &+ 8 &* slot))
    }

    /// Shows the driver the next `count` chains of the used ring.
    mutating func publish(_ count: UInt16) throws(VirtqueueError) {
        guard isReady else { return }
        nextUsed = nextUsed &+ count
        atomicMemoryFence(ordering: .releasing)
        try store(nextUsed, at: used + 2)
    }

    /// Whether the driver wants an interrupt for what was pushed since the last time this was asked.
    ///
    /// - Spec: virtio 1.2, 2.7.7
    public mutating func shouldInterrupt() throws(VirtqueueError) -> Bool {
        guard isReady else { return false }
        atomicMemoryFence(ordering: .sequentiallyConsistent)
        guard hasEventIndex else { return try load(available, as: UInt16.self) & 1 == 0 }
        let event = try load(available + (4 &+ 2 &* UInt64(size)), as: UInt16.self)
        defer { signalledUsed = nextUsed }
        guard let old = signalledUsed else { return true }
        return nextUsed &- event &- 1 < nextUsed &- old
    }

    // MARK: Memory

    private func load<T: FixedWidthInteger & BitwiseCopyable>(_ address: GuestPhysicalAddress, as type: T.Type)
        throws(VirtqueueError) -> T
    {
        do { return try memory.load(address, as: type) } catch { throw .ringOutsideMemory }
    }

    private func store<T: FixedWidthInteger & BitwiseCopyable>(_ value: T, at address: GuestPhysicalAddress)
        throws(VirtqueueError)
    {
        do { try memory.store(value, at: address) } catch { throw .ringOutsideMemory }
    }
}

// MARK: Buffers

extension GuestMemory {
    /// Copies at most `limit` bytes from `offset` out of a list of segments.
    func gather(_ segments: [GuestMemoryRange], offset: Int = 0, limit: Int) -> [UInt8] {
        var skip = offset
        var bytes: [UInt8] = []
        bytes.reserveCapacity(min(limit, segments.reduce(0) { $0 + $1.length }))
        for segment in segments where bytes.count < limit {
            if skip >= segment.length {
                skip -= segment.length
                continue
            }
            let length = min(segment.length - skip, limit - bytes.count)
            guard (try? append(segment.address + UInt64(skip), length: length, to: &bytes)) != nil else { return bytes }
            skip = 0
        }
        return bytes
    }

    /// Copies bytes, from the one at `start`, into a list of segments from `offset`; returns how many fitted.
    func scatter(_ bytes: [UInt8], from start: Int = 0, into segments: [GuestMemoryRange], offset: Int = 0) -> Int {
        var skip = offset
        var place = min(start, bytes.count)
        let first = place
        for segment in segments where place < bytes.count {
            if skip >= segment.length {
                skip -= segment.length
                continue
            }
            let length = min(segment.length - skip, bytes.count - place)
            guard (try? write(bytes, place..<place + length, at: segment.address + UInt64(skip))) != nil else { break }
            place += length
            skip = 0
        }
        return place - first
    }
}

// MARK: Saved state

extension Virtqueue {
    /// A queue as plain data.
    public struct State: Codable, Sendable, Equatable {
        /// Number of descriptors.
        public var size: UInt16
        /// The descriptor table, available and used ring.
        public var descriptors, available, used: UInt64
        /// What was negotiated.
        public var eventIndex, indirect: Bool
        /// The next chain to take, the next place to give back.
        public var nextAvailable, nextUsed: UInt16
        /// The used index at the last interrupt decision.
        public var signalledUsed: UInt16?
        /// Enabled and not broken.
        public var isReady: Bool
    }

    var state: State {
        State(
            size: size, descriptors: descriptors.rawValue, available: available.rawValue, used: used.rawValue,
            eventIndex: hasEventIndex, indirect: hasIndirect, nextAvailable: nextAvailable, nextUsed: nextUsed,
            signalledUsed: signalledUsed, isReady: isReady)
    }

    mutating func restore(_ state: State) throws {
        var fresh = Virtqueue(memory: memory)
        fresh.epoch = epoch &+ 1
        if state.isReady {
            do {
                try fresh.enable(
                    size: state.size, descriptors: state.descriptors, available: state.available, used: state.used,
                    eventIndex: state.eventIndex, indirect: state.indirect)
            } catch { throw StateError("a saved virtqueue lies outside memory") }
            fresh.nextAvailable = state.nextAvailable
            fresh.nextUsed = state.nextUsed
            fresh.signalledUsed = state.signalledUsed
        }
        self = fresh
    }
}
