// How fast a guest may use a disk.
internal import DeviceModel
internal import HostOS
internal import Synchronization

/// What a disk may do in a second; 0 is no limit.
public struct DiskLimits: Sendable, Equatable {
    /// Requests.
    public var operations: UInt64 = 0
    /// Bytes read and written.
    public var bytes: UInt64 = 0

    /// No limits.
    public init() {}
}

/// Has requests wait their turn, on the thread that makes them. A second's worth passes at once after a pause.
final class DiskThrottle: Sendable {
    private struct Buckets: Sendable {
        var operations: TokenBucket?
        var bytes: TokenBucket?
    }

    /// Nanoseconds after which who waits looks whether the limits are still there.
    private static let longestSleep: UInt64 = 100_000_000

    private let buckets: Mutex<Buckets>

    /// Nil where nothing is limited.
    init?(_ limits: DiskLimits) {
        if limits == DiskLimits() { return nil }
        func bucket(_ rate: UInt64) -> TokenBucket? {
            rate == 0 ? nil : TokenBucket(rate: rate, burst: rate, now: HostClock.monotonic)
        }
        buckets = Mutex(Buckets(operations: bucket(limits.operations), bytes: bucket(limits.bytes)))
    }

    /// Nobody waits here any more.
    func lift() { buckets.withLock { $0 = Buckets() } }

    /// Waits until a request of some bytes may go on.
    func wait(_ bytes: UInt64) {
        wait { $0.operations?.take(1, now: $1) }
        if bytes > 0 { wait { $0.bytes?.take(bytes, now: $1) } }
    }

    private func wait(_ take: (inout Buckets, UInt64) -> UInt64?) {
        while true {
            let now = HostClock.monotonic
            guard let next = buckets.withLock({ take(&$0, now) }) else { return }
            HostClock.sleep(nanoseconds: next > now ? min(next - now, Self.longestSleep) : 1)
        }
    }
}
