// A hash of everything in the guest's memory, to compare runs.
internal import Glibc
internal import HostOS

extension GuestMemory {
    /// Depends on each byte of RAM and on where it is; pages of zeroes, touched or not, don't count.
    ///
    /// Not cryptographic. Nothing may run meanwhile. Pages that were never touched aren't made present by it.
    public func contentHash() -> UInt64 {
        var hash: UInt64 = 0x5275_6E73_2061_7265
        var fileOffset = 0
        for region in regions where region.kind == .ram {
            let length = Int(region.length)
            let start = region.start.rawValue
            var place = shared.nextData(from: fileOffset)
            while place < fileOffset + length {
                mixPage(start &+ UInt64(place - fileOffset), into: &hash)
                place = shared.nextData(from: place + Int(Self.pageSize))
            }
            fileOffset += length
        }
        return hash
    }

    private func mixPage(_ place: UInt64, into hash: inout UInt64) {
        let words = UnsafeRawPointer(base + Int(place))
        var sum: UInt64 = 0
        var all: UInt64 = 0
        for offset in stride(from: 0, to: Int(Self.pageSize), by: 8) {
            let word = words.load(fromByteOffset: offset, as: UInt64.self)
            all |= word
            sum = Self.mix(sum ^ word)
        }
        if all != 0 { hash = Self.mix(hash ^ Self.mix(sum ^ place)) }
    }

    /// A step of SplitMix64.
    private static func mix(_ value: UInt64) -> UInt64 {
        var z = value &+ 0x9E37_79B9_7F4A_7C15
        z = (z ^ z >> 30) &* 0xBF58_476D_1CE4_E5B9
        z = (z ^ z >> 27) &* 0x94D0_49BB_1331_11EB
        return z ^ z >> 31
    }
}
