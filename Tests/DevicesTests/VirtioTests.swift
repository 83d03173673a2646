import DeviceModel
import Devices
import Foundation
import GuestMemory
import HostOS
import MachineTesting
import Synchronization
import Testing

private let version1: UInt64 = 1 << 32
private let eventIndex: UInt64 = 1 << 29
private let indirect: UInt64 = 1 << 28

/// Collects bytes from any thread.
final class Collector: Sendable {
    private let contents = Mutex<[[UInt8]]>([])
    func add(_ bytes: [UInt8]) { contents.withLock { $0.append(bytes) } }
    var all: [[UInt8]] { contents.withLock { $0 } }
}

@Suite struct VirtioTransportTests {
    @Test func `capabilities name the four structures`() throws {
        let rig = try VirtioRig(VirtioEntropy(door: ManualDoor()))
        #expect(rig.readConfig(0, 4) == 0x1044_1AF4)
        for (type, offset) in [(1, 0), (2, 0x3000), (3, 0x1000), (4, 0x2000)] as [(UInt64, UInt64)] {
            let capability = try #require(rig.capability(type))
            #expect(rig.readConfig(capability + 4, 1) == 4)
            #expect(rig.readConfig(capability + 8, 4) == offset)
        }
    }

    @Test func `registers can be reached through configuration space`() throws {
        let rig = try VirtioRig(VirtioEntropy(door: ManualDoor()))
        let window = try #require(rig.capability(5))
        rig.writeConfig(window + 4, 1, 4)
        rig.writeConfig(window + 8, 4, 0x12)
        rig.writeConfig(window + 12, 4, 2)
        #expect(rig.readConfig(window + 16, 2) == 1)
        rig.writeConfig(window + 8, 4, 0x14)
        rig.writeConfig(window + 12, 4, 1)
        rig.writeConfig(window + 16, 4, 3)
        #expect(rig.status == 3)
    }

    @Test func `features that were not offered, or not VERSION_1, are refused`() throws {
        let rig = try VirtioRig(VirtioEntropy(door: ManualDoor()))
        rig.start(features: 0)
        #expect(rig.status & 8 == 0)
        rig.start(features: version1 | 1 << 40)
        #expect(rig.status & 8 == 0)
        rig.start(features: version1)
        #expect(rig.status == 0xF)
    }

    @Test func `a queue outside memory breaks the device until reset`() throws {
        let rig = try VirtioRig(VirtioEntropy(door: ManualDoor()))
        rig.start(features: version1)
        rig.write(0x14, 1, 0)
        #expect(rig.status == 0)
        rig.write(8, 4, 1)
        rig.write(0xC, 4, 1)
        rig.write(0x14, 1, 0xB)
        rig.write(0x20, 8, 0xFFFF_FFFF_FFFF_FFF0)
        rig.write(0x1C, 2, 1)
        #expect(rig.status & 64 != 0)
        rig.start(features: version1)
        #expect(rig.status == 0xF)
    }

    @Test func `no memory is touched without bus mastering`() throws {
        let rig = try VirtioRig(VirtioEntropy(door: ManualDoor()))
        rig.start(features: version1)
        rig.writeConfig(4, 2, 2)
        rig.queues[0].add([(0x20_0000, 64, true)])
        rig.kick(0)
        #expect(rig.queues[0].take() == nil)
    }

    @Test func `without MSI-X the wire rises and falls with the status read`() throws {
        let rig = try VirtioRig(VirtioEntropy(door: ManualDoor()))
        rig.start(features: version1, useMSIX: false)
        rig.queues[0].add([(0x20_0000, 64, true)])
        rig.kick(0)
        #expect(rig.lines[3].level)
        #expect(rig.read(0x1000, 1) == 1)
        #expect(!rig.lines[3].level)
    }

    @Test func `the event index suppresses interrupts`() throws {
        let rig = try VirtioRig(VirtioEntropy(door: ManualDoor()))
        rig.start(features: version1 | eventIndex)
        rig.queues[0].store(UInt16(2), 0x4004 + 32)
        for expected in [1, 1, 2, 2] {
            rig.queues[0].add([(0x20_0000, 64, true)])
            rig.kick(0)
            #expect(rig.messages.messages.count == expected)
        }
    }

    @Test func `state survives a save`() throws {
        let memory = try GuestMemory(size: 16 << 20)
        let rig = try VirtioRig(VirtioEntropy(door: ManualDoor()), memory: memory)
        rig.start(features: version1 | eventIndex)
        rig.queues[0].add([(0x20_0000, 64, true)])
        rig.kick(0)
        let copy = try VirtioRig(VirtioEntropy(door: ManualDoor()), memory: memory)
        try copy.transport.restoreState(rig.transport.saveState())
        copy.bridge.remap()
        copy.queues = rig.queues
        _ = copy.queues[0].take()
        copy.queues[0].add([(0x20_0000, 32, true)])
        copy.kick(0)
        #expect(copy.queues[0].take()?.length == 32)
    }
}

@Suite struct VirtioDeviceTests {
    private func request(
        _ rig: VirtioRig, _ type: UInt32, sector: UInt64, _ buffers: [(address: UInt64, length: UInt32, writable: Bool)]
    ) -> UInt8 {
        rig.put((0..<4).map { UInt8(truncatingIfNeeded: type >> ($0 * 8)) } + [0, 0, 0, 0], at: 0x30_0000)
        rig.put((0..<8).map { UInt8(truncatingIfNeeded: sector >> ($0 * 8)) }, at: 0x30_0008)
        rig.put([0xAA], at: 0x30_0100)
        rig.queues[0].add([(0x30_0000, 16, false)] + buffers + [(0x30_0100, 1, true)])
        rig.kick(0)
        guard rig.queues[0].take() != nil else { return 0xFF }
        return rig.bytes(0x30_0100, 1)[0]
    }

    private func disk(readOnly: Bool = false, features: UInt64 = 0) throws -> (MemoryDisk, VirtioRig) {
        let disk = MemoryDisk(sectors: 100)
        disk.isReadOnly = readOnly
        let rig = try VirtioRig(
            VirtioBlock(backend: disk, door: ManualDoor(), identifier: "abc", server: WorkerServer(InlineWorker())))
        rig.start(features: version1 | eventIndex | indirect | features)
        return (disk, rig)
    }

    @Test func `a block device tells its capacity`() throws {
        let (_, rig) = try disk()
        #expect(rig.read(0x2000, 8) == 100)
        #expect(rig.read(0x2014, 4) == 512)
        #expect(rig.read(0x2038, 1) == 1)
        #expect(rig.offered & (1 << 5) == 0)
        #expect(rig.offered & (1 << 9 | 1 << 13 | 1 << 14) == (1 << 9 | 1 << 13 | 1 << 14))
    }

    @Test func `a block device writes, reads, flushes and identifies itself`() throws {
        let (disk, rig) = try disk(features: 1 << 9)
        let data = (0..<1024).map { UInt8(truncatingIfNeeded: $0 * 7) }
        rig.put(data, at: 0x40_0000)
        #expect(request(rig, 1, sector: 3, [(0x40_0000, 512, false), (0x40_0200, 512, false)]) == 0)
        #expect(Array(disk.contents[1536..<2560]) == data)
        #expect(request(rig, 0, sector: 3, [(0x50_0000, 100, true), (0x51_0000, 924, true)]) == 0)
        #expect(rig.bytes(0x50_0000, 100) + rig.bytes(0x51_0000, 924) == data)
        #expect(request(rig, 4, sector: 0, []) == 0)
        #expect(disk.flushes == 1)
        #expect(request(rig, 8, sector: 0, [(0x50_0000, 20, true)]) == 0)
        #expect(rig.bytes(0x50_0000, 4) == [97, 98, 99, 0])
        #expect(rig.messages.messages.last?.data == 0x41)
    }

    @Test func `a block device discards and writes zeroes`() throws {
        let (disk, rig) = try disk()
        disk.contents = disk.contents.map { _ in 9 }
        rig.put([5, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0], at: 0x40_0000)
        #expect(request(rig, 11, sector: 0, [(0x40_0000, 16, false)]) == 0)
        #expect(disk.discarded.first?.0 == 2560)
        #expect(request(rig, 13, sector: 0, [(0x40_0000, 16, false)]) == 0)
        #expect(disk.contents[2560..<3584].allSatisfy { $0 == 0 })
        #expect(disk.contents[3584] == 9)
    }

    @Test func `bad requests end in an error and do nothing`() throws {
        let (disk, rig) = try disk()
        #expect(request(rig, 0, sector: 100, [(0x50_0000, 512, true)]) == 1)
        #expect(request(rig, 0, sector: .max, [(0x50_0000, 512, true)]) == 1)
        #expect(request(rig, 0, sector: 0, [(0x50_0000, 511, true)]) == 1)
        #expect(request(rig, 1, sector: 99, [(0x50_0000, 1024, false)]) == 1)
        #expect(request(rig, 77, sector: 0, []) == 2)
        disk.fails = true
        #expect(request(rig, 0, sector: 0, [(0x50_0000, 512, true)]) == 1)
        #expect(rig.status == 0xF)
    }

    @Test func `a read-only disk refuses to be written`() throws {
        let (_, rig) = try disk(readOnly: true, features: 1 << 5)
        #expect(rig.offered & (1 << 5) != 0)
        #expect(request(rig, 1, sector: 0, [(0x40_0000, 512, false)]) == 1)
    }

    @Test func `an indirect table is followed`() throws {
        let (disk, rig) = try disk()
        disk.contents[0] = 77
        rig.put([UInt8](repeating: 0, count: 16), at: 0x30_0000)
        let table = DriverQueue(memory: rig.memory, size: 16, base: 0x60_0000)
        table.descriptor(0, 0x30_0000, 16, 1, 1)
        table.descriptor(1, 0x50_0000, 512, 3, 2)
        table.descriptor(2, 0x30_0100, 1, 2, 0)
        rig.queues[0].descriptor(0, 0x60_0000, 48, 4, 0)
        rig.queues[0].publish(0)
        rig.kick(0)
        #expect(rig.queues[0].take()?.length == 513)
        #expect(rig.bytes(0x50_0000, 1) == [77])
    }

    @Test func `a write is durable when it is done where the guest can't flush, or has no write cache`() throws {
        let (disk, rig) = try disk()
        // Neither FLUSH nor CONFIG_WCE was agreed on.
        #expect(request(rig, 1, sector: 0, [(0x40_0000, 512, false)]) == 0 && disk.flushes == 1)
        rig.start(features: version1 | 1 << 9 | 1 << 11)
        #expect(rig.read(0x2020, 1) == 1)
        #expect(request(rig, 1, sector: 0, [(0x40_0000, 512, false)]) == 0 && disk.flushes == 1)
        rig.write(0x2020, 1, 0)
        #expect(rig.read(0x2020, 1) == 0 && disk.flushes == 2)
        #expect(request(rig, 1, sector: 0, [(0x40_0000, 512, false)]) == 0 && disk.flushes == 3)
        #expect(request(rig, 0, sector: 0, [(0x50_0000, 512, true)]) == 0 && disk.flushes == 3)
        disk.writesThrough = true
        rig.start(features: version1 | 1 << 9 | 1 << 11)
        #expect(rig.read(0x2020, 1) == 0)
    }

    @Test func `several queues finish their requests each for itself`() throws {
        let disk = MemoryDisk(sectors: 8)
        disk.contents[512] = 5
        let held = HeldServer()
        held.holdsOne = true
        let rig = try VirtioRig(VirtioBlock(backend: disk, door: ManualDoor(), queues: 4, server: held))
        #expect(rig.offered & (1 << 12) != 0 && rig.read(0x2022, 2) == 4)
        rig.start(features: version1 | 1 << 12)
        rig.put([UInt8](repeating: 0, count: 8) + [1, 0, 0, 0, 0, 0, 0, 0], at: 0x30_0000)
        for queue in [3, 1] {
            rig.queues[queue].add([
                (0x30_0000, 16, false), (0x50_0000 + UInt64(queue) << 12, 512, true), (0x30_0100, 1, true),
            ])
            rig.kick(queue)
        }
        #expect(rig.queues[3].take() == nil)
        #expect(rig.queues[1].take()?.length == 513)
        let state = rig.transport.saveState()
        #expect(state.device.inFlight == [HeldChain(queue: 3, head: 0)])
        held.runAll()
        #expect(rig.queues[3].take()?.length == 513)
        #expect(rig.bytes(0x50_3000, 1) == [5] && rig.bytes(0x50_1000, 1) == [5])
        #expect(rig.messages.messages.map(\.data) == [0x42, 0x44])
    }

    @Test func `a request of before a reset never completes after it`() throws {
        let held = HeldServer()
        let rig = try VirtioRig(VirtioBlock(backend: MemoryDisk(sectors: 8), door: ManualDoor(), server: held))
        rig.start(features: version1)
        rig.put([UInt8](repeating: 0, count: 16), at: 0x30_0000)
        rig.queues[0].add([(0x30_0000, 16, false), (0x50_0000, 512, true), (0x30_0100, 1, true)])
        rig.put([0xEE], at: 0x30_0100)
        rig.kick(0)
        rig.start(features: version1)
        held.runAll()
        #expect(rig.bytes(0x30_0100, 1) == [0xEE])
        #expect(rig.queues[0].load(0x8002, as: UInt16.self) == 0)
    }

    @Test func `requests under way are done again after a restore`() throws {
        let memory = try GuestMemory(size: 16 << 20)
        let rig = try VirtioRig(
            VirtioBlock(backend: MemoryDisk(sectors: 8), door: ManualDoor(), server: HeldServer()), memory: memory)
        rig.start(features: version1)
        rig.put([UInt8](repeating: 0, count: 16), at: 0x30_0000)
        rig.queues[0].add([(0x30_0000, 16, false), (0x50_0000, 512, true), (0x30_0100, 1, true)])
        rig.kick(0)
        let copy = try VirtioRig(
            VirtioBlock(backend: MemoryDisk(sectors: 8), door: ManualDoor(), server: WorkerServer(InlineWorker())),
            memory: memory)
        try copy.transport.restoreState(rig.transport.saveState())
        #expect(rig.queues[0].take()?.length == 513)
    }

    @Test func `requests that finish together bring one interrupt`() throws {
        let held = HeldServer()
        let rig = try VirtioRig(VirtioBlock(backend: MemoryDisk(sectors: 8), door: ManualDoor(), server: held))
        rig.start(features: version1 | eventIndex)
        rig.put([UInt8](repeating: 0, count: 16), at: 0x30_0000)
        for number in 0..<3 as Range<UInt64> {
            rig.queues[0].add([
                (0x30_0000, 16, false), (0x50_0000 + number << 12, 512, true), (0x30_0100 + number, 1, true),
            ])
        }
        rig.kick(0)
        #expect(rig.messages.messages.isEmpty)
        held.runAll()
        #expect((0..<3).allSatisfy { _ in rig.queues[0].take()?.length == 513 })
        #expect(rig.messages.messages.count == 1)
    }

    @Test func `a reset waits for a transfer that uses the guest's memory, and cuts off later ones`() async throws {
        let disk = SlowDisk()
        let held = HeldServer()
        let rig = try VirtioRig(VirtioBlock(backend: disk, door: ManualDoor(), server: held))
        rig.start(features: version1)
        rig.put([UInt8](repeating: 0, count: 16), at: 0x30_0000)
        for number in 0..<2 as Range<UInt64> {
            rig.queues[0].add([
                (0x30_0000, 16, false), (0x50_0000 + number << 12, 512, true), (0x30_0100 + number, 1, true),
            ])
        }
        rig.kick(0)
        let server = Thread { held.runAll() }
        server.start()
        disk.begun.wait()
        let driver = Thread { [transport = rig.transport] in
            transport.resetDevice()
            disk.reset.signal()
        }
        driver.start()
        #expect(disk.reset.wait(timeout: .now() + .milliseconds(50)) == .timedOut)
        disk.proceed.signal()
        disk.reset.wait()
        disk.ended.wait()
        // The first was filled before the reset ended, the second never was.
        #expect(rig.bytes(0x50_0000, 1) == [7] && rig.bytes(0x50_1000, 1) == [0])
        #expect(disk.cuts.withLock { $0 } == 1)
    }

    @Test func `the entropy device fills buffers`() throws {
        let rig = try VirtioRig(VirtioEntropy(door: ManualDoor()))
        rig.start(features: version1)
        rig.queues[0].add([(0x20_0000, 32, true)])
        rig.kick(0)
        #expect(rig.queues[0].take()?.length == 32)
        #expect(rig.bytes(0x20_0000, 32).contains { $0 != 0 })
    }

    @Test func `the console prints and takes input`() throws {
        let printed = Collector()
        let console = VirtioConsole(door: ManualDoor()) { printed.add($0) }
        let rig = try VirtioRig(console)
        rig.start(features: version1 | eventIndex)
        rig.put(Array("hello".utf8), at: 0x20_0000)
        rig.queues[1].add([(0x20_0000, 5, false)])
        rig.kick(1)
        #expect(printed.all == [Array("hello".utf8)])
        console.receive(Array("abcdef".utf8))
        rig.queues[0].add([(0x21_0000, 4, true)])
        rig.kick(0)
        rig.queues[0].add([(0x21_0010, 4, true)])
        rig.kick(0)
        #expect(rig.queues[0].take()?.length == 4)
        #expect(rig.queues[0].take()?.length == 2)
        #expect(rig.bytes(0x21_0000, 4) + rig.bytes(0x21_0010, 2) == Array("abcdef".utf8))
        #expect(console.inputRoom == 65536)
    }
}

/// A worker that waits to be told.
final class HeldWorker: Worker {
    private let jobs = Mutex<[@Sendable () -> Void]>([])
    func run(_ job: @escaping @Sendable () -> Void) { jobs.withLock { $0.append(job) } }
    func runAll() {
        let all = jobs.withLock { jobs in
            defer { jobs = [] }
            return jobs
        }
        for job in all { job() }
    }
}

/// A worker on a thread of its own.
private final class ThreadWorker: Worker {
    private let queue = DispatchQueue(label: "test.worker")
    func run(_ job: @escaping @Sendable () -> Void) { queue.async(execute: job) }
}

/// A disk of sevens, whose first read takes as long as the test wants.
private final class SlowDisk: BlockBackend {
    let begun = DispatchSemaphore(value: 0)
    let proceed = DispatchSemaphore(value: 0)
    let ended = DispatchSemaphore(value: 0)
    let reset = DispatchSemaphore(value: 0)
    let cuts = Mutex(0)
    var byteCount: UInt64 { 4096 }
    var isReadOnly: Bool { true }
    var writesThrough: Bool { false }
    func read(at offset: UInt64, into buffer: TransferBuffer) throws {
        do {
            try buffer.withMemory { memory in
                begun.signal()
                proceed.wait()
                memory.store([UInt8](repeating: 7, count: buffer.count))
            }
        } catch {
            cuts.withLock { $0 += 1 }
            ended.signal()
            throw error
        }
    }
    func write(_ buffer: TransferBuffer, at offset: UInt64) throws {}
    func flush() throws {}
    func discard(at offset: UInt64, length: UInt64) throws {}
    func writeZeroes(at offset: UInt64, length: UInt64, mayUnmap: Bool) throws {}
}

/// A host that answers nothing.
private final class SilentHost: VsockBackend {
    func requested(_ stream: UInt64, hostPort: UInt32, guestPort: UInt32) {}
    func accepted(_ stream: UInt64, hostPort: UInt32) {}
    func received(_ bytes: ArraySlice<UInt8>, on stream: UInt64) {}
    func ended(_ stream: UInt64, sends: Bool, takes: Bool) {}
    func hasRoom(_ stream: UInt64) {}
}

@Suite struct VirtioHostilityTests {
    private static func device(_ kind: Int) -> any VirtioDevice {
        let door = ManualDoor()
        switch kind {
        case 5:
            return VirtioBlock(
                backend: MemoryDisk(sectors: 64), door: door, queues: 4, server: WorkerServer(InlineWorker()))
        case 0: return VirtioBlock(backend: MemoryDisk(sectors: 64), door: door, server: WorkerServer(InlineWorker()))
        case 1: return VirtioNet(macAddress: [2, 0, 0, 0, 0, 1], door: door, backend: RecordingBackend(), pairs: 2)
        case 2: return VirtioConsole(door: door) { _ in }
        case 6:
            let controller = VirtioSCSI(door: door) { InlineWorker() }
            _ = controller.plug(SCSIUnit(.disk, medium: MemoryDisk(sectors: 64), identifier: "a"), target: 0)
            _ = controller.plug(SCSIUnit(.cdrom, medium: nil, identifier: "b"), target: 1)
            return controller
        case 4: return VirtioVsock(cid: 3, door: door, backend: SilentHost())
        case 7: return VirtioMemory(region: 0x80_0000..<0x100_0000)
        default: return VirtioEntropy(door: door)
        }
    }

    @Test func `a chain that loops breaks the device`() throws {
        let rig = try VirtioRig(Self.device(3))
        rig.start(features: version1)
        rig.queues[0].descriptor(0, 0x20_0000, 16, 3, 1)
        rig.queues[0].descriptor(1, 0x20_0000, 16, 3, 0)
        rig.queues[0].publish(0)
        rig.kick(0)
        #expect(rig.status & 64 != 0)
        #expect(rig.messages.messages.last?.data == 0x40)
    }

    @Test(
        arguments: [
            (0x20_0000, 0xFFFF_FFFF, 2, 0), (0xFFFF_FFFF_FFFF_F000, 0x2000, 2, 0), (0xC000_0000, 16, 2, 0),
            (0x20_0000, 16, 3, 200), (0x20_0000, 16, 4, 0), (0x20_0000, 17, 4, 0),
        ] as [(UInt64, UInt32, UInt16, UInt16)])
    func `a bad descriptor breaks the device`(address: UInt64, length: UInt32, flags: UInt16, next: UInt16) throws {
        let rig = try VirtioRig(Self.device(3))
        rig.start(features: version1)
        rig.queues[0].descriptor(0, address, length, flags, next)
        rig.queues[0].publish(0)
        rig.kick(0)
        #expect(rig.status & 64 != 0)
    }

    @Test func `an available index too far ahead breaks the device`() throws {
        let rig = try VirtioRig(Self.device(3))
        rig.start(features: version1)
        rig.queues[0].store(UInt16(17), 0x4002)
        rig.kick(0)
        #expect(rig.status & 64 != 0)
    }

    @Test(arguments: 0..<8) func `random rings neither trap nor hang`(kind: Int) throws {
        var random = SeededRandom(state: 0xD1CE_0000 &+ UInt64(kind) &+ firstSeed)
        let device = Self.device(kind)
        let rig = try VirtioRig(device)
        for round in 0..<400 {
            let features = version1 | (random.next() & (eventIndex | indirect | 1 << 15)) & rig.offered
            rig.start(features: features, queueSize: [1, 4, 16, 64][round % 4])
            for _ in 0..<20 {
                let index = Int.random(in: 0..<rig.queues.count, using: &random)
                var queue = rig.queues[index]
                for entry in 0..<queue.size {
                    queue.descriptor(
                        entry, Self.address(&random), Self.length(&random),
                        UInt16(truncatingIfNeeded: random.next() & (random.next() % 8 == 0 ? 0xFFFF : 3)),
                        UInt16(
                            truncatingIfNeeded: random.next() % (UInt64(queue.size) + (random.next() % 32 == 0 ? 9 : 0))
                        ))
                }
                for _ in 0..<Int.random(in: 0...Int(queue.size), using: &random) {
                    queue.publish(UInt16(truncatingIfNeeded: random.next() % UInt64(queue.size)))
                }
                if random.next() % 64 == 0 { queue.store(UInt16(truncatingIfNeeded: random.next()), 0x4002) }
                rig.queues[index] = queue
                rig.kick(index)
                (device as? VirtioNet)?.receive([UInt8](repeating: 7, count: Int.random(in: 1...1514, using: &random)))
                (device as? VirtioConsole)?.receive([1, 2, 3])
            }
        }
        rig.start(features: version1)
        #expect(rig.status == 0xF)
    }

    @Test(arguments: 0..<8) func `several vCPUs and the host at once neither trap nor hang`(kind: Int) async throws {
        let device: any VirtioDevice =
            kind == 0
            ? VirtioBlock(
                backend: MemoryDisk(sectors: 64), door: ManualDoor(), server: WorkerServer(ThreadWorker()))
            : Self.device(kind)
        let rig = try VirtioRig(device)
        rig.start(features: version1)
        let (mmio, bar, memory) = (rig.mmio, rig.bar, rig.memory)
        let count = rig.queues.count
        await withTaskGroup(of: Void.self) { group in
            for thread in 0..<3 {
                group.addTask {
                    var random = SeededRandom(state: 0xBEEF &+ UInt64(thread) &+ firstSeed)
                    for round in 0..<2000 {
                        let index = Int(random.next() % UInt64(count))
                        var queue = DriverQueue(memory: memory, size: 16, base: 0x10_0000 + UInt64(index) * 0x1_0000)
                        queue.index = queue.load(0x4002)
                        queue.add([(0x20_0000, 16, random.next() % 2 == 0), (0x21_0000, 600, true)])
                        mmio.write(bar + 0x3000 + UInt64(index) * 4, size: 2, value: 0)
                        (device as? VirtioNet)?.receive([UInt8](repeating: 7, count: 100))
                        (device as? VirtioConsole)?.receive([1, 2, 3])
                        if round % 50 == 0 { Self.restart(mmio, bar, queues: count) }
                    }
                }
            }
        }
        rig.start(features: version1)
        #expect(rig.status == 0xF)
    }

    /// Resets the device and brings it up again, whatever others do meanwhile.
    private static func restart(_ mmio: Bus, _ bar: UInt64, queues: Int) {
        let writes: [(UInt64, Int, UInt64)] = [
            (0x14, 1, 0), (0x14, 1, 3), (8, 4, 1), (0xC, 4, 1), (0x14, 1, 0xB),
        ]
        for (offset, size, value) in writes { mmio.write(bar + offset, size: size, value: value) }
        for index in 0..<UInt64(queues) {
            let base = 0x10_0000 + index * 0x1_0000
            let writes: [(UInt64, Int, UInt64)] = [
                (0x16, 2, index), (0x18, 2, 16), (0x20, 8, base), (0x28, 8, base + 0x4000), (0x30, 8, base + 0x8000),
                (0x1C, 2, 1),
            ]
            for (offset, size, value) in writes { mmio.write(bar + offset, size: size, value: value) }
        }
        mmio.write(bar + 0x14, size: 1, value: 0xF)
    }

    private static func address(_ random: inout SeededRandom) -> UInt64 {
        random.next() % 24 == 0 ? random.next() : 0x20_0000 + random.next() % 0x10_0000
    }

    private static func length(_ random: inout SeededRandom) -> UInt32 {
        random.next() % 24 == 0 ? UInt32(truncatingIfNeeded: random.next()) : UInt32(random.next() % 2048)
    }

    @Test(arguments: 0..<8) func `random register accesses neither trap nor hang`(kind: Int) throws {
        var random = SeededRandom(state: 0xACCE_5500 &+ UInt64(kind) &+ firstSeed)
        let rig = try VirtioRig(Self.device(kind))
        for round in 0..<20_000 {
            if round % 1000 == 0 {
                rig.bridge.reset()
                rig.bridge.assignResources()
                rig.writeConfig(4, 2, 7)
                rig.start(features: version1)
            }
            let size = [1, 2, 4, 8][Int(random.next() % 4)]
            let area = [0, 0, 0, 0x1000, 0x2000, 0x3000][Int(random.next() % 6)] as UInt64
            let offset = area + random.next() % 0x48
            if random.next() % 2 == 0 {
                rig.write(offset, size, random.next() >> (random.next() % 64))
            } else {
                _ = rig.read(offset, size)
            }
            if random.next() % 16 == 0 { rig.writeConfig(random.next() % 256, min(size, 4), random.next()) }
        }
    }
}
