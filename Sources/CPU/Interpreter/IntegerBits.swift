// Shifts, rotates, bit tests and the bit-manipulation sets (BMI1, BMI2, ADX, LZCNT, POPCNT, MOVBE, CRC32).
internal import CHost

extension VCPU {
    /// ROL ROR RCL RCR SHL SHR SAR by CL, 1 or an immediate.
    @inline(__always)
    func shift(_ i: UnsafePointer<Instruction>, _ op: UInt32) throws(CPUException) {
        let count: UInt64
        switch i.pointee.form {
        case .rmCL: count = gpr[1] & 0xFF
        case .rmOne: count = 1
        default: count = UInt64(truncatingIfNeeded: i.pointee.immediate) & 0xFF
        }
        let size = i.pointee.operandSize
        if i.pointee.rm != Instruction.none {
            switch size {
            case 8:
                writeRegister(
                    i.pointee.rm, roost_shift(op, 8, readRegister(i.pointee.rm), count, &s.pointee.arithmetic_flags))
            case 4:
                let value = UInt64(readRegister(i.pointee.rm, as: UInt32.self))
                writeRegister(
                    i.pointee.rm,
                    UInt32(truncatingIfNeeded: roost_shift(op, 4, value, count, &s.pointee.arithmetic_flags)))
            default:
                let value = try readSizedRM(i, size)
                let result =
                    size == 1
                    ? roost_shift(op, 1, value, count, &s.pointee.arithmetic_flags)
                    : roost_shift(op, 2, value, count, &s.pointee.arithmetic_flags)
                try writeSizedRM(i, result, size)
            }
            return
        }
        try updateShifted(i) { value, flags in
            switch size {
            case 8: roost_shift(op, 8, value, count, &flags)
            case 4: roost_shift(op, 4, value, count, &flags)
            case 2: roost_shift(op, 2, value, count, &flags)
            default: roost_shift(op, 1, value, count, &flags)
            }
        }
    }

    /// Memory destination whose new value and flags `body` computes; nothing changes when a write would fault.
    @inline(__always)
    private func updateShifted(
        _ i: UnsafePointer<Instruction>, _ body: (UInt64, inout UInt32) -> UInt64
    ) throws(CPUException) {
        let offset = effectiveAddress(i)
        let segment = Int(i.pointee.segment)
        var flags = s.pointee.arithmetic_flags
        if i.pointee.prefixes.contains(.lock), try updateAtomically(i, offset, body) { return }
        switch i.pointee.operandSize {
        case 8: try store(segment, offset, body(try loadForWrite(segment, offset), &flags))
        case 4:
            let old: UInt32 = try loadForWrite(segment, offset)
            try store(segment, offset, UInt32(truncatingIfNeeded: body(UInt64(old), &flags)))
        case 2:
            let old: UInt16 = try loadForWrite(segment, offset)
            try store(segment, offset, UInt16(truncatingIfNeeded: body(UInt64(old), &flags)))
        default:
            let old: UInt8 = try loadForWrite(segment, offset)
            try store(segment, offset, UInt8(truncatingIfNeeded: body(UInt64(old), &flags)))
        }
        s.pointee.arithmetic_flags = flags
    }

    /// The same as one atomic operation; false where the operand isn't within a page of RAM.
    private func updateAtomically(
        _ i: UnsafePointer<Instruction>, _ offset: UInt64, _ body: (UInt64, inout UInt32) -> UInt64
    ) throws(CPUException) -> Bool {
        let segment = Int(i.pointee.segment)
        let pointer: UnsafeMutableRawPointer?
        switch i.pointee.operandSize {
        case 8:
            pointer = try hostPointerForUpdate(segment, offset).map { (p: UnsafeMutablePointer<UInt64>) in .init(p) }
        case 4:
            pointer = try hostPointerForUpdate(segment, offset).map { (p: UnsafeMutablePointer<UInt32>) in .init(p) }
        case 2:
            pointer = try hostPointerForUpdate(segment, offset).map { (p: UnsafeMutablePointer<UInt16>) in .init(p) }
        default:
            pointer = try hostPointerForUpdate(segment, offset).map { (p: UnsafeMutablePointer<UInt8>) in .init(p) }
        }
        guard let pointer else { return false }
        let size = UInt32(i.pointee.operandSize)
        var old = roost_load_sized(size, pointer)
        while true {
            var flags = s.pointee.arithmetic_flags
            let new = body(old, &flags)
            let seen = roost_cmpxchg_atomic(size, pointer, old, new)
            if seen == old {
                s.pointee.arithmetic_flags = flags
                return true
            }
            old = seen
        }
    }

    /// SHLD, SHRD.
    func shiftDouble(_ i: UnsafePointer<Instruction>, right: Int32) throws(CPUException) {
        let count = i.pointee.form == .rmCL ? gpr[1] & 0xFF : UInt64(truncatingIfNeeded: i.pointee.immediate) & 0xFF
        let size = UInt32(i.pointee.operandSize)
        let fill = gpr[Int(i.pointee.reg & 15)]
        if i.pointee.rm != Instruction.none {
            let value = try readSizedRM(i, i.pointee.operandSize)
            let result = roost_double_shift(right, size, value, fill, count, &s.pointee.arithmetic_flags)
            try writeSizedRM(i, result, i.pointee.operandSize)
        } else {
            try updateShifted(i) { value, flags in roost_double_shift(right, size, value, fill, count, &flags) }
        }
    }

    /// BT BTS BTR BTC; a register index reaches beyond the memory operand, a LOCK makes the change atomic.
    func bitTest(_ i: UnsafePointer<Instruction>, _ op: UInt32?) throws(CPUException) {
        let size = i.pointee.operandSize
        let bits = UInt64(size) &* 8
        var index: UInt64
        if i.pointee.form == .rmImmediate {
            index = UInt64(truncatingIfNeeded: i.pointee.immediate)
        } else {
            index = gpr[Int(i.pointee.reg & 15)]
            if i.pointee.rm == Instruction.none {
                let signed: Int64
                switch size {
                case 8: signed = Int64(bitPattern: index)
                case 4: signed = Int64(Int32(truncatingIfNeeded: index))
                default: signed = Int64(Int16(truncatingIfNeeded: index))
                }
                let units = signed >> (size == 8 ? 6 : size == 4 ? 5 : 4)
                let offset = truncateAddress(
                    effectiveAddress(i) &+ UInt64(bitPattern: units &* Int64(size)), i.pointee.addressSize)
                try bitTestMemory(i, op, offset, index & (bits - 1))
                return
            }
        }
        index &= bits - 1
        if i.pointee.rm == Instruction.none {
            try bitTestMemory(i, op, effectiveAddress(i), index)
            return
        }
        let value = try readSizedRM(i, size)
        setFlag(0x100, value >> index & 1 != 0)
        if let op {
            try writeSizedRM(
                i, roost_alu(op, UInt32(size), value, index, &s.pointee.arithmetic_flags), size)
        }
    }

    private func bitTestMemory(
        _ i: UnsafePointer<Instruction>, _ op: UInt32?, _ offset: UInt64, _ index: UInt64
    ) throws(CPUException) {
        let segment = Int(i.pointee.segment)
        switch (i.pointee.operandSize, op) {
        case (8, let op?): _ = try updateMemory(i, op, offset, index)
        case (4, let op?): _ = try updateMemory(i, op, offset, UInt32(truncatingIfNeeded: index))
        case (_, let op?): _ = try updateMemory(i, op, offset, UInt16(truncatingIfNeeded: index))
        case (8, nil): setFlag(0x100, try load(segment, offset, as: UInt64.self) >> index & 1 != 0)
        case (4, nil): setFlag(0x100, try load(segment, offset, as: UInt32.self) >> UInt32(index) & 1 != 0)
        case (_, nil): setFlag(0x100, try load(segment, offset, as: UInt16.self) >> UInt16(index) & 1 != 0)
        }
    }

    /// BSF BSR TZCNT LZCNT POPCNT, two- and three-operand IMUL: destination `reg`, source r/m.
    @inline(__always)
    func bits(_ i: UnsafePointer<Instruction>, _ op: UInt32) throws(CPUException) {
        let size = i.pointee.operandSize
        let source = try readSizedRM(i, size)
        var old = gpr[Int(i.pointee.reg & 15)]
        if i.pointee.form == .regRMImmediate { old = UInt64(bitPattern: i.pointee.immediate) }
        let scans = op == UInt32(ROOST_BSF) || op == UInt32(ROOST_BSR)
        let result: UInt64
        switch size {
        case 8: result = roost_bits(op, 8, old, source, &s.pointee.arithmetic_flags)
        case 4: result = roost_bits(op, 4, old, source, &s.pointee.arithmetic_flags)
        default: result = roost_bits(op, 2, old, source, &s.pointee.arithmetic_flags)
        }
        if scans && source == 0 { return }
        writeSized(i.pointee.reg, result, size)
    }

    /// BLSI BLSMSK BLSR: destination `extra`, source r/m.
    func bitsToExtra(_ i: UnsafePointer<Instruction>, _ op: UInt32) throws(CPUException) {
        let size = i.pointee.operandSize
        let source = try readSizedRM(i, size)
        writeSized(
            i.pointee.extra, roost_bits(op, UInt32(size), 0, source, &s.pointee.arithmetic_flags), size)
    }

    /// ANDN BEXTR BZHI PDEP PEXT.
    func vexBits(_ i: UnsafePointer<Instruction>, _ op: UInt32) throws(CPUException) {
        let size = i.pointee.operandSize
        let memory = try readSizedRM(i, size)
        let other = gpr[Int(i.pointee.extra & 15)]
        let result =
            i.pointee.form == .regExtraRM
            ? roost_vex_bits(op, UInt32(size), other, memory, &s.pointee.arithmetic_flags)
            : roost_vex_bits(op, UInt32(size), memory, other, &s.pointee.arithmetic_flags)
        writeSized(i.pointee.reg, result, size)
    }

    /// SARX SHLX SHRX RORX: no flags.
    func vexShift(_ i: UnsafePointer<Instruction>, _ operation: Operation) throws(CPUException) {
        let wide = i.pointee.operandSize == 8
        let value = try readSizedRM(i, i.pointee.operandSize)
        let count =
            (operation == .rorx ? UInt64(bitPattern: i.pointee.immediate) : gpr[Int(i.pointee.extra & 15)])
            & (wide ? 63 : 31)
        let result: UInt64
        switch operation {
        case .sarx:
            result =
                wide
                ? UInt64(bitPattern: Int64(bitPattern: value) >> Int64(count))
                : UInt64(UInt32(bitPattern: Int32(truncatingIfNeeded: value) >> Int32(count)))
        case .shlx: result = value << count
        case .shrx: result = value >> count
        default: result = wide ? value >> count | value << ((64 - count) & 63) : (value | value << 32) >> count
        }
        writeSized(i.pointee.reg, result, i.pointee.operandSize)
    }

    /// MULX: high half to `reg`, low half to `extra`; no flags.
    func vexMultiply(_ i: UnsafePointer<Instruction>) throws(CPUException) {
        let value = try readSizedRM(i, i.pointee.operandSize)
        if i.pointee.operandSize == 8 {
            let (high, low) = gpr[2].multipliedFullWidth(by: value)
            gpr[Int(i.pointee.extra & 15)] = low
            gpr[Int(i.pointee.reg & 15)] = high
        } else {
            let product = (gpr[2] & 0xFFFF_FFFF) &* value
            gpr[Int(i.pointee.extra & 15)] = product & 0xFFFF_FFFF
            gpr[Int(i.pointee.reg & 15)] = product >> 32
        }
    }

    /// ADCX (carry flag) and ADOX (overflow flag): add with carry touching that flag only.
    func addExtended(_ i: UnsafePointer<Instruction>, flag: UInt32) throws(CPUException) {
        let size = i.pointee.operandSize
        let source = try readSizedRM(i, size)
        let carry: UInt64 = s.pointee.arithmetic_flags & flag != 0 ? 1 : 0
        if size == 8 {
            let (partial, first) = gpr[Int(i.pointee.reg & 15)].addingReportingOverflow(source)
            let (sum, second) = partial.addingReportingOverflow(carry)
            gpr[Int(i.pointee.reg & 15)] = sum
            setFlag(flag, first || second)
        } else {
            let sum = (gpr[Int(i.pointee.reg & 15)] & 0xFFFF_FFFF) &+ source &+ carry
            gpr[Int(i.pointee.reg & 15)] = sum & 0xFFFF_FFFF
            setFlag(flag, sum >> 32 != 0)
        }
    }

    /// MOVBE: a byte-swapped move.
    func moveSwapped(_ i: UnsafePointer<Instruction>) throws(CPUException) {
        let size = i.pointee.operandSize
        if i.pointee.form == .regRM {
            writeSized(i.pointee.reg, swapped(try readSizedRM(i, size), size), size)
        } else {
            try writeSizedRM(i, swapped(gpr[Int(i.pointee.reg & 15)], size), size)
        }
    }

    private func swapped(_ value: UInt64, _ size: UInt8) -> UInt64 {
        switch size {
        case 8: value.byteSwapped
        case 4: UInt64(UInt32(truncatingIfNeeded: value).byteSwapped)
        default: UInt64(UInt16(truncatingIfNeeded: value).byteSwapped)
        }
    }

    /// BSWAP; of a 16-bit register the result is undefined: zero, as processors do.
    func byteSwap(_ i: UnsafePointer<Instruction>) {
        switch i.pointee.operandSize {
        case 8: writeRegister(i.pointee.reg, readRegister(i.pointee.reg, as: UInt64.self).byteSwapped)
        case 4: writeRegister(i.pointee.reg, readRegister(i.pointee.reg, as: UInt32.self).byteSwapped)
        default: writeRegister(i.pointee.reg, 0 as UInt16)
        }
    }

    /// CRC32: `operandSize` is the destination's, `extra` the source's size.
    func crc32(_ i: UnsafePointer<Instruction>) throws(CPUException) {
        let size = i.pointee.extra
        let source = try readSizedRM(i, size)
        let crc = gpr[Int(i.pointee.reg & 15)]
        let result: UInt64
        switch size {
        case 8: result = roost_crc32(8, crc, source)
        case 4: result = roost_crc32(4, crc, source)
        case 2: result = roost_crc32(2, crc, source)
        default: result = roost_crc32(1, crc, source)
        }
        gpr[Int(i.pointee.reg & 15)] = result & 0xFFFF_FFFF
    }
}
