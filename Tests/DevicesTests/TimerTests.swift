// The 8254 and the real-time clock against their datasheets.
import DeviceModel
import Devices
import MachineTesting
import Testing

@Suite struct PIT8254Tests {
    private let door = ManualDoor()
    private let line = RecordingLine()
    private let pit: PIT8254

    init() { pit = PIT8254(door: door, line: line) }

    private func program(_ control: UInt64, _ count: UInt64) {
        pit.write(offset: 0x43, size: 1, value: control)
        let port = 0x40 + control >> 6
        pit.write(offset: port, size: 1, value: count & 0xFF)
        pit.write(offset: port, size: 1, value: count >> 8)
    }

    private func count(_ channel: UInt64) -> UInt64 {
        pit.write(offset: 0x43, size: 1, value: channel << 6)
        return pit.read(offset: 0x40 + channel, size: 1) | pit.read(offset: 0x40 + channel, size: 1) << 8
    }

    @Test func `mode 2 interrupts at the programmed rate`() {
        program(0x34, 11932)
        let before = line.edges
        door.advance(by: 1_000_000_000)
        #expect((99...101).contains(line.edges - before))
    }

    @Test func `mode 0 interrupts once, at the terminal count`() {
        program(0x30, 1193)
        #expect(!line.level)
        door.advance(by: 990_000)
        #expect(!line.level)
        door.advance(by: 20_000)
        #expect(line.level)
        #expect(line.edges == 1)
        door.advance(by: 1_000_000_000)
        #expect(line.edges == 1)
    }

    @Test func `a tiny period is coalesced`() {
        program(0x34, 2)
        let before = line.edges
        door.advance(by: 1_000_000)
        #expect((40...52).contains(line.edges - before))
    }

    @Test func `the count goes down with guest time`() {
        program(0x34, 0)
        door.advance(by: 1_000_000)
        #expect((64340...64345).contains(count(0)))
    }

    @Test func `read-back latches status and count`() {
        program(0x36, 0x1234)
        pit.write(offset: 0x43, size: 1, value: 0xE2)
        #expect(pit.read(offset: 0x40, size: 1) == 0xB6)
        pit.write(offset: 0x43, size: 1, value: 0xD2)
        door.advance(by: 50_000)
        #expect(pit.read(offset: 0x40, size: 1) == 0x34)
        #expect(pit.read(offset: 0x40, size: 1) == 0x12)
    }

    @Test func `port 61 gates counter 2 and shows its output`() {
        pit.write(offset: 0x61, size: 1, value: 0)
        program(0xB0, 1193)
        #expect(pit.read(offset: 0x61, size: 1) & 0x21 == 0)
        door.advance(by: 2_000_000)
        #expect(pit.read(offset: 0x61, size: 1) & 0x20 == 0)
        pit.write(offset: 0x61, size: 1, value: 1)
        door.advance(by: 990_000)
        #expect(pit.read(offset: 0x61, size: 1) & 0x20 == 0)
        door.advance(by: 20_000)
        #expect(pit.read(offset: 0x61, size: 1) & 0x21 == 0x21)
    }

    @Test func `mode 1 starts at the gate's edge`() {
        program(0xB2, 1193)
        #expect(pit.read(offset: 0x61, size: 1) & 0x20 != 0)
        pit.write(offset: 0x61, size: 1, value: 1)
        #expect(pit.read(offset: 0x61, size: 1) & 0x20 == 0)
        door.advance(by: 1_010_000)
        #expect(pit.read(offset: 0x61, size: 1) & 0x20 != 0)
    }

    @Test func `mode 3 is a square wave`() {
        pit.write(offset: 0x61, size: 1, value: 1)
        program(0xB6, 1194)
        door.advance(by: 250_000)
        #expect(pit.read(offset: 0x61, size: 1) & 0x20 != 0)
        door.advance(by: 500_000)
        #expect(pit.read(offset: 0x61, size: 1) & 0x20 == 0)
    }

    @Test func `BCD counts in decimal`() {
        program(0x35, 0x1000)
        #expect(count(0) == 0x1000)
        door.advance(by: 419_100)
        #expect(count(0) == 0x0500)
    }

    @Test func `state survives saving`() throws {
        program(0x30, 1193)
        let line = RecordingLine()
        let door = ManualDoor()
        let other = PIT8254(door: door, line: line)
        try other.restoreState(pit.saveState())
        door.advance(by: 2_000_000)
        #expect(line.edges == 1)
    }
}

@Suite struct RTCTests {
    // 2023-11-14 22:13:20 UTC, a Tuesday.
    private let door = ManualDoor()
    private let line = RecordingLine()
    private let rtc: RTC

    init() { rtc = RTC(door: door, line: line, memoryBelow4G: 512 << 20, memoryAbove4G: 1 << 30) }

    private func read(_ index: UInt64) -> UInt64 {
        rtc.write(offset: 0, size: 1, value: index)
        return rtc.read(offset: 1, size: 1)
    }

    private func write(_ index: UInt64, _ value: UInt64) {
        rtc.write(offset: 0, size: 1, value: index)
        rtc.write(offset: 1, size: 1, value: value)
    }

    @Test func `the time reads in BCD, binary and 12 hours`() {
        #expect([0x32, 9, 8, 7, 6, 4, 2, 0].map(read) == [0x20, 0x23, 0x11, 0x14, 3, 0x22, 0x13, 0x20])
        write(0x0B, 0x06)
        #expect([0x32, 9, 8, 7, 4, 2, 0].map(read) == [20, 23, 11, 14, 22, 13, 20])
        write(0x0B, 0x00)
        #expect(read(4) == 0x90)
    }

    @Test func `the time can be set and goes on`() {
        write(0x0B, 0x82)
        for (index, value) in [(0x32, 0x19), (9, 0x99), (8, 0x12), (7, 0x31), (4, 0x23), (2, 0x59), (0, 0x59)]
            as [(UInt64, UInt64)]
        { write(index, value) }
        write(0x0B, 0x02)
        door.advance(by: 1_000_000_000)
        #expect([0x32, 9, 8, 7, 4, 2, 0].map(read) == [0x20, 0, 1, 1, 0, 0, 0])
    }

    @Test func `update in progress shows before each second`() {
        #expect(read(0x0A) == 0x26)
        door.advance(by: 999_900_000)
        #expect(read(0x0A) == 0xA6)
        door.advance(by: 100_000)
        #expect(read(0x0A) == 0x26)
    }

    @Test func `periodic interrupts come until register C is read`() {
        write(0x0B, 0x42)
        door.advance(by: 1_000_000)
        #expect(line.level)
        #expect(read(0x0C) == 0xC0)
        #expect(!line.level)
        door.advance(by: 10_000_000)
        #expect(line.edges == 2)
    }

    @Test func `update and alarm interrupts`() {
        write(5, 0xFF)
        write(3, 0xFF)
        write(1, 0x22)
        write(0x0B, 0x22)
        door.advance(by: 1_000_000_000)
        #expect(!line.level)
        door.advance(by: 1_000_000_000)
        #expect(line.level)
        #expect(read(0x0C) & 0xA0 == 0xA0)
    }

    @Test func `an alarm whose second passes while nobody looks comes late, not never`() {
        write(5, 0xFF)
        write(3, 0xFF)
        write(1, 0x22)
        write(0x0B, 0x22)
        door.advance(by: 5_000_000_000)
        #expect(line.level)
        #expect(read(0x0C) & 0xA0 == 0xA0)
        door.advance(by: 5_000_000_000)
        #expect(!line.level)
    }

    @Test func `CMOS tells the memory size`() {
        #expect(read(0x34) | read(0x35) << 8 == (512 - 16) * 16)
        #expect(read(0x5B) | read(0x5C) << 8 == 16384)
        #expect(read(0x15) | read(0x16) << 8 == 640)
        write(0x40, 0x5A)
        #expect(read(0x40) == 0x5A)
    }
}
