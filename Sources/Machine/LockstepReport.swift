// A difference between the engines in words: what differs, registers, the guest's code and its translation.
internal import CHost
internal import CPU
internal import GuestMemory

/// Describes the first difference that lockstep found.
struct LockstepReport {
    let difference: LockstepDifference
    let memory: GuestMemory

    private func hex(_ value: UInt64, _ digits: Int = 16) -> String {
        let text = String(value, radix: 16)
        return String(repeating: "0", count: max(0, digits - text.count)) + text
    }

    private func padded(_ text: String, _ width: Int) -> String {
        text + String(repeating: " ", count: max(1, width - text.count))
    }

    /// All of it.
    var text: String {
        var lines = ["translator and interpreter disagree after the block at \(hex(difference.physical)) (physical)"]
        if !difference.words.isEmpty {
            lines.append(padded("", 34) + padded("before", 18) + padded("interpreter", 18) + "translator")
            for word in difference.words {
                lines.append(
                    padded("  " + word.name, 34) + padded(hex(word.before), 18) + padded(hex(word.interpreter), 18)
                        + hex(word.translator))
            }
        }
        for byte in difference.bytes {
            lines.append(
                "  memory \(hex(byte.address)): interpreter \(hex(UInt64(byte.interpreter), 2)), translator "
                    + hex(UInt64(byte.translator), 2))
        }
        lines += ["guest code:"] + guestCode + ["translation:"] + hostCode
        for (name, state) in [
            ("before the block", difference.before), ("interpreter", difference.interpreter),
            ("translator", difference.translator),
        ] {
            lines += ["\(name):", ProcessorReport(vcpu: state, memory: memory).registers]
        }
        return lines.joined(separator: "\n")
    }

    private var guestCode: [String] {
        // SAFETY: the copy of the state block lives as long as `difference`.
        let start = unsafe difference.before.s.pointee.rip
        let size = unsafe difference.before.s.pointee.code_size
        return listing(difference.guestCode, at: start, codeSize: size)
    }

    private var hostCode: [String] {
        listing(difference.hostCode, at: difference.hostAddress, codeSize: 8)
    }

    private func listing(_ code: [UInt8], at start: UInt64, codeSize: UInt8) -> [String] {
        Disassembler(codeSize: codeSize, isReal: false).listing(code[...], at: start).map { line in
            let offset = Int(line.address &- start)
            let raw = code[offset..<offset + line.length].map { hex(UInt64($0), 2) }.joined(separator: " ")
            return "  \(hex(line.address))  \(padded(raw, 32))\(line.text)"
        }
    }
}
