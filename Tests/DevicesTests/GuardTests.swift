// The watchdog and the panic device by their registers.
import DeviceModel
import Devices
import GuestMemory
import MachineTesting
import Synchronization
import Testing

@Suite struct GuardTests {
    /// A bus with one device in slot 3.
    private struct Rig {
        let ports = Bus()
        let mmio = Bus()
        let bridge: PCIHostBridge
        private static let ecam: UInt64 = 0xE000_0000 + 3 << 15

        init(_ device: any PCIDevice) {
            bridge = PCIHostBridge(
                ports: ports, memory: mmio, messages: RecordingMessages(),
                interruptLines: (0..<4).map { _ in RecordingLine() })
            _ = bridge.add(device, slot: 3)
            bridge.assignResources()
            writeConfig(4, 2, 2)
        }
        func readConfig(_ register: UInt64, _ size: Int) -> UInt64 { mmio.read(Self.ecam + register, size: size) }
        func writeConfig(_ register: UInt64, _ size: Int, _ value: UInt64) {
            mmio.write(Self.ecam + register, size: size, value: value)
        }
        var bar: UInt64 { readConfig(0x10, 4) & ~15 }
        func read(_ offset: UInt64, _ size: Int) -> UInt64 { mmio.read(bar + offset, size: size) }
        func write(_ offset: UInt64, _ size: Int, _ value: UInt64) {
            mmio.write(bar + offset, size: size, value: value)
        }
        /// A write after the two that allow it.
        func unlocked(_ offset: UInt64, _ size: Int, _ value: UInt64) {
            write(0xC, 2, 0x80)
            write(0xC, 2, 0x86)
            write(offset, size, value)
        }
    }

    private let door = ManualDoor()
    private let ends = Collector()
    private var count: Int { ends.all.count }
    private static let second: UInt64 = 1_000_000_000

    private func makeWatchdog() -> (Watchdog, Rig) {
        let watchdog = Watchdog(door: door) { [ends] isFirst in ends.add([isFirst ? 1 : 2]) }
        let rig = Rig(watchdog)
        // Two stages of 1024 ticks, 1.017 seconds each.
        rig.unlocked(0, 4, 1024)
        rig.unlocked(4, 4, 1024)
        return (watchdog, rig)
    }

    @Test func `a watchdog expires after both stages, and remembers it over a reset`() {
        let (watchdog, rig) = makeWatchdog()
        #expect(rig.readConfig(0, 4) == 0x25AB_8086)
        door.advance(by: 10 * Self.second)
        #expect(count == 0)
        rig.writeConfig(0x68, 1, 2)
        door.advance(by: 2 * Self.second)
        #expect(count == 0)
        door.advance(by: Self.second / 10)
        #expect(count == 1)
        watchdog.resetDevice()
        #expect(rig.read(0xC, 2) == 0x200)
        rig.unlocked(0xC, 2, 0x200)
        #expect(rig.read(0xC, 2) == 0)
    }

    @Test func `fed in time it doesn't, and only the right two writes let it be fed`() {
        let (_, rig) = makeWatchdog()
        rig.writeConfig(0x68, 1, 2)
        for _ in 0..<20 {
            door.advance(by: Self.second)
            rig.unlocked(0xC, 2, 0x100)
        }
        #expect(count == 0)
        rig.write(0xC, 2, 0x86)
        rig.write(0xC, 2, 0x100)
        door.advance(by: Self.second)
        rig.write(0xC, 2, 0x80)
        rig.write(0xC, 2, 0x100)
        door.advance(by: 2 * Self.second)
        #expect(count == 1)
    }

    @Test func `a locked watchdog isn't stopped, one that is not to reset doesn't`() {
        let (_, rig) = makeWatchdog()
        rig.writeConfig(0x68, 1, 3)
        rig.writeConfig(0x68, 1, 0)
        #expect(rig.readConfig(0x68, 1) == 3)
        door.advance(by: 3 * Self.second)
        #expect(count == 1)
        let (_, other) = makeWatchdog()
        other.writeConfig(0x60, 2, 0x20)
        other.writeConfig(0x68, 1, 2)
        door.advance(by: 3 * Self.second)
        #expect(count == 1)
    }

    @Test func `a saved watchdog goes on`() throws {
        let (watchdog, rig) = makeWatchdog()
        rig.writeConfig(0x68, 1, 2)
        door.advance(by: Self.second)
        let state = watchdog.saveState()
        let (copy, other) = makeWatchdog()
        try copy.restoreState(state)
        other.bridge.remap()
        rig.writeConfig(0x68, 1, 0)
        door.advance(by: 2 * Self.second)
        #expect(count == 1)
    }

    @Test func `a watchdog says whether it expires for the first time since a reset`() {
        let (watchdog, rig) = makeWatchdog()
        func expire() {
            rig.unlocked(0, 4, 1024)
            rig.unlocked(4, 4, 1024)
            rig.writeConfig(0x68, 1, 0)
            rig.writeConfig(0x68, 1, 2)
            door.advance(by: 3 * Self.second)
        }
        expire()
        expire()
        watchdog.resetDevice()
        expire()
        #expect(ends.all == [[1], [2], [1]])
    }

    @Test func `a panic is told, once until the next reset`() {
        let told = Mutex<[GuestPanic]>([])
        let rig = Rig(PanicDevice { panic in told.withLock { $0.append(panic) } })
        #expect(rig.readConfig(0, 4) == 0x0011_1B36)
        #expect(rig.read(0, 1) == 3)
        for value in [1, 2, 0, 4, 3] as [UInt64] { rig.write(0, 1, value) }
        #expect(told.withLock { $0 } == [.panicked, .crashKernel])
        rig.bridge.reset()
        rig.bridge.assignResources()
        rig.write(0, 1, 1)
        #expect(told.withLock { $0 } == [.panicked, .crashKernel, .panicked])
    }

    @Test func `random accesses to the watchdog neither trap nor hang`() {
        let (_, rig) = makeWatchdog()
        var random = SeededRandom(state: 0x6300_E5B0 &+ firstSeed)
        for _ in 0..<20_000 {
            let (offset, size) = (random.next() % 16, [1, 2, 4, 8][Int(random.next() % 4)])
            switch random.next() % 5 {
            case 0: rig.write(offset, size, random.next() >> (random.next() % 64))
            case 1: rig.unlocked(offset & 12, 4, random.next())
            case 2: rig.writeConfig(0x60 + random.next() % 12, 1, random.next() & 0xFF)
            case 3: _ = rig.read(offset, size)
            default: door.advance(by: random.next() % Self.second)
            }
        }
    }

    @Test func `a generation ID stands in memory, and is another one when it is changed`() throws {
        let memory = try GuestMemory(size: 16 << 20)
        let address = GuestPhysicalAddress(0xF_F000)
        let id = GenerationID(at: address, memory: memory, door: door)
        id.place()
        let first = id.bytes
        #expect(try memory.read(address, length: 16) == first && first.count == 16)
        let state = id.saveState()
        id.change()
        #expect(try memory.read(address, length: 16) == id.bytes && id.bytes != first)
        try id.restoreState(state)
        #expect(id.bytes == first)
    }

    @Test func `the event block tells each thing once, and no processor goes that may not`() throws {
        let ports = Bus()
        let line = RecordingLine()
        let block = EventBlock(processors: 2, of: 40, line: line)
        block.attach(to: ports)
        func read(_ offset: UInt64) -> UInt64 { ports.read(0x620 + offset, size: 4) }
        block.onEject { [ends] number in ends.add([UInt8(number)]) }
        block.add(1 << 2 | 1 << 39 | 1 << 63)
        block.tell(.processors)
        #expect(read(0) == 2 && read(0) == 0 && !line.level)
        #expect(read(4) == 7 && read(8) == 1 << 7)
        #expect(read(0xC) == 4 && read(0xC) == 0 && read(0x10) == 1 << 7)
        block.askFor(1 | 1 << 1 | 1 << 5)
        block.tell(.generation)
        #expect(read(0) == 3 && read(0x14) == 2 && read(0x18) == 0)
        for number in [0, 5, 39, 39, 64, 1 << 32] as [UInt64] { ports.write(0x63C, size: 4, value: number) }
        #expect(ends.all == [[39]] && block.present == 7)
        let state = block.saveState()
        let other = EventBlock(processors: 1, of: 40, line: line)
        try other.restoreState(state)
        #expect(other.present == 7)
        #expect(throws: StateError.self) { try EventBlock(processors: 1, of: 2, line: line).restoreState(state) }
    }
}
