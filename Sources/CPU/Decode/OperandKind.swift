// How the instruction table writes operands: the manual's own notation.

/// An operand as in the opcode maps.
///
/// - Spec: SDM 2D appendix A.2.
public enum OperandKind: UInt8, BitwiseCopyable, Sendable, CaseIterable {
    case none
    // General: E = r/m, G = reg, R = r/m as register only, M = memory only, B = VEX.vvvv; y = 32, or 64 with W.
    case Eb, Ew, Ed, Eq, Ev, Ey
    case Gb, Gw, Gd, Gq, Gv, Gy
    case Rv, Ry, Rd
    case M, Mb, Mw, Md, Mq, Mdq, Mqq, Mp, Ms, Ma, My, Mt, Mv
    case By
    // Opcode register, accumulator, DX, CL, one.
    case Zb, Zv, AL, eAX, rAX, DX, CL, one
    // Immediates, branches, far pointers, absolute offsets.
    case Ib, IbSigned, Iw, Iz, Iv, Jb, Jz, Ap, Ob, Ov
    // Segment, control, debug registers.
    case Sw, Cd, Dd
    // Strings.
    case Xb, Xv, Yb, Yv, Xz, Yz
    // MMX: P = reg, Q = r/m, N = r/m as register only.
    case Pq, Pd, Qq, Qd, Nq
    // SSE and AVX: V = reg, W = r/m, U = r/m as register only, H = VEX.vvvv, L = imm8[7:4]. Suffix, memory size:
    // x = 16 or 32 by VEX.L; dq 16; qq 32; q 8; d 4; w 2; b 1; h half of x; e quarter; i eighth.
    case Vx, Vdq, Vqq, Vq, Vd
    case Wx, Wdq, Wqq, Wq, Wd, Ww, Wb, Wh, We, Wi
    case Ux, Udq, Uq
    case Hx, Hdq, Hqq, Hq, Hd
    case Lx, Ldq
    /// Memory of vector length.
    case Mx
    /// Vector index of gathers: dword, qword indices.
    case VSIBd, VSIBq
    case XMM0
    // x87: ST(0), ST(i), memory of 16, 32, 64, 80 bits, environment (14 or 28 bytes), state (94 or 108 bytes).
    case ST0, STi, m16, m32, m64, m80, mEnv, mState
}
