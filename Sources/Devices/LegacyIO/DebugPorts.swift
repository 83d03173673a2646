// One-register ports: power-on self-test code (80), debug console (E9), debug exit, reset control (CF9).
public import DeviceModel
internal import Synchronization

/// Port 0x80: the last code that firmware or a delay loop wrote.
public final class PostPort: BusDevice, Saveable {
    /// The code.
    public struct State: Codable, Sendable {
        var version = 1
        var code: UInt8 = 0
    }

    private let state = Mutex(State())

    /// Makes the port.
    public init() {}

    /// Attaches port 0x80.
    @discardableResult
    public func attach(to ports: Bus) -> Bool { ports.attach(self, at: 0x80, length: 1) }

    /// The last code.
    public var code: UInt8 { state.withLock { $0.code } }

    /// Reads the last code.
    public func read(offset: UInt64, size: Int) -> UInt64 { UInt64(code) }

    /// Keeps the code.
    public func write(offset: UInt64, size: Int, value: UInt64) {
        state.withLock { $0.code = UInt8(truncatingIfNeeded: value) }
    }

    /// Takes the state.
    public func saveState() -> State { state.withLock { $0 } }

    /// Puts a state back.
    public func restoreState(_ new: State) throws {
        try requireVersion(new.version, 1, "POST port")
        state.withLock { $0 = new }
    }
}

/// Port 0xE9: bytes written go to a log; reading 0xE9 tells that it is there (Bochs, QEMU `isa-debugcon`).
public final class DebugConsole: BusDevice, Saveable {
    /// Nothing to keep.
    public struct State: Codable, Sendable {
        var version = 1
    }

    private let output: @Sendable ([UInt8]) -> Void

    /// Makes the console; `output` gets what the guest writes, on its vCPU's thread.
    public init(output: @escaping @Sendable ([UInt8]) -> Void) { self.output = output }

    /// Attaches port 0xE9.
    @discardableResult
    public func attach(to ports: Bus) -> Bool { ports.attach(self, at: 0xE9, length: 1) }

    /// Reads 0xE9.
    public func read(offset: UInt64, size: Int) -> UInt64 { 0xE9 }

    /// Sends a byte.
    public func write(offset: UInt64, size: Int, value: UInt64) { output([UInt8(truncatingIfNeeded: value)]) }

    /// Takes the state.
    public func saveState() -> State { State() }

    /// Checks the version.
    public func restoreState(_ state: State) throws { try requireVersion(state.version, 1, "debug console") }
}

/// QEMU's `isa-debug-exit`: writing v ends Roost with status (v << 1) | 1.
public final class DebugExit: BusDevice, Saveable {
    /// Nothing to keep.
    public struct State: Codable, Sendable {
        var version = 1
    }

    private let power: any PowerControl

    /// Makes the port.
    public init(power: any PowerControl) { self.power = power }

    /// Attaches at `port`, four ports long.
    @discardableResult
    public func attach(to ports: Bus, port: UInt16) -> Bool {
        ports.attach(self, at: UInt64(port), length: min(4, 0x10000 - UInt64(port)))
    }

    /// Reads 0.
    public func read(offset: UInt64, size: Int) -> UInt64 { 0 }

    /// Asks for the end.
    public func write(offset: UInt64, size: Int, value: UInt64) {
        let bits: UInt64 = size >= 4 ? 0xFFFF_FFFF : size == 2 ? 0xFFFF : 0xFF
        power.request(.debugExit(status: Int32(truncatingIfNeeded: (value & bits) &<< 1 | 1)))
    }

    /// Takes the state.
    public func saveState() -> State { State() }

    /// Checks the version.
    public func restoreState(_ state: State) throws { try requireVersion(state.version, 1, "debug exit") }
}

/// Port 0xCF9, the reset control register of Intel chipsets: bit 1 system reset, bit 2 rising does it, bit 3 full.
///
/// The port lies inside the PCI configuration address register (0xCF8, 32 bits): only its byte accesses belong here, so
/// the owner of 0xCF8 hands them over.
public final class ResetControl: BusDevice, Saveable {
    /// The register.
    public struct State: Codable, Sendable {
        var version = 1
        var value: UInt8 = 0
    }

    private let state = Mutex(State())
    private let power: any PowerControl

    /// Makes the register.
    public init(power: any PowerControl) { self.power = power }

    /// Attaches port 0xCF9 by itself, on boards without 0xCF8.
    @discardableResult
    public func attach(to ports: Bus) -> Bool { ports.attach(self, at: 0xCF9, length: 1) }

    /// Reads the register.
    public func read(offset: UInt64, size: Int) -> UInt64 { UInt64(state.withLock { $0.value }) }

    /// Writes the register; bit 2 going up resets.
    public func write(offset: UInt64, size: Int, value: UInt64) {
        let new = UInt8(truncatingIfNeeded: value)
        let resets = state.withLock { state in
            let rises = new & 4 != 0 && state.value & 4 == 0
            state.value = new & 0x0A
            return rises
        }
        if resets { power.request(.reset) }
    }

    /// Takes the state.
    public func saveState() -> State { state.withLock { $0 } }

    /// Puts a state back.
    public func restoreState(_ new: State) throws {
        try requireVersion(new.version, 1, "reset control")
        state.withLock { $0 = new }
    }
}
