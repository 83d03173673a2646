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

    func send(_ packet: [UInt8]) -> Bool {
        guard port.send(packet) else { return false }
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
    ) throws(MachineError) -> [NetworkPort] {
        var ports: [NetworkPort] = []
        for (index, network) in configuration.networks.enumerated() {
            let address = network.macAddress ?? NetworkConfiguration.address(of: index, configuration)
            let port: NetworkPort
            do {
                let capture = try network.capture.map { path throws(NetworkError) in try PacketCapture(path: path) }
                port = NetworkPort(try link(network.kind, index: index, address: address), capture: capture)
            } catch {
                throw MachineError(error.code == .portInUse ? .port : .network, error.description)
            }
            let limit = network.limit.map { limit in
                let (bits, overflow) = limit.burst.multipliedReportingOverflow(by: 8)
                return TokenBucket(rate: limit.rate, burst: overflow ? .max : bits, now: door.now)
            }
            let card = VirtioNet(macAddress: address, door: door, backend: PortBackend(port, traffic), limit: limit)
            try add(card)
            do {
                try port.start(
                    deliver: { [weak card, traffic] packet in
                        traffic.addReceived(max(0, packet.count - OffloadHeader.length))
                        card?.receive(packet)
                    }, resume: { [weak card] in card?.resume() })
            } catch {
                throw MachineError(.network, error.description)
            }
            ports.append(port)
        }
        return ports
    }

    private func link(_ kind: NetworkKind, index: Int, address: [UInt8]) throws(NetworkError) -> any NetworkLink {
        switch kind {
        case .user(let forwards):
            return try UserNetwork(
                forwards: forwards.map {
                    PortForward($0.isUDP ? .udp : .tcp, hostPort: $0.hostPort, guestPort: $0.guestPort)
                }, subnet: UInt8(truncatingIfNeeded: 2 + index))
        case .tap(let interface, let bridge): return try TapNetwork(interface: interface, bridge: bridge)
        case .virtualSwitch(let name): return try SwitchNetwork(network: name, address: address)
        }
    }
}
