// The virtio disk when its machine is paused or its driver begins anew.
import Devices
import Foundation
import GuestMemory
import MachineTesting
import Synchronization
import Testing

private let version1: UInt64 = 1 << 32

/// A disk whose discards take as long as the test wants.
private final class SlowDiscards: BlockBackend {
    let begun = DispatchSemaphore(value: 0)
    let proceed = DispatchSemaphore(value: 0)
    let discards = Mutex(0)
    var byteCount: UInt64 { 4096 }
    var isReadOnly: Bool { false }
    var writesThrough: Bool { false }
    func read(at offset: UInt64, into buffer: TransferBuffer) throws {}
    func write(_ buffer: TransferBuffer, at offset: UInt64) throws {}
    func flush() throws {}
    func discard(at offset: UInt64, length: UInt64) throws {
        begun.signal()
        proceed.wait()
        discards.withLock { $0 += 1 }
    }
    func writeZeroes(at offset: UInt64, length: UInt64, mayUnmap: Bool) throws {}
}

/// A server that takes requests and carries them out when it is told.
final class HeldServer: BlockServer {
    private let held = Mutex<[(BlockSource, [BlockJob])]>([])
    private let holds = Mutex<(one: Bool, any: Bool)>((false, false))
    /// Only the first source is held.
    var holdsOne: Bool {
        get { holds.withLock { $0.one } }
        set { holds.withLock { $0.one = newValue } }
    }
    func wake(_ source: BlockSource) {
        let jobs = source.take(64)
        guard !jobs.isEmpty else {
            _ = source.rests()
            return
        }
        let isHeld = holds.withLock { holds in
            defer { holds.any = true }
            return !(holds.one && holds.any)
        }
        if isHeld {
            held.withLock { $0.append((source, jobs)) }
        } else {
            source.finish(jobs.map { source.perform($0) })
        }
        _ = source.rests()
    }
    func run(_ job: @escaping @Sendable () -> Void) { job() }
    func runAll() {
        let all = held.withLock { held in
            defer { held = [] }
            return held
        }
        for (source, jobs) in all { source.finish(jobs.map { source.perform($0) }) }
    }
}

@Suite struct VirtioBlockTests {
    /// Sectors 1 and 2.
    private static let range: [UInt8] = [1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0]

    /// Puts a request with what the device reads into the first queue.
    private func add(_ rig: VirtioRig, _ type: UInt8, _ data: [UInt8], at base: UInt64) {
        rig.put([type] + [UInt8](repeating: 0, count: 15), at: base)
        rig.put(data, at: base + 0x100)
        rig.queues[0].add([(base, 16, false), (base + 0x100, UInt32(data.count), false), (base + 0x200, 1, true)])
    }

    /// The same with a sector that the device fills.
    private func addRead(_ rig: VirtioRig) {
        rig.put([UInt8](repeating: 0, count: 16), at: 0x30_0000)
        rig.queues[0].add([(0x30_0000, 16, false), (0x50_0000, 512, true), (0x30_0200, 1, true)])
    }

    private func device(_ door: ManualDoor) -> VirtioBlock {
        VirtioBlock(backend: MemoryDisk(sectors: 8), door: door, server: WorkerServer(InlineWorker()))
    }

    @Test func `discards and zeroes of before a reset aren't done after it`() throws {
        let (disk, held) = (MemoryDisk(sectors: 8), HeldServer())
        disk.contents = disk.contents.map { _ in 9 }
        let rig = try VirtioRig(VirtioBlock(backend: disk, door: ManualDoor(), server: held))
        rig.start(features: version1)
        add(rig, 11, Self.range, at: 0x30_0000)
        add(rig, 13, Self.range, at: 0x31_0000)
        rig.kick(0)
        rig.start(features: version1)
        held.runAll()
        #expect(disk.discarded.isEmpty)
        #expect(disk.contents.allSatisfy { $0 == 9 })
    }

    @Test func `a reset waits for a range that is being discarded, and cuts off those behind it`() throws {
        let (disk, held) = (SlowDiscards(), HeldServer())
        let rig = try VirtioRig(VirtioBlock(backend: disk, door: ManualDoor(), server: held))
        rig.start(features: version1)
        add(rig, 11, Self.range + Self.range, at: 0x30_0000)
        rig.kick(0)
        let (served, reset) = (DispatchSemaphore(value: 0), DispatchSemaphore(value: 0))
        Thread.detachNewThread {
            held.runAll()
            served.signal()
        }
        disk.begun.wait()
        Thread.detachNewThread { [transport = rig.transport] in
            transport.resetDevice()
            reset.signal()
        }
        #expect(reset.wait(timeout: .now() + .milliseconds(50)) == .timedOut)
        disk.proceed.signal()
        reset.wait()
        // The second range, if it is begun, goes through.
        disk.proceed.signal()
        served.wait()
        #expect(disk.discards.withLock { $0 } == 1)
    }

    @Test func `a queue stays as it is while the machine is paused, and is looked at when it goes on`() throws {
        let door = ManualDoor()
        let rig = try VirtioRig(device(door))
        rig.start(features: version1)
        door.close()
        addRead(rig)
        rig.kick(0)
        let state = rig.transport.saveState()
        #expect(state.queues[0].nextAvailable == 0)
        #expect(state.device.inFlight.isEmpty)
        #expect(rig.queues[0].take() == nil)
        door.open()
        door.advance(by: 1)
        #expect(rig.queues[0].take()?.length == 513)
    }

    @Test func `requests under way are done again when a restored machine goes on, and not before`() throws {
        let memory = try GuestMemory(size: 16 << 20)
        let rig = try VirtioRig(
            VirtioBlock(backend: MemoryDisk(sectors: 8), door: ManualDoor(), server: HeldServer()), memory: memory)
        rig.start(features: version1)
        addRead(rig)
        rig.kick(0)
        let state = rig.transport.saveState()
        #expect(state.device.inFlight == [HeldChain(queue: 0, head: 0)])
        let door = ManualDoor()
        let copy = try VirtioRig(device(door), memory: memory)
        door.close()
        try copy.transport.restoreState(state)
        #expect(rig.queues[0].take() == nil)
        door.open()
        door.advance(by: 1)
        #expect(rig.queues[0].take()?.length == 513)
    }
}
