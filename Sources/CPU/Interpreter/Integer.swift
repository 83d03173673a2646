// Moves and arithmetic of the general registers (SDM 2: MOV, ADD, OR, ADC, SBB, AND, SUB, XOR, CMP, TEST, INC, ...).
internal import CHost

extension VCPU {
    /// Two-operand arithmetic `op` in whatever form and size.
    @inline(__always)
    func arithmetic(_ i: UnsafePointer<Instruction>, _ op: UInt32) throws(CPUException) {
        switch i.pointee.operandSize {
        case 8: try arithmetic(i, op, UInt64.self)
        case 4: try arithmetic(i, op, UInt32.self)
        case 1: try arithmetic(i, op, UInt8.self)
        default: try arithmetic(i, op, UInt16.self)
        }
    }

    @inline(__always)
    private func arithmetic<T: GuestInteger>(
        _ i: UnsafePointer<Instruction>, _ op: UInt32, _ type: T.Type
    ) throws(CPUException) {
        let discards = op == UInt32(ROOST_ALU_CMP) || op == UInt32(ROOST_ALU_TEST)
        switch i.pointee.form {
        case .regRM:
            let source: T = try readRM(i)
            let result: T = alu(op, readRegister(i.pointee.reg), source)
            if !discards { writeRegister(i.pointee.reg, result) }
        case .rmReg:
            try update(i, op, readRegister(i.pointee.reg, as: T.self), discards: discards)
        case .rmImmediate:
            try update(i, op, T(truncatingIfNeeded: i.pointee.immediate), discards: discards)
        default:
            let result: T = alu(op, readRegister(i.pointee.reg), T(truncatingIfNeeded: i.pointee.immediate))
            if !discards { writeRegister(i.pointee.reg, result) }
        }
    }

    /// The host's arithmetic unit: result and flags.
    @inline(__always)
    func alu<T: GuestInteger>(_ op: UInt32, _ a: T, _ b: T) -> T {
        T(
            truncatingIfNeeded: roost_alu(
                op, UInt32(MemoryLayout<T>.size), UInt64(truncatingIfNeeded: a), UInt64(truncatingIfNeeded: b),
                &s.pointee.arithmetic_flags))
    }

    /// Destination r/m: `rm = rm op value`, atomically under LOCK; or only its flags.
    @inline(__always)
    func update<T: GuestInteger>(
        _ i: UnsafePointer<Instruction>, _ op: UInt32, _ value: T, discards: Bool = false
    ) throws(CPUException) {
        if i.pointee.rm != Instruction.none {
            let result: T = alu(op, readRegister(i.pointee.rm), value)
            if !discards { writeRegister(i.pointee.rm, result) }
        } else if discards {
            let old: T = try load(Int(i.pointee.segment), effectiveAddress(i))
            _ = alu(op, old, value)
        } else {
            _ = try updateMemory(i, op, effectiveAddress(i), value)
        }
    }

    /// Memory destination: `[offset] = [offset] op value`; returns the old value.
    @inline(__always)
    func updateMemory<T: GuestInteger>(
        _ i: UnsafePointer<Instruction>, _ op: UInt32, _ offset: UInt64, _ value: T
    ) throws(CPUException) -> T {
        if let host: UnsafeMutablePointer<T> = try hostPointerForUpdate(Int(i.pointee.segment), offset) {
            if i.pointee.prefixes.contains(.lock) {
                return T(
                    truncatingIfNeeded: roost_alu_atomic(
                        op, UInt32(MemoryLayout<T>.size), host, UInt64(truncatingIfNeeded: value),
                        &s.pointee.arithmetic_flags))
            }
            let old = host.pointee
            host.pointee = alu(op, old, value)
            return old
        }
        return try updateSlowly(i, op, offset, value)
    }

    @inline(never)
    private func updateSlowly<T: GuestInteger>(
        _ i: UnsafePointer<Instruction>, _ op: UInt32, _ offset: UInt64, _ value: T
    ) throws(CPUException) -> T {
        let size = MemoryLayout<T>.size
        if i.pointee.prefixes.contains(.lock) {
            let locked = try updateCode(Int(i.pointee.segment), offset, size: size) { host in
                roost_alu_atomic(
                    op, UInt32(size), host, UInt64(truncatingIfNeeded: value), &s.pointee.arithmetic_flags)
            }
            if let locked { return T(truncatingIfNeeded: locked) }
        }
        let flags = s.pointee.arithmetic_flags
        let old: T = try loadForWrite(Int(i.pointee.segment), offset)
        let result = alu(op, old, value)
        let newFlags = s.pointee.arithmetic_flags
        s.pointee.arithmetic_flags = flags
        try store(Int(i.pointee.segment), offset, result)
        s.pointee.arithmetic_flags = newFlags
        return old
    }

    /// INC, DEC, NEG, NOT.
    @inline(__always)
    func unary(_ i: UnsafePointer<Instruction>, _ op: UInt32) throws(CPUException) {
        if i.pointee.form == .reg {
            switch i.pointee.operandSize {
            case 4: writeRegister(i.pointee.reg, alu(op, readRegister(i.pointee.reg, as: UInt32.self), 0))
            default: writeRegister(i.pointee.reg, alu(op, readRegister(i.pointee.reg, as: UInt16.self), 0))
            }
            return
        }
        switch i.pointee.operandSize {
        case 8: try update(i, op, 0 as UInt64)
        case 4: try update(i, op, 0 as UInt32)
        case 1: try update(i, op, 0 as UInt8)
        default: try update(i, op, 0 as UInt16)
        }
    }

    /// MOV between general registers, memory and immediates.
    @inline(__always)
    func move(_ i: UnsafePointer<Instruction>) throws(CPUException) {
        switch i.pointee.operandSize {
        case 8: try move(i, UInt64.self)
        case 4: try move(i, UInt32.self)
        case 1: try move(i, UInt8.self)
        default: try move(i, UInt16.self)
        }
    }

    @inline(__always)
    private func move<T: GuestInteger>(_ i: UnsafePointer<Instruction>, _ type: T.Type) throws(CPUException) {
        switch i.pointee.form {
        case .regRM: writeRegister(i.pointee.reg, try readRM(i, as: T.self))
        case .rmReg: try writeRM(i, readRegister(i.pointee.reg, as: T.self))
        case .rmImmediate: try writeRM(i, T(truncatingIfNeeded: i.pointee.immediate))
        case .offsetLoad:
            let offset = truncateAddress(UInt64(bitPattern: i.pointee.immediate), i.pointee.addressSize)
            writeRegister(0, try load(Int(i.pointee.segment), offset, as: T.self))
        case .offsetStore:
            let offset = truncateAddress(UInt64(bitPattern: i.pointee.immediate), i.pointee.addressSize)
            try store(Int(i.pointee.segment), offset, readRegister(0, as: T.self))
        default: writeRegister(i.pointee.reg, T(truncatingIfNeeded: i.pointee.immediate))
        }
    }

    /// MOVZX, MOVSX, MOVSXD.
    @inline(__always)
    func moveExtended(_ i: UnsafePointer<Instruction>, signed: Bool) throws(CPUException) {
        let value: UInt64
        switch i.pointee.extra {
        case 1:
            let byte: UInt8 = try readRM(i)
            value = signed ? UInt64(bitPattern: Int64(Int8(bitPattern: byte))) : UInt64(byte)
        case 2:
            let word: UInt16 = try readRM(i)
            value = signed ? UInt64(bitPattern: Int64(Int16(bitPattern: word))) : UInt64(word)
        default:
            let double: UInt32 = try readRM(i)
            value = signed ? UInt64(bitPattern: Int64(Int32(bitPattern: double))) : UInt64(double)
        }
        writeSized(i.pointee.reg, value, i.pointee.operandSize)
    }

    /// Writes the low 2, 4 or 8 bytes of a value to a register.
    @inline(__always)
    func writeSized(_ n: UInt8, _ value: UInt64, _ size: UInt8) {
        switch size {
        case 8: writeRegister(n, value)
        case 4: writeRegister(n, UInt32(truncatingIfNeeded: value))
        case 2: writeRegister(n, UInt16(truncatingIfNeeded: value))
        default: writeRegister(n, UInt8(truncatingIfNeeded: value))
        }
    }

    /// Reads the r/m operand zero-extended, size known at run time.
    @inline(__always)
    func readSizedRM(_ i: UnsafePointer<Instruction>, _ size: UInt8) throws(CPUException) -> UInt64 {
        switch size {
        case 8: return try readRM(i, as: UInt64.self)
        case 4: return UInt64(try readRM(i, as: UInt32.self))
        case 2: return UInt64(try readRM(i, as: UInt16.self))
        default: return UInt64(try readRM(i, as: UInt8.self))
        }
    }

    /// Writes the r/m operand, size known at run time.
    @inline(__always)
    func writeSizedRM(_ i: UnsafePointer<Instruction>, _ value: UInt64, _ size: UInt8) throws(CPUException) {
        switch size {
        case 8: try writeRM(i, value)
        case 4: try writeRM(i, UInt32(truncatingIfNeeded: value))
        case 2: try writeRM(i, UInt16(truncatingIfNeeded: value))
        default: try writeRM(i, UInt8(truncatingIfNeeded: value))
        }
    }

    /// XCHG: with memory always atomic, LOCK or not.
    func exchange(_ i: UnsafePointer<Instruction>) throws(CPUException) {
        switch i.pointee.operandSize {
        case 8: try exchange(i, UInt64.self)
        case 4: try exchange(i, UInt32.self)
        case 1: try exchange(i, UInt8.self)
        default: try exchange(i, UInt16.self)
        }
    }

    @inline(__always)
    private func exchange<T: GuestInteger>(_ i: UnsafePointer<Instruction>, _ type: T.Type) throws(CPUException) {
        let value: T = readRegister(i.pointee.reg)
        if i.pointee.form == .reg {
            writeRegister(i.pointee.reg, readRegister(0, as: T.self))
            writeRegister(0, value)
        } else if i.pointee.rm != Instruction.none {
            let other: T = readRegister(i.pointee.rm)
            writeRegister(i.pointee.rm, value)
            writeRegister(i.pointee.reg, other)
        } else {
            let offset = effectiveAddress(i)
            if let host: UnsafeMutablePointer<T> = try hostPointerForUpdate(Int(i.pointee.segment), offset) {
                var flags: UInt32 = 0
                let old = roost_alu_atomic(
                    UInt32(ROOST_ALU_XCHG), UInt32(MemoryLayout<T>.size), host,
                    UInt64(truncatingIfNeeded: value), &flags)
                writeRegister(i.pointee.reg, T(truncatingIfNeeded: old))
            } else {
                writeRegister(i.pointee.reg, try exchangeSlowly(Int(i.pointee.segment), offset, value))
            }
        }
    }

    /// Exchanges where `hostPointerForUpdate` gives nothing; the old value.
    @inline(never)
    private func exchangeSlowly<T: GuestInteger>(
        _ segment: Int, _ offset: UInt64, _ value: T
    ) throws(CPUException) -> T {
        let size = MemoryLayout<T>.size
        let locked = try updateCode(segment, offset, size: size) { host in
            var flags: UInt32 = 0
            return roost_alu_atomic(
                UInt32(ROOST_ALU_XCHG), UInt32(size), host, UInt64(truncatingIfNeeded: value), &flags)
        }
        if let locked { return T(truncatingIfNeeded: locked) }
        let old: T = try loadForWrite(segment, offset)
        try store(segment, offset, value)
        return old
    }

    /// XADD.
    func exchangeAdd(_ i: UnsafePointer<Instruction>) throws(CPUException) {
        switch i.pointee.operandSize {
        case 8: try exchangeAdd(i, UInt64.self)
        case 4: try exchangeAdd(i, UInt32.self)
        case 1: try exchangeAdd(i, UInt8.self)
        default: try exchangeAdd(i, UInt16.self)
        }
    }

    @inline(__always)
    private func exchangeAdd<T: GuestInteger>(_ i: UnsafePointer<Instruction>, _ type: T.Type) throws(CPUException) {
        let value: T = readRegister(i.pointee.reg)
        if i.pointee.rm != Instruction.none {
            let old: T = readRegister(i.pointee.rm)
            let sum: T = alu(UInt32(ROOST_ALU_ADD), old, value)
            writeRegister(i.pointee.reg, old)
            writeRegister(i.pointee.rm, sum)
        } else {
            let old: T = try updateMemory(i, UInt32(ROOST_ALU_XADD), effectiveAddress(i), value)
            writeRegister(i.pointee.reg, old)
        }
    }

    /// CMPXCHG. The destination is written in either case, as the processor does.
    func compareExchange(_ i: UnsafePointer<Instruction>) throws(CPUException) {
        switch i.pointee.operandSize {
        case 8: try compareExchange(i, UInt64.self)
        case 4: try compareExchange(i, UInt32.self)
        case 1: try compareExchange(i, UInt8.self)
        default: try compareExchange(i, UInt16.self)
        }
    }

    @inline(__always)
    private func compareExchange<T: GuestInteger>(
        _ i: UnsafePointer<Instruction>, _ type: T.Type
    ) throws(CPUException) {
        let accumulator: T = readRegister(0)
        let value: T = readRegister(i.pointee.reg)
        let old: T
        if i.pointee.rm != Instruction.none {
            old = readRegister(i.pointee.rm)
            if old == accumulator { writeRegister(i.pointee.rm, value) }
        } else {
            let offset = effectiveAddress(i)
            if let host: UnsafeMutablePointer<T> = try hostPointerForUpdate(Int(i.pointee.segment), offset) {
                old = T(
                    truncatingIfNeeded: roost_cmpxchg_atomic(
                        UInt32(MemoryLayout<T>.size), host, UInt64(truncatingIfNeeded: accumulator),
                        UInt64(truncatingIfNeeded: value)))
            } else {
                old = try compareExchangeSlowly(Int(i.pointee.segment), offset, accumulator, value)
            }
        }
        _ = alu(UInt32(ROOST_ALU_CMP), accumulator, old)
        if old != accumulator { writeRegister(0, old) }
    }

    /// Compares and exchanges where `hostPointerForUpdate` gives nothing; the old value.
    @inline(never)
    private func compareExchangeSlowly<T: GuestInteger>(
        _ segment: Int, _ offset: UInt64, _ expected: T, _ value: T
    ) throws(CPUException) -> T {
        let size = MemoryLayout<T>.size
        let locked = try updateCode(segment, offset, size: size) { host in
            roost_cmpxchg_atomic(
                UInt32(size), host, UInt64(truncatingIfNeeded: expected), UInt64(truncatingIfNeeded: value))
        }
        if let locked { return T(truncatingIfNeeded: locked) }
        let old: T = try loadForWrite(segment, offset)
        try store(segment, offset, old == expected ? value : old)
        return old
    }

    /// CMPXCHG8B and CMPXCHG16B.
    func compareExchangeDouble(_ i: UnsafePointer<Instruction>, wide: Bool) throws(CPUException) {
        let segment = Int(i.pointee.segment)
        let offset = effectiveAddress(i)
        if wide { return try compareExchangeWide(segment, offset) }
        let expected = (gpr[2] << 32) | (gpr[0] & 0xFFFF_FFFF)
        let value = (gpr[1] << 32) | (gpr[3] & 0xFFFF_FFFF)
        let old: UInt64
        if let host: UnsafeMutablePointer<UInt64> = try hostPointerForUpdate(segment, offset) {
            old = roost_cmpxchg_atomic(8, host, expected, value)
        } else {
            old = try compareExchangeSlowly(segment, offset, expected, value)
        }
        if old != expected {
            gpr[0] = old & 0xFFFF_FFFF
            gpr[2] = old >> 32
        }
        setFlag(0x4000, old == expected)
    }

    /// CMPXCHG16B.
    private func compareExchangeWide(_ segment: Int, _ offset: UInt64) throws(CPUException) {
        if (offset &+ roost_effective_base_at(s, segment).pointee) & 15 != 0 { throw .generalProtection(0) }
        var (low, high) = (gpr[0], gpr[2])
        let equal: Bool
        if let host: UnsafeMutablePointer<UInt128> = try hostPointerForUpdate(segment, offset) {
            equal = roost_cmpxchg16b(host, &low, &high, gpr[3], gpr[1]) != 0
        } else {
            let locked = try updateCode(segment, offset, size: 16) { host in
                UInt64(truncatingIfNeeded: roost_cmpxchg16b(host, &low, &high, gpr[3], gpr[1]))
            }
            if let locked {
                equal = locked != 0
            } else {
                let oldLow: UInt64 = try loadForWrite(segment, offset)
                let oldHigh: UInt64 = try loadForWrite(segment, offset &+ 8)
                equal = oldLow == low && oldHigh == high
                try store(segment, offset, equal ? gpr[3] : oldLow)
                try store(segment, offset &+ 8, equal ? gpr[1] : oldHigh)
                (low, high) = (oldLow, oldHigh)
            }
        }
        if !equal { (gpr[0], gpr[2]) = (low, high) }
        setFlag(0x4000, equal)
    }

    /// Sets or clears one flag in its LAHF/SETO place.
    @inline(__always)
    func setFlag(_ bit: UInt32, _ value: Bool) {
        s.pointee.arithmetic_flags = (s.pointee.arithmetic_flags & ~bit) | (value ? bit : 0)
    }

    /// Carry.
    @inline(__always)
    var carry: Bool { s.pointee.arithmetic_flags & 0x100 != 0 }
}
