// Control registers, EFER, XCR0 and the instructions that flush translations (SDM 3A 2.5, 4.1, 4.10).
internal import CHost

extension VCPU {
    /// The control-register instructions.
    @inline(never)
    package func executeControl(_ i: UnsafePointer<Instruction>) throws(CPUException) {
        switch i.pointee.operation {
        case .smsw: return try storeMachineStatus(i)
        case .clts:
            try requirePrivilege()
            s.pointee.cr0 &= ~8
        case .lmsw:
            try requirePrivilege()
            let word: UInt16 = try readRM(i)
            // PE can be set but not cleared.
            try writeCR0((s.pointee.cr0 & ~0xE) | UInt64(word & 0xF))
        case .movFromCR:
            try requirePrivilege()
            let value = controlRegister(i.pointee.reg)
            gpr[Int(i.pointee.rm & 15)] = i.pointee.operandSize == 8 ? value : value & 0xFFFF_FFFF
        case .movToCR:
            try requirePrivilege()
            let raw = gpr[Int(i.pointee.rm & 15)]
            try writeControlRegister(i.pointee.reg, i.pointee.operandSize == 8 ? raw : raw & 0xFFFF_FFFF, i)
        case .invlpg:
            try requirePrivilege()
            let linear = linearAddress(Int(i.pointee.segment), effectiveAddress(i))
            if s.pointee.code_size != 8 || isCanonical(linear) { flushPage(linear) }
        case .invpcid: try invalidateByPCID(i)
        default: try requirePrivilege()
        }
    }

    private func requirePrivilege() throws(CPUException) {
        if s.pointee.cpl != 0 { throw .generalProtection(0) }
    }

    private func storeMachineStatus(_ i: UnsafePointer<Instruction>) throws(CPUException) {
        if i.pointee.rm != Instruction.none {
            writeSized(i.pointee.rm, s.pointee.cr0, i.pointee.operandSize)
        } else {
            try writeRM(i, UInt16(truncatingIfNeeded: s.pointee.cr0))
        }
    }

    private func controlRegister(_ n: UInt8) -> UInt64 {
        switch n {
        case 0: s.pointee.cr0
        case 2: s.pointee.cr2
        case 3: s.pointee.cr3
        case 4: s.pointee.cr4
        default: s.pointee.cr8
        }
    }

    private func writeControlRegister(
        _ n: UInt8, _ value: UInt64, _ i: UnsafePointer<Instruction>
    ) throws(CPUException) {
        switch n {
        case 0: try writeCR0(value)
        case 2: s.pointee.cr2 = value
        case 3: try writeCR3(value)
        case 4: try writeCR4(value)
        default: try writeCR8(value)
        }
    }

    /// MOV to CR0.
    package func writeCR0(_ value: UInt64) throws(CPUException) {
        if value >> 32 != 0 { throw .generalProtection(0) }
        let new = (value & 0xE005_003F) | 0x10
        let old = s.pointee.cr0
        let paging = new & 0x8000_0000 != 0
        if paging && new & 1 == 0 { throw .generalProtection(0) }
        if new & 0x6000_0000 == 0x2000_0000 { throw .generalProtection(0) }
        if s.pointee.cr4 & 0x2_0000 != 0 && !paging { throw .generalProtection(0) }
        if paging && old & 0x8000_0000 == 0 {
            if s.pointee.efer & 0x100 != 0 {
                if s.pointee.cr4 & 0x20 == 0 || segment(Int(ROOST_CS)).pointee.attributes & 0x2000 != 0 {
                    throw .generalProtection(0)
                }
                s.pointee.efer |= 0x400
            } else if s.pointee.cr4 & 0x20 != 0 {
                try loadPageDirectoryPointers(s.pointee.cr3)
            }
        } else if !paging && old & 0x8000_0000 != 0 {
            if s.pointee.code_size == 8 { throw .generalProtection(0) }
            s.pointee.efer &= ~0x400
        }
        s.pointee.cr0 = new
        if (old ^ new) & 0x8001_0001 != 0 { flushTLB() }
        updateMode()
    }

    /// MOV to CR3.
    package func writeCR3(_ value: UInt64) throws(CPUException) {
        let keeps = s.pointee.cr4 & 0x2_0000 != 0 && value >> 63 != 0
        let new = value & ~(1 << 63)
        if s.pointee.long_mode != 0 {
            if new >> 46 != 0 || (value >> 63 != 0 && s.pointee.cr4 & 0x2_0000 == 0) { throw .generalProtection(0) }
        } else if s.pointee.cr4 & 0x20 != 0 && s.pointee.cr0 & 0x8000_0000 != 0 {
            try loadPageDirectoryPointers(new)
        }
        s.pointee.cr3 = new
        if s.pointee.cr4 & 0x2_0000 == 0 { return newAddressSpace() }
        let pcid = UInt32(truncatingIfNeeded: new & 0xFFF)
        let known = roost_pcid_tag_at(s, Int(pcid & 15)).pointee
        if keeps && known != 0 && known >> 16 == pcid {
            s.pointee.address_space = UInt16(truncatingIfNeeded: known)
            enteredAddressSpace()
        } else {
            newAddressSpace()
            roost_pcid_tag_at(s, Int(pcid & 15)).pointee = pcid << 16 | UInt32(s.pointee.address_space)
        }
    }

    /// The four PAE page-directory pointers, read at once (SDM 3A 4.4.1).
    private func loadPageDirectoryPointers(_ cr3: UInt64) throws(CPUException) {
        var pointers: (UInt64, UInt64, UInt64, UInt64) = (0, 0, 0, 0)
        let at = cr3 & 0xFFFF_FFE0
        guard isMemoryPage(at >> 12) else { throw .generalProtection(0) }
        let source = UnsafeRawPointer(s.pointee.ram + Int(at))
        for n in 0..<4 {
            let entry = source.load(fromByteOffset: n * 8, as: UInt64.self)
            if entry & 1 != 0 && entry & 0xFFFF_C000_0000_01E6 != 0 { throw .generalProtection(0) }
            withUnsafeMutableBytes(of: &pointers) { $0.storeBytes(of: entry, toByteOffset: n * 8, as: UInt64.self) }
        }
        roost_pdpte_at(s, 0).pointee = pointers.0
        roost_pdpte_at(s, 1).pointee = pointers.1
        roost_pdpte_at(s, 2).pointee = pointers.2
        roost_pdpte_at(s, 3).pointee = pointers.3
    }

    /// MOV to CR4.
    package func writeCR4(_ value: UInt64) throws(CPUException) {
        let old = s.pointee.cr4
        if value & ~s.pointee.cr4_allowed != 0 { throw .generalProtection(0) }
        if s.pointee.long_mode != 0 {
            if value & 0x20 == 0 || (value ^ old) & 0x1000 != 0 { throw .generalProtection(0) }
        }
        if value & 0x2_0000 != 0 && old & 0x2_0000 == 0 {
            if s.pointee.long_mode == 0 || s.pointee.cr3 & 0xFFF != 0 { throw .generalProtection(0) }
        }
        if s.pointee.long_mode == 0 && value & 0x20 != 0 && s.pointee.cr0 & 0x8000_0000 != 0
            && (value ^ old) & 0xB0 != 0
        {
            try loadPageDirectoryPointers(s.pointee.cr3)
        }
        s.pointee.cr4 = value
        // PSE PAE PGE LA57 PCIDE SMEP SMAP PKE change what translations mean.
        if (old ^ value) & 0x72_10B0 != 0 { flushTLB() }
        updateMode()
    }

    /// MOV to CR8: the local APIC's task priority.
    package func writeCR8(_ value: UInt64) throws(CPUException) {
        if value > 15 { throw .generalProtection(0) }
        s.pointee.cr8 = value
        s.pointee.exit_kind = ExitKind.taskPriority.rawValue
        s.pointee.exit_value = value
        s.pointee.exit_address = 0
        s.pointee.exit_size = 1
        throw .exit
    }

    /// INVPCID (SDM 2: INVPCID).
    private func invalidateByPCID(_ i: UnsafePointer<Instruction>) throws(CPUException) {
        try requirePrivilege()
        let kind = i.pointee.operandSize == 8 ? gpr[Int(i.pointee.reg)] : gpr[Int(i.pointee.reg)] & 0xFFFF_FFFF
        let at = effectiveAddress(i)
        let pcid: UInt64 = try load(Int(i.pointee.segment), at)
        let linear: UInt64 = try load(Int(i.pointee.segment), truncateAddress(at &+ 8, i.pointee.addressSize))
        let usesPCID = s.pointee.cr4 & 0x2_0000 != 0
        if kind > 3 || pcid >> 12 != 0 && kind < 2 || !usesPCID && pcid != 0 && kind < 2 { throw .generalProtection(0) }
        switch kind {
        case 0:
            if !isCanonical(linear) { throw .generalProtection(0) }
            flushPage(linear)
        case 1:
            guard let slot = roost_pcid_tag_at(s, Int(pcid & 15)) else { return }
            if slot.pointee >> 16 == UInt32(truncatingIfNeeded: pcid) { slot.pointee = 0 }
            if !usesPCID || s.pointee.cr3 & 0xFFF == pcid {
                newAddressSpace()
                if usesPCID {
                    slot.pointee = UInt32(truncatingIfNeeded: pcid) << 16 | UInt32(s.pointee.address_space)
                }
            }
        default: flushTLB()
        }
    }

    /// WRMSR of EFER.
    package func writeEFER(_ value: UInt64) throws(CPUException) {
        if value & ~s.pointee.efer_allowed & ~0x400 != 0 { throw .generalProtection(0) }
        let old = s.pointee.efer
        if (old ^ value) & 0x100 != 0 && s.pointee.cr0 & 0x8000_0000 != 0 { throw .generalProtection(0) }
        s.pointee.efer = (value & ~0x400) | (old & 0x400)
        if (old ^ value) & 0x800 != 0 { flushTLB() }
        updateMode()
    }
}
