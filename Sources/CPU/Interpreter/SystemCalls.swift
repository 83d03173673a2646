// SYSCALL, SYSRET, SYSENTER, SYSEXIT: fixed flat segments, nothing read from memory (SDM 3A 5.8.7, 5.8.8).
internal import CHost

extension VCPU {
    /// Flat code (64-bit or 32-bit) and stack at a privilege level.
    private func setFlat(_ codeSelector: UInt16, _ stackSelector: UInt16, cpl: UInt8, isLong: Bool) {
        let level = UInt16(cpl)
        segment(SegmentIndex.cs).pointee = roost_segment(
            base: 0, limit: ~0, selector: (codeSelector & 0xFFFC) | level,
            attributes: (isLong ? 0xA09B : 0xC09B) | level << 5)
        segment(SegmentIndex.ss).pointee = roost_segment(
            base: 0, limit: ~0, selector: (stackSelector & 0xFFFC) | level, attributes: 0xC093 | level << 5)
        s.pointee.cpl = cpl
    }

    /// Whether CPUID says AMD: there SYSCALL works outside 64-bit mode too, and SYSENTER not in long mode.
    private var isAMD: Bool {
        // EBX of leaf 0, the table's first row: "Auth".
        guard let table = s.pointee.cpuid_table, s.pointee.cpuid_count > 0 else { return false }
        return table[3] == 0x6874_7541
    }

    /// Whether SYSCALL and SYSRET exist in this mode (SDM 2B; APM 3, SYSCALL).
    private var hasSystemCall: Bool {
        s.pointee.efer & 1 != 0 && (s.pointee.code_size == 8 || (s.pointee.protected_mode != 0 && isAMD))
    }

    /// SYSCALL: to LSTAR from 64-bit mode, CSTAR from compatibility mode, STAR's low half in legacy mode.
    func systemCall(_ i: UnsafePointer<Instruction>) throws(CPUException) {
        if !hasSystemCall { throw .invalidOpcode }
        let next = nextRIP(i)
        let flags = rflags
        let selector = UInt16(truncatingIfNeeded: s.pointee.star >> 32)
        let fromLong = s.pointee.code_size == 8
        let isLong = s.pointee.long_mode != 0
        s.pointee.system_calls &+= 1
        gpr[1] = next
        if isLong { gpr[11] = flags & ~0x10000 }
        rflags = flags & ~(isLong ? s.pointee.sfmask | 0x10000 : 0x3_0200)
        setFlat(selector & 0xFFFC, (selector & 0xFFFC) &+ 8, cpl: 0, isLong: isLong)
        s.pointee.rip = fromLong ? s.pointee.lstar : isLong ? s.pointee.cstar : s.pointee.star & 0xFFFF_FFFF
        updateMode()
    }

    /// SYSRET; with REX.W to 64-bit code, else to 32-bit code.
    func systemReturn(_ i: UnsafePointer<Instruction>) throws(CPUException) {
        if !hasSystemCall { throw .invalidOpcode }
        if s.pointee.cpl != 0 { throw .generalProtection(0) }
        let isLong = i.pointee.operandSize == 8
        let target = isLong ? gpr[1] : gpr[1] & 0xFFFF_FFFF
        if !isCanonical(target) { throw .generalProtection(0) }
        let selector = UInt16(truncatingIfNeeded: s.pointee.star >> 48)
        rflags = s.pointee.long_mode != 0 ? gpr[11] & 0x3C_7FD7 : rflags | 0x200
        setFlat(isLong ? selector &+ 16 : selector, selector &+ 8, cpl: 3, isLong: isLong)
        s.pointee.rip = target
        updateMode()
        if s.pointee.direct_armed != 0 { directWish() }
    }

    /// SYSENTER.
    func systemEnter() throws(CPUException) {
        let selector = UInt16(truncatingIfNeeded: s.pointee.sysenter_cs)
        if s.pointee.protected_mode == 0 || isNull(selector) { throw .generalProtection(0) }
        let isLong = s.pointee.long_mode != 0
        if isLong && isAMD { throw .invalidOpcode }
        s.pointee.rflags &= ~0x30200
        setFlat(selector & 0xFFFC, (selector & 0xFFFC) &+ 8, cpl: 0, isLong: isLong)
        gpr[4] = isLong ? s.pointee.sysenter_esp : s.pointee.sysenter_esp & 0xFFFF_FFFF
        s.pointee.rip = isLong ? s.pointee.sysenter_eip : s.pointee.sysenter_eip & 0xFFFF_FFFF
        updateMode()
    }

    /// SYSEXIT.
    func systemExit(_ i: UnsafePointer<Instruction>) throws(CPUException) {
        let selector = UInt16(truncatingIfNeeded: s.pointee.sysenter_cs) & 0xFFFC
        if s.pointee.protected_mode == 0 || isNull(selector) || s.pointee.cpl != 0 { throw .generalProtection(0) }
        if s.pointee.long_mode != 0 && isAMD { throw .invalidOpcode }
        if i.pointee.operandSize == 8 {
            if s.pointee.long_mode == 0 { throw .invalidOpcode }
            if !isCanonical(gpr[1]) || !isCanonical(gpr[2]) { throw .generalProtection(0) }
            setFlat(selector &+ 32, selector &+ 40, cpl: 3, isLong: true)
            gpr[4] = gpr[1]
            s.pointee.rip = gpr[2]
        } else {
            setFlat(selector &+ 16, selector &+ 24, cpl: 3, isLong: false)
            gpr[4] = gpr[1] & 0xFFFF_FFFF
            s.pointee.rip = gpr[2] & 0xFFFF_FFFF
        }
        updateMode()
    }
}
