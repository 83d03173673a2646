// A local APIC whose registers an engine has, in the host's kernel: its state goes there and comes back as a page.
internal import DeviceModel
internal import Synchronization

/// A local APIC as its page of registers shows it, with what has no place there.
///
/// - Spec: SDM 3A 11.4.1, table 11-1: register n stands at offset n * 16.
public struct LocalAPICPage: Sendable, Equatable {
    /// The 64 registers.
    public var registers: [UInt32]
    /// IA32_APIC_BASE.
    public var base: UInt64
    /// IA32_TSC_DEADLINE.
    public var deadline: UInt64

    /// Makes one of its parts.
    public init(registers: [UInt32], base: UInt64, deadline: UInt64) {
        self.registers = registers
        self.base = base
        self.deadline = deadline
    }
}

extension LocalAPIC {
    /// Hands the registers to an engine: from now on only LINT0 is looked at here.
    public func lend() -> LocalAPICPage {
        let now = door.now
        return contents.withLock { contents in
            contents.isHosted = true
            contents.timer?.disarm()
            contents.isAnnounced = false
            return contents.page(now)
        }
    }

    /// Takes the registers back from an engine. `vector`, which it had handed out, is still to be delivered.
    public func takeBack(_ page: LocalAPICPage, undelivered vector: UInt8? = nil) {
        let now = door.now
        update { contents in
            contents.isHosted = false
            contents.isAnnounced = false
            contents.take(page, now)
            if let vector, contents.state.inService.contains(vector) {
                contents.state.inService.remove(vector)
                contents.state.request.insert(vector)
            }
        }
    }
}

extension LocalAPICContents {
    /// The page with the timer's count as it stands.
    func page(_ now: UInt64) -> LocalAPICPage {
        var registers = [UInt32](repeating: 0, count: 64)
        for n in 0..<64 where n != 0x30 && n != 0x31 {
            registers[n] = UInt32(truncatingIfNeeded: read(n, now) ?? 0)
        }
        registers[0x30] = UInt32(truncatingIfNeeded: state.command)
        registers[0x31] = UInt32(truncatingIfNeeded: state.command >> 32)
        return LocalAPICPage(
            registers: registers, base: state.base, deadline: timerMode == .deadline ? state.deadlineTSC : 0)
    }

    mutating func take(_ page: LocalAPICPage, _ now: UInt64) {
        guard page.registers.count == 64 else { return }
        let r = page.registers
        state.base = page.base
        state.id = isX2 ? r[2] : r[2] >> 24
        state.taskPriority = UInt8(truncatingIfNeeded: r[8])
        if !isX2 { (state.logicalDestination, state.destinationFormat) = (r[0xD] & 0xFF00_0000, r[0xE] | 0x0FFF_FFFF) }
        state.spurious = r[0xF] & 0x1FF
        state.inService = VectorSet(registers: r[0x10..<0x18])
        state.trigger = VectorSet(registers: r[0x18..<0x20])
        state.request = VectorSet(registers: r[0x20..<0x28])
        state.errors = r[0x28]
        state.newErrors = 0
        state.command = UInt64(r[0x30]) | UInt64(r[0x31]) << 32
        for n in 0..<6 { state.localVectors[n] = r[0x32 + n] & Self.localVectorMasks[n] }
        state.initialCount = r[0x38]
        state.divide = r[0x3E] & 0xB
        stopTimer()
        state.deadlineTSC = 0
        if timerMode == .deadline {
            state.deadlineTSC = page.deadline
            if page.deadline != 0 { armDeadline(now) }
        } else if r[0x38] != 0 && r[0x39] != 0 {
            let next = now &+ UInt64(r[0x39]) &* divisor
            state.timerStart = next &- period
            arm(at: next)
        }
    }
}

extension VectorSet {
    /// A set from the eight registers that show it.
    init(registers: ArraySlice<UInt32>) {
        self.init()
        for (index, word) in registers.enumerated() {
            for bit in 0..<32 where word & 1 << UInt32(bit) != 0 {
                insert(UInt8(truncatingIfNeeded: index * 32 + bit))
            }
        }
    }
}
