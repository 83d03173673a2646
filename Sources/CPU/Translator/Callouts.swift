// What translated code calls for an instruction that it leaves to the interpreter.
internal import CHost

extension VCPU {
    /// Whether something asks for the dispatcher before the next instruction: TF and RF among them.
    @inline(__always)
    fileprivate var wantsDispatcher: Bool {
        s.pointee.interrupt_shadow != 0 || s.pointee.slow_memory != 0 || s.pointee.interrupt_window != 0
            || s.pointee.pending_nmi != 0 || s.pointee.pending_debug != 0 || s.pointee.rflags & 0x1_0100 != 0
            || s.pointee.dr.7 & 0xFF != 0
    }

    /// Whether an instruction is one after which code that others have changed must be seen, and there may be some.
    @inline(__always)
    fileprivate func mustLookForCode(after i: UnsafePointer<Instruction>) -> Bool {
        guard roost_attention(s) != 0 else { return false }
        switch i.pointee.operation {
        case .cpuid, .wrmsr, .movToCR, .movToDR, .invlpg, .invpcid, .invd, .wbinvd, .lgdt, .lidt, .lldt, .ltr:
            return true
        default: return false
        }
    }

    /// Whether vector and x87 registers that were live can't be again.
    @inline(__always)
    fileprivate var losesLive: Bool {
        if s.pointee.vectors_live != 0
            && (s.pointee.vectors_live != s.pointee.vectors_usable
                || area.load(fromByteOffset: 24, as: UInt32.self) & 0x1F80 != 0x1F80)
        {
            return true
        }
        return s.pointee.x87_live != 0
            && (s.pointee.x87_usable == 0 || area.load(fromByteOffset: 0, as: UInt16.self) & 0x3F != 0x3F)
    }

    /// Counts for `--stats`.
    @inline(__always)
    fileprivate func countCallout(_ i: UnsafePointer<Instruction>) {
        translations.pointee.callouts[Int(i.pointee.row)] &+= 1
    }

    /// `n` instructions of the block aren't executed.
    @inline(__always)
    fileprivate func uncount(_ n: Int) {
        if translations.pointee.options.counts { s.pointee.instructions &-= UInt64(truncatingIfNeeded: n) }
    }
}

/// Carries out an instruction: 0 go on in the block, 1 look for events, 2 an exit waits.
func translatedStep(_ state: UnsafeMutablePointer<roost_vcpu>, _ argument: Int, _ remaining: Int) -> Int {
    let v = VCPU(state)
    let i = UnsafePointer(v.blocks.pointee.instructions + (argument & Int(StepArgument.mask)))
    let isLast = UInt64(truncatingIfNeeded: argument) & StepArgument.last != 0
    let next = v.truncatedRIP(v.nextRIP(i))
    let key = state.pointee.jump_key
    state.pointee.block_end = UnsafeRawPointer(i)
    v.countCallout(i)
    do throws(CPUException) {
        try v.execute(i)
    } catch {
        v.uncount(remaining)
        return v.settle(error, i) ? 1 : 2
    }
    if state.pointee.block_end == nil || v.losesLive || v.mustLookForCode(after: i) {
        // The instruction changed code, perhaps its own block, or the terms of vector instructions; or it serializes.
        v.uncount(remaining - 1)
        if !isLast || !v.setsRIP(i) { state.pointee.rip = next }
        return 1
    }
    if !isLast { return 0 }
    if v.setsRIP(i) { return state.pointee.rip == next ? 0 : 1 }
    if state.pointee.jump_key != key || v.wantsDispatcher {
        state.pointee.rip = next
        return 1
    }
    return 0
}

/// The same for an instruction that sets RIP: 0 go on there, 3 the same in another address space or mode.
func translatedStepAndEnd(_ state: UnsafeMutablePointer<roost_vcpu>, _ argument: Int, _ remaining: Int) -> Int {
    let v = VCPU(state)
    let i = UnsafePointer(v.blocks.pointee.instructions + (argument & Int(StepArgument.mask)))
    let key = state.pointee.jump_key
    state.pointee.block_end = UnsafeRawPointer(i)
    v.countCallout(i)
    do throws(CPUException) {
        try v.execute(i)
    } catch {
        v.uncount(remaining)
        return v.settle(error, i) ? 1 : 2
    }
    if !v.setsRIP(i) { state.pointee.rip = v.truncatedRIP(v.nextRIP(i)) }
    if v.wantsDispatcher || state.pointee.block_end == nil { return 1 }
    return state.pointee.jump_key == key ? 0 : 3
}
