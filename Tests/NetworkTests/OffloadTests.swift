// Checksums, segments and joining, from the RFCs and from their own inverse.
import Network
import Testing

/// A small repeatable source of random numbers.
struct SeededRandom: RandomNumberGenerator {
    var state: UInt64
    mutating func next() -> UInt64 {
        state ^= state << 13
        state ^= state >> 7
        state ^= state << 17
        return state
    }
}

/// The checksum as RFC 1071 defines it, slowly.
private func slowSum(_ bytes: [UInt8]) -> UInt16 {
    var sum: UInt32 = 0
    for index in stride(from: 0, to: bytes.count, by: 2) {
        sum += UInt32(bytes[index]) << 8 | (index + 1 < bytes.count ? UInt32(bytes[index + 1]) : 0)
        sum = sum & 0xFFFF + sum >> 16
    }
    return UInt16(sum)
}

/// What a TCP packet under test is made of.
struct Sample {
    var isIPv6 = false
    var isTagged = false
    var ipOptions = 0
    var tcpOptions = 12
    var payload = 4000
    var segmentSize = 1000
    var flags: UInt8 = 0x18
    var sequence: UInt32 = 0xFFFF_FF00

    var tcpStart: Int { 14 + (isTagged ? 4 : 0) + (isIPv6 ? 40 : 20 + ipOptions) }

    /// The packet, cut by nobody yet: its checksum covers the pseudo header.
    var packet: [UInt8] {
        var frame: [UInt8] = [2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1]
        if isTagged { frame += [0x81, 0, 0, 5] }
        let tcpLength = 20 + tcpOptions + payload
        func half(_ value: Int) -> [UInt8] { [UInt8(value >> 8 & 255), UInt8(value & 255)] }
        if isIPv6 {
            frame += [0x86, 0xDD, 0x60, 0, 0, 0] + half(tcpLength) + [6, 64]
            frame += (0..<32).map { UInt8(0x20 + $0) }
        } else {
            frame += [8, 0, UInt8(0x45 + ipOptions / 4), 0] + half(20 + ipOptions + tcpLength)
            frame += [0xFF, 0xFE, 0x40, 0, 64, 6, 0, 0, 10, 0, 2, 15, 10, 0, 2, 2]
            frame += [UInt8](repeating: 1, count: ipOptions)
        }
        frame += [0x12, 0x34, 0x56, 0x78] + (0..<4).map { UInt8(truncatingIfNeeded: sequence >> UInt32(24 - $0 * 8)) }
        frame += [1, 2, 3, 4, UInt8((20 + tcpOptions) / 4) << 4, flags, 0xFF, 0xFF, 0, 0, 0, 0]
        frame += [UInt8](repeating: 1, count: tcpOptions) + (0..<payload).map { UInt8(truncatingIfNeeded: $0 * 7) }
        var header = OffloadHeader()
        header.flags = .needsChecksum
        header.segmentation = isIPv6 ? .tcp6 : .tcp4
        header.segmentSize = UInt16(segmentSize)
        header.checksumStart = UInt16(tcpStart)
        header.checksumOffset = 16
        return header.bytes + frame
    }
}

/// Whether IPv4 and TCP checksums of a finished packet are right, and its lengths.
private func isSound(_ packet: [UInt8]) -> Bool {
    guard let layout = TCPLayout(packet), packet.prefix(10).allSatisfy({ $0 == 0 }) else { return false }
    let tcp = Array(packet[layout.tcp...])
    let addresses = Array(
        layout.isIPv6 ? packet[layout.ip + 8..<layout.ip + 40] : packet[layout.ip + 12..<layout.ip + 20])
    let pseudo = addresses + [0, 0, UInt8(tcp.count >> 8), UInt8(tcp.count & 255), 0, 0, 0, 6]
    guard slowSum(pseudo + tcp + (tcp.count % 2 == 1 ? [0] : [])) == 0xFFFF else { return false }
    if layout.isIPv6 { return Int(packet.bigHalf(layout.ip + 4)) == tcp.count }
    return slowSum(Array(packet[layout.ip..<layout.tcp])) == 0xFFFF
        && Int(packet.bigHalf(layout.ip + 2)) == packet.count - layout.ip
}

@Suite struct OffloadTests {
    @Test func `sums are those of RFC 1071`() {
        // The example of its section 3.
        #expect(InternetChecksum.sum([0, 1, 0xF2, 3, 0xF4, 0xF5, 0xF6, 0xF7], 0..<8) == 0xDDF2)
        var random = SeededRandom(state: 0x5EED)
        for length in 0..<200 {
            let bytes = (0..<length).map { _ in UInt8.random(in: 0...255, using: &random) }
            let start = length == 0 ? 0 : Int.random(in: 0..<length, using: &random)
            #expect(InternetChecksum.sum(bytes, start..<length) == slowSum(Array(bytes[start...])))
        }
        #expect(InternetChecksum.sum([1, 2], 1..<900) == 0x0200)
        let ones = [UInt8](repeating: 0xFF, count: 65536)
        #expect(InternetChecksum.sum(ones, 0..<65536) == 0xFFFF)
    }

    @Test(
        arguments: [
            Sample(), Sample(isIPv6: true), Sample(isTagged: true), Sample(ipOptions: 8), Sample(tcpOptions: 40),
            Sample(payload: 4001, segmentSize: 1448), Sample(isIPv6: true, payload: 65000, segmentSize: 1428),
            Sample(payload: 999), Sample(payload: 1000), Sample(payload: 1001), Sample(payload: 60000, segmentSize: 48),
        ])
    func `a packet is cut into segments that are right and carry the same bytes`(sample: Sample) throws {
        let packet = sample.packet
        let segments = PacketFinisher.finish(packet, for: [])
        #expect(segments.count == (sample.payload + sample.segmentSize - 1) / sample.segmentSize)
        let layout = try #require(TCPLayout(packet))
        var payload: [UInt8] = []
        for (index, segment) in segments.enumerated() {
            #expect(isSound(segment))
            #expect(segment.bigWord(layout.tcp + 4) == sample.sequence &+ UInt32(index * sample.segmentSize))
            // PSH is the last one's.
            #expect(segment[layout.tcp + 13] == (index == segments.count - 1 ? 0x18 : 0x10))
            if !sample.isIPv6 { #expect(segment.bigHalf(layout.ip + 4) == 0xFFFE &+ UInt16(index)) }
            payload += segment[layout.payload...]
        }
        #expect(payload == Array(packet[layout.payload...]))
    }

    @Test func `FIN is the last segment's and CWR the first one's`() throws {
        let sample = Sample(flags: 0x91)
        let layout = try #require(TCPLayout(sample.packet))
        let flags = PacketFinisher.finish(sample.packet, for: []).map { $0[layout.tcp + 13] }
        #expect(flags == [0x90, 0x10, 0x10, 0x11])
    }

    @Test func `who takes long TCP gets one finished segment, and IPv6 cut`() {
        let whole = PacketFinisher.finish(Sample(payload: 60000).packet, for: .longTCP4)
        #expect(whole.count == 1 && whole.allSatisfy(isSound))
        #expect(PacketFinisher.finish(Sample(isIPv6: true).packet, for: .longTCP4).count == 4)
    }

    @Test func `who takes offloads gets the packet as it is`() {
        let packet = Sample().packet
        #expect(PacketFinisher.finish(packet, for: [.checksum, .tcp4]) == [packet])
        #expect(PacketFinisher.finish(packet, for: [.checksum, .tcp6]).count == 4)
        #expect(PacketFinisher.finish(packet, for: [.tcp4]).count == 4)
    }

    @Test func `a missing checksum is computed, and is never zero`() {
        // UDP whose sum is FFFF: its checksum would be zero, which means none (RFC 768).
        var header = OffloadHeader()
        header.flags = .needsChecksum
        header.checksumStart = 14
        header.checksumOffset = 6
        let frame = [UInt8](repeating: 0, count: 14) + [0xFF, 0xFF, 0, 0, 0, 0, 0, 0]
        let finished = PacketFinisher.finish(header.bytes + frame, for: [])
        #expect(finished.map { Array($0.suffix(2)) } == [[0xFF, 0xFF]])
        #expect(finished.allSatisfy { $0.prefix(10).allSatisfy { $0 == 0 } })
    }

    @Test func `malformed packets vanish`() {
        let good = Sample().packet
        func spoiled(_ change: (inout [UInt8]) -> Void) -> [[UInt8]] {
            var packet = good
            change(&packet)
            return PacketFinisher.finish(packet, for: [])
        }
        #expect(spoiled { $0[0] = 0 } == [])  // to be cut, but its checksum isn't missing
        #expect(spoiled { $0[1] = 3 } == [])  // UDP, which wasn't offered
        #expect(spoiled { $0[1] = 4 } == [])  // IPv6, but it is IPv4
        #expect(spoiled { ($0[4], $0[5]) = (0, 0) } == [])  // segments of nothing
        #expect(spoiled { ($0[6], $0[7]) = (0xFF, 0xFF) } == [])  // checksum beyond the end
        #expect(spoiled { $0[8] = 6 } == [])  // checksum elsewhere
        #expect(spoiled { $0[12 + 34 + 12] = 0xF0 }.count <= 5)  // options that are payload
        #expect(spoiled { $0[12 + 34 + 12] = 0x40 } == [])  // a TCP header too short
        #expect(spoiled { $0[12 + 14] = 0x4F } == [])  // IPv4 options that are TCP
        #expect(spoiled { $0[12 + 20] = 0x20 } == [])  // a fragment
        #expect(spoiled { $0.removeLast($0.count - 20) } == [])
    }

    @Test func `random headers and frames neither trap nor grow without bound`() {
        var random = SeededRandom(state: 0xFACE_0FF5)
        let receivers: [LinkOffloads] = [[], .checksum, .longTCP4, [.checksum, .tcp4, .tcp6]]
        for round in 0..<20_000 {
            var packet = Sample(isIPv6: round % 2 == 0, payload: Int.random(in: 0...3000, using: &random)).packet
            for _ in 0..<Int.random(in: 1...6, using: &random) {
                let index = Int.random(in: 0..<min(packet.count, 80), using: &random)
                packet[index] = UInt8.random(in: 0...255, using: &random)
            }
            if round % 3 == 0 { packet.removeLast(Int.random(in: 0...packet.count, using: &random)) }
            let result = PacketFinisher.finish(packet, for: receivers[round % 4])
            #expect(result.count <= 1 + packet.count / PacketFinisher.smallestSegment)
            #expect(result.allSatisfy { $0.count <= packet.count })
            var joiner = SegmentJoiner()
            joiner.add(packet) { _ in }
            for packet in result { joiner.add(packet) { _ in } }
            joiner.flush { _ in }
        }
    }
}

@Suite struct SegmentJoinerTests {
    private func joined(_ packets: [[UInt8]]) -> [[UInt8]] {
        var joiner = SegmentJoiner()
        var result: [[UInt8]] = []
        for packet in packets { joiner.add(packet) { result.append($0) } }
        joiner.flush { result.append($0) }
        return result
    }

    @Test(arguments: [4000, 4100, 60000, 200])
    func `what was cut is joined, and cut again is the same`(payload: Int) {
        let segments = PacketFinisher.finish(Sample(payload: payload).packet, for: [])
        let packets = joined(segments)
        #expect(packets.count == 1)
        #expect(packets.flatMap { PacketFinisher.finish($0, for: []) } == segments)
    }

    @Test func `other connections, gaps and control segments are not joined`() {
        let first = PacketFinisher.finish(Sample().packet, for: [])
        var other = first[1]
        other[12 + 34] ^= 1
        #expect(joined([first[0], other]).count == 2)
        #expect(joined([first[0], first[2]]) == [first[0], first[2]])
        var fin = first[1]
        fin[12 + 34 + 13] |= 1
        #expect(joined([first[0], fin]) == [first[0], fin])
        var window = first[1]
        window[12 + 34 + 14] ^= 1
        #expect(joined([first[0], window]) == [first[0], window])
    }

    @Test func `no packet becomes longer than IPv4 allows`() {
        var packets: [[UInt8]] = []
        for index in 0..<100 {
            var sample = Sample(payload: 1000, flags: 0x10)
            sample.sequence = UInt32(index * 1000)
            packets += PacketFinisher.finish(sample.packet, for: [])
        }
        let result = joined(packets)
        #expect(result.count == 2)
        #expect(result.allSatisfy { $0.count <= 12 + 14 + 65535 })
        #expect(result.reduce(0) { $0 + $1.count - 12 - 14 - 20 - 32 } == 100_000)
    }
}
