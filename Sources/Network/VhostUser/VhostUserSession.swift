// A back end that a card is connected to: the memory that both see, and the two virtqueues in it.
//
// The memory is this card's packets, not the guest's memory: whoever is at the other end sees what goes over the cable and
// nothing else. It is new with each connection, so that a back end that went away can't write into the next one's.
internal import HostOS
internal import Synchronization

/// One life of a connection to a back end.
final class VhostUserSession: Sendable {
    /// Feature bits.
    ///
    /// - Spec: virtio 1.2, 5.1.3, 6; vhost-user, "Feature negotiation"
    private struct Features: OptionSet {
        let rawValue: UInt64
        static let checksum = Features(rawValue: 1 << 0)
        static let guestChecksum = Features(rawValue: 1 << 1)
        static let guestTCP4 = Features(rawValue: 1 << 7)
        static let guestTCP6 = Features(rawValue: 1 << 8)
        static let hostTCP4 = Features(rawValue: 1 << 11)
        static let hostTCP6 = Features(rawValue: 1 << 12)
        static let protocolFeatures = Features(rawValue: 1 << 30)
        static let version1 = Features(rawValue: 1 << 32)

        /// What we can do; for the guest, packets are finished elsewhere.
        static let wanted: Features = [
            .checksum, .guestChecksum, .guestTCP4, .guestTCP6, .hostTCP4, .hostTCP6, .protocolFeatures, .version1,
        ]
    }

    /// Where the memory is for the back end, which knows it by no other address.
    private static let address: UInt64 = 1 << 32
    private static let firstBuffer = 0x8000
    private static let bufferSpan = Int(DriverRing.size) * DriverRing.bufferSize
    private static let length = firstBuffer + 2 * bufferSpan
    private static let ringStarts = [0, 0x4000]

    /// Readable when the back end has gone.
    var connection: LocalConnection { channel.connection }
    /// What it takes.
    let offloads: LinkOffloads
    /// Readable when packets have come, and when there may be room for more.
    let received: FileDescriptor
    let sent: FileDescriptor

    private let channel: VhostUserChannel
    private let memory: SharedMemory
    private let receiveKick: FileDescriptor
    private let sendKick: FileDescriptor
    private let receiveRing: Mutex<DriverRing>
    private let sendRing: Mutex<DriverRing>

    /// Agrees with a back end on all that is needed.
    init(_ connection: LocalConnection) throws(NetworkError) {
        channel = VhostUserChannel(connection)
        do throws(HostError) {
            memory = try SharedMemory(name: "packets", size: Self.length, span: Self.length)
            try memory.map(offset: 0, fileOffset: 0, length: Self.length)
            try memory.fixSize()
            received = try FileDescriptor.eventCounter()
            sent = try FileDescriptor.eventCounter()
            receiveKick = try FileDescriptor.eventCounter()
            sendKick = try FileDescriptor.eventCounter()
        } catch { throw NetworkError(.host, "\(error)") }
        var toGuest = DriverRing(
            in: memory, start: Self.ringStarts[0], buffers: Self.firstBuffer, address: Self.address, deviceWrites: true)
        while toGuest.add() {}
        _ = toGuest.publish()
        receiveRing = Mutex(toGuest)
        let fromGuest = DriverRing(
            in: memory, start: Self.ringStarts[1], buffers: Self.firstBuffer + Self.bufferSpan, address: Self.address,
            deviceWrites: false)
        _ = fromGuest.setInterrupts(false)
        sendRing = Mutex(fromGuest)

        let offered = Features(rawValue: try channel.ask(.getFeatures))
        guard offered.contains(.version1) else {
            throw NetworkError(.host, "the back end is for virtio before 1.0 only")
        }
        let agreed = offered.intersection(.wanted)
        var offloads: LinkOffloads = agreed.contains(.checksum) ? .checksum : []
        if agreed.isSuperset(of: [.checksum, .hostTCP4]) { offloads.insert(.tcp4) }
        if agreed.isSuperset(of: [.checksum, .hostTCP6]) { offloads.insert(.tcp6) }
        self.offloads = offloads
        try setUp(agreed)
    }

    private func setUp(_ features: Features) throws(NetworkError) {
        let extends = features.contains(.protocolFeatures)
        if extends {
            _ = try channel.ask(.getProtocolFeatures)
            try channel.tell(.setProtocolFeatures, bytes(UInt64(0)))
        }
        try channel.tell(.setOwner)
        try channel.tell(.setFeatures, bytes(features.rawValue))
        // One region: its address in the guest, length, address here, offset in the file.
        let region = [Self.address, UInt64(Self.length), Self.address, 0].flatMap { bytes($0) }
        try channel.tell(
            .setMemoryTable, bytes(UInt32(1)) + bytes(UInt32(0)) + region, descriptors: [memory.descriptor])
        try setUpVring(0, kick: receiveKick, call: received)
        try setUpVring(1, kick: sendKick, call: sent)
        if extends {
            for index in 0..<2 { try channel.tell(.setVringEnabled, Self.pair(index, 1)) }
        }
        receiveKick.signal()
    }

    private func setUpVring(
        _ index: Int, kick: borrowing FileDescriptor, call: borrowing FileDescriptor
    ) throws(NetworkError) {
        let start = Self.address + UInt64(Self.ringStarts[index])
        try channel.tell(.setVringSize, Self.pair(index, UInt32(DriverRing.size)))
        try channel.tell(.setVringBase, Self.pair(index, 0))
        // Flags, descriptors, used ring, available ring, log.
        let places = [
            start, start + UInt64(DriverRing.usedOffset), start + UInt64(DriverRing.availableOffset), 0,
        ]
        try channel.tell(.setVringAddresses, Self.pair(index, 0) + places.flatMap { bytes($0) })
        try channel.tell(.setVringCall, bytes(UInt64(index)), descriptors: [call.rawValue])
        try channel.tell(.setVringKick, bytes(UInt64(index)), descriptors: [kick.rawValue])
    }

    /// A ring's index and a number.
    private static func pair(_ index: Int, _ value: UInt32) -> [UInt8] { bytes(UInt32(index)) + bytes(value) }

    /// Hands packets to the back end, all of one or none: false if it has no room, and then `sent` tells when it has. More
    /// than the ring takes at all are cut off.
    func send(_ packets: [[UInt8]]) throws(NetworkError) -> Bool {
        let (isDone, wantsKick) = try sendRing.withLock { (ring) throws(NetworkError) in
            let needed = min(packets.count, Int(DriverRing.size))
            while try ring.take() != nil {}
            if ring.freeCount < needed, ring.setInterrupts(true) {
                while try ring.take() != nil {}
            }
            guard ring.freeCount >= needed else { return (false, false) }
            _ = ring.setInterrupts(false)
            for packet in packets.prefix(needed) { _ = ring.add(packet) }
            return (true, ring.publish())
        }
        if wantsKick { sendKick.signal() }
        return isDone
    }

    /// Takes packets that have come, but leaves after a while; false if there are more.
    func receive(_ deliver: ([UInt8]) -> Void) throws(NetworkError) -> Bool {
        for _ in 0..<64 {
            let (packets, isLast) = try receiveRing.withLock { (ring) throws(NetworkError) in
                var packets: [[UInt8]] = []
                while packets.count < 16, let packet = try ring.take() {
                    packets.append(packet)
                    _ = ring.add()
                }
                let isLast = packets.count < 16
                if !packets.isEmpty, ring.publish() { receiveKick.signal() }
                return (packets, isLast)
            }
            for packet in packets where packet.count > OffloadHeader.length { deliver(packet) }
            if isLast { return true }
        }
        return false
    }
}
