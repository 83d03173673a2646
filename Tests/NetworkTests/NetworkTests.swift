import Glibc
import MachineTesting
import Network
import Synchronization
import Testing

/// Packets from a link's thread, kept without their headers.
final class Frames: Sendable {
    private let contents = Mutex<[[UInt8]]>([])
    func add(_ packet: [UInt8]) { contents.withLock { $0.append(Array(packet.dropFirst(12))) } }
    var all: [[UInt8]] { contents.withLock { $0 } }

    /// The first frame that a test is true of, within five seconds.
    func first(_ test: ([UInt8]) -> Bool) async throws -> [UInt8]? {
        for _ in 0..<5000 {
            if let frame = contents.withLock({ $0 }).first(where: test) { return frame }
            try await Task.sleep(nanoseconds: 1_000_000)
        }
        return nil
    }
}

private let noHeader = [UInt8](repeating: 0, count: 12)
private let guestMAC: [UInt8] = [0x52, 0x54, 0, 0x12, 0x34, 0x56]

private func checksum(_ bytes: [UInt8]) -> [UInt8] {
    var sum: UInt32 = 0
    for index in stride(from: 0, to: bytes.count - 1, by: 2) {
        sum += UInt32(bytes[index]) << 8 | UInt32(bytes[index + 1])
    }
    while sum >> 16 != 0 { sum = sum & 0xFFFF + sum >> 16 }
    let value = ~UInt16(truncatingIfNeeded: sum)
    return [UInt8(value >> 8), UInt8(value & 0xFF)]
}

private func big(_ value: Int) -> [UInt8] { [UInt8(truncatingIfNeeded: value >> 8), UInt8(truncatingIfNeeded: value)] }

/// A DHCP DISCOVER in UDP in IPv4 in Ethernet (RFC 2131).
private func discover() -> [UInt8] {
    var dhcp: [UInt8] = [1, 1, 6, 0, 1, 2, 3, 4, 0, 0, 0x80, 0] + [UInt8](repeating: 0, count: 16) + guestMAC
    dhcp += [UInt8](repeating: 0, count: 10 + 64 + 128) + [99, 130, 83, 99, 53, 1, 1, 255]
    dhcp += [UInt8](repeating: 0, count: 300 - dhcp.count)
    let udp = big(68) + big(67) + big(8 + dhcp.count) + [0, 0] + dhcp
    var ip: [UInt8] = [0x45, 0] + big(20 + udp.count) + [0, 1, 0, 0, 64, 17, 0, 0, 0, 0, 0, 0, 255, 255, 255, 255]
    ip.replaceSubrange(10..<12, with: checksum(ip))
    return [UInt8](repeating: 255, count: 6) + guestMAC + [8, 0] + ip + udp
}

@Suite struct UserNetworkTests {
    @Test func `DHCP offers the usual address`() async throws {
        let frames = Frames()
        let network = try UserNetwork()
        try network.start(deliver: { frames.add($0) }, resume: {})
        #expect(network.send(noHeader + discover()))
        let offer = try await frames.first { $0.count > 14 + 28 + 240 && $0[12] == 8 && $0[36..<38] == [0, 68] }
        let dhcp = Array(try #require(offer).dropFirst(42))
        #expect(dhcp[0] == 2)
        #expect(Array(dhcp[16..<20]) == [10, 0, 2, 15])
        #expect(Array(dhcp[240..<243]) == [53, 1, 2])
        network.stop()
        network.stop()
    }

    @Test func `the gateway answers to ARP`() async throws {
        let frames = Frames()
        let network = try UserNetwork()
        try network.start(deliver: { frames.add($0) }, resume: {})
        let request: [UInt8] =
            [UInt8](repeating: 255, count: 6) + guestMAC + [8, 6, 0, 1, 8, 0, 6, 4, 0, 1] + guestMAC + [10, 0, 2, 15]
            + [0, 0, 0, 0, 0, 0, 10, 0, 2, 2]
        #expect(network.send(noHeader + request))
        let answer = try await frames.first { $0.count >= 42 && $0[12] == 8 && $0[13] == 6 && $0[21] == 2 }
        #expect(Array(try #require(answer)[28..<32]) == [10, 0, 2, 2])
        network.stop()
    }

    @Test(arguments: [PortForward.Transport.tcp, .udp])
    func `a port that is taken is told`(transport: PortForward.Transport) throws {
        let port = try freeLoopbackPort()
        func network() throws -> UserNetwork {
            try UserNetwork(forwards: [PortForward(transport, hostPort: port, guestPort: 22)])
        }
        let error = withExtendedLifetime(try network()) { #expect(throws: NetworkError.self) { try network() } }
        #expect(error?.code == .portInUse)
        #expect(error?.description.hasSuffix("port \(port) is already in use") == true)
        _ = try network()
    }

    @Test func `forwards are read and misspellings refused`() throws {
        #expect(try PortForward(parsing: "tcp:2222:22") == PortForward(.tcp, hostPort: 2222, guestPort: 22))
        #expect(try PortForward(parsing: "udp:53:5353") == PortForward(.udp, hostPort: 53, guestPort: 5353))
        for text in ["", "tcp", "tcp:1", "tcp:1:2:3", "sctp:1:2", "tcp:0:22", "tcp:65536:1", "tcp:a:b"] {
            #expect(throws: NetworkError.self) { try PortForward(parsing: text) }
        }
    }

    @Test func `frames at random neither trap nor hang`() async throws {
        let frames = Frames()
        let network = try UserNetwork()
        try network.start(deliver: { frames.add($0) }, resume: {})
        var state: UInt64 = 0x9E37_79B9_7F4A_7C15
        func random() -> Int {
            state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
            return Int(state >> 33)
        }
        for round in 0..<2000 {
            var frame =
                round % 2 == 0 ? discover() : (0..<random() % 1600).map { _ in UInt8(truncatingIfNeeded: random()) }
            if !frame.isEmpty { frame[random() % frame.count] = UInt8(truncatingIfNeeded: random()) }
            // Nothing may leave for the host's own network.
            if frame.count > 34 { frame.replaceSubrange(30..<34, with: [10, 0, 2, 2]) }
            _ = network.send(noHeader + frame)
            if round % 100 == 0 { try await Task.sleep(nanoseconds: 1_000_000) }
        }
        network.stop()
    }
}
