// Translated blocks for people: `--trace blocks` and names for perf.
internal import CPU
internal import HostOS

extension TranslatedBlock {
    /// What perf calls it.
    var name: String { (isUser ? "guest_user_" : "guest_kernel_") + hexadecimal(rip) }

    /// Guest code and, beside each instruction, what it became; slow paths below.
    var listing: String {
        // SAFETY: the observer's caller keeps the code while it is told of the block.
        let host = unsafe [UInt8](code)
        let inner = Disassembler(codeSize: 8, isReal: false)
        var lines = ["block \(name): \(guest.count) bytes became \(host.count) at 0x\(hexadecimal(address))"]
        func add(_ left: String, _ range: Range<Int>) {
            let right = inner.listing(host[range], at: address &+ UInt64(range.lowerBound))
            for row in 0..<max(right.count, left.isEmpty ? 0 : 1) {
                let guestText = row == 0 ? left : ""
                let padded = guestText + String(repeating: " ", count: max(1, 58 - guestText.count))
                let hostText = row < right.count ? hexadecimal(right[row].address) + "  " + right[row].text : ""
                lines.append("  " + padded + "| " + hostText)
            }
        }
        let bounds = marks.map { min(max($0, 0), host.count) }
        add("", 0..<(bounds.first ?? 0))
        let instructions = Disassembler(codeSize: codeSize, isReal: isReal).listing(guest[...], at: rip)
        for (n, instruction) in instructions.enumerated() {
            let isKnown = n + 1 < bounds.count
            add(
                hexadecimal(instruction.address) + "  " + instruction.text,
                isKnown ? bounds[n]..<max(bounds[n], bounds[n + 1]) : 0..<0)
        }
        add("slow paths", (bounds.last ?? 0)..<host.count)
        return lines.joined(separator: "\n")
    }
}

/// Sixteen digits.
private func hexadecimal(_ value: UInt64) -> String {
    let text = String(value, radix: 16)
    return String(repeating: "0", count: 16 - text.count) + text
}

/// The file in which perf looks for the names of generated code.
///
/// - Spec: Linux, tools/perf/Documentation/jit-interface.txt: a line is start, size, name; numbers hexadecimal.
final class PerfMap {
    /// Names beyond this many are left out: perf reads them all into memory.
    static let mostNames = 1 << 20
    private let file: FileDescriptor
    private var lines: [UInt8] = []
    private var count = 0

    /// Makes /tmp/perf-PID.map anew; `routines` are the code that isn't the guest's.
    init(routines: (address: UInt64, size: Int)) throws(HostError) {
        file = try FileDescriptor.createForPerf()
        add("roost_translator_routines", at: routines.address, size: routines.size)
    }

    /// Adds a block.
    func add(_ block: TranslatedBlock) {
        if count >= Self.mostNames { return }
        // SAFETY: only the count is read.
        add(block.name, at: block.address, size: unsafe block.code.count)
        count += 1
        if lines.count > 60_000 { flush() }
    }

    private func add(_ name: String, at address: UInt64, size: Int) {
        lines += Array("\(String(address, radix: 16)) \(String(size, radix: 16)) \(name)\n".utf8)
    }

    /// Writes what was added.
    func flush() {
        _ = ByteStream(writing: file.rawValue).write(lines)
        lines.removeAll(keepingCapacity: true)
    }

    deinit { flush() }
}
