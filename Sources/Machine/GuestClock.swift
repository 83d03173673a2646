// The host's time-stamp counter against its monotonic clock.
internal import CHost
internal import HostOS
internal import Synchronization

extension Machine {
    /// Begins to measure the processor's counter: a machine that is made 4 ms later needn't wait for it.
    public static func beginMeasuringTime() { _ = HostTSC.first }
}

/// The frequency of the host's time-stamp counter.
enum HostTSC {
    /// A pair of readings taken as close together as the host allows.
    static func sample() -> (tsc: UInt64, time: UInt64) {
        var best: (tsc: UInt64, time: UInt64) = (0, 0)
        var width = UInt64.max
        for _ in 0..<8 {
            let before = roost_read_tsc()
            let time = HostClock.monotonic
            let after = roost_read_tsc()
            if after &- before < width {
                width = after &- before
                best = (before &+ width / 2, time)
            }
        }
        return best
    }

    /// The first pair.
    static let first = sample()

    /// Ticks a second, measured once over 4 ms or more: one part in a million, three at worst, for both readings are late
    /// by as much.
    static let frequency: UInt64 = {
        let start = first
        while HostClock.monotonic &- start.time < 4_000_000 {}
        let end = sample()
        let ticks = (end.tsc &- start.tsc).multipliedFullWidth(by: 1_000_000_000)
        let time = max(1, end.time &- start.time)
        return ticks.high < time ? time.dividingFullWidth(ticks).quotient : 1_000_000_000
    }()
}
