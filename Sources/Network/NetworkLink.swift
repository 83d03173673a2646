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
    /// Opens a port of the host that leads to the guest.
    func add(_ forward: PortForward) throws(NetworkError)
    /// Closes it.
    func remove(_ forward: PortForward) throws(NetworkError)
    /// Ends all traffic; not to be called by `deliver`.
    func stop()
}

extension NetworkLink {
    /// Nothing: the port sees to it.
    public func setGuestOffloads(_ offloads: LinkOffloads) {}
    /// Refused.
    public func add(_ forward: PortForward) throws(NetworkError) {
        throw NetworkError(.noForward, "forward \(forward): this kind of network takes none while it is in use")
    }
    /// Refused.
    public func remove(_ forward: PortForward) throws(NetworkError) {
        throw NetworkError(.noForward, "forward \(forward): this kind of network takes none while it is in use")
    }
}

/// Where a guest's card meets its link: captures what passes, and hands the guest what it can take.
///
/// A card with several queues has a link for each.
public final class NetworkPort: Sendable {
    private let links: [any NetworkLink]
    private let capture: PacketCapture?
    private let offloads = Mutex(LinkOffloads())

    /// A port of one link, or of as many as the card has queues.
    public init(_ links: [any NetworkLink], capture: PacketCapture? = nil) {
        self.links = links
        self.capture = capture
    }

    /// Starts moving packets; each comes with the number of its queue.
    public func start(
        deliver: @escaping @Sendable ([UInt8], Int) -> Void, resume: @escaping @Sendable () -> Void
    ) throws(NetworkError) {
        for (queue, link) in links.enumerated() {
            try link.start(
                deliver: { [weak self] packet in
                    guard let self else { return }
                    capture?.add(packet)
                    let taken = offloads.withLock { $0 }
                    for packet in PacketFinisher.finish(packet, for: taken) { deliver(packet, queue) }
                }, resume: resume)
        }
    }

    /// What the guest takes.
    public func setGuestOffloads(_ taken: LinkOffloads) {
        offloads.withLock { $0 = taken }
        for link in links { link.setGuestOffloads(taken) }
    }

    /// A packet of the guest's, from one of its queues.
    public func send(_ packet: [UInt8], queue: Int) -> Bool {
        guard links.indices.contains(queue), links[queue].send(packet) else { return false }
        capture?.add(packet)
        return true
    }

    /// Opens a port of the host that leads to the guest.
    public func add(_ forward: PortForward) throws(NetworkError) { try links.first?.add(forward) }

    /// Closes it.
    public func remove(_ forward: PortForward) throws(NetworkError) { try links.first?.remove(forward) }

    /// Ends all traffic.
    public func stop() { for link in links { link.stop() } }
}
