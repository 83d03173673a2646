// Little-endian fields in byte arrays: checked reads from images, appends and patches for tables.

extension Array where Element == UInt8 {
    /// The little-endian number at `offset`, or nil beyond the end.
    package func little<T: FixedWidthInteger & UnsignedInteger>(_ offset: Int, as type: T.Type = T.self) -> T? {
        let size = T.bitWidth / 8
        guard offset >= 0, offset <= count, size <= count - offset else { return nil }
        var value: T = 0
        for i in 0..<size { value |= T(truncatingIfNeeded: self[offset + i]) << T(8 * i) }
        return value
    }

    /// Appends a number in little-endian order.
    package mutating func append<T: FixedWidthInteger & UnsignedInteger>(little value: T) {
        for i in 0..<(T.bitWidth / 8) { append(UInt8(truncatingIfNeeded: value >> T(8 * i))) }
    }

    /// Overwrites a number in little-endian order; the array is grown where it is too short.
    package mutating func put<T: FixedWidthInteger & UnsignedInteger>(little value: T, at offset: Int) {
        let size = T.bitWidth / 8
        if count < offset + size { append(contentsOf: repeatElement(0, count: offset + size - count)) }
        for i in 0..<size { self[offset + i] = UInt8(truncatingIfNeeded: value >> T(8 * i)) }
    }

    /// Overwrites bytes; the array is grown where it is too short.
    package mutating func put(_ bytes: [UInt8], at offset: Int) {
        if count < offset + bytes.count { append(contentsOf: repeatElement(0, count: offset + bytes.count - count)) }
        replaceSubrange(offset..<(offset + bytes.count), with: bytes)
    }
}

extension UInt64 {
    /// The next multiple of `alignment` (a power of two), saturating at the last one.
    package func roundedUp(to alignment: UInt64) -> UInt64 {
        let (sum, overflow) = addingReportingOverflow(alignment &- 1)
        return (overflow ? UInt64.max : sum) & ~(alignment &- 1)
    }
}

/// A size in the unit that reads best.
package func sizeInWords(_ bytes: UInt64) -> String {
    switch bytes {
    case 0..<1024: return "\(bytes) bytes"
    case 1024..<(1 << 20): return "\((bytes + 1023) >> 10) KiB"
    default: return "\((bytes + (1 << 20) - 1) >> 20) MiB"
    }
}
