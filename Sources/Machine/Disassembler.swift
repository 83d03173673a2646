// Disassembly through Zydis, for traces and reports.
internal import CZydis

/// Disassembles the code of one mode, in Intel's notation.
struct Disassembler {
    /// The code segment's default size: 2, 4 or 8.
    let codeSize: UInt8
    /// Real or virtual-8086 mode.
    let isReal: Bool

    /// The instruction at the start of some bytes.
    func instruction(_ bytes: ArraySlice<UInt8>, at address: UInt64) -> (text: String, length: Int)? {
        let mode: ZydisMachineMode =
            switch codeSize {
            case 8: ZYDIS_MACHINE_MODE_LONG_64
            case 4: ZYDIS_MACHINE_MODE_LONG_COMPAT_32
            default: isReal ? ZYDIS_MACHINE_MODE_REAL_16 : ZYDIS_MACHINE_MODE_LONG_COMPAT_16
            }
        var instruction = unsafe ZydisDisassembledInstruction()
        // SAFETY: Zydis reads no more than the count given, and fills the structure it gets.
        let status = unsafe bytes.withUnsafeBytes {
            unsafe ZydisDisassembleIntel(mode, address, $0.baseAddress, ZyanUSize($0.count), &instruction)
        }
        guard status & 0x8000_0000 == 0 else { return nil }
        // SAFETY: the text is a zero-terminated array inside the structure.
        let text = unsafe withUnsafeBytes(of: &instruction.text) { raw in
            unsafe String(decoding: raw.prefix { $0 != 0 }, as: UTF8.self)
        }
        return (text, unsafe Int(instruction.info.length))
    }

    /// All instructions of some bytes; what can't be decoded is one byte.
    func listing(_ bytes: ArraySlice<UInt8>, at address: UInt64) -> [(address: UInt64, text: String, length: Int)] {
        var lines: [(address: UInt64, text: String, length: Int)] = []
        var rest = bytes
        while let byte = rest.first {
            let place = address &+ UInt64(bytes.count - rest.count)
            let (text, length) = instruction(rest, at: place) ?? ("byte 0x" + String(byte, radix: 16), 1)
            lines.append((place, text, max(1, min(length, rest.count))))
            rest = rest.dropFirst(max(1, length))
        }
        return lines
    }
}
