// The kernel's commonest system instructions in line: CLI, STI, STAC, CLAC, SWAPGS, PUSHF.
internal import CHost

extension BlockTranslator {
    /// Whether a system instruction is emitted: in 64-bit code of CPL 0, where none of them can fault.
    func emitsSystem(_ p: Instruction) -> Bool {
        if options.stopsExactly && [.rdtsc, .rdtscp, .sti].contains(p.operation) { return false }
        // CR4.TSD may forbid user code the time: the interpreter looks.
        if p.operation == .rdtsc || p.operation == .rdtscp { return size64 && !options.exactFlags }
        if p.operation == .pushf { return size64 && p.operandSize == 8 }
        return size64 && modeKey & ModeKey.kernel != 0
    }

    mutating func emitSystem(_ n: Int) {
        losesFlags(before: n)
        switch instruction(n).pointee.operation {
        case .cli: code.arithmetic(4, StateOffset.rflags, ~0x200, wide: true)
        case .sti: emitSTI(n)
        case .stac: emitSTAC()
        case .clac: emitCLAC(n)
        case .swapgs:
            let gs = UInt8(ROOST_GS)
            code.load(scratch0, StateOffset.segmentBase(gs))
            code.load(scratch1, StateOffset.kernelGSBase)
            code.store(StateOffset.segmentBase(gs), scratch1)
            code.store(StateOffset.effectiveBase(gs), scratch1)
            code.store(StateOffset.kernelGSBase, scratch0)
        case .rdtsc, .rdtscp: emitRDTSC(n)
        default: emitPUSHF(n)
        }
    }

    /// Interrupts that wait are taken after the instruction that follows, if IF was clear. It ends its block.
    private mutating func emitSTI(_ n: Int) {
        let place = pageOffset + Int((first + n).pointee.endOffset)
        code.memory(0xF7, reg: 0, StateOffset.rflags)
        code.word32(0x200)
        let wasSet = code.jump(if: 5)
        code.arithmetic(1, StateOffset.rflags, 0x200, wide: true)
        code.compareByte(StateOffset.interruptWindow, 0)
        exits.append(Exit(jump: code.jump(if: 5), target: place, kind: .shadow))
        code.arithmetic(7, StateOffset.attention, 0, wide: false)
        exits.append(Exit(jump: code.jump(if: 5), target: place, kind: .shadow))
        goOnInShadow(to: place)
        code.patch(wasSet, to: code.count)
    }

    /// From the TLB that refuses user pages to the one that doesn't; without SMAP that one is in force already.
    private mutating func emitSTAC() {
        code.arithmetic(1, StateOffset.rflags, 0x4_0000, wide: true)
        if tlbContext == UInt32(ROOST_TLB_SUPERVISOR) { switchTLB(to: ROOST_TLB_SUPERVISOR_AC) }
    }

    /// The way on leads to the code of one context: where there is no SMAP, and the context stays, it isn't taken.
    private mutating func emitCLAC(_ n: Int) {
        if tlbContext == UInt32(ROOST_TLB_SUPERVISOR_AC) {
            code.memory(0xF7, reg: 0, StateOffset.cr4)
            code.word32(0x20_0000)
            addStub(code.jump(if: 4), n, .ends)
            switchTLB(to: ROOST_TLB_SUPERVISOR)
        }
        code.arithmetic(4, StateOffset.rflags, ~0x4_0000, wide: true)
    }

    private mutating func switchTLB(to context: Int32) {
        code.load(scratch0, StateOffset.tlb(context: context))
        code.store(StateOffset.tlb, scratch0)
        code.memory(0xC6, reg: 0, StateOffset.tlbContext)
        code.byte(UInt8(context))
        let change = Int32(tlbContext ^ UInt32(context)) << 8
        code.arithmetic(6, StateOffset.modeKey, change, wide: false)
        code.arithmetic(6, StateOffset.jumpKey, change, wide: false)
    }

    private mutating func emitRDTSC(_ n: Int) {
        if modeKey & ModeKey.kernel == 0 {
            code.memory(0xF7, reg: 0, StateOffset.cr4)
            code.word32(4)
            addStub(code.jump(if: 5), n)
        }
        // RDTSCP comes after what stands before it: LFENCE.
        if instruction(n).pointee.operation == .rdtscp { code.bytes(0x0F, 0xAE, 0xE8) }
        code.bytes(0x0F, 0x31)
        code.shift(4, 2, 32)
        code.registers(0x09, wide: true, reg: 2, rm: 0)
        code.memory(0x03, wide: true, reg: 0, StateOffset.tscOffset)
        code.move(2, 0)
        code.shift(5, 2, 32)
        code.registers(0x89, reg: 0, rm: 0)
        if instruction(n).pointee.operation == .rdtscp { code.memory(0x8B, reg: 1, StateOffset.tscAux) }
    }

    private mutating func emitPUSHF(_ n: Int) {
        probeStack(n, -8, size: 8, write: true)
        // LAHF and SETO's form to RFLAGS'.
        code.memory(0x8B, reg: scratch1, StateOffset.flags)
        code.registers(0x8B, reg: scratch2, rm: scratch1)
        code.shift(5, scratch2, 8, wide: false)
        code.arithmetic(4, scratch2, 0xD5, wide: false)
        code.arithmetic(4, scratch1, 1, wide: false)
        code.shift(4, scratch1, 11, wide: false)
        code.registers(0x09, wide: true, reg: scratch1, rm: scratch2)
        code.memory(0x0B, wide: true, reg: scratch2, StateOffset.rflags)
        code.arithmetic(4, scratch2, 0xFC_FFFF, wide: false)
        code.store(.base(scratch0, 0), scratch2)
        moveStack(by: -8)
    }
}
