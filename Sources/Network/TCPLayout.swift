// Where the headers of a packet are that carries TCP.
//
// Ethernet with up to two VLAN tags (IEEE 802.1Q); IPv4 (RFC 791) with options, IPv6 (RFC 8200) without extension headers;
// TCP (RFC 9293) with options. All offsets are those of the packet, so they include the offload header.

/// The headers of a TCP packet, each of them whole.
package struct TCPLayout: Equatable {
    /// Flags of the TCP header.
    enum Flag {
        static let fin: UInt8 = 1
        static let psh: UInt8 = 8
        static let ack: UInt8 = 16
        static let cwr: UInt8 = 128
    }

    /// Where the IP header begins.
    package var ip: Int
    /// Where the TCP header begins.
    package var tcp: Int
    /// Where the payload begins.
    package var payload: Int
    /// IPv6 instead of IPv4.
    package var isIPv6: Bool

    /// Finds the headers; nil if they aren't there or not whole.
    package init?(_ packet: [UInt8]) {
        var place = OffloadHeader.length + 12
        guard packet.count >= place + 2 else { return nil }
        for _ in 0..<2 where packet.bigHalf(place) == 0x8100 || packet.bigHalf(place) == 0x88A8 {
            place += 4
            guard packet.count >= place + 2 else { return nil }
        }
        let type = packet.bigHalf(place)
        ip = place + 2
        isIPv6 = type == 0x86DD
        if type == 0x0800 {
            guard packet.count >= ip + 20, packet[ip] >> 4 == 4, packet[ip] & 15 >= 5, packet[ip + 9] == 6,
                packet.bigHalf(ip + 6) & 0x3FFF == 0
            else { return nil }
            tcp = ip + Int(packet[ip] & 15) * 4
        } else {
            guard isIPv6, packet.count >= ip + 40, packet[ip] >> 4 == 6, packet[ip + 6] == 6 else { return nil }
            tcp = ip + 40
        }
        guard packet.count >= tcp + 20, packet[tcp + 12] >> 4 >= 5 else { return nil }
        payload = tcp + Int(packet[tcp + 12] >> 4) * 4
        guard packet.count >= payload else { return nil }
    }

    /// The folded sum of the pseudo header for a TCP segment of some length.
    func pseudoHeader(_ packet: [UInt8], length: Int) -> UInt16 {
        let addresses = isIPv6 ? ip + 8..<ip + 40 : ip + 12..<ip + 20
        let sum = UInt64(InternetChecksum.sum(packet, addresses)) &+ 6 &+ UInt64(length)
        return InternetChecksum.fold(sum)
    }

    /// Makes the lengths of the IP header those of the packet, and its checksum right; false if it is too long for one.
    func setLengths(_ packet: inout [UInt8]) -> Bool {
        let length = packet.count - (isIPv6 ? ip + 40 : ip)
        guard let short = UInt16(exactly: length) else { return false }
        if isIPv6 {
            packet.setBigHalf(ip + 4, short)
        } else {
            packet.setBigHalf(ip + 2, short)
            packet.setBigHalf(ip + 10, 0)
            packet.setBigHalf(ip + 10, ~InternetChecksum.sum(packet, ip..<tcp))
        }
        return true
    }

    /// Computes the TCP checksum of the whole packet.
    func setChecksum(_ packet: inout [UInt8]) {
        packet.setBigHalf(tcp + 16, 0)
        let sum = InternetChecksum.fold(
            pseudoHeader(packet, length: packet.count - tcp), InternetChecksum.sum(packet, tcp..<packet.count))
        packet.setBigHalf(tcp + 16, ~sum)
    }
}
