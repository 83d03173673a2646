// x87 in translated code: as itself, on the host's registers, which hold the guest's while `x87_live`. All exceptions are
// masked then, so that the host never faults; what could change that, and the environments, are the interpreter's.
//
// The host's own FIP, FDP and FOP mean nothing to the guest: its pointers are kept in the XSAVE area meanwhile.
internal import CHost

extension BlockTranslator {
    /// What an instruction does besides arithmetic.
    private enum X87Kind {
        /// Sets the pointers.
        case arithmetic
        /// Leaves the pointers alone.
        case control
        case loadControl, initialize
        /// WAIT: with exceptions masked, nothing.
        case wait
        /// Not emitted.
        case other
    }

    private func kind(_ i: UnsafePointer<Instruction>) -> X87Kind {
        let opcode = i.pointee.opcode
        if opcode == 0x9B { return .wait }
        let row = InstructionTable.row(i.pointee.row)
        let reg = row.fixedModRM != 0 ? (row.fixedModRM >> 3) & 7 : i.pointee.reg & 7
        switch (opcode, reg, i.pointee.isMemory) {
        case (0xDB, 4, false): return row.fixedModRM == 0xE3 ? .initialize : .control
        case (0xDF, 4, false), (0xDD, 7, true), (0xD9, 7, true): return .control
        case (0xD9, 5, true): return .loadControl
        default: break
        }
        return i.pointee.isMemory && memorySize(i, row) == 0 ? .other : .arithmetic
    }

    func emitsX87(_ i: UnsafePointer<Instruction>) -> Bool { kind(i) != .other }

    /// Makes the host's x87 registers the guest's, once a block.
    mutating func needX87(_ n: Int) {
        if hasX87 { return }
        losesFlags(before: n)
        let i = first + n
        code.compareByte(StateOffset.x87Live, 0)
        let place = pageOffset + Int(i.pointee.endOffset) - Int(i.pointee.length)
        let jump = code.jump(if: 4)
        exits.append(Exit(jump: jump, target: place, kind: .x87(resume: code.count, index: n)))
        hasX87 = true
    }

    mutating func emitX87(_ n: Int) {
        let i = instruction(n)
        let row = InstructionTable.row(i.pointee.row)
        let kind = kind(i)
        needX87(n)
        if kind == .wait { return }
        let use = FlagUse.of(i)
        let reg = row.fixedModRM != 0 ? (row.fixedModRM >> 3) & 7 : i.pointee.reg & 7
        if i.pointee.isMemory {
            probeOperand(n, size: memorySize(i, row), write: row.attributes.contains(.memoryWrite))
            if kind == .loadControl { checkControl(n) }
            let operand = kind == .loadControl ? StateOffset.entry : .base(scratch0, 0)
            code.memory(i.pointee.opcode, reg: reg, operand)
        } else {
            writesFlags(n, use)
            code.registers(i.pointee.opcode, reg: reg, rm: row.fixedModRM != 0 ? row.fixedModRM & 7 : i.pointee.rm & 7)
            wroteFlags(use)
        }
        if kind == .arithmetic { setPointers(n) }
        if kind == .initialize { clearPointers() }
    }

    /// A control word that unmasks an exception is the interpreter's. Others may write to it meanwhile: what is checked is
    /// kept in `entry`, to be loaded from there.
    private mutating func checkControl(_ n: Int) {
        losesFlags(before: n)
        code.memory(0xB7, map: 1, reg: scratch1, .base(scratch0, 0))
        code.store(StateOffset.entry, scratch1)
        code.registers(0xF7, reg: 2, rm: scratch1)
        code.registers(0xF6, rex: true, reg: 0, rm: scratch1)
        code.byte(0x3F)
        addStub(code.jump(if: 5), n)
    }

    /// FOP, FIP and FDP as the interpreter sets them.
    private mutating func setPointers(_ n: Int) {
        let i = first + n
        let isReal = modeKey & ModeKey.real != 0
        if i.pointee.isMemory {
            loadOffset(address(i), addressSize: i.pointee.addressSize)
            if isReal { addBase(i.pointee.segment) }
            code.store(StateOffset.area(16), scratch0)
        }
        if isOverwritten(n) { return }
        code.memory(0xC7, prefix: 0x66, reg: 0, StateOffset.area(6))
        code.immediate(Int64(VCPU.lastOpcode(i, hasMemory: i.pointee.isMemory)), 2)
        loadRIP(scratch0, pageOffset + Int(i.pointee.endOffset) - Int(i.pointee.length))
        if isReal { addBase(UInt8(ROOST_CS)) }
        code.store(StateOffset.area(8), scratch0)
    }

    private mutating func addBase(_ segment: UInt8) {
        code.load(scratch1, StateOffset.segmentBase(segment))
        code.lea(scratch0, .indexed(scratch0, scratch1, 0, 0))
    }

    /// Whether the next instruction sets FOP and FIP before anyone can see them.
    private func isOverwritten(_ n: Int) -> Bool {
        if n + 1 >= count { return false }
        let next = first + n + 1
        return next.pointee.operation == .x87 && !next.pointee.isMemory && kind(next) == .arithmetic
    }

    private mutating func clearPointers() {
        code.memory(0xC7, prefix: 0x66, reg: 0, StateOffset.area(6))
        code.immediate(0, 2)
        for place in [8, 16] as [Int32] {
            code.memory(0xC7, wide: true, reg: 0, StateOffset.area(place))
            code.word32(0)
        }
    }
}
