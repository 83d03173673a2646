// Runs cases in both worlds and compares what they leave.
import CHostExecutor
import CPU
import Foundation
import GuestMemory

/// What a run found.
struct DifferentialReport {
    var cases = 0
    var forms = 0
    var operations = 0
    var failures: [String] = []
    var text: String { failures.prefix(300).joined(separator: "\n") + "\n\(failures.count) failures" }
}

/// Compares the interpreter with the host's processor.
final class DifferentialTester {
    private let guest: GuestProcess
    private let host: HostProcess
    private var background: [UInt8]
    private var failed: Set<UInt32> = []
    private var seen: Set<UInt16> = []
    private static let traces = ProcessInfo.processInfo.environment["ROOST_FUZZ_TRACE"] != nil
    private(set) var report = DifferentialReport()

    let hasCompatibility = host_executor_has_compatibility() != 0

    init?(translates: Bool) {
        guard let guest = try? GuestProcess(model: CPUModel.host, translates: translates), let host = HostProcess.shared
        else { return nil }
        self.guest = guest
        self.host = host
        var random = SeededGenerator(state: 99)
        background = (0..<Int(Place.dataLength)).map { _ in UInt8(truncatingIfNeeded: random.next()) }
    }

    /// `rounds` cases of one form. After its first failure a form says no more.
    func run(form number: UInt16, rounds: Int, seed: UInt64, compatibility: Bool) {
        let row = InstructionTable.row(number)
        guard row.canRunInUserMode, CPUModel.host.isAvailable(row.feature) else { return }
        var generator = CaseGenerator(
            seed: seed &* 0x1_0001 &+ UInt64(number) &* 7919 &+ (compatibility ? 1 << 40 : 0),
            compatibility: compatibility)
        var ran = false
        for round in 0..<rounds {
            guard let encoding = generator.encode(row, number: number) else { continue }
            let state = generator.state(for: encoding.instruction)
            let rip = Place.code + 0x100
            let code = encoding.bytes + [UInt8](repeating: 0xCC, count: 16)
            ran = true
            report.cases += 1
            refresh()
            if Self.traces { print(row.mnemonic, encoding.bytes) }
            let expected = host.run(state, code: code, at: rip)
            let got = guest.run(state, code: code, at: rip)
            if let difference = compare(expected, got, encoding.instruction, row) {
                let hex = encoding.bytes.map { String($0 >> 4, radix: 16) + String($0 & 15, radix: 16) }.joined()
                report.failures.append(
                    "\(row.mnemonic) [\(hex)] \(compatibility ? 32 : 64)-bit, form \(number), round \(round): \(difference)"
                )
                return
            }
        }
        if ran {
            report.forms += 1
            if seen.insert(row.operation.rawValue).inserted { report.operations += 1 }
        }
    }

    private func refresh() {
        background.withUnsafeBufferPointer {
            host.data.update(from: $0.baseAddress!, count: $0.count)
            (guest.memory.base + Int(Place.dataPhysical)).update(from: $0.baseAddress!, count: $0.count)
        }
    }

    /// The first difference in words, or nil.
    private func compare(_ expected: Outcome, _ got: Outcome, _ i: Instruction, _ row: InstructionRow) -> String? {
        func hex(_ value: UInt64) -> String { String(value, radix: 16) }
        if expected.vector != got.vector { return "exception \(expected.vector), got \(got.vector)" }
        // Linux tells a process that pages of the kernel's half are present, whatever they are.
        let hidden: UInt64 = expected.faultAddress >> 63
        if expected.errorCode | hidden != got.errorCode | hidden {
            return "error code \(hex(expected.errorCode)), got \(hex(got.errorCode))"
        }
        // CMPS reads its two operands in an order of the processor's own.
        if i.operation == .cmps && expected.vector == 14 { return nil }
        // So does the x87's environment, in parts.
        let inParts = [OperandKind.mEnv, .mState].contains(row.operands.0)
        if expected.faultAddress != got.faultAddress && !inParts {
            return "fault address \(hex(expected.faultAddress)), got \(hex(got.faultAddress))"
        }
        if expected.rip != got.rip { return "rip \(hex(expected.rip)), got \(hex(got.rip))" }
        for n in 0..<16 where expected.gpr[n] != got.gpr[n] && !(n > 7 && expected.rip >> 32 == 0 && false) {
            return "register \(n): \(hex(expected.gpr[n])), got \(hex(got.gpr[n]))"
        }
        let ignored = UndefinedFlags.mask(i) | 0x1_0000
        if (expected.rflags ^ got.rflags) & 0x3F_7FD5 & ~ignored != 0 {
            return "flags \(hex(expected.rflags)), got \(hex(got.rflags))"
        }
        if expected.data != got.data {
            let n = zip(expected.data, got.data).enumerated().first { $0.element.0 != $0.element.1 }?.offset ?? 0
            return
                "data at \(hex(Place.data + UInt64(n))): \(hex(UInt64(expected.data[n]))), got \(hex(UInt64(got.data[n])))"
        }
        return compareVectorState(expected.vectorState, got.vectorState, row)
    }

    private func compareVectorState(_ expected: [UInt8], _ got: [UInt8], _ row: InstructionRow) -> String? {
        for n in 0..<832 where expected[n] != got[n] {
            switch n {
            case 6..<24, 28..<32, 416..<576: continue  // FOP, FIP, FDP, MXCSR_MASK, header
            case 32..<160 where (n - 32) % 16 >= 10: continue
            default: return "vector state byte \(n): \(expected[n]), got \(got[n])"
            }
        }
        return nil
    }
}

/// Flags that the manual leaves undefined: the one table of them (SDM 2, "Flags Affected").
enum UndefinedFlags {
    static let cf: UInt64 = 1
    static let pf: UInt64 = 4
    static let af: UInt64 = 0x10
    static let zf: UInt64 = 0x40
    static let sf: UInt64 = 0x80
    static let of: UInt64 = 0x800

    static func mask(_ i: Instruction) -> UInt64 {
        switch i.operation {
        case .div, .idiv: cf | pf | af | zf | sf | of
        case .bt, .bts, .btr, .btc: of | sf | af | pf
        case .daa, .das: of
        case .aaa, .aas: of | sf | zf | pf
        case .aam, .aad: of | af | cf
        default: 0
        }
    }
}
