// Zydis beside our decoder: the same bytes, lengths, mnemonics and operands compared.
import CPU
import CZydis

/// Zydis set to one code size.
final class ZydisOracle {
    /// What Zydis made of the last bytes.
    private(set) var instruction = ZydisDecodedInstruction()
    /// Its operands, `ZYDIS_MAX_OPERAND_COUNT` places.
    private let operands = UnsafeMutablePointer<ZydisDecodedOperand>.allocate(capacity: 10)
    private var decoder = ZydisDecoder()
    let codeSize: UInt8

    /// Extensions that no model of ours announces: EVEX and its relatives, AMD's own, virtualization, transactions.
    static let absent: Set<UInt32> = Set(
        [
            ZYDIS_ISA_EXT_AMD3DNOW, ZYDIS_ISA_EXT_AMD_INVLPGB, ZYDIS_ISA_EXT_AMX_BF16, ZYDIS_ISA_EXT_AMX_INT8,
            ZYDIS_ISA_EXT_AMX_TILE, ZYDIS_ISA_EXT_AVX512EVEX, ZYDIS_ISA_EXT_AVX512VEX, ZYDIS_ISA_EXT_AVX_VNNI,
            ZYDIS_ISA_EXT_CET, ZYDIS_ISA_EXT_CLZERO, ZYDIS_ISA_EXT_ENQCMD, ZYDIS_ISA_EXT_FMA4, ZYDIS_ISA_EXT_GFNI,
            ZYDIS_ISA_EXT_HRESET, ZYDIS_ISA_EXT_KEYLOCKER, ZYDIS_ISA_EXT_KEYLOCKER_WIDE, ZYDIS_ISA_EXT_KNC,
            ZYDIS_ISA_EXT_KNCE, ZYDIS_ISA_EXT_KNCV, ZYDIS_ISA_EXT_MCOMMIT, ZYDIS_ISA_EXT_MONITORX, ZYDIS_ISA_EXT_MOVDIR,
            ZYDIS_ISA_EXT_MPX, ZYDIS_ISA_EXT_PADLOCK, ZYDIS_ISA_EXT_PCONFIG, ZYDIS_ISA_EXT_PT, ZYDIS_ISA_EXT_RDPRU,
            ZYDIS_ISA_EXT_RTM, ZYDIS_ISA_EXT_SERIALIZE, ZYDIS_ISA_EXT_SGX, ZYDIS_ISA_EXT_SGX_ENCLV, ZYDIS_ISA_EXT_SMX,
            ZYDIS_ISA_EXT_SNP, ZYDIS_ISA_EXT_SSE4A, ZYDIS_ISA_EXT_SVM, ZYDIS_ISA_EXT_TBM, ZYDIS_ISA_EXT_TDX,
            ZYDIS_ISA_EXT_TSX_LDTRK, ZYDIS_ISA_EXT_UINTR, ZYDIS_ISA_EXT_VAES, ZYDIS_ISA_EXT_VMFUNC,
            ZYDIS_ISA_EXT_VPCLMULQDQ, ZYDIS_ISA_EXT_VTX, ZYDIS_ISA_EXT_WAITPKG, ZYDIS_ISA_EXT_XOP,
        ].map(\.rawValue))

    init(codeSize: UInt8) {
        self.codeSize = codeSize
        let mode =
            codeSize == 8
            ? ZYDIS_MACHINE_MODE_LONG_64
            : codeSize == 4 ? ZYDIS_MACHINE_MODE_LEGACY_32 : ZYDIS_MACHINE_MODE_LEGACY_16
        let width = codeSize == 8 ? ZYDIS_STACK_WIDTH_64 : codeSize == 4 ? ZYDIS_STACK_WIDTH_32 : ZYDIS_STACK_WIDTH_16
        ZydisDecoderInit(&decoder, mode, width)
        // Without these features their encodings are NOP, BSF, WBINVD, as on the models that we have.
        for feature in [ZYDIS_DECODER_MODE_MPX, ZYDIS_DECODER_MODE_CET, ZYDIS_DECODER_MODE_CLDEMOTE] {
            ZydisDecoderEnableMode(&decoder, feature, 0)
        }
        ZydisDecoderEnableMode(&decoder, ZYDIS_DECODER_MODE_WBNOINVD, 0)
    }

    deinit { operands.deallocate() }

    /// Decodes; whether these bytes are an instruction.
    func decode(_ bytes: UnsafePointer<UInt8>, count: Int) -> Bool {
        ZydisDecoderDecodeFull(&decoder, bytes, ZyanUSize(count), &instruction, operands) & 0x8000_0000 == 0
    }

    /// Whether the last instruction belongs to an extension that our models don't have.
    var isAbsent: Bool {
        Self.absent.contains(instruction.meta.isa_ext.rawValue) || isUndefinedHere
    }

    /// Instructions that Zydis knows and that are #UD where we are: RSM outside system-management mode, the register
    /// form of PREFETCHW (NOP on Intel's processors, #UD on AMD's), VPINSRQ and VPEXTRQ outside 64-bit mode (#UD on AMD's).
    private var isUndefinedHere: Bool {
        instruction.mnemonic == ZYDIS_MNEMONIC_RSM
            || instruction.opcode_map == ZYDIS_OPCODE_MAP_0F && instruction.opcode == 0x0D
                && instruction.raw.modrm.mod == 3
            || codeSize != 8 && instruction.raw.vex.W != 0
                && (instruction.mnemonic == ZYDIS_MNEMONIC_VPINSRD || instruction.mnemonic == ZYDIS_MNEMONIC_VPEXTRD)
    }

    var length: Int { Int(instruction.length) }

    var mnemonic: String { ZydisMnemonicGetString(instruction.mnemonic).map { String(cString: $0) } ?? "?" }

    /// The operands that are encoded in the bytes, in the manual's order.
    func encodedOperands() -> [ZydisDecodedOperand] {
        (0..<Int(instruction.operand_count)).map { operands[$0] }
            .filter {
                ($0.encoding != ZYDIS_OPERAND_ENCODING_NONE || $0.type == ZYDIS_OPERAND_TYPE_POINTER)
                    && $0.visibility != ZYDIS_OPERAND_VISIBILITY_HIDDEN
            }
    }

    /// A SIB byte that names no base. Zydis 4.0 takes r13d for it where there is an address-size prefix and REX.B; the
    /// host's processor doesn't.
    private var isWithoutBase: Bool {
        instruction.raw.sib.base == 5 && instruction.raw.modrm.mod == 0 && instruction.raw.modrm.rm == 4
            && instruction.address_width == 32
    }

    /// Bits of an immediate, by number.
    func immediateBits(_ n: Int) -> Int {
        Int(n == 0 ? instruction.raw.imm.0.size : instruction.raw.imm.1.size)
    }
}

/// An operand in words that both decoders can be put into.
enum PlainOperand: Equatable, CustomStringConvertible {
    case register(ZydisRegister)
    case memory(segment: ZydisRegister, base: ZydisRegister, index: ZydisRegister, scale: Int, displacement: Int64)
    case immediate(UInt64)
    case far(selector: UInt64, offset: UInt64)

    private static func name(_ register: ZydisRegister) -> String {
        ZydisRegisterGetString(register).map { String(cString: $0) } ?? "-"
    }

    var description: String {
        switch self {
        case .register(let r): Self.name(r)
        case .memory(let segment, let base, let index, let scale, let displacement):
            "\(Self.name(segment)):[\(Self.name(base))+\(Self.name(index))*\(scale)+\(displacement)]"
        case .immediate(let value): "0x" + String(value, radix: 16)
        case .far(let selector, let offset): "\(selector):\(offset)"
        }
    }
}

extension ZydisOracle {
    /// The operands of the last instruction.
    func plainOperands() -> [PlainOperand] {
        var immediates = 0
        return encodedOperands().map { operand in
            switch operand.type {
            case ZYDIS_OPERAND_TYPE_REGISTER: return .register(operand.reg.value)
            case ZYDIS_OPERAND_TYPE_MEMORY:
                let m = operand.mem
                if isWithoutBase {
                    return .memory(
                        segment: m.segment, base: ZYDIS_REGISTER_NONE, index: m.index, scale: Int(m.scale),
                        displacement: instruction.raw.disp.value)
                }
                return .memory(
                    segment: m.segment, base: m.base, index: m.index, scale: Int(m.scale), displacement: m.disp.value)
            case ZYDIS_OPERAND_TYPE_POINTER:
                return .far(selector: UInt64(operand.ptr.segment), offset: UInt64(operand.ptr.offset))
            default:
                let bits = immediateBits(immediates)
                immediates += 1
                return .immediate(bits >= 64 ? operand.imm.value.u : operand.imm.value.u & ((1 << UInt64(bits)) - 1))
            }
        }
    }
}
