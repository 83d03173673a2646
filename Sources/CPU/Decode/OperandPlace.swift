// Where an operand kind is encoded and how large it is.

/// Where an operand is encoded.
package enum OperandPlace {
    case none, rm, reg, extra, opcodeRegister, accumulator, counter, one, dx, immediate, branch, far, offset, implied
}

extension OperandKind {
    /// Where it is encoded.
    package var place: OperandPlace {
        switch self {
        case .none: .none
        case .Eb, .Ew, .Ed, .Eq, .Ev, .Ey, .Rv, .Ry, .Rd, .M, .Mb, .Mw, .Md, .Mq, .Mdq, .Mqq, .Mp, .Ms, .Ma, .My, .Mt,
            .Mv, .Qq, .Qd, .Nq, .Wx, .Wdq, .Wqq, .Wq, .Wd, .Ww, .Wb, .Wh, .We, .Wi, .Ux, .Udq, .Uq, .Mx, .VSIBd, .VSIBq,
            .STi, .m16, .m32, .m64, .m80, .mEnv, .mState:
            .rm
        case .Gb, .Gw, .Gd, .Gq, .Gv, .Gy, .Sw, .Cd, .Dd, .Pq, .Pd, .Vx, .Vdq, .Vqq, .Vq, .Vd: .reg
        case .By, .Hx, .Hdq, .Hqq, .Hq, .Hd: .extra
        case .Zb, .Zv: .opcodeRegister
        case .AL, .eAX, .rAX: .accumulator
        case .CL: .counter
        case .one: .one
        case .DX: .dx
        case .Ib, .IbSigned, .Iw, .Iz, .Iv, .Lx, .Ldq: .immediate
        case .Jb, .Jz: .branch
        case .Ap: .far
        case .Ob, .Ov: .offset
        case .Xb, .Xv, .Yb, .Yv, .Xz, .Yz, .XMM0, .ST0: .implied
        }
    }

    /// Whether it needs a ModRM byte.
    var needsModRM: Bool { place == .rm || place == .reg }

    /// Whether the r/m operand can only be memory.
    var isMemoryOnly: Bool {
        switch self {
        case .M, .Mb, .Mw, .Md, .Mq, .Mdq, .Mqq, .Mp, .Ms, .Ma, .My, .Mt, .Mv, .Mx, .VSIBd, .VSIBq, .m16, .m32, .m64,
            .m80, .mEnv, .mState:
            true
        default: false
        }
    }

    /// Whether the r/m operand can only be a register.
    var isRegisterOnly: Bool {
        switch self {
        case .Rv, .Ry, .Rd, .Nq, .Ux, .Udq, .Uq, .STi: true
        default: false
        }
    }

    /// Bytes of a vector or x87 memory operand; `vector` is 16 or 32, `wide` is REX.W or VEX.W. 0: not that.
    public func memorySize(vector: Int, wide: Bool) -> Int {
        switch self {
        case .Eb, .Mb, .Wb: 1
        case .Ew, .Mw, .Ww, .m16: 2
        case .Ed, .Md, .Wd, .Qd, .m32: 4
        case .Ey, .My: wide ? 8 : 4
        case .Eq, .Mq, .Wq, .Qq, .m64: 8
        case .m80, .Mt: 10
        case .Wdq, .Mdq: 16
        case .Wqq, .Mqq: 32
        case .Wx, .Mx: vector
        case .Wh: vector / 2
        case .We: vector / 4
        case .Wi: vector / 8
        default: 0
        }
    }
}
