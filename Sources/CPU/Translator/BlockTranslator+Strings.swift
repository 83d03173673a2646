// REP MOVS and REP STOS in line where they are commonest: forwards, in 64-bit code, within a page. The host's own string
// instruction runs on the host's addresses; all else is the interpreter's.
internal import CHost

extension BlockTranslator {
    /// Whether a repeated string instruction is emitted.
    func emitsRepeated(_ p: Instruction) -> Bool {
        size64 && p.addressSize == 8 && p.segment < 4 && p.prefixes.contains(.rep)
            && (p.operation == .movs || p.operation == .stos)
    }

    mutating func emitRepeated(_ n: Int) {
        let p = (first + n).pointee
        let mark = stubs.count
        losesFlags(before: n)
        let shift: UInt8 = p.operandSize == 8 ? 3 : p.operandSize == 4 ? 2 : p.operandSize == 2 ? 1 : 0
        code.registers(0x85, wide: true, reg: 1, rm: 1)
        let nothing = code.jump(if: 4)
        code.memory(0xF7, reg: 0, StateOffset.rflags)
        code.word32(0x400)
        addStub(code.jump(if: 5), n)
        code.arithmetic(7, 1, 4096 >> Int32(shift))
        addStub(code.jump(if: 7), n)
        let moves = p.operation == .movs
        if moves { probeRun(n, 6, shift, index: scratch0, write: false) }
        probeRun(n, 7, shift, index: scratch1, write: true)
        let addend = table + 16
        code.memory(0x03, wide: true, reg: 7, .stateIndexed(scratch1, addend))
        if moves { code.memory(0x03, wide: true, reg: 6, .stateIndexed(scratch0, addend)) }
        code.byte(0xF3)
        if p.operandSize == 2 { code.byte(0x66) }
        if p.operandSize == 8 { code.byte(0x48) }
        code.byte((moves ? 0xA4 : 0xAA) | (p.operandSize == 1 ? 0 : 1))
        code.memory(0x2B, wide: true, reg: 7, .stateIndexed(scratch1, addend))
        if moves { code.memory(0x2B, wide: true, reg: 6, .stateIndexed(scratch0, addend)) }
        code.patch(nothing, to: code.count)
        complete(from: mark)
    }

    /// Finds the TLB entry (`index`, kept) of a run of RCX elements at a register; the run must be in one page.
    private mutating func probeRun(_ n: Int, _ register: HostRegister, _ shift: UInt8, index: HostRegister, write: Bool)
    {
        compareTag(linear: register, last: .indexed(register, 1, shift, -1), index: index, write: write)
        addStub(code.jump(if: 5), n)
    }
}
