// The host's time-stamp counter against its monotonic clock.
internal import CHost
internal import CPU
internal import HostOS
internal import Synchronization

extension Machine {
    /// Begins what the first machine of a process would wait for: the processor's counter is measured over 4 ms, and a
    /// thread makes the decoder's tables.
    public static func prepareProcess() {
        _ = HostTSC.first
        // Without a thread they are made when they are needed.
        try? HostThread.detached(name: "roost-tables") { InstructionTable.prepare() }
    }
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

    /// The counter at a time of the host's monotonic clock that was just now; nil: now.
    static func counter(at time: UInt64?) -> UInt64 {
        let now = sample()
        guard let time else { return now.tsc }
        let passed = now.time.subtractingReportingOverflow(time)
        if passed.overflow { return now.tsc }
        let ticks = passed.partialValue.multipliedFullWidth(by: frequency)
        return now.tsc &- (ticks.high < 1_000_000_000 ? (1_000_000_000 as UInt64).dividingFullWidth(ticks).quotient : 0)
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
