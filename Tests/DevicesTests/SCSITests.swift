// The virtio SCSI host, its disks and drives, driven from the specifications.
import DeviceModel
import Devices
import Foundation
import GuestMemory
import MachineTesting
import Synchronization
import Testing

private let version1: UInt64 = 1 << 32

/// How a command ended.
private struct Reply: Equatable {
    var response: UInt8
    var status: UInt8
    var sense: [UInt8]
    var residual: UInt64
    var data: [UInt8]
    /// Key, code and qualifier.
    var reason: [UInt8] { sense.count == 18 ? [sense[2], sense[12], sense[13]] : [] }
    var isGood: Bool { response == 0 && status == 0 }
}

/// A controller with a disk of 1000 blocks at target 0, a drive at target 3, and a driver.
private final class SCSIRig {
    let disk = MemoryDisk(sectors: 1000)
    let medium = MemoryDisk(sectors: 400)
    let controller: VirtioSCSI
    let drive: SCSIUnit
    let rig: VirtioRig
    private var tag: UInt64 = 0

    init(_ worker: any Worker = InlineWorker(), clearsAttention: Bool = true) throws {
        medium.isReadOnly = true
        controller = VirtioSCSI(door: ManualDoor()) { worker }
        let counter = Collector()
        drive = SCSIUnit(.cdrom, medium: medium, identifier: "cdrom0") { counter.add([1]) }
        ejected = counter
        _ = controller.plug(SCSIUnit(.disk, medium: disk, identifier: "disk7"), target: 0)
        _ = controller.plug(drive, target: 3)
        rig = try VirtioRig(controller)
        rig.start(features: version1 | 1 << 1 | 1 << 2)
        guard clearsAttention else { return }
        for target in [0, 3] as [UInt8] { _ = command([0, 0, 0, 0, 0, 0], target: target) }
    }

    let ejected: Collector

    /// Puts a command in the queue.
    func start(
        _ block: [UInt8], target: UInt8 = 0, unit: UInt8 = 0, out: [UInt8] = [], room: Int = 0,
        at base: UInt64 = 0x30_0000
    ) {
        tag += 1
        let header = [1, target, 0x40, unit, 0, 0, 0, 0] + (0..<8).map { UInt8(truncatingIfNeeded: tag >> ($0 * 8)) }
        rig.put(header + [0, 0, 0] + block + [UInt8](repeating: 0, count: 32 - block.count), at: base)
        rig.put(out, at: 0x40_0000)
        rig.put([UInt8](repeating: 0xEE, count: 108), at: base + 0x100)
        var buffers: [(address: UInt64, length: UInt32, writable: Bool)] = [(base, 51, false)]
        if !out.isEmpty { buffers.append((0x40_0000, UInt32(out.count), false)) }
        buffers.append((base + 0x100, 108, true))
        if room > 0 { buffers.append((0x50_0000, UInt32(room), true)) }
        rig.queues[2].add(buffers)
        rig.kick(2)
    }

    func reply(at base: UInt64 = 0x30_0000) -> Reply {
        guard let used = rig.queues[2].take() else {
            return Reply(response: 0xFF, status: 0xFF, sense: [], residual: 0, data: [])
        }
        let bytes = rig.bytes(base + 0x100, 108)
        func word(_ at: Int) -> UInt64 { (0..<4).reduce(0) { $0 | UInt64(bytes[at + $1]) << UInt64($1 * 8) } }
        return Reply(
            response: bytes[11], status: bytes[10], sense: Array(bytes[12..<12 + Int(min(word(0), 96))]),
            residual: word(4),
            data: used.length > 108 ? rig.bytes(0x50_0000, Int(used.length) - 108) : [])
    }

    func command(
        _ block: [UInt8], target: UInt8 = 0, unit: UInt8 = 0, out: [UInt8] = [], room: Int = 0
    ) -> Reply {
        start(block, target: target, unit: unit, out: out, room: room)
        return reply()
    }

    /// A task management function; its response.
    func manage(_ subtype: UInt8, target: UInt8 = 0, tag: UInt64 = 0) -> UInt8? {
        let words = [0, 0, 0, 0, subtype, 0, 0, 0, 1, target, 0x40, 0, 0, 0, 0, 0]
        rig.put(words + (0..<8).map { UInt8(truncatingIfNeeded: tag >> ($0 * 8)) }, at: 0x60_0000)
        rig.put([0xEE], at: 0x60_0100)
        rig.queues[0].add([(0x60_0000, 24, false), (0x60_0100, 1, true)])
        rig.kick(0)
        return rig.queues[0].take() == nil ? nil : rig.bytes(0x60_0100, 1)[0]
    }

    /// A buffer for events; what came in the one before.
    func event() -> [UInt8]? {
        let came = rig.queues[1].take() == nil ? nil : rig.bytes(0x70_0000, 16)
        rig.queues[1].add([(0x70_0000, 16, true)])
        rig.kick(1)
        return came
    }
}

/// A disk that keeps whoever asks whether it can be written waiting: a write, before it takes the guest's bytes.
private final class HesitantDisk: BlockBackend {
    let begun = DispatchSemaphore(value: 0)
    let proceed = DispatchSemaphore(value: 0)
    let writes = Mutex(0)
    var byteCount: UInt64 { 4096 }
    var isReadOnly: Bool {
        begun.signal()
        proceed.wait()
        return false
    }
    var writesThrough: Bool { false }
    func read(at offset: UInt64, into buffer: TransferBuffer) throws {}
    func write(_ buffer: TransferBuffer, at offset: UInt64) throws { writes.withLock { $0 += 1 } }
    func flush() throws {}
    func discard(at offset: UInt64, length: UInt64) throws {}
    func writeZeroes(at offset: UInt64, length: UInt64, mayUnmap: Bool) throws {}
}

@Suite struct SCSIControllerTests {
    private static let features: UInt64 = version1 | 1 << 1 | 1 << 2
    private static let ready: [UInt8] = [0, 0, 0, 0, 0, 0]
    private static let writeFirstBlock: [UInt8] = [0x2A, 0, 0, 0, 0, 0, 0, 0, 1, 0]

    @Test func `what waits when the device is reset isn't done, whatever its memory holds then`() throws {
        let held = HeldWorker()
        let rig = try SCSIRig(held, clearsAttention: false)
        rig.start(Self.ready)
        held.runAll()
        #expect(rig.reply().reason == [6, 0x29, 0])
        // The first of them would hear of the reset instead.
        for base in [0x30_0000, 0x31_0000] as [UInt64] {
            rig.start(Self.writeFirstBlock, out: [UInt8](repeating: 9, count: 512), at: base)
        }
        rig.rig.start(features: Self.features)
        rig.rig.put([UInt8](repeating: 7, count: 512), at: 0x40_0000)
        held.runAll()
        #expect(rig.disk.contents.allSatisfy { $0 == 0 })
        rig.start(Self.ready)
        held.runAll()
        #expect(rig.reply().reason == [6, 0x29, 0])
    }

    @Test func `a command under way when the device is reset takes nothing more from the guest's memory`() throws {
        let held = HeldWorker()
        let rig = try SCSIRig(held, clearsAttention: false)
        let disk = HesitantDisk()
        _ = rig.controller.plug(SCSIUnit(.disk, medium: disk, identifier: "slow"), target: 5)
        rig.start(Self.ready, target: 5)
        held.runAll()
        #expect(rig.reply().reason == [6, 0x29, 0])
        rig.start(Self.writeFirstBlock, target: 5, out: [UInt8](repeating: 9, count: 512))
        let done = DispatchSemaphore(value: 0)
        Thread.detachNewThread {
            held.runAll()
            done.signal()
        }
        disk.begun.wait()
        // Nobody knows how long it will be at its medium: the reset doesn't wait.
        rig.rig.start(features: Self.features)
        disk.proceed.signal()
        done.wait()
        #expect(disk.writes.withLock { $0 } == 0)
        rig.start(Self.ready, target: 5)
        held.runAll()
        #expect(rig.reply().reason == [6, 0x29, 0])
    }

    @Test func `targets without a unit, other units and REPORT LUNS answer as they must`() throws {
        let rig = try SCSIRig()
        #expect(rig.command([0, 0, 0, 0, 0, 0], target: 1).response == 3)
        #expect(rig.command([0x12, 0, 0, 0, 36, 0], unit: 1, room: 36).data.first == 0x7F)
        #expect(rig.command([0, 0, 0, 0, 0, 0], unit: 1).reason == [5, 0x25, 0])
        let units = rig.command([0xA0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0], room: 256)
        #expect(units.data == [0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])
        #expect(units.residual == 240)
        #expect(rig.rig.read(0x2000, 4) == 1)
        #expect(rig.rig.read(0x201E, 2) == 31)
    }

    @Test func `after power-on the first command hears of it, once`() throws {
        let rig = try SCSIRig(clearsAttention: false)
        #expect(rig.command([0x12, 0, 0, 0, 36, 0], room: 36).isGood)
        #expect(rig.command([0, 0, 0, 0, 0, 0]).reason == [6, 0x29, 0])
        #expect(rig.command([0, 0, 0, 0, 0, 0]).isGood)
        #expect(rig.command([0, 0, 0, 0, 0, 0], target: 3).reason == [6, 0x29, 0])
    }

    @Test func `a reset aborts what waits, and is told afterwards`() throws {
        let held = HeldWorker()
        let rig = try SCSIRig(held, clearsAttention: false)
        rig.start([0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0], room: 512)
        #expect(rig.manage(6, tag: 1) == nil)
        #expect(rig.manage(5) == nil)
        held.runAll()
        #expect(rig.rig.queues[0].take() != nil && rig.rig.queues[0].take() != nil)
        #expect(rig.reply().response == 4)
        rig.start([0, 0, 0, 0, 0, 0])
        held.runAll()
        #expect(rig.reply().reason == [6, 0x29, 3])
    }

    @Test func `one task is aborted and the others aren't`() throws {
        let held = HeldWorker()
        let rig = try SCSIRig(held, clearsAttention: false)
        rig.start([0x12, 0, 0, 0, 36, 0], room: 36)
        rig.start([0x12, 0, 0, 0, 36, 0], room: 36, at: 0x31_0000)
        #expect(rig.manage(0, tag: 1) == nil)
        held.runAll()
        #expect(rig.rig.queues[0].take() != nil && rig.rig.bytes(0x60_0100, 1) == [0])
        #expect(rig.reply().response == 2)
        #expect(rig.reply(at: 0x31_0000).isGood)
    }

    @Test func `queries tell whether a task is there; unknown functions are rejected`() throws {
        let rig = try SCSIRig()
        #expect(rig.manage(6, tag: 99) == 0)
        #expect(rig.manage(7) == 0)
        #expect(rig.manage(77) == 11)
        #expect(rig.manage(5, target: 9) == 3)
    }

    @Test func `units that come and go are told, at once or when there is a buffer`() throws {
        let rig = try SCSIRig()
        _ = rig.event()
        let unit = SCSIUnit(.disk, medium: MemoryDisk(sectors: 8), identifier: "x")
        #expect(rig.controller.plug(unit, target: 5))
        #expect(!rig.controller.plug(unit, target: 5))
        #expect(!rig.controller.plug(unit, target: 32))
        let gone = Collector()
        #expect(rig.controller.unplug(target: 5) { gone.add([1]) })
        #expect(!rig.controller.unplug(target: 5) {})
        #expect(gone.all.count == 1)
        #expect(rig.event() == [1, 0, 0, 0, 1, 5, 0x40, 0, 0, 0, 0, 0, 1, 0, 0, 0])
        #expect(rig.event() == [1, 0, 0, 0, 1, 5, 0x40, 0, 0, 0, 0, 0, 2, 0, 0, 0])
        #expect(rig.command([0, 0, 0, 0, 0, 0], target: 5).response == 3)
    }

    @Test func `events that nobody takes are counted as missed, not kept for ever`() throws {
        let rig = try SCSIRig()
        for _ in 0..<200 { rig.controller.mediumChanged(target: 3) }
        _ = rig.event()
        #expect(rig.event()?.prefix(4) == [3, 0, 0, 0x80])
        #expect(rig.event()?.prefix(4) == [3, 0, 0, 0])
    }

    @Test func `state survives a save: units, sizes, and commands under way`() throws {
        let held = HeldWorker()
        let rig = try SCSIRig(held, clearsAttention: false)
        _ = rig.drive.remove(forced: false)
        rig.start([0x03, 0, 0, 0, 18, 0], target: 3, room: 18)
        let state = rig.rig.transport.saveState()
        let copy = try SCSIRig()
        let other = try VirtioRig(VirtioSCSI(door: ManualDoor()) { InlineWorker() })
        #expect(other.transport.device is VirtioSCSI)
        let controller = VirtioSCSI(door: ManualDoor()) { InlineWorker() }
        let drive = SCSIUnit(.cdrom, medium: nil, identifier: "cdrom0")
        _ = controller.plug(drive, target: 3)
        let restored = try VirtioRig(controller, memory: rig.rig.memory)
        try restored.transport.restoreState(state)
        #expect(drive.isTrayOpen)
        #expect(rig.reply().data.prefix(3) == [0x70, 0, 6])
        withExtendedLifetime(copy) {}
    }
}

@Suite struct SCSIDiskTests {
    @Test func `INQUIRY and the pages of vital product data`() throws {
        let rig = try SCSIRig()
        let standard = rig.command([0x12, 0, 0, 0, 96, 0], room: 96).data
        #expect(standard.count == 36 && standard[0] == 0 && standard[4] == 31)
        #expect(String(decoding: standard[8..<32], as: UTF8.self) == "Roost   Disk            ")
        #expect(rig.command([0x12, 1, 0, 0, 255, 0], room: 255).data == [0, 0, 0, 6, 0, 0x80, 0x83, 0xB0, 0xB1, 0xB2])
        #expect(rig.command([0x12, 1, 0x80, 0, 255, 0], room: 255).data.dropFirst(4) == Array("disk7".utf8)[...])
        let limits = rig.command([0x12, 1, 0xB0, 0, 255, 0], room: 255).data
        #expect(limits.count == 64 && limits[20..<24] == [0, 0x40, 0, 0] && limits[4] == 1)
        #expect(rig.command([0x12, 1, 0xB2, 0, 255, 0], room: 255).data[5] == 0xE0)
        #expect(rig.command([0x12, 1, 0xC0, 0, 255, 0], room: 255).reason == [5, 0x24, 0])
        #expect(rig.command([0x12, 0, 0x80, 0, 255, 0], room: 255).reason == [5, 0x24, 0])
    }

    @Test func `blocks are written and read by commands of 6, 10, 12 and 16 bytes`() throws {
        let rig = try SCSIRig()
        let writes: [[UInt8]] = [
            [0x0A, 0, 0, 5, 2, 0], [0x2A, 0, 0, 0, 0, 5, 0, 0, 2, 0], [0xAA, 0, 0, 0, 0, 5, 0, 0, 0, 2, 0, 0],
            [0x8A, 0, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 2, 0, 0],
        ]
        for (number, write) in writes.enumerated() {
            let data = (0..<1024).map { UInt8(truncatingIfNeeded: $0 &* 3 &+ number) }
            #expect(rig.command(write, out: data) == Reply(response: 0, status: 0, sense: [], residual: 0, data: []))
            #expect(Array(rig.disk.contents[2560..<3584]) == data)
            var read = write
            read[0] -= 2
            #expect(
                rig.command(read, room: 2000) == Reply(response: 0, status: 0, sense: [], residual: 976, data: data))
        }
        #expect(rig.disk.flushes == 0)
        #expect(rig.command([0x2A, 8, 0, 0, 0, 0, 0, 0, 1, 0], out: [UInt8](repeating: 1, count: 512)).isGood)
        #expect(rig.disk.flushes == 1)
        #expect(rig.command([0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0]).isGood && rig.disk.flushes == 2)
    }

    @Test func `blocks beyond the end, and too little room or data, are refused`() throws {
        let rig = try SCSIRig()
        #expect(rig.command([0x28, 0, 0, 0, 3, 0xE8, 0, 0, 1, 0], room: 512).reason == [5, 0x21, 0])
        let far: [UInt8] = [0x88, 0] + [UInt8](repeating: 0xFF, count: 12) + [0, 0]
        #expect(rig.command(far, room: 512).reason == [5, 0x21, 0])
        #expect(rig.command([0x28, 0, 0, 0, 0, 0, 0, 0, 2, 0], room: 512).response == 1)
        #expect(rig.command([0x2A, 0, 0, 0, 0, 0, 0, 0, 2, 0], out: [UInt8](repeating: 9, count: 512)).response == 1)
        #expect(rig.disk.contents.allSatisfy { $0 == 0 })
        #expect(rig.command([0x28, 0, 0, 0, 0, 0, 0, 0, 0, 0]).isGood)
        rig.disk.fails = true
        #expect(rig.command([0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0], room: 512).reason == [3, 0x11, 0])
        #expect(rig.command([0x2A, 0, 0, 0, 0, 0, 0, 0, 1, 0], out: [UInt8](repeating: 9, count: 512)).reason[0] == 3)
        #expect(rig.command([0xFF, 0, 0, 0, 0, 0]).reason == [5, 0x20, 0])
    }

    @Test func `UNMAP and WRITE SAME`() throws {
        let rig = try SCSIRig()
        rig.disk.contents = rig.disk.contents.map { _ in 9 }
        let list: [UInt8] = [0, 22, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 2, 0, 0, 0, 0]
        #expect(rig.command([0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0], out: list).isGood)
        #expect(rig.disk.discarded.map { [$0.0, $0.1] } == [[2048, 1024]])
        #expect(rig.command([0x41, 0, 0, 0, 0, 1, 0, 0, 2, 0], out: [UInt8](repeating: 0, count: 512)).isGood)
        #expect(rig.disk.contents[511..<1537] == ([9] + [UInt8](repeating: 0, count: 1024) + [9])[...])
        let pattern = (0..<512).map { UInt8(truncatingIfNeeded: $0) }
        #expect(rig.command([0x93, 0, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 3, 0, 0], out: pattern).isGood)
        #expect(Array(rig.disk.contents[3584..<5120]) == pattern + pattern + pattern)
        #expect(rig.command([0x93, 1, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 1, 0, 0]).isGood)
        #expect(rig.disk.contents[3584..<4096].allSatisfy { $0 == 0 })
        #expect(rig.command([0x93, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]).reason == [5, 0x24, 0])
        var bad = list
        bad[15] = 0xFF
        bad[14] = 0xFF
        #expect(rig.command([0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0], out: bad).reason == [5, 0x21, 0])
    }

    @Test func `capacity, and mode pages that can be changed`() throws {
        let rig = try SCSIRig()
        #expect(rig.command([0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0], room: 8).data == [0, 0, 3, 0xE7, 0, 0, 2, 0])
        let long = rig.command([0x9E, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 32, 0, 0], room: 32).data
        #expect(long.count == 32 && long[6..<12] == [3, 0xE7, 0, 0, 2, 0] && long[13] == 3 && long[14] == 0x80)
        let caching = rig.command([0x1A, 8, 8, 0, 255, 0], room: 255).data
        #expect(caching.prefix(7) == [23, 0, 0x10, 0, 8, 18, 4])
        #expect(rig.command([0x1A, 8, 0x48, 0, 255, 0], room: 255).data[6] == 4)
        #expect(rig.command([0x1A, 8, 0xC8, 0, 255, 0], room: 255).reason == [5, 0x39, 0])
        // Without a cache every write is durable.
        var select = [0, 0, 0, 0] + Array(caching[4...])
        select[6] = 0
        #expect(rig.command([0x15, 0x10, 0, 0, 24, 0], out: select).isGood)
        let before = rig.disk.flushes
        #expect(rig.command([0x2A, 0, 0, 0, 0, 0, 0, 0, 1, 0], out: [UInt8](repeating: 1, count: 512)).isGood)
        #expect(rig.disk.flushes == before + 1)
        #expect(rig.command([0x1A, 8, 8, 0, 255, 0], room: 255).data[6] == 0)
        #expect(rig.command([0x15, 0x10, 0, 0, 24, 0], out: select + []).isGood)
        select[5] = 99
        #expect(rig.command([0x15, 0x10, 0, 0, 24, 0], out: select).reason[0] == 5)
        rig.disk.isReadOnly = true
        #expect(rig.command([0x1A, 8, 0x3F, 0, 255, 0], room: 255).data[2] == 0x90)
        #expect(
            rig.command([0x2A, 0, 0, 0, 0, 0, 0, 0, 1, 0], out: [UInt8](repeating: 1, count: 512)).reason == [
                7, 0x27, 0,
            ])
    }
}

@Suite struct SCSIDriveTests {
    private let ready: [UInt8] = [0, 0, 0, 0, 0, 0]
    private func event(_ rig: SCSIRig) -> [UInt8] {
        Array(rig.command([0x4A, 1, 0, 0, 0x10, 0, 0, 0, 8, 0], target: 3, room: 8).data.dropFirst(4).prefix(2))
    }

    @Test func `a drive tells what it is and what is in it`() throws {
        let rig = try SCSIRig()
        let standard = rig.command([0x12, 0, 0, 0, 36, 0], target: 3, room: 36).data
        #expect(standard[0] == 5 && standard[1] == 0x80)
        #expect(rig.command([0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0], target: 3, room: 8).data == [0, 0, 0, 99, 0, 0, 8, 0])
        let contents = rig.command([0x43, 0, 0, 0, 0, 0, 1, 0, 40, 0], target: 3, room: 40).data
        #expect(contents == [0, 18, 1, 1, 0, 0x14, 1, 0, 0, 0, 0, 0, 0, 0x14, 0xAA, 0, 0, 0, 0, 100])
        let times = rig.command([0x43, 2, 0, 0, 0, 0, 0xAA, 0, 40, 0], target: 3, room: 40).data
        #expect(times.suffix(4) == [0, 0, 3, 25])
        let configuration = rig.command([0x46, 0, 0, 0, 0, 0, 0, 1, 0, 0], target: 3, room: 256).data
        #expect(configuration[6..<8] == [0, 8] && Int(configuration[3]) == configuration.count - 4)
        let capabilities = rig.command([0x5A, 0, 0x2A, 0, 0, 0, 0, 0, 128, 0], target: 3, room: 128).data
        #expect(capabilities[8] == 0x2A && capabilities[14] & 0x29 == 0x29)
        rig.medium.contents[2048] = 77
        #expect(rig.command([0x28, 0, 0, 0, 0, 1, 0, 0, 1, 0], target: 3, room: 2048).data.first == 77)
        #expect(rig.command([0x2A, 0, 0, 0, 0, 0, 0, 0, 1, 0], target: 3).reason == [5, 0x20, 0])
    }

    @Test func `the guest ejects, unless it has locked the tray, and the host hears of it`() throws {
        let rig = try SCSIRig()
        #expect(rig.command([0x1E, 0, 0, 0, 1, 0], target: 3).isGood && rig.drive.isLocked)
        #expect(rig.command([0x1B, 0, 0, 0, 2, 0], target: 3).reason == [5, 0x53, 2])
        #expect(rig.command([0x1E, 0, 0, 0, 0, 0], target: 3).isGood)
        #expect(rig.command([0x1B, 0, 0, 0, 2, 0], target: 3).isGood)
        #expect(rig.ejected.all.count == 1 && !rig.drive.hasMedium && rig.drive.isTrayOpen)
        #expect(rig.command(ready, target: 3).reason == [2, 0x3A, 2])
        #expect(event(rig) == [3, 1])
        #expect(rig.command([0x1B, 0, 0, 0, 3, 0], target: 3).isGood)
        #expect(rig.command(ready, target: 3).reason == [2, 0x3A, 1])
        #expect(rig.ejected.all.count == 1)
    }

    @Test func `the host changes the medium, and the guest hears of it`() throws {
        let rig = try SCSIRig()
        #expect(rig.drive.remove(forced: false))
        #expect(event(rig) == [3, 1])
        #expect(event(rig) == [0, 1])
        #expect(rig.drive.insert(MemoryDisk(sectors: 8)))
        #expect(!rig.drive.insert(MemoryDisk(sectors: 8)))
        #expect(event(rig) == [2, 2])
        #expect(rig.command(ready, target: 3).reason == [6, 0x28, 0])
        #expect(rig.command(ready, target: 3).isGood)
        #expect(rig.command([0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0], target: 3, room: 8).data[3] == 1)
        #expect(rig.command([0x1E, 0, 0, 0, 1, 0], target: 3).isGood)
        #expect(!rig.drive.remove(forced: false))
        #expect(event(rig) == [1, 2])
        #expect(rig.drive.remove(forced: true))
        #expect(!rig.drive.isLocked)
    }

    @Test func `random commands neither trap nor hang`() throws {
        var random = SeededRandom(state: 0x5C51_0000 &+ firstSeed)
        let rig = try SCSIRig()
        let known: [UInt8] = [
            0, 3, 8, 0x0A, 0x12, 0x15, 0x1A, 0x1B, 0x1E, 0x25, 0x28, 0x2A, 0x2B, 0x2F, 0x35, 0x41, 0x42, 0x43, 0x46,
            0x4A,
            0x51, 0x55, 0x5A, 0x88, 0x8A, 0x8F, 0x91, 0x93, 0x9E, 0xA0, 0xA8, 0xAA, 0xBD,
        ]
        for round in 0..<20_000 {
            var block = (0..<16).map { _ in
                [0, 0, 1, 0xFF, UInt8(truncatingIfNeeded: random.next())][Int(random.next() % 5)] as UInt8
            }
            block[0] = random.next() % 16 == 0 ? block[0] : known[Int(random.next() % UInt64(known.count))]
            let out = (0..<Int(random.next() % 3) * Int(random.next() % 600)).map { _ in
                UInt8(truncatingIfNeeded: random.next() & random.next() & random.next())
            }
            _ = rig.command(
                block, target: random.next() % 2 == 0 ? 0 : 3, unit: random.next() % 32 == 0 ? 1 : 0, out: out,
                room: Int(random.next() % 3000))
            if round % 64 == 0 {
                _ = rig.manage(UInt8(random.next() % 9), target: UInt8(random.next() % 5), tag: random.next() % 100)
                _ = rig.drive.insert(rig.medium)
            }
        }
        #expect(rig.rig.status == 0xF)
    }
}
