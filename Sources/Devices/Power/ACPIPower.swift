// ACPI fixed hardware: PM1a event and control registers and the power-management timer. ACPI 6.5 chapter 4.8.
//
// block at port 600:
//   0 PM1_STS R/W1C (16)  0 timer, 5 global lock, 8 power button, 9 sleep button, 10 RTC, 15 wake
//   2 PM1_EN R/W (16)     0 timer, 5 global lock, 8 power button, 9 sleep button, 10 RTC
//   4 PM1_CNT R/W (16)    0 SCI_EN, 12:10 SLP_TYP, 13 SLP_EN W
//   8 PM_TMR R (32)       3.579545 MHz
// SCI: GSI 9, level.
public import DeviceModel
internal import Synchronization

/// The power-management block: soft-off, power button and timer.
public final class ACPIPower: BusDevice, Saveable {
    /// First port of the block, for the FADT.
    public static let port: UInt16 = 0x600
    /// Ports in the block.
    public static let length: UInt16 = 12
    /// Offset of PM1_CNT from `port`.
    public static let controlOffset: UInt16 = 4
    /// Offset of PM_TMR from `port`.
    public static let timerOffset: UInt16 = 8
    /// GSI of the system control interrupt.
    public static let interrupt = 9
    /// SLP_TYP of S5, for the DSDT's `_S5_`.
    public static let softOffType: UInt8 = 5
    /// The timer's frequency in Hz.
    public static let timerFrequency: UInt64 = 3_579_545

    /// The block's whole state.
    public struct State: Codable, Sendable {
        var version = 1
        var status: UInt16 = 0
        var enable: UInt16 = 0
        /// There is no system management mode to hand over from: SCI_EN is always set.
        var control: UInt16 = 1
        /// Guest time at which the timer's top bit next changes, while its interrupt is enabled.
        var nextOverflow: UInt64?
    }

    private struct Contents {
        var state = State()
        var level = false
        var timer: (any DoorTimer)?
    }

    private let contents = Mutex(Contents())
    private let door: any Door
    private let line: any InterruptLine
    private let power: any PowerControl

    /// Makes the block; `line` is the SCI.
    public init(door: any Door, line: any InterruptLine, power: any PowerControl) {
        self.door = door
        self.line = line
        self.power = power
        let timer = door.makeTimer { [weak self] in self?.timerFired() }
        contents.withLock { $0.timer = timer }
    }

    /// Attaches the block at port 0x600.
    @discardableResult
    public func attach(to ports: Bus) -> Bool {
        ports.attach(self, at: UInt64(Self.port), length: UInt64(Self.length))
    }

    /// The power button was pressed (admitted through the door by the caller).
    public func pressPowerButton() { update { $0.state.status |= 0x100 } }

    /// Power-on reset.
    public func reset() {
        update { contents in
            contents.state = State()
            contents.timer?.disarm()
        }
    }

    private func update(_ body: (inout Contents) -> Void) {
        contents.withLock { contents in
            body(&contents)
            let level = contents.state.status & contents.state.enable & 0x0721 != 0
            if level != contents.level {
                contents.level = level
                line.set(level)
            }
        }
    }

    private func ticks(_ now: UInt64) -> UInt64 { scale(now, by: Self.timerFrequency, over: 1_000_000_000) }

    /// Arms the timer for the next change of bit 31.
    private func schedule(_ contents: inout Contents, _ now: UInt64) {
        guard contents.state.enable & 1 != 0 else {
            contents.state.nextOverflow = nil
            contents.timer?.disarm()
            return
        }
        let next = scale((ticks(now) >> 31 &+ 1) &<< 31, by: 1_000_000_000, over: Self.timerFrequency) &+ 1
        contents.state.nextOverflow = next
        contents.timer?.arm(at: next)
    }

    private func timerFired() {
        let now = door.now
        update { contents in
            guard let next = contents.state.nextOverflow else { return }
            if next <= now { contents.state.status |= 1 }
            schedule(&contents, now)
        }
    }

    // MARK: Registers

    /// Reads a register.
    public func read(offset: UInt64, size: Int) -> UInt64 {
        if offset >= 8 {
            return (ticks(door.now) & 0xFFFF_FFFF) &>> ((offset & 3) &* 8)
        }
        let all = contents.withLock { contents in
            UInt64(contents.state.status) | UInt64(contents.state.enable) &<< 16
                | UInt64(contents.state.control) &<< 32
        }
        let bits: UInt64 = size >= 4 ? 0xFFFF_FFFF : size == 2 ? 0xFFFF : 0xFF
        return all &>> ((offset & 7) &* 8) & bits
    }

    /// Writes a register, in bytes or words.
    public func write(offset: UInt64, size: Int, value: UInt64) {
        guard offset < 8 else { return }
        let now = door.now
        var sleeps = false
        update { contents in
            writeByteWise(offset, size, value) { register, byte in
                let shift = UInt16(truncatingIfNeeded: (register & 1) &* 8)
                let bits = UInt16(byte) &<< shift
                let kept = ~(UInt16(0xFF) &<< shift)
                switch register & ~1 {
                case 0: contents.state.status &= ~bits
                case 2: contents.state.enable = (contents.state.enable & kept | bits) & 0x0721
                case 4:
                    contents.state.control = (contents.state.control & kept | bits) & 0x1C06 | 1
                    if bits & 0x2000 != 0 { sleeps = true }
                default: break
                }
            }
            if contents.state.control >> 10 & 7 != UInt16(Self.softOffType) { sleeps = false }
            if contents.state.enable & 1 != 0 || contents.state.nextOverflow != nil { schedule(&contents, now) }
        }
        if sleeps { power.request(.powerOff) }
    }

    // MARK: State

    /// Takes the state.
    public func saveState() -> State { contents.withLock { $0.state } }

    /// Puts a state back and arms the timer.
    public func restoreState(_ state: State) throws {
        try requireVersion(state.version, 1, "ACPI power block")
        contents.withLock { contents in
            contents.state = state
            contents.level = state.status & state.enable & 0x0721 != 0
            if let next = state.nextOverflow { contents.timer?.arm(at: next) } else { contents.timer?.disarm() }
        }
    }
}
