// 16550A, i8042, debug ports, ACPI power block, fw_cfg and the test device.
import DeviceModel
import Devices
import GuestMemory
import MachineTesting
import Synchronization
import Testing

/// Collects bytes that a device sends.
final class ByteLog: Sendable {
    private let log = Mutex<[UInt8]>([])
    func add(_ bytes: [UInt8]) { log.withLock { $0 += bytes } }
    var all: [UInt8] { log.withLock { $0 } }
}

@Suite struct Serial16550ATests {
    private let line = RecordingLine()
    private let sent = ByteLog()
    private let port: Serial16550A

    init() {
        let sent = sent
        port = Serial16550A(line: line) { sent.add($0) }
    }

    private func read(_ register: UInt64) -> UInt64 { port.read(offset: register, size: 1) }
    private func write(_ register: UInt64, _ value: UInt64) { port.write(offset: register, size: 1, value: value) }

    @Test func `bytes go out at once`() {
        for byte in "hello".utf8 { write(0, UInt64(byte)) }
        #expect(sent.all == Array("hello".utf8))
        #expect(read(5) == 0x60)
    }

    @Test func `the divisor latch hides data and enable`() {
        write(3, 0x83)
        write(0, 1)
        write(1, 2)
        #expect(read(0) == 1 && read(1) == 2)
        write(3, 0x03)
        #expect(read(1) == 0)
        #expect(sent.all.isEmpty)
    }

    @Test func `transmitter interrupt: raised by enabling, cleared by IIR`() {
        write(4, 0x08)
        write(1, 0x02)
        #expect(line.level)
        #expect(read(2) == 0x02)
        #expect(!line.level)
        #expect(read(2) == 0x01)
        write(0, 0x41)
        #expect(line.level)
    }

    @Test func `OUT2 gates the interrupt`() {
        write(1, 0x02)
        #expect(!line.level)
        write(4, 0x08)
        #expect(line.level)
    }

    @Test func `the FIFO tells trigger level and timeout apart`() {
        write(2, 0x81)
        write(4, 0x08)
        write(1, 0x01)
        port.receive([1, 2, 3])
        #expect(read(2) == 0xCC)
        port.receive([4, 5, 6, 7, 8])
        #expect(read(2) == 0xC4)
        for byte in 1...8 as ClosedRange<UInt64> { #expect(read(0) == byte) }
        #expect(read(2) == 0xC1)
        #expect(!line.level)
        #expect(read(5) & 1 == 0)
    }

    @Test func `nothing typed is lost, and a full buffer pushes back`() {
        write(2, 0x01)
        let drained = ByteLog()
        port.onInputDrained { drained.add([1]) }
        let taken = port.receive([UInt8](repeating: 7, count: 70000))
        #expect(taken == Serial16550A.inputCapacity)
        #expect(port.roomForInput == 16)
        var count = 0
        while read(5) & 1 != 0 {
            _ = read(0)
            count += 1
        }
        #expect(count == taken)
        #expect(drained.all == [1])
    }

    @Test func `a buffer that was full when it was saved tells when it has been read`() throws {
        write(2, 0x01)
        port.receive([UInt8](repeating: 7, count: 70000))
        try port.restoreState(port.saveState())
        let drained = ByteLog()
        port.onInputDrained { drained.add([1]) }
        while read(5) & 1 != 0 { _ = read(0) }
        #expect(drained.all == [1])
    }

    @Test func `loopback returns data and modem lines`() {
        write(4, 0x10)
        write(0, 0x5A)
        #expect(sent.all.isEmpty)
        #expect(read(0) == 0x5A)
        write(4, 0x1A)
        #expect(read(6) & 0xF0 == 0x90)
        write(4, 0x00)
        #expect(read(6) & 0xF0 == 0xB0)
    }

    @Test func `the FIFO is identified and scratch kept`() {
        write(2, 0x01)
        #expect(read(2) & 0xC0 == 0xC0)
        write(2, 0)
        #expect(read(2) & 0xC0 == 0)
        write(7, 0xA5)
        #expect(read(7) == 0xA5)
    }
}

@Suite struct I8042Tests {
    private let keyboard = RecordingLine()
    private let mouse = RecordingLine()
    private let power = RecordingPower()
    private let chip: I8042

    init() { chip = I8042(keyboardLine: keyboard, mouseLine: mouse, power: power) }

    private func command(_ value: UInt64) { chip.write(offset: 0x64, size: 1, value: value) }
    private func data(_ value: UInt64) { chip.write(offset: 0x60, size: 1, value: value) }
    private func output() -> [UInt64] {
        var bytes: [UInt64] = []
        while chip.read(offset: 0x64, size: 1) & 1 != 0 { bytes.append(chip.read(offset: 0x60, size: 1)) }
        return bytes
    }

    @Test func `self-tests and configuration byte`() {
        command(0xAA)
        #expect(output() == [0x55])
        command(0xAB)
        #expect(output() == [0])
        command(0x60)
        data(0x47)
        command(0x20)
        #expect(output() == [0x47])
    }

    @Test func `the keyboard answers reset and identify, each byte an edge`() {
        data(0xFF)
        #expect(output() == [0xFA, 0xAA])
        #expect(keyboard.edges == 2)
        data(0xF2)
        #expect(output() == [0xFA, 0xAB, 0x83])
        data(0xED)
        data(0x07)
        #expect(output() == [0xFA, 0xFA])
    }

    @Test func `the mouse answers through D4`() {
        command(0x60)
        data(0x03)
        command(0xD4)
        data(0xFF)
        #expect(mouse.level)
        #expect(chip.read(offset: 0x64, size: 1) & 0x20 != 0)
        #expect(output() == [0xFA, 0xAA, 0x00])
        #expect(!mouse.level)
    }

    @Test func `every reset line resets`() {
        command(0xFE)
        command(0xD1)
        data(0xDE)
        chip.write(offset: 0x92, size: 1, value: 1)
        #expect(power.events == [.reset, .reset, .reset])
    }
}

@Suite struct PowerTests {
    @Test func `CF9 resets when bit 2 rises`() {
        let power = RecordingPower()
        let control = ResetControl(power: power)
        control.write(offset: 0, size: 1, value: 2)
        #expect(power.events.isEmpty)
        #expect(control.read(offset: 0, size: 1) == 2)
        control.write(offset: 0, size: 1, value: 6)
        #expect(power.events == [.reset])
    }

    @Test func `debug exit doubles and adds one`() {
        let power = RecordingPower()
        let ports = Bus()
        #expect(DebugExit(power: power).attach(to: ports, port: 0xF4))
        ports.write(0xF4, size: 1, value: 0x10)
        ports.write(0xF4, size: 4, value: 0x8000_0001)
        #expect(power.events == [.debugExit(status: 0x21), .debugExit(status: 3)])
    }

    @Test func `debug console and POST port`() {
        let ports = Bus()
        let log = ByteLog()
        let post = PostPort()
        #expect(DebugConsole { log.add($0) }.attach(to: ports) && post.attach(to: ports))
        ports.write(0xE9, size: 1, value: 0x21)
        ports.write(0x80, size: 1, value: 0x55)
        #expect(ports.read(0xE9, size: 1) == 0xE9)
        #expect(log.all == [0x21] && post.code == 0x55)
    }

    @Test func `S5 powers off, other sleep types do not`() {
        let power = RecordingPower()
        let acpi = ACPIPower(door: ManualDoor(), line: RecordingLine(), power: power)
        acpi.write(offset: 4, size: 2, value: 0x2000)
        #expect(power.events.isEmpty)
        #expect(acpi.read(offset: 4, size: 2) & 1 == 1)
        acpi.write(offset: 4, size: 2, value: 0x2000 | UInt64(ACPIPower.softOffType) << 10)
        #expect(power.events == [.powerOff])
    }

    @Test func `the power button raises the SCI until its status is cleared`() {
        let line = RecordingLine()
        let acpi = ACPIPower(door: ManualDoor(), line: line, power: RecordingPower())
        acpi.write(offset: 2, size: 2, value: 0x100)
        acpi.pressPowerButton()
        #expect(line.level)
        #expect(acpi.read(offset: 0, size: 2) == 0x100)
        acpi.write(offset: 0, size: 2, value: 0x100)
        #expect(!line.level)
    }

    @Test func `the timer runs at 3.579545 MHz and interrupts at half its range`() {
        let (door, line) = (ManualDoor(), RecordingLine())
        let acpi = ACPIPower(door: door, line: line, power: RecordingPower())
        door.advance(by: 1_000_000_000)
        #expect(acpi.read(offset: 8, size: 4) == 3_579_545)
        acpi.write(offset: 2, size: 2, value: 1)
        door.advance(by: 600_000_000_000)
        #expect(line.level)
    }
}

@Suite struct FirmwareConfigTests {
    private let memory: GuestMemory
    private let config: FirmwareConfig

    init() throws {
        memory = try GuestMemory(size: 1 << 20)
        config = FirmwareConfig(memory: memory, cpuCount: 3)
        config.add(file: "etc/test", Array("content".utf8))
    }

    private func item(_ key: UInt64, _ count: Int) -> [UInt64] {
        config.write(offset: 0x510, size: 2, value: key)
        return (0..<count).map { _ in config.read(offset: 0x511, size: 1) }
    }

    private func descriptor(_ control: UInt32, _ length: UInt32, _ address: UInt64, at place: UInt64 = 0x1000) throws {
        try memory.store(control.byteSwapped, at: GuestPhysicalAddress(place))
        try memory.store(length.byteSwapped, at: GuestPhysicalAddress(place + 4))
        try memory.store(address.byteSwapped, at: GuestPhysicalAddress(place + 8))
        config.write(offset: 0x514, size: 4, value: 0)
        config.write(offset: 0x518, size: 4, value: UInt64(UInt32(truncatingIfNeeded: place).byteSwapped))
    }

    @Test func `numbered items through the ports`() {
        #expect(item(0, 5) == [0x51, 0x45, 0x4D, 0x55, 0])
        #expect(item(1, 4) == [3, 0, 0, 0])
        #expect(item(3, 8) == [0, 0, 0x10, 0, 0, 0, 0, 0])
        #expect(item(5, 2) == [3, 0] && item(0x0F, 2) == [3, 0])
    }

    @Test func `the directory names files`() {
        let directory = item(0x19, 68)
        #expect(directory.prefix(12) == [0, 0, 0, 1, 0, 0, 0, 7, 0, 0x20, 0, 0])
        #expect(directory[12..<20].elementsEqual("etc/test".utf8.map(UInt64.init)))
        #expect(item(0x20, 7).elementsEqual("content".utf8.map(UInt64.init)))
    }

    @Test func `DMA reads into RAM and clears the control field`() throws {
        try descriptor(0x20_000A, 7, 0x2000)
        #expect(try memory.read(GuestPhysicalAddress(0x2000), length: 8) == Array("content".utf8) + [0])
        #expect(try memory.load(GuestPhysicalAddress(0x1000), as: UInt32.self) == 0)
        try descriptor(0x20_000C, 3, 0)
        try descriptor(2, 4, 0x3000)
        #expect(try memory.read(GuestPhysicalAddress(0x3000), length: 4) == Array("tent".utf8))
    }

    @Test func `DMA outside RAM and writes fail`() throws {
        try descriptor(0x20_000A, 0xFFFF_FFFF, 0x2000)
        #expect(try memory.load(GuestPhysicalAddress(0x1000), as: UInt32.self).byteSwapped == 1)
        try descriptor(0x20_000A, 16, 1 << 20 - 8)
        #expect(try memory.load(GuestPhysicalAddress(0x1000), as: UInt32.self).byteSwapped == 1)
        try descriptor(0x20_0018, 4, 0x2000)
        #expect(try memory.load(GuestPhysicalAddress(0x1000), as: UInt32.self).byteSwapped == 1)
        config.write(offset: 0x518, size: 4, value: 0xFFFF_FFFF)
    }

    @Test func `the DMA port shows its signature`() {
        #expect(UInt32(truncatingIfNeeded: config.read(offset: 0x514, size: 4)).byteSwapped == 0x5145_4D55)
        #expect(UInt32(truncatingIfNeeded: config.read(offset: 0x518, size: 4)).byteSwapped == 0x2043_4647)
    }
}

@Suite struct TestDeviceTests {
    @Test func `lines, latch and I/O RAM`() {
        let lines = (0..<16).map { _ in RecordingLine() }
        let (ports, memory) = (Bus(), Bus())
        #expect(TestDevice(lines: lines).attach(ports: ports, memory: memory))
        ports.write(0x2005, size: 1, value: 1)
        #expect(lines[5].level)
        ports.write(0x2005, size: 1, value: 0)
        #expect(!lines[5].level)
        ports.write(0xE0, size: 4, value: 0x1234_5678)
        ports.write(0xE0, size: 1, value: 0x99)
        #expect(ports.read(0xE0, size: 4) == 0x1234_5699)
        #expect(ports.read(0xE0, size: 2) == 0x5699)
        memory.write(0xFF00_1000, size: 8, value: 0x1122_3344_5566_7788)
        #expect(memory.read(0xFF00_1002, size: 2) == 0x5566)
    }
}
