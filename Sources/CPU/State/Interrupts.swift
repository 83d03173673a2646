// Delivery of interrupts and exceptions through the IVT, the IDT and task gates (SDM 3A chapter 6, 2A INT n).
//
// A delivery that faults changes no register; the loop in `raiseEvent` then delivers the fault, a double fault, or shuts
// the processor down (SDM 3A 6.15, table 6-5).
internal import CHost

/// Where an event comes from: decides about DPL checks, the EXT bit and the RF image.
enum EventSource: UInt8 {
    /// A pin or the local APIC.
    case external
    /// The processor itself.
    case exception
    /// INT n.
    case software
    /// INT3 and INTO.
    case trapInstruction
    /// INT1.
    case privilegedSoftware

    /// INT n, INT3, INTO: the gate's DPL counts.
    var checksPrivilege: Bool { self == .software || self == .trapInstruction }
    /// EXT in error codes of faults during delivery.
    var isExternal: Bool { !checksPrivilege }
}

extension VCPU {
    /// Delivers an exception with RIP already in place: at the instruction for faults, after it for traps.
    package func deliver(_ e: CPUException) throws(CPUException) {
        if !e.isArchitectural { throw e }
        s.pointee.exceptions &+= 1
        let vector = UInt8(truncatingIfNeeded: e.vector)
        if vector == 1 {
            takePendingDebug()
        } else {
            // A fault hides the instruction's data breakpoints: they match again when it is restarted.
            s.pointee.pending_debug = 0
        }
        let source: EventSource = vector == 3 || vector == 4 ? .trapInstruction : .exception
        try raiseEvent(vector, source, e.hasErrorCode ? e.errorCode : nil)
    }

    /// Delivers an external interrupt, or the NMI (vector 2).
    package func inject(_ vector: UInt8, external: Bool) throws(CPUException) {
        s.pointee.interrupts &+= 1
        s.pointee.halted = 0
        if vector == 2 { s.pointee.nmi_blocked = 1 }
        try raiseEvent(vector, external ? .external : .exception, nil)
    }

    /// Delivers an event and whatever faults on the way, up to the triple fault.
    private func raiseEvent(_ vector: UInt8, _ source: EventSource, _ errorCode: UInt32?) throws(CPUException) {
        var vector = vector
        var source = source
        var errorCode = errorCode
        var debugTraps = 0
        while true {
            let rip = s.pointee.rip
            do throws(CPUException) {
                try deliverOnce(vector, source, errorCode, rip)
                return
            } catch {
                // Tables or a stack outside RAM: no answer can be waited for here.
                if !error.isArchitectural { throw shutDown() }
                s.pointee.exceptions &+= 1
                // INT3 and INTO are one byte long: their own fault is reported at the instruction.
                if source == .trapInstruction && s.pointee.rip == rip { s.pointee.rip = rip &- 1 }
                let isException = source == .exception
                let second = UInt8(truncatingIfNeeded: error.vector)
                if second == 1 {
                    // A task switch whose TSS has the T bit: the event is already delivered.
                    takePendingDebug()
                    // Tasks with T bits that enter each other without end.
                    debugTraps += 1
                    if debugTraps > 8 { throw shutDown() }
                } else if isException && vector == 8 {
                    throw shutDown()
                }
                let isDouble =
                    isException
                    && ((isContributory(vector) && isContributory(second))
                        || (vector == 14 && (second == 14 || isContributory(second))))
                vector = isDouble ? 8 : second
                errorCode = isDouble ? 0 : (error.hasErrorCode ? error.errorCode : nil)
                source = .exception
            }
        }
    }

    /// #DE #TS #NP #SS #GP #CP (SDM 3A table 6-4).
    private func isContributory(_ vector: UInt8) -> Bool {
        vector == 0 || (vector >= 10 && vector <= 13) || vector == 21
    }

    /// The exit of a triple fault.
    func shutDown() -> CPUException {
        s.pointee.exit_kind = ExitKind.shutdown.rawValue
        s.pointee.exit_address = 0
        s.pointee.exit_size = 0
        s.pointee.exit_value = 0
        return .exit
    }

    /// One attempt. A throw leaves all registers as they were (unless a task switch was already past its commit).
    func deliverOnce(_ vector: UInt8, _ source: EventSource, _ errorCode: UInt32?, _ rip: UInt64)
        throws(CPUException)
    {
        do throws(CPUException) {
            if s.pointee.protected_mode == 0 {
                try deliverReal(vector, rip)
            } else if s.pointee.long_mode != 0 {
                try deliverLong(vector, source, errorCode, rip)
            } else {
                try deliverProtected(vector, source, errorCode, rip)
            }
        } catch {
            // Selector error codes carry EXT.
            if source.isExternal && error.vector >= 10 && error.vector <= 13 {
                var marked = error
                marked.errorCode |= 1
                throw marked
            }
            throw error
        }
        s.pointee.interrupt_shadow = 0
    }

    /// RFLAGS as pushed: RF set for faults (SDM 3B 17.3.1.1).
    private func flagsImage(_ vector: UInt8, _ source: EventSource) -> UInt64 {
        let isFault = source == .exception && vector != 1 && vector != 2 && vector != 8 && vector != 18
        return isFault ? rflags | 0x10000 : rflags
    }

    // MARK: Real mode

    /// Through the interrupt vector table (SDM 3B 20.1.4).
    private func deliverReal(_ vector: UInt8, _ rip: UInt64) throws(CPUException) {
        let offset = UInt64(vector) &* 4
        if offset &+ 3 > UInt64(s.pointee.idtr_limit) { throw .generalProtection(UInt32(vector) << 3 | 2) }
        let entry: UInt32 = try systemLoad(s.pointee.idtr_base &+ offset)
        let target = UInt64(entry & 0xFFFF)
        if target > UInt64(segment(SegmentIndex.cs).pointee.limit) { throw .generalProtection(0) }
        var stack = currentFrame()
        try push(&stack, rflags, size: 2)
        try push(&stack, UInt64(segment(SegmentIndex.cs).pointee.selector), size: 2)
        try push(&stack, rip, size: 2)
        commit(stack)
        setParagraphCode(UInt16(truncatingIfNeeded: entry >> 16))
        s.pointee.rflags &= ~0x50300
        s.pointee.rip = target
        updateMode()
    }

    // MARK: Protected mode

    /// Through an 8-byte IDT entry.
    private func deliverProtected(_ vector: UInt8, _ source: EventSource, _ errorCode: UInt32?, _ rip: UInt64)
        throws(CPUException)
    {
        let selfCode = UInt32(vector) << 3 | 2
        let offset = UInt64(vector) &* 8
        if offset &+ 7 > UInt64(s.pointee.idtr_limit) { throw .generalProtection(selfCode) }
        let gate = SegmentDescriptor(raw: try systemLoad(s.pointee.idtr_base &+ offset))
        let type = gate.type
        if gate.isCodeOrData || !(type == 5 || type & 6 == 6) { throw .generalProtection(selfCode) }
        if source.checksPrivilege && gate.dpl < s.pointee.cpl { throw .generalProtection(selfCode) }
        if !gate.isPresent { throw .segmentNotPresent(selfCode) }
        if type == 5 {
            try switchTaskThroughGate(gate.gateSelector, source, errorCode, rip)
            return
        }
        try enterHandler(gate, vector, source, errorCode, rip)
    }

    /// Interrupt and trap gates of 16 and 32 bits.
    private func enterHandler(
        _ gate: SegmentDescriptor, _ vector: UInt8, _ source: EventSource, _ errorCode: UInt32?, _ rip: UInt64
    ) throws(CPUException) {
        let wasVirtual = s.pointee.virtual8086 != 0
        let cpl = s.pointee.cpl
        let selector = gate.gateSelector
        let d = try codeDescriptor(selector)
        if d.dpl > cpl { throw .generalProtection(code(selector)) }
        if !d.isPresent { throw .segmentNotPresent(code(selector)) }
        let size = gate.type & 8 != 0 ? 4 : 2
        let target = size == 4 ? gate.gateOffset & 0xFFFF_FFFF : gate.gateOffset & 0xFFFF
        let goesInward = !d.isConforming && d.dpl < cpl
        if wasVirtual && (!goesInward || d.dpl != 0) { throw .generalProtection(code(selector)) }
        let newCPL = goesInward ? d.dpl : cpl
        let flags = flagsImage(vector, source)

        var stack: StackFrame
        var newSS = segment(SegmentIndex.ss).pointee
        if goesInward {
            let inner = try innerStack(d.dpl)
            newSS = try stackSegment(inner.selector, cpl: d.dpl, allowsNull: false, fromTSS: true)
            stack = frame(newSS, inner.pointer, cpl: d.dpl, faultCode: code(inner.selector))
            if wasVirtual {
                for n in [SegmentIndex.gs, SegmentIndex.fs, SegmentIndex.ds, SegmentIndex.es] {
                    try push(&stack, UInt64(segment(n).pointee.selector), size: size)
                }
            }
            try push(&stack, UInt64(segment(SegmentIndex.ss).pointee.selector), size: size)
            try push(&stack, gpr[4], size: size)
        } else {
            stack = currentFrame()
        }
        try push(&stack, flags, size: size)
        try push(&stack, UInt64(segment(SegmentIndex.cs).pointee.selector), size: size)
        try push(&stack, rip, size: size)
        if let errorCode { try push(&stack, UInt64(errorCode), size: size) }
        try checkOffset(d, target)
        try markAccessed(d)

        if wasVirtual {
            for n in [SegmentIndex.gs, SegmentIndex.fs, SegmentIndex.ds, SegmentIndex.es] {
                segment(n).pointee = nullSegment(n, 0)
            }
        }
        if goesInward { segment(SegmentIndex.ss).pointee = newSS }
        commit(stack)
        setCode(d, selector, cpl: newCPL)
        // TF, NT, RF, VM; IF through an interrupt gate.
        s.pointee.rflags &= gate.type & 1 == 0 ? ~0x34300 : ~0x34100
        s.pointee.rip = target
        updateMode()
    }

    // MARK: Long mode

    /// Through a 16-byte IDT entry (SDM 3A 6.14).
    private func deliverLong(_ vector: UInt8, _ source: EventSource, _ errorCode: UInt32?, _ rip: UInt64)
        throws(CPUException)
    {
        let selfCode = UInt32(vector) << 3 | 2
        let offset = UInt64(vector) &* 16
        if offset &+ 15 > UInt64(s.pointee.idtr_limit) { throw .generalProtection(selfCode) }
        var gate = SegmentDescriptor(raw: try systemLoad(s.pointee.idtr_base &+ offset))
        gate.upper = try systemLoad(s.pointee.idtr_base &+ offset &+ 8)
        if gate.isCodeOrData || gate.type & 14 != 14 { throw .generalProtection(selfCode) }
        if source.checksPrivilege && gate.dpl < s.pointee.cpl { throw .generalProtection(selfCode) }
        if !gate.isPresent { throw .segmentNotPresent(selfCode) }

        let cpl = s.pointee.cpl
        let selector = gate.gateSelector
        let d = try codeDescriptor(selector)
        if d.dpl > cpl || !d.isLong || d.isBig { throw .generalProtection(code(selector)) }
        if !d.isPresent { throw .segmentNotPresent(code(selector)) }
        let goesInward = !d.isConforming && d.dpl < cpl
        let newCPL = goesInward ? d.dpl : cpl
        let ist = UInt64((gate.raw >> 32) & 7)

        var top = gpr[4]
        if ist != 0 {
            top = try readTSS(ist &* 8 &+ 28)
        } else if goesInward {
            top = try readTSS(UInt64(d.dpl) &* 8 &+ 4)
        }
        if !isCanonical(top) { throw .stackFault(0) }
        var stack = wideFrame(top & ~15, cpl: newCPL)
        try push(&stack, UInt64(segment(SegmentIndex.ss).pointee.selector), size: 8)
        try push(&stack, gpr[4], size: 8)
        try push(&stack, flagsImage(vector, source), size: 8)
        try push(&stack, UInt64(segment(SegmentIndex.cs).pointee.selector), size: 8)
        try push(&stack, rip, size: 8)
        if let errorCode { try push(&stack, UInt64(errorCode), size: 8) }
        let target = gate.gateOffset
        if !isCanonical(target) { throw .generalProtection(0) }
        try markAccessed(d)

        if goesInward { segment(SegmentIndex.ss).pointee = nullStack(newCPL) }
        gpr[4] = stack.pointer
        setCode(d, selector, cpl: newCPL)
        s.pointee.rflags &= gate.type & 1 == 0 ? ~0x34300 : ~0x34100
        s.pointee.rip = target
        updateMode()
    }

    // MARK: IRET

    /// IRET, IRETD, IRETQ with operand size 2, 4 or 8 (SDM 2A IRET). `rip` is the next instruction, for a nested task.
    func interruptReturn(_ size: Int, _ rip: UInt64) throws(CPUException) {
        if s.pointee.protected_mode == 0 {
            try returnReal(size)
        } else if s.pointee.virtual8086 != 0 {
            if (s.pointee.rflags >> 12) & 3 != 3 { throw .generalProtection(0) }
            try returnReal(size)
        } else if s.pointee.rflags & 0x4000 != 0 {
            if s.pointee.long_mode != 0 { throw .generalProtection(0) }
            try returnToPreviousTask(rip)
        } else {
            try returnProtected(size)
        }
        s.pointee.nmi_blocked = 0
        s.pointee.interrupt_shadow = 0
        if s.pointee.direct_armed != 0 { directWish() }
    }

    /// Real mode, and inside virtual-8086 mode with IOPL 3.
    private func returnReal(_ size: Int) throws(CPUException) {
        let offset = try loadStack(0, size: size)
        let selector = UInt16(truncatingIfNeeded: try loadStack(UInt64(size), size: size))
        let flags = try loadStack(UInt64(size) &* 2, size: size)
        if offset > UInt64(segment(SegmentIndex.cs).pointee.limit) { throw .generalProtection(0) }
        setStackPointer(gpr[4] &+ UInt64(size) &* 3)
        setParagraphCode(selector)
        // VM, VIF and VIP stay; in virtual-8086 mode IOPL as well.
        var mask: UInt64 = size == 2 ? 0x7FD5 : 0x25_7FD5
        if s.pointee.virtual8086 != 0 { mask &= ~0x3000 }
        rflags = (rflags & ~mask) | (flags & mask)
        if size == 2 { s.pointee.rflags &= ~0x10000 }
        s.pointee.rip = offset
        updateMode()
    }

    /// The RFLAGS bits that IRET and POPF may change at a privilege level (SDM 2A).
    func writableFlags(_ size: Int) -> UInt64 {
        var mask: UInt64 = 0x4DD5
        if size != 2 { mask |= 0x25_0000 }
        if s.pointee.cpl == 0 {
            mask |= 0x3000
            if size != 2 { mask |= 0x18_0000 }
        }
        if UInt64(s.pointee.cpl) <= (s.pointee.rflags >> 12) & 3 { mask |= 0x200 }
        return mask
    }

    private func returnProtected(_ size: Int) throws(CPUException) {
        let step = UInt64(size)
        let offset = try loadStack(0, size: size)
        let selector = UInt16(truncatingIfNeeded: try loadStack(step, size: size))
        let flags = try loadStack(step &* 2, size: size)
        let cpl = s.pointee.cpl
        if size == 4 && flags & 0x20000 != 0 && cpl == 0 && s.pointee.long_mode == 0 {
            try returnToVirtual8086(offset, selector, flags)
            return
        }
        let d = try returnTarget(selector, offset)
        let newCPL = UInt8(selector & 3)
        let mask = writableFlags(size)
        if newCPL > cpl || s.pointee.code_size == 8 {
            let pointer = try loadStack(step &* 3, size: size)
            let stackSelector = UInt16(truncatingIfNeeded: try loadStack(step &* 4, size: size))
            try checkOffset(d, offset)
            let ss = try stackSegment(stackSelector, cpl: newCPL, allowsNull: is64Bit(d) && newCPL < 3)
            try markAccessed(d)
            segment(SegmentIndex.ss).pointee = ss
            setReturnStack(pointer, ss, d)
            if newCPL > cpl { dropInnerSegments(newCPL) }
        } else {
            try checkOffset(d, offset)
            try markAccessed(d)
            setStackPointer(gpr[4] &+ step &* 3)
        }
        setCode(d, selector, cpl: newCPL)
        var new = (rflags & ~mask) | (flags & mask)
        if size == 2 { new &= ~0x10000 }
        rflags = new
        s.pointee.rip = offset
        updateMode()
    }

    /// Sets the stack pointer popped by a return to an outer level, as wide as the new stack.
    func setReturnStack(_ pointer: UInt64, _ ss: roost_segment, _ d: SegmentDescriptor) {
        if is64Bit(d) {
            gpr[4] = pointer
        } else if ss.attributes & 0x4000 != 0 {
            gpr[4] = pointer & 0xFFFF_FFFF
        } else {
            gpr[4] = (gpr[4] & ~0xFFFF) | (pointer & 0xFFFF)
        }
    }

    /// The code segment that RETF or IRET returns to, checked but for the offset.
    func returnTarget(_ selector: UInt16, _ offset: UInt64) throws(CPUException) -> SegmentDescriptor {
        let d = try codeDescriptor(selector)
        let rpl = UInt8(selector & 3)
        if rpl < s.pointee.cpl || (d.isConforming ? d.dpl > rpl : d.dpl != rpl) || (is64Bit(d) && d.isBig) {
            throw .generalProtection(code(selector))
        }
        if !d.isPresent { throw .segmentNotPresent(code(selector)) }
        return d
    }

    private func returnToVirtual8086(_ offset: UInt64, _ selector: UInt16, _ flags: UInt64) throws(CPUException) {
        let pointer = try loadStack(12, size: 4)
        var selectors = [0, 0, 0, 0, 0] as [5 of UInt16]
        for n in 0..<5 {
            selectors[n] = UInt16(truncatingIfNeeded: try loadStack(16 &+ UInt64(n) &* 4, size: 4))
        }
        if offset > 0xFFFF { throw .generalProtection(0) }
        rflags = (rflags & ~0x3F_7FD5) | (flags & 0x3F_7FD5)
        segment(SegmentIndex.cs).pointee = virtual8086Segment(selector)
        segment(SegmentIndex.ss).pointee = virtual8086Segment(selectors[0])
        segment(SegmentIndex.es).pointee = virtual8086Segment(selectors[1])
        segment(SegmentIndex.ds).pointee = virtual8086Segment(selectors[2])
        segment(SegmentIndex.fs).pointee = virtual8086Segment(selectors[3])
        segment(SegmentIndex.gs).pointee = virtual8086Segment(selectors[4])
        gpr[4] = pointer
        s.pointee.cpl = 3
        s.pointee.rip = offset
        updateMode()
    }

    // MARK: INT n, PUSHF, POPF

    /// INT n and INT1, with the address to return to. Faults are the instruction's own.
    func softwareInterrupt(_ vector: UInt8, _ source: EventSource, _ rip: UInt64) throws(CPUException) {
        if s.pointee.virtual8086 != 0 && source == .software && (s.pointee.rflags >> 12) & 3 != 3 {
            throw .generalProtection(0)
        }
        try deliverOnce(vector, source, nil, rip)
    }

    /// The image that PUSHF pushes: VM and RF read as zero.
    package func pushedFlags(size: Int) throws(CPUException) -> UInt64 {
        if s.pointee.virtual8086 != 0 && (s.pointee.rflags >> 12) & 3 != 3 { throw .generalProtection(0) }
        return rflags & ~0x30000
    }

    /// POPF: which bits change depends on CPL, IOPL and the operand size; RF is cleared.
    package func popFlags(_ value: UInt64, size: Int) throws(CPUException) {
        if s.pointee.virtual8086 != 0 && (s.pointee.rflags >> 12) & 3 != 3 { throw .generalProtection(0) }
        // VIF and VIP are cleared, RF too; VM stays.
        let old = rflags
        let mask = writableFlags(size) & ~0x19_0000
        let cleared: UInt64 = size == 2 ? 0x10000 : (s.pointee.virtual8086 != 0 ? 0x10000 : 0x19_0000)
        let new = (old & ~(mask | cleared)) | (value & mask)
        rflags = new
        if (old ^ new) & 0x40000 != 0 { updateMode() }
    }
}
