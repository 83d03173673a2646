// Ports, captures, switches, TAP interfaces.
import Foundation
import Glibc
import Network
import Synchronization
import Testing

private func temporaryPath() -> String {
    "/tmp/roost-test-\(getpid())-\(UInt64.random(in: 0...UInt64.max))"
}

private func frame(to target: [UInt8], from source: [UInt8], _ payload: [UInt8]) -> [UInt8] {
    target + source + [0x88, 0xB5] + payload
}

private let noHeader = [UInt8](repeating: 0, count: 12)
private let everyone = [UInt8](repeating: 0xFF, count: 6)

/// A link whose other end is the test.
private final class TestLink: NetworkLink {
    let deliver = Mutex<(@Sendable ([UInt8]) -> Void)?>(nil)
    let sent = Frames()
    func start(deliver: @escaping @Sendable ([UInt8]) -> Void, resume: @escaping @Sendable () -> Void) {
        self.deliver.withLock { $0 = deliver }
    }
    func send(_ packet: [UInt8]) -> Bool {
        if packet.count > 1000 { return false }
        sent.add(packet)
        return true
    }
    func stop() {}
}

@Suite struct NetworkPortTests {
    @Test func `a guest gets only what it takes`() throws {
        let link = TestLink()
        let port = NetworkPort([link])
        let frames = Frames()
        try port.start(deliver: { packet, _ in frames.add(packet) }, resume: {})
        let deliver = try #require(link.deliver.withLock { $0 })
        let packet = Sample().packet
        deliver(packet)
        #expect(frames.all.count == 4)
        port.setGuestOffloads([.checksum, .tcp4])
        deliver(packet)
        #expect(frames.all.count == 5 && frames.all.last == Array(packet.dropFirst(12)))
    }

    @Test func `each queue has its link`() throws {
        let links = [TestLink(), TestLink()]
        let port = NetworkPort(links)
        let seen = Mutex<[Int]>([])
        try port.start(deliver: { _, queue in seen.withLock { $0.append(queue) } }, resume: {})
        let packet = noHeader + frame(to: everyone, from: [2, 0, 0, 0, 0, 1], [1])
        links[1].deliver.withLock { $0 }?(packet)
        links[0].deliver.withLock { $0 }?(packet)
        #expect(seen.withLock { $0 } == [1, 0])
        #expect(port.send(packet, queue: 1) && links[1].sent.all.count == 1 && links[0].sent.all.isEmpty)
        #expect(!port.send(packet, queue: 2))
    }

    @Test func `a capture holds each packet that passed, and is whole at any time`() throws {
        let path = temporaryPath()
        defer { unlink(path) }
        let link = TestLink()
        let port = NetworkPort([link], capture: try PacketCapture(path: path))
        try port.start(deliver: { _, _ in }, resume: {})
        let out = frame(to: everyone, from: [2, 0, 0, 0, 0, 1], [UInt8](repeating: 7, count: 50))
        let back = frame(to: [2, 0, 0, 0, 0, 1], from: [2, 0, 0, 0, 0, 2], [1, 2, 3])
        #expect(port.send(noHeader + out, queue: 0))
        #expect(!port.send(noHeader + [UInt8](repeating: 0, count: 2000), queue: 0))
        link.deliver.withLock { $0 }?(noHeader + back)
        let file = try #require(fopen(path, "r"))
        defer { fclose(file) }
        var bytes = [UInt8](repeating: 0, count: 10_000)
        bytes.removeLast(bytes.count - fread(&bytes, 1, bytes.count, file))
        func word(_ offset: Int) -> Int { (0..<4).reduce(0) { $0 | Int(bytes[offset + $1]) << ($1 * 8) } }
        #expect([0, 4, 8, 12, 16, 20].map(word) == [0xA1B2_C3D4, 0x0004_0002, 0, 0, 262_144, 1])
        var place = 24
        var captured: [[UInt8]] = []
        var times: [Int] = []
        while place < bytes.count {
            times.append(word(place) * 1_000_000 + word(place + 4))
            #expect(word(place + 4) < 1_000_000 && word(place + 8) == word(place + 12))
            captured.append(Array(bytes[place + 16..<place + 16 + word(place + 8)]))
            place += 16 + word(place + 8)
        }
        #expect(captured == [out, back])
        #expect(times == times.sorted() && times[0] / 1_000_000 > 1_700_000_000)
    }

    @Test func `a capture that can't be made is told`() {
        let error = #expect(throws: NetworkError.self) { try PacketCapture(path: "/nonexistent/capture") }
        #expect(error?.description.contains("/nonexistent/capture") == true)
    }
}

@Suite struct SwitchTests {
    private let runtime = temporaryPath()
    private func removeAll() {
        for name in ["a", "b"] {
            unlink(runtime + "/networks/\(name)/.lock")
            rmdir(runtime + "/networks/" + name)
        }
        rmdir(runtime + "/networks")
        rmdir(runtime)
    }

    private func join(_ name: String, _ number: UInt8, _ frames: Frames) throws -> SwitchNetwork {
        let port = try SwitchNetwork(network: name, address: [2, 0, 0, 0, 0, number], runtime: runtime)
        try port.start(deliver: { frames.add($0) }, resume: {})
        return port
    }

    @Test func `packets reach the port they are for, all when it isn't known, and no other network`() async throws {
        defer { removeAll() }
        let frames = (0..<4).map { _ in Frames() }
        let ports = try [
            join("a", 1, frames[0]), join("a", 2, frames[1]), join("a", 3, frames[2]), join("b", 4, frames[3]),
        ]
        defer { for port in ports { port.stop() } }
        let (one, two): ([UInt8], [UInt8]) = ([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2])
        #expect(ports[0].send(noHeader + frame(to: everyone, from: one, [1])))
        #expect(try await frames[1].first { $0.last == 1 } != nil)
        #expect(try await frames[2].first { $0.last == 1 } != nil)
        // Two knows where one is; one's answer then goes to two alone.
        #expect(ports[1].send(noHeader + frame(to: one, from: two, [2])))
        #expect(try await frames[0].first { $0.last == 2 } != nil)
        #expect(ports[0].send(noHeader + frame(to: two, from: one, [3])))
        #expect(try await frames[1].first { $0.last == 3 } != nil)
        #expect(ports[0].send(noHeader + frame(to: everyone, from: one, [4])))
        #expect(try await frames[2].first { $0.last == 4 } != nil)
        #expect(frames[2].all.map(\.last) == [1, 4])
        #expect(frames[3].all == [])
        // A packet with all that can be left to do passes as it is.
        let long = Sample(payload: 65000).packet
        var addressed = long
        addressed.replaceSubrange(12..<24, with: two + one)
        #expect(ports[0].send(addressed))
        #expect(try await frames[1].first { $0 == Array(addressed.dropFirst(12)) } != nil)
    }

    @Test func `an address is there once, and what a dead process left is swept up`() throws {
        defer { removeAll() }
        let first = try join("a", 1, Frames())
        let error = #expect(throws: NetworkError.self) { try join("a", 1, Frames()) }
        #expect(error?.code == .addressInUse)
        #expect(error?.description.contains("02:00:00:00:00:01; give this one mac=") == true)
        first.stop()
        // A socket that nobody has open, as after kill -9.
        let path = runtime + "/networks/a/02:00:00:00:00:01"
        let socket = socket(AF_UNIX, Int32(SOCK_DGRAM.rawValue), 0)
        var name = sockaddr_un()
        name.sun_family = sa_family_t(AF_UNIX)
        withUnsafeMutableBytes(of: &name.sun_path) { $0.copyBytes(from: Array(path.utf8)) }
        let bound = withUnsafePointer(to: &name) {
            $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                bind(socket, $0, socklen_t(MemoryLayout<sockaddr_un>.size))
            }
        }
        close(socket)
        #expect(bound == 0 && access(path, F_OK) == 0)
        try join("a", 1, Frames()).stop()
        #expect(access(path, F_OK) != 0)
    }

    @Test(arguments: ["", "../a", "a/b", ".", "a b", String(repeating: "a", count: 33)])
    func `a name that would leave the folder is refused`(name: String) {
        let error = #expect(throws: NetworkError.self) {
            try SwitchNetwork(network: name, address: [2, 0, 0, 0, 0, 1], runtime: "/tmp")
        }
        #expect(error?.code == .badName)
    }

    @Test func `a folder that others can enter is refused`() throws {
        defer { removeAll() }
        #expect(mkdir(runtime, 0o700) == 0 && mkdir(runtime + "/networks", 0o700) == 0)
        #expect(mkdir(runtime + "/networks/a", 0o700) == 0 && chmod(runtime + "/networks/a", 0o755) == 0)
        #expect(throws: NetworkError.self) { try join("a", 1, Frames()) }
    }
}

@Suite struct TapTests {
    @Test(arguments: ["", "averyveryverylongname", "a/b", "a b", ".."])
    func `a name that can't be an interface's is refused`(name: String) {
        let error = #expect(throws: NetworkError.self) { try TapNetwork(interface: name) }
        #expect(error?.code == .badName)
    }

    /// Whether the thread of an interface runs.
    private var isServed: Bool {
        let threads = (try? FileManager.default.contentsOfDirectory(atPath: "/proc/self/task")) ?? []
        return threads.contains { thread in
            (try? String(contentsOfFile: "/proc/self/task/\(thread)/comm", encoding: .utf8)) == "roost-tap\n"
        }
    }

    private func wait(until isSo: () -> Bool) async throws -> Bool {
        for _ in 0..<1000 where !isSo() { try await Task.sleep(nanoseconds: 5_000_000) }
        return isSo()
    }

    @Test(
        .enabled("needs CAP_NET_ADMIN, /dev/net/tun and ip") {
            (try? TapNetwork()) != nil && system("ip -V >/dev/null 2>&1") == 0
        })
    func `an interface that is deleted ends its thread`() async throws {
        let network = try TapNetwork()
        defer { network.stop() }
        try network.start(deliver: { _ in }, resume: {})
        try #require(try await wait { isServed })
        #expect(system("ip link delete \(network.name)") == 0)
        #expect(try await wait { !isServed })
    }
}
