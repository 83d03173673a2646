// Virtqueues and the transport's interrupts where drivers do what few do.
import DeviceModel
import Devices
import Dispatch
import MachineTesting
import Synchronization
import Testing

private let version1: UInt64 = 1 << 32
private let indirect: UInt64 = 1 << 28

@Suite struct VirtioQueueTests {
    private func rig(_ features: UInt64, useMSIX: Bool = true) throws -> VirtioRig {
        let rig = try VirtioRig(VirtioEntropy(door: ManualDoor()))
        rig.start(features: features, useMSIX: useMSIX)
        return rig
    }

    /// - Spec: virtio 1.2, 2.7.5.3.2
    @Test(arguments: [4, 6] as [UInt16])
    func `where a table is, it doesn't matter whether the device is said to write`(flags: UInt16) throws {
        let rig = try rig(version1 | indirect)
        DriverQueue(memory: rig.memory, size: 16, base: 0x60_0000).descriptor(0, 0x20_0000, 64, 2, 0)
        rig.queues[0].descriptor(0, 0x60_0000, 16, flags, 0)
        rig.queues[0].publish(0)
        rig.kick(0)
        #expect(rig.queues[0].take()?.length == 64 && rig.status == 0xF)
    }

    /// - Spec: virtio 1.2, 2.7.5.3.1
    @Test(arguments: [5, 7] as [UInt16])
    func `nothing follows a table`(flags: UInt16) throws {
        let rig = try rig(version1 | indirect)
        DriverQueue(memory: rig.memory, size: 16, base: 0x60_0000).descriptor(0, 0x20_0000, 64, 2, 0)
        rig.queues[0].descriptor(0, 0x60_0000, 16, flags, 1)
        rig.queues[0].descriptor(1, 0x20_0000, 64, 2, 0)
        rig.queues[0].publish(0)
        rig.kick(0)
        #expect(rig.status & 64 != 0)
    }

    @Test func `each interrupt raises the wire once, and its reading lowers it, though both happen at a time`() throws {
        let rig = try rig(version1, useMSIX: false)
        let (transport, mmio, status) = (rig.transport, rig.mmio, rig.bar + 0x1000)
        let reads = Mutex(0)
        let read: @Sendable () -> Void = {
            if mmio.read(status, size: 1) != 0 { reads.withLock { $0 += 1 } }
        }
        DispatchQueue.concurrentPerform(iterations: 2) { number in
            for _ in 0..<200_000 { if number == 0 { transport.interrupt(queue: 0) } else { read() } }
        }
        read()
        #expect(rig.lines[3].edges == reads.withLock { $0 } && !rig.lines[3].level)
    }
}
