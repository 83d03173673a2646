// Joins successive segments of one TCP connection into a packet that the guest takes as one.
//
// The user-mode network makes segments of 1460 bytes; a guest that receives 64 KiB at once does so with a fraction of the
// work. Only segments that say the same but for their payload are joined, so that cutting the result again gives
// exactly those that came.

/// Joins segments as they come; what it holds goes out with `flush`.
package struct SegmentJoiner {
    /// A packet that may still grow.
    private struct Pending {
        var packet: [UInt8]
        var layout: TCPLayout
        var segmentSize: Int
        var nextSequence: UInt32
        var count = 1
    }

    private var pending: Pending?

    /// Holds nothing yet.
    package init() {}

    /// Takes a packet; calls `emit` for each that has to go out now, in order.
    package mutating func add(_ packet: [UInt8], _ emit: ([UInt8]) -> Void) {
        guard let layout = TCPLayout(packet), isPlain(packet, layout) else {
            flush(emit)
            return emit(packet)
        }
        let length = packet.count - layout.payload
        if joins(packet, layout, length), pending != nil {
            append(packet, layout, length)
        } else {
            flush(emit)
            pending = Pending(
                packet: packet, layout: layout, segmentSize: length,
                nextSequence: packet.bigWord(layout.tcp + 4) &+ UInt32(truncatingIfNeeded: length))
        }
        // A short or pushed segment is the last of its row.
        let isLast = length < (pending?.segmentSize ?? 0) || packet[layout.tcp + 13] & TCPLayout.Flag.psh != 0
        if isLast { flush(emit) }
    }

    /// Lets go of what is held.
    package mutating func flush(_ emit: ([UInt8]) -> Void) {
        guard var held = pending else { return }
        pending = nil
        if held.count > 1, held.layout.setLengths(&held.packet) {
            let tcp = held.layout.tcp
            held.packet.setBigHalf(
                tcp + 16, held.layout.pseudoHeader(held.packet, length: held.packet.count - tcp))
            var header = OffloadHeader()
            header.flags = .needsChecksum
            header.segmentation = .tcp4
            header.segmentSize = UInt16(truncatingIfNeeded: held.segmentSize)
            header.headerLength = UInt16(truncatingIfNeeded: held.layout.payload - OffloadHeader.length)
            header.checksumStart = UInt16(truncatingIfNeeded: tcp - OffloadHeader.length)
            header.checksumOffset = 16
            header.write(to: &held.packet)
        }
        emit(held.packet)
    }

    /// Whether a packet is data on IPv4 with nothing but ACK and PSH, as long as its IP header says.
    private func isPlain(_ packet: [UInt8], _ layout: TCPLayout) -> Bool {
        let flags = packet[layout.tcp + 13]
        return !layout.isIPv6 && layout.payload < packet.count
            && packet.count - layout.payload >= PacketFinisher.smallestSegment
            && flags & ~TCPLayout.Flag.psh == TCPLayout.Flag.ack
            && Int(packet.bigHalf(layout.ip + 2)) == packet.count - layout.ip
    }

    /// Whether it continues what is held.
    private func joins(_ packet: [UInt8], _ layout: TCPLayout, _ length: Int) -> Bool {
        guard let held = pending, held.layout == layout, length <= held.segmentSize,
            held.packet.count + length - layout.ip <= 65535, packet.bigWord(layout.tcp + 4) == held.nextSequence
        else { return false }
        // Ethernet to the type of service; the fragment word, life time and protocol; addresses to ports; the
        // acknowledgement and the data offset; the window; the options.
        let same = [
            OffloadHeader.length..<layout.ip + 2, layout.ip + 6..<layout.ip + 10, layout.ip + 12..<layout.tcp + 4,
            layout.tcp + 8..<layout.tcp + 13, layout.tcp + 14..<layout.tcp + 16, layout.tcp + 18..<layout.payload,
        ]
        return same.allSatisfy { held.packet[$0] == packet[$0] }
    }

    private mutating func append(_ packet: [UInt8], _ layout: TCPLayout, _ length: Int) {
        pending?.packet += packet[layout.payload...]
        pending?.packet[layout.tcp + 13] |= packet[layout.tcp + 13]
        pending?.nextSequence &+= UInt32(truncatingIfNeeded: length)
        pending?.count += 1
    }
}
