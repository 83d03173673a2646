// A user-mode network: libslirp on a thread of its own.
//
// The guest sees 10.0.2.0/24 (its second card 10.0.3.0/24, and so on): gateway 10.0.2.2, DNS 10.0.2.3, itself 10.0.2.15 by DHCP. No privilege is needed.
internal import HostOS

/// A network behind address translation in this process.
public final class UserNetwork: NetworkLink {
    private let queue: PacketQueue
    private let stack: SlirpStack

    /// Sets up the network 10.0.`subnet`.0/24 and opens the forwarded ports; nothing moves before `start`.
    public init(forwards: [PortForward] = [], subnet: UInt8 = 2) throws(NetworkError) {
        do { queue = try PacketQueue() } catch { throw NetworkError(.host, "network: \(error)") }
        stack = try SlirpStack(wake: queue.wake.rawValue, subnet: subnet)
        for forward in forwards { try stack.add(forward) }
    }

    deinit { stop() }

    /// Starts moving packets, on a thread.
    public func start(
        deliver: @escaping @Sendable ([UInt8]) -> Void, resume: @escaping @Sendable () -> Void
    ) throws(NetworkError) {
        let stack = stack
        let queue = queue
        do {
            queue.keep(try HostThread(name: "roost-network") { stack.run(queue, deliver, resume) })
        } catch { throw NetworkError(.host, "network: \(error)") }
    }

    /// Opens a port, at any time.
    public func add(_ forward: PortForward) throws(NetworkError) {
        try stack.perform(queue) { stack throws(NetworkError) in try stack.add(forward) }
    }

    /// Closes a port, at any time; connections through it stay.
    public func remove(_ forward: PortForward) throws(NetworkError) {
        try stack.perform(queue) { stack throws(NetworkError) in try stack.remove(forward) }
    }

    /// Segments are joined if the guest takes them so.
    public func setGuestOffloads(_ offloads: LinkOffloads) { queue.offloads = offloads }

    /// A packet from the guest, on any thread.
    public func send(_ packet: [UInt8]) -> Bool { queue.add(packet) }

    /// Ends the thread and with it all traffic; not to be called by `deliver`.
    public func stop() { queue.stop() }
}
