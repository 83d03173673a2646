// Random cases for the differential tests: an encoding from a row of the instruction table, and a state in which its
// memory operand lies in the data pages, now and then across a page's end or off the mapped range.
import CPU

/// A small, fast, seeded generator (SplitMix64), so that a failing case can be named by its number.
struct SeededGenerator: RandomNumberGenerator {
    var state: UInt64

    mutating func next() -> UInt64 {
        state &+= 0x9E37_79B9_7F4A_7C15
        var z = state
        z = (z ^ (z >> 30)) &* 0xBF58_476D_1CE4_E5B9
        z = (z ^ (z >> 27)) &* 0x94D0_49BB_1331_11EB
        return z ^ (z >> 31)
    }

    mutating func chance(_ one: UInt64, in n: UInt64) -> Bool { next() % n < one }
    mutating func below(_ n: UInt64) -> UInt64 { next() % n }
}

/// One encoding to try and what it is.
struct Encoding {
    var bytes: [UInt8]
    var instruction: Instruction
}

/// Makes encodings and states.
struct CaseGenerator {
    var random: SeededGenerator
    let compatibility: Bool

    init(seed: UInt64, compatibility: Bool) {
        random = SeededGenerator(state: seed)
        self.compatibility = compatibility
    }

    // MARK: Encodings

    /// An encoding of a row, or nil when the draw makes no sense in this mode.
    mutating func encode(_ row: InstructionRow, number: UInt16) -> Encoding? {
        for _ in 0..<8 {
            var bytes = row.usesVEX ? vexBytes(row) : legacyBytes(row)
            bytes += (0..<16).map { _ in UInt8(truncatingIfNeeded: random.next()) }
            guard let i = decode(bytes), i.row == number else { continue }
            // A branch into itself would go round for ever.
            if i.form == .relative && i.immediate < 0 && i.immediate >= -16 { continue }
            // Processors disagree about operand-size prefixes on near branches in 64-bit mode.
            if i.attributesOfRow.contains(.branch) && i.prefixes.contains(.operandSize) { continue }
            return Encoding(bytes: Array(bytes.prefix(Int(i.length))), instruction: i)
        }
        return nil
    }

    private func decode(_ bytes: [UInt8]) -> Instruction? {
        var i = Instruction()
        let result = bytes.withUnsafeBufferPointer {
            Decoder.decode($0.baseAddress!, available: $0.count, codeSize: compatibility ? 4 : 8, into: &i)
        }
        return result == .ok ? i : nil
    }

    private mutating func legacyBytes(_ row: InstructionRow) -> [UInt8] {
        var bytes: [UInt8] = []
        if (row.mandatoryPrefix == 0 || row.mandatoryPrefix == 0xFF) && random.chance(1, in: 5) { bytes.append(0x66) }
        if random.chance(1, in: 16) { bytes.append(0x67) }
        if row.attributes.contains(.lockable) && random.chance(1, in: 6) { bytes.append(0xF0) }
        if row.isString && random.chance(1, in: 2) { bytes.append(random.chance(1, in: 2) ? 0xF3 : 0xF2) }
        if row.mandatoryPrefix != 0 && row.mandatoryPrefix != 0xFF { bytes.append(row.mandatoryPrefix) }
        if !compatibility && random.chance(2, in: 3) {
            bytes.append(0x40 | UInt8(random.below(16)))
        }
        switch row.map {
        case 1: bytes.append(0x0F)
        case 2: bytes += [0x0F, 0x38]
        case 3: bytes += [0x0F, 0x3A]
        default: break
        }
        bytes.append(row.opcode | (row.opcodeHoldsRegister ? UInt8(random.below(8)) : 0))
        if row.hasModRM { appendModRM(row, &bytes) }
        return bytes
    }

    private mutating func vexBytes(_ row: InstructionRow) -> [UInt8] {
        let pp: UInt8 =
            row.mandatoryPrefix == 0x66 ? 1 : row.mandatoryPrefix == 0xF3 ? 2 : row.mandatoryPrefix == 0xF2 ? 3 : 0
        let inverted: UInt8 = compatibility ? 0xE0 : UInt8(random.below(8)) << 5
        let w = UInt8(random.below(2)) << 7
        let l = UInt8(random.below(2)) << 2
        var vvvv = UInt8(random.below(16)) << 3
        if compatibility { vvvv |= 0x40 }
        if random.chance(1, in: 3) { vvvv = 0x78 }
        var bytes: [UInt8] = [0xC4, inverted | row.map, w | vvvv | l | pp, row.opcode]
        if row.hasModRM { appendModRM(row, &bytes) }
        return bytes
    }

    /// ModRM; an operand without registers gets a displacement that leads to the data.
    private mutating func appendModRM(_ row: InstructionRow, _ bytes: inout [UInt8]) {
        let value = modRM(row)
        bytes.append(value)
        if value & 0xC7 == 5 && row.fixedModRM == 0 {
            let displacement = UInt32(compatibility ? Place.data : Place.data - Place.code) + 0x900
            for n in 0..<4 { bytes.append(UInt8(truncatingIfNeeded: displacement >> (n * 8))) }
        }
    }

    private mutating func modRM(_ row: InstructionRow) -> UInt8 {
        var value = UInt8(truncatingIfNeeded: random.next())
        if random.chance(1, in: 2) { value |= 0xC0 }
        if row.fixedModRM != 0 { return row.fixedModRM }
        if let reg = row.extensionDigit { value = (value & 0xC7) | reg << 3 }
        if row.memoryOnly && value >= 0xC0 { value &= 0x7F }
        if row.registerOnly { value |= 0xC0 }
        return value
    }

    // MARK: States

    private mutating func interesting() -> UInt64 {
        switch random.below(10) {
        case 0: return 0
        case 1: return ~0
        case 2: return 1
        case 3: return 0x8000_0000_0000_0000
        case 4: return 0x7FFF_FFFF_FFFF_FFFF
        case 5: return 0x8000_0000 >> random.below(32)
        case 6: return random.below(256)
        case 7: return UInt64(bitPattern: -Int64(random.below(256)))
        default: return random.next()
        }
    }

    /// A state for an encoding, its memory operand placed.
    mutating func state(for i: Instruction) -> HostState {
        var state = HostState()
        state.compatibility = compatibility
        for n in 0..<16 { state.gpr[n] = interesting() }
        if compatibility {
            for n in 0..<8 { state.gpr[n] &= 0xFFFF_FFFF }
            for n in 8..<16 { state.gpr[n] = 0 }
        }
        state.rflags = 0x202 | (random.next() & 0x8D5)
        if random.chance(1, in: 8) && i.isStringOperation { state.rflags |= 0x400 }
        fillVectorState(&state)
        state.gpr[4] = Place.data + 0x1000 + random.below(0x100) * 8
        place(i, &state)
        return state
    }

    private mutating func fillVectorState(_ state: inout HostState) {
        state.vectorState[0] = 0x7F
        state.vectorState[1] = 0x03
        if random.chance(1, in: 4) { state.vectorState[1] = UInt8(random.below(16)) }
        let rounding = UInt16(random.below(4)) << 13
        let special: UInt16 = random.chance(1, in: 4) ? [0x8040, 0x8000, 0x0040][Int(random.below(3))] : 0
        let mxcsr = 0x1F80 | rounding | special | UInt16(random.below(64))
        state.vectorState[24] = UInt8(mxcsr & 0xFF)
        state.vectorState[25] = UInt8(mxcsr >> 8)
        state.vectorState[28] = 0xFF
        state.vectorState[29] = 0xFF
        state.vectorState[512] = 7
        for base in [160, 576] {
            for n in 0..<16 where !compatibility || n < 8 {
                for half in 0..<2 {
                    let value = floating()
                    for b in 0..<8 {
                        state.vectorState[base + n * 16 + half * 8 + b] = UInt8(truncatingIfNeeded: value >> (b * 8))
                    }
                }
            }
        }
        // x87: a stack with some registers in use; TOP anywhere.
        let top = UInt8(random.below(8))
        state.vectorState[3] = top << 3
        let tags: UInt8 = random.chance(1, in: 2) ? 0xFF : UInt8(truncatingIfNeeded: random.next())
        state.vectorState[4] = tags
        for n in 0..<8 {
            let (mantissa, exponent) = extended()
            for b in 0..<8 { state.vectorState[32 + n * 16 + b] = UInt8(truncatingIfNeeded: mantissa >> (b * 8)) }
            state.vectorState[32 + n * 16 + 8] = UInt8(truncatingIfNeeded: exponent)
            state.vectorState[32 + n * 16 + 9] = UInt8(truncatingIfNeeded: exponent >> 8)
        }
    }

    private mutating func floating() -> UInt64 {
        switch random.below(8) {
        case 0: return Double.random(in: -1e6...1e6, using: &random).bitPattern
        case 1:
            let pair = (0..<2).map { _ in UInt64(Float.random(in: -1000...1000, using: &random).bitPattern) }
            return pair[0] | pair[1] << 32
        case 2:
            return [
                0, 1 << 63, 0x7FF0_0000_0000_0000, 0x7FF8_0000_0000_0000, 0x7FF0_0000_0000_0001, 1,
                0x3FF0_0000_0000_0000, 0x7F80_0000_7FC0_0000, 0x0000_0001_7F80_0001, 0x3F80_0000_BF80_0000,
            ][Int(random.below(10))]
        case 3: return interesting()
        default: return random.next()
        }
    }

    private mutating func extended() -> (UInt64, UInt16) {
        let sign = UInt16(random.below(2)) << 15
        switch random.below(8) {
        case 0: return (0, sign)
        case 1: return (1 << 63, sign | 0x7FFF)
        case 2: return (3 << 62, sign | 0x7FFF)
        case 3: return (random.next() >> 1, sign)
        case 4: return (random.next() | 1 << 63, sign | UInt16(random.below(0x7FFF)))
        default: return (random.next() | 1 << 63, sign | UInt16(0x3FFF - 40 + random.below(80)))
        }
    }

    /// Where a memory operand is put: mostly in the data pages, now and then across a page's end or past the last.
    private mutating func target() -> UInt64 {
        switch random.below(8) {
        case 0: return Place.data + 0x2000 - random.below(40)
        case 1: return Place.data + Place.dataLength - random.below(72)
        case 2: return Place.data + 0x800 + random.below(0x100)
        default: return Place.data + 0x800 + random.below(0x40) * 32
        }
    }

    private mutating func place(_ i: Instruction, _ state: inout HostState) {
        let mask: UInt64 = i.addressSize == 8 ? ~0 : 0xFFFF_FFFF
        if i.isStringOperation {
            state.gpr[6] = target()
            state.gpr[7] = random.chance(1, in: 4) ? state.gpr[6] &+ random.below(16) : target()
            state.gpr[1] = random.below(40)
            return
        }
        if i.operation == .xlat { state.gpr[3] = target() &- (state.gpr[0] & 0xFF) }
        if i.operation == .enter || i.operation == .leave { state.gpr[5] = Place.data + 0x1800 }
        if i.usesImplicitRDI { state.gpr[7] = target() }
        guard i.isMemory else { return }
        let wanted = target()
        if i.base < 16 {
            let index = i.index < 16 ? state.gpr[Int(i.index)] << UInt64(i.scale) : 0
            if i.index == i.base {
                // base*(1 + 2^scale): small enough to be found by division.
                let factor: UInt64 = 1 + (1 << UInt64(i.scale))
                state.gpr[Int(i.base)] = ((wanted &- UInt64(bitPattern: Int64(i.displacement))) & mask) / factor
            } else {
                state.gpr[Int(i.base)] = (wanted &- UInt64(bitPattern: Int64(i.displacement)) &- index) & mask
            }
        } else if i.index < 16 {
            state.gpr[Int(i.index)] = ((wanted &- UInt64(bitPattern: Int64(i.displacement))) & mask) >> UInt64(i.scale)
        }
        if i.operation == .bt || i.operation == .bts || i.operation == .btr || i.operation == .btc {
            if i.form == .rmReg && i.reg != i.base { state.gpr[Int(i.reg & 15)] = random.below(64) }
        }
    }
}
