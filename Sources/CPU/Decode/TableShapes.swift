// Lines of the instruction table that stand for several rows.

enum TableShapes {
    /// The rows that a line stands for, as text.
    static func expand(_ columns: [Substring]) -> [String] {
        let at = String(columns[1])
        let name = String(columns[2])
        let words = columns.dropFirst(3)
        let feature = words.first { $0.hasPrefix("+") }.map(String.init)
        let imm = words.contains("imm") ? ",Ib" : ""
        switch columns[0] {
        case "mmi", "mms", "mm2":
            let source = words.contains("low") ? "Qd" : "Qq"
            let two = columns[0] == "mm2"
            let last = columns[0] == "mms" ? "Wdq" : "Wx"
            return [
                "NP.\(at) \(name) Pq,\(source) op=mmx \(feature ?? "+mmx")",
                "66.\(at) \(name) Vdq,Wdq al \(feature ?? "+sse2")",
            ] + vex(at, name, two ? "Vx,Wx" : "Vx,Hx,\(last)")
        case "xi":
            return ["66.\(at) \(name) Vdq,Wdq al \(feature ?? "+sse41")"] + vex(at, name, "Vx,Hx,Wx")
        case "sh":
            return [
                "NP.\(at) \(name) Nq,Ib op=mmx", "66.\(at) \(name) Udq,Ib +sse2",
            ] + vex(at, name, "Hx,Ux,Ib")
        case "fp4":
            return [
                "NP.\(at) \(name)PS Vdq,Wdq\(imm) al +sse", "66.\(at) \(name)PD Vdq,Wdq\(imm) al +sse2",
                "F3.\(at) \(name)SS Vdq,Wd\(imm) +sse", "F2.\(at) \(name)SD Vdq,Wq\(imm) +sse2",
                "VNP.\(at) V\(name)PS Vx,Hx,Wx\(imm) +avx", "V66.\(at) V\(name)PD Vx,Hx,Wx\(imm) +avx",
                "VF3.\(at) V\(name)SS Vdq,Hdq,Wd\(imm) +avx", "VF2.\(at) V\(name)SD Vdq,Hdq,Wq\(imm) +avx",
            ]
        case "fp2":
            return [
                "NP.\(at) \(name)PS Vdq,Wdq\(imm) al +sse", "66.\(at) \(name)PD Vdq,Wdq\(imm) al +sse2",
                "VNP.\(at) V\(name)PS Vx,Hx,Wx\(imm) +avx", "V66.\(at) V\(name)PD Vx,Hx,Wx\(imm) +avx",
            ]
        default:
            // FMA: the scalar forms are one opcode up.
            var rows = [
                "V66.0F38.\(at) \(name)PS Vx,Hx,Wx W0 +fma", "V66.0F38.\(at) \(name)PD Vx,Hx,Wx W1 +fma",
            ]
            if !words.contains("packed"), let opcode = UInt8(at, radix: 16) {
                let scalar = String(opcode + 1, radix: 16, uppercase: true)
                rows += [
                    "V66.0F38.\(scalar) \(name)SS Vdq,Hdq,Wd W0 +fma",
                    "V66.0F38.\(scalar) \(name)SD Vdq,Hdq,Wq W1 +fma",
                ]
            }
            return rows
        }
    }

    /// The VEX forms of an integer instruction: 128 bits are AVX, 256 bits AVX2.
    private static func vex(_ at: String, _ name: String, _ operands: String) -> [String] {
        ["V66.\(at) V\(name) \(operands) L0 +avx", "V66.\(at) V\(name) \(operands) L1 +avx2"]
    }
}
