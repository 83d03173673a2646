// Host time.
internal import Glibc

/// The host's clocks.
public enum HostClock {
    /// Nanoseconds of `CLOCK_MONOTONIC`.
    public static var monotonic: UInt64 { read(CLOCK_MONOTONIC) }

    /// Nanoseconds since 1970 of `CLOCK_REALTIME`.
    public static var realTime: UInt64 { read(CLOCK_REALTIME) }

    /// Lets the thread sleep.
    public static func sleep(nanoseconds: UInt64) {
        var left = timespec(tv_sec: Int(nanoseconds / 1_000_000_000), tv_nsec: Int(nanoseconds % 1_000_000_000))
        var rest = timespec()
        while nanosleep(&left, &rest) != 0 && errno == EINTR { left = rest }
    }

    private static func read(_ clock: clockid_t) -> UInt64 {
        var time = timespec()
        clock_gettime(clock, &time)
        return UInt64(time.tv_sec) &* 1_000_000_000 &+ UInt64(time.tv_nsec)
    }
}
