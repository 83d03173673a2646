// The instructions that are emitted as host code: mostly as themselves, their operands redirected.
internal import CHost

extension BlockTranslator {
    /// Whether instruction `n` is emitted as host code.
    func emits(_ n: Int) -> Bool {
        let p = (first + n).pointee
        let high = p.operandSize == 1 && (p.reg >= 16 || (p.rm >= 16 && p.rm != Instruction.none))
        switch p.operation {
        case .jcc, .jmp, .call, .ret, .retImmediate, .jmpIndirect, .callIndirect, .loop, .jcxz: return emitsBranch(p)
        case .add, .or, .adc, .sbb, .and, .sub, .xor, .cmp, .test:
            // The register that holds a redirected address needs REX, which AH and its kin exclude.
            return !(high && (p.isMemory || usesExtended(p)))
        case .mov:
            if p.form == .offsetLoad || p.form == .offsetStore { return false }
            return !(high && (p.isMemory || usesExtended(p)))
        case .movzx, .movsx: return !(p.rm >= 16 && p.rm != Instruction.none && (p.reg & 15 >= 4))
        case .inc, .dec, .neg, .not: return !(high && usesExtended(p))
        case .setcc: return !high
        case .lea: return true
        case .imul2, .cmovcc, .bsf, .bsr, .tzcnt, .lzcnt, .popcnt, .movnti: return true
        case .rol, .ror, .rcl, .rcr, .shl, .shr, .sar: return !high
        case .shld, .shrd: return true
        case .mul, .imul, .div, .idiv: return p.operandSize >= 4
        case .bt, .bts, .btr, .btc: return p.form == .rmImmediate || !p.isMemory || p.operandSize >= 4
        case .bswap: return p.operandSize != 2
        case .cbw, .cwd, .nop, .prefetch, .pause, .fence, .clc, .stc, .cmc, .cld, .std, .sahf: return true
        case .lahf: return true
        case .leave: return p.operandSize == stackSize && p.operandSize >= 4
        case .push, .pop: return emitsStack(p)
        case .xchg: return !high
        case .xadd, .cmpxchg: return !high
        case .andn, .bextr, .bzhi, .blsi, .blsmsk, .blsr, .mulx, .pdep, .pext, .rorx, .sarx, .shlx, .shrx, .adcx, .adox,
            .movbe, .crc32:
            return emitsNamed(p)
        case .sse, .avx, .mmx: return emitsVector(first + n)
        case .x87: return emitsX87(first + n)
        case .cli, .sti, .stac, .clac, .swapgs, .pushf, .rdtsc, .rdtscp: return emitsSystem(p)
        case .cmpxchg8b, .cmpxchg16b: return p.isMemory
        case .verw:
            // Linux uses it for what it does to buffers of the processor: where nothing reads ZF, it is a load.
            return size64 && p.isMemory && !options.exactFlags && !wanted[n + 1].contains(.zero)
        default: return false
        }
    }

    /// A guest register among the operands needs a host register above RDI.
    private func usesExtended(_ p: Instruction) -> Bool {
        func extended(_ n: UInt8) -> Bool { n < 16 && (n == 4 || n >= 8) }
        return (p.rm != Instruction.none && extended(p.rm)) || (p.form != .rmImmediate && extended(p.reg))
    }

    /// Emits instruction `n` (not a branch).
    mutating func emit(_ n: Int) {
        let i = instruction(n)
        guard emits(n) else { return callInterpreter(n) }
        let mark = stubs.count
        switch i.pointee.operation {
        case .add, .or, .adc, .sbb, .and, .sub, .xor, .cmp, .test: emitArithmetic(n)
        case .mov, .movnti: emitMove(n)
        case .movzx, .movsx: emitExtend(n)
        case .lea: emitLea(n)
        case .inc, .dec, .neg, .not, .setcc, .mul, .imul: emitUnary(n)
        case .div, .idiv: emitDivide(n)
        case .rol, .ror, .rcl, .rcr, .shl, .shr, .sar: emitShift(n)
        case .imul2, .cmovcc, .bsf, .bsr, .tzcnt, .lzcnt, .popcnt: emitToRegister(n)
        case .shld, .shrd, .bt, .bts, .btr, .btc, .xadd, .cmpxchg: emitToMemory(n)
        case .xchg: emitExchange(n)
        case .push, .pop: emitStack(n)
        case .leave: emitLeave(n)
        case .andn, .bextr, .bzhi, .blsi, .blsmsk, .blsr, .mulx, .pdep, .pext, .rorx, .sarx, .shlx, .shrx, .adcx, .adox,
            .movbe, .crc32:
            emitNamed(n)
        case .sse, .avx, .mmx: emitVector(n)
        case .x87: emitX87(n)
        case .cli, .sti, .stac, .clac, .swapgs, .pushf, .rdtsc, .rdtscp: emitSystem(n)
        case .cmpxchg8b, .cmpxchg16b: emitCompareExchangeDouble(n)
        case .verw: probeOperand(n, size: 2, write: false)
        default: emitPlain(n)
        }
        complete(from: mark)
    }

    // MARK: Encoding helpers

    private func prefix(_ i: UnsafePointer<Instruction>) -> UInt8 { i.pointee.operandSize == 2 ? 0x66 : 0 }

    private func needsREX(_ i: UnsafePointer<Instruction>, _ n: UInt8) -> Bool {
        i.pointee.operandSize == 1 && n >= 4 && n < 16
    }

    /// The register as it is encoded: AH to BH as 4 to 7 without REX.
    private func encoded(_ n: HostRegister) -> HostRegister { n >= 16 ? n - 12 : n }

    /// Emits `op` with register operand `reg` (encoded) and the r/m operand; `reads`: the r/m's old value matters.
    private mutating func withRM(
        _ n: Int, _ op: UInt8, map: UInt8 = 0, extra: UInt8 = 0, reg: HostRegister, byteReg: UInt8 = 0, reads: Bool,
        writes: Bool,
        use: FlagUse, size: Int? = nil, immediate: (Int64, Int)? = nil
    ) {
        let i = instruction(n)
        let size = size ?? Int(i.pointee.operandSize)
        let wide = i.pointee.operandSize == 8
        let lead = extra != 0 ? extra : prefix(i)
        if extra != 0 && i.pointee.operandSize == 2 { /* 66 comes before F3 */  }
        let rex = needsREX(i, byteReg) || (size == 1 && i.pointee.rm >= 4 && i.pointee.rm < 8)
        if i.pointee.rm == Instruction.none {
            probeOperand(n, size: size, write: writes)
            let held = holdRegister(reg, i)
            writesFlags(n, use, by: scratch2)
            if extra != 0 && i.pointee.operandSize == 2 { code.byte(0x66) }
            code.memory(
                op, map: map, prefix: lead, lock: i.pointee.prefixes.contains(.lock), wide: wide, rex: rex,
                reg: encoded(held),
                .base(scratch0, 0))
            if let immediate { code.immediate(immediate.0, immediate.1) }
        } else {
            let own = i.pointee.rm >= 16 ? i.pointee.rm - 12 : Self.host(i.pointee.rm)
            let rm = own ?? scratch2
            if own == nil && (reads || size < 4) { code.load(scratch2, StateOffset.register(i.pointee.rm)) }
            let held = holdRegister(reg, i)
            writesFlags(n, use)
            if extra != 0 && i.pointee.operandSize == 2 { code.byte(0x66) }
            code.registers(op, map: map, prefix: lead, wide: wide, rex: rex, reg: encoded(held), rm: rm)
            if let immediate { code.immediate(immediate.0, immediate.1) }
            if own == nil && writes { storeBack(i.pointee.rm, scratch2) }
        }
        wroteFlags(use)
    }

    /// Marks "a guest register that lives in the state block" in `withRM`'s `reg`: it is loaded into scratch 1.
    private static var fromState: HostRegister { 0x80 }

    private mutating func holdRegister(_ reg: HostRegister, _ i: UnsafePointer<Instruction>) -> HostRegister {
        if reg & Self.fromState == 0 { return reg }
        code.load(scratch1, StateOffset.register(reg & 15))
        return scratch1
    }

    private func operandRegister(_ n: UInt8) -> HostRegister {
        if n >= 16 { return n }
        return Self.host(n) ?? (n | Self.fromState)
    }

    /// A result in scratch goes to the state block; MOV to memory leaves the flags alone.
    mutating func storeBack(_ n: UInt8, _ scratch: HostRegister) {
        code.store(StateOffset.register(n), scratch)
    }

    // MARK: Groups

    private mutating func emitArithmetic(_ n: Int) {
        let i = instruction(n)
        let use = FlagUse.of(i)
        let p = i.pointee
        let discards = p.operation == .cmp || p.operation == .test
        let isTest = p.operation == .test
        let digit = Self.arithmeticDigit(p.operation)
        let byteForm: UInt8 = p.operandSize == 1 ? 0 : 1
        let immediateSize = p.operandSize == 1 ? 1 : p.operandSize == 2 ? 2 : 4
        switch p.form {
        case .regRM:
            // Into a register: the r/m operand is only read.
            emitToRegisterArithmetic(n, isTest ? 0x84 | byteForm : digit << 3 | 2 | byteForm, use, discards)
        case .rmReg:
            withRM(
                n, isTest ? 0x84 | byteForm : digit << 3 | byteForm, reg: operandRegister(p.reg), byteReg: p.reg,
                reads: true,
                writes: !discards, use: use)
        case .rmImmediate:
            withRM(
                n, isTest ? 0xF6 | byteForm : 0x80 | byteForm, reg: isTest ? 0 : digit, reads: true, writes: !discards,
                use: use,
                immediate: (p.immediate, immediateSize))
        default:
            // The accumulator and an immediate.
            writesFlags(n, use)
            code.registers(
                isTest ? 0xF6 | byteForm : 0x80 | byteForm, prefix: prefix(i), wide: p.operandSize == 8,
                reg: isTest ? 0 : digit, rm: 0)
            code.immediate(p.immediate, immediateSize)
            wroteFlags(use)
        }
    }

    private static func arithmeticDigit(_ operation: Operation) -> UInt8 {
        switch operation {
        case .or: 1
        case .adc: 2
        case .sbb: 3
        case .and: 4
        case .sub: 5
        case .xor: 6
        case .cmp: 7
        default: 0
        }
    }

    private static func shiftDigit(_ operation: Operation) -> UInt8 {
        switch operation {
        case .rol: 0
        case .ror: 1
        case .rcl: 2
        case .rcr: 3
        case .shr: 5
        case .sar: 7
        default: 4
        }
    }

    private mutating func emitToRegisterArithmetic(_ n: Int, _ op: UInt8, _ use: FlagUse, _ discards: Bool) {
        let p = instruction(n).pointee
        withRM(n, op, reg: operandRegister(p.reg), byteReg: p.reg, reads: true, writes: false, use: use)
        if !discards && p.reg < 16 && Self.host(p.reg) == nil { storeBackSized(p.reg, scratch1, p.operandSize) }
    }

    /// A result computed in scratch: its upper bits are the register's own already (it was loaded whole).
    private mutating func storeBackSized(_ n: UInt8, _ scratch: HostRegister, _ size: UInt8) { storeBack(n, scratch) }

    private mutating func emitMove(_ n: Int) {
        let p = instruction(n).pointee
        let byteForm: UInt8 = p.operandSize == 1 ? 0 : 1
        switch p.form {
        case .regRM:
            let own = p.reg >= 16 ? p.reg : Self.host(p.reg)
            if own == nil && p.operandSize < 4 { return emitMoveToState(n, byteForm) }
            withRM(n, 0x8A | byteForm, reg: own ?? scratch1, byteReg: p.reg, reads: true, writes: false, use: FlagUse())
            if own == nil { storeBack(p.reg, scratch1) }
        case .rmReg:
            withRM(
                n, 0x88 | byteForm, reg: operandRegister(p.reg), byteReg: p.reg, reads: false, writes: true,
                use: FlagUse())
        case .rmImmediate:
            let size = p.operandSize == 1 ? 1 : p.operandSize == 2 ? 2 : 4
            withRM(
                n, 0xC6 | byteForm, reg: 0, reads: false, writes: true, use: FlagUse(), immediate: (p.immediate, size))
        default: emitMoveImmediate(n)
        }
    }

    /// A narrow load into a register of the state block: merged there.
    private mutating func emitMoveToState(_ n: Int, _ byteForm: UInt8) {
        let p = instruction(n).pointee
        withRM(n, 0x8A | byteForm, reg: p.reg | 0x80, byteReg: p.reg, reads: true, writes: false, use: FlagUse())
        storeBack(p.reg, scratch1)
    }

    private mutating func emitMoveImmediate(_ n: Int) {
        let p = instruction(n).pointee
        let own = p.reg >= 16 ? p.reg - 12 : Self.host(p.reg)
        let to = own ?? scratch1
        if own == nil && p.operandSize < 4 { code.load(scratch1, StateOffset.register(p.reg)) }
        switch p.operandSize {
        case 8: code.constant(to, UInt64(bitPattern: p.immediate))
        case 4: code.constant(to, UInt64(bitPattern: p.immediate) & 0xFFFF_FFFF)
        case 2:
            code.registers(0xC7, prefix: 0x66, reg: 0, rm: to)
            code.immediate(p.immediate, 2)
        default:
            code.registers(0xC6, rex: p.reg < 16 && to >= 4, reg: 0, rm: to)
            code.immediate(p.immediate, 1)
        }
        if own == nil { storeBack(p.reg, scratch1) }
    }

    private mutating func emitExtend(_ n: Int) {
        let i = instruction(n)
        let p = i.pointee
        let own = Self.host(p.reg)
        if own == nil && p.operandSize == 2 { code.load(scratch1, StateOffset.register(p.reg)) }
        let to = own ?? scratch1
        let signed = p.operation == .movsx
        let op: UInt8
        var map: UInt8 = 1
        switch p.extra {
        case 1: op = signed ? 0xBE : 0xB6
        case 2: op = signed ? 0xBF : 0xB7
        default:
            op = 0x63
            map = 0
        }
        let wide = p.operandSize == 8
        let lead: UInt8 = p.operandSize == 2 ? 0x66 : 0
        if p.rm == Instruction.none {
            probeOperand(n, size: Int(p.extra), write: false)
            // The probe used scratch 1.
            if own == nil && p.operandSize == 2 { code.load(scratch1, StateOffset.register(p.reg)) }
            code.memory(op, map: map, prefix: lead, wide: wide, reg: to, .base(scratch0, 0))
        } else if p.rm >= 16 {
            code.registers(op, map: map, prefix: lead, wide: false, reg: to, rm: p.rm - 12)
        } else {
            let from = source(p.rm, scratch2)
            code.registers(op, map: map, prefix: lead, wide: wide, rex: p.extra == 1 && from >= 4, reg: to, rm: from)
        }
        if own == nil { storeBack(p.reg, scratch1) }
    }

    private mutating func emitLea(_ n: Int) {
        let i = instruction(n)
        let p = i.pointee
        let own = Self.host(p.reg)
        if p.addressSize != codeSize || p.addressSize == 2 {
            // The offset is cut to the address size first.
            loadOffset(address(i), addressSize: p.addressSize)
            if let own {
                code.registers(0x8B, prefix: prefix(i), wide: p.operandSize == 8, reg: own, rm: scratch0)
            } else {
                if p.operandSize == 2 { code.load(scratch1, StateOffset.register(p.reg)) }
                code.registers(0x8B, prefix: prefix(i), wide: p.operandSize == 8, reg: scratch1, rm: scratch0)
                storeBack(p.reg, scratch1)
            }
            return
        }
        let from = address(i)
        let to = own ?? scratch2
        if own == nil && p.operandSize == 2 { code.load(scratch2, StateOffset.register(p.reg)) }
        code.memory(0x8D, prefix: prefix(i), wide: p.operandSize == 8, reg: to, from)
        if own == nil { storeBack(p.reg, scratch2) }
    }

    private mutating func emitUnary(_ n: Int) {
        let i = instruction(n)
        let p = i.pointee
        let use = FlagUse.of(i)
        let byteForm: UInt8 = p.operandSize == 1 ? 0 : 1
        if p.form == .reg {
            // INC and DEC with the register in the opcode, outside 64-bit mode.
            writesFlags(n, use)
            let digit: UInt8 = p.operation == .inc ? 0 : 1
            code.registers(0xFF, prefix: prefix(i), reg: digit, rm: Self.host(p.reg) ?? 0)
            return wroteFlags(use)
        }
        switch p.operation {
        case .inc: withRM(n, 0xFE | byteForm, reg: 0, reads: true, writes: true, use: use)
        case .dec: withRM(n, 0xFE | byteForm, reg: 1, reads: true, writes: true, use: use)
        case .not: withRM(n, 0xF6 | byteForm, reg: 2, reads: true, writes: true, use: use)
        case .neg: withRM(n, 0xF6 | byteForm, reg: 3, reads: true, writes: true, use: use)
        case .mul: withRM(n, 0xF7, reg: 4, reads: true, writes: false, use: use)
        case .imul: withRM(n, 0xF7, reg: 5, reads: true, writes: false, use: use)
        default: withRM(n, 0x90 | p.extra, map: 1, reg: 0, reads: false, writes: true, use: use, size: 1)
        }
    }

    private mutating func emitShift(_ n: Int) {
        let i = instruction(n)
        let p = i.pointee
        let use = FlagUse.of(i)
        let digit = Self.shiftDigit(p.operation)
        let byteForm: UInt8 = p.operandSize == 1 ? 0 : 1
        switch p.form {
        case .rmCL:
            withRM(n, 0xD2 | byteForm, reg: digit, reads: true, writes: true, use: passingAll(n, use))
        case .rmOne: withRM(n, 0xD0 | byteForm, reg: digit, reads: true, writes: true, use: use)
        default:
            withRM(n, 0xC0 | byteForm, reg: digit, reads: true, writes: true, use: use, immediate: (p.immediate, 1))
        }
    }

    /// By CL: a count of zero leaves all flags, so what is wanted after must be there before.
    private func passingAll(_ n: Int, _ use: FlagUse) -> FlagUse {
        FlagUse(reads: use.reads.union(wantedAfter(n)), writes: .all)
    }

    private mutating func emitToRegister(_ n: Int) {
        let i = instruction(n)
        let p = i.pointee
        let use = FlagUse.of(i)
        let own = Self.host(p.reg)
        let reg = own ?? (p.reg | 0x80)
        switch p.operation {
        case .cmovcc: withRM(n, 0x40 | p.extra, map: 1, reg: reg, reads: true, writes: false, use: use)
        case .bsf: withRM(n, 0xBC, map: 1, reg: reg, reads: true, writes: false, use: use)
        case .bsr: withRM(n, 0xBD, map: 1, reg: reg, reads: true, writes: false, use: use)
        case .tzcnt: withRM(n, 0xBC, map: 1, extra: 0xF3, reg: reg, reads: true, writes: false, use: use)
        case .lzcnt: withRM(n, 0xBD, map: 1, extra: 0xF3, reg: reg, reads: true, writes: false, use: use)
        case .popcnt: withRM(n, 0xB8, map: 1, extra: 0xF3, reg: reg, reads: true, writes: false, use: use)
        default:
            if p.form == .regRMImmediate {
                withRM(
                    n, 0x69, reg: reg, reads: true, writes: false, use: use,
                    immediate: (p.immediate, p.operandSize == 2 ? 2 : 4))
            } else {
                withRM(n, 0xAF, map: 1, reg: reg, reads: true, writes: false, use: use)
            }
        }
        if own == nil { storeBack(p.reg, scratch1) }
    }

    private mutating func emitToMemory(_ n: Int) {
        let i = instruction(n)
        let p = i.pointee
        var use = FlagUse.of(i)
        let reg = operandRegister(p.reg)
        let byteForm: UInt8 = p.operandSize == 1 ? 0 : 1
        switch p.operation {
        case .shld, .shrd:
            let base: UInt8 = p.operation == .shld ? 0xA4 : 0xAC
            if p.form == .rmCL {
                use = passingAll(n, use)
                withRM(n, base | 1, map: 1, reg: reg, reads: true, writes: true, use: use)
            } else {
                withRM(n, base, map: 1, reg: reg, reads: true, writes: true, use: use, immediate: (p.immediate, 1))
            }
        case .xadd:
            withRM(n, 0xC0 | byteForm, map: 1, reg: reg, byteReg: p.reg, reads: true, writes: true, use: use)
            // Of two names of one register, the sum's counts.
            if p.reg < 16 && Self.host(p.reg) == nil && p.rm != p.reg { storeBack(p.reg, scratch1) }
        case .cmpxchg:
            withRM(n, 0xB0 | byteForm, map: 1, reg: reg, byteReg: p.reg, reads: true, writes: true, use: use)
        default:
            let digit: UInt8 = p.operation == .bt ? 4 : p.operation == .bts ? 5 : p.operation == .btr ? 6 : 7
            let writes = p.operation != .bt
            if p.form == .rmReg && p.isMemory { return emitBitString(n, digit, use) }
            if p.form == .rmImmediate {
                withRM(n, 0xBA, map: 1, reg: digit, reads: true, writes: writes, use: use, immediate: (p.immediate, 1))
            } else {
                withRM(n, 0x83 | digit << 3, map: 1, reg: reg, reads: true, writes: writes, use: use)
            }
        }
    }

    /// CMPXCHG8B and CMPXCHG16B: their registers are the host's own.
    private mutating func emitCompareExchangeDouble(_ n: Int) {
        let p = instruction(n).pointee
        let use = FlagUse.of(first + n)
        let wide = p.operation == .cmpxchg16b
        probeOperand(n, size: wide ? 16 : 8, write: true)
        if wide {
            code.registers(0xF6, rex: true, reg: 0, rm: scratch0)
            code.byte(15)
            addStub(code.jump(if: 5), n)
        }
        writesFlags(n, use, by: scratch2)
        code.memory(0xC7, map: 1, lock: p.prefixes.contains(.lock), wide: wide, reg: 1, .base(scratch0, 0))
        wroteFlags(use)
    }

    private mutating func emitExchange(_ n: Int) {
        let p = instruction(n).pointee
        let byteForm: UInt8 = p.operandSize == 1 ? 0 : 1
        if p.form == .reg {
            // With the accumulator.
            let own = Self.host(p.reg)
            let other = source(p.reg, scratch1)
            code.registers(0x87, prefix: p.operandSize == 2 ? 0x66 : 0, wide: p.operandSize == 8, reg: 0, rm: other)
            if own == nil { storeBack(p.reg, scratch1) }
            return
        }
        withRM(
            n, 0x86 | byteForm, reg: operandRegister(p.reg), byteReg: p.reg, reads: true, writes: true, use: FlagUse())
        if p.reg < 16 && Self.host(p.reg) == nil { storeBack(p.reg, scratch1) }
    }

    /// BT and its kin with a bit string in memory: the unit that holds the bit, then the bit in it.
    private mutating func emitBitString(_ n: Int, _ digit: UInt8, _ use: FlagUse) {
        let i = instruction(n)
        let p = i.pointee
        let wide = p.operandSize == 8
        losesFlags(before: n)
        loadOffset(address(i), addressSize: p.addressSize)
        let bit = source(p.reg, scratch1)
        if wide { code.move(scratch2, bit) } else { code.registers(0x63, wide: true, reg: scratch2, rm: bit) }
        code.shift(7, scratch2, wide ? 6 : 5)
        loadOffset(.indexed(scratch0, scratch2, wide ? 3 : 2, 0), addressSize: p.addressSize)
        probe(n, segment: p.segment, size: Int(p.operandSize), write: p.operation != .bt, kind: .goesOn)
        code.move(scratch1, source(p.reg, scratch1))
        code.arithmetic(4, scratch1, wide ? 63 : 31, wide: false)
        writesFlags(n, use, by: scratch2)
        code.memory(
            0x83 | digit << 3, map: 1, lock: p.prefixes.contains(.lock), wide: wide, reg: scratch1, .base(scratch0, 0))
        wroteFlags(use)
    }

    private mutating func emitPlain(_ n: Int) {
        let i = instruction(n)
        let p = i.pointee
        let use = FlagUse.of(i)
        switch p.operation {
        case .bswap:
            let own = Self.host(p.reg)
            let register = source(p.reg, scratch1)
            let bits: UInt8 = (p.operandSize == 8 ? 8 : 0) | register >> 3
            if bits != 0 { code.byte(0x40 | bits) }
            code.byte(0x0F)
            code.byte(0xC8 | register & 7)
            if own == nil { storeBack(p.reg, scratch1) }
        case .cbw, .cwd:
            if p.operandSize == 2 { code.byte(0x66) }
            if p.operandSize == 8 { code.byte(0x48) }
            code.byte(p.operation == .cbw ? 0x98 : 0x99)
        case .clc, .stc, .cmc:
            writesFlags(n, use)
            code.byte(p.operation == .clc ? 0xF8 : p.operation == .stc ? 0xF9 : 0xF5)
            wroteFlags(use)
        case .fence: code.bytes(0x0F, 0xAE, 0xC0 | (p.reg & 7) << 3)
        case .pause:
            code.byte(0xF3)
            code.byte(0x90)
        case .cld:
            losesFlags(before: n)
            code.arithmetic(4, StateOffset.rflags, ~0x400, wide: true)
        case .std:
            losesFlags(before: n)
            code.arithmetic(1, StateOffset.rflags, 0x400, wide: true)
        case .sahf:
            // Overflow passes; AH is RAX's second byte.
            writesFlags(n, use)
            code.byte(0x9E)
            wroteFlags(use)
        case .lahf:
            needFlags(.all)
            code.byte(0x9F)
        default: break
        }
    }
}
