// Which arithmetic flags an instruction reads and writes: what liveness is computed from.

/// The six arithmetic flags as a set.
struct FlagSet: OptionSet {
    let rawValue: UInt8
    static let carry = FlagSet(rawValue: 1)
    static let parity = FlagSet(rawValue: 2)
    static let adjust = FlagSet(rawValue: 4)
    static let zero = FlagSet(rawValue: 8)
    static let sign = FlagSet(rawValue: 16)
    static let overflow = FlagSet(rawValue: 32)
    static let all = FlagSet(rawValue: 63)
}

/// What an instruction does with flags. What it neither surely writes nor leaves alone counts as read.
struct FlagUse {
    var reads: FlagSet = []
    var writes: FlagSet = []

    /// Flags that a condition code depends on.
    static func condition(_ code: UInt8) -> FlagSet {
        switch code >> 1 & 7 {
        case 0: .overflow
        case 1: .carry
        case 2: .zero
        case 3: [.carry, .zero]
        case 4: .sign
        case 5: .parity
        case 6: [.sign, .overflow]
        default: [.sign, .overflow, .zero]
        }
    }

    /// Of an instruction that the translator emits itself; everything else reads all and writes none.
    static func of(_ i: UnsafePointer<Instruction>) -> FlagUse {
        switch i.pointee.operation {
        case .mov, .movzx, .movsx, .lea, .push, .pop, .not, .cbw, .cwd, .xchg, .bswap, .nop, .pause, .prefetch, .fence,
            .movnti, .leave, .jmp, .call, .ret, .retImmediate, .jmpIndirect, .callIndirect, .div, .idiv, .cli, .sti,
            .stac, .clac, .swapgs, .cld, .std, .movbe, .crc32, .mulx, .pdep, .pext, .rorx, .sarx, .shlx, .shrx,
            .loop, .jcxz, .rdtsc, .rdtscp, .movs, .stos, .lods, .verw:
            return FlagUse()
        case .add, .or, .and, .sub, .xor, .cmp, .test, .neg, .xadd, .cmpxchg, .popcnt, .andn, .bextr, .bzhi, .blsi,
            .blsmsk, .blsr:
            return FlagUse(writes: .all)
        case .jcc, .setcc, .cmovcc: return FlagUse(reads: condition(i.pointee.extra))
        case .adc, .sbb: return FlagUse(reads: .carry, writes: .all)
        // What they leave undefined stays as it was.
        case .imul2, .imul, .mul: return FlagUse(writes: [.carry, .overflow])
        case .bsf, .bsr, .cmpxchg8b, .cmpxchg16b: return FlagUse(writes: .zero)
        case .tzcnt, .lzcnt: return FlagUse(writes: [.carry, .zero])
        case .inc, .dec: return FlagUse(writes: FlagSet.all.subtracting(.carry))
        case .shl, .shr, .sar, .shld, .shrd: return shift(i, .all, [])
        case .rol, .ror: return shift(i, [.carry, .overflow], [])
        case .rcl, .rcr: return shift(i, [.carry, .overflow], .carry)
        case .bt, .bts, .btr, .btc, .clc, .stc: return FlagUse(writes: .carry)
        case .adcx: return FlagUse(reads: .carry, writes: .carry)
        case .adox: return FlagUse(reads: .overflow, writes: .overflow)
        case .cmc: return FlagUse(reads: .carry, writes: .carry)
        case .lahf, .pushf: return FlagUse(reads: .all)
        case .sahf: return FlagUse(writes: FlagSet.all.subtracting(.overflow))
        case .sse, .avx: return vector(i)
        case .mmx: return FlagUse()
        case .x87: return x87(i)
        default: return FlagUse(reads: .all)
        }
    }

    private static func shift(_ i: UnsafePointer<Instruction>, _ writes: FlagSet, _ reads: FlagSet) -> FlagUse {
        if i.pointee.form == .rmCL { return FlagUse(reads: reads, writes: []) }
        let mask: Int64 = i.pointee.operandSize == 8 ? 63 : 31
        if i.pointee.form != .rmOne && i.pointee.immediate & mask == 0 { return FlagUse() }
        return FlagUse(reads: reads, writes: writes)
    }

    /// FCMOVcc; FCOMI, FUCOMI and their popping forms.
    private static func x87(_ i: UnsafePointer<Instruction>) -> FlagUse {
        if i.pointee.isMemory { return FlagUse() }
        switch (i.pointee.opcode, i.pointee.reg & 7) {
        case (0xDA, 0..<4), (0xDB, 0..<4): return FlagUse(reads: .all)
        case (0xDB, 5...6), (0xDF, 5...6): return FlagUse(writes: [.zero, .parity, .carry])
        default: return FlagUse()
        }
    }

    /// Comparisons into the flags: UCOMIS, COMIS, PTEST, VTESTPS, VTESTPD, PCMPxSTRx.
    private static func vector(_ i: UnsafePointer<Instruction>) -> FlagUse {
        switch (i.pointee.map, i.pointee.opcode) {
        case (1, 0x2E), (1, 0x2F), (2, 0x17), (2, 0x0E), (2, 0x0F), (3, 0x60...0x63): FlagUse(writes: .all)
        default: FlagUse()
        }
    }
}
