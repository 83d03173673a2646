// A token bucket: so much a second, and so much at once after a pause.

/// A limit on a rate, for whatever is counted: bits of a network, bytes or requests of a disk.
///
/// It knows no clock; whoever asks tells the time. Something larger than the bucket passes when the bucket isn't in debt,
/// and leaves it in debt, so that nothing is ever stuck and the rate holds in the long run.
public struct TokenBucket: Sendable, Equatable, Codable {
    /// Units a second.
    public let rate: UInt64
    /// Most units that gather.
    public let burst: UInt64
    private var balance: Int64
    /// Parts of a unit, in billionths.
    private var fraction: UInt64 = 0
    private var last: UInt64

    private static let second: UInt64 = 1_000_000_000
    /// Keeps sums and debts within 64 bits.
    private static let most = UInt64(1) << 61

    /// A full bucket at a time in nanoseconds; rate and burst are at least one.
    public init(rate: UInt64, burst: UInt64, now: UInt64 = 0) {
        self.rate = min(max(rate, 1), Self.most)
        self.burst = min(max(burst, 1), Self.most)
        balance = Int64(self.burst)
        last = now
    }

    /// Takes units, and returns nil; or takes nothing, and returns the time when to ask again.
    public mutating func take(_ amount: UInt64, now: UInt64) -> UInt64? {
        refill(now)
        if balance > 0 {
            balance = max(balance - Int64(min(amount, Self.most)), -Int64(Self.most))
            return nil
        }
        // The time until the balance is one, rounded up.
        let missing = UInt64(1 &- balance).multipliedFullWidth(by: Self.second)
        let (low, borrowed) = missing.low.subtractingReportingOverflow(fraction)
        let high = borrowed ? missing.high &- 1 : missing.high
        guard high < rate else { return now &+ Self.second &* 3600 }
        let (wait, rest) = rate.dividingFullWidth((high, low))
        let (deadline, overflow) = now.addingReportingOverflow(wait &+ (rest == 0 ? 0 : 1))
        return overflow ? .max : deadline
    }

    private mutating func refill(_ now: UInt64) {
        guard now > last else { return }
        let product = (now - last).multipliedFullWidth(by: rate)
        last = now
        let (low, carry) = product.low.addingReportingOverflow(fraction)
        let high = carry ? product.high &+ 1 : product.high
        let full = Int64(burst)
        guard high < Self.second else { return fill() }
        let (units, rest) = Self.second.dividingFullWidth((high, low))
        guard units < UInt64(full &- balance) else { return fill() }
        balance += Int64(units)
        fraction = rest
    }

    private mutating func fill() {
        balance = Int64(burst)
        fraction = 0
    }
}
