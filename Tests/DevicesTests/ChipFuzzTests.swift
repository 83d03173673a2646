// A guest that pokes every chip at random: nothing may crash, hang or grow. Seeded, so that a failure repeats.
import DeviceModel
import Devices
import Foundation
import GuestMemory
import MachineTesting
import Testing

/// SplitMix64.
struct SeededGenerator: RandomNumberGenerator {
    var state: UInt64
    mutating func next() -> UInt64 {
        state &+= 0x9E37_79B9_7F4A_7C15
        var z = state
        z = (z ^ (z >> 30)) &* 0xBF58_476D_1CE4_E5B9
        z = (z ^ (z >> 27)) &* 0x94D0_49BB_1331_11EB
        return z ^ (z >> 31)
    }
}

/// `ROOST_FUZZ_SEED`, or 0: where the seeds of a run begin.
let firstSeed = UInt64(ProcessInfo.processInfo.environment["ROOST_FUZZ_SEED"] ?? "") ?? 0

@Suite struct ChipFuzzTests {
    private static let ports: [ClosedRange<UInt64>] = [
        0x20...0x21, 0xA0...0xA1, 0x4D0...0x4D1, 0x40...0x43, 0x61...0x61, 0x70...0x71, 0x60...0x60, 0x64...0x64,
        0x92...0x92, 0x3F8...0x3FF, 0x80...0x80, 0xE0...0xE9, 0xF4...0xF7, 0xCF9...0xCF9, 0x510...0x51B,
        0x600...0x60B, 0x620...0x63F, 0x2000...0x2018,
    ]

    @Test(arguments: (1...8).map { firstSeed &+ $0 })
    func `random accesses to every chip`(seed: UInt64) throws {
        var random = SeededGenerator(state: seed)
        let (door, ports, memory, bus, power) = (ManualDoor(), Bus(), Bus(), APICBus(), RecordingPower())
        let ram = try GuestMemory(size: 1 << 20)
        let wire = LINT0Line()
        let pic = PIC8259(output: wire)
        let ioapic = IOAPIC(bus: bus)
        let apics = (0..<2).map { index in
            LocalAPIC(
                id: UInt32(index), isBootstrap: index == 0, bus: bus, door: door,
                acknowledgeExternal: { index == 0 ? pic.acknowledge() : nil })
        }
        wire.connect(to: apics[0])
        let router = InterruptRouter(pic: pic, ioapic: ioapic)
        let serial = Serial16550A(line: router.line(isaIRQ: 4)) { _ in }
        let pit = PIT8254(door: door, line: router.line(isaIRQ: 0))
        let rtc = RTC(door: door, line: router.line(isaIRQ: 8), memoryBelow4G: 1 << 20)
        let acpi = ACPIPower(door: door, line: router.line(gsi: 9), power: power)
        let i8042 = I8042(keyboardLine: router.line(isaIRQ: 1), mouseLine: router.line(isaIRQ: 12), power: power)
        let config = FirmwareConfig(memory: ram, cpuCount: 1)
        config.add(file: "etc/fuzz", [UInt8](repeating: 1, count: 100))
        let events = EventBlock(processors: 2, of: 40, line: router.line(gsi: 20))
        let attached = [
            events.attach(to: ports),
            pic.attach(to: ports), pit.attach(to: ports), rtc.attach(to: ports), acpi.attach(to: ports),
            i8042.attach(to: ports), config.attach(to: ports), PostPort().attach(to: ports),
            DebugConsole { _ in }.attach(to: ports), DebugExit(power: power).attach(to: ports, port: 0xF4),
            ResetControl(power: power).attach(to: ports), ports.attach(serial, at: 0x3F8, length: 8),
            TestDevice(lines: (0..<24).map { router.line(gsi: $0) }).attach(ports: ports, memory: memory),
            memory.attach(ioapic, at: 0xFEC0_0000, length: 0x1000),
            memory.attach(apics[0], at: 0xFEE0_0000, length: 0x1000),
        ]
        #expect(attached.allSatisfy { $0 })
        for step in 0..<20_000 {
            let size = [1, 2, 4, 8][Int(random.next() & 3)]
            var value = random.next()
            if random.next() & 1 == 0 { value &= 0xFF }
            switch random.next() % 10 {
            case 0...3:
                let range = Self.ports[Int(random.next() % UInt64(Self.ports.count))]
                let port = UInt64.random(in: range, using: &random)
                if random.next() & 1 == 0 { ports.write(port, size: min(size, 4), value: value) }
                _ = ports.read(port, size: min(size, 4))
            case 4, 5:
                let address = 0xFEE0_0000 + (random.next() & 0x3FF) << (random.next() & 1 == 0 ? 2 : 0)
                memory.write(address, size: size, value: value)
                _ = memory.read(address, size: size)
            case 6:
                memory.write(0xFEC0_0000, size: 4, value: random.next() & 0x3F)
                memory.write(0xFEC0_0000 + [0, 0x10, 0x10, 0x40][Int(random.next() & 3)], size: size, value: value)
                _ = memory.read(0xFEC0_0010, size: size)
            case 7:
                let number =
                    random.next() % 12 == 0 ? 0x1B : random.next() % 8 == 0 ? 0x6E0 : 0x800 + random.next() % 0x40
                let apic = apics[Int(random.next() & 1)]
                _ = apic.writeMSR(UInt32(number), value)
                _ = apic.readMSR(UInt32(number))
            case 8:
                for apic in apics where apic.hasDeliverableInterrupt { _ = apic.acknowledge() }
                _ = pic.acknowledge()
                apics[0].taskPriority = UInt8(truncatingIfNeeded: value) & 15
                serial.receive([UInt8](repeating: 65, count: Int(value & 31)))
                bus.deliver(address: 0xFEE0_0000 | value & 0xF_FFFF, data: UInt32(truncatingIfNeeded: random.next()))
            case 9 where step % 50 == 0:
                events.add(value)
                events.askFor(random.next())
                events.tell(.processors)
            default: door.advance(by: random.next() % (step % 100 == 0 ? 50_000_000 : 100_000))
            }
        }
        for apic in apics { try apic.restoreState(apic.saveState()) }
        try events.restoreState(events.saveState())
        try pit.restoreState(pit.saveState())
        try rtc.restoreState(rtc.saveState())
        try router.restoreState(router.saveState())
        try ioapic.restoreState(ioapic.saveState())
        try i8042.restoreState(i8042.saveState())
        try serial.restoreState(serial.saveState())
    }

    @Test func `several threads at once neither deadlock nor lose a level`() async {
        let (bus, door) = (APICBus(), ManualDoor())
        let wire = LINT0Line()
        let pic = PIC8259(output: wire)
        let ioapic = IOAPIC(bus: bus)
        let apic = LocalAPIC(id: 0, isBootstrap: true, bus: bus, door: door, acknowledgeExternal: { pic.acknowledge() })
        wire.connect(to: apic)
        let router = InterruptRouter(pic: pic, ioapic: ioapic)
        apic.onAttention { _ in _ = apic.hasDeliverableInterrupt }
        apic.write(offset: 0xF0, size: 4, value: 0x1FF)
        apic.write(offset: 0x350, size: 4, value: 0x10700)
        ioapic.write(offset: 0, size: 4, value: 0x10 + 2 * 16)
        ioapic.write(offset: 0x10, size: 4, value: 0x8050)
        let lines = (0..<2).map { _ in router.line(gsi: 16) }
        await withTaskGroup(of: Void.self) { group in
            for line in lines {
                group.addTask {
                    for _ in 0..<20_000 {
                        line.set(true)
                        line.set(false)
                    }
                }
            }
            group.addTask {
                for _ in 0..<20_000 where apic.acknowledge() != nil { apic.write(offset: 0xB0, size: 4, value: 0) }
            }
        }
        while apic.acknowledge() != nil { apic.write(offset: 0xB0, size: 4, value: 0) }
        lines[0].set(true)
        #expect(apic.acknowledge() == 0x50)
    }
}
