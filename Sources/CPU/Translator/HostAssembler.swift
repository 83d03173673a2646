// Writes host machine code: just what the translator emits.
//
// Invariant: `start` has room for whatever is written; the translator checks it once a block.

/// A host register by its encoding, RAX 0 ... R15 15.
typealias HostRegister = UInt8

/// Where a memory operand of the host lies.
enum HostAddress {
    /// `[base + displacement]`
    case base(HostRegister, Int32)
    /// `[base + index << scale + displacement]`
    case indexed(HostRegister, HostRegister, UInt8, Int32)
    /// `[index << scale + displacement]`
    case scaled(HostRegister, UInt8, Int32)
    /// A field of the state block: `gs:[offset]`
    case state(Int32)
    /// `gs:[register + offset]`
    case stateIndexed(HostRegister, Int32)

    var isState: Bool {
        switch self {
        case .state, .stateIndexed: true
        default: false
        }
    }

    /// REX bits B and X.
    var rex: UInt8 {
        switch self {
        case .base(let base, _), .stateIndexed(let base, _): base >> 3
        case .indexed(let base, let index, _, _): base >> 3 | (index >> 3) << 1
        case .scaled(let index, _, _): (index >> 3) << 1
        case .state: 0
        }
    }
}

/// Emits instructions at a growing position.
struct HostAssembler {
    private let start: UnsafeMutablePointer<UInt8>
    /// Bytes written.
    private(set) var count = 0

    init(start: UnsafeMutablePointer<UInt8>) { self.start = start }

    /// Goes on writing further on.
    mutating func skip(to place: Int) { count = max(count, place) }

    mutating func byte(_ value: UInt8) {
        start[count] = value
        count &+= 1
    }

    mutating func word32(_ value: Int32) {
        UnsafeMutableRawPointer(start + count).storeBytes(of: value, as: Int32.self)
        count &+= 4
    }

    mutating func word64(_ value: UInt64) {
        UnsafeMutableRawPointer(start + count).storeBytes(of: value, as: UInt64.self)
        count &+= 8
    }

    mutating func immediate(_ value: Int64, _ size: Int) {
        switch size {
        case 1: byte(UInt8(truncatingIfNeeded: value))
        case 2:
            byte(UInt8(truncatingIfNeeded: value))
            byte(UInt8(truncatingIfNeeded: value >> 8))
        case 4: word32(Int32(truncatingIfNeeded: value))
        default: word64(UInt64(bitPattern: value))
        }
    }

    /// Makes the 32-bit displacement at `place` lead to `target`.
    mutating func patch(_ place: Int, to target: Int) {
        UnsafeMutableRawPointer(start + place).storeBytes(
            of: Int32(truncatingIfNeeded: target - place - 4), as: Int32.self)
    }

    private mutating func opcode(_ map: UInt8, _ opcode: UInt8) {
        if map != 0 { byte(0x0F) }
        if map == 2 { byte(0x38) }
        if map == 3 { byte(0x3A) }
        byte(opcode)
    }

    /// An instruction with two registers. `prefix` is 0x66, 0xF2, 0xF3 or 0; `rex`: a REX prefix even if empty.
    mutating func registers(
        _ op: UInt8, map: UInt8 = 0, prefix: UInt8 = 0, wide: Bool = false, rex: Bool = false, reg: HostRegister,
        rm: HostRegister
    ) {
        if prefix != 0 { byte(prefix) }
        let bits: UInt8 = (wide ? 8 : 0) | (reg >> 3) << 2 | (rm >> 3)
        if bits != 0 || rex { byte(0x40 | bits) }
        opcode(map, op)
        byte(0xC0 | (reg & 7) << 3 | (rm & 7))
    }

    /// An instruction with a register and memory.
    mutating func memory(
        _ op: UInt8, map: UInt8 = 0, prefix: UInt8 = 0, lock: Bool = false, wide: Bool = false, rex: Bool = false,
        reg: HostRegister, _ address: HostAddress
    ) {
        if address.isState { byte(0x65) }
        if lock { byte(0xF0) }
        if prefix != 0 { byte(prefix) }
        let bits: UInt8 = (wide ? 8 : 0) | (reg >> 3) << 2 | address.rex
        if bits != 0 || rex { byte(0x40 | bits) }
        opcode(map, op)
        operand(reg & 7, address)
    }

    /// An instruction encoded with VEX, its r/m operand a register or (`address`) memory. `vvvv` is not inverted yet.
    mutating func vex(
        _ op: UInt8, map: UInt8, prefix: UInt8, wide: Bool, long: Bool, reg: HostRegister, vvvv: HostRegister,
        rm: HostRegister = 0, _ address: HostAddress? = nil
    ) {
        if address?.isState == true { byte(0x65) }
        let pp: UInt8 = prefix == 0x66 ? 1 : prefix == 0xF3 ? 2 : prefix == 0xF2 ? 3 : 0
        let high = address?.rex ?? (rm >> 3)
        byte(0xC4)
        byte((reg & 8 == 0 ? 0x80 : 0) | (high & 2 == 0 ? 0x40 : 0) | (high & 1 == 0 ? 0x20 : 0) | map)
        byte((wide ? 0x80 : 0) | (~vvvv & 15) << 3 | (long ? 4 : 0) | pp)
        byte(op)
        if let address { operand(reg & 7, address) } else { byte(0xC0 | (reg & 7) << 3 | (rm & 7)) }
    }

    private mutating func operand(_ reg: UInt8, _ address: HostAddress) {
        switch address {
        case .base(let base, let displacement):
            let short = displacement == Int32(Int8(truncatingIfNeeded: displacement))
            let mod: UInt8 = displacement == 0 && base & 7 != 5 ? 0 : short ? 0x40 : 0x80
            byte(mod | reg << 3 | (base & 7))
            if base & 7 == 4 { byte(0x24) }
            if mod == 0x40 { byte(UInt8(truncatingIfNeeded: displacement)) }
            if mod == 0x80 { word32(displacement) }
        case .indexed(let base, let index, let scale, let displacement):
            let short = displacement == Int32(Int8(truncatingIfNeeded: displacement))
            let mod: UInt8 = displacement == 0 && base & 7 != 5 ? 0 : short ? 0x40 : 0x80
            byte(mod | reg << 3 | 4)
            byte(scale << 6 | (index & 7) << 3 | (base & 7))
            if mod == 0x40 { byte(UInt8(truncatingIfNeeded: displacement)) }
            if mod == 0x80 { word32(displacement) }
        case .scaled(let index, let scale, let displacement):
            byte(reg << 3 | 4)
            byte(scale << 6 | (index & 7) << 3 | 5)
            word32(displacement)
        case .state(let offset):
            byte(reg << 3 | 4)
            byte(0x25)
            word32(offset)
        case .stateIndexed(let base, let offset):
            byte(0x80 | reg << 3 | (base & 7))
            if base & 7 == 4 { byte(0x24) }
            word32(offset)
        }
    }

    // MARK: Common instructions

    /// MOV of 64 bits between registers.
    mutating func move(_ to: HostRegister, _ from: HostRegister) { registers(0x89, wide: true, reg: from, rm: to) }
    /// MOV of 64 bits from memory.
    mutating func load(_ to: HostRegister, _ from: HostAddress) { memory(0x8B, wide: true, reg: to, from) }
    /// MOV of 64 bits to memory.
    mutating func store(_ to: HostAddress, _ from: HostRegister) { memory(0x89, wide: true, reg: from, to) }
    /// LEA of 64 bits.
    mutating func lea(_ to: HostRegister, _ from: HostAddress) { memory(0x8D, wide: true, reg: to, from) }

    /// LEA of 64 bits, or of 32 that zero the rest.
    mutating func lea(_ to: HostRegister, _ from: HostAddress, narrow: Bool) {
        memory(0x8D, wide: !narrow, reg: to, from)
    }

    /// RORX: a rotated copy that leaves the flags alone (BMI2).
    mutating func rotatedCopy(_ to: HostRegister, _ from: HostRegister, right count: UInt8) {
        vex(0xF0, map: 3, prefix: 0xF2, wide: true, long: false, reg: to, vvvv: 0, rm: from)
        byte(count)
    }

    /// An arithmetic instruction with a sign-extended immediate: `digit` 0 ADD, 1 OR, 4 AND, 5 SUB, 6 XOR, 7 CMP.
    mutating func arithmetic(_ digit: UInt8, _ register: HostRegister, _ value: Int32, wide: Bool = true) {
        let short = value == Int32(Int8(truncatingIfNeeded: value))
        registers(short ? 0x83 : 0x81, wide: wide, reg: digit, rm: register)
        if short { byte(UInt8(truncatingIfNeeded: value)) } else { word32(value) }
    }

    /// The same on a field of the state block, of 32 or 64 bits.
    mutating func arithmetic(_ digit: UInt8, _ field: HostAddress, _ value: Int32, wide: Bool) {
        let short = value == Int32(Int8(truncatingIfNeeded: value))
        memory(short ? 0x83 : 0x81, wide: wide, reg: digit, field)
        if short { byte(UInt8(truncatingIfNeeded: value)) } else { word32(value) }
    }

    /// CMP of a byte of the state block.
    mutating func compareByte(_ field: HostAddress, _ value: UInt8) {
        memory(0x80, reg: 7, field)
        byte(value)
    }

    /// A shift of a whole register: `digit` 4 SHL, 5 SHR, 7 SAR.
    mutating func shift(_ digit: UInt8, _ register: HostRegister, _ count: UInt8, wide: Bool = true) {
        registers(0xC1, wide: wide, reg: digit, rm: register)
        byte(count)
    }

    /// Bytes as they are.
    mutating func bytes(_ values: UInt8...) { for value in values { byte(value) } }

    /// MOV of a constant, in the shortest form.
    mutating func constant(_ to: HostRegister, _ value: UInt64) {
        if value == UInt64(bitPattern: Int64(Int32(truncatingIfNeeded: value))) && value >> 63 != 0 {
            registers(0xC7, wide: true, reg: 0, rm: to)
            word32(Int32(truncatingIfNeeded: value))
        } else if value >> 32 == 0 {
            if to >= 8 { byte(0x41) }
            byte(0xB8 | to & 7)
            word32(Int32(bitPattern: UInt32(truncatingIfNeeded: value)))
        } else {
            byte(0x48 | to >> 3)
            byte(0xB8 | to & 7)
            word64(value)
        }
    }

    /// JMP with a 32-bit displacement; returns where it is to be patched.
    mutating func jump() -> Int {
        byte(0xE9)
        word32(0)
        return count - 4
    }

    /// Jcc with a 32-bit displacement; returns where it is to be patched.
    mutating func jump(if condition: UInt8) -> Int {
        byte(0x0F)
        byte(0x80 | condition)
        word32(0)
        return count - 4
    }

    /// CALL with a 32-bit displacement; returns where it is to be patched.
    mutating func call() -> Int {
        byte(0xE8)
        word32(0)
        return count - 4
    }
}
