// vhost-user: the driver's rings against a device that does what it likes, and links against DPDK's back end.
import Foundation
import Glibc
import HostOS
import Network
import Synchronization
import Testing

/// A ring to be asked within expectations.
private final class Driver {
    private var ring: DriverRing
    init(_ ring: DriverRing) { self.ring = ring }
    var freeCount: Int { ring.freeCount }
    func add(_ bytes: [UInt8] = []) -> Bool { ring.add(bytes) }
    func publish() -> Bool { ring.publish() }
    func take() throws(NetworkError) -> [UInt8]? { try ring.take() }
    func setInterrupts(_ areOn: Bool) -> Bool { ring.setInterrupts(areOn) }
}

@Suite struct DriverRingTests {
    private let memory: SharedMemory
    private let length = 0x8000 + Int(DriverRing.size) * DriverRing.bufferSize

    init() throws {
        memory = try SharedMemory(name: "test", size: length, span: length)
        try memory.map(offset: 0, fileOffset: 0, length: length)
    }

    private func ring(deviceWrites: Bool) -> Driver {
        Driver(DriverRing(in: memory, start: 0, buffers: 0x8000, address: 1 << 32, deviceWrites: deviceWrites))
    }

    /// What the device does with the available entry `index`: a descriptor's address, length and flags.
    private func descriptor(_ index: Int) -> (head: UInt16, address: UInt64, length: UInt32, flags: UInt16) {
        let head = memory.load(DriverRing.availableOffset + 4 + 2 * index, as: UInt16.self)
        let place = Int(head) * 16
        return (
            head, memory.load(place, as: UInt64.self), memory.load(place + 8, as: UInt32.self),
            memory.load(place + 12, as: UInt16.self)
        )
    }

    private func giveBack(_ head: UInt32, _ written: UInt32, count: UInt16) {
        let entry = DriverRing.usedOffset + 4 + 8 * Int((count &- 1) % DriverRing.size)
        memory.store(head, at: entry)
        memory.store(written, at: entry + 4)
        memory.store(count, at: DriverRing.usedOffset + 2)
    }

    @Test func `the device sees what was sent, in order, and its buffers are used again`() throws {
        let ring = ring(deviceWrites: false)
        for count in 1...1000 as ClosedRange<UInt16> {
            let packet = [UInt8](repeating: UInt8(truncatingIfNeeded: count), count: 60 + Int(count % 7))
            #expect(ring.add(packet))
            #expect(ring.publish())
            #expect(memory.load(DriverRing.availableOffset + 2, as: UInt16.self) == count)
            let (head, address, length, flags) = descriptor(Int((count - 1) % DriverRing.size))
            #expect(flags == 0 && length == UInt32(packet.count))
            #expect(memory.read(Int(address - 1 << 32), length: Int(length)) == packet)
            giveBack(UInt32(head), 0, count: count)
            #expect(try ring.take() == [])
            #expect(try ring.take() == nil)
        }
    }

    @Test func `who shares the memory can't take it away`() throws {
        try memory.fixSize()
        #expect(ftruncate(memory.descriptor, 0) == -1)
        #expect(ftruncate(memory.descriptor, length * 2) == -1)
        #expect(memory.read(length - 1, length: 1) == [0])
    }

    @Test func `a full ring takes nothing, and says when there is room`() throws {
        let ring = ring(deviceWrites: false)
        for _ in 0..<DriverRing.size { #expect(ring.add([1])) }
        #expect(!ring.add([1]) && ring.freeCount == 0)
        memory.store(UInt16(1), at: DriverRing.usedOffset)
        #expect(!ring.publish())
        #expect(!ring.setInterrupts(true))
        #expect(memory.load(DriverRing.availableOffset, as: UInt16.self) == 0)
        giveBack(7, 0, count: 1)
        #expect(ring.setInterrupts(true))
        #expect(!ring.setInterrupts(false))
        #expect(memory.load(DriverRing.availableOffset, as: UInt16.self) == 1)
    }

    @Test func `what the device gives back must be what it had, once and no longer than it is`() throws {
        for (head, length) in [(256, 0), (UInt32.max, 0), (3, UInt32(DriverRing.bufferSize) + 1), (3, .max)] {
            let ring = ring(deviceWrites: true)
            for _ in 0..<DriverRing.size { #expect(ring.add()) }
            giveBack(head, length, count: 1)
            #expect(throws: NetworkError.self) { try ring.take() }
        }
        let ring = ring(deviceWrites: true)
        for _ in 0..<DriverRing.size { #expect(ring.add()) }
        giveBack(3, 10, count: 1)
        #expect(try ring.take()?.count == 10)
        giveBack(3, 10, count: 2)
        #expect(throws: NetworkError.self) { try ring.take() }
    }

    @Test func `a device that writes at random is refused, and nothing traps`() throws {
        var generator = SystemRandomNumberGenerator()
        var refused = 0
        for _ in 0..<2000 {
            let ring = ring(deviceWrites: true)
            for _ in 0..<DriverRing.size { _ = ring.add() }
            for place in stride(from: DriverRing.usedOffset, to: DriverRing.ringLength, by: 4) {
                let isSmall = UInt8.random(in: 0..<4, using: &generator) > 0
                memory.store(UInt32.random(in: 0...(isSmall ? 300 : .max), using: &generator), at: place)
            }
            do {
                for _ in 0..<1000 { if try ring.take() == nil || !ring.add() { break } }
            } catch { refused += 1 }
        }
        #expect(refused > 100)
    }
}

private let testpmd = "/usr/bin/dpdk-testpmd"

/// DPDK's test program as a wire between two vhost-user sockets.
private final class Wire {
    private let process = Process()

    init(_ devices: [String]) throws {
        // It polls, and is there as long as the tests beside this one take.
        process.executableURL = URL(fileURLWithPath: "/usr/bin/nice")
        process.arguments =
            ["-n", "19", testpmd, "--no-huge", "-m", "128", "--no-shconf", "--no-pci", "--no-telemetry", "-l", "0,1"]
            + devices.enumerated().flatMap { ["--vdev", "net_vhost\($0),iface=\($1)"] }
            + ["--", "--auto-start", "--forward-mode=io", "--total-num-mbufs=4096"]
        // It ends when there is nothing to read.
        process.standardInput = Pipe()
        process.standardOutput = FileHandle.nullDevice
        process.standardError = FileHandle.nullDevice
        try process.run()
    }

    func stop() {
        kill(process.processIdentifier, SIGKILL)
        process.waitUntilExit()
    }
}

@Suite(.serialized, .enabled("needs dpdk-testpmd (make setup)") { access(testpmd, X_OK) == 0 })
final class VhostUserTests {
    private let folder = "/tmp/roost-vhost-\(getpid())-\(UInt32.random(in: 0...UInt32.max))"

    init() { mkdir(folder, 0o700) }
    deinit { try? FileManager.default.removeItem(atPath: folder) }

    private func frame(_ number: Int, length: Int) -> [UInt8] {
        [2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 0x88, 0xB5]
            + [0, 8, 16, 24].map { UInt8(truncatingIfNeeded: number >> $0) }
            + (18..<length).map { UInt8(truncatingIfNeeded: $0 &* 31 ^ number) }
    }

    private func waitForFile(_ path: String) async throws {
        for _ in 0..<10_000 where access(path, F_OK) != 0 { try await Task.sleep(nanoseconds: 1_000_000) }
    }

    /// Sends until one arrives: the other end may not be there yet.
    private func waitForWire(_ from: VhostUserNetwork, _ to: Frames) async throws -> Bool {
        for number in 0..<100 {
            _ = from.send([UInt8](repeating: 0, count: 12) + frame(1_000_000 + number, length: 60))
            try await Task.sleep(nanoseconds: 100_000_000)
            if to.all.contains(where: { $0.count >= 18 && $0[16] == 0x0F }) { return true }
        }
        return false
    }

    @Test func `frames cross whole, in order, both ways; the back end may go and come back`() async throws {
        let (one, two) = (folder + "/one", folder + "/two")
        #expect(throws: NetworkError.self) { try VhostUserNetwork(path: one, listens: false) }
        let listening = try VhostUserNetwork(path: two, listens: true)
        #expect(throws: NetworkError.self) { try VhostUserNetwork(path: two, listens: true) }
        defer { listening.stop() }
        let file = folder + "/file"
        try Data([7]).write(to: URL(fileURLWithPath: file))
        #expect(throws: NetworkError.self) { try VhostUserNetwork(path: file, listens: true) }
        #expect(FileManager.default.contents(atPath: file) == Data([7]))
        var wire = try Wire([one, two + ",client=1"])
        defer { wire.stop() }
        try await waitForFile(one)
        let connecting = try VhostUserNetwork(path: one, listens: false)
        defer { connecting.stop() }

        let (atOne, atTwo) = (Frames(), Frames())
        let room = Mutex(0)
        try connecting.start(deliver: { atOne.add($0) }, resume: { room.withLock { $0 += 1 } })
        try listening.start(deliver: { atTwo.add($0) }, resume: {})
        try #require(try await waitForWire(connecting, atTwo))
        try #require(try await waitForWire(listening, atOne))

        let lengths = (0..<3000).map { 60 + $0 * 7 % 1455 }
        var sent = 0
        for (number, length) in lengths.enumerated() {
            // What finds no room is sent again when there is.
            while !connecting.send([UInt8](repeating: 0, count: 12) + frame(number, length: length)) {
                try await Task.sleep(nanoseconds: 1_000_000)
            }
            sent += 1
            // The wire drops what it is given faster than it can take.
            if number % 64 == 63 { _ = try await atTwo.first { $0.starts(with: frame(number, length: length)) } }
        }
        #expect(try await atTwo.first { $0 == frame(2999, length: lengths[2999]) } != nil)
        let arrived = atTwo.all.filter { $0[16] != 0x0F }
        #expect(sent == 3000 && arrived.count == 3000)
        let firstWrong = lengths.indices.first { $0 >= arrived.count || arrived[$0] != frame($0, length: lengths[$0]) }
        #expect(firstWrong == nil)
        #expect(listening.send([UInt8](repeating: 0, count: 12) + frame(7, length: 1514)))
        #expect(try await atOne.first { $0 == frame(7, length: 1514) } != nil)

        wire.stop()
        _ = unlink(one)
        let before = (atOne.all.count, atTwo.all.count)
        // Nobody is there: the cable leads nowhere, and nothing waits.
        try await Task.sleep(nanoseconds: 200_000_000)
        for number in 0..<1000 {
            #expect(connecting.send([UInt8](repeating: 0, count: 12) + frame(number, length: 60)))
        }
        #expect(before == (atOne.all.count, atTwo.all.count))
        wire = try Wire([one, two + ",client=1"])
        for _ in 0..<100 where !atTwo.all.contains(frame(70_000, length: 99)) {
            _ = connecting.send([UInt8](repeating: 0, count: 12) + frame(70_000, length: 99))
            try await Task.sleep(nanoseconds: 100_000_000)
        }
        #expect(atTwo.all.contains(frame(70_000, length: 99)))
        for _ in 0..<100 where !atOne.all.contains(frame(70_001, length: 700)) {
            _ = listening.send([UInt8](repeating: 0, count: 12) + frame(70_001, length: 700))
            try await Task.sleep(nanoseconds: 100_000_000)
        }
        #expect(atOne.all.contains(frame(70_001, length: 700)))
    }
}

@Suite struct VhostUserPeerTests {
    private let path = "/tmp/roost-vhost-\(getpid())-\(UInt32.random(in: 0...UInt32.max))"

    /// What a peer says that answers every message with the same bytes, or says nothing and goes.
    @Test(arguments: [
        [], [UInt8](repeating: 0, count: 20), [1, 0, 0, 0, 5, 0, 0, 0, 8, 0, 0, 0] + [0, 0, 0, 0, 0, 0, 0, 0],
    ])
    func `who isn't a back end for this is told of`(answer: [UInt8]) async throws {
        let server = try LocalServer(at: path)
        let peer = try HostThread(name: "peer") {
            guard let connection = server.accept() else { return }
            _ = connection.read(limit: 12)
            _ = connection.write(answer)
            connection.close()
        }
        let error = #expect(throws: NetworkError.self) { try VhostUserNetwork(path: path, listens: false) }
        #expect(error?.description.contains(path) == true, "\(String(describing: error))")
        server.close()
        peer.join()
    }
}
