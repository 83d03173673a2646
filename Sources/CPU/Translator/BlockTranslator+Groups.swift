// Accesses of one block that are reached by one probe: through the same register, or the stack, at distances that fit into
// a page. The first one finds the way from linear to host addresses for all of them and leaves it in the state block.
//
// If that probe misses, the interpreter runs the rest of the block; a block to which that happens often (its data lie
// across a page's end, or are a device) is translated anew without groups.
internal import CHost

/// What one probe covers.
struct AccessGroup {
    var base: UInt8
    /// Distances from the register's value at the block's start (RSP's: known changes are followed) that are reached.
    var start: Int32
    var end: Int32
    var writes: Bool
    /// The instruction whose access comes first.
    var leader: Int
    var members: Int
}

/// The groups of a block.
struct AccessGroups {
    /// Fields of the state block that hold the way of a group.
    static let slots = 4
    /// No group reaches further.
    static let longest: Int32 = 512
    /// Nor from its register's value at the block's start: distances are in 32 bits without overflow.
    static let farthest = 1 << 20

    var groups: [AccessGroup] = []
    /// Group of each instruction's memory operand, and of its implied access to the stack; -1 none.
    var operand: [33 of Int8] = .init(repeating: -1)
    var stack: [33 of Int8] = .init(repeating: -1)
    /// What RSP has moved by before each instruction.
    var moved: [33 of Int32] = .init(repeating: 0)

    /// Takes an access into a group that it fits, or begins one.
    mutating func add(_ n: Int, base: UInt8, distance: Int, size: Int32, writes: Bool, open: inout [Int]) -> Int8 {
        guard abs(distance) < Self.farthest else { return -1 }
        let distance = Int32(distance)
        for (k, g) in open.enumerated() where groups[g].base == base {
            let start = min(groups[g].start, distance)
            let end = max(groups[g].end, distance &+ size)
            if end &- start > Self.longest { continue }
            groups[g].start = start
            groups[g].end = end
            groups[g].writes = groups[g].writes || writes
            groups[g].members += 1
            open.swapAt(k, open.count - 1)
            return Int8(g)
        }
        if groups.count >= 120 { return -1 }
        groups.append(
            AccessGroup(
                base: base, start: distance, end: distance &+ size, writes: writes, leader: n, members: 1))
        open.append(groups.count - 1)
        return Int8(groups.count - 1)
    }
}

extension BlockTranslator {
    /// Finds the groups of a block.
    mutating func findGroups() {
        if !size64 { return }
        var found = AccessGroups()
        var open: [Int] = []
        var moved = 0
        for n in 0..<count {
            let p = (first + n).pointee
            let isNear = abs(moved) < AccessGroups.farthest
            found.moved[n] = isNear ? Int32(moved) : 0
            guard emits(n) else {
                open.removeAll(keepingCapacity: true)
                continue
            }
            if let access = operandAccess(first + n), isNear || p.base != 4 {
                let distance = Int(p.displacement) + (p.base == 4 ? moved : 0)
                found.operand[n] = found.add(
                    n, base: p.base, distance: distance, size: access.size, writes: access.writes, open: &open)
            }
            if let change = stackChange(p) {
                // A push from memory that misses there is the interpreter's as a whole: the way to the stack isn't looked up.
                if change.access && isNear && !(p.operation == .push && p.isMemory) {
                    let distance = change.by < 0 ? moved + change.by : moved
                    found.stack[n] = found.add(
                        n, base: 4, distance: distance, size: Int32(p.operandSize), writes: change.by < 0, open: &open)
                }
                moved += change.by
            }
            let written = registersWritten(p)
            if written != 0 { open.removeAll { written >> UInt32(found.groups[$0].base) & 1 != 0 } }
        }
        keepLargest(&found)
    }

    /// Keeps as many groups as there are slots, none with a single access.
    private mutating func keepLargest(_ found: inout AccessGroups) {
        var kept: [Int] = []
        for g in found.groups.indices where found.groups[g].members >= 2 { kept.append(g) }
        if kept.isEmpty { return }
        kept.sort { found.groups[$0].members > found.groups[$1].members }
        kept.removeLast(max(0, kept.count - AccessGroups.slots))
        for n in 0..<count {
            found.operand[n] = Int8(kept.firstIndex(of: Int(found.operand[n])) ?? -1)
            found.stack[n] = Int8(kept.firstIndex(of: Int(found.stack[n])) ?? -1)
        }
        found.groups = kept.map { found.groups[$0] }
        groups = found
    }

    /// Size and direction of a memory operand that may be in a group: one register and a displacement.
    private func operandAccess(_ i: UnsafePointer<Instruction>) -> (size: Int32, writes: Bool)? {
        let p = i.pointee
        guard p.isMemory, p.base < 16, p.index >= 16, p.addressSize == 8, p.segment < 4 else { return nil }
        switch p.operation {
        case .movzx, .movsx: return (Int32(p.extra), false)
        case .cmp, .test, .cmovcc, .imul2, .popcnt, .bsf, .bsr, .tzcnt, .lzcnt: return (Int32(p.operandSize), false)
        case .mov: return (Int32(p.operandSize), p.form != .regRM)
        case .add, .or, .adc, .sbb, .and, .sub, .xor: return (Int32(p.operandSize), p.form != .regRM)
        case .inc, .dec, .neg, .not: return (Int32(p.operandSize), true)
        case .setcc: return (1, true)
        case .push: return (Int32(p.operandSize), false)
        case .sse, .avx:
            let row = InstructionTable.row(p.row)
            return (Int32(memorySize(i, row)), row.attributes.contains(.memoryWrite))
        default: return nil
        }
    }

    /// How RSP is changed by a known amount, and whether memory is accessed by that.
    private func stackChange(_ p: Instruction) -> (by: Int, access: Bool)? {
        switch p.operation {
        case .push: return (-Int(p.operandSize), true)
        case .pop: return (Int(p.operandSize), true)
        case .call: return (-8, true)
        case .ret: return (8, true)
        case .callIndirect: return (-8, true)
        case .add where p.rm == 4 && p.form == .rmImmediate && p.operandSize == 8:
            return (Int(Int32(truncatingIfNeeded: p.immediate)), false)
        case .sub where p.rm == 4 && p.form == .rmImmediate && p.operandSize == 8:
            return (-Int(Int32(truncatingIfNeeded: p.immediate)), false)
        case .lea where p.reg == 4 && p.base == 4 && p.index >= 16 && p.operandSize == 8 && p.addressSize == 8:
            return (Int(p.displacement), false)
        default: return nil
        }
    }

    /// Registers written in a way that isn't followed, a bit each.
    private func registersWritten(_ p: Instruction) -> UInt32 {
        func bit(_ n: UInt8) -> UInt32 { n < 16 ? 1 << UInt32(n) : n < 20 ? 1 << UInt32(n - 16) : 0 }
        switch p.operation {
        case .cmp, .test, .push, .nop, .prefetch, .fence, .pause, .call, .callIndirect, .jcc, .jmp, .jmpIndirect, .ret,
            .cld, .clc, .stc, .cmc:
            return 0
        case .pop: return p.reg == 4 || p.rm == 4 ? bit(4) : bit(p.form == .rm ? p.rm : p.reg)
        case .mov, .add, .or, .adc, .sbb, .and, .sub, .xor:
            if stackChange(p) != nil { return 0 }
            switch p.form {
            case .regRM, .regImmediate, .offsetLoad: return bit(p.reg)
            case .rmReg, .rmImmediate: return p.isMemory ? 0 : bit(p.rm)
            default: return ~0
            }
        case .lea: return stackChange(p) != nil ? 0 : bit(p.reg)
        case .movzx, .movsx, .cmovcc, .imul2, .popcnt, .bsf, .bsr, .tzcnt, .lzcnt: return bit(p.reg)
        case .inc, .dec, .neg, .not, .setcc: return p.isMemory ? 0 : p.form == .reg ? bit(p.reg) : bit(p.rm)
        case .shl, .shr, .sar, .rol, .ror: return p.isMemory ? 0 : bit(p.rm)
        case .cbw: return bit(0)
        case .cwd: return bit(2)
        case .bswap: return bit(p.reg)
        case .sse, .avx: return p.rm != Instruction.none || p.isMemory ? vectorWrites(p) : 0
        default: return ~0
        }
    }

    /// General registers that a vector instruction may write.
    private func vectorWrites(_ p: Instruction) -> UInt32 {
        let row = InstructionTable.row(p.row)
        if row.map == 3 && row.opcode & 0xFC == 0x60 { return ~0 }
        var result: UInt32 = 0
        for n in 0..<4 {
            switch row.operand(n) {
            case .Gd, .Gy, .Gq, .Gw, .Gb, .Gv: result |= 1 << UInt32(p.reg & 15)
            case .Eb, .Ew, .Ed, .Eq, .Ey, .Ev, .Rd, .Ry, .Rv: if !p.isMemory { result |= 1 << UInt32(p.rm & 15) }
            default: break
            }
        }
        return result
    }

    // MARK: Emitting

    /// Reaches a member of a group: afterwards scratch 0 is the host's address. False: it is in none.
    mutating func reachInGroup(_ n: Int, _ slot: Int8, _ base: UInt8, _ distance: Int32, size: Int, write: Bool) -> Bool
    {
        guard slot >= 0, let group = groups?.groups[Int(slot)], !write || group.writes else { return false }
        let moved = base == 4 ? groups?.moved[n] ?? 0 : 0
        let start = distance &+ moved
        if start < group.start || start &+ Int32(size) > group.end { return false }
        let field = StateOffset.group(Int(slot))
        if reached & (1 << UInt32(slot)) == 0 {
            probeGroup(n, group, moved)
            code.store(field, scratch1)
            reached |= 1 << UInt32(slot)
        } else {
            code.load(scratch1, field)
        }
        let register = source(base, scratch0)
        code.lea(scratch0, .indexed(register, scratch1, 0, distance))
        return true
    }

    /// Scratch 1: what to add to linear addresses of a group. Clobbers scratch 0, 2 and the flags.
    private mutating func probeGroup(_ n: Int, _ group: AccessGroup, _ moved: Int32) {
        losesFlags(before: n)
        let register = source(group.base, scratch0)
        code.lea(scratch0, .base(register, group.start &- moved))
        compareTag(
            linear: scratch0, last: .base(scratch0, group.end &- group.start &- 1), index: scratch1, write: group.writes
        )
        let i = first + n
        let place = pageOffset + Int(i.pointee.endOffset) - Int(i.pointee.length)
        exits.append(Exit(jump: code.jump(if: 5), target: place, kind: .interpret(index: n)))
        code.load(scratch1, .stateIndexed(scratch1, table + 16))
    }
}
