// I/O APIC (82093AA), 8259A pair and the router.
import DeviceModel
import Devices
import MachineTesting
import Synchronization
import Testing

private struct RoutedBoard {
    let board = APICBoard()
    let ioapic: IOAPIC
    let pic: PIC8259
    let router: InterruptRouter
    let intr = RecordingLine()

    init() {
        ioapic = IOAPIC(bus: board.bus)
        pic = PIC8259(output: intr)
        router = InterruptRouter(pic: pic, ioapic: ioapic)
    }

    func redirect(_ pin: UInt64, _ value: UInt64) {
        for half in 0..<2 as Range<UInt64> {
            ioapic.write(offset: 0, size: 4, value: 0x10 + 2 * pin + half)
            ioapic.write(offset: 0x10, size: 4, value: value >> (32 * half) & 0xFFFF_FFFF)
        }
    }

    func redirection(_ pin: UInt64) -> UInt64 {
        ioapic.write(offset: 0, size: 4, value: 0x10 + 2 * pin)
        return ioapic.read(offset: 0x10, size: 4)
    }

    func startPIC(autoEnd: Bool = false) {
        for (port, words) in [(0x20, [0x11, 0x20, 0x04]), (0xA0, [0x11, 0x28, 0x02])] as [(UInt64, [UInt64])] {
            pic.write(offset: port, size: 1, value: words[0])
            for word in words.dropFirst() + [autoEnd ? 3 : 1] { pic.write(offset: port + 1, size: 1, value: word) }
        }
    }
}

@Suite struct IOAPICTests {
    @Test func `version and identifier`() {
        let board = RoutedBoard()
        board.ioapic.write(offset: 0, size: 4, value: 1)
        #expect(board.ioapic.read(offset: 0x10, size: 4) == 0x0017_0020)
    }

    @Test func `an edge sends one message`() {
        let board = RoutedBoard()
        board.redirect(4, 0x34)
        let line = board.router.line(gsi: 4)
        line.set(true)
        #expect(board.board.apic.acknowledge() == 0x34)
        board.board.set(0xB0, 0)
        #expect(board.board.apic.acknowledge() == nil)
        line.pulse()
        line.pulse()
        #expect(board.board.apic.acknowledge() == 0x34)
    }

    @Test func `messages while local APICs are on their way to an engine come when they are there, once each`() {
        let board = RoutedBoard()
        let seen = Mutex<[InterruptMessage]>([])
        let message = InterruptMessage(destination: 0, vector: 0x44)
        board.board.bus.hold()
        for _ in 0..<3 { #expect(board.board.bus.deliver(message)) }
        #expect(!board.board.apic.hasDeliverableInterrupt)
        board.board.bus.host = LocalAPICHost(
            deliver: { message in
                seen.withLock { $0.append(message) }
                return true
            }, route: { _, _ in })
        #expect(seen.withLock { $0.isEmpty })
        board.board.bus.release()
        #expect(seen.withLock { $0 } == [message])
        // And back: what comes in between isn't the engine's any more.
        board.board.bus.hold()
        #expect(board.board.bus.deliver(message))
        board.board.bus.host = nil
        board.board.bus.release()
        #expect(seen.withLock { $0.count } == 1 && board.board.apic.acknowledge() == 0x44)
    }

    @Test func `the engine hears of the end of a level interrupt whose pin was masked meanwhile`() {
        let board = RoutedBoard()
        let routes = Mutex<[Int: InterruptMessage]>([:])
        board.board.bus.host = LocalAPICHost(
            deliver: { _ in true }, route: { pin, message in routes.withLock { $0[pin] = message } })
        board.redirect(9, 0x8000 | 0x51)
        board.router.line(gsi: 9).set(true)
        board.redirect(9, 0x1_8000 | 0x51)
        #expect(routes.withLock { $0[9]?.vector } == 0x51)
        board.ioapic.endOfInterrupt(vector: 0x51)
        #expect(board.redirection(9) & 0x4000 == 0)
        board.redirect(9, 0x51)
        #expect(routes.withLock { $0[9] } == nil)
    }

    @Test func `a masked entry sends its edge when unmasked`() {
        let board = RoutedBoard()
        board.router.line(gsi: 5).pulse()
        board.redirect(5, 0x35)
        #expect(board.board.apic.acknowledge() == 0x35)
    }

    @Test func `a level is sent again at the end of interrupt while it lasts`() {
        let board = RoutedBoard()
        board.redirect(16, 0x8050)
        let (a, b) = (board.router.line(gsi: 16), board.router.line(gsi: 16))
        a.set(true)
        b.set(true)
        #expect(board.redirection(16) == 0xC050)
        #expect(board.board.apic.acknowledge() == 0x50)
        a.set(false)
        board.board.set(0xB0, 0)
        #expect(board.board.apic.acknowledge() == 0x50)
        b.set(false)
        board.board.set(0xB0, 0)
        #expect(board.board.apic.acknowledge() == nil)
        #expect(board.redirection(16) == 0x8050)
    }

    @Test func `a level that no APIC takes doesn't wait for an end`() {
        let board = RoutedBoard()
        board.board.set(0xF0, 0xFF)
        board.redirect(18, 0x8052)
        board.router.line(gsi: 18).set(true)
        #expect(board.redirection(18) == 0x8052)
    }

    @Test func `the EOI register ends by vector`() {
        let board = RoutedBoard()
        board.redirect(17, 0x8051)
        let line = board.router.line(gsi: 17)
        line.set(true)
        line.set(false)
        #expect(board.redirection(17) & 0x4000 != 0)
        board.ioapic.write(offset: 0x40, size: 4, value: 0x51)
        #expect(board.redirection(17) & 0x4000 == 0)
    }
}

@Suite struct PIC8259Tests {
    @Test func `initialization sets the vector base and unmasks`() {
        let board = RoutedBoard()
        #expect(board.pic.read(offset: 0x21, size: 1) == 0xFF)
        board.startPIC()
        board.router.line(isaIRQ: 4).set(true)
        #expect(board.intr.level)
        #expect(board.pic.acknowledge() == 0x24)
        #expect(!board.intr.level)
    }

    @Test func `ISA interrupt 0 is GSI 2`() {
        let board = RoutedBoard()
        board.startPIC()
        board.redirect(2, 0x32)
        board.router.line(isaIRQ: 0).pulse()
        #expect(board.pic.acknowledge() == 0x20)
        #expect(board.board.apic.acknowledge() == 0x32)
    }

    @Test func `two requests of the secondary chip both arrive`() {
        let board = RoutedBoard()
        board.startPIC()
        board.router.line(isaIRQ: 12).pulse()
        board.router.line(isaIRQ: 8).pulse()
        #expect(board.pic.acknowledge() == 0x28)
        #expect(board.pic.acknowledge() == nil)
        board.pic.write(offset: 0xA0, size: 1, value: 0x20)
        board.pic.write(offset: 0x20, size: 1, value: 0x20)
        #expect(board.pic.acknowledge() == 0x2C)
    }

    @Test func `a request in service blocks lower ones only`() {
        let board = RoutedBoard()
        board.startPIC()
        board.router.line(isaIRQ: 3).pulse()
        #expect(board.pic.acknowledge() == 0x23)
        board.router.line(isaIRQ: 4).pulse()
        #expect(!board.pic.hasInterrupt)
        board.router.line(isaIRQ: 1).pulse()
        #expect(board.pic.acknowledge() == 0x21)
        board.pic.write(offset: 0x20, size: 1, value: 0x0B)
        #expect(board.pic.read(offset: 0x20, size: 1) == 0x0A)
        board.pic.write(offset: 0x20, size: 1, value: 0x61)
        board.pic.write(offset: 0x20, size: 1, value: 0x63)
        #expect(board.pic.acknowledge() == 0x24)
    }

    @Test func `level-triggered inputs stay requested`() {
        let board = RoutedBoard()
        board.startPIC(autoEnd: true)
        board.pic.write(offset: 0x4D1, size: 1, value: 0x04)
        #expect(board.pic.read(offset: 0x4D0, size: 2) == 0x0400)
        let line = board.router.line(isaIRQ: 10)
        line.set(true)
        #expect(board.pic.acknowledge() == 0x2A)
        #expect(board.pic.acknowledge() == 0x2A)
        line.set(false)
        // The cascade's edge is latched: a spurious interrupt 15.
        #expect(board.pic.acknowledge() == 0x2F)
        #expect(board.pic.acknowledge() == nil)
    }

    @Test func `rotation moves the last served to the lowest priority`() {
        let board = RoutedBoard()
        board.startPIC()
        for irq in [0, 1] { board.router.line(isaIRQ: irq).pulse() }
        #expect(board.pic.acknowledge() == 0x20)
        board.pic.write(offset: 0x20, size: 1, value: 0xA0)
        board.router.line(isaIRQ: 0).pulse()
        #expect(board.pic.acknowledge() == 0x21)
        board.pic.write(offset: 0x20, size: 1, value: 0x20)
        #expect(board.pic.acknowledge() == 0x20)
    }

    @Test func `poll mode acknowledges by reading`() {
        let board = RoutedBoard()
        board.startPIC()
        board.router.line(isaIRQ: 6).pulse()
        board.pic.write(offset: 0x20, size: 1, value: 0x0C)
        #expect(board.pic.read(offset: 0x20, size: 1) == 0x86)
    }

    @Test func `special mask mode lets lower requests in`() {
        let board = RoutedBoard()
        board.startPIC()
        board.router.line(isaIRQ: 1).pulse()
        #expect(board.pic.acknowledge() == 0x21)
        board.router.line(isaIRQ: 5).pulse()
        board.pic.write(offset: 0x21, size: 1, value: 0x02)
        #expect(!board.pic.hasInterrupt)
        board.pic.write(offset: 0x20, size: 1, value: 0x68)
        #expect(board.pic.acknowledge() == 0x25)
    }

    @Test func `LINT0 brings the vector to the processor`() {
        let door = ManualDoor()
        let bus = APICBus()
        let wire = LINT0Line()
        let pic = PIC8259(output: wire)
        let apic = LocalAPIC(id: 0, isBootstrap: true, bus: bus, door: door, acknowledgeExternal: { pic.acknowledge() })
        wire.connect(to: apic)
        let router = InterruptRouter(pic: pic, ioapic: nil)
        for (port, value) in [(0x20, 0x13), (0x21, 0x08), (0x21, 0x01)] as [(UInt64, UInt64)] {
            pic.write(offset: port, size: 1, value: value)
        }
        router.line(isaIRQ: 1).pulse()
        #expect(apic.hasDeliverableInterrupt)
        #expect(apic.acknowledge() == 0x09)
        #expect(!apic.hasDeliverableInterrupt)
        pic.write(offset: 0x20, size: 1, value: 0x20)
        apic.write(offset: 0x350, size: 4, value: 0x10700)
        router.line(isaIRQ: 1).pulse()
        #expect(!apic.hasDeliverableInterrupt)
    }

    @Test func `states survive saving`() throws {
        let board = RoutedBoard()
        board.startPIC()
        board.router.line(isaIRQ: 7).pulse()
        let other = RoutedBoard()
        try other.pic.restoreState(board.pic.saveState())
        #expect(other.pic.acknowledge() == 0x27)
        let lines = (board.router.line(gsi: 9), other.router.line(gsi: 9))
        lines.0.set(true)
        #expect(throws: StateError.self) { try other.router.restoreState(board.router.saveState()) }
    }
}
