// Where wires end: a global system interrupt reaches its I/O APIC pin and, below 16, its 8259 input.
// - Spec: ACPI 6.5 5.2.13; ISA IRQ 0 stands at GSI 2 (interrupt source override).
public import DeviceModel
internal import Synchronization

/// Routes wires to the interrupt controllers; several sources on one GSI are wired-OR.
public final class InterruptRouter: Saveable, Sendable {
    /// The level of each source of each GSI, in the order they were made.
    public struct State: Codable, Sendable {
        var version = 1
        var sources: [[Bool]] = Array(repeating: [], count: IOAPIC.pinCount)
    }

    private let state = Mutex(State())
    private let pic: PIC8259?
    private let ioapic: IOAPIC?

    /// Makes a router to the controllers that the board has.
    public init(pic: PIC8259?, ioapic: IOAPIC?) {
        self.pic = pic
        self.ioapic = ioapic
    }

    /// A new source on global system interrupt `gsi` (0 to 23). Make them in the same order on each start.
    public func line(gsi: Int) -> any InterruptLine {
        guard gsi >= 0, gsi < IOAPIC.pinCount else { return UnconnectedLine() }
        let source = state.withLock { state in
            state.sources[gsi].append(false)
            return state.sources[gsi].count - 1
        }
        return RoutedLine(router: self, gsi: gsi, source: source)
    }

    /// A new source on ISA interrupt `irq` (0 to 15): GSI `irq`, but 0 is GSI 2.
    public func line(isaIRQ irq: Int) -> any InterruptLine { line(gsi: irq == 0 ? 2 : irq) }

    /// Sets one source. Lock order: device, router, 8259 or I/O APIC.
    fileprivate func set(_ gsi: Int, _ source: Int, _ level: Bool) {
        state.withLock { state in
            guard state.sources[gsi][source] != level else { return }
            let others = state.sources[gsi].enumerated().contains { $0.offset != source && $0.element }
            state.sources[gsi][source] = level
            if others { return }
            ioapic?.set(pin: gsi, level)
            if gsi == 2 { pic?.set(irq: 0, level) } else if gsi != 0 && gsi < 16 { pic?.set(irq: gsi, level) }
        }
    }

    /// Takes the state.
    public func saveState() -> State { state.withLock { $0 } }

    /// Puts a state back; the controllers restore their own view of the wires.
    public func restoreState(_ new: State) throws {
        try requireVersion(new.version, 1, "interrupt router")
        try state.withLock { state in
            guard new.sources.map(\.count) == state.sources.map(\.count) else {
                throw StateError("interrupt router: other devices are connected")
            }
            state = new
        }
    }
}

/// One source's wire.
private struct RoutedLine: InterruptLine {
    let router: InterruptRouter
    let gsi: Int
    let source: Int

    func set(_ level: Bool) { router.set(gsi, source, level) }
}
