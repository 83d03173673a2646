// The features that CPUID announces and that instructions depend on.

/// A processor feature that an instruction needs; named as Linux and the manuals name it.
public enum CPUFeature: UInt8, BitwiseCopyable, Sendable, CaseIterable {
    /// Every x86 has it.
    case base
    case x87, cmov, cx8, cx16, sysenter, syscall, mmx
    case sse, sse2, sse3, ssse3, sse41, sse42
    case aes, pclmul, sha
    case avx, avx2, fma, f16c
    case bmi1, bmi2, adx, movbe, popcnt, lzcnt
    case rdrand, rdseed, rdpid, rdtscp
    case clflush, clflushopt, clwb
    case fsgsbase, smap, invpcid, pku, monitor
    case xsave, xsaveopt, xsavec, xsaves
}
