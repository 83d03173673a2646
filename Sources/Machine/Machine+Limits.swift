// How fast a guest may use its disks and networks, changed while it runs.
internal import DeviceModel
internal import Devices

extension Machine {
    /// Changes the limits of every disk at once; drives have none.
    public func changeDiskLimits(_ body: (inout DiskLimits) -> Void) { backends.disks.changeLimits(body) }

    /// Changes the limits of every network card at once; nil is no limit.
    public func changeNetworkLimits(_ body: (inout NetworkLimit?) -> Void) {
        for card in backends.cards {
            var limit = card.limit.map { NetworkLimit(rate: $0.rate, burst: $0.burst / 8) }
            body(&limit)
            card.setLimit(limit.map { TokenBucket($0, now: door.now) })
        }
    }
}

extension TokenBucket {
    /// A full bucket of bits.
    init(_ limit: NetworkLimit, now: UInt64) {
        let (bits, overflow) = limit.burst.multipliedReportingOverflow(by: 8)
        self.init(rate: limit.rate, burst: overflow ? .max : bits, now: now)
    }
}
