// Limits on how much and how often a disk is used.

/// A limit with a burst: tokens come at a rate, and a bucket holds a second's worth.
///
/// A request takes what it needs as soon as the bucket isn't in debt, so that one larger than the bucket passes too; the
/// next waits until the debt is paid.
package struct TokenBucket: Sendable {
    /// Tokens a second.
    package let rate: UInt64
    private var tokens: Double
    private var last: UInt64

    /// A full bucket at a time in nanoseconds.
    package init(rate: UInt64, now: UInt64) {
        self.rate = max(1, rate)
        tokens = Double(max(1, rate))
        last = now
    }

    /// Takes tokens; returns how many nanoseconds to wait before going on.
    package mutating func take(_ count: UInt64, now: UInt64) -> UInt64 {
        let passed = now > last ? now - last : 0
        last = max(last, now)
        tokens = min(Double(rate), tokens + Double(passed) * Double(rate) / 1e9)
        let debt = -tokens
        tokens -= Double(count)
        return debt <= 0 ? 0 : UInt64(min(debt / Double(rate) * 1e9, 3600e9))
    }
}

/// What a disk may do in a second; 0 is no limit.
public struct DiskLimits: Sendable, Equatable {
    /// Requests.
    public var operations: UInt64 = 0
    /// Bytes read and written.
    public var bytes: UInt64 = 0

    /// No limits.
    public init() {}
}
