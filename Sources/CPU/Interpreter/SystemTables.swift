// Descriptor tables and what is asked about descriptors: LGDT, LIDT, SGDT, SIDT, LLDT, LTR, SLDT, STR, LAR, LSL, VERR,
// VERW, ARPL (SDM 2A, 2B).
internal import CHost

extension VCPU {
    /// Executes an instruction of this file.
    func executeTables(_ i: UnsafePointer<Instruction>) throws(CPUException) {
        switch i.pointee.operation {
        case .lgdt, .lidt: try loadTable(i)
        case .sgdt:
            try storeTable(i, UInt16(truncatingIfNeeded: s.pointee.gdtr_limit), s.pointee.gdtr_base)
        case .sidt:
            try storeTable(i, UInt16(truncatingIfNeeded: s.pointee.idtr_limit), s.pointee.idtr_base)
        case .lldt, .ltr, .sldt, .str, .lar, .lsl, .verr, .verw, .arpl:
            if hasParagraphs { throw .invalidOpcode }
            try executeDescriptors(i)
        default: throw .invalidOpcode
        }
    }

    private func executeDescriptors(_ i: UnsafePointer<Instruction>) throws(CPUException) {
        switch i.pointee.operation {
        case .lldt: try loadLocalTable(i)
        case .ltr: try loadTask(i)
        case .sldt:
            try checkUserInstruction()
            try storeSelector(i, segment(SegmentIndex.ldtr).pointee.selector)
        case .str:
            try checkUserInstruction()
            try storeSelector(i, segment(SegmentIndex.tr).pointee.selector)
        case .lar: try loadAccessRights(i)
        case .lsl: try loadLimit(i)
        case .verr: try verify(i, write: false)
        case .verw: try verify(i, write: true)
        default: try adjustLevel(i)
        }
    }

    /// UMIP: SGDT, SIDT, SLDT, STR (and SMSW) only at CPL 0.
    func checkUserInstruction() throws(CPUException) {
        if s.pointee.cr4 & 0x800 != 0 && s.pointee.cpl != 0 { throw .generalProtection(0) }
    }

    /// LGDT, LIDT.
    private func loadTable(_ i: UnsafePointer<Instruction>) throws(CPUException) {
        if i.pointee.rm != Instruction.none { throw .invalidOpcode }
        if s.pointee.cpl != 0 { throw .generalProtection(0) }
        let address = effectiveAddress(i)
        let n = Int(i.pointee.segment)
        let limit: UInt16 = try load(n, address)
        let second = truncateAddress(address &+ 2, i.pointee.addressSize)
        var base: UInt64
        if s.pointee.code_size == 8 {
            base = try load(n, second)
            if !isCanonical(base) { throw .generalProtection(0) }
        } else {
            base = UInt64(try load(n, second, as: UInt32.self))
            if i.pointee.operandSize == 2 { base &= 0xFF_FFFF }
        }
        if i.pointee.operation == .lgdt {
            s.pointee.gdtr_base = base
            s.pointee.gdtr_limit = UInt32(limit)
        } else {
            s.pointee.idtr_base = base
            s.pointee.idtr_limit = UInt32(limit)
        }
    }

    /// SGDT, SIDT.
    private func storeTable(_ i: UnsafePointer<Instruction>, _ limit: UInt16, _ base: UInt64) throws(CPUException) {
        if i.pointee.rm != Instruction.none { throw .invalidOpcode }
        try checkUserInstruction()
        let address = effectiveAddress(i)
        let n = Int(i.pointee.segment)
        try store(n, address, limit)
        let second = truncateAddress(address &+ 2, i.pointee.addressSize)
        if s.pointee.code_size == 8 {
            try store(n, second, base)
        } else {
            try store(n, second, UInt32(truncatingIfNeeded: base))
        }
    }

    /// LLDT.
    private func loadLocalTable(_ i: UnsafePointer<Instruction>) throws(CPUException) {
        if s.pointee.cpl != 0 { throw .generalProtection(0) }
        let selector: UInt16 = try readRM(i)
        if isNull(selector) {
            segment(SegmentIndex.ldtr).pointee = roost_segment(base: 0, limit: 0, selector: selector, attributes: 0)
            return
        }
        if selector & 4 != 0 { throw .generalProtection(code(selector)) }
        var d = try requireDescriptor(selector)
        if d.isCodeOrData || d.type != 2 { throw .generalProtection(code(selector)) }
        if !d.isPresent { throw .segmentNotPresent(code(selector)) }
        try completeSystemDescriptor(&d, selector)
        if s.pointee.long_mode != 0 && !isCanonical(d.base) { throw .generalProtection(code(selector)) }
        segment(SegmentIndex.ldtr).pointee = d.segment(selector)
    }

    /// LTR.
    private func loadTask(_ i: UnsafePointer<Instruction>) throws(CPUException) {
        if s.pointee.cpl != 0 { throw .generalProtection(0) }
        let selector: UInt16 = try readRM(i)
        if isNull(selector) { throw .generalProtection(0) }
        if selector & 4 != 0 { throw .generalProtection(code(selector)) }
        var d = try requireDescriptor(selector)
        let isAvailable = d.type == 9 || (d.type == 1 && s.pointee.long_mode == 0)
        if d.isCodeOrData || !isAvailable { throw .generalProtection(code(selector)) }
        if !d.isPresent { throw .segmentNotPresent(code(selector)) }
        try completeSystemDescriptor(&d, selector)
        if s.pointee.long_mode != 0 && !isCanonical(d.base) { throw .generalProtection(code(selector)) }
        try systemStore(d.address &+ 5, UInt8(truncatingIfNeeded: d.raw >> 40) | 2)
        var tr = d.segment(selector)
        tr.attributes |= 2
        segment(SegmentIndex.tr).pointee = tr
    }

    // MARK: Questions about descriptors

    /// Whether CPL and RPL may see a descriptor.
    private func isVisible(_ d: SegmentDescriptor, _ selector: UInt16) -> Bool {
        if d.isCode && d.isConforming { return true }
        return d.dpl >= s.pointee.cpl && d.dpl >= UInt8(selector & 3)
    }

    /// Sets ZF.
    private func setZero(_ value: Bool) {
        s.pointee.arithmetic_flags = (s.pointee.arithmetic_flags & ~0x4000) | (value ? 0x4000 : 0)
    }

    /// The descriptor for LAR and LSL when its type (a bit in `types` for system descriptors) and privilege allow.
    private func visibleDescriptor(_ selector: UInt16, types: UInt16) throws(CPUException) -> SegmentDescriptor? {
        if isNull(selector) { return nil }
        guard var d = try readDescriptor(selector), isVisible(d, selector) else { return nil }
        if d.isCodeOrData { return d }
        if (types >> UInt16(d.type)) & 1 == 0 { return nil }
        if s.pointee.long_mode != 0 {
            do throws(CPUException) {
                try completeSystemDescriptor(&d, selector)
            } catch {
                if error.vector == 13 { return nil }
                throw error
            }
        }
        return d
    }

    private func writeResult(_ i: UnsafePointer<Instruction>, _ value: UInt32) {
        if i.pointee.operandSize == 2 {
            writeRegister(i.pointee.reg, UInt16(truncatingIfNeeded: value))
        } else {
            writeRegister(i.pointee.reg, value)
        }
    }

    /// LAR.
    private func loadAccessRights(_ i: UnsafePointer<Instruction>) throws(CPUException) {
        let selector: UInt16 = try readRM(i)
        // 16-bit: TSS, LDT, call and task gates; 32-bit: TSS, call gate. Long mode: LDT, TSS, call gate.
        let types: UInt16 = s.pointee.long_mode != 0 ? 0x1A04 : 0x1A3E
        guard let d = try visibleDescriptor(selector, types: types) else { return setZero(false) }
        writeResult(i, UInt32(truncatingIfNeeded: d.raw >> 32) & 0xFF_FF00)
        setZero(true)
    }

    /// LSL.
    private func loadLimit(_ i: UnsafePointer<Instruction>) throws(CPUException) {
        let selector: UInt16 = try readRM(i)
        let types: UInt16 = s.pointee.long_mode != 0 ? 0x0A04 : 0x0A0E
        guard let d = try visibleDescriptor(selector, types: types) else { return setZero(false) }
        writeResult(i, d.limit)
        setZero(true)
    }

    /// VERR, VERW.
    private func verify(_ i: UnsafePointer<Instruction>, write: Bool) throws(CPUException) {
        let selector: UInt16 = try readRM(i)
        guard !isNull(selector), let d = try readDescriptor(selector), d.isCodeOrData, isVisible(d, selector) else {
            return setZero(false)
        }
        setZero(write ? d.isWritable : d.isReadable)
    }

    /// ARPL.
    private func adjustLevel(_ i: UnsafePointer<Instruction>) throws(CPUException) {
        let destination: UInt16
        let isMemory = i.pointee.rm == Instruction.none
        let address = isMemory ? effectiveAddress(i) : 0
        if isMemory {
            destination = try loadForWrite(Int(i.pointee.segment), address)
        } else {
            destination = readRegister(i.pointee.rm)
        }
        let level = readRegister(i.pointee.reg, as: UInt16.self) & 3
        let raises = destination & 3 < level
        if raises {
            let new = (destination & 0xFFFC) | level
            if isMemory {
                try store(Int(i.pointee.segment), address, new)
            } else {
                writeRegister(i.pointee.rm, new)
            }
        }
        setZero(raises)
    }
}
