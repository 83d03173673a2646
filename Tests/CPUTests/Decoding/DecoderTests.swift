// Our decoder against Zydis: what is an instruction, how long it is, what its operands are.
import CPU
import CZydis
import Foundation
import Testing

/// Compares both decoders, and keeps the first difference of each kind.
private final class DecoderComparison {
    let oracle: ZydisOracle
    private(set) var strings = 0
    private(set) var instructions = 0
    private(set) var differences: [String: String] = [:]
    private let codeSize: UInt8

    init(codeSize: UInt8) {
        self.codeSize = codeSize
        oracle = ZydisOracle(codeSize: codeSize)
    }

    var report: String {
        differences.sorted { $0.key < $1.key }.prefix(200).map { "\($0.key): \($0.value)" }.joined(separator: "\n")
    }

    /// Compares what both make of sixteen bytes; the length by Zydis, or 1.
    func compare(_ bytes: UnsafePointer<UInt8>) -> Int {
        strings += 1
        var ours = Instruction()
        let result = Decoder.decode(bytes, available: 16, codeSize: codeSize, into: &ours)
        let valid = oracle.decode(bytes, count: 16) && !oracle.isAbsent
        if valid != (result == .ok) {
            // UD0, UD1: they exist and are #UD however they are decoded. VMMCALL: in 16-bit code too (APM 3).
            if result == .ok && (ours.operation == .ud || ours.operation == .vmmcall) { return 1 }
            note(valid ? "missing \(oracle.mnemonic)" : "extra \(InstructionTable.row(ours.row).mnemonic)", bytes)
            return valid ? oracle.length : 1
        }
        guard valid else { return 1 }
        instructions += 1
        compareValid(ours, bytes)
        return oracle.length
    }

    private func compareValid(_ ours: Instruction, _ bytes: UnsafePointer<UInt8>) {
        let row = InstructionTable.row(ours.row)
        if Int(ours.length) != oracle.length {
            return note("length of \(oracle.mnemonic): \(ours.length), Zydis \(oracle.length)", bytes)
        }
        if !Self.sameMnemonic(row.mnemonic, oracle.mnemonic) {
            return note("\(row.mnemonic), Zydis \(oracle.mnemonic)", bytes)
        }
        let address = UInt64(
            truncatingIfNeeded: ours.addressSize == 8 ? -1 : ours.addressSize == 4 ? 0xFFFF_FFFF : 0xFFFF)
        let mine = ours.plainOperands(
            codeSize: codeSize, immediateBits: (oracle.immediateBits(0), oracle.immediateBits(1))
        ).map { $0.wrapped(address) }
        let theirs = oracle.plainOperands().map { $0.wrapped(address) }
        // The second operand of a long NOP is encoded and means nothing.
        if row.operation == .nop || row.operation == .prefetch { return }
        if !Self.same(mine, theirs, row) {
            note("operands of \(row.mnemonic): \(mine), Zydis \(theirs)", bytes, kind: row.mnemonic)
        }
    }

    /// One byte less is no instruction yet.
    func compareCutShort(_ bytes: UnsafePointer<UInt8>, length: Int) {
        var ours = Instruction()
        if Decoder.decode(bytes, available: length - 1, codeSize: codeSize, into: &ours) != .needMoreBytes {
            note("cut short \(oracle.mnemonic)", bytes)
        }
    }

    private func note(_ what: String, _ bytes: UnsafePointer<UInt8>, kind: String? = nil) {
        let key = kind.map { "operands of \($0)" } ?? what
        guard differences[key] == nil else { return }
        let hex = (0..<16).map { (bytes[$0] < 16 ? "0" : "") + String(bytes[$0], radix: 16) }.joined(separator: " ")
        differences[key] = "\(what) [\(hex)] in \(Int(codeSize) * 8)-bit code"
    }

    /// Whether operands are the same, but for the segment of LEA, which means nothing, and the upper half of a register
    /// that gets a mask or a word of a vector, which is zero.
    private static func same(_ mine: [PlainOperand], _ theirs: [PlainOperand], _ row: InstructionRow) -> Bool {
        // R8 and RAX against PAUSE, see `sameMnemonic`.
        if mine == theirs || row.operation == .xchg && theirs.isEmpty { return true }
        if row.operation == .lea { return mine.map(\.withoutSegment) == theirs.map(\.withoutSegment) }
        return row.operand(0) == .Gd && mine == theirs.map(\.narrowed)
    }

    /// Names of ours that stand for several of Zydis', by operand size mostly.
    private static let aliases: [String: Set<String>] = [
        "cbw": ["cwde", "cdqe"], "cwd": ["cdq", "cqo"], "retf": ["ret"], "jcxz": ["jecxz", "jrcxz"],
        "movs": ["movsw", "movsd", "movsq"], "cmps": ["cmpsw", "cmpsd", "cmpsq"], "stos": ["stosw", "stosd", "stosq"],
        "lods": ["lodsw", "lodsd", "lodsq"], "scas": ["scasw", "scasd", "scasq"], "ins": ["insw", "insd"],
        "outs": ["outsw", "outsd"], "pusha": ["pushad"], "popa": ["popad"], "pushf": ["pushfd", "pushfq"],
        "popf": ["popfd", "popfq"], "iret": ["iretd", "iretq"], "movd": ["movq"], "vmovd": ["vmovq"],
        "pextrd": ["pextrq"], "pinsrd": ["pinsrq"], "feni": ["feni8087_nop"], "fdisi": ["fdisi8087_nop"],
        "fsetpm": ["fsetpm287_nop"], "prefetchw": ["prefetch", "prefetchwt1"],
        "prefetch": ["prefetchnta", "prefetcht0", "prefetcht1", "prefetcht2", "nop"],
    ]

    /// Our names of conditions and Zydis'.
    private static let conditions: [String: String] = [
        "a": "nbe", "ae": "nb", "e": "z", "ne": "nz", "g": "nle", "ge": "nl",
    ]

    private static func sameMnemonic(_ ours: String, _ theirs: String) -> Bool {
        let name = ours.lowercased()
        // REX.W makes another mnemonic of FXSAVE and its like.
        // The host exchanges R8 with RAX where Zydis sees PAUSE and ignores REX.B.
        if name == "xchg" && theirs == "pause" { return true }
        if name == theirs || aliases[name]?.contains(theirs) == true || name + "64" == theirs { return true }
        for stem in ["j", "set", "cmov"] where name.hasPrefix(stem) {
            if let condition = conditions[String(name.dropFirst(stem.count))] { return stem + condition == theirs }
        }
        return false
    }
}

extension PlainOperand {
    fileprivate var withoutSegment: PlainOperand {
        guard case .memory(_, let base, let index, let scale, let displacement) = self else { return self }
        return .memory(
            segment: ZYDIS_REGISTER_NONE, base: base, index: index, scale: scale, displacement: displacement)
    }

    /// A 32-bit register for a 64-bit one.
    fileprivate var narrowed: PlainOperand {
        guard case .register(let r) = self, ZydisRegisterGetClass(r) == ZYDIS_REGCLASS_GPR64 else { return self }
        return .register(
            ZydisRegisterEncode(ZYDIS_REGCLASS_GPR32, UInt8(truncatingIfNeeded: ZydisRegisterGetId(r))))
    }

    /// Its displacement cut to the address size.
    fileprivate func wrapped(_ mask: UInt64) -> PlainOperand {
        guard case .memory(let segment, let base, let index, let scale, let displacement) = self else { return self }
        let cut = Int64(bitPattern: UInt64(bitPattern: displacement) & mask)
        return .memory(segment: segment, base: base, index: index, scale: scale, displacement: cut)
    }
}

@Suite("Decoder against Zydis")
struct DecoderTests {
    static var seed: UInt64 { ProcessInfo.processInfo.environment["ROOST_FUZZ_SEED"].flatMap(UInt64.init) ?? 1 }

    @Test("Random bytes, half of them shaped like instructions", arguments: [2, 4, 8] as [UInt8])
    func randomBytes(codeSize: UInt8) {
        let comparison = DecoderComparison(codeSize: codeSize)
        var random = SeededGenerator(state: Self.seed &* 31 &+ UInt64(codeSize))
        var bytes = [UInt8](repeating: 0, count: 32)
        for round in 0..<500_000 {
            Self.fill(&bytes, shaped: round & 1 == 1, &random)
            bytes.withUnsafeBufferPointer { buffer in
                guard let start = buffer.baseAddress else { return }
                let length = comparison.compare(start)
                if round % 8 == 7, length > 1 { comparison.compareCutShort(start, length: length) }
            }
        }
        let report = comparison.report
        #expect(report.isEmpty)
        #expect(comparison.instructions > 250_000)
    }

    /// Random bytes; shaped: a few prefixes, an opcode of any map, VEX more often than chance has it.
    private static func fill(_ bytes: inout [UInt8], shaped: Bool, _ random: inout SeededGenerator) {
        for n in 0..<4 {
            let word = random.next()
            for b in 0..<8 { bytes[n * 8 + b] = UInt8(truncatingIfNeeded: word >> UInt64(b * 8)) }
        }
        guard shaped else { return }
        var place = 0
        let prefixes: [UInt8] = [0x66, 0x67, 0xF2, 0xF3, 0xF0, 0x2E, 0x36, 0x64, 0x65]
        while random.chance(2, in: 5) && place < 4 {
            bytes[place] = prefixes[Int(random.below(9))]
            place += 1
        }
        if random.chance(1, in: 4) {
            bytes[place] = 0x40 | UInt8(random.below(16))
            place += 1
        }
        switch random.below(6) {
        case 0: bytes[place] = 0x0F
        case 1, 2:
            bytes[place] = 0x0F
            bytes[place + 1] = random.chance(1, in: 2) ? 0x38 : 0x3A
        case 3: bytes[place] = 0xC5
        case 4:
            bytes[place] = 0xC4
            bytes[place + 1] = bytes[place + 1] & 0xE0 | UInt8(1 + random.below(3))
            if random.chance(1, in: 2) { bytes[place + 2] |= 0x78 }
        default: break
        }
    }

    @Test(
        "Real code: every byte of busybox, libc and this test itself as the beginning of an instruction, and in order",
        arguments: [2, 4, 8] as [UInt8])
    func realCode(codeSize: UInt8) throws {
        let comparison = DecoderComparison(codeSize: codeSize)
        for code in try RealCode.sections(limit: codeSize == 8 ? 1 << 20 : 1 << 18) {
            code.withUnsafeBufferPointer { buffer in
                guard let start = buffer.baseAddress else { return }
                var next = 0
                for place in 0..<max(0, buffer.count - 16) {
                    let length = comparison.compare(start + place)
                    guard place == next else { continue }
                    comparison.compareCutShort(start + place, length: length)
                    next += length
                }
            }
        }
        let report = comparison.report
        #expect(report.isEmpty)
        #expect(comparison.instructions > 500_000)
    }
}
