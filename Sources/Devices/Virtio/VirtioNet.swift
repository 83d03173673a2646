// The virtio network device.
//
// Virtual I/O Device (VIRTIO) 1.2, 5.1. Queues 0, 2, 4 … receive, 1, 3, 5 … transmit; the one after the last is for
// commands (VirtioNetControl.swift), or queue 2 if the driver didn't agree to several pairs.
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
    /// There is a queue for commands.
    public static let control = VirtioNetFeatures(rawValue: 1 << 17)
    /// Commands say which packets the driver wants.
    public static let filter = VirtioNetFeatures(rawValue: 1 << 18)
    /// There may be several pairs of queues.
    public static let multiqueue = VirtioNetFeatures(rawValue: 1 << 22)
    /// A command sets the MAC address.
    public static let settableAddress = VirtioNetFeatures(rawValue: 1 << 23)

    /// What the card offers.
    static let offered: VirtioNetFeatures = [
        .checksum, .guestChecksum, .address, .guestTCP4, .guestTCP6, .hostTCP4, .hostTCP6, .mergeableBuffers, .status,
        .control, .filter, .settableAddress,
    ]
}

/// What a network card stands on.
public protocol NetworkBackend: AnyObject, Sendable {
    /// A packet of the guest's, from a pair of queues. False: there is no room; the card is told by `VirtioNet.resume` when
    /// there is.
    func send(_ packet: [UInt8], queue: Int) -> Bool
    /// The driver has agreed to these features: what `VirtioNet.receive` is given must suit them.
    func agreed(to features: VirtioNetFeatures)
}

/// A virtio network card.
public final class VirtioNet: VirtioDevice {
    private struct Contents: Sendable {
        /// Packets for the driver, by pair of queues.
        var waiting: [[[UInt8]]]
        var features = VirtioNetFeatures()
        var control: VirtioNetControl
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
    /// Packets sent in one go: a driver that adds without end is left alone for a while.
    static let mostAtOnce = 65536

    /// No card has more pairs of queues.
    public static let mostPairs = 8

    private let address: [UInt8]
    private let pairs: Int
    private let door: any Door
    private let backend: any NetworkBackend
    private let contents: Mutex<Contents>
    private let timers = Mutex<[any DoorTimer]>([])

    /// Makes a card with a MAC address of six bytes and so many pairs of queues; a limit counts bits, in each direction by
    /// itself.
    public init(
        macAddress: [UInt8], door: any Door, backend: any NetworkBackend, pairs: Int = 1, limit: TokenBucket? = nil
    ) {
        let address = Array((macAddress + [UInt8](repeating: 0, count: 6)).prefix(6))
        self.address = address
        self.pairs = min(max(pairs, 1), Self.mostPairs)
        self.door = door
        self.backend = backend
        contents = Mutex(
            Contents(
                waiting: Array(repeating: [], count: self.pairs), control: VirtioNetControl(address: address),
                sending: limit, receiving: limit))
        let both = [true, false].map { receives in door.makeTimer { [weak self] in self?.serve(receives) } }
        timers.withLock { $0 = both }
    }

    /// Has the queues that receive, or those that send, looked at again at a time.
    private func arm(receives: Bool, at deadline: UInt64) {
        let timer = timers.withLock { $0[receives ? 0 : 1] }
        timer.arm(at: deadline)
    }

    /// Has all queues looked at soon.
    private func armBoth() { for receives in [true, false] { arm(receives: receives, at: door.now) } }

    /// The limit on bits a second.
    public var limit: TokenBucket? { contents.withLock { $0.sending } }

    /// Sets another limit, or none; packets that wait go on by it.
    public func setLimit(_ limit: TokenBucket?) {
        contents.withLock { contents in
            contents.sending = limit
            contents.receiving = limit
        }
        armBoth()
    }

    /// Network.
    public var deviceID: UInt16 { 1 }
    /// Ethernet controller.
    public var classCode: UInt32 { 0x020000 }
    /// Receive and transmit, as many times as there are pairs, and the commands.
    public var queueSizes: [UInt16] { Array(repeating: 256, count: 2 * pairs) + [64] }
    /// Offloads, MAC, MRG_RXBUF, STATUS, CTRL_VQ, CTRL_RX, CTRL_MAC_ADDR; MQ if there are several pairs.
    public var features: UInt64 {
        VirtioNetFeatures.offered.union(pairs > 1 ? .multiqueue : []).rawValue
    }

    /// MAC address and link state.
    public var configuration: [UInt8] {
        let (isUp, address) = contents.withLock { ($0.isUp, $0.control.address) }
        return address + [isUp ? 1 : 0, 0] + littleEndian(UInt16(pairs)) + littleEndian(UInt16(1500))
    }

    /// Packets from outside that found no room.
    public var droppedFrames: UInt64 { contents.withLock { $0.dropped } }

    /// Keeps a weak reference.
    public func attach(to transport: VirtioPCI) { contents.withLock { $0.reference.transport = transport } }

    /// Remembers what the driver takes, and tells the backend.
    public func activate(features: UInt64) {
        let agreed = VirtioNetFeatures(rawValue: features)
        contents.withLock { $0.features = agreed }
        backend.agreed(to: agreed)
    }

    /// Forgets packets that wait, and what commands set.
    public func reset() {
        contents.withLock { contents in
            contents.waiting = Array(repeating: [], count: pairs)
            contents.control = VirtioNetControl(address: address)
            contents.features = []
        }
        backend.agreed(to: [])
    }

    /// The driver gives buffers to receive into, packets to send, or commands.
    ///
    /// - Spec: virtio 1.2, 5.1.2
    public func notified(queue: Int) {
        let (transport, features) = contents.withLock { ($0.reference.transport, $0.features) }
        guard let transport else { return }
        let commands = features.contains(.multiqueue) ? 2 * pairs : 2
        if queue == commands {
            if features.contains(.control) { obey(transport, commands) }
        } else if queue < commands {
            if queue & 1 == 0 { deliver(transport, pair: queue / 2) } else { send(transport, pair: queue / 2) }
        }
    }

    /// The backend has room again. While the door is closed that has to wait; the backend's thread doesn't.
    public func resume() {
        if !door.admitNow(.several([]), { [weak self] _ in self?.serve(false) }) { arm(receives: false, at: door.now) }
    }

    /// Looks at all queues that receive, or at all that send.
    private func serve(_ receives: Bool) {
        let active = contents.withLock { $0.control.pairs }
        for pair in 0..<active { notified(queue: 2 * pair + (receives ? 0 : 1)) }
    }

    /// Takes as much of a limit as a packet needs; false, and a timer is armed, if that isn't there yet.
    private func passes(_ length: Int, receives: Bool) -> Bool {
        let now = door.now
        let bits = UInt64(max(length - Self.headerLength, 0)) * 8
        let again = contents.withLock { contents in
            receives ? contents.receiving?.take(bits, now: now) : contents.sending?.take(bits, now: now)
        }
        guard let again else { return true }
        arm(receives: receives, at: again)
        return false
    }

    // MARK: Commands

    private func obey(_ transport: VirtioPCI, _ queue: Int) {
        transport.drain(queue) { chain, _ in
            let command = transport.memory.gather(
                chain.readable, limit: min(chain.readableLength, VirtioNetControl.longestCommand))
            let answer = contents.withLock { contents in
                contents.control.obey(
                    command, isWhole: command.count == chain.readableLength, features: contents.features, pairs: pairs)
            }
            return transport.memory.scatter([answer.rawValue], from: 0, into: chain.writable)
        }
    }

    // MARK: Sending

    /// Hands packets to the backend as long as both it and the limit let them; the others stay in the queue.
    private func send(_ transport: VirtioPCI, pair: Int) {
        let index = 2 * pair + 1
        let hasRest = transport.withQueue(index) { (queue) throws(VirtqueueError) -> Bool in
            var left = Self.mostAtOnce
            var pushed = false
            var isBlocked = false
            var hasMore = true
            while hasMore, !isBlocked, left > 0 {
                while left > 0 {
                    var attempt = queue
                    guard let chain = try attempt.pop() else { break }
                    let length = chain.readableLength
                    if length > Self.headerLength + 14, length <= Self.largestPacket {
                        guard hand(transport.memory.gather(chain.readable, limit: length), pair) else {
                            isBlocked = true
                            break
                        }
                    }
                    left -= 1
                    queue = attempt
                    try queue.push(head: chain.head, written: 0)
                    pushed = true
                }
                // Who blocks it tells when it goes on.
                if !isBlocked { hasMore = try queue.enableNotifications() }
            }
            if pushed, try queue.shouldInterrupt() { transport.interrupt(queue: index) }
            return hasMore && !isBlocked
        }
        if hasRest == true { arm(receives: false, at: door.now) }
    }

    /// Hands one packet over; what the backend refuses is paid for once it takes it.
    ///
    /// A driver has no say in whether checksums are right (flag 2), nor in how many buffers a packet takes.
    ///
    /// - Spec: virtio 1.2, 5.1.6.2.1
    private func hand(_ bytes: consuming [UInt8], _ pair: Int) -> Bool {
        var packet = bytes
        packet[0] &= 1
        let before = contents.withLock { $0.sending }
        guard passes(packet.count, receives: false) else { return false }
        if backend.send(packet, queue: pair) { return true }
        contents.withLock { contents in
            // It may be another limit by now.
            if let limit = contents.sending, limit.rate == before?.rate, limit.burst == before?.burst {
                contents.sending = before
            }
        }
        return false
    }

    // MARK: Receiving

    /// A packet from outside, on any thread, by one of the backend's queues; dropped when too many wait or no driver is
    /// there. While the door is closed it waits, and not the backend's thread.
    public func receive(_ packet: [UInt8], queue: Int = 0) {
        guard packet.count > Self.headerLength, packet.count <= Self.largestPacket else { return }
        let isIn = door.admitNow(.packet(packet)) { [weak self] event in
            guard let self, case .packet(let packet) = event else { return }
            if let (transport, pair) = keep(packet, queue) { deliver(transport, pair: pair) }
        }
        if !isIn, keep(packet, queue) != nil { arm(receives: true, at: door.now) }
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

    /// Has a packet wait for buffers, if it is wanted and there is room; the pair of queues that it waits for.
    private func keep(_ packet: [UInt8], _ queue: Int) -> (VirtioPCI, Int)? {
        contents.withLock { contents -> (VirtioPCI, Int)? in
            if contents.features.contains(.filter), !contents.control.wants(packet.dropFirst(Self.headerLength)) {
                return nil
            }
            let pair = queue % contents.control.pairs
            guard let transport = contents.reference.transport, transport.isRunning,
                contents.waiting[pair].count < Self.mostWaiting
            else {
                contents.dropped = contents.dropped &+ 1
                return nil
            }
            contents.waiting[pair].append(packet)
            return (transport, pair)
        }
    }

    /// Puts packets that wait into the buffers there are.
    private func deliver(_ transport: VirtioPCI, pair: Int) {
        let index = 2 * pair
        transport.withQueue(index) { (queue) throws(VirtqueueError) in
            var delivered = false
            while let packet = contents.withLock({ $0.waiting[pair].first }) {
                var attempt = queue
                guard let chains = try room(for: packet.count, in: &attempt, notify: &queue) else { break }
                let fits = chains.reduce(0) { $0 + $1.writableLength } >= packet.count
                if fits, !passes(packet.count, receives: true) { break }
                contents.withLock { contents in
                    if !contents.waiting[pair].isEmpty { contents.waiting[pair].removeFirst() }
                    // Without mergeable buffers one chain is all the room there is; it stays for packets that fit.
                    if !fits { contents.dropped = contents.dropped &+ 1 }
                }
                guard fits else { continue }
                queue = attempt
                try put(packet, into: chains, of: &queue, transport)
                delivered = true
            }
            if delivered, try queue.shouldInterrupt() { transport.interrupt(queue: index) }
        }
    }

    /// Chains with room for so many bytes, or the one that has to do; nil if there aren't, and then the driver tells of new
    /// ones.
    private func room(for length: Int, in attempt: inout Virtqueue, notify queue: inout Virtqueue)
        throws(VirtqueueError) -> [DescriptorChain]?
    {
        if let chains = try take(length, from: &attempt) { return chains }
        guard try queue.enableNotifications() else { return nil }
        attempt = queue
        return try take(length, from: &attempt)
    }

    /// Chains with room for so many bytes, or the one that has to do; nil if there aren't.
    private func take(_ length: Int, from queue: inout Virtqueue) throws(VirtqueueError) -> [DescriptorChain]? {
        let merges = contents.withLock { $0.features.contains(.mergeableBuffers) }
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

    /// Packets that wait, and what commands set.
    public func saveDeviceState() -> VirtioDeviceState {
        var state = VirtioDeviceState()
        contents.withLock { contents in
            state.frames = contents.waiting.flatMap(\.self)
            state.network = contents.control
        }
        return state
    }

    /// Puts packets back, over whichever pairs are in use, and has all queues looked at.
    public func restoreDeviceState(_ state: VirtioDeviceState) throws {
        let control = state.network ?? VirtioNetControl(address: address)
        guard state.frames.count <= Self.mostWaiting * pairs, control.isSound(pairs: pairs),
            state.frames.allSatisfy({ Self.headerLength + 1...Self.largestPacket ~= $0.count })
        else { throw StateError("saved packets that can't be") }
        contents.withLock { contents in
            contents.control = control
            contents.waiting = Array(repeating: [], count: pairs)
            for (index, frame) in state.frames.enumerated() {
                contents.waiting[index * control.pairs / max(state.frames.count, 1)].append(frame)
            }
        }
        // What was held back then had its timer, or a backend that would have told.
        armBoth()
    }
}
