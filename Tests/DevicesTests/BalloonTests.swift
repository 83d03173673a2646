// The memory balloon: what the guest gives back is gone from the host, and reads as zero.
import DeviceModel
import Devices
import GuestMemory
import Testing

@Suite struct BalloonTests {
    private static let features: UInt64 = 1 << 1 | 1 << 2 | 1 << 5

    private func makeRig(_ balloon: VirtioBalloon) throws -> VirtioRig {
        let rig = try VirtioRig(balloon)
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
        let balloon = VirtioBalloon(wanted: 8 << 12)
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
        let balloon = VirtioBalloon()
        let rig = try makeRig(balloon)
        send(rig, 3, [(0x80_0000, 0x2000, true), (0x80_4800, 0x1000, true)])
        #expect(byte(rig, 0x80_0000) == 0 && byte(rig, 0x80_1FFF) == 0 && byte(rig, 0x80_2000) == 0xAB)
        #expect(byte(rig, 0x80_4800) == 0xAB && byte(rig, 0x80_5000) == 0xAB)
        #expect(balloon.readStatistics().returned == 0x2000)
    }

    @Test func `Statistics are kept by name, and nonsense is not`() throws {
        let balloon = VirtioBalloon()
        let rig = try makeRig(balloon)
        var bytes: [UInt8] = []
        for (tag, value) in [(4, 0x1234), (5, 0x10_0000), (999, 7)] as [(UInt16, UInt64)] {
            bytes += [UInt8(truncatingIfNeeded: tag), UInt8(tag >> 8)]
            for n in 0..<8 { bytes.append(UInt8(truncatingIfNeeded: value >> (n * 8))) }
        }
        bytes += [1, 2, 3]
        try rig.memory.write(bytes, at: GuestPhysicalAddress(0x20_0000))
        rig.queues[2].add([(0x20_0000, UInt32(bytes.count), false)])
        rig.kick(2)
        #expect(rig.queues[2].take() == nil, "kept until more are wanted")
        #expect(balloon.readStatistics().values == ["free": 0x1234, "total": 0x10_0000])
        #expect(rig.queues[2].take() != nil)
    }
}
