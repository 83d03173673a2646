// What CPUID says of a processor's place: one socket, as many cores as there are processors, one thread each.
// - Spec: SDM 2A CPUID leaves 1, 4 and 0BH; AMD APM 3 E.4.7 (8000_0008).

extension CPUModel {
    /// Width of guest-physical addresses; 36 where CPUID doesn't say.
    public var physicalAddressBits: UInt32 {
        for row in stride(from: 0, to: cpuid.count, by: 6) where cpuid[row] == 0x8000_0008 {
            return cpuid[row + 2] & 0xFF
        }
        return 36
    }

    /// The rows of CPUID for processor `id`, its local APIC identifier, of `count`.
    func cpuid(processor id: Int, of count: Int) -> [UInt32] {
        if count <= 1 { return cpuid }
        var rows = cpuid
        let bits = UInt32(Int.bitWidth - (count - 1).leadingZeroBitCount)
        let number = UInt32(truncatingIfNeeded: id)
        let total = UInt32(truncatingIfNeeded: count)
        var highest: UInt32 = 0
        for row in stride(from: 0, to: rows.count, by: 6) {
            switch rows[row] {
            case 0: highest = rows[row + 2]
            case 1:
                rows[row + 3] = (rows[row + 3] & 0xFFFF) | min(1 << bits, 255) << 16 | number << 24
                // HTT: the number of identifiers in EBX counts.
                rows[row + 5] |= 1 << 28
            case 4 where rows[row + 2] != 0: rows[row + 2] = (rows[row + 2] & 0x03FF_FFFF) | (1 << bits - 1) << 26
            case 0x8000_0008: rows[row + 4] = (rows[row + 4] & ~0xF0FF) | min(total - 1, 255) | bits << 12
            default: break
            }
        }
        if highest >= 0xB {
            // Threads: none of their own. Cores: all.
            rows += [0xB, 0, 0, 1, 0x100, number]
            rows += [0xB, 1, bits, total, 0x201, number]
            rows += [0xB, 2, 0, 0, 2, number]
        }
        return rows
    }
}
