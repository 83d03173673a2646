// Vector and x87 instructions: checks, memory operands, and the host's own unit on the guest's saved state.
//
// Order of checks: #UD and #NM by CR0, CR4 and XCR0; pending x87 exceptions; alignment; the memory operand, whole, before
// anything changes. A store that reaches two pages is probed at both ends first.
//
// - Quirk: with an unmasked SIMD exception the instruction is first tried with all masked on a copy of the state: the
//   underflow flag is then set for inexact tiny results only. Flags of an element that hardware wouldn't reach are set.
internal import CHost

extension VCPU {
    /// The guest's XSAVE area.
    @inline(__always) var area: UnsafeMutableRawPointer { UnsafeMutableRawPointer(roost_xsave_area(s)) }

    /// The generated code of this vCPU; nil if the host gives no memory for it.
    @inline(__always)
    var thunkCache: ThunkCache? {
        if let known = s.pointee.vector_thunks { return Unmanaged<ThunkCache>.fromOpaque(known).takeUnretainedValue() }
        return makeThunkCache()
    }

    @inline(never)
    private func makeThunkCache() -> ThunkCache? {
        guard let cache = try? ThunkCache() else { return nil }
        s.pointee.vector_thunks = Unmanaged.passRetained(cache).toOpaque()
        return cache
    }

    /// Frees what vector instructions allocated.
    func releaseThunks() {
        if let known = s.pointee.vector_thunks { Unmanaged<ThunkCache>.fromOpaque(known).release() }
        s.pointee.vector_thunks = nil
    }

    /// Executes an instruction of the group "Vector and x87".
    package func executeVector(_ i: UnsafePointer<Instruction>) throws(CPUException) {
        switch i.pointee.operation {
        case .sse, .avx, .mmx: try executeSIMD(i)
        case .x87: try executeX87(i)
        case .ud: throw .invalidOpcode
        default: try executeExtendedState(i)
        }
    }

    /// Whether SSE (`avx`: AVX) is there and switched on.
    @inline(__always)
    func checkSIMD(avx: Bool) throws(CPUException) {
        let cr0 = s.pointee.cr0
        if avx {
            if s.pointee.protected_mode == 0 || s.pointee.virtual8086 != 0 || s.pointee.cr4 & 0x40000 == 0
                || s.pointee.xcr0 & 6 != 6
            {
                throw .invalidOpcode
            }
        } else if cr0 & 4 != 0 || s.pointee.cr4 & 0x200 == 0 {
            throw .invalidOpcode
        }
        if cr0 & 8 != 0 { throw .deviceNotAvailable }
    }

    /// #MF if an unmasked x87 exception is pending (FSW.ES).
    @inline(__always)
    func checkPendingX87() throws(CPUException) {
        if area.load(fromByteOffset: 2, as: UInt8.self) & 0x80 != 0 { throw .floatingPoint }
    }

    @inline(__always)
    private func executeSIMD(_ i: UnsafePointer<Instruction>) throws(CPUException) {
        let operation = i.pointee.operation
        if operation == .mmx {
            if s.pointee.cr0 & 4 != 0 { throw .invalidOpcode }
        } else {
            try checkSIMD(avx: operation == .avx)
        }
        guard let cache = thunkCache else { throw .invalidOpcode }
        let key = thunkKey(i)
        var entry = cache.slot(key)
        if entry.pointee.key == 0 { entry = addEntry(cache, i, key) }
        if entry.pointee.mmx {
            if entry.pointee.xmm && s.pointee.cr4 & 0x200 == 0 { throw .invalidOpcode }
            if s.pointee.cr0 & 8 != 0 { throw .deviceNotAvailable }
            try checkPendingX87()
        }
        switch entry.pointee.kind {
        case .thunk: try runThunk(entry, i)
        case .load: try plainLoad(entry, i)
        case .store: try plainStore(entry, i)
        case .maskedMove: try maskedMove(i)
        case .byteMaskedMove: try byteMaskedMove(i)
        case .gather: try gather(i)
        case .zeroUpper: clearVectors(from: 576)
        case .zeroAll: clearVectors(from: 160)
        }
    }

    /// Everything that an instruction's code depends on.
    @inline(__always)
    func thunkKey(_ i: UnsafePointer<Instruction>) -> UInt64 {
        var key = UInt64(i.pointee.row) | UInt64(i.pointee.reg & 31) << 16 | UInt64(i.pointee.rm & 31) << 21
        key |= UInt64(i.pointee.extra & 15) << 26 | UInt64(UInt8(truncatingIfNeeded: i.pointee.immediate)) << 30
        key |= UInt64(i.pointee.prefixes.rawValue & 0x50) << 34
        return key | 1 << 42 | UInt64(s.pointee.code_size & 8) << 40
    }

    // MARK: Memory operands

    /// Reads a memory operand of 1, 2, 4, 8, 10, 16 or 32 bytes.
    @inline(__always)
    func loadOperand(_ segment: Int, _ offset: UInt64, _ size: Int, into buffer: UnsafeMutableRawPointer)
        throws(CPUException)
    {
        var done = 0
        while size &- done >= 16 {
            try loadVector(segment, offset &+ UInt64(truncatingIfNeeded: done), into: buffer + done)
            done &+= 16
        }
        if size &- done >= 8 {
            let value: UInt64 = try load(segment, offset &+ UInt64(truncatingIfNeeded: done))
            buffer.storeBytes(of: value, toByteOffset: done, as: UInt64.self)
            done &+= 8
        }
        let rest = offset &+ UInt64(truncatingIfNeeded: done)
        switch size &- done {
        case 4:
            let value: UInt32 = try load(segment, rest)
            buffer.storeBytes(of: value, toByteOffset: done, as: UInt32.self)
        case 2:
            let value: UInt16 = try load(segment, rest)
            buffer.storeBytes(of: value, toByteOffset: done, as: UInt16.self)
        case 1:
            let value: UInt8 = try load(segment, rest)
            buffer.storeBytes(of: value, toByteOffset: done, as: UInt8.self)
        default: break
        }
    }

    /// Makes sure that a store of `size` bytes will not fault half-way; one within a page needs no look (`always`: it does).
    @inline(__always)
    func probeStore(_ segment: Int, _ offset: UInt64, _ size: Int, always: Bool = false) throws(CPUException) {
        let room = 4096 &- ((offset &+ roost_effective_base_at(s, segment).pointee) & 0xFFF)
        let last = UInt64(truncatingIfNeeded: size &- 1)
        if !always && last < room && roost_segment_check_at(s, segment).pointee == 0 { return }
        let _: UInt8 = try loadForWrite(segment, offset)
        if last >= room { let _: UInt8 = try loadForWrite(segment, offset &+ room) }
        if roost_segment_check_at(s, segment).pointee != 0 { let _: UInt8 = try loadForWrite(segment, offset &+ last) }
    }

    /// Writes a memory operand, after `probeStore`.
    @inline(__always)
    func storeOperand(_ segment: Int, _ offset: UInt64, _ size: Int, from buffer: UnsafeRawPointer)
        throws(CPUException)
    {
        var done = 0
        while size &- done >= 16 {
            try storeVector(segment, offset &+ UInt64(truncatingIfNeeded: done), from: buffer + done)
            done &+= 16
        }
        if size &- done >= 8 {
            let value = buffer.loadUnaligned(fromByteOffset: done, as: UInt64.self)
            try store(segment, offset &+ UInt64(truncatingIfNeeded: done), value)
            done &+= 8
        }
        let rest = offset &+ UInt64(truncatingIfNeeded: done)
        switch size &- done {
        case 4: try store(segment, rest, buffer.loadUnaligned(fromByteOffset: done, as: UInt32.self))
        case 2: try store(segment, rest, buffer.loadUnaligned(fromByteOffset: done, as: UInt16.self))
        case 1: try store(segment, rest, buffer.loadUnaligned(fromByteOffset: done, as: UInt8.self))
        default: break
        }
    }

    /// The memory operand's segment and offset, aligned as it must be.
    @inline(__always)
    private func operandAddress(_ entry: UnsafeMutablePointer<ThunkEntry>, _ i: UnsafePointer<Instruction>)
        throws(CPUException) -> (Int, UInt64)
    {
        let segment = Int(i.pointee.segment)
        let offset = effectiveAddress(i)
        if entry.pointee.alignmentMask != 0 {
            let linear = offset &+ roost_effective_base_at(s, segment).pointee
            if linear & UInt64(entry.pointee.alignmentMask) != 0 { throw .generalProtection(0) }
        }
        return (segment, offset)
    }

    // MARK: Execution

    @inline(__always)
    private func plainLoad(_ entry: UnsafeMutablePointer<ThunkEntry>, _ i: UnsafePointer<Instruction>)
        throws(CPUException)
    {
        let (segment, offset) = try operandAddress(entry, i)
        var value: (UInt64, UInt64, UInt64, UInt64) = (0, 0, 0, 0)
        let size = Int(entry.pointee.memorySize)
        switch size {
        case 8: value.0 = try load(segment, offset)
        case 4:
            let low: UInt32 = try load(segment, offset)
            value.0 = UInt64(low)
        default:
            try withUnsafeMutablePointer(to: &value) { (p) throws(CPUException) in
                let buffer = UnsafeMutableRawPointer(p)
                try loadVector(segment, offset, into: buffer)
                if size == 32 { try loadVector(segment, offset &+ 16, into: buffer + 16) }
            }
        }
        let low = area + (160 &+ 16 &* Int(i.pointee.reg & 15))
        low.storeBytes(of: value.0, as: UInt64.self)
        low.storeBytes(of: value.1, toByteOffset: 8, as: UInt64.self)
        if i.pointee.operation == .avx {
            low.storeBytes(of: value.2, toByteOffset: 416, as: UInt64.self)
            low.storeBytes(of: value.3, toByteOffset: 424, as: UInt64.self)
        }
    }

    @inline(__always)
    private func plainStore(_ entry: UnsafeMutablePointer<ThunkEntry>, _ i: UnsafePointer<Instruction>)
        throws(CPUException)
    {
        let (segment, offset) = try operandAddress(entry, i)
        let size = Int(entry.pointee.memorySize)
        let low = UnsafeRawPointer(area + (160 &+ 16 &* Int(i.pointee.reg & 15)))
        try probeStore(segment, offset, size)
        if size == 32 {
            try storeOperand(segment, offset, 16, from: low)
            try storeOperand(segment, offset &+ 16, 16, from: low + 416)
        } else {
            try storeOperand(segment, offset, size, from: low)
        }
    }

    @inline(__always)
    private func runThunk(_ entry: UnsafeMutablePointer<ThunkEntry>, _ i: UnsafePointer<Instruction>)
        throws(CPUException)
    {
        guard let code = entry.pointee.code else { throw .invalidOpcode }
        var buffer: (UInt64, UInt64, UInt64, UInt64, UInt64, UInt64, UInt64, UInt64) = (0, 0, 0, 0, 0, 0, 0, 0)
        let size = Int(entry.pointee.memorySize)
        let writes = entry.pointee.writesMemory
        let floating = entry.pointee.floating
        let mmx = entry.pointee.mmx
        var place = (3, UInt64(0))
        if size != 0 {
            place = try operandAddress(entry, i)
            // Reaching MMX state changes the x87's tags: a fault must come before.
            if writes { try probeStore(place.0, place.1, size, always: mmx) }
        }
        // `store` may fault or leave for the device model: registers must not have changed then. Stores change none.
        try withUnsafeMutablePointer(to: &buffer) { (p) throws(CPUException) in
            let memory = UnsafeMutableRawPointer(p)
            if size != 0 && !writes { try loadOperand(place.0, place.1, size, into: memory) }
            if floating && area.load(fromByteOffset: 24, as: UInt32.self) & 0x1F80 != 0x1F80 {
                try runUnmasked(code, memory)
            } else if mmx {
                callKeepingPointers(code, memory)
            } else {
                roost_call_thunk(code, area, memory, gpr, &s.pointee.arithmetic_flags)
            }
            if writes { try storeOperand(place.0, place.1, size, from: memory) }
        }
    }

    /// Runs an x87 or MMX thunk; the instruction and data pointers stay the guest's.
    func callKeepingPointers(_ code: UnsafeRawPointer, _ memory: UnsafeMutableRawPointer) {
        let opcode = area.load(fromByteOffset: 6, as: UInt16.self)
        let instruction = area.load(fromByteOffset: 8, as: UInt64.self)
        let data = area.load(fromByteOffset: 16, as: UInt64.self)
        roost_call_thunk(code, area, memory, gpr, &s.pointee.arithmetic_flags)
        area.storeBytes(of: opcode, toByteOffset: 6, as: UInt16.self)
        area.storeBytes(of: instruction, toByteOffset: 8, as: UInt64.self)
        area.storeBytes(of: data, toByteOffset: 16, as: UInt64.self)
    }

    /// Runs a thunk while a SIMD exception is unmasked: on a copy, all masked; then the copy counts, or #XM is raised.
    ///
    /// - Spec: SDM 1 11.5.1 and 4.9: #I, #D, #Z are found before the operation, #O, #U, #P after it.
    @inline(never)
    private func runUnmasked(_ code: UnsafeRawPointer, _ memory: UnsafeMutableRawPointer) throws(CPUException) {
        let mxcsr = area.load(fromByteOffset: 24, as: UInt32.self)
        let size = 832
        let copy = UnsafeMutableRawPointer.allocate(byteCount: size + 128, alignment: 64)
        defer { copy.deallocate() }
        copy.copyMemory(from: area, byteCount: size)
        (copy + size).copyMemory(from: gpr, byteCount: 128)
        copy.storeBytes(of: (mxcsr & ~0x3F) | 0x1F80, toByteOffset: 24, as: UInt32.self)
        var arithmetic = s.pointee.arithmetic_flags
        roost_call_thunk(code, copy, memory, copy + size, &arithmetic)
        var raised = copy.load(fromByteOffset: 24, as: UInt32.self) & 0x3F
        let unmasked = raised & ~(mxcsr >> 7)
        if unmasked != 0 {
            if unmasked & 7 != 0 { raised &= 7 }
            area.storeBytes(of: mxcsr | raised, toByteOffset: 24, as: UInt32.self)
            throw s.pointee.cr4 & 0x400 != 0 ? .simdFloatingPoint : .invalidOpcode
        }
        copy.storeBytes(of: mxcsr | raised, toByteOffset: 24, as: UInt32.self)
        area.copyMemory(from: copy, byteCount: 6)
        (area + 24).copyMemory(from: copy + 24, byteCount: size - 24)
        UnsafeMutableRawPointer(gpr).copyMemory(from: copy + size, byteCount: 128)
        s.pointee.arithmetic_flags = arithmetic
    }

    /// VZEROALL from 160, VZEROUPPER from 576.
    private func clearVectors(from start: Int) {
        let n = s.pointee.code_size == 8 ? 256 : 128
        if start == 160 { (area + 160).initializeMemory(as: UInt8.self, repeating: 0, count: n) }
        (area + 576).initializeMemory(as: UInt8.self, repeating: 0, count: n)
    }
}
