// docs/instructions.md: what instructions there are, said by the instruction table itself. `make docs` writes it.
import CPU
import CZydis
import Foundation
import Testing

/// The document's text.
enum InstructionDocument {
    private static let path = URL(fileURLWithPath: #filePath)
        .deletingLastPathComponent().deletingLastPathComponent().deletingLastPathComponent()
        .deletingLastPathComponent().appendingPathComponent("docs/instructions.md")

    static var onDisk: String { (try? String(contentsOf: path, encoding: .utf8)) ?? "" }

    static func write() throws { try Data(text.utf8).write(to: path) }

    static var text: String {
        let rows = (0..<InstructionTable.count).map { InstructionTable.row(UInt16($0)) }
        let names = Set(rows.map(\.mnemonic))
        var lines = [
            "# Instructions", "",
            "<!-- Written by `make docs` from the instruction table (Sources/CPU/Decode); a test compares. -->", "",
            "Roost decodes \(rows.count) instruction forms with \(names.count) mnemonics. An instruction that a table below names is",
            "executed in full; any other byte sequence raises #UD. An instruction whose feature the processor model lacks is not",
            "announced by CPUID. Where processors differ, see [quirks.md](quirks.md).", "",
            "Encodings are written as in the table: mandatory prefix (NP: none), opcode map, opcode, `/n` ModRM.reg, `m` memory",
            "only, `R` register only, `:xx` the whole ModRM byte, `+r` a register in the opcode. `V` is VEX. `*` not in 64-bit",
            "mode, `†` only there.", "", "## Processor models", "",
        ]
        lines += models + ["", "## What there is", ""]
        for feature in CPUFeature.allCases {
            let own = rows.filter { $0.feature == feature }
            if own.isEmpty { continue }
            lines += [
                "### \(feature == .base ? "Every processor" : "\(feature)")", "", "| mnemonic | encodings |",
                "|---|---|",
            ]
            for name in Set(own.map(\.mnemonic)).sorted() {
                let encodings = own.filter { $0.mnemonic == name }.map(encoding)
                lines.append("| \(name) | \(encodings.joined(separator: ", ")) |")
            }
            lines.append("")
        }
        lines += [
            "## What there is not", "",
            "Extensions that the decoder's oracle (Zydis) knows, that no model announces, and whose instructions raise #UD:",
            "",
            absent + ".", "",
            "Further: RSM (there is no system-management mode), and AVX-512 in any form. VMCALL and VMMCALL exist as hypercalls.",
            "",
        ]
        return lines.joined(separator: "\n")
    }

    /// A row for each feature beyond the first processors', a column for each model but `host`.
    private static var models: [String] {
        let models = CPUModel.names.filter { $0 != "host" }.compactMap { name in
            var missing: [String] = []
            return CPUModel.named(name, missing: &missing)
        }
        var lines = ["| feature | \(models.map(\.name).joined(separator: " | ")) |"]
        lines.append("|---|" + models.map { _ in "---|" }.joined())
        for feature in CPUFeature.allCases where feature != .base {
            let marks = models.map { $0.isAvailable(feature) ? "yes" : "" }
            lines.append("| \(feature) | \(marks.joined(separator: " | ")) |")
        }
        return lines + ["", "`host` has what the host has of these, and what Roost executes by itself."]
    }

    private static var absent: String {
        ZydisOracle.absent.compactMap { number in
            ZydisISAExtGetString(ZydisISAExt(number)).map { String(cString: $0) }
        }.sorted().joined(separator: ", ")
    }

    private static func hex(_ byte: UInt8) -> String {
        (byte < 16 ? "0" : "") + String(byte, radix: 16, uppercase: true)
    }

    private static func encoding(_ row: InstructionRow) -> String {
        var text = row.attributes.contains(.vex) ? "V" : ""
        switch row.mandatoryPrefix {
        case 0: text += "NP."
        case 0xFF: break
        default: text += hex(row.mandatoryPrefix) + "."
        }
        text += ["", "0F.", "0F38.", "0F3A."][Int(row.map & 3)] + hex(row.opcode)
        if row.attributes.contains(.opcodeRegister) { text += "+r" }
        if row.fixedModRM != 0 {
            text += ":" + hex(row.fixedModRM)
        } else {
            if row.digit != 0xFF { text += "/\(row.digit)" }
            if row.attributes.contains(.memoryOnly) { text += "m" }
            if row.attributes.contains(.registerOnly) { text += "R" }
        }
        if row.attributes.contains(.no64) { text += "*" }
        if row.attributes.contains(.only64) { text += "†" }
        return text
    }
}

@Suite("Instruction document") struct InstructionDocumentTests {
    @Test("docs/instructions.md says what the instruction table says")
    func current() throws {
        if ProcessInfo.processInfo.environment["ROOST_WRITE_DOCS"] != nil { try InstructionDocument.write() }
        let isCurrent = InstructionDocument.onDisk == InstructionDocument.text
        #expect(isCurrent, "run `make docs`")
    }

    @Test("Every row of the table has a meaning, and every word in it is known")
    func table() {
        for n in 0..<InstructionTable.count {
            let row = InstructionTable.row(UInt16(n))
            #expect(row.operation != .invalid, "\(row.mnemonic)")
        }
        #expect(InstructionTable.complaints.isEmpty, "\(InstructionTable.complaints)")
    }
}
