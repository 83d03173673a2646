// Near control transfer: Jcc, JMP, CALL, RET, LOOP (SDM 1 7.3.8). Each sets RIP as its last step.
internal import CHost

extension VCPU {
    /// The target as the operand size truncates it, checked: canonical in 64-bit mode, inside CS elsewhere.
    @inline(__always)
    func checkedTarget(_ target: UInt64, _ i: UnsafePointer<Instruction>) throws(CPUException) -> UInt64 {
        if s.pointee.code_size == 8 {
            if UInt64(bitPattern: Int64(bitPattern: target << 16) >> 16) != target, !isCanonical(target) {
                throw .generalProtection(0)
            }
            return target
        }
        let offset = i.pointee.operandSize == 2 ? target & 0xFFFF : target & 0xFFFF_FFFF
        if offset > UInt64(segment(Int(ROOST_CS)).pointee.limit) { throw .generalProtection(0) }
        return offset
    }

    /// The target of a relative branch.
    @inline(__always)
    func relativeTarget(_ i: UnsafePointer<Instruction>) throws(CPUException) -> UInt64 {
        try checkedTarget(nextRIP(i) &+ UInt64(bitPattern: i.pointee.immediate), i)
    }

    /// The address that a call pushes.
    @inline(__always)
    private func returnAddress(_ i: UnsafePointer<Instruction>) -> UInt64 { nextRIP(i) }

    /// Jcc.
    @inline(__always)
    func jumpIf(_ i: UnsafePointer<Instruction>, _ holds: Bool) throws(CPUException) {
        s.pointee.rip = holds ? try relativeTarget(i) : nextRIP(i)
    }

    /// CALL relative.
    @inline(__always)
    func callRelative(_ i: UnsafePointer<Instruction>) throws(CPUException) {
        let target = try relativeTarget(i)
        try push(returnAddress(i), size: Int(i.pointee.operandSize))
        s.pointee.rip = target
    }

    /// CALL r/m.
    @inline(__always)
    func callThrough(_ i: UnsafePointer<Instruction>) throws(CPUException) {
        let target = try checkedTarget(try readSizedRM(i, i.pointee.operandSize), i)
        try push(returnAddress(i), size: Int(i.pointee.operandSize))
        s.pointee.rip = target
    }

    /// JMP r/m.
    @inline(__always)
    func jumpThrough(_ i: UnsafePointer<Instruction>) throws(CPUException) {
        s.pointee.rip = try checkedTarget(try readSizedRM(i, i.pointee.operandSize), i)
    }

    /// RET, with `extra` bytes of parameters dropped.
    @inline(__always)
    func returnNear(_ i: UnsafePointer<Instruction>, dropping extra: UInt64) throws(CPUException) {
        let size = Int(i.pointee.operandSize)
        let target = try checkedTarget(try loadStack(0, size: size), i)
        setStackPointer(gpr[4] &+ UInt64(size) &+ extra)
        s.pointee.rip = target
    }

    /// LOOP, LOOPE, LOOPNE, JCXZ: the counter's width is the address size.
    func loopCounted(_ i: UnsafePointer<Instruction>) throws(CPUException) {
        let size = i.pointee.addressSize
        if i.pointee.operation == .jcxz {
            try jumpIf(i, truncateAddress(gpr[1], size) == 0)
            return
        }
        let count = truncateAddress(gpr[1] &- 1, size)
        let zero = s.pointee.arithmetic_flags & 0x4000 != 0
        var taken = count != 0
        if i.pointee.operation == .loope { taken = taken && zero }
        if i.pointee.operation == .loopne { taken = taken && !zero }
        try jumpIf(i, taken)
        writeCounter(count, size)
    }

    /// Writes RCX, ECX or CX.
    @inline(__always)
    func writeCounter(_ value: UInt64, _ size: UInt8) {
        switch size {
        case 8: gpr[1] = value
        case 4: gpr[1] = value & 0xFFFF_FFFF
        default: writeRegister(1, UInt16(truncatingIfNeeded: value))
        }
    }

    /// Whether an address is canonical for the paging mode in force (SDM 1 3.3.7.1).
    @inline(__always)
    func isCanonical(_ address: UInt64) -> Bool {
        let unused: UInt64 = s.pointee.cr4 & 0x1000 != 0 ? 7 : 16
        return UInt64(bitPattern: Int64(bitPattern: address &<< unused) &>> Int64(unused)) == address
    }
}
