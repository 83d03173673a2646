// A decoded instruction: 40 bytes of plain data that both engines work from.

/// Prefixes that change what an instruction does.
public struct Prefixes: OptionSet, BitwiseCopyable, Sendable {
    /// The bits.
    public let rawValue: UInt8
    /// Wraps the bits.
    @inline(__always) public init(rawValue: UInt8) { self.rawValue = rawValue }

    /// F0
    public static var lock: Prefixes { Prefixes(rawValue: 1) }
    /// F3 as REP/REPE (not as a mandatory prefix)
    public static var rep: Prefixes { Prefixes(rawValue: 2) }
    /// F2 as REPNE (not as a mandatory prefix)
    public static var repne: Prefixes { Prefixes(rawValue: 4) }
    /// 66 was there
    public static var operandSize: Prefixes { Prefixes(rawValue: 8) }
    /// REX.W or VEX.W
    public static var wide: Prefixes { Prefixes(rawValue: 16) }
    /// Encoded with VEX
    public static var vex: Prefixes { Prefixes(rawValue: 32) }
    /// VEX.L: 256 bits
    public static var vex256: Prefixes { Prefixes(rawValue: 64) }
    /// Any REX prefix (SPL BPL SIL DIL instead of AH CH DH BH)
    public static var rex: Prefixes { Prefixes(rawValue: 128) }
}

/// A decoded instruction.
///
/// Register numbers: general 0-15; byte registers AH CH DH BH are 16-19 (only where the operand is a byte register).
public struct Instruction: BitwiseCopyable, Sendable {
    /// `base`, `index` or `rm` that is absent.
    public static var none: UInt8 { 0xFF }
    /// `base` of a RIP-relative operand.
    public static var rip: UInt8 { 0xFE }

    /// First immediate, sign-extended as the instruction says; address of MOV moffs; far pointer: offset in bits 31:0,
    /// selector in bits 47:32.
    public var immediate: Int64 = 0
    /// Displacement of the memory operand, sign-extended.
    public var displacement: Int32 = 0
    /// What it does.
    public var operation: Operation = .invalid
    /// Row of the instruction table, for what isn't hot.
    public var row: UInt16 = 0
    /// Length in bytes, 1 to 15.
    public var length: UInt8 = 0
    /// Operand size in bytes: 1, 2, 4, 8 (general); 8, 16 or 32 for vectors; 0 where it means nothing.
    public var operandSize: UInt8 = 0
    /// Address size in bytes: 2, 4 or 8.
    public var addressSize: UInt8 = 0
    /// The prefixes.
    public var prefixes: Prefixes = []
    /// ModRM.reg with REX.R, or the register in the opcode's low bits with REX.B, or the accumulator (0); segment,
    /// control or debug register number; opcode extension /n where the operand is in r/m only.
    public var reg: UInt8 = 0
    /// ModRM.rm as a register with REX.B; `none` when it is memory or there is no ModRM.
    public var rm: UInt8 = Instruction.none
    /// Base register of the memory operand, `none` or `rip`.
    public var base: UInt8 = Instruction.none
    /// Index register of the memory operand, or `none`.
    public var index: UInt8 = Instruction.none
    /// Shift applied to the index, 0 to 3.
    public var scale: UInt8 = 0
    /// Segment of the memory operand, overrides and defaults applied (`ROOST_DS`...). Without a memory operand: the
    /// override, or DS (string sources, XLAT, MOV moffs).
    public var segment: UInt8 = 3
    /// VEX.vvvv as a register number; condition code of Jcc, SETcc, CMOVcc (0-15); source size of MOVZX, MOVSX.
    public var extra: UInt8 = 0
    /// Second immediate: ENTER's level.
    public var immediate2: UInt8 = 0
    /// Offset of the first byte after the instruction from the start of its block. Set by the block builder.
    public var endOffset: UInt8 = 0
    /// Last opcode byte.
    public var opcode: UInt8 = 0
    /// Opcode map: 0 one byte, 1 0F, 2 0F38, 3 0F3A.
    public var map: UInt8 = 0
    /// Where the operands are.
    public var form: OperandForm = .none

    /// An invalid instruction.
    @inline(__always) public init() {}

    /// Whether the r/m operand is memory.
    @inline(__always) public var isMemory: Bool { rm == Instruction.none && form.hasRM }
}

/// How an instruction's main operands are laid out; destination first.
public enum OperandForm: UInt8, BitwiseCopyable, Sendable {
    // Forms with an r/m operand come first: `hasRM` is a compare.
    /// Destination r/m, source `reg`.
    case rmReg
    /// Destination `reg`, source r/m.
    case regRM
    /// Destination r/m, source `immediate`.
    case rmImmediate
    /// Only r/m.
    case rm
    /// Destination `reg`, source r/m, and `immediate` (IMUL, RORX).
    case regRMImmediate
    /// Destination r/m, source `reg`, and `immediate` (SHLD, SHRD).
    case rmRegImmediate
    /// Destination r/m, count CL (shifts; SHLD and SHRD with source `reg`).
    case rmCL
    /// Destination r/m, count 1.
    case rmOne
    /// Destination `reg`, sources `extra` (VEX.vvvv) and r/m.
    case regExtraRM
    /// Destination `reg`, sources r/m and `extra` (VEX.vvvv).
    case regRMExtra
    /// Destination `extra` (VEX.vvvv), source r/m.
    case extraRM
    /// Host-executed (x87, MMX, SSE, AVX) with a ModRM byte: see the row's operand kinds.
    case vector
    /// No explicit operand.
    case none
    /// Destination `reg` (opcode register or accumulator), source `immediate`.
    case regImmediate
    /// Only `reg` (opcode register or accumulator; for XCHG the other operand is the accumulator).
    case reg
    /// A relative branch: `immediate` is the displacement.
    case relative
    /// A far pointer in `immediate`.
    case farPointer
    /// `immediate` is the address of a memory operand (MOV moffs), the accumulator is loaded.
    case offsetLoad
    /// The same, the accumulator is stored.
    case offsetStore
    /// Only `immediate`.
    case immediate
    /// Host-executed with no r/m operand (EMMS, VZEROUPPER).
    case vectorNone

    /// Whether there is a ModRM operand.
    @inline(__always) public var hasRM: Bool { rawValue <= OperandForm.vector.rawValue }
}
