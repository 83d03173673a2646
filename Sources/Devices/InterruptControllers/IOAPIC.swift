// Intel 82093AA I/O APIC (datasheet 290566), with the 82489DX-successor's EOI register (version 0x20).
//
// MMIO (FEC0_0000):
//   00 IOREGSEL R/W    7:0 index
//   10 IOWIN R/W       the register selected
//   40 EOI W           7:0 vector (version 0x20)
// Indexed:
//   00 ID R/W          27:24
//   01 version R       7:0 0x20, 23:16 last entry (23)
//   02 arbitration R   27:24
//   10+2n, 11+2n redirection entry n R/W
//      7:0 vector, 10:8 delivery mode, 11 logical, 12 delivery status R, 13 low active, 14 remote IRR R,
//      15 level, 16 masked, 63:56 destination
//
// - Quirk: polarity is ignored: a wire's level is its asserted state.
public import DeviceModel
internal import Synchronization

/// The I/O APIC: 24 pins to messages.
public final class IOAPIC: BusDevice, Saveable {
    /// Number of pins.
    public static let pinCount = 24

    /// The chip's whole state.
    public struct State: Codable, Sendable {
        var version = 1
        var id: UInt32 = 0
        var select: UInt8 = 0
        var entries = [UInt64](repeating: 0x10000, count: IOAPIC.pinCount)
        /// Level of each pin.
        var levels: UInt32 = 0
        /// Edges that came while their entry was masked.
        var edges: UInt32 = 0
    }

    private static let remoteIRR: UInt64 = 1 << 14
    private static let level: UInt64 = 1 << 15
    private static let masked: UInt64 = 1 << 16

    private let bus: APICBus
    private let initialID: UInt32
    private let state: Mutex<State>

    /// Makes an I/O APIC and puts it on the bus of the local ones.
    public init(id: UInt8 = 0, bus: APICBus) {
        self.bus = bus
        initialID = UInt32(id & 15)
        state = Mutex(State(id: UInt32(id & 15)))
        bus.add(self)
    }

    /// Sets the level of pin `pin`.
    public func set(pin: Int, _ level: Bool) {
        guard pin >= 0, pin < Self.pinCount else { return }
        state.withLock { state in
            let bit = UInt32(1) &<< UInt32(pin)
            let old = state.levels & bit != 0
            guard old != level else { return }
            if !level {
                state.levels &= ~bit
                return
            }
            state.levels |= bit
            if state.entries[pin] & Self.level == 0 { state.edges |= bit }
            service(&state, pin)
        }
    }

    /// A local APIC ended a level-triggered interrupt: entries still asserted are sent again.
    public func endOfInterrupt(vector: UInt8) {
        state.withLock { state in
            for pin in 0..<Self.pinCount {
                let entry = state.entries[pin]
                guard entry & Self.remoteIRR != 0, entry & 0xFF == UInt64(vector) else { continue }
                state.entries[pin] &= ~Self.remoteIRR
                service(&state, pin)
            }
        }
    }

    /// Power-on reset; the wires keep their levels.
    public func reset() {
        state.withLock { state in state = State(id: initialID, levels: state.levels) }
        announceRoutes()
    }

    /// Tells the host of local APICs, if there is one, what each pin sends.
    func announceRoutes() {
        guard let host = bus.host else { return }
        state.withLock { state in
            for pin in 0..<Self.pinCount { host.route(pin, Self.levelMessage(state.entries[pin])) }
        }
    }

    /// What an entry sends, if it is level-triggered; masked or not: the host tells of the end of what came before.
    private static func levelMessage(_ entry: UInt64) -> InterruptMessage? {
        entry & level != 0 ? message(entry) : nil
    }

    private static func message(_ entry: UInt64) -> InterruptMessage {
        InterruptMessage(
            destination: UInt32(truncatingIfNeeded: entry >> 56), isLogical: entry & 0x800 != 0,
            mode: DeliveryMode(rawValue: UInt8(truncatingIfNeeded: entry >> 8) & 7) ?? .reserved,
            vector: UInt8(truncatingIfNeeded: entry), isLevel: entry & level != 0)
    }

    /// Sends what pin `pin` has to send. The lock is held: the local APICs' locks come after it.
    private func service(_ state: inout State, _ pin: Int) {
        let bit = UInt32(1) &<< UInt32(pin)
        let entry = state.entries[pin]
        guard entry & Self.masked == 0 else { return }
        let isLevel = entry & Self.level != 0
        if isLevel {
            guard state.levels & bit != 0, entry & Self.remoteIRR == 0 else { return }
        } else {
            guard state.edges & bit != 0 else { return }
            state.edges &= ~bit
        }
        let message = Self.message(entry)
        let taken = bus.deliver(message)
        if isLevel, taken, message.mode == .fixed || message.mode == .lowestPriority {
            state.entries[pin] |= Self.remoteIRR
        }
    }

    // MARK: Registers

    /// Reads a register.
    public func read(offset: UInt64, size: Int) -> UInt64 {
        state.withLock { state in
            switch offset & ~3 {
            case 0x00: return UInt64(state.select) &>> ((offset & 3) &* 8)
            case 0x10: return UInt64(Self.indexed(state)) &>> ((offset & 3) &* 8)
            default: return 0
            }
        }
    }

    private static func indexed(_ state: State) -> UInt32 {
        switch state.select {
        case 0x00, 0x02: return state.id &<< 24
        case 0x01: return 0x0017_0020
        case 0x10..<UInt8(0x10 + 2 * pinCount):
            let entry = state.entries[Int(state.select - 0x10) >> 1]
            return UInt32(truncatingIfNeeded: state.select & 1 == 0 ? entry : entry >> 32)
        default: return 0
        }
    }

    /// Writes a register; 8-bit writes select, 32-bit writes go anywhere.
    public func write(offset: UInt64, size: Int, value: UInt64) {
        if offset == 0x40 { return endOfInterrupt(vector: UInt8(truncatingIfNeeded: value)) }
        state.withLock { state in
            switch offset {
            case 0x00: state.select = UInt8(truncatingIfNeeded: value)
            case 0x10 where size >= 4: writeIndexed(&state, value & 0xFFFF_FFFF)
            default: break
            }
        }
    }

    private func writeIndexed(_ state: inout State, _ value: UInt64) {
        switch state.select {
        case 0x00: state.id = UInt32(truncatingIfNeeded: value >> 24) & 15
        case 0x10..<UInt8(0x10 + 2 * Self.pinCount):
            let pin = Int(state.select - 0x10) >> 1
            var entry = state.entries[pin]
            if state.select & 1 == 0 {
                entry = (entry & 0xFFFF_FFFF_0000_5000) | (value & 0x1AFFF & ~0x1000)
            } else {
                entry = (entry & 0xFFFF_FFFF) | ((value & 0xFF00_0000) &<< 32)
            }
            if entry & Self.level == 0 { entry &= ~Self.remoteIRR } else { state.edges &= ~(UInt32(1) &<< UInt32(pin)) }
            state.entries[pin] = entry
            bus.host?.route(pin, Self.levelMessage(entry))
            service(&state, pin)
        default: break
        }
    }

    // MARK: State

    /// Takes the state.
    public func saveState() -> State { state.withLock { $0 } }

    /// Puts a state back.
    public func restoreState(_ new: State) throws {
        try requireVersion(new.version, 1, "I/O APIC")
        guard new.entries.count == Self.pinCount, new.levels >> 24 == 0, new.edges >> 24 == 0 else {
            throw StateError("I/O APIC: not \(Self.pinCount) pins")
        }
        state.withLock { $0 = new }
        announceRoutes()
    }
}
