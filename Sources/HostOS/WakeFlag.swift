// A flag that a thread waits for.
internal import CHost
internal import Glibc
internal import Synchronization

/// A flag that one thread waits for and others raise; raising twice is raising once.
///
/// A thread that goes to sleep leaves its processor idle, and on a virtual host waking an idle one takes tens of
/// microseconds. So a thread that was woken soon the last time looks at the flag for a while first, letting others run; one
/// that slept longer doesn't.
public final class WakeFlag: Sendable {
    private let isRaised = Atomic(false)
    private let isAsleep = Atomic(false)
    private let lock = ConditionLock()
    /// Nanoseconds for which the flag is looked at before sleeping; the waiting thread's.
    private let window = Atomic<UInt64>(0)

    private static let shortest: UInt64 = 10_000
    /// Longer than this nobody looks, and who sleeps longer doesn't look the next time.
    private static let longest: UInt64 = 100_000

    /// A flag that is down.
    public init() {}

    /// Raises it.
    public func raise() {
        if isRaised.exchange(true, ordering: .sequentiallyConsistent) { return }
        if isAsleep.load(ordering: .sequentiallyConsistent) { lock.update {} }
    }

    /// Waits until it is raised, and lowers it.
    public func wait() {
        if lowers() { return }
        let begin = HostClock.monotonic
        let window = window.load(ordering: .relaxed)
        while window > 0 && HostClock.monotonic &- begin < window {
            for _ in 0..<16 { roost_pause() }
            if lowers() { return }
            sched_yield()
        }
        isAsleep.store(true, ordering: .sequentiallyConsistent)
        lock.wait(until: lowers)
        isAsleep.store(false, ordering: .relaxed)
        let wasSoon = HostClock.monotonic &- begin < Self.longest
        self.window.store(wasSoon ? min(max(2 * window, Self.shortest), Self.longest) : 0, ordering: .relaxed)
    }

    private func lowers() -> Bool {
        isRaised.load(ordering: .sequentiallyConsistent) && isRaised.exchange(false, ordering: .sequentiallyConsistent)
    }
}
