// Numbers in the bytes of headers and tables: reading past the end is an error, never a trap.

/// A header or table shorter than what it should hold.
struct TruncatedBytes: Error, CustomStringConvertible {
    var description: String { "a header or table is cut off" }
}

extension [UInt8] {
    /// The big-endian number at an index.
    func big<Number: FixedWidthInteger & UnsignedInteger>(_ type: Number.Type, _ at: Int) throws -> Number {
        let size = Number.bitWidth / 8
        guard at >= 0, at <= count - size else { throw TruncatedBytes() }
        var value: Number = 0
        for index in at..<at + size { value = value << 8 | Number(truncatingIfNeeded: self[index]) }
        return value
    }

    /// The little-endian number at an index.
    func little<Number: FixedWidthInteger & UnsignedInteger>(_ type: Number.Type, _ at: Int) throws -> Number {
        try big(type, at).byteSwapped
    }

    /// `count` bytes from an index.
    func part(_ at: Int, _ count: Int) throws -> [UInt8] {
        guard at >= 0, count >= 0, at <= self.count, count <= self.count - at else { throw TruncatedBytes() }
        return Array(self[at..<at + count])
    }

    /// Text from an index, up to `count` bytes or the first zero.
    func text(_ at: Int, _ count: Int) throws -> String {
        String(decoding: try part(at, count).prefix { $0 != 0 }, as: UTF8.self)
    }

    /// Appends a number, most significant byte first.
    mutating func appendBig<Number: FixedWidthInteger & UnsignedInteger>(_ value: Number) {
        for shift in stride(from: Number.bitWidth - 8, through: 0, by: -8) {
            append(UInt8(truncatingIfNeeded: value >> Number(shift)))
        }
    }

    /// Whether all in a range are zero.
    func isZero(_ range: Range<Int>) -> Bool {
        // Mostly the first byte decides; the rest goes by words.
        guard let first = self[range].first else { return true }
        if first != 0 { return false }
        var sum: UInt64 = 0
        let bytes = unsafe self.span.extracting(range).bytes
        var index = 0
        while index + 8 <= bytes.byteCount {
            // SAFETY: the eight bytes are inside the span, and any bits are a number.
            unsafe sum |= bytes.unsafeLoadUnaligned(fromByteOffset: index, as: UInt64.self)
            if sum != 0 { return false }
            index += 8
        }
        while index < bytes.byteCount {
            unsafe sum |= UInt64(bytes.unsafeLoad(fromByteOffset: index, as: UInt8.self))
            index += 1
        }
        return sum == 0
    }
}

extension [UInt64] {
    /// Numbers of a table stored most significant byte first.
    init(big bytes: [UInt8]) {
        let span = unsafe bytes.span.bytes
        self = (0..<bytes.count / 8).map { index in
            // SAFETY: the eight bytes are inside the span, and any bits are a number.
            unsafe span.unsafeLoadUnaligned(fromByteOffset: index * 8, as: UInt64.self).bigEndian
        }
    }

    /// Some of the numbers, most significant byte first.
    func big(_ range: Range<Int>) -> [UInt8] {
        var bytes: [UInt8] = []
        bytes.reserveCapacity(range.count * 8)
        for value in self[range] { bytes.appendBig(value) }
        return bytes
    }
}

/// `value` rounded up to a multiple of a power of two; nil if that overflows.
func roundUp(_ value: UInt64, to unit: UInt64) -> UInt64? {
    let (sum, overflow) = value.addingReportingOverflow(unit - 1)
    return overflow ? nil : sum & ~(unit - 1)
}
