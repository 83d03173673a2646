// A pair of Intel 8259A programmable interrupt controllers (datasheet 231468), as in a PC, and the ELCR.
//
// ports 20, A0  W: ICW1 (4 init, 3 level, 1 single, 0 ICW4), OCW2 (7:5 rotate/specific/EOI, 2:0 level),
//                  OCW3 (6:5 special mask, 2 poll, 1:0 read IRR/ISR)
//               R: IRR, ISR or the poll byte
// ports 21, A1  R/W: IMR (OCW1); W after ICW1: ICW2 (vector base), ICW3 (cascade), ICW4 (4 nested, 1 auto EOI)
// ports 4D0, 4D1 ELCR R/W: level-triggered lines (0, 1, 2, 8 and 13 are always edges)
//
// - Quirk: an edge stays requested when its line falls before it is acknowledged, so that a pulse is never lost.
public import DeviceModel
internal import Synchronization

/// The two 8259s of a PC; inputs 0 to 15, one output to the processor or LINT0.
public final class PIC8259: BusDevice, Saveable {
    /// Both chips.
    public struct State: Codable, Sendable {
        var version = 1
        var primary = PICChip(alwaysEdge: 0x07)
        var secondary = PICChip(alwaysEdge: 0x21)
        var output = false
    }

    private let state = Mutex(State())
    private let output: any InterruptLine

    /// Makes the pair. `output` is the INTR wire: usually the bootstrap APIC's LINT0, see `LINT0Line`.
    public init(output: any InterruptLine) { self.output = output }

    /// Attaches ports 0x20, 0xA0 and 0x4D0.
    @discardableResult
    public func attach(to ports: Bus) -> Bool { ports.attachPorts(self, [(0x20, 2), (0xA0, 2), (0x4D0, 2)]) }

    /// Sets the level of input `irq` (0 to 15; 2 is the cascade and not an input).
    public func set(irq: Int, _ level: Bool) {
        guard irq >= 0, irq < 16, irq != 2 else { return }
        update { state in
            if irq < 8 { state.primary.set(irq, level) } else { state.secondary.set(irq & 7, level) }
        }
    }

    /// Whether INTR is up.
    public var hasInterrupt: Bool { state.withLock { $0.output } }

    /// The processor's INTA cycles: the vector to take; spurious (7 or 15) when the request is gone; nil when INTR is low.
    public func acknowledge() -> UInt8? {
        update { state in
            guard state.output else { return nil }
            guard let irq = state.primary.pending else { return state.primary.base | 7 }
            if irq != 2 || !state.primary.hasCascade {
                state.primary.take(irq)
                return state.primary.base | irq
            }
            state.primary.take(2)
            // The secondary chip's output drops during INTA: its next request is a new edge.
            state.primary.levels &= ~4
            guard let second = state.secondary.pending else { return state.secondary.base | 7 }
            state.secondary.take(second)
            return state.secondary.base | second
        }
    }

    /// Power-on reset; the wires keep their levels.
    public func reset() {
        update { state in
            state.primary.powerOn()
            state.secondary.powerOn()
        }
    }

    /// Changes the chips, carries the cascade and the output. The output's lock comes after ours.
    @discardableResult
    private func update<R: Sendable>(_ body: (inout State) -> R) -> R {
        state.withLock { state in
            let result = body(&state)
            if state.primary.hasCascade { state.primary.set(2, state.secondary.pending != nil) }
            let level = state.primary.pending != nil
            if level != state.output {
                state.output = level
                output.set(level)
            }
            return result
        }
    }

    // MARK: Ports (offsets are port numbers)

    /// Reads a port.
    public func read(offset: UInt64, size: Int) -> UInt64 {
        readByteWise(offset, size) { port in
            update { state in
                switch port {
                case 0x20: state.primary.readCommand()
                case 0x21: state.primary.readData()
                case 0xA0: state.secondary.readCommand()
                case 0xA1: state.secondary.readData()
                case 0x4D0: state.primary.levelTriggered
                case 0x4D1: state.secondary.levelTriggered
                default: 0xFF
                }
            }
        }
    }

    /// Writes a port.
    public func write(offset: UInt64, size: Int, value: UInt64) {
        writeByteWise(offset, size, value) { port, byte in
            update { state in
                switch port {
                case 0x20: state.primary.writeCommand(byte)
                case 0x21: state.primary.writeData(byte)
                case 0xA0: state.secondary.writeCommand(byte)
                case 0xA1: state.secondary.writeData(byte)
                case 0x4D0: state.primary.writeLevelTriggered(byte)
                case 0x4D1: state.secondary.writeLevelTriggered(byte)
                default: break
                }
            }
        }
    }

    // MARK: State

    /// Takes the state.
    public func saveState() -> State { state.withLock { $0 } }

    /// Puts a state back; the output's receiver restores its own level.
    public func restoreState(_ new: State) throws {
        try requireVersion(new.version, 1, "8259")
        state.withLock { $0 = new }
    }
}

/// The wire from the 8259 to a local APIC's LINT0.
public final class LINT0Line: InterruptLine {
    private let apic = Mutex<LocalAPIC?>(nil)

    /// A wire not yet connected: the 8259 and the APIC need each other.
    public init() {}

    /// Connects the wire, or with nil lets go of it (set-up and end only).
    public func connect(to new: LocalAPIC?) { apic.withLock { $0 = new } }

    /// Passes the level on.
    public func set(_ level: Bool) { apic.withLock { $0 }?.setLINT0(level) }
}

/// One 8259A.
struct PICChip: Codable, Sendable {
    var request: UInt8 = 0
    var levels: UInt8 = 0
    var mask: UInt8 = 0xFF
    var service: UInt8 = 0
    var base: UInt8 = 0
    /// The level with the highest priority.
    var first: UInt8 = 0
    var levelTriggered: UInt8 = 0
    let alwaysEdge: UInt8
    var readsService = false
    var polls = false
    var specialMask = false
    var specialNested = false
    var autoEnd = false
    var rotatesOnAutoEnd = false
    var allLevel = false
    var hasCascade = true
    /// The next initialization word that the data port takes: 0 (none), 2, 3, 4.
    var nextWord: UInt8 = 0
    var wantsWord4 = false

    init(alwaysEdge: UInt8) { self.alwaysEdge = alwaysEdge }

    mutating func powerOn() {
        let old = self
        self = PICChip(alwaysEdge: old.alwaysEdge)
        levels = old.levels
    }

    mutating func set(_ irq: Int, _ level: Bool) {
        let bit = UInt8(1) &<< UInt8(irq & 7)
        if allLevel || levelTriggered & bit != 0 {
            if level { request |= bit } else { request &= ~bit }
        } else if level && levels & bit == 0 {
            request |= bit
        }
        if level { levels |= bit } else { levels &= ~bit }
    }

    /// Steps from the highest priority to the first bit set; 8 if none.
    private func rank(_ bits: UInt8) -> UInt8 {
        let rotated = (bits &>> first) | (first == 0 ? 0 : bits &<< (8 &- first))
        return rotated == 0 ? 8 : UInt8(truncatingIfNeeded: rotated.trailingZeroBitCount)
    }

    /// The request to bring, if its priority exceeds what is in service.
    var pending: UInt8? {
        guard nextWord == 0 else { return nil }
        let wanted = rank(request & ~mask)
        guard wanted < 8 else { return nil }
        var busy = service
        if specialMask { busy &= ~mask }
        if specialNested { busy &= ~4 }
        return wanted < rank(busy) ? (wanted &+ first) & 7 : nil
    }

    mutating func take(_ irq: UInt8) {
        let bit = UInt8(1) &<< irq
        if autoEnd {
            if rotatesOnAutoEnd { first = (irq &+ 1) & 7 }
        } else {
            service |= bit
        }
        if !(allLevel || levelTriggered & bit != 0) { request &= ~bit }
    }

    mutating func readCommand() -> UInt8 { polls ? poll() : readsService ? service : request }

    mutating func readData() -> UInt8 { polls ? poll() : mask }

    /// Lines that become level-triggered show their level.
    mutating func writeLevelTriggered(_ value: UInt8) {
        let old = levelTriggered
        levelTriggered = value & ~alwaysEdge
        request |= levelTriggered & ~old & levels
    }

    /// The read after a poll command acknowledges.
    private mutating func poll() -> UInt8 {
        polls = false
        guard let irq = pending else { return 0 }
        take(irq)
        return 0x80 | irq
    }

    mutating func writeCommand(_ value: UInt8) {
        if value & 0x10 != 0 {
            initialize(value)
        } else if value & 0x08 != 0 {
            if value & 0x04 != 0 { polls = true }
            if value & 0x02 != 0 { readsService = value & 1 != 0 }
            if value & 0x40 != 0 { specialMask = value & 0x20 != 0 }
        } else {
            endOfInterrupt(value)
        }
    }

    private mutating func initialize(_ value: UInt8) {
        let old = self
        self = PICChip(alwaysEdge: old.alwaysEdge)
        levels = old.levels
        levelTriggered = old.levelTriggered
        request = old.levels & old.levelTriggered
        mask = 0
        allLevel = value & 8 != 0
        hasCascade = value & 2 == 0
        wantsWord4 = value & 1 != 0
        nextWord = 2
    }

    /// OCW2: bits 7:5 are rotate, specific, end of interrupt.
    private mutating func endOfInterrupt(_ value: UInt8) {
        let named = value & 7
        switch value >> 5 {
        case 0: rotatesOnAutoEnd = false
        case 4: rotatesOnAutoEnd = true
        case 1, 5:
            let rank = rank(service)
            guard rank < 8 else { return }
            let irq = (rank &+ first) & 7
            service &= ~(1 &<< irq)
            if value >> 5 == 5 { first = (irq &+ 1) & 7 }
        case 3: service &= ~(1 &<< named)
        case 6: first = (named &+ 1) & 7
        case 7:
            service &= ~(1 &<< named)
            first = (named &+ 1) & 7
        default: break
        }
    }

    mutating func writeData(_ value: UInt8) {
        switch nextWord {
        case 2:
            base = value & 0xF8
            nextWord = hasCascade ? 3 : wantsWord4 ? 4 : 0
        case 3: nextWord = wantsWord4 ? 4 : 0
        case 4:
            specialNested = value & 0x10 != 0
            autoEnd = value & 0x02 != 0
            nextWord = 0
        default: mask = value
        }
    }
}
