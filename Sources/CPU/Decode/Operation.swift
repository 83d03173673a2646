// What instructions do. One case a meaning; sizes and operand places are in `Instruction`.

/// The meaning of an instruction. Grouped by the file that executes it.
public enum Operation: UInt16, BitwiseCopyable, Sendable, CaseIterable {
    case invalid

    // MARK: Integer (Interpreter/Integer*.swift)
    case mov
    /// `extra` is the source's size in bytes: 1, 2 or 4.
    case movzx, movsx
    case lea, xchg, push, pop, pusha, popa, pushf, popf
    case add, or, adc, sbb, and, sub, xor, cmp, test
    case inc, dec, neg, not
    /// One operand, RDX:RAX.
    case mul, imul, div, idiv
    /// Two and three operands.
    case imul2
    /// By operand size: CBW CWDE CDQE; CWD CDQ CQO.
    case cbw, cwd
    case rol, ror, rcl, rcr, shl, shr, sar
    case shld, shrd
    case bt, bts, btr, btc, bsf, bsr, tzcnt, lzcnt, popcnt, bswap
    case cmpxchg, cmpxchg8b, cmpxchg16b, xadd
    case setcc, cmovcc
    case lahf, sahf, clc, stc, cmc, cld, std
    case daa, das, aaa, aas, aam, aad, xlat, salc
    case enter, leave
    case nop, pause, prefetch, fence
    case movbe, crc32, adcx, adox
    case andn, bextr, blsi, blsmsk, blsr, bzhi, mulx, pdep, pext, rorx, sarx, shlx, shrx
    case movnti
    case bound, into
    /// Strings (Interpreter/Strings.swift): `operandSize` is the element's.
    case movs, cmps, stos, lods, scas, ins, outs
    /// Port in `immediate` (form `.immediate`) or DX (form `.none`).
    case `in`, out

    // MARK: Near control transfer (Interpreter/Branches.swift): they set RIP themselves
    case jcc, jmp, jmpIndirect, call, callIndirect, ret, retImmediate
    case loop, loope, loopne, jcxz

    // MARK: System (Interpreter/System*.swift)
    case pushSegment, popSegment
    case jmpFar, jmpFarIndirect, callFar, callFarIndirect, retFar, retFarImmediate, iret
    case int, int3, int1
    case syscall, sysret, sysenter, sysexit, swapgs
    case cli, sti, hlt
    case movToCR, movFromCR, movToDR, movFromDR, clts, lmsw, smsw
    case lgdt, lidt, sgdt, sidt, lldt, ltr, sldt, str, lar, lsl, verr, verw, arpl
    case movToSegment, movFromSegment, les, lds, lss, lfs, lgs
    case invlpg, invpcid, invd, wbinvd, clac, stac
    case rdfsbase, rdgsbase, wrfsbase, wrgsbase
    case vmcall, vmmcall

    // MARK: Processor model (Interpreter/Model*.swift)
    case cpuid, rdmsr, wrmsr, rdtsc, rdtscp, rdpmc, rdpid, rdrand, rdseed
    case xgetbv, xsetbv, rdpkru, wrpkru, monitor, mwait
    case clflush, clflushopt, clwb

    // MARK: Vector and x87 (Vector/*.swift)
    case fxsave, fxrstor, xsave, xrstor, xsaveopt, xsavec, xsaves, xrstors, ldmxcsr, stmxcsr
    /// Executed by the host's own unit.
    case x87, mmx, sse, avx
    /// UD0, UD1, UD2: they exist, and raise #UD.
    case ud
}
