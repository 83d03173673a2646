// Multiplication, division, decimal adjustment, flags, stack frames and the rest of the integer set.
internal import CHost

extension VCPU {
    /// MUL, IMUL with one operand.
    func multiply(_ i: UnsafePointer<Instruction>, signed: Int32) throws(CPUException) {
        let size = i.pointee.operandSize
        let value = try readSizedRM(i, size)
        var high: UInt64 = 0
        let low: UInt64
        switch size {
        case 8:
            low = roost_multiply(signed, 8, gpr[0], value, &high, &s.pointee.arithmetic_flags)
            gpr[0] = low
            gpr[2] = high
        case 4:
            low = roost_multiply(signed, 4, gpr[0], value, &high, &s.pointee.arithmetic_flags)
            gpr[0] = low & 0xFFFF_FFFF
            gpr[2] = high & 0xFFFF_FFFF
        case 2:
            low = roost_multiply(signed, 2, gpr[0], value, &high, &s.pointee.arithmetic_flags)
            writeRegister(0, UInt16(truncatingIfNeeded: low))
            writeRegister(2, UInt16(truncatingIfNeeded: high))
        default:
            low = roost_multiply(signed, 1, gpr[0], value, &high, &s.pointee.arithmetic_flags)
            writeRegister(0, UInt16(truncatingIfNeeded: low))
        }
    }

    /// DIV.
    func divide(_ i: UnsafePointer<Instruction>) throws(CPUException) {
        let size = i.pointee.operandSize
        let divisor = try readSizedRM(i, size)
        if size == 1 {
            let dividend = gpr[0] & 0xFFFF
            if divisor == 0 || dividend / divisor > 0xFF { throw .divideError }
            writeRegister(0, UInt16(truncatingIfNeeded: (dividend / divisor) | (dividend % divisor) << 8))
            return
        }
        let mask: UInt64 = size == 8 ? ~0 : size == 4 ? 0xFFFF_FFFF : 0xFFFF
        let high = gpr[2] & mask
        if high >= divisor { throw .divideError }
        var remainder: UInt64 = 0
        let quotient = roost_divide(UInt32(size), high, gpr[0] & mask, divisor, &remainder)
        writeSized(0, quotient, size)
        writeSized(2, remainder, size)
    }

    /// IDIV.
    func divideSigned(_ i: UnsafePointer<Instruction>) throws(CPUException) {
        let size = i.pointee.operandSize
        let raw = try readSizedRM(i, size)
        if raw == 0 { throw .divideError }
        switch size {
        case 8:
            let divisor = Int64(bitPattern: raw)
            let high = Int64(bitPattern: gpr[2])
            // The quotient's magnitude by unsigned division, its range checked, then the signs.
            let negative = high < 0
            var (top, low) = (gpr[2], gpr[0])
            if negative {
                low = 0 &- low
                top = ~top &+ (low == 0 ? 1 : 0)
            }
            let magnitude = divisor.magnitude
            if top >= magnitude { throw .divideError }
            var remainder: UInt64 = 0
            let quotient = roost_divide(8, top, low, magnitude, &remainder)
            let quotientNegative = negative != (divisor < 0)
            if quotient > (quotientNegative ? 1 << 63 : (1 << 63) - 1) { throw .divideError }
            gpr[0] = quotientNegative ? 0 &- quotient : quotient
            gpr[2] = negative ? 0 &- remainder : remainder
        case 4:
            let dividend = Int64(bitPattern: gpr[2] << 32 | gpr[0] & 0xFFFF_FFFF)
            let divisor = Int64(Int32(truncatingIfNeeded: raw))
            let (quotient, overflow) = dividend.dividedReportingOverflow(by: divisor)
            if overflow || quotient != Int64(Int32(truncatingIfNeeded: quotient)) { throw .divideError }
            gpr[0] = UInt64(UInt32(truncatingIfNeeded: quotient))
            gpr[2] = UInt64(UInt32(truncatingIfNeeded: dividend % divisor))
        case 2:
            let dividend = Int64(Int32(truncatingIfNeeded: gpr[2] << 16 | gpr[0] & 0xFFFF))
            let divisor = Int64(Int16(truncatingIfNeeded: raw))
            let quotient = dividend / divisor
            if quotient != Int64(Int16(truncatingIfNeeded: quotient)) { throw .divideError }
            writeRegister(0, UInt16(truncatingIfNeeded: quotient))
            writeRegister(2, UInt16(truncatingIfNeeded: dividend % divisor))
        default:
            let dividend = Int64(Int16(truncatingIfNeeded: gpr[0]))
            let divisor = Int64(Int8(truncatingIfNeeded: raw))
            let quotient = dividend / divisor
            if quotient != Int64(Int8(truncatingIfNeeded: quotient)) { throw .divideError }
            writeRegister(
                0,
                UInt16(UInt8(truncatingIfNeeded: quotient)) | UInt16(UInt8(truncatingIfNeeded: dividend % divisor)) << 8
            )
        }
    }

    /// CBW CWDE CDQE.
    func convertAccumulator(_ size: UInt8) {
        switch size {
        case 8: gpr[0] = UInt64(bitPattern: Int64(Int32(truncatingIfNeeded: gpr[0])))
        case 4: gpr[0] = UInt64(UInt32(bitPattern: Int32(Int16(truncatingIfNeeded: gpr[0]))))
        default: writeRegister(0, UInt16(bitPattern: Int16(Int8(truncatingIfNeeded: gpr[0]))))
        }
    }

    /// CWD CDQ CQO.
    func convertToDouble(_ size: UInt8) {
        switch size {
        case 8: gpr[2] = UInt64(bitPattern: Int64(bitPattern: gpr[0]) >> 63)
        case 4: gpr[2] = UInt64(UInt32(bitPattern: Int32(truncatingIfNeeded: gpr[0]) >> 31))
        default: writeRegister(2, UInt16(bitPattern: Int16(truncatingIfNeeded: gpr[0]) >> 15))
        }
    }

    /// LAHF, SAHF.
    func loadFlagsToAH() { writeRegister(16, UInt8(truncatingIfNeeded: s.pointee.arithmetic_flags >> 8) & 0xD5 | 2) }

    /// SAHF.
    func storeAHToFlags() {
        s.pointee.arithmetic_flags =
            (s.pointee.arithmetic_flags & 1) | UInt32(readRegister(16, as: UInt8.self) & 0xD5) << 8
    }

    /// DAA, DAS (SDM 2A).
    func decimalAdjust(subtract: Bool) {
        let old: UInt8 = readRegister(0)
        let oldCarry = carry
        var al = old
        var carry = false
        let adjustLow = old & 15 > 9 || s.pointee.arithmetic_flags & 0x1000 != 0
        if adjustLow {
            carry = oldCarry || (subtract ? old < 6 : old > 0xF9)
            al = subtract ? al &- 6 : al &+ 6
        }
        if old > 0x99 || oldCarry {
            al = subtract ? al &- 0x60 : al &+ 0x60
            carry = true
        } else if !subtract {
            carry = false
        }
        writeRegister(0, al)
        _ = alu(UInt32(ROOST_ALU_TEST), al, al)
        setFlag(0x100, carry)
        setFlag(0x1000, adjustLow)
    }

    /// AAA, AAS (SDM 2A).
    func asciiAdjust(subtract: Bool) {
        let adjust = readRegister(0, as: UInt8.self) & 15 > 9 || s.pointee.arithmetic_flags & 0x1000 != 0
        if adjust {
            let ax: UInt16 = readRegister(0)
            writeRegister(0, subtract ? (ax &- 6) &- 0x100 : ax &+ 0x106)
        }
        writeRegister(0, readRegister(0, as: UInt8.self) & 15)
        setFlag(0x100, adjust)
        setFlag(0x1000, adjust)
    }

    /// AAM.
    func asciiAdjustMultiply(_ base: UInt8) throws(CPUException) {
        if base == 0 { throw .divideError }
        let al: UInt8 = readRegister(0)
        writeRegister(0, UInt16(al / base) << 8 | UInt16(al % base))
        let low = al % base
        _ = alu(UInt32(ROOST_ALU_TEST), low, low)
    }

    /// AAD.
    func asciiAdjustDivide(_ base: UInt8) {
        let al: UInt8 = readRegister(0)
        let ah: UInt8 = readRegister(16)
        let result = alu(UInt32(ROOST_ALU_ADD), al, ah &* base)
        writeRegister(0, UInt16(result))
    }

    /// PUSH of a register, r/m or immediate.
    @inline(__always)
    func pushOperand(_ i: UnsafePointer<Instruction>) throws(CPUException) {
        let size = i.pointee.operandSize
        let value: UInt64
        switch i.pointee.form {
        case .reg: value = gpr[Int(i.pointee.reg & 15)]
        case .immediate, .regImmediate: value = UInt64(bitPattern: i.pointee.immediate)
        default: value = try readSizedRM(i, size)
        }
        try push(value, size: Int(size))
    }

    /// POP to a register or r/m; the address of a memory operand is computed after RSP moved (SDM 2B, POP).
    @inline(__always)
    func popOperand(_ i: UnsafePointer<Instruction>) throws(CPUException) {
        let size = i.pointee.operandSize
        let value = try loadStack(0, size: Int(size))
        let old = gpr[4]
        setStackPointer(old &+ UInt64(size))
        if i.pointee.form == .reg {
            writeSized(i.pointee.reg, value, size)
        } else {
            do throws(CPUException) { try writeSizedRM(i, value, size) } catch {
                gpr[4] = old
                throw error
            }
        }
    }

    /// PUSHA.
    func pushAll(_ size: Int) throws(CPUException) {
        let old = gpr[4]
        do throws(CPUException) {
            for n in 0..<8 { try push(n == 4 ? old : gpr[n], size: size) }
        } catch {
            gpr[4] = old
            throw error
        }
    }

    /// POPA.
    func popAll(_ size: Int) throws(CPUException) {
        // All eight are read before any is written.
        var values: (UInt64, UInt64, UInt64, UInt64, UInt64, UInt64, UInt64) = (0, 0, 0, 0, 0, 0, 0)
        let step = UInt64(size)
        values.0 = try loadStack(0, size: size)
        values.1 = try loadStack(step, size: size)
        values.2 = try loadStack(2 &* step, size: size)
        values.3 = try loadStack(4 &* step, size: size)
        values.4 = try loadStack(5 &* step, size: size)
        values.5 = try loadStack(6 &* step, size: size)
        values.6 = try loadStack(7 &* step, size: size)
        let width = UInt8(size)
        writeSized(7, values.0, width)
        writeSized(6, values.1, width)
        writeSized(5, values.2, width)
        writeSized(3, values.3, width)
        writeSized(2, values.4, width)
        writeSized(1, values.5, width)
        writeSized(0, values.6, width)
        setStackPointer(gpr[4] &+ 8 &* step)
    }

    /// PUSHF.
    func pushFlags(_ size: Int) throws(CPUException) { try push(try pushedFlags(size: size), size: size) }

    /// POPF.
    func popFlagsFromStack(_ size: Int) throws(CPUException) {
        try popFlags(try loadStack(0, size: size), size: size)
        setStackPointer(gpr[4] &+ UInt64(size))
    }

    /// ENTER (SDM 2A), frames nested up to 31 deep.
    func enterFrame(_ i: UnsafePointer<Instruction>) throws(CPUException) {
        let size = Int(i.pointee.operandSize)
        let level = i.pointee.immediate2 & 31
        let oldSP = gpr[4]
        do throws(CPUException) {
            try push(gpr[5], size: size)
            let frame = stackPointer
            if level > 0 {
                for n in 1..<max(1, UInt64(level)) {
                    let link = truncateAddress(gpr[5] &- n &* UInt64(size), s.pointee.stack_size)
                    try push(try loadStackAt(link, size: size), size: size)
                }
                try push(frame, size: size)
            }
            let final = truncateAddress(
                gpr[4] &- UInt64(truncatingIfNeeded: i.pointee.immediate & 0xFFFF), s.pointee.stack_size)
            // The new top must be writable, as the processor checks.
            let _: UInt8 = try loadForWrite(Int(ROOST_SS), final)
            setStackPointer(final)
            writeSized(5, frame, UInt8(size))
        } catch {
            gpr[4] = oldSP
            throw error
        }
    }

    private func loadStackAt(_ offset: UInt64, size: Int) throws(CPUException) -> UInt64 {
        switch size {
        case 8: try load(Int(ROOST_SS), offset, as: UInt64.self)
        case 4: UInt64(try load(Int(ROOST_SS), offset, as: UInt32.self))
        default: UInt64(try load(Int(ROOST_SS), offset, as: UInt16.self))
        }
    }

    /// LEAVE.
    func leaveFrame(_ i: UnsafePointer<Instruction>) throws(CPUException) {
        let size = Int(i.pointee.operandSize)
        let frame = truncateAddress(gpr[5], s.pointee.stack_size)
        let value = try loadStackAt(frame, size: size)
        setStackPointer(frame &+ UInt64(size))
        writeSized(5, value, UInt8(size))
    }

    /// XLAT.
    func translateByte(_ i: UnsafePointer<Instruction>) throws(CPUException) {
        let offset = truncateAddress(gpr[3] &+ (gpr[0] & 0xFF), i.pointee.addressSize)
        writeRegister(0, try load(Int(i.pointee.segment), offset, as: UInt8.self))
    }

    /// BOUND.
    func checkBound(_ i: UnsafePointer<Instruction>) throws(CPUException) {
        let offset = effectiveAddress(i)
        let segment = Int(i.pointee.segment)
        if i.pointee.operandSize == 4 {
            let index = Int32(truncatingIfNeeded: gpr[Int(i.pointee.reg & 15)])
            let lower = Int32(bitPattern: try load(segment, offset, as: UInt32.self))
            let upper = Int32(bitPattern: try load(segment, offset &+ 4, as: UInt32.self))
            if index < lower || index > upper { throw .boundRange }
        } else {
            let index = Int16(truncatingIfNeeded: gpr[Int(i.pointee.reg & 15)])
            let lower = Int16(bitPattern: try load(segment, offset, as: UInt16.self))
            let upper = Int16(bitPattern: try load(segment, offset &+ 2, as: UInt16.self))
            if index < lower || index > upper { throw .boundRange }
        }
    }

    /// SETcc.
    @inline(__always)
    func setByCondition(_ i: UnsafePointer<Instruction>) throws(CPUException) {
        let holds = roost_condition(UInt32(i.pointee.extra), s.pointee.arithmetic_flags)
        try writeRM(i, UInt8(truncatingIfNeeded: holds))
    }

    /// CMOVcc: the source is read in any case; a 32-bit destination is zero-extended in any case.
    @inline(__always)
    func moveByCondition(_ i: UnsafePointer<Instruction>) throws(CPUException) {
        let size = i.pointee.operandSize
        let value = try readSizedRM(i, size)
        let holds = roost_condition(UInt32(i.pointee.extra), s.pointee.arithmetic_flags) != 0
        if size == 4 {
            let old: UInt32 = readRegister(i.pointee.reg)
            writeRegister(i.pointee.reg, holds ? UInt32(truncatingIfNeeded: value) : old)
        } else if holds {
            writeSized(i.pointee.reg, value, size)
        }
    }
}
