// Model-specific registers (SDM 4; AMD APM 2 appendix A for C001xxxx).
internal import CHost

extension VCPU {
    /// RDMSR.
    func readModelRegister() throws(CPUException) {
        if s.pointee.cpl != 0 { throw .generalProtection(0) }
        let number = UInt32(truncatingIfNeeded: gpr[1])
        let value = try modelRegister(number)
        gpr[0] = value & 0xFFFF_FFFF
        gpr[2] = value >> 32
    }

    /// WRMSR.
    func writeModelRegister() throws(CPUException) {
        if s.pointee.cpl != 0 { throw .generalProtection(0) }
        try setModelRegister(UInt32(truncatingIfNeeded: gpr[1]), (gpr[2] << 32) | (gpr[0] & 0xFFFF_FFFF))
    }

    /// Whether the machine, not the CPU, holds a register: the local APIC's and the paravirtual clock's, and the counter
    /// where it depends on the instruction.
    private func isOutside(_ number: UInt32) -> Bool {
        switch number {
        case 0x10: s.pointee.virtual_clock != 0
        case 0x1B, 0x6E0, 0x800...0x8FF, 0x11, 0x12, 0x4B56_4D00...0x4B56_4DFF: true
        default: false
        }
    }

    private func modelRegister(_ number: UInt32) throws(CPUException) -> UInt64 {
        if isOutside(number) { return try answer(.readMSR, address: UInt64(number), size: 8, value: 0) }
        switch number {
        case 0x10: return timeStamp
        case 0x17, 0x2A, 0xCD, 0x8B, 0x179, 0x17A, 0x186...0x189, 0xE7, 0xE8, 0xC1...0xC8, 0x198, 0x199, 0x19A, 0x19B,
            0x19C,
            0x1D9, 0x34, 0x140, 0x122:
            return 0
        case 0x3A: return 1
        case 0xFE: return 0x508
        case 0x174: return s.pointee.sysenter_cs
        case 0x175: return s.pointee.sysenter_esp
        case 0x176: return s.pointee.sysenter_eip
        case 0x1A0: return s.pointee.misc_enable
        case 0x200...0x20F:
            let n = Int(number - 0x200) / 2
            return number & 1 == 0 ? roost_mtrr_base_at(s, n).pointee : roost_mtrr_mask_at(s, n).pointee
        case 0x250, 0x258, 0x259, 0x268...0x26F: return roost_mtrr_fixed_at(s, fixedRange(number)).pointee
        case 0x277: return s.pointee.pat
        case 0x2FF: return s.pointee.mtrr_default
        case 0xDA0: return s.pointee.xss
        case 0xC000_0080: return s.pointee.efer
        case 0xC000_0081: return s.pointee.star
        case 0xC000_0082: return s.pointee.lstar
        case 0xC000_0083: return s.pointee.cstar
        case 0xC000_0084: return s.pointee.sfmask
        case 0xC000_0100: return segment(Int(ROOST_FS)).pointee.base
        case 0xC000_0101: return segment(Int(ROOST_GS)).pointee.base
        case 0xC000_0102: return s.pointee.kernel_gs_base
        case 0xC000_0103: return s.pointee.tsc_aux
        case 0xC001_0004...0xC001_0007, 0xC001_0000...0xC001_0003, 0xC001_0010, 0xC001_0015, 0xC001_001B, 0xC001_001F,
            0xC001_0055, 0xC001_0058, 0xC001_0061...0xC001_0064, 0xC001_0112...0xC001_0114, 0xC001_0117, 0xC001_0140,
            0xC001_0141, 0xC001_1020...0xC001_102F:
            switch number {
            // HWCR: the counter runs at the P0 state's rate. DE_CFG: LFENCE waits for what is before it.
            case 0xC001_0015: return 1 << 24
            case 0xC001_1029: return 2
            default: return 0
            }
        default: throw .generalProtection(0)
        }
    }

    private func fixedRange(_ number: UInt32) -> Int {
        switch number {
        case 0x250: 0
        case 0x258, 0x259: Int(number - 0x257)
        default: Int(number - 0x268) + 3
        }
    }

    private func setModelRegister(_ number: UInt32, _ value: UInt64) throws(CPUException) {
        if isOutside(number) {
            _ = try answer(.writeMSR, address: UInt64(number), size: 8, value: value)
            if number == 0x1B { s.pointee.apic_base = value }
            return
        }
        switch number {
        case 0x10: s.pointee.tsc_offset = value &- rawCounter
        case 0x8B, 0x179, 0x17A, 0x3A, 0x186...0x189, 0xC1...0xC8, 0xE7, 0xE8, 0x79, 0x199, 0x19B, 0x1D9, 0x140, 0x122:
            break
        case 0x174: s.pointee.sysenter_cs = value & 0xFFFF
        case 0x175: s.pointee.sysenter_esp = try canonical(value)
        case 0x176: s.pointee.sysenter_eip = try canonical(value)
        case 0x1A0: s.pointee.misc_enable = value
        case 0x200...0x20F:
            let n = Int(number - 0x200) / 2
            (number & 1 == 0 ? roost_mtrr_base_at(s, n) : roost_mtrr_mask_at(s, n)).pointee = value
        case 0x250, 0x258, 0x259, 0x268...0x26F: roost_mtrr_fixed_at(s, fixedRange(number)).pointee = value
        case 0x277:
            for n in 0..<8 as Range<UInt64> {
                let type = (value >> (n * 8)) & 0xFF
                if type > 7 || type == 2 || type == 3 { throw .generalProtection(0) }
            }
            s.pointee.pat = value
        case 0x2FF: s.pointee.mtrr_default = value & 0xCFF
        case 0xDA0:
            if value != 0 { throw .generalProtection(0) }
            s.pointee.xss = value
        case 0xC000_0080: try writeEFER(value)
        case 0xC000_0081: s.pointee.star = value
        case 0xC000_0082: s.pointee.lstar = try canonical(value)
        case 0xC000_0083: s.pointee.cstar = try canonical(value)
        case 0xC000_0084: s.pointee.sfmask = value & 0xFFFF_FFFF
        case 0xC000_0100, 0xC000_0101:
            let n = number == 0xC000_0100 ? Int(ROOST_FS) : Int(ROOST_GS)
            segment(n).pointee.base = try canonical(value)
            updateMode()
        case 0xC000_0102: s.pointee.kernel_gs_base = try canonical(value)
        case 0xC000_0103: s.pointee.tsc_aux = value & 0xFFFF_FFFF
        case 0xC001_0004...0xC001_0007, 0xC001_0000...0xC001_0003, 0xC001_0010, 0xC001_0015, 0xC001_001B, 0xC001_001F,
            0xC001_0055, 0xC001_0112...0xC001_0114, 0xC001_0117, 0xC001_1020...0xC001_102F:
            break
        default: throw .generalProtection(0)
        }
    }

    private func canonical(_ value: UInt64) throws(CPUException) -> UInt64 {
        if !isCanonical(value) { throw .generalProtection(0) }
        return value
    }
}
