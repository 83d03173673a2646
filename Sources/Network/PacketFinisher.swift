// Does on a packet what its receiver can't do: computes its checksum, cuts it into segments.
//
// A packet comes from a guest, another machine or the host, so nothing in it or in its header is believed.

/// Turns a packet into what a receiver takes.
public enum PacketFinisher {
    /// The smallest payload of a segment that is cut: smaller ones would make some thousand packets of one.
    package static let smallestSegment = 48
    /// The longest packet: a frame with a 64 KiB IP packet and two VLAN tags.
    static let longestPacket = OffloadHeader.length + 14 + 8 + 65535

    /// The packets to hand to a receiver; none if the packet is malformed.
    ///
    /// - Spec: virtio 1.2, 5.1.6.2
    public static func finish(_ packet: [UInt8], for receiver: LinkOffloads) -> [[UInt8]] {
        guard packet.count >= OffloadHeader.length + 14, packet.count <= longestPacket,
            let header = OffloadHeader(of: packet)
        else { return [] }
        if header.flags.contains(.needsChecksum) {
            let place = OffloadHeader.length + Int(header.checksumStart) + Int(header.checksumOffset)
            guard header.checksumStart >= 14, place + 2 <= packet.count else { return [] }
        }
        if header.segmentation == .none {
            guard header.suits(receiver) else { return [withChecksum(packet, header)] }
            // Who doesn't take missing checksums isn't told of right ones either.
            if receiver.contains(.checksum) || header.flags.isEmpty { return [packet] }
            var packet = packet
            packet[0] = 0
            return [packet]
        }
        guard header.flags.contains(.needsChecksum), Int(header.segmentSize) >= smallestSegment,
            let layout = TCPLayout(packet), layout.isIPv6 == (header.segmentation == .tcp6),
            Int(header.checksumStart) + OffloadHeader.length == layout.tcp, header.checksumOffset == 16
        else { return [] }
        if header.suits(receiver) { return [packet] }
        if receiver.contains(.longTCP4), !layout.isIPv6 { return whole(packet, layout) }
        return segments(of: packet, layout, size: Int(header.segmentSize))
    }

    /// The packet with its missing checksum.
    private static func withChecksum(_ packet: [UInt8], _ header: OffloadHeader) -> [UInt8] {
        var packet = packet
        let start = OffloadHeader.length + Int(header.checksumStart)
        // What stands there is the pseudo header's sum, so it is summed along. UDP has no zero (RFC 768).
        let sum = ~InternetChecksum.sum(packet, start..<packet.count)
        packet.setBigHalf(start + Int(header.checksumOffset), sum == 0 ? 0xFFFF : sum)
        OffloadHeader().write(to: &packet)
        return packet
    }

    /// The packet as one segment.
    private static func whole(_ packet: [UInt8], _ layout: TCPLayout) -> [[UInt8]] {
        var packet = packet
        guard layout.setLengths(&packet) else { return [] }
        layout.setChecksum(&packet)
        OffloadHeader().write(to: &packet)
        return [packet]
    }

    /// The packet cut into segments.
    ///
    /// Sequence numbers advance; IPv4 identifications count up; FIN and PSH are the last one's, CWR the first one's.
    private static func segments(of packet: [UInt8], _ layout: TCPLayout, size: Int) -> [[UInt8]] {
        var headers = Array(packet[..<layout.payload])
        OffloadHeader().write(to: &headers)
        let sequence = packet.bigWord(layout.tcp + 4)
        let identification = layout.isIPv6 ? 0 : packet.bigHalf(layout.ip + 4)
        let flags = packet[layout.tcp + 13]
        var result: [[UInt8]] = []
        var place = layout.payload
        repeat {
            let end = min(place + size, packet.count)
            var segment = headers
            segment.reserveCapacity(headers.count + end - place)
            segment += packet[place..<end]
            var own = flags
            if end < packet.count { own &= ~(TCPLayout.Flag.fin | TCPLayout.Flag.psh) }
            if place > layout.payload { own &= ~TCPLayout.Flag.cwr }
            segment[layout.tcp + 13] = own
            segment.setBigWord(layout.tcp + 4, sequence &+ UInt32(truncatingIfNeeded: place - layout.payload))
            if !layout.isIPv6 {
                segment.setBigHalf(layout.ip + 4, identification &+ UInt16(truncatingIfNeeded: result.count))
            }
            guard layout.setLengths(&segment) else { return [] }
            layout.setChecksum(&segment)
            result.append(segment)
            place = end
        } while place < packet.count
        return result
    }
}
