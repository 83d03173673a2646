// Local APIC, xAPIC and x2APIC. SDM 3A chapter 11 (Advanced Programmable Interrupt Controller).
//
// MMIO offset (MSR 0x800 + offset / 16):
//   020 ID R           bits 31:24 (x2APIC: 31:0)
//   030 version R      7:0 version 0x14, 23:16 highest LVT 5
//   080 TPR R/W        7:0
//   0A0 PPR R          7:0
//   0B0 EOI W
//   0D0 LDR R/W        31:24 (x2APIC: R, 31:16 cluster, 15:0 one bit)
//   0E0 DFR R/W        31:28 F flat, 0 cluster (not in x2APIC)
//   0F0 SVR R/W        7:0 vector, 8 software enable
//   100-170 ISR R, 180-1F0 TMR R, 200-270 IRR R   32 vectors each
//   280 ESR R/W        5 send illegal vector, 6 received illegal vector, 7 illegal register
//   300/310 ICR R/W    7:0 vector, 10:8 mode, 11 logical, 14 assert, 15 level, 19:18 shorthand, 63:56 destination
//   320 timer, 330 thermal, 340 performance, 350 LINT0, 360 LINT1, 370 error R/W
//                      7:0 vector, 10:8 mode, 13 low active, 15 level, 16 masked, 18:17 timer mode
//   380 initial count R/W, 390 current count R, 3E0 divide R/W (bits 3, 1:0)
//   3F0 self IPI W     (x2APIC)
// MSR 0x01B IA32_APIC_BASE: 8 bootstrap, 10 x2APIC, 11 enabled, 35:12 base. MSR 0x6E0 IA32_TSC_DEADLINE.
//
// Locks: device, I/O APIC, local APIC, attention, in this order. IPIs and ends of interrupt leave after unlocking.
public import DeviceModel
internal import Synchronization

/// The interrupt controller of one vCPU.
///
/// - Quirk: the timer's input clock is 1 GHz; the registers stay at FEE0_0000 whatever base the guest writes.
public final class LocalAPIC: BusDevice, Saveable {
    /// What a vCPU is told.
    public enum Attention: Sendable, Equatable {
        /// `hasDeliverableInterrupt` is true.
        case interrupt
        /// A non-maskable interrupt is to be injected.
        case nonMaskable
        /// An INIT: the vCPU resets and waits for a start-up message. The APIC has reset itself.
        case initialize
        /// A start-up message: begin at `vector` << 12.
        case startup(vector: UInt8)
    }

    /// The APIC's whole state.
    public struct State: Codable, Sendable {
        var version = 1
        var id: UInt32
        var base: UInt64
        var taskPriority: UInt8 = 0
        var logicalDestination: UInt32 = 0
        var destinationFormat: UInt32 = 0xFFFF_FFFF
        var spurious: UInt32 = 0xFF
        var inService = VectorSet()
        var trigger = VectorSet()
        var request = VectorSet()
        var errors: UInt32 = 0
        var newErrors: UInt32 = 0
        var command: UInt64 = 0
        /// Timer, thermal, performance, LINT0, LINT1, error.
        var localVectors = SIMD8<UInt32>(repeating: 0x10000)
        var initialCount: UInt32 = 0
        var divide: UInt32 = 0
        var timerStart: UInt64 = 0
        var timerNext: UInt64?
        var deadlineTSC: UInt64 = 0
        var tscOffset: UInt64 = 0
        var lint0 = false
        var lint1 = false
        var externalLatched = false
    }

    let contents: Mutex<LocalAPICContents>
    private let bus: APICBus
    let door: any Door
    private let acknowledgeExternal: @Sendable () -> UInt8?

    /// Makes the APIC of a vCPU and puts it on the bus.
    ///
    /// `tscFrequency` is in Hz: the guest's time-stamp counter is `door.now * tscFrequency / 10^9 + tscOffset`.
    /// Where the vCPU counts otherwise, `timeStampCounter` reads its counter; it may take no device's lock.
    /// `acknowledgeExternal` asks the 8259 for its vector, called with no lock held. The first APIC (`isBootstrap`)
    /// starts in virtual-wire mode, LINT0 ExtINT and LINT1 NMI, as firmware leaves it.
    public init(
        id: UInt32, isBootstrap: Bool, bus: APICBus, door: any Door, tscFrequency: UInt64 = 1_000_000_000,
        timeStampCounter: (@Sendable () -> UInt64)? = nil,
        acknowledgeExternal: @escaping @Sendable () -> UInt8? = { nil }
    ) {
        self.bus = bus
        self.door = door
        self.acknowledgeExternal = acknowledgeExternal
        contents = Mutex(
            LocalAPICContents(
                id: id, isBootstrap: isBootstrap, tscFrequency: max(1_000_000, tscFrequency),
                timeStampCounter: timeStampCounter))
        let timer = door.makeTimer { [weak self] in self?.timerFired() }
        contents.withLock { $0.timer = timer }
        bus.add(self)
    }

    // MARK: What the vCPU's thread asks

    /// Sets who is told of new interrupts. Called from any thread with no lock of the APIC held.
    ///
    /// `.interrupt` comes once: again only after `acknowledge`, or after nothing was deliverable for a while.
    public func onAttention(_ body: @escaping @Sendable (Attention) -> Void) {
        contents.withLock { $0.attention = body }
    }

    /// Whether `acknowledge` would return a vector now.
    public var hasDeliverableInterrupt: Bool { contents.withLock { $0.isDeliverable } }

    /// Takes the highest deliverable interrupt: from the 8259 when LINT0 brings one, else IRR to ISR.
    public func acknowledge() -> UInt8? {
        let (external, vector) = contents.withLock { $0.acknowledge() }
        if external, let vector = acknowledgeExternal() { return vector }
        return external ? contents.withLock { $0.takeVector() } : vector
    }

    /// Whether an ExtINT from the 8259 would reach the vCPU: LINT0 is open, or the APIC is off altogether.
    public var acceptsExtINT: Bool { contents.withLock { $0.acceptsExternal } }

    /// CR8: bits 7:4 of the task priority.
    public var taskPriority: UInt8 {
        get { contents.withLock { $0.state.taskPriority &>> 4 } }
        set { update { $0.state.taskPriority = newValue &<< 4 } }
    }

    /// APIC identifier.
    public var id: UInt32 { contents.withLock { $0.state.id } }

    /// Priority class that interrupts must exceed.
    public var processorPriority: UInt8 { contents.withLock { $0.processorPriority } }

    /// SVR bit 8.
    public var isSoftwareEnabled: Bool { contents.withLock { $0.isEnabled } }

    /// IA32_APIC_BASE.
    public var base: UInt64 { contents.withLock { $0.state.base } }

    /// The vCPU's time-stamp counter was written: it now reads `door.now * frequency / 10^9 + offset`.
    public func setTSCOffset(_ offset: UInt64) {
        let now = door.now
        update {
            $0.state.tscOffset = offset
            if !$0.isHosted, $0.timerMode == .deadline, $0.state.deadlineTSC != 0 { $0.armDeadline(now) }
        }
    }

    /// Power-on reset.
    public func reset() { contents.withLock { $0.reset(keepBase: false) } }

    // MARK: Wires and messages

    /// LINT0: the 8259's output.
    public func setLINT0(_ level: Bool) { update { $0.setLINT(3, level) } }

    /// LINT1: the board's non-maskable interrupt.
    public func setLINT1(_ level: Bool) { update { $0.setLINT(4, level) } }

    /// Takes a message meant for this APIC; false when it is off and drops it.
    @discardableResult
    public func accept(_ message: InterruptMessage) -> Bool {
        var taken = false
        update { taken = $0.accept(message) }
        return taken
    }

    func matches(_ message: InterruptMessage) -> Bool { contents.withLock { $0.matches(message) } }

    private func timerFired() {
        let now = door.now
        update { $0.timerFired(now) }
    }

    // MARK: Registers

    /// Memory-mapped read; registers are 32 bits wide at multiples of 16.
    public func read(offset: UInt64, size: Int) -> UInt64 {
        let now = door.now
        return contents.withLock { contents in
            guard contents.isMemoryMapped, offset < 0x1000 else { return 0xFFFF_FFFF }
            guard offset & 15 < 4 else { return 0 }
            guard let value = contents.read(Int(offset >> 4), now) else {
                contents.newError(1 << 7)
                return 0
            }
            return (value & 0xFFFF_FFFF) &>> ((offset & 3) &* 8)
        }
    }

    /// Memory-mapped write; only aligned 32-bit writes count.
    public func write(offset: UInt64, size: Int, value: UInt64) {
        guard offset & 15 == 0, size >= 4, offset < 0x1000 else { return }
        let now = door.now
        perform { contents in
            guard contents.isMemoryMapped else { return LocalAPICOutcome() }
            let outcome = contents.write(Int(offset >> 4), value & 0xFFFF_FFFF, now)
            if outcome.isFault { contents.newError(1 << 7) }
            return outcome
        }
    }

    /// RDMSR of 0x1B, 0x6E0 or 0x800-0x8FF; nil is #GP(0).
    public func readMSR(_ number: UInt32) -> UInt64? {
        let now = door.now
        return contents.withLock { contents -> UInt64? in
            switch number {
            case 0x1B: return contents.state.base
            case 0x6E0: return contents.timerMode == .deadline ? contents.state.deadlineTSC : 0
            case 0x800...0x8FF:
                let index = Int(number) - 0x800
                guard contents.isX2 else { return nil }
                switch index {
                case 0x09, 0x0B, 0x0C, 0x0E, 0x31, 0x3F: return nil
                case 0x30: return contents.state.command
                default: return contents.read(index, now)
                }
            default: return nil
            }
        }
    }

    /// WRMSR of 0x1B, 0x6E0 or 0x800-0x8FF; false is #GP(0).
    public func writeMSR(_ number: UInt32, _ value: UInt64) -> Bool {
        let now = door.now
        return perform { contents in
            switch number {
            case 0x1B: return LocalAPICOutcome(isFault: !contents.writeBase(value))
            case 0x6E0:
                contents.writeDeadline(value, now)
                return LocalAPICOutcome()
            case 0x800...0x8FF:
                guard contents.isX2 else { return LocalAPICOutcome(isFault: true) }
                return contents.writeX2(Int(number) - 0x800, value, now)
            default: return LocalAPICOutcome(isFault: true)
            }
        }
    }

    // MARK: After unlocking

    func update(_ body: (inout LocalAPICContents) -> Void) {
        perform { contents in
            body(&contents)
            return LocalAPICOutcome()
        }
    }

    /// Changes the contents, then, unlocked, sends what came of it. False if the access faults.
    @discardableResult
    private func perform(_ body: (inout LocalAPICContents) -> LocalAPICOutcome) -> Bool {
        let (outcome, notices, attention) = contents.withLock { contents in
            let outcome = body(&contents)
            return (outcome, contents.takeNotices(), contents.attention)
        }
        if let vector = outcome.ended { bus.endOfInterrupt(vector: vector) }
        if let attention { notices.tell(attention) }
        switch outcome.target {
        case .none: break
        case .own: accept(outcome.message)
        case .everyone: bus.deliver(outcome.message)
        case .others: bus.deliver(outcome.message, excluding: self)
        case .addressed: bus.deliver(outcome.message)
        }
        return !outcome.isFault
    }

    // MARK: State

    /// Takes the state.
    public func saveState() -> State { contents.withLock { $0.state } }

    /// Puts a state back and arms the timer.
    public func restoreState(_ state: State) throws {
        try requireVersion(state.version, 1, "local APIC")
        update {
            $0.state = state
            $0.isAnnounced = false
            if let next = state.timerNext { $0.timer?.arm(at: next) } else { $0.timer?.disarm() }
        }
    }
}

/// A set of interrupt vectors.
struct VectorSet: Codable, Sendable, Equatable {
    private var words = SIMD4<UInt64>()

    var highest: UInt8? {
        for index in (0..<4).reversed() where words[index] != 0 {
            return UInt8(truncatingIfNeeded: index * 64 + 63 - words[index].leadingZeroBitCount)
        }
        return nil
    }

    func contains(_ vector: UInt8) -> Bool { words[Int(vector >> 6)] & (1 &<< UInt64(vector & 63)) != 0 }
    mutating func insert(_ vector: UInt8) { words[Int(vector >> 6)] |= 1 &<< UInt64(vector & 63) }
    mutating func remove(_ vector: UInt8) { words[Int(vector >> 6)] &= ~(1 &<< UInt64(vector & 63)) }

    /// 32 vectors as a register shows them.
    func register(_ index: Int) -> UInt64 {
        (words[(index & 7) >> 1] &>> UInt64((index & 1) * 32)) & 0xFFFF_FFFF
    }
}
