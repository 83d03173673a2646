/// An address in the guest-physical address space, in bytes.
public struct GuestPhysicalAddress: RawRepresentable, Hashable, Comparable, Sendable, Codable, CustomStringConvertible {
    /// The address as a number.
    public var rawValue: UInt64

    /// Wraps a number.
    @inlinable @inline(__always) public init(rawValue: UInt64) { self.rawValue = rawValue }

    /// Wraps a number.
    @inlinable @inline(__always) public init(_ rawValue: UInt64) { self.rawValue = rawValue }

    /// Orders by address.
    @inlinable public static func < (a: Self, b: Self) -> Bool { a.rawValue < b.rawValue }

    /// The address `offset` bytes further, wrapping at 2^64 as an adder does.
    @inlinable public static func + (a: Self, offset: UInt64) -> Self { Self(a.rawValue &+ offset) }

    /// Hexadecimal.
    public var description: String { "0x" + String(rawValue, radix: 16) }
}
