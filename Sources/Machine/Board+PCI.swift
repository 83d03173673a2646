// What sits on the PCI bus.
//
//   slot  device
//   0     host bridge
//   1…    virtio disks, in the order of the command line
//   then  virtio network, entropy, balloon, console (hvc0, for output only)
package import DeviceModel
internal import Devices
internal import GuestMemory
internal import Network
internal import Storage

/// What the board's devices stand on, kept as long as the machine.
package struct Backends: Sendable {
    var network: UserNetwork?
    var balloon: VirtioBalloon?
}

extension Board {
    /// Makes the devices of a configuration and puts them on the bus.
    package func connect(_ configuration: MachineConfiguration, door: any Door) throws(MachineError) -> Backends {
        var backends = Backends()
        for (index, disk) in configuration.disks.enumerated() {
            // Requests are done at once where time is virtual: they finish at the instruction that made them.
            let worker: any Worker = configuration.clock == .virtual ? InlineWorker() : QueueWorker(name: "roost.block")
            try add(
                VirtioBlock(backend: try DiskBackend.open(disk), door: door, identifier: "disk\(index)", worker: worker)
            )
        }
        if case .user(let forwards) = configuration.network {
            let network = try makeNetwork(forwards)
            let card = VirtioNet(macAddress: [0x52, 0x54, 0x00, 0x12, 0x34, 0x56], door: door) { network.send($0) }
            try add(card)
            do {
                try network.start { [weak card] in card?.receive($0) }
            } catch {
                throw MachineError(.network, "network: \(error)")
            }
            backends.network = network
        }
        try add(VirtioEntropy(door: door))
        let balloon = VirtioBalloon(wanted: configuration.balloon)
        try add(balloon)
        backends.balloon = balloon
        try add(VirtioConsole(door: door, output: output))
        return backends
    }

    private func add(_ device: any VirtioDevice) throws(MachineError) {
        guard bridge.add(VirtioPCI(device: device, memory: memory)) != nil else {
            throw MachineError(.host, "more devices than the PCI bus has slots (31)")
        }
    }

    private func makeNetwork(_ forwards: [ForwardConfiguration]) throws(MachineError) -> UserNetwork {
        do {
            return try UserNetwork(
                forwards: forwards.map {
                    PortForward($0.isUDP ? .udp : .tcp, hostPort: $0.hostPort, guestPort: $0.guestPort)
                })
        } catch {
            throw MachineError(error.code == .portInUse ? .port : .network, error.description)
        }
    }
}
