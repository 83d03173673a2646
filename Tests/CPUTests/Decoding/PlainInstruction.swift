// Our decoder's operands in the words that Zydis' are put into.
import CPU
import CZydis

extension Instruction {
    /// The operands that are encoded in the bytes. `immediateBits` are what Zydis says the immediates have.
    func plainOperands(codeSize: UInt8, immediateBits: (Int, Int)) -> [PlainOperand] {
        let r = InstructionTable.row(row)
        let wide = codeSize == 8 && (prefixes.contains(.wide) || r.attributes.contains(.force64))
        var result: [PlainOperand] = []
        var immediates = 0
        func bits() -> Int {
            immediates += 1
            return immediates == 1 ? immediateBits.0 : immediateBits.1
        }
        func truncated(_ value: Int64, _ bits: Int) -> UInt64 {
            let pattern = UInt64(bitPattern: value)
            return bits >= 64 ? pattern : pattern & ((1 << UInt64(bits)) - 1)
        }
        for n in 0..<4 {
            let kind = r.operand(n)
            switch kind.place {
            case .rm:
                result.append(
                    rm == Instruction.none ? memory(kind, codeSize) : .register(register(kind, rm, wide, codeSize)))
            case .reg, .opcodeRegister: result.append(.register(register(kind, reg, wide, codeSize)))
            case .extra: result.append(.register(register(kind, extra, wide, codeSize)))
            case .immediate where kind == .Lx || kind == .Ldq:
                let number = UInt8(truncatingIfNeeded: immediate >> 4) & (codeSize == 8 ? 15 : 7)
                result.append(.register(register(kind, number, wide, codeSize)))
            case .immediate, .branch:
                let value = immediates == 1 ? Int64(immediate2) : immediate
                result.append(.immediate(truncated(value, bits())))
            case .offset:
                result.append(
                    .memory(
                        segment: ZydisRegisterEncode(ZYDIS_REGCLASS_SEGMENT, segment), base: ZYDIS_REGISTER_NONE,
                        index: ZYDIS_REGISTER_NONE, scale: 0, displacement: immediate))
            case .far:
                result.append(.far(selector: UInt64(immediate >> 32) & 0xFFFF, offset: UInt64(immediate) & 0xFFFF_FFFF))
            case .none, .accumulator, .counter, .one, .dx, .implied: break
            }
        }
        return result
    }

    private func memory(_ kind: OperandKind, _ codeSize: UInt8) -> PlainOperand {
        let addressClass =
            addressSize == 8 ? ZYDIS_REGCLASS_GPR64 : addressSize == 4 ? ZYDIS_REGCLASS_GPR32 : ZYDIS_REGCLASS_GPR16
        var baseRegister = ZYDIS_REGISTER_NONE
        if base == Instruction.rip {
            baseRegister = addressSize == 8 ? ZYDIS_REGISTER_RIP : ZYDIS_REGISTER_EIP
        } else if base != Instruction.none {
            baseRegister = ZydisRegisterEncode(addressClass, base)
        }
        var indexRegister = ZYDIS_REGISTER_NONE
        if kind == .VSIBd || kind == .VSIBq {
            indexRegister = ZydisRegisterEncode(
                indexIsWide(kind) ? ZYDIS_REGCLASS_YMM : ZYDIS_REGCLASS_XMM, index)
        } else if index != Instruction.none {
            indexRegister = ZydisRegisterEncode(addressClass, index)
        }
        return .memory(
            segment: ZydisRegisterEncode(ZYDIS_REGCLASS_SEGMENT, segment),
            base: baseRegister, index: indexRegister, scale: indexRegister == ZYDIS_REGISTER_NONE ? 0 : 1 << Int(scale),
            displacement: Int64(displacement))
    }

    /// Whether a gather's indices fill 256 bits: there are as many as elements.
    private func indexIsWide(_ kind: OperandKind) -> Bool {
        guard prefixes.contains(.vex256) else { return false }
        return kind == .VSIBq || !prefixes.contains(.wide)
    }

    private func register(_ kind: OperandKind, _ number: UInt8, _ wide: Bool, _ codeSize: UInt8) -> ZydisRegister {
        func general(_ size: Int) -> ZydisRegister {
            switch size {
            case 1:
                // Zydis: AL CL DL BL AH CH DH BH SPL BPL SIL DIL R8B…
                let id = number < 4 ? number : number < 16 ? number + 4 : number - 12
                return ZydisRegisterEncode(ZYDIS_REGCLASS_GPR8, id)
            case 2: return ZydisRegisterEncode(ZYDIS_REGCLASS_GPR16, number)
            case 4: return ZydisRegisterEncode(ZYDIS_REGCLASS_GPR32, number)
            default: return ZydisRegisterEncode(ZYDIS_REGCLASS_GPR64, number)
            }
        }
        switch kind {
        // A register that takes or gives a part of itself is called by its whole.
        case .Eb where form == .vector, .Ew where form == .vector: return general(4)
        case .Ew where operation == .lar: return general(Int(operandSize))
        case .Ew where operation == .lsl: return general(min(4, Int(operandSize)))
        case .Eb, .Gb, .Zb: return general(1)
        case .Ew, .Gw: return general(2)
        case .Ev where operation == .crc32: return general(Int(extra))
        case .Ed where operation == .movsx && operandSize == 2: return general(2)
        case .Rd where operation == .movToCR || operation == .movFromCR: return general(codeSize == 8 ? 8 : 4)
        case .Rd where operation == .movToDR || operation == .movFromDR: return general(codeSize == 8 ? 8 : 4)
        case .Rd where operation == .rdpid: return general(codeSize == 8 ? 8 : 4)
        case .Ed, .Gd, .Rd: return general(4)
        case .Eq, .Gq: return general(8)
        case .Ev, .Gv, .Zv, .Rv: return general(Int(operandSize))
        case .Ey, .Gy, .By, .Ry: return general(wide ? 8 : 4)
        case .Sw: return ZydisRegisterEncode(ZYDIS_REGCLASS_SEGMENT, number)
        case .Cd: return ZydisRegisterEncode(ZYDIS_REGCLASS_CONTROL, number)
        case .Dd: return ZydisRegisterEncode(ZYDIS_REGCLASS_DEBUG, number)
        case .Pq, .Pd, .Qq, .Qd, .Nq: return ZydisRegisterEncode(ZYDIS_REGCLASS_MMX, number)
        case .STi: return ZydisRegisterEncode(ZYDIS_REGCLASS_X87, number)
        case .Vqq, .Wqq, .Hqq: return ZydisRegisterEncode(ZYDIS_REGCLASS_YMM, number)
        case .Vx, .Wx, .Ux, .Hx, .Lx:
            return ZydisRegisterEncode(
                prefixes.contains(.vex256) ? ZYDIS_REGCLASS_YMM : ZYDIS_REGCLASS_XMM, number)
        default: return ZydisRegisterEncode(ZYDIS_REGCLASS_XMM, number)
        }
    }
}
