// KVM's paravirtual clock.
//
// - Spec: Linux Documentation/virt/kvm/x86/msr.rst and cpuid.rst.
//
//   MSR 0x4B564D00, 0x11   wall clock: address of { version, seconds, nanoseconds }, 32 bits each, of guest time 0
//   MSR 0x4B564D01, 0x12   system time: address | 1 of the 32-byte record
//       +0  version (odd while it changes)   +8  TSC at the sample      +16 guest nanoseconds at the sample
//       +24 multiplier, 32.32 after the shift +28 shift, signed          +29 flags: 0 TSC stable
package import GuestMemory

/// How TSC ticks become nanoseconds: `((ticks << shift) * multiplier) >> 32`.
package struct ClockScale: Equatable, Sendable {
    /// Multiplier.
    package var multiplier: UInt32
    /// Shift, negative to the right.
    package var shift: Int8

    /// The scale of a counter with this frequency.
    package init(frequency: UInt64) {
        var scaled: UInt64 = 1_000_000_000
        var ticks = max(1, frequency)
        var shift: Int8 = 0
        while ticks > scaled &* 2 || ticks >> 32 != 0 {
            ticks >>= 1
            shift -= 1
        }
        while ticks <= scaled || scaled >> 32 != 0 {
            if scaled >> 32 != 0 || ticks & 0x8000_0000 != 0 { scaled >>= 1 } else { ticks <<= 1 }
            shift += 1
        }
        self.shift = shift
        multiplier = UInt32(truncatingIfNeeded: (scaled << 32) / ticks)
    }

    /// Nanoseconds of so many ticks, as the guest computes them.
    package func nanoseconds(_ ticks: UInt64) -> UInt64 {
        let shifted = shift < 0 ? ticks >> UInt64(-shift) : ticks << UInt64(shift)
        let product = shifted.multipliedFullWidth(by: UInt64(multiplier))
        return product.high << 32 | product.low >> 32
    }
}

/// The clock of one vCPU; only its thread touches it.
package struct KVMClock {
    /// Where the guest wants the record; nil while it is off.
    package private(set) var record: UInt64?
    private var systemTime: UInt64 = 0
    private var wallClock: UInt64 = 0
    private var version: UInt32 = 0
    private let memory: GuestMemory

    /// A clock that is off.
    package init(memory: GuestMemory) { self.memory = memory }

    /// Whether an MSR is one of the clock's.
    package static func owns(_ number: UInt32) -> Bool {
        number == 0x11 || number == 0x12 || number == 0x4B56_4D00 || number == 0x4B56_4D01
    }

    /// The two registers, as they move between engines.
    package struct Registers: Sendable, Equatable, Codable {
        /// 0x4B564D00.
        package var wallClock: UInt64 = 0
        /// 0x4B564D01.
        package var systemTime: UInt64 = 0
    }

    /// Both registers; setting them goes on with the guest's record as it stands.
    package var registers: Registers {
        get { Registers(wallClock: wallClock, systemTime: systemTime) }
        set {
            (wallClock, systemTime) = (newValue.wallClock, newValue.systemTime)
            record = systemTime & 1 != 0 ? systemTime & ~1 : nil
            guard let record, let old: UInt32 = try? memory.load(GuestPhysicalAddress(record)) else { return }
            version = (old &+ 1) & ~1
        }
    }

    /// Power-on state.
    package mutating func reset() { self = KVMClock(memory: memory) }

    /// RDMSR.
    package func read(_ number: UInt32) -> UInt64 { number & 0xFF == 0x01 || number == 0x12 ? systemTime : wallClock }

    /// WRMSR; the caller follows with `update` when this returns true.
    package mutating func write(_ number: UInt32, _ value: UInt64, now: UInt64, wallTime: UInt64) -> Bool {
        if number == 0x4B56_4D01 || number == 0x12 {
            systemTime = value
            record = value & 1 != 0 ? value & ~1 : nil
            return record != nil
        }
        wallClock = value
        let start = wallTime &- now
        var bytes: [UInt8] = []
        bytes.append(little: UInt32(2))
        bytes.append(little: UInt32(truncatingIfNeeded: start / 1_000_000_000))
        bytes.append(little: UInt32(truncatingIfNeeded: start % 1_000_000_000))
        try? memory.write(bytes, at: GuestPhysicalAddress(value & ~3))
        return false
    }

    /// Writes a new sample; an address outside RAM is ignored.
    package mutating func update(tsc: UInt64, now: UInt64, scale: ClockScale) {
        guard let record else { return }
        version = version &+ 2
        let address = GuestPhysicalAddress(record)
        guard memory.isRAM(address, length: 32) else { return }
        try? memory.store(version &- 1, at: address)
        try? memory.store(tsc, at: address + 8)
        try? memory.store(now, at: address + 16)
        try? memory.store(scale.multiplier, at: address + 24)
        try? memory.store(UInt8(bitPattern: scale.shift), at: address + 28)
        try? memory.store(UInt8(0), at: address + 29)
        try? memory.store(version, at: address)
    }
}
