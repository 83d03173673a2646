// The virtio network device.
//
// Virtual I/O Device (VIRTIO) 1.2, 5.1. Queue 0 receives, queue 1 transmits.
//
//   configuration  00 mac 6 bytes   06 status 16 (bit 0 link up)   08 max_virtqueue_pairs 16   0A mtu 16
//   header         flags 8, gso_type 8, hdr_len 16, gso_size 16, csum_start 16, csum_offset 16, num_buffers 16
public import DeviceModel
internal import Synchronization

/// A virtio network card; no offloads, so that frames are plain Ethernet frames.
public final class VirtioNet: VirtioDevice {
    private struct Contents: Sendable {
        var waiting: [[UInt8]] = []
        var merges = false
        var isUp = true
        var reference = WeakTransport()
        var dropped: UInt64 = 0
    }

    static let headerLength = 12
    static let largestFrame = 65535
    static let mostWaiting = 256
    static let mergeableBuffers: UInt64 = 1 << 15

    private let address: [UInt8]
    private let door: any Door
    private let transmit: @Sendable ([UInt8]) -> Void
    private let contents = Mutex(Contents())

    /// Makes a card with a MAC address of six bytes; `transmit` gets each frame that the guest sends.
    public init(macAddress: [UInt8], door: any Door, transmit: @escaping @Sendable ([UInt8]) -> Void) {
        address = Array((macAddress + [UInt8](repeating: 0, count: 6)).prefix(6))
        self.door = door
        self.transmit = transmit
    }

    /// Network.
    public var deviceID: UInt16 { 1 }
    /// Ethernet controller.
    public var classCode: UInt32 { 0x020000 }
    /// Receive and transmit.
    public var queueSizes: [UInt16] { [256, 256] }
    /// MAC, MRG_RXBUF, STATUS.
    public var features: UInt64 { 1 << 5 | Self.mergeableBuffers | 1 << 16 }

    /// MAC address and link state.
    public var configuration: [UInt8] {
        let isUp = contents.withLock { $0.isUp }
        return address + [isUp ? 1 : 0, 0] + [1, 0] + littleEndian(UInt16(1500))
    }

    /// Frames from outside that found no room.
    public var droppedFrames: UInt64 { contents.withLock { $0.dropped } }

    /// Keeps a weak reference.
    public func attach(to transport: VirtioPCI) { contents.withLock { $0.reference.transport = transport } }

    /// Remembers whether a frame may span buffers.
    public func activate(features: UInt64) {
        contents.withLock { $0.merges = features & Self.mergeableBuffers != 0 }
    }

    /// Forgets frames that wait.
    public func reset() { contents.withLock { $0.waiting = [] } }

    /// The driver gives buffers to receive into, or frames to send.
    public func notified(queue: Int) {
        guard let transport = contents.withLock({ $0.reference.transport }) else { return }
        if queue == 0 { return deliver(transport) }
        transport.drain(1) { chain, _ in
            let frame = transport.memory.gather(
                chain.readable, offset: Self.headerLength, limit: Self.largestFrame)
            if !frame.isEmpty { transmit(frame) }
            return 0
        }
    }

    /// A frame from outside, on any thread; dropped when too many wait or no driver is there.
    public func receive(_ frame: [UInt8]) {
        guard !frame.isEmpty, frame.count <= Self.largestFrame else { return }
        door.admit(.packet(frame)) { [weak self] event in
            guard case .packet(let frame) = event else { return }
            self?.accept(frame)
        }
    }

    /// Plugs or unplugs the cable.
    public func setLink(up: Bool) {
        door.admit(.connected(up)) { [weak self] event in
            guard let self, case .connected(let isUp) = event else { return }
            let transport = contents.withLock { contents in
                contents.isUp = isUp
                return contents.reference.transport
            }
            transport?.configurationChanged()
        }
    }

    private func accept(_ frame: [UInt8]) {
        let transport = contents.withLock { contents -> VirtioPCI? in
            guard let transport = contents.reference.transport, transport.isRunning,
                contents.waiting.count < Self.mostWaiting
            else {
                contents.dropped = contents.dropped &+ 1
                return nil
            }
            contents.waiting.append(frame)
            return transport
        }
        if let transport { deliver(transport) }
    }

    /// Puts frames that wait into the buffers there are.
    private func deliver(_ transport: VirtioPCI) {
        transport.withQueue(0) { (queue) throws(VirtqueueError) in
            var delivered = false
            var isBlocked = false
            while !isBlocked, let frame = contents.withLock({ $0.waiting.first }) {
                if try put(frame, in: &queue, transport) {
                    contents.withLock { if !$0.waiting.isEmpty { $0.waiting.removeFirst() } }
                    delivered = true
                } else {
                    let isPending = try queue.enableNotifications()
                    let hasRoom = isPending ? try hasRoom(for: frame, in: queue) : false
                    isBlocked = !hasRoom
                }
            }
            if delivered, try queue.shouldInterrupt() { transport.interrupt(queue: 0) }
        }
    }

    private func hasRoom(for frame: [UInt8], in queue: Virtqueue) throws(VirtqueueError) -> Bool {
        var attempt = queue
        return try take(frame.count + Self.headerLength, from: &attempt) != nil
    }

    /// Chains with room for so many bytes; nil if there aren't.
    private func take(_ length: Int, from queue: inout Virtqueue) throws(VirtqueueError) -> [DescriptorChain]? {
        let merges = contents.withLock { $0.merges }
        var chains: [DescriptorChain] = []
        var room = 0
        while room < length {
            guard merges || chains.isEmpty, chains.count < Int(queue.size), let chain = try queue.pop() else {
                return nil
            }
            chains.append(chain)
            room += chain.writableLength
            if !merges { return chains }
        }
        return chains
    }

    /// Puts one frame into as many chains as it needs; false if there aren't enough.
    ///
    /// - Spec: virtio 1.2, 5.1.6.4
    private func put(_ frame: [UInt8], in queue: inout Virtqueue, _ transport: VirtioPCI) throws(VirtqueueError) -> Bool
    {
        var attempt = queue
        guard let chains = try take(frame.count + Self.headerLength, from: &attempt) else { return false }
        queue = attempt
        var bytes = [UInt8](repeating: 0, count: 10) + littleEndian(UInt16(truncatingIfNeeded: chains.count)) + frame
        for (index, chain) in chains.enumerated() {
            let written = transport.memory.scatter(bytes, into: chain.writable)
            bytes.removeFirst(written)
            try queue.place(head: chain.head, written: written, ahead: UInt16(truncatingIfNeeded: index))
        }
        try queue.publish(UInt16(truncatingIfNeeded: chains.count))
        return true
    }

    /// Frames that wait.
    public func saveDeviceState() -> VirtioDeviceState {
        var state = VirtioDeviceState()
        state.frames = contents.withLock { $0.waiting }
        return state
    }

    /// Puts frames back.
    public func restoreDeviceState(_ state: VirtioDeviceState) throws {
        guard state.frames.count <= Self.mostWaiting else { throw StateError("too many saved frames") }
        contents.withLock { $0.waiting = state.frames }
    }
}
