// One instruction form: a row of the instruction table.

/// What is peculiar to an instruction form.
public struct InstructionAttributes: OptionSet, BitwiseCopyable, Sendable {
    /// The bits.
    public let rawValue: UInt32
    /// Wraps the bits.
    @inline(__always) public init(rawValue: UInt32) { self.rawValue = rawValue }

    /// It sets RIP itself and ends its block.
    public static var branch: Self { Self(rawValue: 1) }
    /// It may change mode, paging or the interrupt flag: its block ends after it.
    public static var endsBlock: Self { Self(rawValue: 2) }
    /// LOCK is allowed with a memory destination.
    public static var lockable: Self { Self(rawValue: 4) }
    /// Only in 64-bit mode.
    public static var only64: Self { Self(rawValue: 8) }
    /// Not in 64-bit mode.
    public static var no64: Self { Self(rawValue: 16) }
    /// The memory operand must be aligned to its size, else #GP(0).
    public static var alignedSSE: Self { Self(rawValue: 32) }
    /// The memory operand is written.
    public static var memoryWrite: Self { Self(rawValue: 64) }
    /// Operand size 8 by default in 64-bit mode.
    public static var default64: Self { Self(rawValue: 128) }
    /// Operand size 8 always in 64-bit mode.
    public static var force64: Self { Self(rawValue: 256) }
    /// Without sized operands; its operand size is that of the mode and prefixes (PUSHF, IRET).
    public static var sizeV: Self { Self(rawValue: 512) }
    /// Encoded with VEX.
    public static var vex: Self { Self(rawValue: 1024) }
    /// VEX.L must be 0.
    public static var l0: Self { Self(rawValue: 2048) }
    /// VEX.L must be 1.
    public static var l1: Self { Self(rawValue: 4096) }
    /// REX.W or VEX.W must be 0.
    public static var w0: Self { Self(rawValue: 8192) }
    /// REX.W or VEX.W must be 1.
    public static var w1: Self { Self(rawValue: 16384) }
    /// The r/m operand is memory only.
    public static var memoryOnly: Self { Self(rawValue: 32768) }
    /// The r/m operand is a register only.
    public static var registerOnly: Self { Self(rawValue: 65536) }
    /// There is a ModRM byte.
    public static var modRM: Self { Self(rawValue: 131072) }
    /// The opcode's low three bits are a register.
    public static var opcodeRegister: Self { Self(rawValue: 262144) }
}

/// One row of the instruction table, parsed.
public struct InstructionRow: BitwiseCopyable, Sendable {
    /// What it does.
    public var operation: Operation = .invalid
    /// 0x66, 0xF3 or 0xF2 when that prefix is part of the opcode, 0 for none of them, 0xFF when they mean what they
    /// usually mean.
    public var mandatoryPrefix: UInt8 = 0xFF
    /// 0 one byte, 1 0F, 2 0F38, 3 0F3A.
    public var map: UInt8 = 0
    /// The last opcode byte.
    public var opcode: UInt8 = 0
    /// ModRM.reg as an opcode extension, or 0xFF.
    public var digit: UInt8 = 0xFF
    /// The whole ModRM byte as an opcode extension, or 0.
    public var fixedModRM: UInt8 = 0
    /// The operands, destination first.
    public var operands: (OperandKind, OperandKind, OperandKind, OperandKind) = (.none, .none, .none, .none)
    /// The attributes.
    public var attributes: InstructionAttributes = []
    /// The feature that it needs.
    public var feature: CPUFeature = .base
    /// Where the operands are.
    public var form: OperandForm = .none
    /// Segment register of PUSH and POP, or 0xFF.
    public var segmentRegister: UInt8 = 0xFF
    /// How the operand size follows from mode and prefixes.
    var sizeRule: SizeRule = .none
    /// The immediates.
    var immediates: (ImmediateRule, ImmediateRule) = (.none, .none)
    /// Index of the mnemonic in `InstructionTable.mnemonics`.
    public var name: UInt16 = 0

    /// The mnemonic.
    public var mnemonic: String { InstructionTable.mnemonics[Int(name)] }

    /// An operand by number, 0 to 3.
    @inline(__always)
    public func operand(_ n: Int) -> OperandKind {
        switch n {
        case 0: operands.0
        case 1: operands.1
        case 2: operands.2
        default: operands.3
        }
    }
}
