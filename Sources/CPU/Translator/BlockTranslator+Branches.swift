// How translated code goes from block to block.
//
// Within a page, and anywhere in absolute code, jumps are chained: the dispatcher patches them once their target is known;
// a block that comes right after needs no jump at all. Elsewhere the jump table is asked; indirect branches of absolute
// code remember their first target before that. A backward jump looks for events. Calls leave a pair on the host's stack,
// the guest's return address and (by the host's own CALL) where it is translated; a return that finds its address there
// takes the host's RET, which the processor predicts.
internal import CHost

extension BlockTranslator {
    /// Whether a place in the code page can be reached by a patched jump.
    func isChainable(_ target: Int) -> Bool {
        if !options.chains { return false }
        if target >= 0 && target < 4096 {
            return !(isUser && size64) || !vcpu.isAcross(target, in: page, modeKey: modeKey)
        }
        return absolute != 0 && absolute &+ UInt64(bitPattern: Int64(target - pageOffset)) >= Self.absoluteStart
    }

    /// Whether going to a place may be part of a loop.
    private func isBackward(_ target: Int) -> Bool {
        target <= pageOffset + Int((first + count - 1).pointee.endOffset) - 1
    }

    /// Looks for events; leaves with RIP at a place in the code page.
    private mutating func checkAttention(_ target: Int) {
        code.arithmetic(7, StateOffset.attention, 0, wide: false)
        exits.append(Exit(jump: code.jump(if: 5), target: target, kind: .attention))
    }

    /// Goes on at a place in the code page.
    mutating func goOn(to target: Int) {
        if isChainable(target) {
            if isBackward(target) { checkAttention(target) }
            if target == successor { return }
            exits.append(Exit(jump: code.jump(), target: target, kind: .chain))
        } else {
            goThroughTable(target)
        }
    }

    private mutating func goThroughTable(_ target: Int) {
        loadRIP(scratch0, target)
        emitJump(to: options.chains ? common.lookup : common.leave)
    }

    mutating func emitBranch(_ n: Int) {
        let i = first + n
        let end = pageOffset + Int(i.pointee.endOffset)
        let target = end + Int(i.pointee.immediate)
        switch i.pointee.operation {
        case .jcc:
            needFlags(FlagUse.condition(i.pointee.extra))
            saveFlagsIfWanted(wanted[count])
            if isChainable(target) && !isBackward(target) {
                exits.append(Exit(jump: code.jump(if: i.pointee.extra), target: target, kind: .chain))
                goOn(to: end)
            } else {
                let notTaken = code.jump(if: i.pointee.extra ^ 1)
                goOn(to: target)
                code.patch(notTaken, to: code.count)
                goOn(to: end)
            }
        case .jmp:
            saveFlagsIfWanted(wanted[count])
            goOn(to: target)
        case .call: emitCallRelative(n, end, target)
        case .ret, .retImmediate: emitReturn(n)
        case .loop, .jcxz: emitLoop(n, end, target)
        default: emitIndirect(n, i.pointee.operation == .callIndirect, end)
        }
    }

    /// LOOP and JRCXZ: they leave the flags alone.
    private mutating func emitLoop(_ n: Int, _ end: Int, _ target: Int) {
        let p = (first + n).pointee
        saveFlagsIfWanted(wanted[count])
        let isWide = p.addressSize == 8
        let prefix: UInt8 = p.addressSize == 2 ? 0x66 : 0
        if p.operation == .loop { code.memory(0x8D, prefix: prefix, wide: isWide, reg: 1, .base(1, -1)) }
        code.registers(0x85, prefix: prefix, wide: isWide, reg: 1, rm: 1)
        let notTaken = code.jump(if: p.operation == .loop ? 4 : 5)
        goOn(to: target)
        code.patch(notTaken, to: code.count)
        goOn(to: end)
    }

    // MARK: Calls and returns

    private mutating func emitCallRelative(_ n: Int, _ end: Int, _ target: Int) {
        saveFlagsIfWanted(wanted[count])
        let size = Int32((first + n).pointee.operandSize)
        probeStack(n, -size, size: Int(size), write: true, kind: .ends)
        storeReturnAddress(end, size)
        moveStack(by: -size)
        if isChainable(target) {
            if isBackward(target) { checkAttention(target) }
            pushReturn(end)
            exits.append(Exit(jump: code.call(), target: target, kind: .chain))
            writeLanding(end)
        } else if options.chains {
            pushReturn(end)
            loadRIP(scratch0, target)
            emitCall(to: common.lookup)
            writeLanding(end)
        } else {
            goThroughTable(target)
        }
    }

    /// Stores the return address at the host's address in scratch 0.
    private mutating func storeReturnAddress(_ end: Int, _ size: Int32) {
        if absolute != 0 {
            code.memory(0xC7, wide: true, reg: 0, .base(scratch0, 0))
            code.word32(Int32(truncatingIfNeeded: absolute &+ UInt64(end - pageOffset)))
        } else {
            loadRIP(scratch2, end)
            code.memory(0x89, prefix: size == 2 ? 0x66 : 0, wide: size == 8, reg: scratch2, .base(scratch0, 0))
        }
    }

    /// What is changed in addresses on the return stack, so that only returns of the same TLB context find them: STAC or CLAC
    /// may stand between a call and its return, and the landing is for the call's context. A CPU without SMAP has one context.
    private var returnMark: UInt64 {
        let hasSMAP = vcpu.s.pointee.features & 1 << UInt64(CPUFeature.smap.rawValue) != 0
        return size64 && hasSMAP && tlbContext == UInt32(ROOST_TLB_SUPERVISOR_AC) ? 1 : 0
    }

    /// Puts the guest's return address on the return stack.
    private mutating func pushReturn(_ end: Int) {
        if !options.chains { return }
        code.memory(0x3B, wide: true, reg: 4, StateOffset.stackFloor)
        let drops = code.jump(if: 2)
        exits.append(Exit(jump: drops, target: 0, kind: .dropReturns(resume: code.count)))
        if absolute != 0 {
            code.byte(0x68)
            code.word32(Int32(truncatingIfNeeded: (absolute &+ UInt64(end - pageOffset)) ^ returnMark))
        } else {
            loadRIP(scratch2, end)
            if returnMark != 0 { code.arithmetic(6, scratch2, Int32(returnMark)) }
            code.bytes(0x41, 0x57)  // push r15
        }
    }

    /// Where a return that the host predicted goes on; scratch 0 has the guest's address.
    private mutating func writeLanding(_ end: Int) {
        code.lea(4, .base(4, 8))
        if absolute == 0 {
            if end >= 4096 { return emitJump(to: common.lookup) }
            code.lea(scratch0, .base(scratch0, Int32(-end)))
            code.store(StateOffset.codePage, scratch0)
        }
        exits.append(Exit(jump: code.jump(), target: end, kind: .chain))
    }

    private mutating func emitReturn(_ n: Int) {
        let p = (first + n).pointee
        let size = Int32(p.operandSize)
        saveFlagsIfWanted(wanted[count])
        probeStack(n, 0, size: Int(size), write: false, kind: .ends)
        if size == 2 {
            code.memory(0xB7, map: 1, reg: scratch0, .base(scratch0, 0))
        } else {
            code.memory(0x8B, wide: size == 8, reg: scratch0, .base(scratch0, 0))
        }
        let extra = size + (p.operation == .ret ? 0 : Int32(truncatingIfNeeded: p.immediate & 0xFFFF))
        if !options.chains {
            exits.append(Exit(jump: code.jump(), target: 0, kind: .mismatch(index: n, extra: extra)))
            return
        }
        var marked = scratch0
        if returnMark != 0 {
            marked = scratch1
            code.move(marked, scratch0)
            code.arithmetic(6, marked, Int32(returnMark))
        }
        code.memory(0x3B, wide: true, reg: marked, .base(4, 8))
        exits.append(Exit(jump: code.jump(if: 5), target: 0, kind: .mismatch(index: n, extra: extra)))
        moveStack(by: extra)
        code.byte(0xC3)
    }

    private mutating func emitIndirect(_ n: Int, _ isCall: Bool, _ end: Int) {
        let p = (first + n).pointee
        let size = Int32(p.operandSize)
        saveFlagsIfWanted(wanted[count])
        if p.rm == Instruction.none {
            probeOperand(n, size: Int(size), write: false, kind: .ends)
            if size == 2 {
                code.memory(0xB7, map: 1, reg: scratch0, .base(scratch0, 0))
            } else {
                code.memory(0x8B, wide: size == 8, reg: scratch0, .base(scratch0, 0))
            }
        } else if size == 2 {
            code.registers(0xB7, map: 1, reg: scratch0, rm: source(p.rm, scratch0))
        } else {
            code.registers(0x8B, wide: size == 8, reg: scratch0, rm: source(p.rm, scratch0))
        }
        if size64 { addStub(jumpUnlessCanonical(scratch0), n, .ends) }
        if isCall {
            // The target waits in the state block while the stack is reached.
            code.store(StateOffset.entry, scratch0)
            probeStack(n, -size, size: Int(size), write: true, kind: .ends)
            storeReturnAddress(end, size)
            moveStack(by: -size)
            if options.chains { pushReturn(end) }
            code.load(scratch0, StateOffset.entry)
        }
        if !options.chains { return emitJump(to: common.leave) }
        if absolute != 0 { return emitCached(landing: isCall ? end : nil) }
        // A lookup of its own: the host predicts each branch by itself.
        exits.append(Exit(jump: isCall ? code.call() : code.jump(), target: 0, kind: .lookup))
        if isCall { writeLanding(end) }
    }

    /// Goes to the block at scratch 0, which is mostly the one that was met first: a comparison with its address and a
    /// chained jump or call. `landing`: where a call returns to.
    ///
    /// The dispatcher fills in address and jump, at these distances from the jump's displacement, when the other way is
    /// taken for the first time: CMP's immediate 11 bytes before, JNE's displacement 5 bytes before.
    private mutating func emitCached(landing: Int?) {
        code.arithmetic(7, StateOffset.attention, 0, wide: false)
        emitJump(if: 5, to: common.leave)
        code.registers(0x81, wide: true, reg: 7, rm: scratch0)
        code.word32(Self.noTarget)
        let other = code.jump(if: 5)
        let site = landing == nil ? code.jump() : code.call()
        code.patch(site, to: common.lookup - origin)
        exits.append(
            Exit(jump: other, target: 0, kind: .uncached(site: site, landing: landing == nil ? nil : code.count)))
        if let landing { writeLanding(landing) }
    }

    /// What an empty inline cache compares with: no block is there.
    private static var noTarget: Int32 { -1 }

    /// Past an inline cache: the first time to the dispatcher, to have it filled, later through the jump table.
    mutating func writeUncached(_ site: Int, _ landing: Int?) {
        let way = landing == nil ? code.jump() : code.call()
        if let landing { code.patch(code.jump(), to: landing) }
        code.patch(way, to: code.count)
        code.constant(scratch1, UInt64(origin + site) | ChainSite.crossesPage | ChainSite.cache)
        emitJump(to: common.leaveChain)
    }

    /// Whether a branch is emitted here.
    func emitsBranch(_ p: Instruction) -> Bool {
        if size64 {
            if p.operandSize != 8 { return false }
        } else {
            if modeKey & ModeKey.wide == 0 || p.operandSize != codeSize { return false }
        }
        switch p.operation {
        case .jcc, .jmp, .call, .ret, .retImmediate: return true
        case .jmpIndirect, .callIndirect: return p.rm == Instruction.none || p.rm < 16
        case .loop, .jcxz: return p.addressSize == codeSize
        default: return false
        }
    }
}
