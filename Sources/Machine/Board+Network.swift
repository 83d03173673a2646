// Network cards and what they are plugged into.
internal import DeviceModel
internal import Devices
internal import Network

/// A port as a card's backend.
private final class PortBackend: NetworkBackend {
    private let port: NetworkPort
    private let traffic: Traffic

    init(_ port: NetworkPort, _ traffic: Traffic) {
        self.port = port
        self.traffic = traffic
    }

    func send(_ packet: [UInt8], queue: Int) -> Bool {
        guard port.send(packet, queue: queue) else { return false }
        traffic.addSent(max(0, packet.count - OffloadHeader.length))
        return true
    }

    func agreed(to features: VirtioNetFeatures) {
        var offloads: LinkOffloads = []
        if features.contains(.guestChecksum) {
            offloads.insert(.checksum)
            if features.contains(.guestTCP4) { offloads.insert(.tcp4) }
            if features.contains(.guestTCP6) { offloads.insert(.tcp6) }
        }
        port.setGuestOffloads(offloads)
    }
}

extension Board {
    /// Makes the cards of a configuration and plugs them in.
    func connectNetworks(
        _ configuration: MachineConfiguration, door: any Door
    ) throws(MachineError) -> ([NetworkPort], [VirtioNet]) {
        var ports: [NetworkPort] = []
        var cards: [VirtioNet] = []
        for (index, network) in configuration.networks.enumerated() {
            let address = network.macAddress ?? NetworkConfiguration.address(of: index, configuration)
            let port: NetworkPort
            do {
                let capture = try network.capture.map { path throws(NetworkError) in try PacketCapture(path: path) }
                port = NetworkPort(try links(network.kind, index: index, address: address), capture: capture)
            } catch {
                throw MachineError(error.code == .portInUse ? .port : .network, error.description)
            }
            let card = VirtioNet(
                macAddress: address, door: door, backend: PortBackend(port, traffic), pairs: network.kind.queues,
                limit: network.limit.map { TokenBucket($0, now: door.now) })
            try add(card)
            do {
                try port.start(
                    deliver: { [weak card, traffic] packet, queue in
                        traffic.addReceived(max(0, packet.count - OffloadHeader.length))
                        card?.receive(packet, queue: queue)
                    }, resume: { [weak card] in card?.resume() })
            } catch {
                throw MachineError(.network, error.description)
            }
            ports.append(port)
            cards.append(card)
        }
        return (ports, cards)
    }

    /// What a card is plugged into, once for each of its pairs of queues.
    private func links(_ kind: NetworkKind, index: Int, address: [UInt8]) throws(NetworkError) -> [any NetworkLink] {
        switch kind {
        case .user(let forwards):
            return [
                try UserNetwork(forwards: forwards.map(PortForward.init), subnet: UInt8(truncatingIfNeeded: 2 + index))
            ]
        case .passt(let forwards): return [try PasstNetwork(forwards: forwards.map(PortForward.init))]
        case .tap(let interface, let bridge, let queues):
            return try TapNetwork.open(interface: interface, bridge: bridge, queues: queues)
        case .virtualSwitch(let name): return [try SwitchNetwork(network: name, address: address)]
        case .vhostUser(let path, let listens): return [try VhostUserNetwork(path: path, listens: listens)]
        }
    }
}

extension PortForward {
    /// As a machine's configuration has it.
    init(_ forward: ForwardConfiguration) {
        self.init(forward.isUDP ? .udp : .tcp, hostPort: forward.hostPort, guestPort: forward.guestPort)
    }
}

extension Machine {
    /// Opens a port of the host's loopback interface that leads to the guest, while the machine runs or not.
    ///
    /// `card` counts the configuration's networks; that one must be a user-mode network.
    public func addForward(_ forward: ForwardConfiguration, card: Int = 0) throws(MachineError) {
        try withPort(card) { (port) throws(NetworkError) in try port.add(PortForward(forward)) }
    }

    /// Closes such a port; connections that lead through it stay.
    public func removeForward(_ forward: ForwardConfiguration, card: Int = 0) throws(MachineError) {
        try withPort(card) { (port) throws(NetworkError) in try port.remove(PortForward(forward)) }
    }

    private func withPort(_ card: Int, _ body: (NetworkPort) throws(NetworkError) -> Void) throws(MachineError) {
        guard backends.ports.indices.contains(card) else {
            throw MachineError(.network, "network: there is no card \(card)")
        }
        do throws(NetworkError) {
            try body(backends.ports[card])
        } catch { throw MachineError(error.code == .portInUse ? .port : .network, error.description) }
    }
}
