// What a network card of a guest is plugged into.
internal import Synchronization

/// The other end of a guest's cable; packets as `OffloadHeader` describes them.
public protocol NetworkLink: AnyObject, Sendable {
    /// Starts moving packets, and calls on threads of its own: `deliver` with each for the guest, `resume` when there is
    /// room again after `send` found none.
    func start(
        deliver: @escaping @Sendable ([UInt8]) -> Void, resume: @escaping @Sendable () -> Void
    ) throws(NetworkError)
    /// What the guest takes.
    func setGuestOffloads(_ offloads: LinkOffloads)
    /// A packet of the guest's, on any thread; false if there is no room, and `resume` tells when there is.
    func send(_ packet: [UInt8]) -> Bool
    /// Ends all traffic; not to be called by `deliver`.
    func stop()
}

extension NetworkLink {
    /// Nothing: the port sees to it.
    public func setGuestOffloads(_ offloads: LinkOffloads) {}
}

/// Where a guest's card meets its link: captures what passes, and hands the guest what it can take.
public final class NetworkPort: Sendable {
    private let link: any NetworkLink
    private let capture: PacketCapture?
    private let offloads = Mutex(LinkOffloads())

    /// A port of a link.
    public init(_ link: any NetworkLink, capture: PacketCapture? = nil) {
        self.link = link
        self.capture = capture
    }

    /// Starts moving packets.
    public func start(
        deliver: @escaping @Sendable ([UInt8]) -> Void, resume: @escaping @Sendable () -> Void
    ) throws(NetworkError) {
        try link.start(
            deliver: { [weak self] packet in
                guard let self else { return }
                capture?.add(packet)
                let taken = offloads.withLock { $0 }
                for packet in PacketFinisher.finish(packet, for: taken) { deliver(packet) }
            }, resume: resume)
    }

    /// What the guest takes.
    public func setGuestOffloads(_ taken: LinkOffloads) {
        offloads.withLock { $0 = taken }
        link.setGuestOffloads(taken)
    }

    /// A packet of the guest's.
    public func send(_ packet: [UInt8]) -> Bool {
        guard link.send(packet) else { return false }
        capture?.add(packet)
        return true
    }

    /// Ends all traffic.
    public func stop() { link.stop() }
}
