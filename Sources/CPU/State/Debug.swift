// Debug registers, breakpoints and the #DB causes (SDM 3B chapter 17).
//
// DR6: 3:0 B0-B3, 13 BD (debug register access), 14 BS (single step), 15 BT (task switch); others read as in `fixedDR6`.
// DR7: Ln at 2n, Gn at 2n+1, 8 LE, 9 GE, 13 GD, R/Wn at 16+4n (0 execute, 1 write, 2 I/O, 3 read or write), LENn at 18+4n.
internal import CHost

/// `roost_vcpu.pending_debug`: DR6 bits 3:0 in place, bits 15:13 eight places lower.
enum DebugStatus {
    static var registerAccess: UInt8 { 0x20 }
    static var singleStep: UInt8 { 0x40 }
    static var task: UInt8 { 0x80 }
    /// DR6 bits that read as one.
    static var fixedDR6: UInt64 { 0xFFFF_0FF0 }
}

extension VCPU {
    /// Moves the pending causes into DR6 as #DB is delivered, and clears DR7.GD.
    func takePendingDebug() {
        let pending = UInt64(s.pointee.pending_debug)
        s.pointee.pending_debug = 0
        s.pointee.dr.6 |= (pending & 15) | ((pending & 0xE0) << 8)
        s.pointee.dr.7 &= ~0x2000
    }

    /// Whether breakpoint `n` is enabled with a type in `types` (bit r set: R/W value r).
    @inline(__always)
    private func isEnabled(_ n: Int, types: UInt8) -> Bool {
        let dr7 = s.pointee.dr.7
        return (dr7 >> UInt64(n &* 2)) & 3 != 0
            && (types >> (UInt8(truncatingIfNeeded: dr7 >> UInt64(16 &+ n &* 4)) & 3)) & 1 != 0
    }

    /// Bytes that breakpoint `n` covers: 1, 2, 8 or 4.
    @inline(__always)
    private func breakpointLength(_ n: Int) -> UInt64 {
        let field = (s.pointee.dr.7 >> UInt64(18 &+ n &* 4)) & 3
        return field == 2 ? 8 : field &+ 1
    }

    /// Marks the breakpoints that a range touches; returns whether there are any.
    private func match(_ address: UInt64, size: UInt64, types: UInt8) -> Bool {
        var hit = false
        for n in 0..<4 where isEnabled(n, types: types) {
            let length = breakpointLength(n)
            let start = roost_dr_at(s, n).pointee & ~(length &- 1)
            // Overlap without overflow: one range's start lies in the other.
            if address &- start < length || start &- address < size {
                s.pointee.pending_debug |= 1 << UInt8(n)
                hit = true
            }
        }
        return hit
    }

    /// Whether an instruction breakpoint stands at a linear address; its bit is then pending.
    package func instructionBreakpoint(at linear: UInt64) -> Bool {
        var hit = false
        for n in 0..<4 where isEnabled(n, types: 1) && roost_dr_at(s, n).pointee == linear {
            s.pointee.pending_debug |= 1 << UInt8(n)
            hit = true
        }
        return hit
    }

    /// Notes the data breakpoints that an access touches: a trap after the instruction.
    package func matchDataBreakpoint(_ linear: UInt64, size: Int, write: Bool) {
        _ = match(linear, size: UInt64(truncatingIfNeeded: size), types: write ? 0b1010 : 0b1000)
    }

    /// Notes the I/O breakpoints that a port access touches (CR4.DE).
    func matchPortBreakpoint(_ port: UInt16, size: Int) {
        if s.pointee.cr4 & 8 != 0 { _ = match(UInt64(port), size: UInt64(truncatingIfNeeded: size), types: 0b0100) }
    }

    /// Whether any data breakpoint is enabled: every access then takes the slow path.
    var hasDataBreakpoints: Bool {
        if s.pointee.dr.7 & 0xFF == 0 { return false }
        for n in 0..<4 where isEnabled(n, types: 0b1010) { return true }
        return false
    }

    /// Puts DR7 into force.
    package func armDebug() { updateMode() }

    /// The register that MOV DR names: DR4 and DR5 are DR6 and DR7 unless CR4.DE.
    private func debugRegister(_ i: UnsafePointer<Instruction>) throws(CPUException) -> Int {
        var n = Int(i.pointee.reg)
        if n > 7 { throw .invalidOpcode }
        if n == 4 || n == 5 {
            if s.pointee.cr4 & 8 != 0 { throw .invalidOpcode }
            n += 2
        }
        if s.pointee.cpl != 0 { throw .generalProtection(0) }
        if s.pointee.dr.7 & 0x2000 != 0 {
            s.pointee.pending_debug |= DebugStatus.registerAccess
            throw .debug
        }
        return n
    }

    /// MOV r, DR.
    func moveFromDebugRegister(_ i: UnsafePointer<Instruction>) throws(CPUException) {
        let value = roost_dr_at(s, try debugRegister(i)).pointee
        gpr[Int(i.pointee.rm & 15)] = s.pointee.code_size == 8 ? value : value & 0xFFFF_FFFF
    }

    /// MOV DR, r.
    func moveToDebugRegister(_ i: UnsafePointer<Instruction>) throws(CPUException) {
        let n = try debugRegister(i)
        var value = gpr[Int(i.pointee.rm & 15)]
        if s.pointee.code_size != 8 { value &= 0xFFFF_FFFF }
        switch n {
        case 6:
            if value >> 32 != 0 { throw .generalProtection(0) }
            s.pointee.dr.6 = (value & 0xE00F) | DebugStatus.fixedDR6
        case 7:
            if value >> 32 != 0 { throw .generalProtection(0) }
            s.pointee.dr.7 = (value & 0xFFFF_23FF) | 0x400
            armDebug()
        default: roost_dr_at(s, n).pointee = value
        }
    }
}
