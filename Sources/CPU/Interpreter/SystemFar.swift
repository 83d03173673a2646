// Far jumps, calls and returns, with call gates, task gates and TSSs (SDM 3A 5.8, SDM 2A JMP, CALL, 2B RET).
internal import CHost

extension VCPU {
    /// JMP far. `rip` is the next instruction, saved by a task switch.
    func farJump(_ selector: UInt16, _ offset: UInt64, _ size: Int, _ rip: UInt64) throws(CPUException) {
        if hasParagraphs {
            try checkParagraphOffset(offset)
            setParagraphCode(selector)
            s.pointee.rip = offset
            updateMode()
            return
        }
        if isNull(selector) { throw .generalProtection(0) }
        let d = try requireDescriptor(selector)
        if d.isCode {
            try checkDirectTarget(d, selector, offset)
            try markAccessed(d)
            setCode(d, selector, cpl: s.pointee.cpl)
            s.pointee.rip = offset
            updateMode()
        } else {
            try transferThroughSystem(d, selector, isCall: false, rip)
        }
    }

    /// CALL far. `rip` is the return address.
    func farCall(_ selector: UInt16, _ offset: UInt64, _ size: Int, _ rip: UInt64) throws(CPUException) {
        if hasParagraphs {
            try checkParagraphOffset(offset)
            var stack = currentFrame()
            try push(&stack, UInt64(segment(SegmentIndex.cs).pointee.selector), size: size)
            try push(&stack, rip, size: size)
            commit(stack)
            setParagraphCode(selector)
            s.pointee.rip = offset
            updateMode()
            return
        }
        if isNull(selector) { throw .generalProtection(0) }
        let d = try requireDescriptor(selector)
        if d.isCode {
            try checkDirectTarget(d, selector, offset)
            try callSameLevel(d, selector, offset, size, rip)
        } else {
            try transferThroughSystem(d, selector, isCall: true, rip)
        }
    }

    /// The offset of a far transfer in real or virtual-8086 mode.
    private func checkParagraphOffset(_ offset: UInt64) throws(CPUException) {
        if offset > UInt64(segment(SegmentIndex.cs).pointee.limit) { throw .generalProtection(0) }
    }

    /// Privilege of a direct far jump or call.
    private func checkDirectTarget(_ d: SegmentDescriptor, _ selector: UInt16, _ offset: UInt64) throws(CPUException) {
        let cpl = s.pointee.cpl
        let isAllowed = d.isConforming ? d.dpl <= cpl : UInt8(selector & 3) <= cpl && d.dpl == cpl
        if !isAllowed { throw .generalProtection(code(selector)) }
        try checkTarget(d, selector, offset)
    }

    /// Pushes CS:RIP on the present stack and goes on at the same privilege level.
    private func callSameLevel(
        _ d: SegmentDescriptor, _ selector: UInt16, _ offset: UInt64, _ size: Int, _ rip: UInt64
    ) throws(CPUException) {
        var stack = currentFrame(wide: is64Bit(d) && size == 8)
        try push(&stack, UInt64(segment(SegmentIndex.cs).pointee.selector), size: size)
        try push(&stack, rip, size: size)
        try markAccessed(d)
        commit(stack)
        setCode(d, selector, cpl: s.pointee.cpl)
        s.pointee.rip = offset
        updateMode()
    }

    /// A far transfer to a system descriptor: call gate, task gate or TSS.
    private func transferThroughSystem(
        _ descriptor: SegmentDescriptor, _ selector: UInt16, isCall: Bool, _ rip: UInt64
    ) throws(CPUException) {
        var d = descriptor
        let wrong = CPUException.generalProtection(code(selector))
        if d.isCodeOrData { throw wrong }
        let isLong = s.pointee.long_mode != 0
        switch d.type {
        case 12: break
        case 4, 5, 1, 9: if isLong { throw wrong }
        default: throw wrong
        }
        if d.dpl < s.pointee.cpl || d.dpl < UInt8(selector & 3) { throw wrong }
        switch d.type {
        case 1, 9: try switchTask(selector, isCall ? .call : .jump, rip)
        case 5:
            if !d.isPresent { throw .segmentNotPresent(code(selector)) }
            try switchTask(d.gateSelector, isCall ? .call : .jump, rip)
        default:
            try completeSystemDescriptor(&d, selector)
            if !d.isPresent { throw .segmentNotPresent(code(selector)) }
            try transferThroughGate(d, isCall: isCall, rip)
        }
    }

    /// A call gate: 16, 32 or 64 bits.
    private func transferThroughGate(_ gate: SegmentDescriptor, isCall: Bool, _ rip: UInt64) throws(CPUException) {
        let isLong = s.pointee.long_mode != 0
        let size = isLong ? 8 : (gate.type & 8 != 0 ? 4 : 2)
        let offset = size == 2 ? gate.gateOffset & 0xFFFF : gate.gateOffset
        let selector = gate.gateSelector
        let d = try codeDescriptor(selector)
        let cpl = s.pointee.cpl
        if d.dpl > cpl || (isLong && (!d.isLong || d.isBig)) { throw .generalProtection(code(selector)) }
        if !isCall && !d.isConforming && d.dpl != cpl { throw .generalProtection(code(selector)) }
        if !d.isPresent { throw .segmentNotPresent(code(selector)) }
        if !isCall {
            try checkOffset(d, offset)
            try markAccessed(d)
            setCode(d, selector, cpl: cpl)
            s.pointee.rip = offset
            updateMode()
        } else if d.isConforming || d.dpl == cpl {
            try checkOffset(d, offset)
            try callSameLevel(d, selector, offset, size, rip)
        } else {
            try callInward(gate, d, selector, offset, size, rip)
        }
    }

    /// A call to an inner privilege level: stack switch, parameters copied (SDM 3A 5.8.5).
    private func callInward(
        _ gate: SegmentDescriptor, _ d: SegmentDescriptor, _ selector: UInt16, _ offset: UInt64, _ size: Int,
        _ rip: UInt64
    ) throws(CPUException) {
        let level = d.dpl
        let newSS: roost_segment
        var stack: StackFrame
        if size == 8 {
            let top: UInt64 = try readTSS(UInt64(level) &* 8 &+ 4)
            if !isCanonical(top) { throw .stackFault(0) }
            newSS = nullStack(level)
            stack = wideFrame(top, cpl: level)
        } else {
            let inner = try innerStack(level)
            newSS = try stackSegment(inner.selector, cpl: level, allowsNull: false, fromTSS: true)
            stack = frame(newSS, inner.pointer, cpl: level, faultCode: code(inner.selector))
        }
        try push(&stack, UInt64(segment(SegmentIndex.ss).pointee.selector), size: size)
        try push(&stack, stackPointer, size: size)
        if size != 8 {
            var n = gate.gateCount
            while n > 0 {
                n -= 1
                try push(&stack, try loadStack(UInt64(n &* size), size: size), size: size)
            }
        }
        try push(&stack, UInt64(segment(SegmentIndex.cs).pointee.selector), size: size)
        try push(&stack, rip, size: size)
        try checkOffset(d, offset)
        try markAccessed(d)
        segment(SegmentIndex.ss).pointee = newSS
        commit(stack)
        setCode(d, selector, cpl: level)
        s.pointee.rip = offset
        updateMode()
    }

    /// RET far, with `extra` bytes of parameters dropped from both stacks.
    func farReturn(_ size: Int, dropping extra: UInt64) throws(CPUException) {
        let step = UInt64(size)
        let offset = try loadStack(0, size: size)
        let selector = UInt16(truncatingIfNeeded: try loadStack(step, size: size))
        if hasParagraphs {
            try checkParagraphOffset(offset)
            setStackPointer(gpr[4] &+ step &* 2 &+ extra)
            setParagraphCode(selector)
            s.pointee.rip = offset
            updateMode()
            return
        }
        let d = try returnTarget(selector, offset)
        let newCPL = UInt8(selector & 3)
        if newCPL == s.pointee.cpl {
            try checkOffset(d, offset)
            try markAccessed(d)
            setStackPointer(gpr[4] &+ step &* 2 &+ extra)
        } else {
            let pointer = try loadStack(step &* 2 &+ extra, size: size)
            let stackSelector = UInt16(truncatingIfNeeded: try loadStack(step &* 3 &+ extra, size: size))
            let ss = try stackSegment(stackSelector, cpl: newCPL, allowsNull: is64Bit(d) && newCPL < 3)
            try checkOffset(d, offset)
            try markAccessed(d)
            segment(SegmentIndex.ss).pointee = ss
            setReturnStack(pointer &+ extra, ss, d)
            dropInnerSegments(newCPL)
        }
        setCode(d, selector, cpl: newCPL)
        s.pointee.rip = offset
        updateMode()
    }
}
