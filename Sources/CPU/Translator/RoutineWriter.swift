// The few routines that all translated code shares: the way in, the way out, the call of the interpreter, the jump table.
internal import CHost

/// Writes the common routines.
struct RoutineWriter {
    var code: HostAssembler

    private static let guestRegisters: [UInt8] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 13]
    private static let entry = Int32(MemoryLayout<roost_vcpu>.offset(of: \.entry) ?? 0)
    private static let own = Int32(MemoryLayout<roost_vcpu>.offset(of: \.self_) ?? 0)
    private static let jumpTable = Int32(MemoryLayout<roost_vcpu>.offset(of: \.jump_table) ?? 0)
    private static let jumpKey = Int32(MemoryLayout<roost_vcpu>.offset(of: \.jump_key) ?? 0)

    private mutating func loadRegisters() {
        for n in Self.guestRegisters { code.load(BlockTranslator.host(n) ?? 0, StateOffset.register(n)) }
    }

    private mutating func saveRegisters() {
        for n in Self.guestRegisters { code.store(StateOffset.register(n), BlockTranslator.host(n) ?? 0) }
    }

    /// The way in, a C function of the state block and the code; returns its position.
    mutating func writeEnter() -> Int {
        let start = code.count
        code.byte(0x53)  // push rbx
        code.byte(0x55)  // push rbp
        for n in 0x54...0x57 as ClosedRange<UInt8> {
            code.byte(0x41)
            code.byte(n)  // push r12 ... r15
        }
        code.registers(0x83, wide: true, reg: 5, rm: 4)  // sub rsp, 8
        code.byte(8)
        // wrgsbase rdi
        for byte in [0xF3, 0x48, 0x0F, 0xAE, 0xDF] as [UInt8] { code.byte(byte) }
        code.store(.state(Self.entry), 6)
        loadRegisters()
        code.memory(0xFF, reg: 4, .state(Self.entry))
        return start
    }

    private mutating func writeEpilogue() {
        code.registers(0x83, wide: true, reg: 0, rm: 4)  // add rsp, 8
        code.byte(8)
        for n in (0x5C...0x5F as ClosedRange<UInt8>).reversed() {
            code.byte(0x41)
            code.byte(n)  // pop r15 ... r12
        }
        code.byte(0x5D)
        code.byte(0x5B)
        code.byte(0xC3)
    }

    /// Calls a function with the state block, the instruction and what remains of its block.
    private mutating func callFunction(_ address: UInt64) {
        code.load(7, .state(Self.own))
        code.move(6, scratch0)
        code.move(2, scratch1)
        code.constant(0, address)
        code.registers(0xFF, reg: 2, rm: 0)
        code.registers(0x85, wide: true, reg: 0, rm: 0)  // test rax, rax
    }

    private typealias StepFunction =
        @convention(c) (UnsafeMutablePointer<roost_vcpu>, UnsafeRawPointer, Int) -> Int

    /// The other routines; positions are from `origin` on.
    mutating func writeCommon(origin: Int) -> CommonRoutines {
        let step: StepFunction = { translatedStep($0, $1, $2) }
        let stepAndEnd: StepFunction = { translatedStepAndEnd($0, $1, $2) }
        var common = CommonRoutines()

        common.leave = origin + code.count
        saveRegisters()
        code.registers(0x31, reg: 0, rm: 0)
        let epilogue = code.count
        writeEpilogue()

        common.step = origin + code.count
        saveRegisters()
        code.registers(0x83, wide: true, reg: 5, rm: 4)
        code.byte(8)
        callFunction(UInt64(UInt(bitPattern: unsafeBitCast(step, to: UnsafeRawPointer.self))))
        let leaves = code.jump(if: 5)
        code.registers(0x83, wide: true, reg: 0, rm: 4)
        code.byte(8)
        loadRegisters()
        code.byte(0xC3)
        code.patch(leaves, to: code.count)
        // Drop the alignment and the return address.
        code.registers(0x83, wide: true, reg: 0, rm: 4)
        code.byte(16)
        let toEpilogue = code.jump()
        code.patch(toEpilogue, to: epilogue)

        common.stepAndEnd = origin + code.count
        saveRegisters()
        callFunction(UInt64(UInt(bitPattern: unsafeBitCast(stepAndEnd, to: UnsafeRawPointer.self))))
        let ends = code.jump(if: 5)
        code.patch(ends, to: epilogue)
        loadRegisters()
        common.lookup = origin + code.count
        writeLookup(leave: common.leave - origin)
        return common
    }

    /// Jumps to the block at `rip` if the jump table has it, else leaves.
    private mutating func writeLookup(leave: Int) {
        code.load(scratch0, .state(StateOffset.rip))
        code.move(scratch1, scratch0)
        code.registers(0xC1, wide: true, reg: 5, rm: scratch1)
        code.byte(12)
        code.registers(0x31, wide: true, reg: scratch0, rm: scratch1)
        code.registers(0x81, reg: 4, rm: scratch1)
        code.word32(4095)
        code.registers(0xC1, wide: true, reg: 4, rm: scratch1)
        code.byte(5)
        code.memory(0x03, wide: true, reg: scratch1, .state(Self.jumpTable))
        code.memory(0x39, wide: true, reg: scratch0, .base(scratch1, 0))
        let unknown = code.jump(if: 5)
        code.patch(unknown, to: leave)
        code.load(scratch2, .state(Self.jumpKey))
        code.memory(0x39, wide: true, reg: scratch2, .base(scratch1, 8))
        let stale = code.jump(if: 5)
        code.patch(stale, to: leave)
        code.memory(0xFF, reg: 4, .base(scratch1, 16))
    }
}
