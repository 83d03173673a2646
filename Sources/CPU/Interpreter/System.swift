// The system instructions: dispatch, and those with a few lines each.
internal import CHost

extension VCPU {
    /// Executes an instruction of the system group.
    @inline(never)
    package func executeSystem(_ i: UnsafePointer<Instruction>) throws(CPUException) {
        switch i.pointee.operation {
        case .syscall: try systemCall(i)
        case .sysret: try systemReturn(i)
        case .iret: try interruptReturn(Int(i.pointee.operandSize), truncatedRIP(nextRIP(i)))
        case .swapgs: try swapGS()
        case .cli: try setInterruptFlag(false)
        case .sti: try setInterruptFlag(true)
        case .hlt: try halt()
        case .stac: try setAlignmentFlag(true)
        case .clac: try setAlignmentFlag(false)
        case .movToSegment: try moveToSegment(i)
        case .movFromSegment: try storeSelector(i, segment(Int(i.pointee.reg & 7)).pointee.selector)
        case .pushSegment:
            try push(UInt64(segment(Int(i.pointee.reg & 7)).pointee.selector), size: Int(i.pointee.operandSize))
        case .popSegment: try popSegment(i)
        case .les: try loadFarPointer(i, SegmentIndex.es)
        case .lds: try loadFarPointer(i, SegmentIndex.ds)
        case .lss: try loadFarPointer(i, SegmentIndex.ss)
        case .lfs: try loadFarPointer(i, SegmentIndex.fs)
        case .lgs: try loadFarPointer(i, SegmentIndex.gs)
        case .rdfsbase, .rdgsbase, .wrfsbase, .wrgsbase: try accessSegmentBase(i)
        case .int:
            try softwareInterrupt(
                UInt8(truncatingIfNeeded: i.pointee.immediate), .software, truncatedRIP(nextRIP(i)))
        case .int3: throw .breakpoint
        case .int1: try softwareInterrupt(1, .privilegedSoftware, truncatedRIP(nextRIP(i)))
        case .jmpFar, .jmpFarIndirect:
            let (selector, offset) = try farOperand(i)
            try farJump(selector, offset, Int(i.pointee.operandSize), truncatedRIP(nextRIP(i)))
        case .callFar, .callFarIndirect:
            let (selector, offset) = try farOperand(i)
            try farCall(selector, offset, Int(i.pointee.operandSize), truncatedRIP(nextRIP(i)))
        case .retFar: try farReturn(Int(i.pointee.operandSize), dropping: 0)
        case .retFarImmediate:
            try farReturn(
                Int(i.pointee.operandSize), dropping: UInt64(truncatingIfNeeded: i.pointee.immediate & 0xFFFF))
        case .sysenter: try systemEnter()
        case .sysexit: try systemExit(i)
        case .movToDR: try moveToDebugRegister(i)
        case .movFromDR: try moveFromDebugRegister(i)
        case .vmcall, .vmmcall: throw leave(.hypercall)
        default: try executeTables(i)
        }
    }

    /// Fills an exit that needs no answer.
    private func leave(_ kind: ExitKind) -> CPUException {
        s.pointee.exit_kind = kind.rawValue
        s.pointee.exit_address = 0
        s.pointee.exit_size = 0
        s.pointee.exit_value = 0
        return .exit
    }

    /// HLT.
    private func halt() throws(CPUException) {
        if s.pointee.cpl != 0 { throw .generalProtection(0) }
        throw leave(.halt)
    }

    /// CLI and STI (no VME or PVI: they need CPL <= IOPL).
    private func setInterruptFlag(_ value: Bool) throws(CPUException) {
        if s.pointee.protected_mode != 0 && UInt64(s.pointee.cpl) > (s.pointee.rflags >> 12) & 3 {
            throw .generalProtection(0)
        }
        if value {
            if s.pointee.rflags & 0x200 == 0 { s.pointee.interrupt_shadow = 1 }
            s.pointee.rflags |= 0x200
        } else {
            s.pointee.rflags &= ~0x200
        }
    }

    /// STAC and CLAC.
    private func setAlignmentFlag(_ value: Bool) throws(CPUException) {
        if s.pointee.cpl != 0 { throw .invalidOpcode }
        if value { s.pointee.rflags |= 0x40000 } else { s.pointee.rflags &= ~0x40000 }
        updateMode()
    }

    /// SWAPGS.
    private func swapGS() throws(CPUException) {
        if s.pointee.code_size != 8 { throw .invalidOpcode }
        if s.pointee.cpl != 0 { throw .generalProtection(0) }
        let base = segment(SegmentIndex.gs).pointee.base
        setLongBase(SegmentIndex.gs, s.pointee.kernel_gs_base)
        s.pointee.kernel_gs_base = base
    }

    /// Sets FS or GS base in 64-bit mode.
    private func setLongBase(_ n: Int, _ base: UInt64) {
        segment(n).pointee.base = base
        roost_effective_base_at(s, n).pointee = base
    }

    /// RDFSBASE, RDGSBASE, WRFSBASE, WRGSBASE.
    private func accessSegmentBase(_ i: UnsafePointer<Instruction>) throws(CPUException) {
        if s.pointee.code_size != 8 || s.pointee.cr4 & 0x10000 == 0 { throw .invalidOpcode }
        let operation = i.pointee.operation
        let n = operation == .rdfsbase || operation == .wrfsbase ? SegmentIndex.fs : SegmentIndex.gs
        let isWide = i.pointee.operandSize == 8
        if operation == .rdfsbase || operation == .rdgsbase {
            let base = segment(n).pointee.base
            gpr[Int(i.pointee.rm & 15)] = isWide ? base : base & 0xFFFF_FFFF
        } else {
            let value = gpr[Int(i.pointee.rm & 15)]
            let base = isWide ? value : value & 0xFFFF_FFFF
            if !isCanonical(base) { throw .generalProtection(0) }
            setLongBase(n, base)
        }
    }

    // MARK: Segment registers

    /// MOV Sreg, r/m16.
    private func moveToSegment(_ i: UnsafePointer<Instruction>) throws(CPUException) {
        let n = Int(i.pointee.reg)
        if n == SegmentIndex.cs || n > SegmentIndex.gs { throw .invalidOpcode }
        try loadSegment(n, selector: try readRM(i, as: UInt16.self))
        if n == SegmentIndex.ss { s.pointee.interrupt_shadow = 2 }
    }

    /// Stores a selector: 16 bits to memory, zero-extended to a register.
    func storeSelector(_ i: UnsafePointer<Instruction>, _ selector: UInt16) throws(CPUException) {
        if i.pointee.operation == .movFromSegment && i.pointee.reg > 5 { throw .invalidOpcode }
        if i.pointee.rm == Instruction.none {
            try store(Int(i.pointee.segment), effectiveAddress(i), selector)
        } else if i.pointee.operandSize == 2 {
            writeRegister(i.pointee.rm, selector)
        } else {
            writeRegister(i.pointee.rm, UInt64(selector))
        }
    }

    /// POP Sreg.
    private func popSegment(_ i: UnsafePointer<Instruction>) throws(CPUException) {
        let n = Int(i.pointee.reg)
        if n == SegmentIndex.cs || n > SegmentIndex.gs { throw .invalidOpcode }
        let size = Int(i.pointee.operandSize)
        let selector = UInt16(truncatingIfNeeded: try loadStack(0, size: size))
        let old = gpr[4]
        setStackPointer(old &+ UInt64(size))
        do throws(CPUException) {
            try loadSegment(n, selector: selector)
        } catch {
            gpr[4] = old
            throw error
        }
        if n == SegmentIndex.ss { s.pointee.interrupt_shadow = 2 }
    }

    /// LES, LDS, LSS, LFS, LGS.
    private func loadFarPointer(_ i: UnsafePointer<Instruction>, _ n: Int) throws(CPUException) {
        let (selector, offset) = try farOperand(i)
        try loadSegment(n, selector: selector)
        switch i.pointee.operandSize {
        case 8: writeRegister(i.pointee.reg, offset)
        case 4: writeRegister(i.pointee.reg, UInt32(truncatingIfNeeded: offset))
        default: writeRegister(i.pointee.reg, UInt16(truncatingIfNeeded: offset))
        }
    }

    /// A far pointer, immediate or in memory.
    private func farOperand(_ i: UnsafePointer<Instruction>) throws(CPUException) -> (selector: UInt16, offset: UInt64)
    {
        if i.pointee.form == .farPointer {
            let pointer = UInt64(bitPattern: i.pointee.immediate)
            return (UInt16(truncatingIfNeeded: pointer >> 32), pointer & 0xFFFF_FFFF)
        }
        if i.pointee.rm != Instruction.none { throw .invalidOpcode }
        let segment = Int(i.pointee.segment)
        let address = effectiveAddress(i)
        let size = i.pointee.operandSize
        let offset: UInt64
        switch size {
        case 8: offset = try load(segment, address, as: UInt64.self)
        case 4: offset = UInt64(try load(segment, address, as: UInt32.self))
        default: offset = UInt64(try load(segment, address, as: UInt16.self))
        }
        let next = truncateAddress(address &+ UInt64(size), i.pointee.addressSize)
        return (try load(segment, next, as: UInt16.self), offset)
    }

    // MARK: I/O permission

    /// Throws `#GP(0)` unless IOPL or the TSS's I/O map allows the ports (SDM 1 19.5).
    package func checkIOPermission(port: UInt16, size: Int) throws(CPUException) {
        if s.pointee.dr.7 & 0xFF != 0 { matchPortBreakpoint(port, size: size) }
        if s.pointee.protected_mode == 0 { return }
        if s.pointee.virtual8086 == 0 && UInt64(s.pointee.cpl) <= (s.pointee.rflags >> 12) & 3 { return }
        let tr = segment(SegmentIndex.tr).pointee
        if tr.attributes & 0x80 == 0 || tr.attributes & 0xD != 9 || tr.limit < 0x67 { throw .generalProtection(0) }
        let map: UInt16 = try systemLoad(tr.base &+ 0x66)
        let offset = UInt64(map) &+ UInt64(port >> 3)
        // Two bytes are read whatever the port, so one beyond the last must be inside.
        if offset &+ 1 > UInt64(tr.limit) { throw .generalProtection(0) }
        let bits: UInt16 = try systemLoad(tr.base &+ offset)
        let mask = (UInt16(1) &<< UInt16(truncatingIfNeeded: size)) &- 1
        if (bits >> (port & 7)) & mask != 0 { throw .generalProtection(0) }
    }
}
