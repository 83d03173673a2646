// What an instruction's row says about how to run it.
internal import CHost

extension VCPU {
    /// Works out how an instruction is run, and generates its code.
    @inline(never)
    func addEntry(_ cache: ThunkCache, _ i: UnsafePointer<Instruction>, _ key: UInt64) -> UnsafeMutablePointer<
        ThunkEntry
    > {
        let row = InstructionTable.row(i.pointee.row)
        let plan = makePlan(i, row)
        var entry = ThunkEntry()
        entry.key = key
        let vector = i.pointee.prefixes.contains(.vex256) ? 32 : 16
        for n in 0..<4 where plan.isMemory {
            entry.memorySize = max(
                entry.memorySize, UInt8(truncatingIfNeeded: row.operand(n).memorySize(vector: vector, wide: plan.wide)))
        }
        entry.writesMemory = plan.isMemory && row.attributes.contains(.memoryWrite)
        if row.attributes.contains(.alignedSSE) && plan.isMemory { entry.alignmentMask = entry.memorySize &- 1 }
        entry.floating = plan.floating
        entry.mmx = plan.legacyState
        entry.xmm = plan.vectors != 0
        entry.kind = kind(row, plan)
        return cache.insert(entry) { $0.thunk(plan) }
    }

    private func kind(_ row: InstructionRow, _ plan: ThunkEmitter.Plan) -> ThunkKind {
        if row.operation == .x87 { return .thunk }
        switch (row.map, row.opcode) {
        case (1, 0x77) where row.operation == .avx: return plan.long ? .zeroAll : .zeroUpper
        case (1, 0xF7): return .byteMaskedMove
        case (2, 0x2C...0x2F), (2, 0x8C), (2, 0x8E): return .maskedMove
        case (2, 0x90...0x93): return .gather
        default: break
        }
        if !plan.isMemory || row.operation == .mmx { return .thunk }
        switch (row.map, row.opcode) {
        case (1, 0x10), (1, 0x28), (1, 0x6F), (1, 0x6E), (1, 0xF0), (2, 0x2A): return .load
        case (1, 0x7E): return row.mandatoryPrefix == 0xF3 ? .load : .store
        case (1, 0x11), (1, 0x13), (1, 0x29), (1, 0x2B), (1, 0x7F), (1, 0xE7), (1, 0xD6): return .store
        default: return .thunk
        }
    }

    func makePlan(_ i: UnsafePointer<Instruction>, _ row: InstructionRow) -> ThunkEmitter.Plan {
        var plan = ThunkEmitter.Plan(row: row)
        plan.reg = i.pointee.reg & 15
        plan.rm = i.pointee.rm & 15
        plan.extra = i.pointee.extra & 15
        plan.isMemory = i.pointee.isMemory
        plan.immediate = UInt8(truncatingIfNeeded: i.pointee.immediate)
        // Outside 64-bit mode W means something only to rows that are told apart by it.
        plan.wide =
            i.pointee.prefixes.contains(.wide) && row.operation != .x87
            && (s.pointee.code_size == 8 || row.attributes.contains(.w1))
        plan.long = i.pointee.prefixes.contains(.vex256)
        plan.legacyState = row.operation == .x87 || row.operation == .mmx
        if row.fixedModRM != 0 {
            plan.reg = (row.fixedModRM >> 3) & 7
            plan.rm = row.fixedModRM & 7
        }
        for n in 0..<4 { place(row.operand(n), &plan) }
        if row.operation == .x87 {
            plan.flags = !plan.isMemory && Self.x87UsesFlags(row.opcode, plan.reg)
            return plan
        }
        switch (row.map, row.opcode) {
        case (1, 0x2E), (1, 0x2F), (2, 0x17), (2, 0x0E), (2, 0x0F): plan.flags = true
        case (3, 0x60...0x63):
            plan.flags = true
            plan.strings = true
            if row.opcode & 1 == 0 { plan.vectors |= 1 }
        default: break
        }
        plan.floating = Self.isFloating(row)
        return plan
    }

    private func place(_ kind: OperandKind, _ plan: inout ThunkEmitter.Plan) {
        switch kind {
        case .Gd, .Gy, .Gq, .Gw, .Gb, .Gv:
            plan.generalReg = true
            if kind == .Gy && s.pointee.code_size != 8 { plan.wide = false }
        case .Vx, .Vdq, .Vqq, .Vq, .Vd: plan.vectors |= 1 << UInt16(plan.reg)
        case .Hx, .Hdq, .Hqq, .Hq, .Hd: plan.vectors |= 1 << UInt16(plan.extra)
        case .XMM0: plan.vectors |= 1
        case .Lx, .Ldq:
            plan.hasImmediate = true
            if s.pointee.code_size != 8 { plan.immediate &= 0x7F }
            plan.vectors |= 1 << UInt16(plan.immediate >> 4)
        case .Ib, .IbSigned: plan.hasImmediate = true
        case .Eb, .Ew, .Ed, .Eq, .Ey, .Ev, .Rd, .Ry, .Rv:
            plan.generalRM = !plan.isMemory
            if kind == .Ey && s.pointee.code_size != 8 { plan.wide = false }
        case .Wx, .Wdq, .Wqq, .Wq, .Wd, .Ww, .Wb, .Wh, .We, .Wi, .Ux, .Udq, .Uq:
            if !plan.isMemory { plan.vectors |= 1 << UInt16(plan.rm) }
        default: break
        }
    }

    /// FCMOVcc, FUCOMI(P), FCOMI(P).
    private static func x87UsesFlags(_ opcode: UInt8, _ reg: UInt8) -> Bool {
        switch opcode {
        case 0xDA: reg < 4
        case 0xDB: reg < 4 || reg == 5 || reg == 6
        case 0xDF: reg == 5 || reg == 6
        default: false
        }
    }

    /// Whether MXCSR matters.
    private static func isFloating(_ row: InstructionRow) -> Bool {
        switch row.map {
        case 1:
            switch row.opcode {
            case 0x2A, 0x2C...0x2F, 0x51...0x53, 0x58...0x5F, 0x7C, 0x7D, 0xC2, 0xE6: true
            case 0xD0: true
            default: false
            }
        case 2: row.opcode == 0x13 || row.opcode >= 0x96 && row.opcode <= 0xBF
        case 3:
            row.opcode >= 0x08 && row.opcode <= 0x0B || row.opcode == 0x1D || row.opcode == 0x40 || row.opcode == 0x41
        default: false
        }
    }
}
