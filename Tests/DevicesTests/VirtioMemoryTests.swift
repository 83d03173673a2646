// Memory that comes and goes, by its requests.
import DeviceModel
import Devices
import GuestMemory
import Testing

@Suite struct VirtioMemoryTests {
    private static let block = VirtioMemory.blockSize
    private static let start: UInt64 = 0x80_0000

    /// Four blocks of a machine's 16 MiB.
    private func makeRig() throws -> (VirtioMemory, VirtioRig) {
        let device = VirtioMemory(region: Self.start..<Self.start + 4 * Self.block)
        let rig = try VirtioRig(device)
        rig.start(features: VirtioFeature.version1)
        return (device, rig)
    }

    /// Sends a request; what was answered, and the state.
    private func ask(_ rig: VirtioRig, _ type: UInt16, _ address: UInt64 = 0, _ blocks: UInt16 = 0) -> [UInt64] {
        func bytes<T: FixedWidthInteger>(_ value: T) -> [UInt8] {
            (0..<T.bitWidth / 8).map { UInt8(truncatingIfNeeded: value >> T($0 * 8)) }
        }
        let padding = [UInt8](repeating: 0, count: 6)
        rig.put(bytes(type) + padding + bytes(address) + bytes(blocks) + padding, at: 0x20_0000)
        rig.put([UInt8](repeating: 0xFF, count: 16), at: 0x21_0000)
        rig.queues[0].add([(0x20_0000, 24, false), (0x21_0000, 10, true)])
        rig.kick(0)
        #expect(rig.queues[0].take() != nil)
        let answer = rig.bytes(0x21_0000, 16)
        #expect(answer[2..<8] == [0, 0, 0, 0, 0, 0] && answer[10] == 0xFF)
        return [UInt64(answer[0]) | UInt64(answer[1]) << 8, UInt64(answer[8]) | UInt64(answer[9]) << 8]
    }

    private let ack: [UInt64] = [0, 0]
    private let nack: [UInt64] = [1, 0]
    private let error: [UInt64] = [3, 0]

    @Test func `what is wanted can be plugged, and no more; each block once`() throws {
        let (device, rig) = try makeRig()
        let start = Self.start
        #expect(ask(rig, 0, start, 1) == nack)
        device.request(3 * Self.block + 4096)
        #expect(rig.read(0x2000 + 0x30, 8) == 3 * Self.block)
        #expect(ask(rig, 0, start, 4) == nack)
        #expect(ask(rig, 0, start + Self.block, 2) == ack)
        #expect(rig.read(0x2000 + 0x28, 8) == 2 * Self.block && device.pluggedSize == 2 * Self.block)
        #expect(ask(rig, 0, start + 2 * Self.block, 1) == error)
        #expect(ask(rig, 3, start + Self.block, 2) == [0, 0])
        #expect(ask(rig, 3, start, 1) == [0, 1])
        #expect(ask(rig, 3, start, 4) == [0, 2])
    }

    @Test func `what is unplugged is gone from the host, and only that`() throws {
        let (device, rig) = try makeRig()
        let start = Self.start
        device.request(4 * Self.block)
        #expect(ask(rig, 0, start, 4) == ack)
        for block in 0..<4 as Range<UInt64> { rig.put([0xAB], at: start + block * Self.block) }
        #expect(ask(rig, 1, start + Self.block, 2) == ack)
        let kept = (0..<4 as Range<UInt64>).map { rig.bytes(start + $0 * Self.block, 1) }
        #expect(kept == [[0xAB], [0], [0], [0xAB]])
        #expect(ask(rig, 1, start, 2) == error)
        #expect(ask(rig, 2) == ack)
        #expect(device.pluggedSize == 0 && rig.bytes(start, 1) == [0])
    }

    @Test func `requests that lie outside, or mean nothing, are errors`() throws {
        let (device, rig) = try makeRig()
        device.request(.max)
        let start = Self.start
        let places: [(UInt64, UInt16)] = [
            (start, 0), (start, 5), (start + 1, 1), (start - Self.block, 1), (start + 4 * Self.block, 1), (0, .max),
            (.max &- Self.block &+ 1, 2), (start + 3 * Self.block, .max),
        ]
        for (address, blocks) in places {
            for type in [0, 1, 3] as [UInt16] { #expect(ask(rig, type, address, blocks) == error) }
        }
        #expect(ask(rig, 4, start, 1) == error)
        #expect(device.pluggedSize == 0)
    }

    @Test func `a saved device has its blocks again; one of another machine is refused`() throws {
        let (device, rig) = try makeRig()
        device.request(3 * Self.block)
        #expect(ask(rig, 0, Self.start + Self.block, 2) == ack)
        let (copy, other) = try makeRig()
        try copy.restoreDeviceState(device.saveDeviceState())
        #expect(copy.pluggedSize == 2 * Self.block)
        #expect(ask(other, 3, Self.start + Self.block, 2) == [0, 0] && ask(other, 3, Self.start, 1) == [0, 1])
        let smaller = VirtioMemory(region: Self.start..<Self.start + 2 * Self.block)
        #expect(throws: StateError.self) { try smaller.restoreDeviceState(device.saveDeviceState()) }
        #expect(throws: StateError.self) { try smaller.restoreDeviceState(VirtioDeviceState()) }
    }
}
