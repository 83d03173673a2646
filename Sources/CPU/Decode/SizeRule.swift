// How operand sizes and immediates follow from a row, worked out once when the table is parsed.

/// How an instruction's operand size follows from mode and prefixes.
enum SizeRule: UInt8, BitwiseCopyable, Sendable {
    /// 0
    case none
    case byte, word, double, quad, double128
    /// By mode, 66 and REX.W: 2, 4 or 8.
    case v
    /// The same, at most 4.
    case z
    /// 4, or 8 with REX.W in 64-bit mode.
    case y
    /// 8 in 64-bit mode, else 4.
    case native
    /// 8 in 64-bit mode, else as `v`.
    case table
    /// 8 (MMX)
    case mmx
    /// 16, or 32 with VEX.L
    case vector

    static func of(_ row: InstructionRow, isVector: Bool) -> SizeRule {
        if isVector {
            switch row.operation {
            case .x87: return .v
            case .mmx: return .mmx
            default: return .vector
            }
        }
        if row.attributes.contains(.sizeV) { return .v }
        if row.operation == .out { return row.operands.1 == .AL ? .byte : .z }
        switch row.operands.0 {
        case .Eb, .Gb, .Zb, .AL, .Mb, .Ob, .Xb, .Yb: return .byte
        case .Ew, .Gw, .Mw, .Sw: return .word
        case .Rd where row.operands.1 == .Cd || row.operands.1 == .Dd: return .native
        case .Cd, .Dd: return .native
        case .Ed, .Gd, .Md, .Rd: return .double
        case .Eq, .Gq, .Mq: return .quad
        case .Mdq: return .double128
        case .Gy, .Ey, .My, .Ry, .By: return .y
        case .Xz, .Yz, .eAX: return .z
        case .Ms: return .table
        case .none: return .none
        default: return .v
        }
    }
}

/// How an immediate is encoded.
enum ImmediateRule: UInt8, BitwiseCopyable, Sendable {
    case none
    case byte, byteSigned, word
    /// 2 or 4 bytes by operand size, sign-extended.
    case z
    /// 2, 4 or 8 bytes.
    case v
    /// As wide as addresses.
    case offset
    /// Offset by operand size, then a selector.
    case far

    private static func of(_ kind: OperandKind) -> ImmediateRule {
        switch kind {
        case .Ib, .Lx, .Ldq: .byte
        case .IbSigned, .Jb: .byteSigned
        case .Iw: .word
        case .Iz, .Jz: .z
        case .Iv: .v
        case .Ob, .Ov: .offset
        case .Ap: .far
        default: .none
        }
    }

    static func first(_ row: InstructionRow) -> ImmediateRule {
        for n in 0..<4 where of(row.operand(n)) != .none { return of(row.operand(n)) }
        return .none
    }

    /// Only ENTER has two.
    static func second(_ row: InstructionRow) -> ImmediateRule { row.operation == .enter ? .byte : .none }
}
