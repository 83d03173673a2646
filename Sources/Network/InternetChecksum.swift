// The Internet's checksum: the one's complement of the one's complement sum of big-endian halves (RFC 1071).

/// Sums and checksums over parts of a packet.
package enum InternetChecksum {
    /// The folded sum of a range, which is cut to what there is; an odd byte counts as if a zero followed.
    ///
    /// The sum of words in the host's order is the sum in network order with its bytes swapped (RFC 1071, 2(B)).
    package static func sum(_ bytes: [UInt8], _ range: Range<Int>) -> UInt16 {
        let range = range.clamped(to: 0..<bytes.count)
        let total: UInt64 = unsafe bytes.withUnsafeBytes { buffer in
            // SAFETY: each load lies within the range, which lies within the buffer.
            var total: UInt64 = 0
            var place = range.lowerBound
            while range.upperBound &- place >= 8 {
                let word = unsafe buffer.loadUnaligned(fromByteOffset: place, as: UInt64.self)
                total &+= word & 0xFFFF_FFFF
                total &+= word >> 32
                place &+= 8
            }
            while range.upperBound &- place >= 2 {
                total &+= UInt64(unsafe buffer.loadUnaligned(fromByteOffset: place, as: UInt16.self))
                place &+= 2
            }
            if place < range.upperBound { total &+= UInt64(unsafe buffer[place]) }
            return total
        }
        return fold(total).byteSwapped
    }

    /// A sum with its carries added back in.
    static func fold(_ sum: UInt64) -> UInt16 {
        var sum = sum
        while sum >> 16 != 0 { sum = (sum & 0xFFFF) &+ (sum >> 16) }
        return UInt16(truncatingIfNeeded: sum)
    }

    /// One sum of several.
    static func fold(_ sums: UInt16...) -> UInt16 { fold(sums.reduce(UInt64(0)) { $0 &+ UInt64($1) }) }
}

extension [UInt8] {
    /// The big-endian half at an offset that was checked.
    package func bigHalf(_ offset: Int) -> UInt16 { UInt16(self[offset]) << 8 | UInt16(self[offset + 1]) }

    /// The big-endian word at an offset that was checked.
    package func bigWord(_ offset: Int) -> UInt32 { UInt32(bigHalf(offset)) << 16 | UInt32(bigHalf(offset + 2)) }

    /// Stores a big-endian half.
    mutating func setBigHalf(_ offset: Int, _ value: UInt16) {
        self[offset] = UInt8(truncatingIfNeeded: value >> 8)
        self[offset + 1] = UInt8(truncatingIfNeeded: value)
    }

    /// Stores a big-endian word.
    mutating func setBigWord(_ offset: Int, _ value: UInt32) {
        setBigHalf(offset, UInt16(truncatingIfNeeded: value >> 16))
        setBigHalf(offset + 2, UInt16(truncatingIfNeeded: value))
    }
}
