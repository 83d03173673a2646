// The virtio network device.
//
// Virtual I/O Device (VIRTIO) 1.2, 5.1. Queue 0 receives, queue 1 transmits.
//
//   configuration  00 mac 6 bytes   06 status 16 (bit 0 link up)   08 max_virtqueue_pairs 16   0A mtu 16
//   header         flags 8, gso_type 8, hdr_len 16, gso_size 16, csum_start 16, csum_offset 16, num_buffers 16
//
// A packet, in both directions, is the header and an Ethernet frame. The header that the guest wrote goes on as it is:
// whoever takes the packet believes nothing of it.
public import DeviceModel
internal import Synchronization

/// What a network card takes from its driver and gives to it beside plain frames.
///
/// - Spec: virtio 1.2, 5.1.3
public struct VirtioNetFeatures: OptionSet, Sendable {
    /// The feature bits.
    public let rawValue: UInt64
    /// Wraps the bits.
    public init(rawValue: UInt64) { self.rawValue = rawValue }
    /// Packets of the driver may lack their checksum.
    public static let checksum = VirtioNetFeatures(rawValue: 1 << 0)
    /// Packets for the driver may.
    public static let guestChecksum = VirtioNetFeatures(rawValue: 1 << 1)
    /// There is a MAC address.
    public static let address = VirtioNetFeatures(rawValue: 1 << 5)
    /// The driver takes TCP on IPv4 that is yet to be cut.
    public static let guestTCP4 = VirtioNetFeatures(rawValue: 1 << 7)
    /// The driver takes TCP on IPv6 that is yet to be cut.
    public static let guestTCP6 = VirtioNetFeatures(rawValue: 1 << 8)
    /// The driver gives TCP on IPv4 that is yet to be cut.
    public static let hostTCP4 = VirtioNetFeatures(rawValue: 1 << 11)
    /// The driver gives TCP on IPv6 that is yet to be cut.
    public static let hostTCP6 = VirtioNetFeatures(rawValue: 1 << 12)
    /// A packet may span buffers.
    public static let mergeableBuffers = VirtioNetFeatures(rawValue: 1 << 15)
    /// There is a link state.
    public static let status = VirtioNetFeatures(rawValue: 1 << 16)

    /// What the card offers.
    static let offered: VirtioNetFeatures = [
        .checksum, .guestChecksum, .address, .guestTCP4, .guestTCP6, .hostTCP4, .hostTCP6, .mergeableBuffers, .status,
    ]
}

/// What a network card stands on.
public protocol NetworkBackend: AnyObject, Sendable {
    /// A packet of the guest's. False: there is no room; the card is told by `VirtioNet.resume` when there is.
    func send(_ packet: [UInt8]) -> Bool
    /// The driver has agreed to these features: what `VirtioNet.receive` is given must suit them.
    func agreed(to features: VirtioNetFeatures)
}

/// A virtio network card.
public final class VirtioNet: VirtioDevice {
    private struct Contents: Sendable {
        var waiting: [[UInt8]] = []
        var merges = false
        var isUp = true
        var reference = WeakTransport()
        var dropped: UInt64 = 0
        /// Limits on bits a second, from the guest and to it.
        var sending: TokenBucket?
        var receiving: TokenBucket?
    }

    static let headerLength = 12
    static let largestPacket = headerLength + 14 + 8 + 65535
    static let mostWaiting = 256

    private let address: [UInt8]
    private let door: any Door
    private let backend: any NetworkBackend
    private let contents: Mutex<Contents>
    private let timers = Mutex<[any DoorTimer]>([])

    /// Makes a card with a MAC address of six bytes; a limit counts bits, in each direction by itself.
    public init(macAddress: [UInt8], door: any Door, backend: any NetworkBackend, limit: TokenBucket? = nil) {
        address = Array((macAddress + [UInt8](repeating: 0, count: 6)).prefix(6))
        self.door = door
        self.backend = backend
        contents = Mutex(Contents(sending: limit, receiving: limit))
        guard limit != nil else { return }
        let made = (0..<2).map { queue in door.makeTimer { [weak self] in self?.notified(queue: queue) } }
        timers.withLock { $0 = made }
    }

    /// Network.
    public var deviceID: UInt16 { 1 }
    /// Ethernet controller.
    public var classCode: UInt32 { 0x020000 }
    /// Receive and transmit.
    public var queueSizes: [UInt16] { [256, 256] }
    /// Offloads, MAC, MRG_RXBUF, STATUS.
    public var features: UInt64 { VirtioNetFeatures.offered.rawValue }

    /// MAC address and link state.
    public var configuration: [UInt8] {
        let isUp = contents.withLock { $0.isUp }
        return address + [isUp ? 1 : 0, 0] + [1, 0] + littleEndian(UInt16(1500))
    }

    /// Packets from outside that found no room.
    public var droppedFrames: UInt64 { contents.withLock { $0.dropped } }

    /// Keeps a weak reference.
    public func attach(to transport: VirtioPCI) { contents.withLock { $0.reference.transport = transport } }

    /// Remembers whether a packet may span buffers, and tells the backend what the driver takes.
    public func activate(features: UInt64) {
        let agreed = VirtioNetFeatures(rawValue: features)
        contents.withLock { $0.merges = agreed.contains(.mergeableBuffers) }
        backend.agreed(to: agreed)
    }

    /// Forgets packets that wait.
    public func reset() {
        contents.withLock { $0.waiting = [] }
        backend.agreed(to: [])
    }

    /// The driver gives buffers to receive into, or packets to send.
    public func notified(queue: Int) {
        guard let transport = contents.withLock({ $0.reference.transport }) else { return }
        if queue == 0 { deliver(transport) } else { send(transport) }
    }

    /// The backend has room again.
    public func resume() { notified(queue: 1) }

    /// Takes as much of a queue's limit as a packet needs; false, and a timer is armed, if that isn't there yet.
    private func passes(_ length: Int, queue: Int) -> Bool {
        let now = door.now
        let bits = UInt64(max(length - Self.headerLength, 0)) * 8
        let again = contents.withLock { contents in
            queue == 0 ? contents.receiving?.take(bits, now: now) : contents.sending?.take(bits, now: now)
        }
        guard let again else { return true }
        timers.withLock { $0.indices.contains(queue) ? $0[queue] : nil }?.arm(at: again)
        return false
    }

    // MARK: Sending

    /// Hands packets to the backend as long as both it and the limit let them; the others stay in the queue.
    private func send(_ transport: VirtioPCI) {
        transport.withQueue(1) { (queue) throws(VirtqueueError) in
            var left = 65536
            var pushed = false
            var isBlocked = false
            repeat {
                while !isBlocked, left > 0 {
                    var attempt = queue
                    guard let chain = try attempt.pop() else { break }
                    let length = chain.readableLength
                    if length > Self.headerLength + 14, length <= Self.largestPacket {
                        guard hand(transport.memory.gather(chain.readable, limit: length)) else {
                            isBlocked = true
                            break
                        }
                    }
                    left -= 1
                    queue = attempt
                    try queue.push(head: chain.head, written: 0)
                    pushed = true
                }
                if isBlocked { break }
            } while try queue.enableNotifications() && left > 0
            if pushed, try queue.shouldInterrupt() { transport.interrupt(queue: 1) }
        }
    }

    /// Hands one packet over; what the backend refuses is paid for once it takes it.
    ///
    /// A driver has no say in whether checksums are right (flag 2), nor in how many buffers a packet takes.
    ///
    /// - Spec: virtio 1.2, 5.1.6.2.1
    private func hand(_ bytes: consuming [UInt8]) -> Bool {
        var packet = bytes
        packet[0] &= 1
        let before = contents.withLock { $0.sending }
        guard passes(packet.count, queue: 1) else { return false }
        if backend.send(packet) { return true }
        contents.withLock { $0.sending = before }
        return false
    }

    // MARK: Receiving

    /// A packet from outside, on any thread; dropped when too many wait or no driver is there.
    public func receive(_ packet: [UInt8]) {
        guard packet.count > Self.headerLength, packet.count <= Self.largestPacket else { return }
        door.admit(.packet(packet)) { [weak self] event in
            guard case .packet(let packet) = event else { return }
            self?.accept(packet)
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

    private func accept(_ packet: [UInt8]) {
        let transport = contents.withLock { contents -> VirtioPCI? in
            guard let transport = contents.reference.transport, transport.isRunning,
                contents.waiting.count < Self.mostWaiting
            else {
                contents.dropped = contents.dropped &+ 1
                return nil
            }
            contents.waiting.append(packet)
            return transport
        }
        if let transport { deliver(transport) }
    }

    /// Puts packets that wait into the buffers there are.
    private func deliver(_ transport: VirtioPCI) {
        transport.withQueue(0) { (queue) throws(VirtqueueError) in
            var delivered = false
            while let packet = contents.withLock({ $0.waiting.first }) {
                var attempt = queue
                guard let chains = try room(for: packet.count, in: &attempt, notify: &queue) else { break }
                guard passes(packet.count, queue: 0) else { break }
                queue = attempt
                contents.withLock { if !$0.waiting.isEmpty { $0.waiting.removeFirst() } }
                try put(packet, into: chains, of: &queue, transport)
                delivered = true
            }
            if delivered, try queue.shouldInterrupt() { transport.interrupt(queue: 0) }
        }
    }

    /// Chains with room for so many bytes; nil if there aren't, and then the driver tells of new ones.
    private func room(for length: Int, in attempt: inout Virtqueue, notify queue: inout Virtqueue)
        throws(VirtqueueError) -> [DescriptorChain]?
    {
        if let chains = try take(length, from: &attempt) { return chains }
        guard try queue.enableNotifications() else { return nil }
        attempt = queue
        return try take(length, from: &attempt)
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

    /// Puts one packet into as many chains as were taken for it.
    ///
    /// - Spec: virtio 1.2, 5.1.6.4
    private func put(
        _ packet: [UInt8], into chains: [DescriptorChain], of queue: inout Virtqueue, _ transport: VirtioPCI
    ) throws(VirtqueueError) {
        var packet = packet
        packet.replaceSubrange(10..<12, with: littleEndian(UInt16(truncatingIfNeeded: chains.count)))
        var done = 0
        for (index, chain) in chains.enumerated() {
            let written = transport.memory.scatter(packet, from: done, into: chain.writable)
            done += written
            try queue.place(head: chain.head, written: written, ahead: UInt16(truncatingIfNeeded: index))
        }
        try queue.publish(UInt16(truncatingIfNeeded: chains.count))
    }

    /// Packets that wait.
    public func saveDeviceState() -> VirtioDeviceState {
        var state = VirtioDeviceState()
        state.frames = contents.withLock { $0.waiting }
        return state
    }

    /// Puts packets back.
    public func restoreDeviceState(_ state: VirtioDeviceState) throws {
        guard state.frames.count <= Self.mostWaiting,
            state.frames.allSatisfy({ Self.headerLength + 1...Self.largestPacket ~= $0.count })
        else { throw StateError("saved packets that can't be") }
        contents.withLock { $0.waiting = state.frames }
    }
}
