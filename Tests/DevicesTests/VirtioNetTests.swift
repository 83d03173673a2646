// The virtio network card: packets both ways, room, limits, offloads.
import DeviceModel
import Devices
import MachineTesting
import Synchronization
import Testing

private let version1: UInt64 = 1 << 32
private let eventIndex: UInt64 = 1 << 29
private let mergeable: UInt64 = 1 << 15

/// A backend that keeps what it is given, as long as it has room.
final class RecordingBackend: NetworkBackend {
    private let contents = Mutex(
        (sent: [[UInt8]](), queues: [Int](), hasRoom: true, agreed: VirtioNetFeatures()))
    var sent: [[UInt8]] { contents.withLock { $0.sent } }
    var queues: [Int] { contents.withLock { $0.queues } }
    var agreed: VirtioNetFeatures { contents.withLock { $0.agreed } }
    var hasRoom: Bool {
        get { contents.withLock { $0.hasRoom } }
        set { contents.withLock { $0.hasRoom = newValue } }
    }
    func send(_ packet: [UInt8], queue: Int) -> Bool {
        contents.withLock { contents in
            if contents.hasRoom {
                contents.sent.append(packet)
                contents.queues.append(queue)
            }
            return contents.hasRoom
        }
    }
    func agreed(to features: VirtioNetFeatures) { contents.withLock { $0.agreed = features } }
}

/// A backend that has its guest send on for ever: each packet brings the next one, until that is enough.
private final class EndlessBackend: NetworkBackend {
    private struct Contents: Sendable {
        var count = 0
        var next: (@Sendable () -> Void)?
    }
    private let contents = Mutex(Contents())
    var count: Int { contents.withLock { $0.count } }
    var next: (@Sendable () -> Void)? {
        get { contents.withLock { $0.next } }
        set { contents.withLock { $0.next = newValue } }
    }
    func send(_ packet: [UInt8], queue: Int) -> Bool {
        contents.withLock { $0.count += 1 }
        next?()
        return true
    }
    func agreed(to features: VirtioNetFeatures) {}
}

@Suite struct VirtioNetTests {
    private let door = ManualDoor()
    private let backend = RecordingBackend()
    private let header = [UInt8](repeating: 0, count: 12)

    private func card(limit: TokenBucket? = nil) -> VirtioNet {
        VirtioNet(macAddress: [2, 0, 0, 0, 0, 1], door: door, backend: backend, limit: limit)
    }

    @Test(arguments: [false, true]) func `the network card sends and receives`(merges: Bool) throws {
        let card = card()
        let rig = try VirtioRig(card)
        rig.start(features: version1 | eventIndex | 1 << 5 | (merges ? mergeable : 0))
        #expect(rig.read(0x2000, 4) == 2)
        let frame = (0..<100).map { UInt8($0) }
        rig.put(header + frame, at: 0x20_0000)
        rig.queues[1].add([(0x20_0000, 12, false), (0x20_000C, 100, false)])
        rig.kick(1)
        #expect(backend.sent == [header + frame])
        card.receive(header + frame)
        if merges {
            for index in 0..<3 { rig.queues[0].add([(0x21_0000 + UInt64(index) * 64, 64, true)]) }
            rig.kick(0)
            #expect(rig.queues[0].take()?.length == 64)
            #expect(rig.queues[0].take()?.length == 48)
            #expect(rig.bytes(0x21_000A, 2) == [2, 0])
        } else {
            rig.queues[0].add([(0x21_0000, 200, true)])
            rig.kick(0)
            #expect(rig.queues[0].take()?.length == 112)
            #expect(rig.bytes(0x21_000A, 2) == [1, 0])
        }
        #expect(rig.bytes(0x21_000C, 52) == Array(frame.prefix(52)))
        #expect(rig.messages.messages.last?.data == 0x41)
    }

    @Test func `a packet of 64 KiB spans as many buffers as it needs`() throws {
        let card = card()
        let rig = try VirtioRig(card)
        rig.start(features: version1 | mergeable, queueSize: 64)
        let packet = header + (0..<65549).map { UInt8(truncatingIfNeeded: $0 * 7) }
        for index in 0..<64 { rig.queues[0].add([(0x21_0000 + UInt64(index) * 1536, 1536, true)]) }
        rig.kick(0)
        card.receive(packet)
        #expect(rig.bytes(0x21_000A, 2) == [43, 0])
        #expect(rig.bytes(0x21_000C, 65549) == Array(packet.dropFirst(12)))
        var lengths = 0
        while let used = rig.queues[0].take() { lengths += Int(used.length) }
        #expect(lengths == packet.count)
    }

    @Test func `the backend is told what the driver takes, and of a reset`() throws {
        let rig = try VirtioRig(card())
        #expect(rig.offered & 0x19183 == 0x19183)
        rig.start(features: version1 | 1 << 1 | 1 << 7)
        #expect(backend.agreed.isSuperset(of: [.guestChecksum, .guestTCP4]) && !backend.agreed.contains(.guestTCP6))
        rig.write(0x14, 1, 0)
        #expect(backend.agreed == [])
    }

    /// - Spec: virtio 1.2, 5.1.6.2.1
    @Test func `a driver has no say in whether a checksum is right`() throws {
        let rig = try VirtioRig(card())
        rig.start(features: version1)
        rig.put([0xFF] + header.dropFirst() + [UInt8](repeating: 1, count: 60), at: 0x20_0000)
        rig.queues[1].add([(0x20_0000, 72, false)])
        rig.kick(1)
        #expect(backend.sent.map { $0[0] } == [1])
    }

    @Test func `packets too short or too long are given back, and not sent`() throws {
        let rig = try VirtioRig(card())
        rig.start(features: version1)
        for length in [0, 1, 12, 26, 65570, 1 << 20] as [UInt32] { rig.queues[1].add([(0x20_0000, length, false)]) }
        rig.kick(1)
        #expect(backend.sent == [])
        for _ in 0..<6 { #expect(rig.queues[1].take() != nil) }
    }

    @Test func `packets wait in the queue while the backend has no room, and none is lost`() throws {
        let card = card()
        let rig = try VirtioRig(card)
        rig.start(features: version1 | eventIndex)
        backend.hasRoom = false
        for index in 0..<4 {
            rig.put(header + [UInt8](repeating: UInt8(index), count: 60), at: 0x20_0000 + UInt64(index) * 128)
            rig.queues[1].add([(0x20_0000 + UInt64(index) * 128, 72, false)])
        }
        rig.kick(1)
        #expect(backend.sent == [] && rig.queues[1].take() == nil)
        backend.hasRoom = true
        card.resume()
        #expect(backend.sent.map { $0[20] } == [0, 1, 2, 3])
        #expect(rig.queues[1].take() != nil)
    }

    /// A card whose driver has four packets to send that are held back; its rig.
    private func heldBack(limit: TokenBucket? = nil) throws -> (VirtioNet, VirtioRig) {
        let card = card(limit: limit)
        let rig = try VirtioRig(card, door: door)
        rig.start(features: version1 | eventIndex)
        rig.put(header + [UInt8](repeating: 5, count: 100), at: 0x20_0000)
        for _ in 0..<4 { rig.queues[1].add([(0x20_0000, 112, false)]) }
        rig.kick(1)
        return (card, rig)
    }

    @Test func `while the door is closed nothing is sent, though the backend has room again`() throws {
        backend.hasRoom = false
        let (card, rig) = try heldBack()
        backend.hasRoom = true
        door.close()
        card.resume()
        door.advance(by: 1)
        #expect(backend.sent.isEmpty)
        door.open()
        door.advance(by: 1)
        #expect(backend.sent.count == 4 && rig.queues[1].take() != nil)
    }

    @Test(arguments: [false, true])
    func `packets that were held back when the card was saved are sent after a restore`(byLimit: Bool) throws {
        backend.hasRoom = byLimit
        let (_, rig) = try heldBack(limit: byLimit ? TokenBucket(rate: 80_000, burst: 800) : nil)
        #expect(backend.sent.count == (byLimit ? 1 : 0))
        let state = rig.transport.saveState()
        backend.hasRoom = true
        let later = ManualDoor()
        let copy = VirtioNet(macAddress: [2, 0, 0, 0, 0, 1], door: later, backend: backend)
        let other = try VirtioRig(copy, memory: rig.memory, door: later)
        try other.transport.restoreState(state)
        later.advance(by: 1)
        #expect(backend.sent.count == 4 && other.transport.isRunning)
    }

    @Test func `packets for a card whose door is closed wait for it, as many as there is room for`() throws {
        let card = card()
        let rig = try VirtioRig(card, door: door)
        rig.start(features: version1 | mergeable)
        for index in 0..<4 { rig.queues[0].add([(0x21_0000 + UInt64(index) * 256, 256, true)]) }
        rig.kick(0)
        door.close()
        for index in 0..<300 { card.receive(header + [UInt8](repeating: UInt8(index & 0xFF), count: 60)) }
        #expect(rig.queues[0].take() == nil && rig.messages.messages.isEmpty)
        #expect(card.droppedFrames == 300 - 256)
        door.open()
        door.advance(by: 1)
        #expect((0..<4).allSatisfy { _ in rig.queues[0].take() != nil })
        #expect((0..<4).map { rig.bytes(0x21_0020 + UInt64($0) * 256, 1)[0] } == [0, 1, 2, 3])
    }

    @Test func `a driver that adds packets without end is left alone for a while, and none is forgotten`() throws {
        let endless = EndlessBackend()
        let card = VirtioNet(macAddress: [2, 0, 0, 0, 0, 1], door: door, backend: endless)
        let rig = try VirtioRig(card, door: door)
        rig.start(features: version1 | eventIndex)
        rig.put(header + [UInt8](repeating: 5, count: 60), at: 0x20_0000)
        let queue = Mutex(rig.queues[1])
        endless.next = { queue.withLock { _ = $0.add([(0x20_0000, 72, false)]) } }
        endless.next?()
        rig.kick(1)
        #expect(endless.count == 65536)
        endless.next = nil
        door.advance(by: 1)
        #expect(endless.count == 65537 && rig.transport.isRunning)
    }

    /// - Spec: virtio 1.2, 5.1.6.4.1
    @Test func `without mergeable buffers a packet that is too long for the next one is dropped`() throws {
        let card = card()
        let rig = try VirtioRig(card)
        rig.start(features: version1)
        rig.queues[0].add([(0x21_0000, 100, true)])
        rig.kick(0)
        card.receive(header + [UInt8](repeating: 1, count: 89))
        #expect(rig.queues[0].take() == nil && card.droppedFrames == 1)
        card.receive(header + [UInt8](repeating: 2, count: 88))
        #expect(rig.queues[0].take()?.length == 100)
        #expect(rig.bytes(0x21_000C, 88) == [UInt8](repeating: 2, count: 88))
    }

    @Test func `a limit lets a burst pass, and the rest in its time, both ways`() throws {
        // 80,000 bits a second: a frame of 100 bytes in 10 ms.
        let card = card(limit: TokenBucket(rate: 80_000, burst: 800))
        let rig = try VirtioRig(card)
        rig.start(features: version1 | mergeable)
        rig.put(header + [UInt8](repeating: 5, count: 100), at: 0x20_0000)
        for _ in 0..<10 { rig.queues[1].add([(0x20_0000, 112, false)]) }
        for index in 0..<12 { rig.queues[0].add([(0x21_0000 + UInt64(index) * 256, 256, true)]) }
        rig.kick(1)
        for _ in 0..<10 { card.receive(header + [UInt8](repeating: 6, count: 100)) }
        #expect(backend.sent.count == 1)
        #expect(rig.queues[0].take() != nil && rig.queues[0].take() == nil)
        door.advance(by: 50_000_000)
        #expect(5...6 ~= backend.sent.count)
        door.advance(by: 100_000_000)
        #expect(backend.sent.count == 10)
        var received = 1
        while rig.queues[0].take() != nil { received += 1 }
        #expect(received == 10 && card.droppedFrames == 0)
    }

    @Test func `a limit that is set, changed or lifted holds from then on, for packets that wait too`() throws {
        let card = card()
        let rig = try VirtioRig(card)
        rig.start(features: version1 | mergeable)
        rig.put(header + [UInt8](repeating: 5, count: 100), at: 0x20_0000)
        func exchange() -> Int {
            for index in 0..<4 {
                rig.queues[0].add([(0x21_0000 + UInt64(index) * 256, 256, true)])
                rig.queues[1].add([(0x20_0000, 112, false)])
            }
            rig.kick(1)
            for _ in 0..<4 { card.receive(header + [UInt8](repeating: 6, count: 100)) }
            while rig.queues[1].take() != nil {}
            return received()
        }
        func received() -> Int {
            var count = 0
            while rig.queues[0].take() != nil { count += 1 }
            return count
        }
        #expect(exchange() == 4 && backend.sent.count == 4)
        card.setLimit(TokenBucket(rate: 80_000, burst: 800, now: door.now))
        #expect(exchange() == 1 && backend.sent.count == 5)
        card.setLimit(TokenBucket(rate: 8_000_000, burst: 800, now: door.now))
        door.advance(by: 50_000)
        #expect(received() == 2 && backend.sent.count == 7)
        card.setLimit(nil)
        door.advance(by: 1)
        #expect(received() == 1 && backend.sent.count == 8 && card.limit == nil)
        #expect(exchange() == 4 && backend.sent.count == 12 && card.droppedFrames == 0)
    }

    @Test func `a flood of frames is dropped, not kept`() throws {
        let card = card()
        let rig = try VirtioRig(card)
        rig.start(features: version1)
        for _ in 0..<1000 { card.receive(header + [UInt8](repeating: 1, count: 60)) }
        #expect(card.droppedFrames == 744)
    }

    @Test func `saved packets come back, and those that can't be are refused`() throws {
        let card = card()
        let rig = try VirtioRig(card)
        rig.start(features: version1)
        card.receive(header + [1, 2, 3])
        var state = card.saveDeviceState()
        #expect(state.frames == [header + [1, 2, 3]])
        state.frames = [[1]]
        #expect(throws: StateError.self) { try card.restoreDeviceState(state) }
    }

    // MARK: Commands and several pairs

    private static let control: UInt64 = 1 << 17 | 1 << 18 | 1 << 23
    private static let several: UInt64 = 1 << 22

    /// Sends a command by queue `index`; the card's answer.
    private func command(_ rig: VirtioRig, _ index: Int, _ bytes: [UInt8]) -> UInt8? {
        rig.put(bytes, at: 0x30_0000)
        rig.put([0x55], at: 0x31_0000)
        rig.queues[index].add([(0x30_0000, UInt32(bytes.count), false), (0x31_0000, 1, true)])
        rig.kick(index)
        return rig.queues[index].take() == nil ? nil : rig.bytes(0x31_0000, 1).first
    }

    private func frame(to target: [UInt8]) -> [UInt8] { header + target + [UInt8](repeating: 3, count: 60) }

    /// Frames that the driver was given, by the first byte of their target.
    private func received(_ card: VirtioNet, _ rig: VirtioRig, _ targets: [[UInt8]]) -> Int {
        for index in 0..<targets.count { rig.queues[0].add([(0x21_0000 + UInt64(index) * 2048, 2048, true)]) }
        rig.kick(0)
        for target in targets { card.receive(frame(to: target)) }
        var count = 0
        while rig.queues[0].take() != nil { count += 1 }
        return count
    }

    /// - Spec: virtio 1.2, 5.1.6.5.1
    @Test func `a driver says which packets it wants`() throws {
        let card = card()
        let rig = try VirtioRig(card)
        rig.start(features: version1 | mergeable | Self.control)
        let targets: [[UInt8]] = [
            [2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 9], [255, 255, 255, 255, 255, 255], [1, 0, 94, 0, 0, 7],
            [51, 51, 0, 0, 0, 1],
        ]
        #expect(received(card, rig, targets) == 5)
        #expect(command(rig, 2, [0, 0, 0]) == 0)
        #expect(received(card, rig, targets) == 2)
        #expect(command(rig, 2, [1, 0, 1, 0, 0, 0] + targets[1] + [1, 0, 0, 0] + targets[3]) == 0)
        #expect(received(card, rig, targets) == 4)
        #expect(command(rig, 2, [0, 1, 1]) == 0)
        #expect(received(card, rig, targets) == 5)
        #expect(command(rig, 2, [0, 1, 0]) == 0)
        // Its own address.
        #expect(command(rig, 2, [1, 1] + targets[4].map { $0 & 0xFE }) == 0)
        #expect(rig.read(0x2000, 4) & 0xFF == 50)
        #expect(received(card, rig, [targets[0]]) == 0)
        let state = card.saveDeviceState()
        rig.write(0x14, 1, 0)
        #expect(rig.read(0x2000, 4) & 0xFF == 2)
        try card.restoreDeviceState(state)
        #expect(rig.read(0x2000, 4) & 0xFF == 50)
    }

    @Test(arguments: [
        [], [0], [0, 0], [0, 2, 1], [9, 0, 1], [1, 1, 2, 0, 0], [1, 0, 255, 255, 255, 255], [1, 0, 1, 0, 0, 0, 1],
        [1, 0, 0, 0, 0, 0], [4, 0, 1, 0], [4, 0], [1, 0] + [UInt8](repeating: 0, count: 9),
    ])
    func `commands that can't be are refused`(bytes: [UInt8]) throws {
        let rig = try VirtioRig(card())
        rig.start(features: version1 | mergeable | Self.control)
        #expect(command(rig, 2, bytes) == 1)
    }

    @Test func `a table that is too long means that all is wanted`() throws {
        let card = card()
        let rig = try VirtioRig(card)
        rig.start(features: version1 | mergeable | Self.control)
        #expect(command(rig, 2, [0, 0, 0]) == 0)
        #expect(command(rig, 2, [1, 0, 0, 1, 0, 0] + [UInt8](repeating: 0, count: 6000)) == 0)
        #expect(received(card, rig, [[2, 0, 0, 0, 0, 9]]) == 1)
    }

    /// - Spec: virtio 1.2, 5.1.6.5.5
    @Test func `several pairs of queues send and receive, as many as the driver uses`() throws {
        let card = VirtioNet(macAddress: [2, 0, 0, 0, 0, 1], door: door, backend: backend, pairs: 4)
        let rig = try VirtioRig(card)
        rig.start(features: version1 | mergeable | Self.control | Self.several)
        #expect(rig.queues.count == 9 && rig.read(0x2008, 2) == 4)
        func arrivesAt(_ queue: Int) -> [Int] {
            for pair in 0..<4 {
                rig.queues[2 * pair].add([(0x22_0000 + UInt64(pair) * 4096, 2048, true)])
                rig.kick(2 * pair)
            }
            card.receive(header + [UInt8](repeating: 3, count: 60), queue: queue)
            return (0..<4).filter { rig.queues[2 * $0].take() != nil }
        }
        #expect(arrivesAt(2) == [0])
        for refused in [[4, 0, 0, 0], [4, 0, 5, 0], [4, 0, 255, 255]] as [[UInt8]] {
            #expect(command(rig, 8, refused) == 1)
        }
        #expect(command(rig, 8, [4, 0, 4, 0]) == 0)
        rig.put(header + [UInt8](repeating: 7, count: 60), at: 0x20_0000)
        for pair in [3, 1] {
            rig.queues[2 * pair + 1].add([(0x20_0000, 72, false)])
            rig.kick(2 * pair + 1)
        }
        #expect(backend.queues == [3, 1])
        #expect(arrivesAt(2) == [2])
    }

    @Test func `without several pairs agreed to, commands come by queue 2`() throws {
        let card = VirtioNet(macAddress: [2, 0, 0, 0, 0, 1], door: door, backend: backend, pairs: 2)
        let rig = try VirtioRig(card)
        rig.start(features: version1 | mergeable | Self.control)
        #expect(command(rig, 2, [0, 0, 1]) == 0)
        #expect(command(rig, 2, [4, 0, 2, 0]) == 1)
        #expect(command(rig, 4, [0, 0, 1]) == nil)
    }

    @Test func `saved settings that can't be are refused`() throws {
        let several = VirtioNet(macAddress: [2, 0, 0, 0, 0, 1], door: door, backend: backend, pairs: 4)
        let rig = try VirtioRig(several)
        rig.start(features: version1 | Self.control | Self.several)
        #expect(command(rig, 8, [4, 0, 4, 0]) == 0)
        #expect(throws: StateError.self) { try card().restoreDeviceState(several.saveDeviceState()) }
    }
}
