// The socket device, driven by hand: the handshake, credit, ends, resets, and packets that make no sense.
import DeviceModel
import Devices
import MachineTesting
import Synchronization
import Testing

private let version1: UInt64 = 1 << 32
private let eventIndex: UInt64 = 1 << 29

/// A host that notes what it is told.
private final class RecordingHost: VsockBackend {
    private let contents = Mutex((events: [String](), bytes: 0))
    var events: [String] { contents.withLock { $0.events } }
    var bytes: Int { contents.withLock { $0.bytes } }
    private func note(_ text: String) { contents.withLock { $0.events.append(text) } }
    func requested(_ stream: UInt64, hostPort: UInt32, guestPort: UInt32) {
        note("requested \(stream) \(hostPort) \(guestPort)")
    }
    func accepted(_ stream: UInt64, hostPort: UInt32) { note("accepted \(stream)") }
    func received(_ bytes: ArraySlice<UInt8>, on stream: UInt64) {
        contents.withLock { $0.bytes += bytes.count }
        if bytes.count < 100 { note("received \(stream) \(String(decoding: bytes, as: UTF8.self))") }
    }
    func ended(_ stream: UInt64, sends: Bool, takes: Bool) { note("ended \(stream) \(sends) \(takes)") }
    func hasRoom(_ stream: UInt64) { note("room \(stream)") }
}

/// A packet as the driver sees it.
private struct Packet: Equatable {
    var ports: [UInt32]
    var operation: UInt16
    var flags: UInt32 = 0
    var allocation: UInt32 = 0x10000
    var forwarded: UInt32 = 0
    var data: [UInt8] = []

    init(_ from: UInt32, _ to: UInt32, _ operation: UInt16, flags: UInt32 = 0, data: [UInt8] = []) {
        (ports, self.operation, self.flags, self.data) = ([from, to], operation, flags, data)
    }

    init(_ bytes: [UInt8]) {
        func field(_ offset: Int, _ size: Int) -> UInt32 {
            (0..<size).reduce(0) { $0 | UInt32(bytes[offset + $1]) << UInt32($1 * 8) }
        }
        ports = [field(0x10, 4), field(0x14, 4)]
        operation = UInt16(field(0x1E, 2))
        (flags, allocation, forwarded) = (field(0x20, 4), field(0x24, 4), field(0x28, 4))
        data = Array(bytes[44...].prefix(Int(field(0x18, 4))))
    }

    func bytes(source: UInt64 = 3, destination: UInt64 = 2, type: UInt16 = 1, length: UInt32? = nil) -> [UInt8] {
        func little(_ value: UInt64, _ size: Int) -> [UInt8] {
            (0..<size).map { UInt8(truncatingIfNeeded: value >> UInt64($0 * 8)) }
        }
        return little(source, 8) + little(destination, 8) + ports.flatMap { little(UInt64($0), 4) }
            + little(UInt64(length ?? UInt32(data.count)), 4) + little(UInt64(type), 2) + little(UInt64(operation), 2)
            + little(UInt64(flags), 4) + little(UInt64(allocation), 4) + little(UInt64(forwarded), 4) + data
    }
}

@Suite struct VsockTests {
    private let host = RecordingHost()
    private let device: VirtioVsock
    private let rig: VirtioRig

    init() throws {
        device = VirtioVsock(cid: 3, door: ManualDoor(), backend: host)
        rig = try VirtioRig(device)
        rig.start(features: version1 | eventIndex)
    }

    /// The guest sends a packet.
    private func send(_ bytes: [UInt8]) {
        rig.put(bytes, at: 0x20_0000)
        let head = min(bytes.count, 44)
        rig.queues[1].add([
            (0x20_0000, UInt32(head), false), (0x20_0000 + UInt64(head), UInt32(bytes.count - head), false),
        ])
        rig.kick(1)
        #expect(rig.queues[1].take() != nil)
    }

    /// The guest gives a buffer of 64 bytes of data, and what it gets in it.
    private func receive() -> Packet? {
        rig.queues[0].add([(0x30_0000, 44, true), (0x30_002C, 64, true)])
        rig.kick(0)
        guard let used = rig.queues[0].take() else {
            // It is taken back.
            let index: UInt16 = rig.queues[0].load(0x4002)
            rig.queues[0].store(index &- 1, 0x4002)
            rig.queues[0].index &-= 1
            return nil
        }
        return Packet(rig.bytes(0x30_0000, Int(used.length)))
    }

    private func establish() {
        send(Packet(1000, 7, 1).bytes())
        device.perform(.accept, on: 2)
        _ = receive()
    }

    @Test func `the device tells the guest's address`() {
        #expect(rig.readConfig(0, 4) == 0x1053_1AF4)
        #expect(rig.read(0x2000, 8) == 3)
    }

    @Test func `a stream of the guest's: request, response, data, both ends`() {
        send(Packet(1000, 7, 1).bytes())
        #expect(host.events == ["requested 2 7 1000"])
        device.perform(.accept, on: 2)
        #expect(receive()?.operation == 2)
        send(Packet(1000, 7, 5, data: Array("hello".utf8)).bytes())
        #expect(host.events.last == "received 2 hello")
        device.perform(.data(Array("world".utf8)), on: 2)
        let answer = receive()
        #expect(answer?.data == Array("world".utf8) && answer?.ports == [7, 1000] && answer?.operation == 5)
        device.perform(.end, on: 2)
        let end = receive()
        #expect(end?.operation == 4 && end?.flags == 2)
        send(Packet(1000, 7, 5, data: Array("more".utf8)).bytes())
        #expect(host.events.last == "received 2 more")
        send(Packet(1000, 7, 4, flags: 2).bytes())
        #expect(host.events.last == "ended 2 true false")
        send(Packet(1000, 7, 4, flags: 1).bytes())
        #expect(host.events.last == "ended 2 true true")
        #expect(receive()?.operation == 3)
        #expect(device.streamCount == 0)
    }

    @Test func `a stream of the host's, accepted, and one refused`() {
        device.perform(.open(guestPort: 80), on: 3)
        let request = receive()
        #expect(request?.operation == 1 && request?.ports[1] == 80)
        let port = request?.ports[0] ?? 0
        send(Packet(80, port, 2).bytes())
        #expect(host.events == ["accepted 3"])
        device.perform(.close, on: 3)
        #expect(receive()?.flags == 3)
        send(Packet(80, port, 3).bytes())
        #expect(device.streamCount == 0)
        device.perform(.open(guestPort: 81), on: 5)
        send(Packet(81, receive()?.ports[0] ?? 0, 3).bytes())
        #expect(host.events == ["accepted 3", "ended 5 true true"])
    }

    @Test func `no more is sent than the guest has room for`() {
        var request = Packet(1000, 7, 1)
        request.allocation = 100
        send(request.bytes())
        device.perform(.accept, on: 2)
        _ = receive()
        #expect(device.window(2) == 100)
        device.perform(.data([UInt8](repeating: 1, count: 100)), on: 2)
        #expect(device.window(2) == 0)
        #expect(receive()?.data.count == 64)
        #expect(receive()?.data.count == 36)
        #expect(receive() == nil)
        var credit = Packet(1000, 7, 6)
        (credit.allocation, credit.forwarded) = (100, 90)
        send(credit.bytes())
        #expect(host.events.last == "room 2")
        #expect(device.window(2) == 90)
        credit.forwarded = 0xFFFF_FFF0
        send(credit.bytes())
        #expect(device.window(2) == 0)
    }

    @Test func `the guest hears of room when the host has taken much, and when it asks`() {
        establish()
        send(Packet(1000, 7, 7).bytes())
        #expect(receive()?.operation == 6)
        for _ in 0..<2 { send(Packet(1000, 7, 5, data: [UInt8](repeating: 1, count: 65536)).bytes()) }
        #expect(receive() == nil)
        device.perform(.taken(1 << 40), on: 2)
        let credit = receive()
        #expect(credit?.operation == 6 && credit?.forwarded == 131072)
    }

    @Test func `a guest that sends more than there is room for is cut off`() {
        establish()
        for _ in 0..<5 { send(Packet(1000, 7, 5, data: [UInt8](repeating: 1, count: 65536)).bytes()) }
        #expect(host.bytes == 4 * 65536)
        #expect(host.events.last == "ended 2 true true")
        #expect(receive()?.operation == 3)
    }

    @Test func `packets that make no sense are answered by a reset, or not at all`() {
        send(Packet(1000, 7, 5).bytes())
        #expect(receive()?.operation == 3)
        send(Packet(1000, 7, 1).bytes(type: 9))
        #expect(receive()?.operation == 3)
        send(Packet(1000, 7, 3).bytes())
        send(Packet(1000, 7, 1).bytes(source: 4))
        send(Packet(1000, 7, 1).bytes(destination: 1))
        send(Array(Packet(1000, 7, 1).bytes().prefix(43)))
        #expect(receive() == nil)
        #expect(host.events.isEmpty)
        establish()
        send(Packet(1000, 7, 5, data: [1, 2, 3]).bytes(length: 1000))
        #expect(host.events.last == "ended 2 true true")
    }

    @Test func `a stream that the guest gives up before the host accepts it is over for the host too`() {
        send(Packet(1000, 7, 1).bytes())
        send(Packet(1000, 7, 3).bytes())
        #expect(host.events == ["requested 2 7 1000", "ended 2 true true"])
        // It has connected meanwhile, and had nothing to end then.
        device.perform(.accept, on: 2)
        #expect(host.events.count == 3 && host.events.last == "ended 2 true true")
        #expect(device.streamCount == 0 && receive() == nil)
    }

    @Test func `there are so many streams and no more`() {
        for port in 0..<1100 as Range<UInt32> { send(Packet(port, 7, 1).bytes()) }
        #expect(device.streamCount == 1024)
        #expect(host.events.count == 1024)
        rig.write(0x14, 1, 0)
        #expect(device.streamCount == 0)
        #expect(host.events.count == 2048)
    }

    @Test func `after a restore all streams are gone, and the guest is told`() throws {
        establish()
        let copy = VirtioVsock(cid: 4, door: ManualDoor(), backend: RecordingHost())
        let other = try VirtioRig(copy, memory: rig.memory)
        try other.transport.restoreState(rig.transport.saveState())
        other.bridge.remap()
        other.queues = rig.queues
        #expect(copy.streamCount == 0)
        rig.put([9, 9, 9, 9], at: 0x40_0000)
        other.queues[2].add([(0x40_0000, 4, true)])
        other.kick(2)
        #expect(other.queues[2].take()?.length == 4)
        #expect(rig.bytes(0x40_0000, 4) == [0, 0, 0, 0])
        // What is opened before the guest has seen that is not to be among the streams that are gone.
        copy.perform(.open(guestPort: 80), on: 3)
        other.queues[0].add([(0x30_0000, 44, true), (0x30_002C, 64, true)])
        other.kick(0)
        #expect(other.queues[0].take() == nil)
        other.queues[2].add([(0x40_0000, 4, true)])
        other.kick(2)
        #expect(other.queues[0].take()?.length == 44)
        #expect(other.queues[2].take() == nil, "once")
    }

    @Test func `random packets and a random host neither trap nor hang nor pile up`() throws {
        var random = SeededRandom(state: 0x50C4_E700 &+ firstSeed)
        for round in 0..<60_000 {
            if round % 5000 == 0 {
                for queue in rig.queues {
                    queue.store(UInt32(0), 0x4000)
                    queue.store(UInt32(0), 0x8000)
                }
                rig.start(features: version1 | eventIndex)
            }
            let ports = [UInt32(random.next() % 4), UInt32(random.next() % 4) + (random.next() % 2 == 0 ? 0 : 1 << 30)]
            var packet = Packet(ports[0], ports[1], UInt16(random.next() % 9), flags: UInt32(random.next() % 4))
            packet.allocation = random.next() % 8 == 0 ? UInt32(truncatingIfNeeded: random.next()) : 0x10000
            packet.forwarded = UInt32(truncatingIfNeeded: random.next() >> (random.next() % 64))
            packet.data = [UInt8](repeating: 1, count: Int(random.next() % 3000))
            let isLying = random.next() % 16 == 0
            send(packet.bytes(length: isLying ? UInt32(truncatingIfNeeded: random.next()) : nil))
            let stream = random.next() % 2 == 0 ? random.next() % 64 : UInt64(round / 30) * 2 % 4096
            switch random.next() % 8 {
            case 0: device.perform(.open(guestPort: UInt32(random.next() % 4)), on: stream | 1)
            case 1, 2: device.perform(.accept, on: stream)
            case 3:
                let room = device.window(stream)
                if room > 0 { device.perform(.data([UInt8](repeating: 2, count: min(room, 5000))), on: stream) }
            case 4: device.perform(.taken(Int(truncatingIfNeeded: random.next())), on: stream)
            case 5: device.perform(.end, on: stream)
            case 6: if random.next() % 8 == 0 { device.perform(.close, on: stream) }
            default: _ = receive()
            }
            #expect(device.streamCount <= 1024)
        }
        #expect(rig.status == 0xF)
    }
}
