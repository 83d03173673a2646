// Ports opened and closed while a network runs, as the host's own sockets see them; and passt.
import Glibc
import MachineTesting
import Network
import Testing

private let noHeader = [UInt8](repeating: 0, count: 12)
private let guestMAC: [UInt8] = [0x52, 0x54, 0, 0x12, 0x34, 0x56]

/// Whether a connection to a port of the loopback address is accepted.
private func connects(_ port: UInt16) -> Bool {
    let descriptor = socket(AF_INET, Int32(SOCK_STREAM.rawValue), 0)
    defer { close(descriptor) }
    var name = sockaddr_in()
    name.sin_family = sa_family_t(AF_INET)
    name.sin_port = port.bigEndian
    name.sin_addr.s_addr = UInt32(0x7F00_0001).bigEndian
    return withUnsafePointer(to: &name) {
        $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
            connect(descriptor, $0, socklen_t(MemoryLayout<sockaddr_in>.size)) == 0
        }
    }
}

private func arpRequest(_ target: [UInt8]) -> [UInt8] {
    [UInt8](repeating: 255, count: 6) + guestMAC + [8, 6, 0, 1, 8, 0, 6, 4, 0, 1] + guestMAC + [10, 0, 2, 15]
        + [0, 0, 0, 0, 0, 0] + target
}

@Suite struct ForwardTests {
    @Test func `ports are opened and closed while packets move`() async throws {
        let network = try UserNetwork()
        let forward = PortForward(.tcp, hostPort: try freeLoopbackPort(), guestPort: 22)
        try network.start(deliver: { _ in }, resume: {})
        #expect(!connects(forward.hostPort))
        try network.add(forward)
        #expect(connects(forward.hostPort))
        let taken = #expect(throws: NetworkError.self) { try network.add(forward) }
        #expect(taken?.code == .portInUse)
        try network.remove(forward)
        #expect(!connects(forward.hostPort))
        let missing = #expect(throws: NetworkError.self) { try network.remove(forward) }
        #expect(missing?.code == .noForward)
        network.stop()
        let over = #expect(throws: NetworkError.self) { try network.add(forward) }
        #expect(over?.code == .host)
    }

    @Test func `ports are opened and closed before a network runs`() throws {
        let network = try UserNetwork()
        let forward = PortForward(.tcp, hostPort: try freeLoopbackPort(), guestPort: 22)
        try network.add(forward)
        #expect(connects(forward.hostPort))
        try network.remove(forward)
        #expect(!connects(forward.hostPort))
    }

    @Test func `a network without forwards says so`() throws {
        let port = NetworkPort([])
        try port.add(PortForward(.tcp, hostPort: 1, guestPort: 1))
        let runtime = "/tmp/roost-test-\(getpid())-forwards"
        let link = try SwitchNetwork(network: "a", address: [2, 0, 0, 0, 0, 1], runtime: runtime)
        defer {
            link.stop()
            unlink(runtime + "/networks/a/.lock")
            for folder in ["/networks/a", "/networks", ""] { rmdir(runtime + folder) }
        }
        let error = #expect(throws: NetworkError.self) {
            try NetworkPort([link]).add(PortForward(.tcp, hostPort: 1, guestPort: 1))
        }
        #expect(error?.code == .noForward)
    }
}

@Suite(.enabled("needs passt") { access("/usr/bin/passt", X_OK) == 0 })
struct PasstTests {
    @Test func `passt answers the guest, opens ports, and ends with its network`() async throws {
        let forward = PortForward(.tcp, hostPort: try freeLoopbackPort(), guestPort: 22)
        let network = try PasstNetwork(forwards: [forward])
        let frames = Frames()
        try network.start(deliver: { frames.add($0) }, resume: {})
        #expect(network.send(noHeader + arpRequest([10, 0, 2, 2])))
        let answer = try await frames.first { $0.count >= 42 && $0[12] == 8 && $0[13] == 6 && $0[21] == 2 }
        #expect(Array(try #require(answer)[28..<32]) == [10, 0, 2, 2])
        #expect(connects(forward.hostPort))
        let taken = #expect(throws: NetworkError.self) { try PasstNetwork(forwards: [forward]) }
        #expect(taken?.code == .portInUse)
        network.stop()
        #expect(!connects(forward.hostPort))
    }

    @Test func `frames come out of a stream however it is cut, and what are no frames ends it`() {
        let frames = (0..<40).map { n in [UInt8](repeating: UInt8(n), count: n * n * 41) }
        let stream = frames.flatMap { StreamFrames.framed(noHeader + $0) }
        for step in [1, 7, 1400, 65536, 1 << 20] {
            var reader = StreamFrames()
            var place = 0
            var seen: [[UInt8]] = []
            while place < stream.count {
                let goesOn = reader.read({ buffer, start in
                    let count = min(step, buffer.count - start, stream.count - place)
                    if count == 0 { return -1 }
                    buffer.replaceSubrange(start..<start + count, with: stream[place..<place + count])
                    place += count
                    return count
                }) { seen.append(Array($0)) }
                #expect(goesOn)
            }
            // Less than an Ethernet header is nothing.
            #expect(seen == frames.filter { $0.count >= 14 })
        }
        var reader = StreamFrames()
        let goesOn = reader.read({ buffer, start in
            buffer.replaceSubrange(start..<start + 4, with: [0, 2, 0, 0])
            return 4
        }) { _ in }
        #expect(!goesOn)
    }
}
