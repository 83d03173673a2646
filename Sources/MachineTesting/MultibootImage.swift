/// The smallest boot image: 32-bit code at 0x100040, which the loader jumps to.
public enum MultibootImage {
    /// A flat Multiboot image (version 1) with this code at its entry.
    public static func make(_ code: [UInt8]) -> [UInt8] {
        let flags: UInt32 = 0x1_0003
        let words = [0x1BAD_B002, flags, 0 &- 0x1BAD_B002 &- flags, 0x10_0000, 0x10_0000, 0, 0, 0x10_0040]
        let header = words.flatMap { word in (0..<4).map { UInt8(truncatingIfNeeded: word >> UInt32(8 * $0)) } }
        return header + [UInt8](repeating: 0, count: 64 - header.count) + code
    }
}
