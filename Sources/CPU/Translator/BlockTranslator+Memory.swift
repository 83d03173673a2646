// How translated code reaches guest memory: the one place where a memory access is emitted.
internal import CHost

extension BlockTranslator {
    /// The offset of a memory operand in its segment, for LEA; may load scratch 0 and 1. It is not yet truncated.
    mutating func address(_ i: UnsafePointer<Instruction>) -> HostAddress {
        let displacement = i.pointee.displacement
        if i.pointee.base == Instruction.rip {
            let place = pageOffset + Int(i.pointee.endOffset)
            if absolute != 0 {
                code.constant(
                    scratch0, absolute &+ UInt64(bitPattern: Int64(place - pageOffset) + Int64(displacement)))
                return .base(scratch0, 0)
            }
            code.load(scratch0, StateOffset.codePage)
            code.lea(scratch0, .base(scratch0, Int32(truncatingIfNeeded: place)))
            return .base(scratch0, displacement)
        }
        let base = i.pointee.base < 16 ? source(i.pointee.base, scratch0) : nil
        let index = i.pointee.index < 16 ? source(i.pointee.index, scratch1) : nil
        switch (base, index) {
        case (let base?, let index?): return .indexed(base, index, i.pointee.scale, displacement)
        case (let base?, nil): return .base(base, displacement)
        case (nil, let index?): return .scaled(index, i.pointee.scale, displacement)
        default:
            code.constant(scratch0, UInt64(bitPattern: Int64(displacement)))
            return .base(scratch0, 0)
        }
    }

    /// Puts the offset of a memory operand, truncated to its address size, into scratch 0; leaves the flags alone.
    mutating func loadOffset(_ address: HostAddress, addressSize: UInt8) {
        code.lea(scratch0, address, narrow: addressSize != 8)
        if addressSize == 2 { code.registers(0xB7, map: 1, reg: scratch0, rm: scratch0) }
    }

    /// Reaches the memory operand of instruction `n`: afterwards scratch 0 is the host's address.
    mutating func probeOperand(_ n: Int, size: Int, write: Bool, kind: StepKind = .goesOn) {
        let i = first + n
        if let groups,
            reachInGroup(
                n, groups.operand[n], i.pointee.base, i.pointee.displacement, size: size, write: write)
        {
            return
        }
        losesFlags(before: n)
        loadOffset(address(i), addressSize: i.pointee.addressSize)
        probe(n, segment: i.pointee.segment, size: size, write: write, kind: kind)
    }

    /// Reaches the stack at a distance from the guest's RSP.
    mutating func probeStack(_ n: Int, _ distance: Int32, size: Int, write: Bool, kind: StepKind = .goesOn) {
        if let groups, reachInGroup(n, groups.stack[n], 4, distance, size: size, write: write) { return }
        losesFlags(before: n)
        loadOffset(.base(guestStack, distance), addressSize: stackSize)
        probe(n, segment: UInt8(ROOST_SS), size: size, write: write, kind: kind)
    }

    /// From an offset in a segment (scratch 0) to the host's address (scratch 0); a miss goes to the interpreter.
    ///
    /// Clobbers scratch 1 and 2 and the flags. The page of the last byte must be in the TLB under the index of the first
    /// one, so that an access across pages misses.
    mutating func probe(_ n: Int, segment: UInt8, size: Int, write: Bool, kind: StepKind) {
        addSegment(n, segment, size, kind)
        compareTag(linear: scratch0, last: .base(scratch0, Int32(size - 1)), index: scratch1, write: write)
        addStub(code.jump(if: 5), n, kind)
        code.memory(0x03, wide: true, reg: scratch0, .stateIndexed(scratch1, table + 16))
    }

    /// Looks an address up in the TLB: ZF is set if the page of its last byte is there under the index of its first one,
    /// whose entry is then at `table` plus `index`. Clobbers scratch 2.
    mutating func compareTag(linear: HostRegister, last: HostAddress, index: HostRegister, write: Bool) {
        // Bits 24:12 of the address select an entry of 32 bytes.
        if usesRORX {
            code.rotatedCopy(index, linear, right: 7)
        } else {
            code.move(index, linear)
            code.shift(5, index, 7)
        }
        code.lea(scratch2, last)
        code.registers(0x81, reg: 4, rm: index)
        code.word32(Int32((ROOST_TLB_ENTRIES - 1) << 5))
        code.arithmetic(4, scratch2, -4096)
        code.memory(0x0B, wide: true, reg: scratch2, StateOffset.tlbTag)
        code.memory(0x3B, wide: true, reg: scratch2, .stateIndexed(index, table + (write ? 8 : 0)))
    }

    /// Distance of this mode's TLB from the state block.
    var table: Int32 { StateOffset.tables + Int32(tlbContext) * Int32(ROOST_TLB_ENTRIES) * 32 }

    /// From an offset to a linear address: base and checks where the mode has them.
    private mutating func addSegment(_ n: Int, _ segment: UInt8, _ size: Int, _ kind: StepKind) {
        if size64 {
            if segment >= 4 { code.memory(0x03, wide: true, reg: scratch0, StateOffset.effectiveBase(segment)) }
            return
        }
        if segment < 4 && segment != UInt8(ROOST_CS) && modeKey & ModeKey.flat != 0 { return }
        if modeKey & ModeKey.real != 0 {
            code.lea(scratch2, .base(scratch0, Int32(size - 1)))
            code.memory(0x8B, reg: scratch1, StateOffset.segmentLimit(segment))
            code.registers(0x3B, wide: true, reg: scratch2, rm: scratch1)
            addStub(code.jump(if: 7), n, kind)
        } else {
            code.compareByte(StateOffset.segmentCheck(segment), 0)
            addStub(code.jump(if: 5), n, kind)
        }
        code.memory(0x03, wide: true, reg: scratch0, StateOffset.effectiveBase(segment))
        code.registers(0x8B, reg: scratch0, rm: scratch0)
    }

    /// Moves the guest's RSP in the stack's width; leaves the flags alone.
    mutating func moveStack(by distance: Int32) {
        switch stackSize {
        case 8: code.lea(guestStack, .base(guestStack, distance))
        case 4: code.lea(guestStack, .base(guestStack, distance), narrow: true)
        default: code.memory(0x8D, prefix: 0x66, reg: guestStack, .base(guestStack, distance))
        }
    }
}
