// A network card as an interface of the host.
internal import HostOS
internal import Synchronization

/// A TAP interface, alone or in a bridge. Where the kernel knows virtio's header it does what is left to do on a packet.
public final class TapNetwork: NetworkLink {
    private let device: TapDevice
    private let queue: PacketQueue
    private let offloads: LinkOffloads

    /// So many queues an interface has at most.
    public static let mostQueues = 8

    /// Opens or makes an interface and so many queues of it: the kernel sends packets of a connection to the queue by which
    /// the last one of it came.
    ///
    /// - Spec: Linux, Documentation/networking/tuntap.rst, "Multiqueue tuntap interface"
    public static func open(
        interface: String?, bridge: String?, queues: Int
    ) throws(NetworkError) -> [TapNetwork] {
        let several = queues > 1
        let first = try TapNetwork(interface: interface, bridge: bridge, severalQueues: several)
        var all = [first]
        while all.count < queues { all.append(try TapNetwork(interface: first.name, severalQueues: several)) }
        return all
    }

    /// Opens or makes an interface, puts it into a bridge if one is named, and switches it on.
    public init(interface: String? = nil, bridge: String? = nil, severalQueues: Bool = false) throws(NetworkError) {
        for name in [interface, bridge].compactMap(\.self) {
            guard Self.isName(name) else {
                throw NetworkError(.badName, "network: \(name) can't be an interface's name")
            }
        }
        do {
            device = try TapDevice(name: interface, severalQueues: severalQueues)
            if let bridge { try device.join(bridge: bridge) }
            try device.bringUp()
            queue = try PacketQueue()
        } catch {
            throw Self.explain(error, interface, severalQueues)
        }
        offloads = device.hasOffloadHeader ? [.checksum, .tcp4, .tcp6] : []
    }

    deinit { stop() }

    /// The interface's name.
    public var name: String { device.name }

    private static func isName(_ name: String) -> Bool {
        !name.isEmpty && name.utf8.count <= TapDevice.longestName && name != "." && name != ".."
            && name.utf8.allSatisfy { $0 > 32 && $0 < 127 && $0 != UInt8(ascii: "/") && $0 != UInt8(ascii: "%") }
    }

    private static func explain(_ error: HostError, _ interface: String?, _ severalQueues: Bool) -> NetworkError {
        let name = interface ?? "tap0"
        switch error.errno {
        case HostErrorNumber.notPermitted, HostErrorNumber.accessDenied:
            return NetworkError(
                .needsPrivileges,
                "network: \(error): a TAP interface needs CAP_NET_ADMIN, or one made for you: "
                    + "sudo ip tuntap add \(name) mode tap user $USER && sudo ip link set \(name) up, then ifname=\(name)"
            )
        case HostErrorNumber.notFound, HostErrorNumber.noDevice:
            let hint = error.operation.contains("/dev/net/tun") ? ": load the kernel's module tun (modprobe tun)" : ""
            return NetworkError(.host, "network: \(error)\(hint)")
        case HostErrorNumber.invalid where interface != nil:
            let kind = severalQueues ? "one queue" : "several queues"
            return NetworkError(
                .host, "network: \(error): was \(name) made for \(kind)? queues= must fit (ip tuntap … multi_queue)")
        case HostErrorNumber.busy:
            return NetworkError(.host, "network: \(name) is in use by another process")
        default: return NetworkError(.host, "network: \(error)")
        }
    }

    /// Starts moving packets: one thread reads, the guest's are written at once.
    public func start(
        deliver: @escaping @Sendable ([UInt8]) -> Void, resume: @escaping @Sendable () -> Void
    ) throws(NetworkError) {
        let device = device
        let queue = queue
        do {
            queue.keep(try HostThread(name: "roost-tap") { Self.run(device, queue, deliver) })
        } catch { throw NetworkError(.host, "network: \(error)") }
    }

    private static func run(_ device: TapDevice, _ queue: PacketQueue, _ deliver: @Sendable ([UInt8]) -> Void) {
        var buffer = [UInt8](repeating: 0, count: PacketFinisher.longestPacket)
        let header = device.hasOffloadHeader ? [] : OffloadHeader().bytes
        while queue.take() != nil {
            let (isReady, isWoken) = FileDescriptor.waitForInput(device.descriptor.rawValue, queue.wake.rawValue)
            if isWoken { queue.wake.drain() }
            guard isReady else { continue }
            do throws(HostError) {
                var left = 256
                while left > 0, case let count = try device.read(into: &buffer), count > 0 {
                    left -= 1
                    deliver(header + buffer[..<count])
                }
            } catch {
                if !queue.isStopped { Terminal.note("roost: network: \(error); that card's cable leads nowhere now") }
                return
            }
        }
    }

    /// The kernel leaves to the guest what the guest takes.
    public func setGuestOffloads(_ offloads: LinkOffloads) {
        device.setOffloads(
            checksum: offloads.contains(.checksum), tcp4: offloads.contains(.tcp4), tcp6: offloads.contains(.tcp6))
    }

    /// A packet from the guest, on any thread.
    public func send(_ packet: [UInt8]) -> Bool {
        let start = device.hasOffloadHeader ? 0 : OffloadHeader.length
        for packet in PacketFinisher.finish(packet, for: offloads) { device.write(packet, from: start) }
        return true
    }

    /// Ends the thread and with it all traffic; not to be called by `deliver`.
    public func stop() { queue.stop() }
}
