// What is cached from CS, SS, CR0, CR4, EFER and RFLAGS, and the power-up state.
internal import CHost
internal import Glibc

extension VCPU {
    /// Recomputes everything that is cached from the mode; to be called after CS, SS, CPL, CR0, CR4, EFER, RFLAGS.VM,
    /// RFLAGS.AC or DR7 changed.
    package func updateMode() {
        let cs = segment(Int(ROOST_CS)).pointee
        let isLong = s.pointee.efer & 0x400 != 0
        s.pointee.protected_mode = s.pointee.cr0 & 1 != 0 ? 1 : 0
        s.pointee.virtual8086 = s.pointee.rflags & 0x2_0000 != 0 && !isLong && s.pointee.protected_mode != 0 ? 1 : 0
        s.pointee.long_mode = isLong ? 1 : 0
        let is64 = isLong && cs.attributes & 0x2000 != 0
        let was64 = s.pointee.code_size == 8
        s.pointee.code_size = is64 ? 8 : cs.attributes & 0x4000 != 0 ? 4 : 2
        let ss = segment(Int(ROOST_SS)).pointee
        s.pointee.stack_size = is64 ? 8 : ss.attributes & 0x4000 != 0 ? 4 : 2
        s.pointee.linear_mask = is64 ? ~0 : 0xFFFF_FFFF
        updateContext()
        if is64 && was64 {
            // Bases of ES, CS, SS and DS don't count, and nothing is checked.
            for n in 4..<8 { roost_effective_base_at(s, n).pointee = segment(n).pointee.base }
            return updateModeKey(isFlat: true)
        }
        var isFlat = true
        for n in 0..<8 {
            let g = segment(n).pointee
            let ignoresBase = is64 && n < 4
            let check: UInt8 = is64 || self.isFlat(n, g) ? 0 : 1
            roost_effective_base_at(s, n).pointee = ignoresBase ? 0 : g.base
            roost_segment_check_at(s, n).pointee = check
            if n < 4 && n != 1 && (check != 0 || (!is64 && g.base != 0)) { isFlat = false }
        }
        updateModeKey(isFlat: isFlat)
    }

    /// `mode_key`: code size, stack size, TLB context, CPL 3, flat data segments, limits without types.
    private func updateModeKey(isFlat: Bool) {
        var key = UInt32(s.pointee.code_size) | UInt32(s.pointee.stack_size) << 4 | UInt32(s.pointee.tlb_context) << 8
        if s.pointee.cpl == 3 { key |= ModeKey.user }
        if s.pointee.cpl == 0 { key |= ModeKey.kernel }
        if isFlat { key |= ModeKey.flat }
        if s.pointee.protected_mode == 0 || s.pointee.virtual8086 != 0 { key |= ModeKey.real }
        let limit = segment(Int(ROOST_CS)).pointee.limit
        if limit == ~0 || (s.pointee.code_size == 2 && limit >= 0xFFFF) { key |= ModeKey.wide }
        s.pointee.mode_key = key
        updateVectors()
        updateJumpKey()
    }

    /// Whether x87, MMX and vector instructions may run without asking: the conditions of `checkSIMD`.
    private func updateVectors() {
        s.pointee.x87_usable = s.pointee.cr0 & 0xC == 0 ? 1 : 0
        let usable = s.pointee.x87_usable != 0 && s.pointee.cr4 & 0x200 != 0
        let avx =
            s.pointee.protected_mode != 0 && s.pointee.virtual8086 == 0 && s.pointee.cr4 & 0x40000 != 0
            && s.pointee.xcr0 & 6 == 6
        s.pointee.vectors_usable = !usable ? 0 : avx ? 2 : 1
    }

    /// Which TLB is in force.
    private func updateContext() {
        let checksAlignment = alignmentChecked
        if s.pointee.cpl == 3 {
            s.pointee.tlb_context = UInt8(ROOST_TLB_USER)
        } else if s.pointee.cr4 & 0x20_0000 != 0 && s.pointee.rflags & 0x4_0000 == 0 {
            s.pointee.tlb_context = UInt8(ROOST_TLB_SUPERVISOR)
        } else {
            s.pointee.tlb_context = UInt8(ROOST_TLB_SUPERVISOR_AC)
        }
        s.pointee.slow_memory = checksAlignment || hasDataBreakpoints ? 1 : 0
        if s.pointee.slow_memory != 0 || s.pointee.logs_stores != 0 {
            s.pointee.tlb = s.pointee.tlb_never_matching
        } else {
            switch s.pointee.tlb_context {
            case 0: s.pointee.tlb = s.pointee.tlb_contexts.0
            case 1: s.pointee.tlb = s.pointee.tlb_contexts.1
            default: s.pointee.tlb = s.pointee.tlb_contexts.2
            }
        }
    }

    /// Whether unaligned accesses fault: CR0.AM, RFLAGS.AC, CPL 3.
    var alignmentChecked: Bool {
        s.pointee.cr0 & 0x4_0000 != 0 && s.pointee.rflags & 0x4_0000 != 0 && s.pointee.cpl == 3
    }

    /// Whether accesses through a segment need neither limit nor type checks.
    private func isFlat(_ n: Int, _ g: roost_segment) -> Bool {
        if g.limit != ~0 || g.attributes & 0x80 == 0 { return false }
        let type = g.attributes & 15
        // Data, expand-up, writable; code only where it can be written to, which is nowhere in protected mode.
        return type & 0xE == 2
    }

    /// The state after power-up or RESET.
    ///
    /// - Spec: SDM 3A 10.1.1, table 10-1.
    package func reset() {
        for n in 0..<16 { gpr[n] = 0 }
        s.pointee.cr0 = 0x6000_0010
        s.pointee.cr2 = 0
        s.pointee.cr3 = 0
        s.pointee.cr4 = 0
        s.pointee.cr8 = 0
        s.pointee.efer = 0
        s.pointee.xcr0 = 1
        s.pointee.xss = 0
        s.pointee.pkru = 0
        s.pointee.star = 0
        s.pointee.lstar = 0
        s.pointee.cstar = 0
        s.pointee.sfmask = 0
        s.pointee.kernel_gs_base = 0
        s.pointee.sysenter_cs = 0
        s.pointee.sysenter_esp = 0
        s.pointee.sysenter_eip = 0
        s.pointee.pat = 0x0007_0406_0007_0406
        s.pointee.misc_enable = 1
        s.pointee.tsc_aux = 0
        s.pointee.mtrr_default = 0
        s.pointee.tsc_offset = 0 &- rawCounter
        s.pointee.mxcsr_mask = 0xFFFF
        // x87 after FNINIT's cousin RESET, MXCSR.
        memset(roost_xsave_area(s), 0, 2560)
        roost_xsave_area(s)[0] = 0x40
        roost_xsave_area(s)[24] = 0x80
        roost_xsave_area(s)[25] = 0x1F
        resetSegments()
    }

    /// INIT: as RESET, but caches, x87, MSRs and the time-stamp counter are kept.
    package func initialize() {
        for n in 0..<16 { gpr[n] = 0 }
        s.pointee.cr0 = 0x10 | (s.pointee.cr0 & 0x6000_0000)
        s.pointee.cr2 = 0
        s.pointee.cr3 = 0
        s.pointee.cr4 = 0
        s.pointee.efer = 0
        resetSegments()
    }

    private func resetSegments() {
        gpr[2] = UInt64(s.pointee.signature)
        rflags = 2
        s.pointee.rip = 0xFFF0
        for n in 0..<8 {
            segment(n).pointee = roost_segment(base: 0, limit: 0xFFFF, selector: 0, attributes: 0x93)
        }
        segment(Int(ROOST_CS)).pointee = roost_segment(
            base: 0xFFFF_0000, limit: 0xFFFF, selector: 0xF000, attributes: 0x9B)
        segment(Int(ROOST_LDTR)).pointee.attributes = 0x82
        segment(Int(ROOST_TR)).pointee.attributes = 0x8B
        s.pointee.gdtr_base = 0
        s.pointee.gdtr_limit = 0xFFFF
        s.pointee.idtr_base = 0
        s.pointee.idtr_limit = 0xFFFF
        for n in 0..<8 { roost_dr_at(s, n).pointee = 0 }
        s.pointee.dr.6 = 0xFFFF_0FF0
        s.pointee.dr.7 = 0x400
        s.pointee.cpl = 0
        s.pointee.interrupt_shadow = 0
        s.pointee.nmi_blocked = 0
        s.pointee.pending_nmi = 0
        s.pointee.pending_debug = 0
        s.pointee.pending_fault = 0
        s.pointee.halted = 0
        s.pointee.monitor_address = 0
        s.pointee.completed_count = 0
        s.pointee.completed_next = 0
        s.pointee.interrupt_window = 0
        flushTLB()
        updateMode()
    }
}

/// Bits of `mode_key` beyond code size (3:0), stack size (7:4) and TLB context (9:8).
enum ModeKey {
    static let user: UInt32 = 0x400
    /// ES, SS, DS need neither base nor check.
    static let flat: UInt32 = 0x800
    /// Real or virtual-8086 mode: segments have limits and nothing else.
    static let real: UInt32 = 0x1000
    /// CPL 0.
    static let kernel: UInt32 = 0x4000
    /// No limit of CS is to be checked: it is 4 GiB, or at least 64 KiB in 16-bit code.
    static let wide: UInt32 = 0x2000
}
