import DeviceModel
import Testing

private let second: UInt64 = 1_000_000_000

@Suite struct TokenBucketTests {
    @Test func `a full bucket gives its burst at once, then makes wait`() {
        var bucket = TokenBucket(rate: 1000, burst: 100)
        for _ in 0..<10 { #expect(bucket.take(10, now: 0) == nil) }
        #expect(bucket.take(10, now: 0) == 1_000_000)
        #expect(bucket.take(10, now: 999_999) == 1_000_000)
        #expect(bucket.take(10, now: 1_000_000) == nil)
        // Nine in debt: ten units, ten milliseconds, until there is one again.
        #expect(bucket.take(1, now: 1_000_000) == 11_000_000)
    }

    @Test func `what is larger than the bucket passes, and is paid for afterwards`() {
        var bucket = TokenBucket(rate: 1000, burst: 10)
        #expect(bucket.take(5010, now: 0) == nil)
        #expect(bucket.take(1, now: 0) == 5 * second + 1_000_000)
        #expect(bucket.take(1, now: 5 * second) != nil)
        #expect(bucket.take(1, now: 5 * second + 1_000_000) == nil)
    }

    @Test func `a pause fills it up to the burst and no further`() {
        var bucket = TokenBucket(rate: 1000, burst: 10)
        #expect(bucket.take(10, now: 0) == nil)
        #expect(bucket.take(10, now: 3600 * second) == nil)
        #expect(bucket.take(1, now: 3600 * second) != nil)
    }

    @Test(arguments: [(3, 7), (1_000_000, 1500), (999_999_937, 65536)] as [(UInt64, UInt64)])
    func `the rate holds in the long run, whatever the steps`(rate: UInt64, amount: UInt64) {
        var bucket = TokenBucket(rate: rate, burst: 1)
        var now: UInt64 = 0
        var taken: UInt64 = 0
        for _ in 0..<2000 {
            if let next = bucket.take(amount, now: now) {
                #expect(next > now)
                now = next
            } else {
                taken += amount
            }
        }
        let (high, low) = now.multipliedFullWidth(by: rate)
        let allowed = second.dividingFullWidth((high, low)).quotient
        #expect(taken <= allowed + amount + 1)
        #expect(taken + amount + 1 >= allowed)
    }

    @Test func `extreme numbers and a clock that stands or goes back don't trap`() {
        for rate in [0, 1, UInt64.max] {
            for burst in [0, 1, UInt64.max] {
                var bucket = TokenBucket(rate: rate, burst: burst, now: 5)
                for now in [0, 5, 4, 1 << 40, UInt64.max, 0] as [UInt64] {
                    for amount in [0, 1, 1 << 61, UInt64.max] as [UInt64] { _ = bucket.take(amount, now: now) }
                }
            }
        }
    }
}
