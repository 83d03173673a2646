// The bus: which device answers which address.
import DeviceModel
import Foundation
import MachineTesting
import Synchronization
import Testing

/// A device that remembers the last write and answers with its mark and the offset.
private final class Probe: BusDevice {
    let mark: UInt64
    private let last = Mutex<(offset: UInt64, size: Int, value: UInt64)?>(nil)
    var written: (offset: UInt64, size: Int, value: UInt64)? { last.withLock { $0 } }

    init(_ mark: UInt64) { self.mark = mark }

    func read(offset: UInt64, size: Int) -> UInt64 { mark << 32 | mark << 8 | offset }
    func write(offset: UInt64, size: Int, value: UInt64) { last.withLock { $0 = (offset, size, value) } }
}

@Suite("Bus") struct BusTests {
    @Test("Accesses go to the range's device, with offsets from its start")
    func routing() {
        let bus = Bus()
        let (a, b) = (Probe(0xA), Probe(0xB))
        #expect(bus.attach(b, at: 0x200, length: 0x10))
        #expect(bus.attach(a, at: 0x100, length: 0x100))
        #expect(bus.read(0x1FF, size: 1) == 0xFF)
        #expect(bus.read(0x100, size: 2) == 0xA00)
        #expect(bus.read(0x203, size: 4) == 0xB03)
        #expect(bus.read(0x208, size: 8) == 0xB_0000_0B08)
        bus.write(0x20C, size: 4, value: 0x1234_5678)
        #expect(b.written?.offset == 0xC)
        #expect(b.written?.size == 4)
        #expect(b.written?.value == 0x1234_5678)
        #expect(a.written == nil)
    }

    @Test("Where nothing answers reads are ones, writes are dropped; so too across a device's end")
    func holes() {
        let bus = Bus()
        let a = Probe(0xA)
        bus.attach(a, at: 0x100, length: 0x10)
        for (address, size, ones) in [
            (0xFF, 1, 0xFF), (0x110, 2, 0xFFFF), (0x10E, 4, 0xFFFF_FFFF), (0x109, 8, .max), (.max, 1, 0xFF),
        ] as [(UInt64, Int, UInt64)] {
            #expect(bus.read(address, size: size) == ones, "\(address)")
            bus.write(address, size: size, value: 1)
        }
        #expect(a.written == nil)
    }

    @Test("Ranges that are empty, wrap or overlap are refused")
    func refusals() {
        let bus = Bus()
        #expect(bus.attach(Probe(1), at: 0x100, length: 0x10))
        for (start, length) in [
            (0x100, 0x10), (0xFF, 2), (0x10F, 1), (0, 0x1000), (0x108, 2), (0x500, 0), (UInt64.max, 2), (2, .max),
        ] as [(UInt64, UInt64)] {
            #expect(!bus.attach(Probe(2), at: start, length: length), "\(start)")
        }
        #expect(bus.attach(Probe(3), at: 0x110, length: 1))
        #expect(bus.attach(Probe(3), at: 0xFF, length: 1))
        #expect(bus.attach(Probe(4), at: .max, length: 1))
        #expect(bus.read(.max, size: 1) == 0)
    }

    @Test("A range that is detached is free again")
    func detaching() {
        let bus = Bus()
        bus.attach(Probe(1), at: 0x100, length: 0x10)
        bus.detach(at: 0x101)
        #expect(bus.read(0x100, size: 2) == 0x100)
        bus.detach(at: 0x100)
        #expect(bus.read(0x100, size: 2) == 0xFFFF)
        #expect(bus.attach(Probe(2), at: 0x108, length: 0x10))
    }

    @Test("Ranges move while others read: an answer is the device's or ones, never something else")
    func concurrency() async {
        let bus = Bus()
        bus.attach(Probe(7), at: 0x1000, length: 8)
        await withTaskGroup(of: Bool.self) { group in
            group.addTask {
                for round in 0..<20_000 as Range<UInt64> {
                    bus.attach(Probe(9), at: 0x2000 + round % 4 * 16, length: 8)
                    bus.detach(at: 0x2000 + round % 4 * 16)
                }
                return true
            }
            for _ in 0..<2 {
                group.addTask {
                    for _ in 0..<20_000 {
                        let value = bus.read(0x2010, size: 2)
                        if bus.read(0x1000, size: 2) != 0x700 || (value != 0x900 && value != 0xFFFF) { return false }
                    }
                    return true
                }
            }
            for await fine in group { #expect(fine) }
        }
    }
}

@Suite("Doubles") struct DoubleTests {
    @Test("A pulse is one edge, and leaves the line low")
    func pulses() {
        let line = RecordingLine()
        line.pulse()
        line.set(true)
        line.set(true)
        #expect(line.edges == 2)
        #expect(line.level)
        UnconnectedLine().pulse()
    }

    @Test("A manual door fires timers in order, each at its own time, rearmed ones too")
    func timers() {
        let door = ManualDoor()
        let log = Mutex<[UInt64]>([])
        let later = door.makeTimer { log.withLock { $0.append(door.now) } }
        let again = Mutex<(any DoorTimer)?>(nil)
        let first = door.makeTimer {
            log.withLock { $0.append(door.now) }
            if door.now < 40 { again.withLock { $0 }?.arm(at: door.now + 20) }
        }
        again.withLock { $0 = first }
        later.arm(at: 25)
        first.arm(at: 10)
        door.advance(by: 100)
        #expect(log.withLock { $0 } == [10, 25, 30, 50])
        #expect(door.now == 100)
        later.arm(at: 150)
        later.disarm()
        door.advance(by: 100)
        #expect(log.withLock { $0.count } == 4)
    }

    @Test("Events are plain data: they come back from JSON as they were")
    func events() throws {
        let events: [ExternalEvent] = [
            .input([1, 2]), .packet([]), .blockCompletion(id: .max, error: 5, data: [9]), .connected(true),
            .powerButton, .several([.powerButton, .connected(false)]),
        ]
        let data = try JSONEncoder().encode(events)
        #expect(try JSONDecoder().decode([ExternalEvent].self, from: data) == events)
    }
}
