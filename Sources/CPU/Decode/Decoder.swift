// From bytes to `Instruction`: prefixes, opcode, ModRM and SIB, displacement, immediates (SDM 2A chapter 2).
//
// Invariants: bytes are read only below `limit`; the instruction table's pointers live for ever.

/// What came of decoding.
public enum DecodeResult: Sendable {
    /// An instruction.
    case ok
    /// The bytes end inside an instruction.
    case needMoreBytes
    /// No such instruction: #UD.
    case invalid
    /// More than fifteen bytes: #GP(0).
    case tooLong
}

/// Decodes one instruction at a time.
public struct Decoder {
    private let bytes: UnsafePointer<UInt8>
    private let limit: Int
    private let is64: Bool
    private let codeSize: UInt8
    private var position = 0
    private var rex: UInt8 = 0
    private var operandOverride = false
    private var addressOverride = false
    private var repeatPrefix: UInt8 = 0
    private var lock = false
    /// A segment override, or 0xFF.
    private var segment: UInt8 = 0xFF
    private var vex = false
    private var vexL = false
    private var vvvv: UInt8 = 0
    private var ranOut = false

    /// Decodes the instruction at `bytes`, of which `available` may be read; `codeSize` is 2, 4 or 8.
    public static func decode(
        _ bytes: UnsafePointer<UInt8>, available: Int, codeSize: UInt8, into i: inout Instruction
    ) -> DecodeResult {
        var decoder = Decoder(bytes: bytes, limit: min(available, 15), is64: codeSize == 8, codeSize: codeSize)
        let found = decoder.decode(&i)
        if decoder.ranOut { return available >= 15 ? .tooLong : .needMoreBytes }
        return found ? .ok : .invalid
    }

    private init(bytes: UnsafePointer<UInt8>, limit: Int, is64: Bool, codeSize: UInt8) {
        self.bytes = bytes
        self.limit = limit
        self.is64 = is64
        self.codeSize = codeSize
    }

    @inline(__always)
    private mutating func next() -> UInt8 {
        guard position < limit else {
            ranOut = true
            return 0
        }
        position &+= 1
        return bytes[position &- 1]
    }

    @inline(__always)
    private mutating func decode(_ i: inout Instruction) -> Bool {
        var opcode = readPrefixes()
        var map = 0
        var prefix = operandOverride ? 1 : 0
        if repeatPrefix != 0 { prefix = repeatPrefix == 0xF3 ? 2 : 3 }
        if opcode == 0x0F {
            opcode = next()
            map = 1
            if opcode == 0x38 || opcode == 0x3A {
                map = opcode == 0x38 ? 2 : 3
                opcode = next()
            }
        } else if opcode == 0xC4 || opcode == 0xC5, is64 || (position < limit && bytes[position] >= 0xC0) {
            guard readVEX(opcode, &map, &prefix) else { return false }
            opcode = next()
        }
        if ranOut { return false }
        return match(opcode, map, prefix, &i)
    }

    /// Legacy prefixes and REX; the first byte after them.
    @inline(__always)
    private mutating func readPrefixes() -> UInt8 {
        while true {
            let byte = next()
            switch byte {
            case 0x66: operandOverride = true
            case 0x67: addressOverride = true
            case 0xF2, 0xF3: repeatPrefix = byte
            case 0xF0: lock = true
            case 0x26, 0x2E, 0x36, 0x3E: if !is64 { segment = (byte >> 3) & 3 }
            case 0x64, 0x65: segment = byte & 7
            case 0x40...0x4F where is64:
                // REX counts only right before the opcode.
                rex = byte
                continue
            default: return byte
            }
            rex = 0
            if ranOut { return 0 }
        }
    }

    private mutating func readVEX(_ first: UInt8, _ map: inout Int, _ prefix: inout Int) -> Bool {
        if operandOverride || repeatPrefix != 0 || lock || rex != 0 { return false }
        vex = true
        var second = next()
        // R X B are kept as REX has them.
        rex = (second & 0x80 == 0 ? 4 : 0)
        map = 1
        if first == 0xC4 {
            map = Int(second & 0x1F)
            rex |= (second & 0x40 == 0 ? 2 : 0) | (second & 0x20 == 0 ? 1 : 0)
            second = next()
            rex |= second & 0x80 != 0 ? 8 : 0
        }
        if map == 0 || map > 3 { return ranOut }
        vvvv = (~second >> 3) & 15
        // Outside 64-bit mode W widens nothing, but some rows are told apart by it.
        if !is64 { rex &= 8 }
        vexL = second & 4 != 0
        prefix = Int(second & 3)
        return true
    }

    /// Finds the row that fits and decodes the rest by it.
    @inline(__always)
    private mutating func match(_ opcode: UInt8, _ map: Int, _ prefix: Int, _ i: inout Instruction) -> Bool {
        let table = InstructionTable.shared
        var candidate = Int(
            table.chains[InstructionTable.Parsed.slot(vex: vex ? 1 : 0, prefix: prefix, map: map, opcode: opcode)])
        var modRM: UInt8 = 0
        var hasModRM = false
        while true {
            let number = table.candidates[candidate]
            if number == 0xFFFF { return false }
            candidate &+= 1
            let row = UnsafePointer(table.rows + Int(number))
            let attributes = row.pointee.attributes
            if attributes.contains(is64 ? .no64 : .only64) { continue }
            if attributes.contains(.modRM) {
                if !hasModRM {
                    modRM = next()
                    hasModRM = true
                    if ranOut { return false }
                    // MOV to and from control and debug registers: mod is ignored.
                    if map == 1 && opcode & 0xFC == 0x20 { modRM |= 0xC0 }
                }
                if !fits(row, modRM) { continue }
            }
            if vex || attributes.contains(.w1) || attributes.contains(.w0) {
                if attributes.contains(vexL ? .l0 : .l1) || attributes.contains(wide ? .w0 : .w1) { continue }
            }
            if opcode == 0x90 && map == 0 && rex & 1 != 0
                && (row.pointee.operation == .nop || row.pointee.operation == .pause)
            {
                continue
            }
            return finish(row, number, opcode, map, attributes.contains(.modRM) ? modRM : nil, &i)
        }
    }

    @inline(__always)
    private func fits(_ row: UnsafePointer<InstructionRow>, _ modRM: UInt8) -> Bool {
        let r = row.pointee
        if r.fixedModRM != 0 { return r.fixedModRM == modRM }
        if r.digit != 0xFF && r.digit != (modRM >> 3) & 7 { return false }
        return !r.attributes.contains(modRM >= 0xC0 ? .memoryOnly : .registerOnly)
    }

    @inline(__always)
    private var wide: Bool { rex & 8 != 0 }

    @inline(__always)
    private mutating func finish(
        _ row: UnsafePointer<InstructionRow>, _ number: UInt16, _ opcode: UInt8, _ map: Int, _ modRM: UInt8?,
        _ i: inout Instruction
    ) -> Bool {
        i = Instruction()
        i.operation = row.pointee.operation
        i.row = number
        i.opcode = opcode
        i.map = UInt8(truncatingIfNeeded: map)
        i.form = row.pointee.form
        i.addressSize = codeSize == 8 ? (addressOverride ? 4 : 8) : (codeSize == 4) != addressOverride ? 4 : 2
        let size = operandSize(row.pointee.attributes)
        i.operandSize = sized(row.pointee.sizeRule, size, row.pointee.attributes)
        setPrefixes(row, &i)
        if segment != 0xFF { i.segment = segment }
        // Outside 64-bit mode its highest bit is ignored where it names a register (SDM 2A 2.3.5.6).
        if vex { i.extra = is64 ? vvvv : vvvv & 7 }
        if let modRM {
            i.reg = ((modRM >> 3) & 7) | (rex & 4) << 1
            if modRM >= 0xC0 {
                i.rm = (modRM & 7) | (rex & 1) << 3
            } else {
                readMemory(modRM, row, &i)
            }
            if row.pointee.digit != 0xFF || row.pointee.fixedModRM != 0 { i.reg &= 7 }
        } else if row.pointee.attributes.contains(.opcodeRegister) {
            i.reg = (opcode & 7) | (rex & 1) << 3
        } else if row.pointee.segmentRegister != 0xFF {
            i.reg = row.pointee.segmentRegister
        }
        i.immediate = readImmediate(row.pointee.immediates.0, size, i.addressSize)
        if row.pointee.immediates.1 != .none { i.immediate2 = next() }
        i.length = UInt8(truncatingIfNeeded: position)
        return settle(row, size, &i) && !ranOut
    }

    @inline(__always)
    private func setPrefixes(_ row: UnsafePointer<InstructionRow>, _ i: inout Instruction) {
        var prefixes: Prefixes = []
        if lock { prefixes.insert(.lock) }
        if operandOverride { prefixes.insert(.operandSize) }
        if wide { prefixes.insert(.wide) }
        if vex {
            prefixes.insert(.vex)
            if vexL { prefixes.insert(.vex256) }
        } else {
            if rex != 0 { prefixes.insert(.rex) }
            if repeatPrefix != 0 && row.pointee.mandatoryPrefix == 0xFF {
                prefixes.insert(repeatPrefix == 0xF3 ? .rep : .repne)
            }
        }
        i.prefixes = prefixes
    }

    /// The operand size that mode and prefixes give.
    @inline(__always)
    private func operandSize(_ attributes: InstructionAttributes) -> UInt8 {
        if is64 {
            if attributes.contains(.force64) || wide { return 8 }
            if operandOverride { return 2 }
            return attributes.contains(.default64) ? 8 : 4
        }
        return (codeSize == 4) != operandOverride ? 4 : 2
    }

    @inline(__always)
    private func sized(_ rule: SizeRule, _ size: UInt8, _ attributes: InstructionAttributes) -> UInt8 {
        switch rule {
        case .v: return size
        case .byte: return 1
        case .y: return is64 && (wide || attributes.contains(.force64)) ? 8 : 4
        case .word: return 2
        case .double: return is64 && attributes.contains(.force64) ? 8 : 4
        case .quad, .mmx: return 8
        case .double128: return 16
        case .z: return min(size, 4)
        case .native: return is64 ? 8 : 4
        case .table: return is64 ? 8 : size
        case .vector: return vexL ? 32 : 16
        case .none: return 0
        }
    }

    /// What a row's kinds ask beyond the common rules; false: no such instruction.
    @inline(__always)
    private func settle(_ row: UnsafePointer<InstructionRow>, _ size: UInt8, _ i: inout Instruction) -> Bool {
        if lock && !(row.pointee.attributes.contains(.lockable) && i.isMemory) { return false }
        if vex { return settleVEX(row, &i) }
        if rex == 0 && row.pointee.sizeRule == .byte || i.operation == .movzx || i.operation == .movsx {
            settleBytes(row, &i)
        }
        switch i.operation {
        case .jcc, .setcc, .cmovcc: i.extra = i.opcode & 15
        case .movzx, .movsx:
            i.extra = row.pointee.operands.1 == .Eb ? 1 : row.pointee.operands.1 == .Ew ? 2 : 4
        case .crc32:
            i.extra = row.pointee.operands.1 == .Eb ? 1 : size
            if i.extra == 1 && rex == 0 && i.rm >= 4 && i.rm < 8 { i.rm &+= 12 }
        case .movToSegment: return i.reg & 7 < 6 && i.reg & 7 != 1 && settleSegment(&i)
        case .movFromSegment: return i.reg & 7 < 6 && settleSegment(&i)
        case .movToCR, .movFromCR: return i.reg == 0 || i.reg == 2 || i.reg == 3 || i.reg == 4 || i.reg == 8
        case .movToDR, .movFromDR: return i.reg < 8
        case .mmx:
            settleMMX(row, &i)
        case .x87:
            if i.rm != Instruction.none { i.rm &= 7 }
        default: break
        }
        return true
    }

    @inline(__always)
    private func settleSegment(_ i: inout Instruction) -> Bool {
        i.reg &= 7
        return true
    }

    /// AH CH DH BH where byte registers 4 to 7 come without REX.
    @inline(__always)
    private func settleBytes(_ row: UnsafePointer<InstructionRow>, _ i: inout Instruction) {
        if rex != 0 { return }
        let (a, b, _, _) = row.pointee.operands
        if i.rm >= 4 && i.rm < 8 && (a == .Eb || b == .Eb) && i.form != .vector { i.rm &+= 12 }
        if i.reg >= 4 && i.reg < 8 && (a == .Gb || b == .Gb || a == .Zb) { i.reg &+= 12 }
    }

    private func settleMMX(_ row: UnsafePointer<InstructionRow>, _ i: inout Instruction) {
        for n in 0..<2 {
            switch row.pointee.operand(n) {
            case .Pq, .Pd: i.reg &= 7
            case .Qq, .Qd, .Nq: if i.rm != Instruction.none { i.rm &= 7 }
            default: break
            }
        }
    }

    private func settleVEX(_ row: UnsafePointer<InstructionRow>, _ i: inout Instruction) -> Bool {
        let r = row.pointee
        var usesVVVV = false
        for n in 0..<4 where r.operand(n).place == .extra { usesVVVV = true }
        if !usesVVVV && vvvv != 0 { return false }
        for n in 0..<4 where r.operand(n) == .VSIBd || r.operand(n) == .VSIBq {
            // With a SIB byte, and three different registers.
            if i.index == Instruction.none || i.addressSize == 2 { return false }
            if i.reg == i.index || i.reg == i.extra || i.index == i.extra { return false }
        }
        return true
    }

    // MARK: Memory operands

    @inline(__always)
    private mutating func readMemory(_ modRM: UInt8, _ row: UnsafePointer<InstructionRow>, _ i: inout Instruction) {
        if i.addressSize == 2 {
            readMemory16(modRM, &i)
            return
        }
        let mod = modRM >> 6
        var base = modRM & 7
        var hasBase = true
        if base == 4 {
            let sib = next()
            base = sib & 7
            let index = ((sib >> 3) & 7) | (rex & 2) << 2
            if index != 4 || row.pointee.operands.1 == .VSIBd || row.pointee.operands.1 == .VSIBq {
                i.index = index
                i.scale = sib >> 6
            }
            if base == 5 && mod == 0 { hasBase = false }
        } else if base == 5 && mod == 0 {
            hasBase = false
            if is64 { i.base = Instruction.rip }
        }
        if hasBase {
            i.base = base | (rex & 1) << 3
            if segment == 0xFF && (i.base == 4 || i.base == 5) { i.segment = 2 }
        }
        if mod == 1 {
            i.displacement = Int32(Int8(bitPattern: next()))
        } else if mod == 2 || !hasBase {
            i.displacement = Int32(truncatingIfNeeded: readSigned(4))
        }
    }

    /// SDM 2A table 2-1.
    private mutating func readMemory16(_ modRM: UInt8, _ i: inout Instruction) {
        let mod = modRM >> 6
        let rm = Int(modRM & 7)
        let none = Instruction.none
        let bases: (UInt8, UInt8) =
            switch rm {
            case 0: (3, 6)
            case 1: (3, 7)
            case 2: (5, 6)
            case 3: (5, 7)
            case 4: (6, none)
            case 5: (7, none)
            case 6: (mod == 0 ? none : 5, none)
            default: (3, none)
            }
        i.base = bases.0
        i.index = bases.1
        if segment == 0xFF && i.base == 5 { i.segment = 2 }
        if mod == 1 {
            i.displacement = Int32(Int8(bitPattern: next()))
        } else if mod == 2 || (mod == 0 && rm == 6) {
            i.displacement = Int32(truncatingIfNeeded: readSigned(2))
        }
    }

    // MARK: Immediates

    @inline(__always)
    private mutating func readSigned(_ count: Int) -> Int64 {
        guard position &+ count <= limit else {
            ranOut = true
            position = limit
            return 0
        }
        let p = UnsafeRawPointer(bytes + position)
        position &+= count
        switch count {
        case 1: return Int64(p.loadUnaligned(as: Int8.self))
        case 2: return Int64(p.loadUnaligned(as: Int16.self))
        case 4: return Int64(p.loadUnaligned(as: Int32.self))
        default: return p.loadUnaligned(as: Int64.self)
        }
    }

    @inline(__always)
    private mutating func readImmediate(_ rule: ImmediateRule, _ size: UInt8, _ addressSize: UInt8) -> Int64 {
        switch rule {
        case .none: return 0
        case .byte: return Int64(next())
        case .byteSigned: return readSigned(1)
        case .word: return readSigned(2) & 0xFFFF
        case .z: return readSigned(size == 2 ? 2 : 4)
        case .v: return readSigned(Int(size))
        case .offset:
            let value = readSigned(Int(addressSize))
            return addressSize == 8 ? value : value & (addressSize == 4 ? 0xFFFF_FFFF : 0xFFFF)
        case .far:
            let offset = size == 2 ? readSigned(2) & 0xFFFF : readSigned(4) & 0xFFFF_FFFF
            return offset | (readSigned(2) & 0xFFFF) << 32
        }
    }
}
