// Segment descriptors and the loading of segment registers (SDM 3A 3.4 and 3.5, 5.2 to 5.8).
//
// A segment register's hidden part keeps what the descriptor said; in real mode a load changes base and selector only,
// so that a limit set in protected mode stays ("unreal" mode). SS.DPL is the current privilege level, also when SS is
// null.
internal import CHost

/// Segment register numbers as array indices.
enum SegmentIndex {
    static var es: Int { 0 }
    static var cs: Int { 1 }
    static var ss: Int { 2 }
    static var ds: Int { 3 }
    static var fs: Int { 4 }
    static var gs: Int { 5 }
    static var ldtr: Int { 6 }
    static var tr: Int { 7 }
}

/// A descriptor as read from the GDT, LDT or IDT.
///
/// - Spec: SDM 3A 3.4.5, 3.5, 6.11.
struct SegmentDescriptor: BitwiseCopyable {
    /// The first eight bytes.
    var raw: UInt64
    /// The second eight bytes of a system descriptor in long mode.
    var upper: UInt64 = 0
    /// Linear address of the descriptor.
    var address: UInt64 = 0

    var type: UInt8 { UInt8(truncatingIfNeeded: raw >> 40) & 15 }
    /// S: code or data, not system.
    var isCodeOrData: Bool { raw & (1 << 44) != 0 }
    var dpl: UInt8 { UInt8(truncatingIfNeeded: raw >> 45) & 3 }
    var isPresent: Bool { raw & (1 << 47) != 0 }
    var isLong: Bool { raw & (1 << 53) != 0 }
    var isBig: Bool { raw & (1 << 54) != 0 }
    var isCode: Bool { isCodeOrData && type & 8 != 0 }
    var isConforming: Bool { type & 12 == 12 }
    var isReadable: Bool { isCodeOrData && type & 10 != 8 }
    var isWritable: Bool { isCodeOrData && type & 10 == 2 }
    var attributes: UInt16 { UInt16(truncatingIfNeeded: raw >> 40) & 0xF0FF }
    var base: UInt64 { ((raw >> 16) & 0xFF_FFFF) | ((raw >> 56) << 24) | (upper << 32) }
    var limit: UInt32 {
        let field = UInt32(truncatingIfNeeded: (raw & 0xFFFF) | ((raw >> 32) & 0xF0000))
        return raw & (1 << 55) != 0 ? (field << 12) | 0xFFF : field
    }
    // Gates.
    var gateSelector: UInt16 { UInt16(truncatingIfNeeded: raw >> 16) }
    var gateOffset: UInt64 { (raw & 0xFFFF) | ((raw >> 32) & 0xFFFF_0000) | (upper << 32) }
    var gateCount: Int { Int((raw >> 32) & 31) }

    /// The register's contents after a load of this descriptor (accessed bit set).
    func segment(_ selector: UInt16) -> roost_segment {
        roost_segment(
            base: base, limit: limit, selector: selector, attributes: attributes | (isCodeOrData ? 1 : 0))
    }
}

/// A stack that is being pushed to before SS:ESP is committed to it.
struct StackFrame {
    let base: UInt64
    let limit: UInt32
    /// Bytes of the stack pointer that are used: 2, 4 or 8.
    let width: UInt8
    let expandsDown: Bool
    let supervisor: Bool
    /// Error code of #SS.
    let faultCode: UInt32
    var pointer: UInt64
}

extension VCPU {
    /// A selector as an error code (SDM 3A 6.13).
    @inline(__always)
    func code(_ selector: UInt16) -> UInt32 { UInt32(selector & 0xFFFC) }

    /// Whether a selector is null.
    @inline(__always)
    func isNull(_ selector: UInt16) -> Bool { selector & 0xFFFC == 0 }

    /// Whether the CPU is in real or virtual-8086 mode: segments are paragraphs.
    @inline(__always)
    var hasParagraphs: Bool { s.pointee.protected_mode == 0 || s.pointee.virtual8086 != 0 }

    /// Reads system data as the processor does by itself: supervisor, whatever the CPL.
    @inline(__always)
    func systemLoad<T: GuestInteger>(_ linear: UInt64, as type: T.Type = T.self) throws(CPUException) -> T {
        try loadLinear(s.pointee.long_mode != 0 ? linear : linear & 0xFFFF_FFFF, supervisor: true)
    }

    /// Writes system data as the processor does by itself.
    @inline(__always)
    func systemStore<T: GuestInteger>(_ linear: UInt64, _ value: T) throws(CPUException) {
        try storeLinear(s.pointee.long_mode != 0 ? linear : linear & 0xFFFF_FFFF, value, supervisor: true)
    }

    // MARK: Descriptors

    /// The descriptor that a selector names; nil outside its table.
    func readDescriptor(_ selector: UInt16) throws(CPUException) -> SegmentDescriptor? {
        let offset = UInt64(selector & 0xFFF8)
        let base: UInt64
        if selector & 4 != 0 {
            let table = segment(SegmentIndex.ldtr).pointee
            if table.attributes & 0x80 == 0 || offset &+ 7 > UInt64(table.limit) { return nil }
            base = table.base
        } else {
            if offset &+ 7 > UInt64(s.pointee.gdtr_limit) { return nil }
            base = s.pointee.gdtr_base
        }
        let address = base &+ offset
        return SegmentDescriptor(raw: try systemLoad(address), address: address)
    }

    /// The descriptor of a code or data segment; `#GP(selector)` outside its table.
    func requireDescriptor(_ selector: UInt16) throws(CPUException) -> SegmentDescriptor {
        guard let d = try readDescriptor(selector) else { throw .generalProtection(code(selector)) }
        return d
    }

    /// Reads the second half of a system descriptor in long mode; `#GP(selector)` when it is malformed.
    func completeSystemDescriptor(_ d: inout SegmentDescriptor, _ selector: UInt16) throws(CPUException) {
        if s.pointee.long_mode == 0 { return }
        let limit = selector & 4 != 0 ? segment(SegmentIndex.ldtr).pointee.limit : s.pointee.gdtr_limit
        if UInt64(selector & 0xFFF8) &+ 15 > UInt64(limit) { throw .generalProtection(code(selector)) }
        d.upper = try systemLoad(d.address &+ 8)
        if (d.upper >> 40) & 31 != 0 { throw .generalProtection(code(selector)) }
        d.upper &= 0xFFFF_FFFF
    }

    /// Sets the accessed bit of a code or data descriptor in its table.
    func markAccessed(_ d: SegmentDescriptor) throws(CPUException) {
        if d.raw & (1 << 40) != 0 { return }
        try systemStore(d.address &+ 5, UInt8(truncatingIfNeeded: d.raw >> 40) | 1)
    }

    // MARK: Loads

    /// Loads ES, SS, DS, FS or GS with all checks (MOV, POP, LDS, ...).
    package func loadSegment(_ n: Int, selector: UInt16) throws(CPUException) {
        let new: roost_segment
        if hasParagraphs {
            new = paragraphSegment(n, selector)
        } else if n == SegmentIndex.ss {
            new = try stackSegment(
                selector, cpl: s.pointee.cpl, allowsNull: s.pointee.code_size == 8 && s.pointee.cpl < 3)
        } else {
            new = try dataSegment(n, selector, cpl: s.pointee.cpl)
        }
        segment(n).pointee = new
        updateMode()
    }

    /// What a load in real or virtual-8086 mode makes of a segment register.
    func paragraphSegment(_ n: Int, _ selector: UInt16) -> roost_segment {
        var new = segment(n).pointee
        new.selector = selector
        new.base = UInt64(selector) << 4
        if s.pointee.virtual8086 != 0 {
            new.limit = 0xFFFF
            new.attributes = 0xF3
        } else {
            new.attributes = (new.attributes & 0xC000) | 0x93
        }
        return new
    }

    /// What virtual-8086 mode makes of a selector.
    func virtual8086Segment(_ selector: UInt16) -> roost_segment {
        roost_segment(base: UInt64(selector) << 4, limit: 0xFFFF, selector: selector, attributes: 0xF3)
    }

    /// A null data segment; the limit stays for a later return to real mode.
    func nullSegment(_ n: Int, _ selector: UInt16) -> roost_segment {
        roost_segment(base: 0, limit: segment(n).pointee.limit, selector: selector, attributes: 0)
    }

    /// Checks and fetches a data segment (SDM 3A 5.6).
    func dataSegment(_ n: Int, _ selector: UInt16, cpl: UInt8, isTaskSwitch: Bool = false) throws(CPUException)
        -> roost_segment
    {
        if isNull(selector) { return nullSegment(n, selector) }
        let wrong = isTaskSwitch ? CPUException.invalidTSS(code(selector)) : .generalProtection(code(selector))
        guard let d = try readDescriptor(selector), d.isReadable else { throw wrong }
        if !d.isCode || !d.isConforming {
            if UInt8(selector & 3) > d.dpl || cpl > d.dpl { throw wrong }
        }
        if !d.isPresent { throw .segmentNotPresent(code(selector)) }
        try markAccessed(d)
        return d.segment(selector)
    }

    /// Checks and fetches a stack segment for privilege level `cpl` (SDM 3A 5.7).
    ///
    /// The selector comes from an instruction or, with `fromTSS`, from a TSS: then errors are #TS.
    func stackSegment(_ selector: UInt16, cpl: UInt8, allowsNull: Bool, fromTSS: Bool = false)
        throws(CPUException) -> roost_segment
    {
        if isNull(selector) {
            if allowsNull && UInt8(selector & 3) == cpl { return nullStack(cpl) }
            throw fromTSS ? .invalidTSS(0) : .generalProtection(0)
        }
        let wrong = fromTSS ? CPUException.invalidTSS(code(selector)) : .generalProtection(code(selector))
        guard let d = try readDescriptor(selector), UInt8(selector & 3) == cpl, d.dpl == cpl, d.isWritable else {
            throw wrong
        }
        if !d.isPresent { throw .stackFault(code(selector)) }
        try markAccessed(d)
        return d.segment(selector)
    }

    /// The null SS of 64-bit mode at a privilege level.
    func nullStack(_ cpl: UInt8) -> roost_segment {
        roost_segment(
            base: 0, limit: segment(SegmentIndex.ss).pointee.limit, selector: UInt16(cpl), attributes: UInt16(cpl) << 5)
    }

    // MARK: Code segments

    /// The descriptor of a code segment to transfer to: not null, in its table, code; `#GP` otherwise.
    func codeDescriptor(_ selector: UInt16) throws(CPUException) -> SegmentDescriptor {
        if isNull(selector) { throw .generalProtection(0) }
        let d = try requireDescriptor(selector)
        if !d.isCode { throw .generalProtection(code(selector)) }
        return d
    }

    /// Whether code in this segment runs in 64-bit mode.
    @inline(__always)
    func is64Bit(_ d: SegmentDescriptor) -> Bool { s.pointee.long_mode != 0 && d.isLong }

    /// The last checks of a far transfer: L and D not both, present, offset inside.
    func checkTarget(_ d: SegmentDescriptor, _ selector: UInt16, _ offset: UInt64) throws(CPUException) {
        if is64Bit(d) && d.isBig { throw .generalProtection(code(selector)) }
        if !d.isPresent { throw .segmentNotPresent(code(selector)) }
        try checkOffset(d, offset)
    }

    /// `#GP(0)` for an offset beyond the limit, or not canonical in 64-bit code.
    func checkOffset(_ d: SegmentDescriptor, _ offset: UInt64) throws(CPUException) {
        if is64Bit(d) ? !isCanonical(offset) : offset > UInt64(d.limit) { throw .generalProtection(0) }
    }

    /// Commits CS and CPL; `updateMode` is the caller's.
    func setCode(_ d: SegmentDescriptor, _ selector: UInt16, cpl: UInt8) {
        segment(SegmentIndex.cs).pointee = d.segment((selector & 0xFFFC) | UInt16(cpl))
        s.pointee.cpl = cpl
    }

    /// Commits CS as real or virtual-8086 mode does.
    func setParagraphCode(_ selector: UInt16) {
        segment(SegmentIndex.cs).pointee = paragraphSegment(SegmentIndex.cs, selector)
    }

    /// After a return to an outer level: data segments that the new level may not use become null (SDM 3A 5.8.6).
    func dropInnerSegments(_ cpl: UInt8) {
        for n in 0..<6 where n != SegmentIndex.cs && n != SegmentIndex.ss {
            // A null FS or GS keeps the base that 64-bit code gave it.
            let a = segment(n).pointee.attributes
            let isConforming = a & 0x1C == 0x1C
            if a & 0x80 != 0 && UInt8(truncatingIfNeeded: a >> 5) & 3 < cpl && !isConforming {
                segment(n).pointee.selector = 0
                segment(n).pointee.attributes = 0
            }
        }
    }

    // MARK: Stacks that aren't SS:ESP yet

    /// The present stack as a frame to push to.
    func currentFrame(wide: Bool = false) -> StackFrame {
        let ss = segment(SegmentIndex.ss).pointee
        if wide || s.pointee.stack_size == 8 {
            return StackFrame(
                base: 0, limit: 0, width: 8, expandsDown: false, supervisor: s.pointee.cpl != 3, faultCode: 0,
                pointer: gpr[4])
        }
        return frame(ss, gpr[4], cpl: s.pointee.cpl, faultCode: 0)
    }

    /// A frame in a segment with limits.
    func frame(_ ss: roost_segment, _ pointer: UInt64, cpl: UInt8, faultCode: UInt32) -> StackFrame {
        let big = ss.attributes & 0x4000 != 0
        return StackFrame(
            base: ss.base, limit: ss.limit, width: big ? 4 : 2,
            expandsDown: ss.attributes & 0x1C == 0x14, supervisor: cpl != 3, faultCode: faultCode,
            pointer: truncateAddress(pointer, big ? 4 : 2))
    }

    /// A frame on a flat 64-bit stack of an inner level.
    func wideFrame(_ pointer: UInt64, cpl: UInt8) -> StackFrame {
        StackFrame(
            base: 0, limit: 0, width: 8, expandsDown: false, supervisor: cpl != 3, faultCode: 0, pointer: pointer)
    }

    /// Pushes to a frame: `#SS` outside its segment.
    func push(_ frame: inout StackFrame, _ value: UInt64, size: Int) throws(CPUException) {
        let top = truncateAddress(frame.pointer &- UInt64(size), frame.width)
        let last = top &+ UInt64(size) &- 1
        var linear = frame.base &+ top
        if frame.width == 8 {
            if !isCanonical(top) || !isCanonical(last) { throw .stackFault(frame.faultCode) }
        } else {
            let outside =
                frame.expandsDown
                ? top <= UInt64(frame.limit) || last > (frame.width == 4 ? 0xFFFF_FFFF : 0xFFFF)
                : last > UInt64(frame.limit)
            if outside { throw .stackFault(frame.faultCode) }
            linear &= 0xFFFF_FFFF
        }
        switch size {
        case 8: try storeLinear(linear, value, supervisor: frame.supervisor)
        case 4: try storeLinear(linear, UInt32(truncatingIfNeeded: value), supervisor: frame.supervisor)
        default: try storeLinear(linear, UInt16(truncatingIfNeeded: value), supervisor: frame.supervisor)
        }
        frame.pointer = top
    }

    /// Commits a frame's pointer to RSP in its width; upper halves stay with a 16-bit stack.
    func commit(_ frame: StackFrame) {
        switch frame.width {
        case 8: gpr[4] = frame.pointer
        case 4: gpr[4] = frame.pointer & 0xFFFF_FFFF
        default: gpr[4] = (gpr[4] & ~0xFFFF) | (frame.pointer & 0xFFFF)
        }
    }

    // MARK: The TSS

    /// Reads the current TSS; `#TS(TR)` beyond its limit.
    func readTSS<T: GuestInteger>(_ offset: UInt64, as type: T.Type = T.self) throws(CPUException) -> T {
        let tr = segment(SegmentIndex.tr).pointee
        if offset &+ UInt64(MemoryLayout<T>.size) &- 1 > UInt64(tr.limit) || tr.attributes & 0x80 == 0 {
            throw .invalidTSS(code(tr.selector))
        }
        return try systemLoad(tr.base &+ offset)
    }

    /// SS and ESP for an inner privilege level from a 16- or 32-bit TSS (SDM 3A 5.8.5).
    func innerStack(_ level: UInt8) throws(CPUException) -> (selector: UInt16, pointer: UInt64) {
        if segment(SegmentIndex.tr).pointee.attributes & 8 != 0 {
            let offset = UInt64(level) &* 8 &+ 4
            let selector: UInt16 = try readTSS(offset &+ 4)
            return (selector, UInt64(try readTSS(offset, as: UInt32.self)))
        }
        let offset = UInt64(level) &* 4 &+ 2
        let selector: UInt16 = try readTSS(offset &+ 2)
        return (selector, UInt64(try readTSS(offset, as: UInt16.self)))
    }
}
