// The watchdog timer of Intel's 6300ESB. 6300ESB I/O Controller Hub datasheet (300641), chapter 15.
//
// PCI 8086:25AB
//
//   60 configuration R/W (16)  1:0 interrupt type   2 clock: 0 33 MHz / 2^15, 1 33 MHz / 2^5   5 no reset at the end
//   68 lock R/W (8)            0 locked until the next reset   1 runs   2 free-running: the first stage begins again at its end
//
// BAR 0, 16 bytes of memory; a write counts after 80 and 86 were written to 0C
//
//   00 first stage R/W (20)    04 second stage R/W (20)
//   08 interrupt status W1C    0C reload (16): 8 begins the first stage anew W, 9 a timeout has happened R/W1C
public import DeviceModel
internal import Synchronization

/// A watchdog: a guest that doesn't begin it anew in time is reset, or whatever `expired` does.
public final class Watchdog: PCIDevice, Saveable {
    private static let clock: UInt64 = 33_000_000

    /// The watchdog's whole state.
    public struct State: Codable, Sendable {
        var version = 1
        var function: PCIFunction.State?
        var stages: [UInt32] = [0xF_FFFF, 0xF_FFFF]
        /// The stage that runs, 0 or 1; nil while it is stopped.
        var stage: Int?
        /// The first stage is the only one, again and again; with no interrupt of its own nothing comes of that.
        var isFree = false
        /// Guest time at which that stage ends.
        var deadline: UInt64 = 0
        /// How much of 80, 86 has been written.
        var unlocking = 0
        var isLocked = false
        /// A timeout has happened; it outlives the reset that it causes.
        var hasExpired = false
    }

    private struct Contents {
        var state = State()
        var timer: (any DoorTimer)?
        /// Whether it has expired since the last reset.
        var isTold = false
    }

    private static let configuration = 0x60
    private static let lock = 0x68

    /// The PCI function.
    public let function: PCIFunction
    private let door: any Door
    private let expired: @Sendable (Bool) -> Void
    private let contents = Mutex(Contents())

    /// Makes a watchdog; `expired` is called on the door's timer thread, with whether it is the first time since a reset.
    public init(door: any Door, expired: @escaping @Sendable (Bool) -> Void) {
        self.door = door
        self.expired = expired
        function = PCIFunction(
            PCIIdentity(
                vendor: 0x8086, device: 0x25AB, classCode: 0x08_80_00, subsystemVendor: 0x1AF4, subsystem: 0x1100))
        let timer = door.makeTimer { [weak self] in self?.stageEnded() }
        contents.withLock { $0.timer = timer }
        function.addBAR(0, .memory32, size: 16, device: Registers(self))
        function.addRegister(Self.configuration, writable: [0x27, 0x00]) {}
        function.addRegister(Self.lock, writable: [0x07]) { [weak self] in self?.lockWritten() }
    }

    private final class Registers: BusDevice {
        private let owner = Mutex(WeakWatchdog())
        init(_ watchdog: Watchdog) { owner.withLock { $0.watchdog = watchdog } }
        func read(offset: UInt64, size: Int) -> UInt64 { owner.withLock { $0.watchdog }?.read(offset) ?? 0 }
        func write(offset: UInt64, size: Int, value: UInt64) { owner.withLock { $0.watchdog }?.write(offset, value) }
    }

    private struct WeakWatchdog: Sendable { weak var watchdog: Watchdog? }

    // MARK: Registers

    private func lockWritten() {
        let wanted = UInt8(truncatingIfNeeded: function.readConfig(Self.lock, size: 1))
        let kept = contents.withLock { contents -> UInt8 in
            guard !contents.state.isLocked else {
                return 1 | (contents.state.stage == nil ? 0 : 2) | (contents.state.isFree ? 4 : 0)
            }
            contents.state.isLocked = wanted & 1 != 0
            let wasFree = contents.state.isFree
            contents.state.isFree = wanted & 4 != 0
            if wanted & 2 == 0 {
                contents.state.stage = nil
                contents.timer?.disarm()
            } else if contents.state.stage == nil || contents.state.isFree != wasFree {
                begin(0, &contents)
            }
            return wanted
        }
        function.setRegister(Self.lock, kept)
    }

    private func read(_ offset: UInt64) -> UInt64 {
        offset == 0x0C && contents.withLock { $0.state.hasExpired } ? 0x200 : 0
    }

    private func write(_ offset: UInt64, _ value: UInt64) {
        contents.withLock { contents in
            switch (offset, value, contents.state.unlocking) {
            case (0x0C, 0x80, _): contents.state.unlocking = 1
            case (0x0C, 0x86, 1): contents.state.unlocking = 2
            case (0x00, _, 2), (0x04, _, 2):
                contents.state.stages[offset == 0 ? 0 : 1] = UInt32(truncatingIfNeeded: value & 0xF_FFFF)
                contents.state.unlocking = 0
            case (0x0C, _, 2):
                if value & 0x200 != 0 { contents.state.hasExpired = false }
                if value & 0x100 != 0, contents.state.stage != nil { begin(0, &contents) }
                contents.state.unlocking = 0
            default: contents.state.unlocking = 0
            }
        }
    }

    // MARK: Time

    private func begin(_ stage: Int, _ contents: inout Contents) {
        let isFast = function.readConfig(Self.configuration, size: 2) & 4 != 0
        let ticks = UInt64(contents.state.stages[stage]) << (isFast ? 5 : 15)
        contents.state.stage = stage
        contents.state.deadline = door.now &+ scale(ticks, by: 1_000_000_000, over: Self.clock)
        contents.timer?.arm(at: contents.state.deadline)
    }

    private func stageEnded() {
        let resets = function.readConfig(Self.configuration, size: 2) & 0x20 == 0
        let isFirst = contents.withLock { contents -> Bool? in
            guard let stage = contents.state.stage, contents.state.deadline <= door.now else { return nil }
            if contents.state.isFree { return nil }
            if stage == 0 {
                begin(1, &contents)
                return nil
            }
            contents.state.stage = nil
            contents.state.hasExpired = true
            guard resets else { return nil }
            defer { contents.isTold = true }
            return !contents.isTold
        }
        if let isFirst { expired(isFirst) }
    }

    /// Stops; that a timeout has happened stays known.
    public func resetDevice() {
        contents.withLock { contents in
            let hasExpired = contents.state.hasExpired
            contents.state = State()
            contents.state.hasExpired = hasExpired
            contents.isTold = false
            contents.timer?.disarm()
        }
    }

    // MARK: State

    /// Takes the state.
    public func saveState() -> State {
        var state = contents.withLock { $0.state }
        state.function = function.saveState()
        return state
    }

    /// Puts a state back and arms the timer.
    public func restoreState(_ state: State) throws {
        try requireVersion(state.version, 1, "watchdog")
        guard state.stages.count == 2, state.stages.allSatisfy({ $0 <= 0xF_FFFF }), (0...1).contains(state.stage ?? 0),
            let saved = state.function
        else { throw StateError("watchdog: the saved state can't be") }
        try function.restoreState(saved)
        contents.withLock { contents in
            contents.state = state
            contents.state.function = nil
            if state.stage != nil { contents.timer?.arm(at: state.deadline) } else { contents.timer?.disarm() }
        }
    }
}
