// The local APIC and its bus against SDM 3A chapter 11.
import DeviceModel
import Devices
import MachineTesting
import Synchronization
import Testing

/// Collects what a vCPU is told.
final class AttentionLog: Sendable {
    private let log = Mutex<[LocalAPIC.Attention]>([])
    func add(_ attention: LocalAPIC.Attention) { log.withLock { $0.append(attention) } }
    var all: [LocalAPIC.Attention] { log.withLock { $0 } }
}

struct APICBoard {
    let door = ManualDoor()
    let bus = APICBus()
    let apics: [LocalAPIC]

    init(count: Int = 1, enabled: Bool = true) {
        let (bus, door) = (bus, door)
        apics = (0..<count).map { LocalAPIC(id: UInt32($0), isBootstrap: $0 == 0, bus: bus, door: door) }
        if enabled { for apic in apics { apic.write(offset: 0xF0, size: 4, value: 0x1FF) } }
    }

    var apic: LocalAPIC { apics[0] }

    func register(_ offset: UInt64, of index: Int = 0) -> UInt64 { apics[index].read(offset: offset, size: 4) }
    func set(_ offset: UInt64, _ value: UInt64, of index: Int = 0) {
        apics[index].write(offset: offset, size: 4, value: value)
    }
    func enterX2() {
        for (index, apic) in apics.enumerated() { #expect(apic.writeMSR(0x1B, 0xFEE0_0C00 | (index == 0 ? 0x100 : 0))) }
    }
}

@Suite struct LocalAPICTests {
    @Test func `the reset state is virtual wire, software-disabled`() {
        let board = APICBoard(enabled: false)
        #expect(board.register(0x30) == 0x0005_0014)
        #expect(board.register(0xF0) == 0xFF)
        #expect(board.register(0x320) == 0x10000)
        #expect(board.register(0x350) == 0x700)
        #expect(board.apic.readMSR(0x1B) == 0xFEE0_0900)
        #expect(board.apic.acceptsExtINT)
        board.bus.deliver(InterruptMessage(destination: 0, vector: 0x40))
        #expect(!board.apic.hasDeliverableInterrupt)
    }

    @Test func `the highest vector is acknowledged first and ends in order`() {
        let board = APICBoard()
        board.bus.deliver(address: 0xFEE0_0000, data: 0x41)
        board.bus.deliver(address: 0xFEE0_0000, data: 0x83)
        #expect(board.register(0x220) == 2 && board.register(0x240) == 8)
        #expect(board.apic.acknowledge() == 0x83)
        #expect(board.apic.acknowledge() == nil)
        #expect(board.register(0xA0) == 0x80)
        board.set(0xB0, 0)
        #expect(board.apic.acknowledge() == 0x41)
        #expect(board.register(0x120) == 2)
        board.set(0xB0, 0)
        #expect(board.register(0x120) == 0)
    }

    @Test func `the task priority holds lower classes back`() {
        let board = APICBoard()
        board.apic.taskPriority = 5
        #expect(board.register(0x80) == 0x50)
        board.bus.deliver(address: 0xFEE0_0000, data: 0x5F)
        #expect(!board.apic.hasDeliverableInterrupt)
        board.bus.deliver(address: 0xFEE0_0000, data: 0x60)
        #expect(board.apic.acknowledge() == 0x60)
        board.set(0xB0, 0)
        board.apic.taskPriority = 4
        #expect(board.apic.acknowledge() == 0x5F)
    }

    @Test func `a vector below 16 is an error`() {
        let board = APICBoard()
        board.set(0x370, 0x33)
        board.bus.deliver(address: 0xFEE0_0000, data: 0x0F)
        #expect(board.apic.acknowledge() == 0x33)
        board.set(0x280, 0)
        #expect(board.register(0x280) == 0x40)
        board.set(0x280, 0)
        #expect(board.register(0x280) == 0)
    }

    @Test func `one-shot timer counts down and fires once`() {
        let board = APICBoard()
        board.set(0x3E0, 0x3)
        board.set(0x320, 0x30)
        board.set(0x380, 1000)
        board.door.advance(by: 8000)
        #expect(board.register(0x390) == 500)
        board.door.advance(by: 7999)
        #expect(!board.apic.hasDeliverableInterrupt)
        board.door.advance(by: 1)
        #expect(board.apic.acknowledge() == 0x30)
        #expect(board.register(0x390) == 0)
        board.set(0xB0, 0)
        board.door.advance(by: 1_000_000)
        #expect(!board.apic.hasDeliverableInterrupt)
    }

    @Test func `periodic timer fires every period and is coalesced when tiny`() {
        let board = APICBoard()
        let log = AttentionLog()
        board.apic.onAttention { log.add($0) }
        board.set(0x3E0, 0xB)
        board.set(0x320, 0x20030)
        board.set(0x380, 100_000)
        for _ in 0..<5 {
            board.door.advance(by: 100_000)
            #expect(board.apic.acknowledge() == 0x30)
            board.set(0xB0, 0)
        }
        let before = log.all.count
        board.set(0x380, 1)
        board.door.advance(by: 1_000_000)
        #expect(log.all.count - before <= 60)
    }

    @Test func `TSC-deadline mode fires at the deadline and clears it`() {
        let board = APICBoard()
        #expect(board.apic.writeMSR(0x6E0, 5000))
        #expect(board.apic.readMSR(0x6E0) == 0)
        board.set(0x320, 0x40031)
        #expect(board.apic.writeMSR(0x6E0, 5000))
        #expect(board.apic.readMSR(0x6E0) == 5000)
        board.door.advance(by: 4999)
        #expect(!board.apic.hasDeliverableInterrupt)
        board.door.advance(by: 2)
        #expect(board.apic.acknowledge() == 0x31)
        #expect(board.apic.readMSR(0x6E0) == 0)
        board.set(0xB0, 0)
        #expect(board.apic.writeMSR(0x6E0, 1))
        #expect(board.apic.acknowledge() == 0x31)
    }

    @Test func `x2APIC is entered and left as table 11-5 allows`() {
        let board = APICBoard()
        #expect(board.apic.readMSR(0x802) == nil)
        board.enterX2()
        #expect(board.register(0x20) == 0xFFFF_FFFF)
        #expect(board.apic.readMSR(0x802) == 0)
        #expect(board.apic.readMSR(0x80D) == 1)
        #expect(!board.apic.writeMSR(0x1B, 0xFEE0_0900))
        #expect(board.apic.writeMSR(0x1B, 0xFEE0_0100))
        #expect(!board.apic.writeMSR(0x1B, 0xFEE0_0D00))
        #expect(board.apic.writeMSR(0x1B, 0xFEE0_0900))
        #expect(!board.apic.writeMSR(0x1B, 1 << 60 | 0xFEE0_0900))
    }

    @Test(
        arguments: [
            (0x802, 1), (0x803, 0), (0x80B, 1), (0x80E, 0), (0x80A, 0), (0x808, 0x100), (0x828, 1), (0x831, 0),
            (0x839, 0),
            (0x83F, 0x100), (0x8FF, 0), (0x832, 1 << 20),
        ] as [(UInt32, UInt64)])
    func `x2APIC refuses reserved bits and read-only registers`(number: UInt32, value: UInt64) {
        let board = APICBoard()
        board.enterX2()
        #expect(!board.apic.writeMSR(number, value))
    }

    @Test func `x2APIC self IPI and logical destinations`() {
        let board = APICBoard(count: 3)
        board.enterX2()
        #expect(board.apic.writeMSR(0x83F, 0x55))
        #expect(board.apic.acknowledge() == 0x55)
        #expect(board.apic.writeMSR(0x830, 0x6_0000_0866))
        #expect(board.apics[1].acknowledge() == 0x66)
        #expect(board.apics[2].acknowledge() == 0x66)
        #expect(board.apic.readMSR(0x830) == 0x6_0000_0866)
    }

    @Test func `IPIs reach one, all, and all but self`() {
        let board = APICBoard(count: 3)
        board.set(0x310, 2 << 24)
        board.set(0x300, 0x4040)
        #expect(board.apics.map { $0.acknowledge() } == [nil, nil, 0x40])
        board.set(0x300, 0x84051)
        #expect(board.apics.map { $0.acknowledge() } == [0x51, 0x51, 0x51])
        board.set(0x300, 0xC4062)
        #expect(board.apics.map { $0.acknowledge() } == [nil, 0x62, 0x62])
        board.set(0x300, 0x44073)
        #expect(board.apics.map { $0.acknowledge() } == [0x73, nil, nil])
    }

    @Test func `NMI, INIT and start-up reach the vCPU typed`() {
        let board = APICBoard(count: 2)
        let log = AttentionLog()
        board.apics[1].onAttention { log.add($0) }
        board.set(0x310, 1 << 24)
        board.set(0x300, 0x4400)
        board.set(0x300, 0xC500)
        board.set(0x300, 0x8500)
        board.set(0x300, 0x4608)
        #expect(log.all == [.nonMaskable, .initialize, .startup(vector: 8)])
    }

    @Test func `flat and cluster logical destinations`() {
        let board = APICBoard(count: 2)
        board.set(0xD0, 0x0100_0000, of: 0)
        board.set(0xD0, 0x0200_0000, of: 1)
        board.bus.deliver(InterruptMessage(destination: 2, isLogical: true, vector: 0x40))
        #expect(board.apics.map { $0.acknowledge() } == [nil, 0x40])
        for index in 0..<2 {
            board.set(0xE0, 0, of: index)
            board.set(0xB0, 0, of: index)
        }
        board.set(0xD0, 0x1200_0000, of: 1)
        board.bus.deliver(InterruptMessage(destination: 0x12, isLogical: true, vector: 0x41))
        #expect(board.apics.map { $0.acknowledge() } == [nil, 0x41])
    }

    @Test func `lowest priority picks the idle processor`() {
        let board = APICBoard(count: 2)
        board.apics[0].taskPriority = 8
        let message = InterruptMessage(destination: 0xFF, isLogical: true, mode: .lowestPriority, vector: 0x90)
        for index in 0..<2 { board.set(0xD0, 0x0100_0000 << UInt64(index), of: index) }
        board.bus.deliver(message)
        #expect(board.apics.map { $0.acknowledge() } == [nil, 0x90])
    }

    @Test func `attention comes once until the interrupt is acknowledged`() {
        let board = APICBoard()
        let log = AttentionLog()
        board.apic.onAttention { log.add($0) }
        board.bus.deliver(address: 0xFEE0_0000, data: 0x40)
        board.bus.deliver(address: 0xFEE0_0000, data: 0x50)
        #expect(log.all == [.interrupt])
        #expect(board.apic.acknowledge() == 0x50)
        board.set(0xB0, 0)
        #expect(log.all == [.interrupt, .interrupt])
        board.apic.taskPriority = 15
        board.apic.taskPriority = 0
        #expect(log.all.count == 3)
    }

    @Test func `attention comes again after a reset`() {
        let board = APICBoard()
        let log = AttentionLog()
        board.apic.onAttention { log.add($0) }
        board.bus.deliver(address: 0xFEE0_0000, data: 0x40)
        board.apic.reset()
        #expect(!board.apic.hasDeliverableInterrupt)
        board.apic.setLINT0(true)
        #expect(log.all == [.interrupt, .interrupt])
    }

    @Test func `the deadline timer follows the vCPU's own counter`() {
        let (door, bus) = (ManualDoor(), APICBus())
        // A counter of 3 GHz that started at 1000.
        let apic = LocalAPIC(
            id: 0, isBootstrap: true, bus: bus, door: door, tscFrequency: 3_000_000_000,
            timeStampCounter: { 1000 + door.now * 3 })
        apic.write(offset: 0xF0, size: 4, value: 0x1FF)
        apic.write(offset: 0x320, size: 4, value: 0x40031)
        #expect(apic.writeMSR(0x6E0, 4000))
        door.advance(by: 999)
        #expect(!apic.hasDeliverableInterrupt)
        door.advance(by: 2)
        #expect(apic.hasDeliverableInterrupt)
    }

    @Test func `state survives saving, and another version is refused`() throws {
        let board = APICBoard()
        board.bus.deliver(address: 0xFEE0_0000, data: 0x77)
        board.set(0x320, 0x30)
        board.set(0x380, 1000)
        let other = APICBoard()
        try other.apic.restoreState(board.apic.saveState())
        #expect(other.apic.acknowledge() == 0x77)
        other.set(0xB0, 0)
        other.door.advance(by: 3000)
        #expect(other.apic.acknowledge() == 0x30)
    }
}
