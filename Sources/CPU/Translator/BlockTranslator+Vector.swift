// MMX, SSE and AVX in translated code: as themselves, on the host's registers, which hold the guest's while `vectors_live`.
// Also the integer instructions that have an encoding of their own (BMI, ADX, MOVBE, CRC32).
internal import CHost

extension BlockTranslator {
    // MARK: Vectors

    /// Whether a vector instruction is emitted: all but those that reach memory element by element.
    func emitsVector(_ i: UnsafePointer<Instruction>) -> Bool {
        let row = InstructionTable.row(i.pointee.row)
        switch (row.map, row.opcode) {
        case (1, 0x77): return size64
        case (1, 0xF7), (2, 0x2C...0x2F), (2, 0x8C), (2, 0x8E), (2, 0x90...0x93): return false
        default: break
        }
        return !i.pointee.isMemory || memorySize(i, row) != 0
    }

    func memorySize(_ i: UnsafePointer<Instruction>, _ row: InstructionRow) -> Int {
        let vector = i.pointee.prefixes.contains(.vex256) ? 32 : 16
        let wide = i.pointee.prefixes.contains(.wide) && (size64 || row.attributes.contains(.w1))
        var size = 0
        for n in 0..<4 { size = max(size, row.operand(n).memorySize(vector: vector, wide: wide)) }
        return size
    }

    /// Makes the host's vector registers the guest's, once a block.
    private mutating func needVectors(_ n: Int, level: UInt8) {
        if vectorLevel >= level { return }
        losesFlags(before: n)
        let i = first + n
        code.compareByte(StateOffset.vectorsLive, level)
        let place = pageOffset + Int(i.pointee.endOffset) - Int(i.pointee.length)
        let jump = code.jump(if: 2)
        exits.append(Exit(jump: jump, target: place, kind: .vectors(resume: code.count, level: level, index: n)))
        vectorLevel = level
    }

    mutating func emitVector(_ n: Int) {
        let i = instruction(n)
        let row = InstructionTable.row(i.pointee.row)
        let plan = vcpu.makePlan(i, row)
        if plan.legacyState { needX87(n) }
        if !plan.legacyState || plan.vectors != 0 || plan.floating {
            needVectors(n, level: row.operation == .avx ? 2 : 1)
        }
        let use = FlagUse.of(i)
        if plan.isMemory {
            let size = memorySize(i, row)
            probeOperand(n, size: size, write: row.attributes.contains(.memoryWrite))
            if needsAlignment(row, size) {
                losesFlags(before: n)
                code.registers(0xF6, rex: true, reg: 0, rm: scratch0)
                code.byte(UInt8(size - 1))
                addStub(code.jump(if: 5), n)
            }
        }
        let reg = plan.generalReg ? source(plan.reg, scratch1) : plan.reg
        let rm = plan.generalRM ? source(plan.rm, scratch0) : plan.rm
        writesFlags(n, use, by: scratch2)
        encode(plan, row, reg, rm)
        wroteFlags(use)
        if plan.generalReg && Self.host(plan.reg) == nil { code.store(StateOffset.register(plan.reg), scratch1) }
        if plan.generalRM && Self.host(plan.rm) == nil { code.store(StateOffset.register(plan.rm), scratch0) }
    }

    private mutating func encode(
        _ plan: ThunkEmitter.Plan, _ row: InstructionRow, _ reg: HostRegister, _ rm: HostRegister
    ) {
        let prefix = row.mandatoryPrefix == 0xFF ? 0 : row.mandatoryPrefix
        let memory: HostAddress? = plan.isMemory ? .base(scratch0, 0) : nil
        if row.attributes.contains(.vex) {
            if row.attributes.contains(.modRM) {
                code.vex(
                    row.opcode, map: row.map, prefix: prefix, wide: plan.wide, long: plan.long, reg: reg,
                    vvvv: plan.extra, rm: rm, memory)
            } else {
                code.bytes(0xC5, plan.long ? 0xFC : 0xF8, row.opcode)
            }
        } else if !row.attributes.contains(.modRM) {
            code.bytes(0x0F, row.opcode)  // emms
        } else if let memory {
            code.memory(row.opcode, map: row.map, prefix: prefix, wide: plan.wide, reg: reg, memory)
        } else {
            code.registers(row.opcode, map: row.map, prefix: prefix, wide: plan.wide, reg: reg, rm: rm)
        }
        if plan.hasImmediate { code.byte(plan.immediate) }
    }

    /// Whether the host would fault on an unaligned operand: then the guest does.
    private func needsAlignment(_ row: InstructionRow, _ size: Int) -> Bool {
        if size < 16 { return false }
        if row.attributes.contains(.alignedSSE) { return true }
        switch (row.map, row.opcode) {
        case (1, 0x28), (1, 0x29), (1, 0x2B), (1, 0xE7), (2, 0x2A): return true
        case (1, 0x6F), (1, 0x7F): return row.mandatoryPrefix == 0x66
        case (1, 0x10), (1, 0x11), (1, 0xF0): return false
        default: return !row.attributes.contains(.vex)
        }
    }

    // MARK: Integer instructions with encodings of their own

    /// Whether all register operands have host registers, and the host has the instruction: models may have ADX and MOVBE
    /// without it.
    func emitsNamed(_ p: Instruction) -> Bool {
        if p.operandSize < 4 { return false }
        let row = InstructionTable.row(p.row)
        if vcpu.translations.pointee.hostFeatures & 1 << UInt64(row.feature.rawValue) == 0 { return false }
        if !p.isMemory && Self.host(p.rm) == nil { return false }
        if row.digit == 0xFF && Self.host(p.reg) == nil { return false }
        if p.operation == .crc32 && (p.opcode != 0xF1 || p.extra != p.operandSize) { return false }
        return !row.attributes.contains(.vex) || Self.host(p.extra) != nil
    }

    mutating func emitNamed(_ n: Int) {
        let i = instruction(n)
        let p = i.pointee
        let row = InstructionTable.row(p.row)
        let use = FlagUse.of(i)
        let wide = p.operandSize == 8
        if p.isMemory {
            probeOperand(
                n, size: Int(p.operandSize), write: p.operation == .movbe && p.form == .rmReg)
        }
        writesFlags(n, use, by: scratch2)
        let reg = row.digit == 0xFF ? Self.host(p.reg) ?? 0 : row.digit
        let rm = p.isMemory ? 0 : Self.host(p.rm) ?? 0
        let memory: HostAddress? = p.isMemory ? .base(scratch0, 0) : nil
        // MOVBE's 66 says its size, which in 16-bit code is the larger one.
        let prefix = row.mandatoryPrefix == 0xFF || p.operation == .movbe ? 0 : row.mandatoryPrefix
        if row.attributes.contains(.vex) {
            let usesExtra = p.operation != .rorx
            code.vex(
                row.opcode, map: row.map, prefix: prefix, wide: wide, long: false, reg: reg,
                vvvv: usesExtra ? Self.host(p.extra) ?? 0 : 0, rm: rm, memory)
        } else if let memory {
            code.memory(row.opcode, map: row.map, prefix: prefix, wide: wide, reg: reg, memory)
        } else {
            code.registers(row.opcode, map: row.map, prefix: prefix, wide: wide, reg: reg, rm: rm)
        }
        if p.operation == .rorx { code.byte(UInt8(truncatingIfNeeded: p.immediate)) }
        wroteFlags(use)
    }
}
