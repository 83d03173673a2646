// Where operands are: registers, memory, the stack; and answers from outside the CPU.
internal import CHost

/// A guest operand's type: an unsigned integer of 1, 2, 4 or 8 bytes.
package typealias GuestInteger = FixedWidthInteger & UnsignedInteger & BitwiseCopyable

extension VCPU {
    /// Reads a general register; for bytes 16 to 19 are AH CH DH BH.
    @inline(__always)
    func readRegister<T: GuestInteger>(_ n: UInt8, as type: T.Type = T.self) -> T {
        if MemoryLayout<T>.size == 1 && n >= 16 {
            return T(truncatingIfNeeded: gpr[Int(n & 3)] >> 8)
        }
        return T(truncatingIfNeeded: gpr[Int(n & 15)])
    }

    /// Writes a general register: 32 bits zero-extend, 8 and 16 bits leave the rest.
    @inline(__always)
    func writeRegister<T: GuestInteger>(_ n: UInt8, _ value: T) {
        switch MemoryLayout<T>.size {
        case 1:
            if n >= 16 {
                let r = Int(n & 3)
                gpr[r] = (gpr[r] & ~0xFF00) | UInt64(truncatingIfNeeded: value) << 8
            } else {
                let r = Int(n & 15)
                gpr[r] = (gpr[r] & ~0xFF) | UInt64(truncatingIfNeeded: value)
            }
        case 2:
            let r = Int(n & 15)
            gpr[r] = (gpr[r] & ~0xFFFF) | UInt64(truncatingIfNeeded: value)
        default:
            gpr[Int(n & 15)] = UInt64(truncatingIfNeeded: value)
        }
    }

    /// Offset of the memory operand in its segment, truncated to the address size (SDM 1 3.7.5).
    @inline(__always)
    func effectiveAddress(_ i: UnsafePointer<Instruction>) -> UInt64 {
        var address = UInt64(bitPattern: Int64(i.pointee.displacement))
        let base = i.pointee.base
        if base < 16 {
            address = address &+ gpr[Int(base)]
        } else if base == Instruction.rip {
            address = address &+ nextRIP(i)
        }
        let index = i.pointee.index
        if index < 16 { address = address &+ (gpr[Int(index)] &<< UInt64(i.pointee.scale)) }
        return truncateAddress(address, i.pointee.addressSize)
    }

    /// Truncates an offset to an address size of 2, 4 or 8 bytes.
    @inline(__always)
    func truncateAddress(_ address: UInt64, _ size: UInt8) -> UInt64 {
        if size == 8 { return address }
        return size == 4 ? address & 0xFFFF_FFFF : address & 0xFFFF
    }

    /// Reads the r/m operand.
    @inline(__always)
    func readRM<T: GuestInteger>(_ i: UnsafePointer<Instruction>, as type: T.Type = T.self) throws(CPUException) -> T {
        if i.pointee.rm != Instruction.none { return readRegister(i.pointee.rm) }
        return try load(Int(i.pointee.segment), effectiveAddress(i))
    }

    /// Writes the r/m operand.
    @inline(__always)
    func writeRM<T: GuestInteger>(_ i: UnsafePointer<Instruction>, _ value: T) throws(CPUException) {
        if i.pointee.rm != Instruction.none {
            writeRegister(i.pointee.rm, value)
        } else {
            try store(Int(i.pointee.segment), effectiveAddress(i), value)
        }
    }

    /// The stack pointer as the stack's width has it.
    @inline(__always)
    var stackPointer: UInt64 { truncateAddress(gpr[4], s.pointee.stack_size) }

    /// Sets the stack pointer in the stack's width.
    @inline(__always)
    func setStackPointer(_ value: UInt64) {
        switch s.pointee.stack_size {
        case 8: gpr[4] = value
        case 4: gpr[4] = value & 0xFFFF_FFFF
        default: gpr[4] = (gpr[4] & ~0xFFFF) | (value & 0xFFFF)
        }
    }

    /// Stores a value below the stack pointer, then moves the stack pointer.
    @inline(__always)
    func push(_ value: UInt64, size: Int) throws(CPUException) {
        let top = truncateAddress(gpr[4] &- UInt64(size), s.pointee.stack_size)
        switch size {
        case 8: try store(Int(ROOST_SS), top, value)
        case 4: try store(Int(ROOST_SS), top, UInt32(truncatingIfNeeded: value))
        default: try store(Int(ROOST_SS), top, UInt16(truncatingIfNeeded: value))
        }
        setStackPointer(top)
    }

    /// Loads the value at the stack pointer without moving it.
    @inline(__always)
    func loadStack(_ offset: UInt64, size: Int) throws(CPUException) -> UInt64 {
        let top = truncateAddress(gpr[4] &+ offset, s.pointee.stack_size)
        switch size {
        case 8: return try load(Int(ROOST_SS), top, as: UInt64.self)
        case 4: return UInt64(try load(Int(ROOST_SS), top, as: UInt32.self))
        default: return UInt64(try load(Int(ROOST_SS), top, as: UInt16.self))
        }
    }

    /// Loads the value at the stack pointer, then moves the stack pointer.
    @inline(__always)
    func pop(size: Int) throws(CPUException) -> UInt64 {
        let value = try loadStack(0, size: size)
        setStackPointer(gpr[4] &+ UInt64(size))
        return value
    }

    /// An access that the machine answers: the answer if it is there, else the engine is left to get it.
    ///
    /// - Quirk: of one instruction the first 16 reach the machine. Then reads give ones and writes are dropped, so that it ends.
    func answer(_ kind: ExitKind, address: UInt64, size: Int, value: UInt64) throws(CPUException) -> UInt64 {
        let next = s.pointee.completed_next
        if next < s.pointee.completed_count {
            s.pointee.completed_next = next &+ 1
            return roost_completed_at(s, Int(next)).pointee
        }
        if s.pointee.completed_count >= 16 { return ~0 &>> UInt64(truncatingIfNeeded: 64 &- size &* 8) }
        s.pointee.exit_kind = kind.rawValue
        s.pointee.exit_address = address
        s.pointee.exit_size = UInt32(truncatingIfNeeded: size)
        s.pointee.exit_value = value
        throw .exit
    }
}
