// A guest's PCI and virtio driver, written from the specification, for tests.
import DeviceModel
import Devices
import GuestMemory
import HostOS
import MachineTesting

/// A PCI bus with memory, and one virtio device driven through its registers.
final class VirtioRig {
    static let ecam: UInt64 = 0xE000_0000
    let memory: GuestMemory
    let ports = Bus()
    let mmio = Bus()
    let messages = RecordingMessages()
    let lines = (0..<4).map { _ in RecordingLine() }
    let bridge: PCIHostBridge
    let transport: VirtioPCI
    let slot: Int
    var queues: [DriverQueue] = []

    init(_ device: any VirtioDevice, memory: GuestMemory? = nil, door: any Door = ManualDoor()) throws {
        self.memory = try memory ?? GuestMemory(size: 16 << 20)
        bridge = PCIHostBridge(ports: ports, memory: mmio, messages: messages, interruptLines: lines)
        transport = VirtioPCI(device: device, memory: self.memory, door: door)
        slot = bridge.add(transport, slot: 3) ?? 0
        bridge.assignResources()
        writeConfig(4, 2, 7)
    }

    func readConfig(_ register: UInt64, _ size: Int) -> UInt64 {
        mmio.read(Self.ecam + UInt64(slot) << 15 + register, size: size)
    }

    func writeConfig(_ register: UInt64, _ size: Int, _ value: UInt64) {
        mmio.write(Self.ecam + UInt64(slot) << 15 + register, size: size, value: value)
    }

    /// Finds a virtio capability by its type: its offset in configuration space.
    func capability(_ type: UInt64) -> UInt64? {
        var offset = readConfig(0x34, 1)
        while offset != 0 {
            if readConfig(offset, 1) == 9, readConfig(offset + 3, 1) == type { return offset }
            offset = readConfig(offset + 1, 1)
        }
        return nil
    }

    var bar: UInt64 { readConfig(0x20, 4) & ~15 | readConfig(0x24, 4) << 32 }
    func read(_ offset: UInt64, _ size: Int) -> UInt64 { mmio.read(bar + offset, size: size) }
    func write(_ offset: UInt64, _ size: Int, _ value: UInt64) { mmio.write(bar + offset, size: size, value: value) }
    var status: UInt64 { read(0x14, 1) }

    /// Feature bits that the device offers.
    var offered: UInt64 {
        write(0, 4, 0)
        let low = read(4, 4)
        write(0, 4, 1)
        return low | read(4, 4) << 32
    }

    /// Enables MSI-X: vector `n` sends data `0x40 + n`.
    func enableMSIX(vectors: Int) {
        let table = readConfig(0x14, 4) & ~15
        for vector in 0..<vectors {
            mmio.write(table + UInt64(vector) * 16, size: 4, value: 0xFEE0_0000)
            mmio.write(table + UInt64(vector) * 16 + 8, size: 4, value: UInt64(0x40 + vector))
            mmio.write(table + UInt64(vector) * 16 + 12, size: 4, value: 0)
        }
        var offset = readConfig(0x34, 1)
        while readConfig(offset, 1) != 0x11 { offset = readConfig(offset + 1, 1) }
        writeConfig(offset + 2, 2, 0x8000)
    }

    /// Brings the device up as virtio 1.2, 3.1.1 says; `offerEarly` may put buffers in queues before the device is told to go.
    func start(
        features: UInt64, queueSize: UInt16 = 16, useMSIX: Bool = true, offerEarly: (VirtioRig) -> Void = { _ in }
    ) {
        write(0x14, 1, 0)
        write(0x14, 1, 1)
        write(0x14, 1, 3)
        write(8, 4, 0)
        write(0xC, 4, features & 0xFFFF_FFFF)
        write(8, 4, 1)
        write(0xC, 4, features >> 32)
        write(0x14, 1, 0xB)
        let count = Int(read(0x12, 2))
        if useMSIX { enableMSIX(vectors: count + 1) }
        if useMSIX { write(0x10, 2, 0) }
        queues = (0..<count).map { index in
            let base = UInt64(0x10_0000 + index * 0x1_0000)
            let queue = DriverQueue(memory: memory, size: queueSize, base: base)
            // The device looks at what an earlier life has left.
            queue.store(UInt32(0), 0x4000)
            queue.store(UInt32(0), 0x8000)
            write(0x16, 2, UInt64(index))
            write(0x18, 2, UInt64(queueSize))
            if useMSIX { write(0x1A, 2, UInt64(index + 1)) }
            write(0x20, 8, base)
            write(0x28, 8, base + 0x4000)
            write(0x30, 4, base + 0x8000)
            write(0x34, 4, 0)
            write(0x1C, 2, 1)
            return queue
        }
        offerEarly(self)
        write(0x14, 1, 0xF)
    }

    func kick(_ queue: Int) { write(0x3000 + UInt64(queue) * 4, 2, UInt64(queue)) }

    func bytes(_ address: UInt64, _ count: Int) -> [UInt8] {
        (try? memory.read(GuestPhysicalAddress(address), length: count)) ?? []
    }

    func put(_ bytes: [UInt8], at address: UInt64) { try? memory.write(bytes, at: GuestPhysicalAddress(address)) }
}

/// The driver's side of a split virtqueue.
struct DriverQueue {
    let memory: GuestMemory
    let size: UInt16
    let base: UInt64
    var nextFree: UInt16 = 0
    var index: UInt16 = 0
    var seen: UInt16 = 0

    init(memory: GuestMemory, size: UInt16, base: UInt64) {
        self.memory = memory
        self.size = size
        self.base = base
    }

    func store<T: FixedWidthInteger & BitwiseCopyable>(_ value: T, _ offset: UInt64) {
        try? memory.store(value, at: GuestPhysicalAddress(base + offset))
    }

    func load<T: FixedWidthInteger & BitwiseCopyable>(_ offset: UInt64, as type: T.Type = T.self) -> T {
        (try? memory.load(GuestPhysicalAddress(base + offset))) ?? 0
    }

    func descriptor(_ index: UInt16, _ address: UInt64, _ length: UInt32, _ flags: UInt16, _ next: UInt16) {
        let place = UInt64(index) * 16
        store(address, place)
        store(length, place + 8)
        store(flags, place + 12)
        store(next, place + 14)
    }

    /// Makes a chain available; returns its head.
    @discardableResult
    mutating func add(_ buffers: [(address: UInt64, length: UInt32, writable: Bool)]) -> UInt16 {
        let head = nextFree
        for (position, buffer) in buffers.enumerated() {
            let isLast = position == buffers.count - 1
            let own = nextFree
            nextFree = (nextFree &+ 1) % size
            descriptor(own, buffer.address, buffer.length, (isLast ? 0 : 1) | (buffer.writable ? 2 : 0), nextFree)
        }
        publish(head)
        return head
    }

    mutating func publish(_ head: UInt16) {
        store(head, 0x4004 + UInt64(index % size) * 2)
        index &+= 1
        store(index, 0x4002)
    }

    /// The next used element, if there is one.
    mutating func take() -> (head: UInt32, length: UInt32)? {
        guard load(0x8002, as: UInt16.self) != seen else { return nil }
        let place = 0x8004 + UInt64(seen % size) * 8
        seen &+= 1
        return (load(place, as: UInt32.self), load(place + 4, as: UInt32.self))
    }
}

/// A disk in memory.
final class MemoryDisk: BlockBackend, @unchecked Sendable {
    struct Failure: Error {}
    var contents: [UInt8]
    var isReadOnly = false
    var writesThrough = false
    var fails = false
    var flushes = 0
    var discarded: [(UInt64, UInt64)] = []

    init(sectors: Int) { contents = [UInt8](repeating: 0, count: sectors * 512) }
    var byteCount: UInt64 { UInt64(contents.count) }
    func read(at offset: UInt64, into buffer: TransferBuffer) throws {
        if fails { throw Failure() }
        try buffer.withMemory { $0.store(contents[Int(offset)..<Int(offset) + buffer.count]) }
    }
    func write(_ buffer: TransferBuffer, at offset: UInt64) throws {
        if fails { throw Failure() }
        let bytes = try buffer.withMemory { $0.load() }
        contents.replaceSubrange(Int(offset)..<Int(offset) + bytes.count, with: bytes)
    }
    func flush() throws { flushes += 1 }
    func discard(at offset: UInt64, length: UInt64) throws { discarded.append((offset, length)) }
    func writeZeroes(at offset: UInt64, length: UInt64, mayUnmap: Bool) throws {
        contents.replaceSubrange(Int(offset)..<Int(offset + length), with: repeatElement(0, count: Int(length)))
    }
}

/// A small repeatable source of random numbers.
struct SeededRandom: RandomNumberGenerator {
    var state: UInt64
    mutating func next() -> UInt64 {
        state ^= state << 13
        state ^= state >> 7
        state ^= state << 17
        return state
    }
}
