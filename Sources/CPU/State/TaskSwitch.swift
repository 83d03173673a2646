// The hardware task switch (SDM 3A chapter 8).
//
// 32-bit TSS: 0 link, 4 ESP0, 8 SS0, ... 1C CR3, 20 EIP, 24 EFLAGS, 28 EAX ECX EDX EBX ESP EBP ESI EDI, 48 ES CS SS DS FS
// GS, 60 LDT, 64 T (bit 0), 66 I/O map base. 16-bit TSS: 0 link, 2 SP0, 4 SS0, ... E IP, 10 FLAGS, 12 AX CX DX BX SP BP
// SI DI, 22 ES CS SS DS, 2A LDT.
//
// Everything that can fault in the old task is read and checked first. From the commit on, faults belong to the new task.
internal import CHost

/// What starts a task switch.
enum TaskSwitchSource {
    case jump, call, iret, gate
}

/// A new task as read from its TSS.
private struct TaskState {
    var cr3: UInt32 = 0
    var eip: UInt32 = 0
    var eflags: UInt32 = 0
    var registers = [8 of UInt32](repeating: 0)
    /// ES CS SS DS FS GS.
    var selectors = [6 of UInt16](repeating: 0)
    var ldt: UInt16 = 0
    var trap = false
}

extension VCPU {
    /// JMP or CALL to a TSS or task gate whose privilege is already checked. Later faults are delivered here.
    func switchTask(_ selector: UInt16, _ source: TaskSwitchSource, _ rip: UInt64) throws(CPUException) {
        let d = try availableTSS(selector)
        let error = try switchTask(to: selector, d, source, errorCode: nil, rip)
        if let error { try deliver(error) }
    }

    /// An event through a task gate. Later faults are thrown for events, delivered here for INT n.
    func switchTaskThroughGate(_ selector: UInt16, _ source: EventSource, _ errorCode: UInt32?, _ rip: UInt64)
        throws(CPUException)
    {
        let d = try availableTSS(selector)
        let error = try switchTask(to: selector, d, .gate, errorCode: errorCode, rip)
        guard let error else { return }
        if source == .exception || source == .external { throw error }
        try deliver(error)
    }

    /// IRET with NT set: back to the task in the link field.
    func returnToPreviousTask(_ rip: UInt64) throws(CPUException) {
        let selector: UInt16 = try readTSS(0)
        if selector & 4 != 0 || isNull(selector) { throw .invalidTSS(code(selector)) }
        guard let d = try readDescriptor(selector), !d.isCodeOrData, d.type & 7 == 3 else {
            throw .invalidTSS(code(selector))
        }
        if !d.isPresent { throw .segmentNotPresent(code(selector)) }
        let error = try switchTask(to: selector, d, .iret, errorCode: nil, rip)
        if let error { try deliver(error) }
    }

    /// A TSS descriptor in the GDT, present and not busy.
    private func availableTSS(_ selector: UInt16) throws(CPUException) -> SegmentDescriptor {
        let wrong = CPUException.generalProtection(code(selector))
        guard selector & 4 == 0, !isNull(selector), let d = try readDescriptor(selector), !d.isCodeOrData,
            d.type & 7 == 1
        else { throw wrong }
        if !d.isPresent { throw .segmentNotPresent(code(selector)) }
        return d
    }

    /// The switch. Throws in the old task; returns what faulted in the new one.
    private func switchTask(
        to selector: UInt16, _ d: SegmentDescriptor, _ source: TaskSwitchSource, errorCode: UInt32?, _ rip: UInt64
    ) throws(CPUException) -> CPUException? {
        let is32 = d.type & 8 != 0
        if d.limit < (is32 ? 0x67 : 0x2B) { throw .invalidTSS(code(selector)) }
        let new = try readTask(d.base, is32)
        let old = segment(SegmentIndex.tr).pointee
        let oldIs32 = old.attributes & 8 != 0
        if old.attributes & 0x80 == 0 || old.limit < (oldIs32 ? 0x5F : 0x29) { throw .invalidTSS(code(old.selector)) }

        var savedFlags = rflags
        if source == .iret { savedFlags &= ~0x4000 }
        try saveTask(old.base, oldIs32, UInt32(truncatingIfNeeded: savedFlags), UInt32(truncatingIfNeeded: rip))
        if source == .call || source == .gate { try systemStore(d.base, old.selector) }
        if source == .jump || source == .iret {
            let address = s.pointee.gdtr_base &+ UInt64(old.selector & 0xFFF8) &+ 5
            let access: UInt8 = try systemLoad(address)
            try systemStore(address, access & ~2)
        }
        if source != .iret { try systemStore(d.address &+ 5, UInt8(truncatingIfNeeded: d.raw >> 40) | 2) }

        commitTask(selector, d, new, nested: source == .call || source == .gate)
        do throws(CPUException) {
            try enterTask(new, is32: is32)
            if let errorCode { try push(UInt64(errorCode), size: is32 ? 4 : 2) }
        } catch {
            return error
        }
        if new.trap {
            s.pointee.pending_debug |= DebugStatus.task
            return .debug
        }
        return nil
    }

    private func readTask(_ base: UInt64, _ is32: Bool) throws(CPUException) -> TaskState {
        var new = TaskState()
        if is32 {
            new.cr3 = try systemLoad(base &+ 0x1C)
            new.eip = try systemLoad(base &+ 0x20)
            new.eflags = try systemLoad(base &+ 0x24)
            for n in 0..<8 { new.registers[n] = try systemLoad(base &+ 0x28 &+ UInt64(n) &* 4) }
            for n in 0..<6 { new.selectors[n] = try systemLoad(base &+ 0x48 &+ UInt64(n) &* 4) }
            new.ldt = try systemLoad(base &+ 0x60)
            new.trap = try systemLoad(base &+ 0x64, as: UInt8.self) & 1 != 0
        } else {
            new.eip = UInt32(try systemLoad(base &+ 0x0E, as: UInt16.self))
            new.eflags = UInt32(try systemLoad(base &+ 0x10, as: UInt16.self))
            for n in 0..<8 {
                new.registers[n] = UInt32(try systemLoad(base &+ 0x12 &+ UInt64(n) &* 2, as: UInt16.self)) | 0xFFFF_0000
            }
            for n in 0..<4 { new.selectors[n] = try systemLoad(base &+ 0x22 &+ UInt64(n) &* 2) }
            new.ldt = try systemLoad(base &+ 0x2A)
        }
        return new
    }

    private func saveTask(_ base: UInt64, _ is32: Bool, _ flags: UInt32, _ eip: UInt32) throws(CPUException) {
        if is32 {
            try systemStore(base &+ 0x20, eip)
            try systemStore(base &+ 0x24, flags)
            for n in 0..<8 { try systemStore(base &+ 0x28 &+ UInt64(n) &* 4, UInt32(truncatingIfNeeded: gpr[n])) }
            for n in 0..<6 { try systemStore(base &+ 0x48 &+ UInt64(n) &* 4, segment(n).pointee.selector) }
        } else {
            try systemStore(base &+ 0x0E, UInt16(truncatingIfNeeded: eip))
            try systemStore(base &+ 0x10, UInt16(truncatingIfNeeded: flags))
            for n in 0..<8 { try systemStore(base &+ 0x12 &+ UInt64(n) &* 2, UInt16(truncatingIfNeeded: gpr[n])) }
            for n in 0..<4 { try systemStore(base &+ 0x22 &+ UInt64(n) &* 2, segment(n).pointee.selector) }
        }
    }

    /// From here the new task runs: registers, with every segment still unusable.
    private func commitTask(_ selector: UInt16, _ d: SegmentDescriptor, _ new: TaskState, nested: Bool) {
        var tr = d.segment(selector)
        tr.attributes |= 2
        segment(SegmentIndex.tr).pointee = tr
        for n in 0..<8 { gpr[n] = UInt64(new.registers[n]) }
        s.pointee.rip = UInt64(new.eip)
        rflags = UInt64(new.eflags) & 0x3F_7FD5 | (nested ? 0x4000 : 0)
        s.pointee.cr0 |= 8
        s.pointee.dr.7 &= ~0x155
        for n in 0..<6 {
            segment(n).pointee = roost_segment(
                base: 0, limit: segment(n).pointee.limit, selector: new.selectors[n], attributes: 0)
        }
        segment(SegmentIndex.ldtr).pointee = roost_segment(base: 0, limit: 0, selector: new.ldt, attributes: 0)
        let isVirtual = new.eflags & 0x20000 != 0
        s.pointee.cpl = isVirtual ? 3 : UInt8(new.selectors[SegmentIndex.cs] & 3)
        segment(SegmentIndex.ss).pointee.attributes = UInt16(s.pointee.cpl) << 5
        updateMode()
    }

    /// LDTR, CR3 and segments, with the new task's own faults (SDM 3A 8.3, table 8-1).
    private func enterTask(_ new: TaskState, is32: Bool) throws(CPUException) {
        if is32 && s.pointee.cr0 & 0x8000_0000 != 0 { try writeCR3(UInt64(new.cr3)) }
        if !isNull(new.ldt) {
            guard new.ldt & 4 == 0, let d = try readDescriptor(new.ldt), !d.isCodeOrData, d.type == 2, d.isPresent
            else {
                throw .invalidTSS(code(new.ldt))
            }
            segment(SegmentIndex.ldtr).pointee = d.segment(new.ldt)
        }
        if s.pointee.rflags & 0x20000 != 0 {
            for n in 0..<6 { segment(n).pointee = virtual8086Segment(new.selectors[n]) }
            updateMode()
        } else {
            try enterProtectedTask(new)
        }
        if s.pointee.rip > UInt64(segment(SegmentIndex.cs).pointee.limit) { throw .generalProtection(0) }
    }

    private func enterProtectedTask(_ new: TaskState) throws(CPUException) {
        let cs = new.selectors[SegmentIndex.cs]
        let cpl = UInt8(cs & 3)
        guard !isNull(cs), let d = try readDescriptor(cs), d.isCode, d.isConforming ? d.dpl <= cpl : d.dpl == cpl else {
            throw .invalidTSS(code(cs))
        }
        if !d.isPresent { throw .segmentNotPresent(code(cs)) }
        let ss = try stackSegment(new.selectors[SegmentIndex.ss], cpl: cpl, allowsNull: false, fromTSS: true)
        segment(SegmentIndex.ss).pointee = ss
        try markAccessed(d)
        setCode(d, cs, cpl: cpl)
        updateMode()
        for n in [SegmentIndex.ds, SegmentIndex.es, SegmentIndex.fs, SegmentIndex.gs] {
            segment(n).pointee = try dataSegment(n, new.selectors[n], cpl: cpl, isTaskSwitch: true)
        }
        updateMode()
    }
}
