// Guest memory accesses of the processor: the inline TLB probe, and everything it leaves.
//
// Invariant: a TLB entry whose tag matches maps a page of RAM or ROM that stays mapped at `linear + addend` while the
// machine lives; `write_tag` matches only where a store needs nothing but the store.
internal import CHost
internal import GuestMemory

extension VCPU {
    /// Linear address of an offset in a segment.
    @inline(__always)
    func linearAddress(_ segment: Int, _ offset: UInt64) -> UInt64 {
        (offset &+ roost_effective_base_at(s, segment).pointee) & s.pointee.linear_mask
    }

    @inline(__always)
    private func slot(_ linear: UInt64) -> UnsafeMutablePointer<roost_tlb_entry> {
        s.pointee.tlb + Int(truncatingIfNeeded: (linear >> 12) & UInt64(ROOST_TLB_ENTRIES - 1))
    }

    /// The tag that an access of `size` bytes must find: that of its last byte's page.
    @inline(__always)
    private func tag(_ linear: UInt64, _ size: Int) -> UInt64 {
        ((linear &+ UInt64(size &- 1)) & ~0xFFF) | UInt64(s.pointee.address_space)
    }

    /// Loads from a segment.
    @inline(__always)
    package func load<T: GuestInteger>(_ segment: Int, _ offset: UInt64, as type: T.Type = T.self) throws(CPUException)
        -> T
    {
        let linear = linearAddress(segment, offset)
        let entry = slot(linear)
        if entry.pointee.read_tag == tag(linear, MemoryLayout<T>.size)
            && roost_segment_check_at(s, segment).pointee == 0
        {
            return hostPointer(linear &+ entry.pointee.addend).loadUnaligned(as: T.self)
        }
        return T(truncatingIfNeeded: try loadSlowly(segment, offset, MemoryLayout<T>.size))
    }

    /// Stores to a segment.
    @inline(__always)
    package func store<T: GuestInteger>(_ segment: Int, _ offset: UInt64, _ value: T) throws(CPUException) {
        let linear = linearAddress(segment, offset)
        let entry = slot(linear)
        if entry.pointee.write_tag == tag(linear, MemoryLayout<T>.size)
            && roost_segment_check_at(s, segment).pointee == 0
        {
            hostPointer(linear &+ entry.pointee.addend).storeBytes(of: value, as: T.self)
            return
        }
        try storeSlowly(segment, offset, UInt64(truncatingIfNeeded: value), MemoryLayout<T>.size)
    }

    /// Loads 16 bytes from a segment: as one access where they are aligned and in memory (SDM 3A 9.1.1), else as two.
    @inline(__always)
    func loadVector(_ segment: Int, _ offset: UInt64, into buffer: UnsafeMutableRawPointer) throws(CPUException) {
        let linear = linearAddress(segment, offset)
        let entry = slot(linear)
        if entry.pointee.read_tag == tag(linear, 16) && roost_segment_check_at(s, segment).pointee == 0 {
            return roost_load16(buffer, hostPointer(linear &+ entry.pointee.addend))
        }
        try loadVectorSlowly(segment, offset, into: buffer)
    }

    /// Stores 16 bytes to a segment likewise.
    @inline(__always)
    func storeVector(_ segment: Int, _ offset: UInt64, from buffer: UnsafeRawPointer) throws(CPUException) {
        let linear = linearAddress(segment, offset)
        let entry = slot(linear)
        if entry.pointee.write_tag == tag(linear, 16) && roost_segment_check_at(s, segment).pointee == 0 {
            return roost_store16(hostPointer(linear &+ entry.pointee.addend), buffer)
        }
        try storeVectorSlowly(segment, offset, from: buffer)
    }

    /// Loads what will be stored to: faults as the store would.
    package func loadForWrite<T: GuestInteger>(
        _ segment: Int, _ offset: UInt64, as type: T.Type = T.self
    ) throws(CPUException) -> T {
        let linear = try checkedLinear(segment, offset, MemoryLayout<T>.size, write: true)
        let first = try translate(linear, write: true)
        let room = 4096 - Int(linear & 4095)
        if MemoryLayout<T>.size > room {
            _ = try translate((linear &+ UInt64(room)) & s.pointee.linear_mask, write: true)
        }
        _ = first
        return T(truncatingIfNeeded: try loadLinearSlowly(linear, MemoryLayout<T>.size, supervisor: false))
    }

    /// Where a read-modify-write may work in place, which is never a page of code; nil: one that must be atomic tries
    /// `updateCode`, the others go through `loadForWrite` and `store`.
    @inline(__always)
    func hostPointerForUpdate<T: GuestInteger>(
        _ segment: Int, _ offset: UInt64
    ) throws(CPUException) -> UnsafeMutablePointer<T>? {
        let linear = linearAddress(segment, offset)
        let entry = slot(linear)
        if entry.pointee.write_tag == tag(linear, MemoryLayout<T>.size)
            && roost_segment_check_at(s, segment).pointee == 0
        {
            return hostPointer(linear &+ entry.pointee.addend).assumingMemoryBound(to: T.self)
        }
        return try updatePointerSlowly(segment, offset, MemoryLayout<T>.size)?.assumingMemoryBound(to: T.self)
    }

    /// Host memory from an offset to the end of its page, for the string instructions; nil: go element by element.
    func hostRun(
        _ segment: Int, _ offset: UInt64, write: Bool
    ) throws(CPUException) -> (UnsafeMutablePointer<UInt8>, Int)? {
        let linear = linearAddress(segment, offset)
        if roost_segment_check_at(s, segment).pointee != 0 || s.pointee.slow_memory != 0 { return nil }
        let entry = s.pointee.logs_stores == 0 ? slot(linear) : contextSlot(linear)
        let wanted = (linear & ~0xFFF) | UInt64(s.pointee.address_space)
        if (write ? entry.pointee.write_tag : entry.pointee.read_tag) != wanted {
            if isCanonicalData(linear) { _ = try translate(linear, write: write) }
            if (write ? entry.pointee.write_tag : entry.pointee.read_tag) != wanted { return nil }
        }
        let pointer = hostPointer(linear &+ entry.pointee.addend)
        return (pointer.assumingMemoryBound(to: UInt8.self), 4096 - Int(linear & 4095))
    }

    @inline(__always)
    private func hostPointer(_ address: UInt64) -> UnsafeMutableRawPointer {
        UnsafeMutableRawPointer(bitPattern: UInt(truncatingIfNeeded: address)).unsafelyUnwrapped
    }

    @inline(__always)
    private func isCanonicalData(_ linear: UInt64) -> Bool { s.pointee.code_size != 8 || isCanonical(linear) }

    // MARK: Slow paths

    /// Linear address after the segment's and alignment checks.
    private func checkedLinear(
        _ segment: Int, _ offset: UInt64, _ size: Int, write: Bool
    ) throws(CPUException) -> UInt64 {
        if roost_segment_check_at(s, segment).pointee != 0 { try checkSegment(segment, offset, size, write: write) }
        let linear = linearAddress(segment, offset)
        if s.pointee.code_size == 8 && !(isCanonical(linear) && isCanonical(linear &+ UInt64(size - 1))) {
            throw segment == Int(ROOST_SS) ? .stackFault(0) : .generalProtection(0)
        }
        if s.pointee.slow_memory != 0 {
            if alignmentChecked && linear & UInt64(size - 1) != 0 { throw .alignmentCheck }
        }
        return linear
    }

    /// Limit, type and null checks outside 64-bit mode (SDM 3A 5.3 to 5.5).
    private func checkSegment(_ n: Int, _ offset: UInt64, _ size: Int, write: Bool) throws(CPUException) {
        let g = segment(n)
        let fault: CPUException = n == Int(ROOST_SS) ? .stackFault(0) : .generalProtection(0)
        let attributes = g.pointee.attributes
        let last = offset &+ UInt64(size - 1)
        if s.pointee.protected_mode != 0 && s.pointee.virtual8086 == 0 {
            if attributes & 0x80 == 0 { throw fault }
            let type = attributes & 15
            if write ? (type & 8 != 0 || type & 2 == 0) : (type & 10 == 8) { throw fault }
            if type & 0xC == 4 {
                // Expand-down: valid above the limit.
                let top: UInt64 = attributes & 0x4000 != 0 ? 0xFFFF_FFFF : 0xFFFF
                if offset <= UInt64(g.pointee.limit) || last > top { throw fault }
                return
            }
        }
        if last > UInt64(g.pointee.limit) { throw fault }
    }

    @inline(never)
    private func loadSlowly(_ segment: Int, _ offset: UInt64, _ size: Int) throws(CPUException) -> UInt64 {
        let linear = try checkedLinear(segment, offset, size, write: false)
        let value = try loadLinearSlowly(linear, size, supervisor: false)
        if s.pointee.slow_memory != 0 { matchDataBreakpoint(linear, size: size, write: false) }
        return value
    }

    @inline(never)
    private func storeSlowly(_ segment: Int, _ offset: UInt64, _ value: UInt64, _ size: Int) throws(CPUException) {
        let linear = try checkedLinear(segment, offset, size, write: true)
        try storeLinearSlowly(linear, value, size, supervisor: false)
        if s.pointee.slow_memory != 0 { matchDataBreakpoint(linear, size: size, write: true) }
    }

    @inline(never)
    private func loadVectorSlowly(
        _ segment: Int, _ offset: UInt64, into buffer: UnsafeMutableRawPointer
    ) throws(CPUException) {
        if linearAddress(segment, offset) & 15 == 0 {
            let linear = try checkedLinear(segment, offset, 16, write: false)
            let physical = try translate(linear, write: false)
            if isMemoryPage(physical >> 12) {
                roost_load16(buffer, s.pointee.ram + Int(physical))
                if s.pointee.slow_memory != 0 { matchDataBreakpoint(linear, size: 16, write: false) }
                return
            }
        }
        let low: UInt64 = try load(segment, offset)
        let high: UInt64 = try load(segment, offset &+ 8)
        buffer.storeBytes(of: low, as: UInt64.self)
        buffer.storeBytes(of: high, toByteOffset: 8, as: UInt64.self)
    }

    @inline(never)
    private func storeVectorSlowly(
        _ segment: Int, _ offset: UInt64, from buffer: UnsafeRawPointer
    ) throws(CPUException) {
        if linearAddress(segment, offset) & 15 == 0 {
            let linear = try checkedLinear(segment, offset, 16, write: true)
            let physical = try translate(linear, write: true)
            if let target = beginStore(physical, 16) {
                roost_store16(target, buffer)
                endStore(physical, 16)
                if s.pointee.slow_memory != 0 { matchDataBreakpoint(linear, size: 16, write: true) }
                return
            }
        }
        try store(segment, offset, buffer.loadUnaligned(as: UInt64.self))
        try store(segment, offset &+ 8, buffer.loadUnaligned(fromByteOffset: 8, as: UInt64.self))
    }

    @inline(never)
    private func updatePointerSlowly(
        _ segment: Int, _ offset: UInt64, _ size: Int
    ) throws(CPUException) -> UnsafeMutableRawPointer? {
        let linear = try checkedLinear(segment, offset, size, write: true)
        if Int(linear & 4095) + size > 4096 { return nil }
        let physical = try translate(linear, write: true)
        let page = physical >> 12
        // Who marks the page as code from now on waits until this vCPU is done.
        guard isMemoryPage(page), s.pointee.page_flags[Int(page)] & 1 == 0, let target = beginStore(physical, size)
        else { return nil }
        if s.pointee.slow_memory != 0 { matchDataBreakpoint(linear, size: size, write: true) }
        return target
    }

    /// Carries out a read-modify-write as one operation in RAM that may be a page of code; nil: it must be done by
    /// `loadForWrite` and `store`, which is all the same where there is one vCPU.
    @inline(never)
    func updateCode(
        _ segment: Int, _ offset: UInt64, size: Int, _ body: (UnsafeMutableRawPointer) -> UInt64
    ) throws(CPUException) -> UInt64? {
        guard hasGroup else { return nil }
        let linear = try checkedLinear(segment, offset, size, write: true)
        if Int(linear & 4095) + size > 4096 { return nil }
        let physical = try translate(linear, write: true)
        guard let target = beginStore(physical, size) else { return nil }
        let result = body(target)
        endStore(physical, size)
        if s.pointee.slow_memory != 0 { matchDataBreakpoint(linear, size: size, write: true) }
        return result
    }

    /// Loads from a linear address; `supervisor`: as system data, whatever the CPL.
    private func loadLinearSlowly(_ linear: UInt64, _ size: Int, supervisor: Bool) throws(CPUException) -> UInt64 {
        let room = 4096 - Int(linear & 4095)
        let physical = try translate(linear, write: false, supervisor: supervisor)
        if size <= room { return try loadPhysical(physical, size) }
        let second = try translate(
            (linear &+ UInt64(room)) & s.pointee.linear_mask, write: false, supervisor: supervisor)
        let low = try loadPieces(physical, room)
        let high = try loadPieces(second, size - room)
        return low | high << UInt64(room * 8)
    }

    private func storeLinearSlowly(
        _ linear: UInt64, _ value: UInt64, _ size: Int, supervisor: Bool
    ) throws(CPUException) {
        let room = 4096 - Int(linear & 4095)
        let physical = try translate(linear, write: true, supervisor: supervisor)
        if size <= room { return try storePhysical(physical, value, size) }
        let second = try translate(
            (linear &+ UInt64(room)) & s.pointee.linear_mask, write: true, supervisor: supervisor)
        for n in 0..<size {
            let at = n < room ? physical &+ UInt64(n) : second &+ UInt64(n - room)
            try storePhysical(at, (value >> UInt64(n * 8)) & 0xFF, 1)
        }
    }

    private func loadPieces(_ physical: UInt64, _ count: Int) throws(CPUException) -> UInt64 {
        var value: UInt64 = 0
        for n in 0..<count { value |= try loadPhysical(physical &+ UInt64(n), 1) << UInt64(n * 8) }
        return value
    }

    /// Whether a guest-physical page is RAM or ROM; if so its content is there.
    @inline(__always)
    func isMemoryPage(_ page: UInt64) -> Bool {
        let address = page << 12
        if address < s.pointee.ram_low_end || (address >= 0x1_0000_0000 && address < s.pointee.ram_high_end) {
            if s.pointee.page_flags[Int(page)] & PageFlags.absent.rawValue != 0 { bringIn(page) }
            return true
        }
        return page < s.pointee.ram_limit >> 12 && s.pointee.page_flags[Int(page)] & 4 != 0
    }

    /// The memory behind the vCPU.
    private var memory: GuestMemory {
        Unmanaged<GuestMemory>.fromOpaque(s.pointee.memory.unsafelyUnwrapped).takeUnretainedValue()
    }

    /// Copies a page from the saved memory that the machine goes on from.
    @inline(never)
    func bringIn(_ page: UInt64) { memory.bringIn(page) }

    private func loadPhysical(_ physical: UInt64, _ size: Int) throws(CPUException) -> UInt64 {
        guard isMemoryPage(physical >> 12) else {
            return try answer(.mmioRead, address: physical, size: size, value: 0)
        }
        let pointer = UnsafeRawPointer(s.pointee.ram + Int(physical))
        switch size {
        case 8: return pointer.loadUnaligned(as: UInt64.self)
        case 4: return UInt64(pointer.loadUnaligned(as: UInt32.self))
        case 2: return UInt64(pointer.loadUnaligned(as: UInt16.self))
        default: return UInt64(pointer.load(as: UInt8.self))
        }
    }

    private func storePhysical(_ physical: UInt64, _ value: UInt64, _ size: Int) throws(CPUException) {
        guard isMemoryPage(physical >> 12) else {
            _ = try answer(.mmioWrite, address: physical, size: size, value: value)
            return
        }
        // ROM drops it.
        guard let pointer = beginStore(physical, size) else { return }
        switch size {
        case 8: pointer.storeBytes(of: value, as: UInt64.self)
        case 4: pointer.storeBytes(of: UInt32(truncatingIfNeeded: value), as: UInt32.self)
        case 2: pointer.storeBytes(of: UInt16(truncatingIfNeeded: value), as: UInt16.self)
        default: pointer.storeBytes(of: UInt8(truncatingIfNeeded: value), as: UInt8.self)
        }
        endStore(physical, size)
    }

    /// Where a store within a page of RAM goes, after which `endStore` is to be called; nil: ROM or a device.
    @inline(__always)
    private func beginStore(_ physical: UInt64, _ size: Int) -> UnsafeMutableRawPointer? {
        let page = physical >> 12
        guard isMemoryPage(page), s.pointee.page_flags[Int(page)] & 4 == 0 else { return nil }
        if s.pointee.logs_stores != 0 { logStore(physical, size) }
        noteDirty(page)
        return UnsafeMutableRawPointer(s.pointee.ram + Int(physical))
    }

    /// Tells of a store to a page of code. It must have happened: another vCPU that decodes meanwhile either reads what was
    /// stored, or has marked those bytes before `codeWritten` looks.
    @inline(__always)
    private func endStore(_ physical: UInt64, _ size: Int) {
        if s.pointee.page_flags[Int(physical >> 12)] & 1 != 0 { codeWritten(physical, size) }
    }

    /// A page is about to be stored to.
    @inline(__always)
    func noteDirty(_ page: UInt64) {
        if s.pointee.page_flags[Int(page)] & PageFlags.dirty.rawValue == 0 { memory.willWrite(page) }
    }

    // MARK: System data

    /// Loads from a linear address as descriptor tables and task states are read: with supervisor rights unless told
    /// otherwise.
    package func loadLinear<T: GuestInteger>(_ linear: UInt64, supervisor: Bool) throws(CPUException) -> T {
        if s.pointee.long_mode != 0 && !isCanonical(linear) { throw .generalProtection(0) }
        return T(truncatingIfNeeded: try loadLinearSlowly(linear, MemoryLayout<T>.size, supervisor: supervisor))
    }

    /// Stores to a linear address likewise.
    package func storeLinear<T: GuestInteger>(_ linear: UInt64, _ value: T, supervisor: Bool) throws(CPUException) {
        if s.pointee.long_mode != 0 && !isCanonical(linear) { throw .generalProtection(0) }
        try storeLinearSlowly(
            linear, UInt64(truncatingIfNeeded: value), MemoryLayout<T>.size, supervisor: supervisor)
    }
}
