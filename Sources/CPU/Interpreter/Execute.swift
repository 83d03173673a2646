// From an instruction's operation to what it does: the interpreter's one switch.
internal import CHost

extension VCPU {
    /// Executes one decoded instruction. On a throw, architectural state is as before (string progress excepted).
    @inline(__always)
    func execute(_ i: UnsafePointer<Instruction>) throws(CPUException) {
        switch i.pointee.operation {
        case .mov: try move(i)
        case .add: try arithmetic(i, UInt32(ROOST_ALU_ADD))
        case .sub: try arithmetic(i, UInt32(ROOST_ALU_SUB))
        case .cmp: try arithmetic(i, UInt32(ROOST_ALU_CMP))
        case .test: try arithmetic(i, UInt32(ROOST_ALU_TEST))
        case .and: try arithmetic(i, UInt32(ROOST_ALU_AND))
        case .or: try arithmetic(i, UInt32(ROOST_ALU_OR))
        case .xor: try arithmetic(i, UInt32(ROOST_ALU_XOR))
        case .adc: try arithmetic(i, UInt32(ROOST_ALU_ADC))
        case .sbb: try arithmetic(i, UInt32(ROOST_ALU_SBB))
        case .lea: writeSized(i.pointee.reg, effectiveAddress(i), i.pointee.operandSize)
        case .movzx: try moveExtended(i, signed: false)
        case .movsx: try moveExtended(i, signed: true)
        case .push: try pushOperand(i)
        case .pop: try popOperand(i)
        case .jcc:
            try jumpIf(i, roost_condition(UInt32(i.pointee.extra), s.pointee.arithmetic_flags) != 0)
        case .jmp: s.pointee.rip = try relativeTarget(i)
        case .call: try callRelative(i)
        case .ret: try returnNear(i, dropping: 0)
        case .inc: try unary(i, UInt32(ROOST_ALU_INC))
        case .dec: try unary(i, UInt32(ROOST_ALU_DEC))
        case .shl: try shift(i, UInt32(ROOST_SHL))
        case .shr: try shift(i, UInt32(ROOST_SHR))
        case .sar: try shift(i, UInt32(ROOST_SAR))
        case .nop, .prefetch, .pause: break
        case .fence: roost_fence()
        case .setcc: try setByCondition(i)
        case .cmovcc: try moveByCondition(i)
        case .imul2: try bits(i, UInt32(ROOST_IMUL2))
        case .jmpIndirect: try jumpThrough(i)
        case .callIndirect: try callThrough(i)
        default: try executeRare(i)
        }
    }

    /// The rest of the integer set.
    @inline(never)
    func executeRare(_ i: UnsafePointer<Instruction>) throws(CPUException) {
        switch i.pointee.operation {
        case .neg: try unary(i, UInt32(ROOST_ALU_NEG))
        case .not: try unary(i, UInt32(ROOST_ALU_NOT))
        case .rol: try shift(i, UInt32(ROOST_ROL))
        case .ror: try shift(i, UInt32(ROOST_ROR))
        case .rcl: try shift(i, UInt32(ROOST_RCL))
        case .rcr: try shift(i, UInt32(ROOST_RCR))
        case .shld: try shiftDouble(i, right: 0)
        case .shrd: try shiftDouble(i, right: 1)
        case .xchg: try exchange(i)
        case .xadd: try exchangeAdd(i)
        case .cmpxchg: try compareExchange(i)
        case .cmpxchg8b: try compareExchangeDouble(i, wide: false)
        case .cmpxchg16b: try compareExchangeDouble(i, wide: true)
        case .mul: try multiply(i, signed: 0)
        case .imul: try multiply(i, signed: 1)
        case .div: try divide(i)
        case .idiv: try divideSigned(i)
        case .cbw: convertAccumulator(i.pointee.operandSize)
        case .cwd: convertToDouble(i.pointee.operandSize)
        case .bt: try bitTest(i, nil)
        case .bts: try bitTest(i, UInt32(ROOST_ALU_BTS))
        case .btr: try bitTest(i, UInt32(ROOST_ALU_BTR))
        case .btc: try bitTest(i, UInt32(ROOST_ALU_BTC))
        case .bsf: try bits(i, UInt32(ROOST_BSF))
        case .bsr: try bits(i, UInt32(ROOST_BSR))
        case .tzcnt: try bits(i, UInt32(ROOST_TZCNT))
        case .lzcnt: try bits(i, UInt32(ROOST_LZCNT))
        case .popcnt: try bits(i, UInt32(ROOST_POPCNT))
        case .bswap: byteSwap(i)
        case .andn: try vexBits(i, UInt32(ROOST_ANDN))
        case .bextr: try vexBits(i, UInt32(ROOST_BEXTR))
        case .bzhi: try vexBits(i, UInt32(ROOST_BZHI))
        case .pdep: try vexBits(i, UInt32(ROOST_PDEP))
        case .pext: try vexBits(i, UInt32(ROOST_PEXT))
        case .blsi: try bitsToExtra(i, UInt32(ROOST_BLSI))
        case .blsmsk: try bitsToExtra(i, UInt32(ROOST_BLSMSK))
        case .blsr: try bitsToExtra(i, UInt32(ROOST_BLSR))
        case .mulx: try vexMultiply(i)
        case .rorx, .sarx, .shlx, .shrx: try vexShift(i, i.pointee.operation)
        case .adcx: try addExtended(i, flag: 0x100)
        case .adox: try addExtended(i, flag: 1)
        case .movbe: try moveSwapped(i)
        case .crc32: try crc32(i)
        case .movnti: try writeSizedRM(i, gpr[Int(i.pointee.reg & 15)], i.pointee.operandSize)
        case .pusha: try pushAll(Int(i.pointee.operandSize))
        case .popa: try popAll(Int(i.pointee.operandSize))
        case .pushf: try pushFlags(Int(i.pointee.operandSize))
        case .popf: try popFlagsFromStack(Int(i.pointee.operandSize))
        case .lahf: loadFlagsToAH()
        case .sahf: storeAHToFlags()
        case .clc: setFlag(0x100, false)
        case .stc: setFlag(0x100, true)
        case .cmc: setFlag(0x100, !carry)
        case .cld: s.pointee.rflags &= ~0x400
        case .std: s.pointee.rflags |= 0x400
        case .daa: decimalAdjust(subtract: false)
        case .das: decimalAdjust(subtract: true)
        case .aaa: asciiAdjust(subtract: false)
        case .aas: asciiAdjust(subtract: true)
        case .aam: try asciiAdjustMultiply(UInt8(truncatingIfNeeded: i.pointee.immediate))
        case .aad: asciiAdjustDivide(UInt8(truncatingIfNeeded: i.pointee.immediate))
        case .xlat: try translateByte(i)
        case .salc: writeRegister(0, carry ? 0xFF as UInt8 : 0)
        case .enter: try enterFrame(i)
        case .leave: try leaveFrame(i)
        case .bound: try checkBound(i)
        case .into: if s.pointee.arithmetic_flags & 1 != 0 { throw .overflow }
        case .movs, .cmps, .stos, .lods, .scas, .ins, .outs: try executeString(i)
        case .in: try portAccess(i, write: false)
        case .out: try portAccess(i, write: true)
        case .retImmediate:
            try returnNear(i, dropping: UInt64(truncatingIfNeeded: i.pointee.immediate & 0xFFFF))
        case .loop, .loope, .loopne, .jcxz: try loopCounted(i)
        default: try executeOther(i)
        }
    }

    /// System, processor model, vector: each in its own folder.
    @inline(never)
    func executeOther(_ i: UnsafePointer<Instruction>) throws(CPUException) {
        switch i.pointee.operation {
        case .invalid, .ud: throw .invalidOpcode
        case .x87, .mmx, .sse, .avx, .fxsave, .fxrstor, .xsave, .xrstor, .xsaveopt, .xsavec, .xsaves, .xrstors,
            .ldmxcsr, .stmxcsr:
            try executeVector(i)
        case .movToCR, .movFromCR, .clts, .lmsw, .smsw, .invlpg, .invpcid, .invd, .wbinvd:
            try executeControl(i)
        case .cpuid, .rdmsr, .wrmsr, .rdtsc, .rdtscp, .rdpmc, .rdpid, .rdrand, .rdseed, .xgetbv, .xsetbv, .rdpkru,
            .wrpkru, .monitor, .mwait, .clflush, .clflushopt, .clwb:
            try executeModel(i)
        default: try executeSystem(i)
        }
    }
}
