// The memory balloon: what the guest gives back is gone from the host, and reads as zero.
import DeviceModel
import Devices
import Foundation
import GuestMemory
import MachineTesting
import Testing

@Suite struct BalloonTests {
    private static let features: UInt64 = 1 << 1 | 1 << 2 | 1 << 5
    private let door = ManualDoor()

    private func makeRig(_ balloon: VirtioBalloon) throws -> VirtioRig {
        let rig = try VirtioRig(balloon, door: door)
        rig.start(features: Self.features | VirtioFeature.version1)
        // Pages with something in them.
        for page in 0..<16 as Range<UInt64> {
            try rig.memory.write(
                [UInt8](repeating: 0xAB, count: 4096), at: GuestPhysicalAddress(0x80_0000 + page << 12))
        }
        return rig
    }

    private func send(_ rig: VirtioRig, _ queue: Int, _ buffers: [(address: UInt64, length: UInt32, writable: Bool)]) {
        rig.queues[queue].add(buffers)
        rig.kick(queue)
        #expect(rig.queues[queue].take() != nil)
    }

    private func byte(_ rig: VirtioRig, _ address: UInt64) -> UInt8 { rig.memory.base[Int(address)] }

    @Test func `Pages put into the balloon read as zero, their neighbors are untouched`() throws {
        let balloon = VirtioBalloon(wanted: 8 << 12, door: door)
        let rig = try makeRig(balloon)
        #expect(balloon.configuration.prefix(4) == [8, 0, 0, 0])
        var numbers: [UInt8] = []
        for page in [0x801, 0x803] as [UInt32] {
            for n in 0..<4 { numbers.append(UInt8(truncatingIfNeeded: page >> (n * 8))) }
        }
        try rig.memory.write(numbers, at: GuestPhysicalAddress(0x20_0000))
        send(rig, 0, [(0x20_0000, 8, false)])
        #expect(byte(rig, 0x80_0FFF) == 0xAB && byte(rig, 0x80_1000) == 0 && byte(rig, 0x80_1FFF) == 0)
        #expect(byte(rig, 0x80_2000) == 0xAB && byte(rig, 0x80_3000) == 0 && byte(rig, 0x80_4000) == 0xAB)
        #expect(balloon.readStatistics().inflated == 8192)
        send(rig, 1, [(0x20_0000, 8, false)])
        #expect(balloon.readStatistics().inflated == 0)
        #expect(balloon.readStatistics().returned == 8192)
    }

    @Test func `Reported ranges are given back, only whole pages of RAM`() throws {
        let balloon = VirtioBalloon(door: door)
        let rig = try makeRig(balloon)
        send(rig, 3, [(0x80_0000, 0x2000, true), (0x80_4800, 0x1000, true)])
        #expect(byte(rig, 0x80_0000) == 0 && byte(rig, 0x80_1FFF) == 0 && byte(rig, 0x80_2000) == 0xAB)
        #expect(byte(rig, 0x80_4800) == 0xAB && byte(rig, 0x80_5000) == 0xAB)
        #expect(balloon.readStatistics().returned == 0x2000)
    }

    @Test func `Reports of more than there is are cut short`() throws {
        let balloon = VirtioBalloon(door: door)
        let rig = try makeRig(balloon)
        let half: (address: UInt64, length: UInt32, writable: Bool) = (0x80_0000, 0x80_0000, true)
        send(rig, 3, [half, half, half, half])
        #expect(balloon.readStatistics().returned == 0x100_0000)
        // Each time anew.
        send(rig, 3, [half])
        #expect(balloon.readStatistics().returned == 0x180_0000)
    }

    @Test func `Many buffers are not looked at in one go, but all of them are`() throws {
        let balloon = VirtioBalloon(door: door)
        let rig = try VirtioRig(balloon, door: door)
        rig.start(features: Self.features | VirtioFeature.version1, queueSize: 64)
        try rig.memory.write([1, 8, 0, 0], at: GuestPhysicalAddress(0x20_0000))
        for _ in 0..<40 { rig.queues[0].add([(0x20_0000, 4, false)]) }
        rig.kick(0)
        #expect(balloon.readStatistics().inflated == 32 << 12)
        let state = try JSONEncoder().encode(rig.transport.saveState())
        door.advance(by: 1)
        #expect(balloon.readStatistics().inflated == 40 << 12)
        // A copy that was saved before goes on with the rest too.
        rig.queues[0].store(UInt16(32), 0x8002)
        let copy = VirtioBalloon(door: door)
        let other = try VirtioRig(copy, memory: rig.memory, door: door)
        try other.transport.restoreState(try JSONDecoder().decode(VirtioPCI.State.self, from: state))
        #expect(copy.readStatistics().inflated == 32 << 12)
        door.advance(by: 1)
        #expect(copy.readStatistics().inflated == 40 << 12 && other.transport.isRunning)
    }

    /// The free and all memory, a tag that isn't known, and something cut off.
    private func putStatistics(_ rig: VirtioRig) {
        var bytes: [UInt8] = []
        for (tag, value) in [(4, 0x1234), (5, 0x10_0000), (999, 7)] as [(UInt16, UInt64)] {
            bytes += [UInt8(truncatingIfNeeded: tag), UInt8(tag >> 8)]
            for n in 0..<8 { bytes.append(UInt8(truncatingIfNeeded: value >> (n * 8))) }
        }
        bytes += [1, 2, 3]
        rig.put(bytes, at: 0x20_0000)
        rig.queues[2].add([(0x20_0000, UInt32(bytes.count), false)])
        rig.kick(2)
    }

    @Test func `Statistics are kept by name, and nonsense is not`() throws {
        let balloon = VirtioBalloon(door: door)
        let rig = try makeRig(balloon)
        putStatistics(rig)
        #expect(rig.queues[2].take() == nil, "kept until more are wanted")
        #expect(balloon.readStatistics().values == ["free": 0x1234, "total": 0x10_0000])
        door.advance(by: 1)
        #expect(rig.queues[2].take() != nil)
    }

    @Test func `Statistics that a driver offers before it is ready are taken then`() throws {
        let balloon = VirtioBalloon(door: door)
        let rig = try VirtioRig(balloon, door: door)
        rig.start(features: Self.features | VirtioFeature.version1) { putStatistics($0) }
        #expect(balloon.readStatistics().values["free"] == 0x1234)
    }

    @Test func `The guest hears of another size when its machine goes on`() throws {
        let balloon = VirtioBalloon(door: door)
        let rig = try makeRig(balloon)
        putStatistics(rig)
        door.close()
        balloon.setWanted(16 << 12)
        _ = balloon.readStatistics()
        door.advance(by: 1)
        #expect(rig.messages.messages.isEmpty && rig.queues[2].take() == nil)
        door.open()
        door.advance(by: 1)
        #expect(rig.messages.messages.map(\.data) == [0x40, 0x43] && rig.queues[2].take() != nil)
        #expect(rig.read(0x2000, 4) == 16)
    }

    @Test func `A saved balloon holds what it held, and the buffer that the guest waits for`() throws {
        let balloon = VirtioBalloon(door: door)
        let rig = try makeRig(balloon)
        try rig.memory.write([1, 8, 0, 0], at: GuestPhysicalAddress(0x21_0000))
        send(rig, 0, [(0x21_0000, 4, false)])
        rig.write(0x2004, 4, 1)
        balloon.setWanted(3 << 12)
        putStatistics(rig)
        let state = try JSONEncoder().encode(rig.transport.saveState())

        let copy = VirtioBalloon(wanted: 9 << 12, door: door)
        let other = try VirtioRig(copy, memory: rig.memory, door: door)
        try other.transport.restoreState(try JSONDecoder().decode(VirtioPCI.State.self, from: state))
        other.bridge.remap()
        #expect(other.read(0x2000, 8) == 1 << 32 | 3)
        #expect(copy.readStatistics().inflated == 4096)
        door.advance(by: 1)
        #expect(rig.queues[2].take() != nil)
        // The size that is wanted may not have been told yet.
        #expect(other.messages.messages.map(\.data) == [0x40, 0x43])
    }

    @Test func `A state of before balloons had one is taken`() throws {
        let balloon = VirtioBalloon(wanted: 9 << 12, door: door)
        let state = try JSONDecoder().decode(
            VirtioDeviceState.self, from: Data(#"{"version":1,"inFlight":[],"input":[],"frames":[]}"#.utf8))
        try balloon.restoreDeviceState(state)
        #expect(balloon.configuration.prefix(4) == [9, 0, 0, 0])
    }
}
