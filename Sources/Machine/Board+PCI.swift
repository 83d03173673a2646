// What sits on the PCI bus.
//
//   slot  device
//   0     host bridge
//   1…    virtio disks, in the order of the command line
//   then  virtio network cards, in the order of the command line, entropy, balloon, console (hvc0, for output only),
//         sockets
package import DeviceModel
internal import Devices
internal import GuestMemory
internal import Network
internal import Storage

/// What the board's devices stand on, kept as long as the machine.
package struct Backends: Sendable {
    var ports: [NetworkPort] = []
    var balloon: VirtioBalloon?
    var sockets: VsockEndpoint?
}

extension Board {
    /// Makes the devices of a configuration and puts them on the bus.
    package func connect(_ configuration: MachineConfiguration, door: any Door) throws(MachineError) -> Backends {
        var backends = Backends()
        for (index, disk) in configuration.disks.enumerated() {
            // Requests are done at once where time is virtual: they finish at the instruction that made them.
            let worker: any Worker = configuration.clock == .virtual ? InlineWorker() : QueueWorker(name: "roost.block")
            try add(
                VirtioBlock(
                    backend: try DiskBackend.open(disk, traffic), door: door, identifier: "disk\(index)", worker: worker
                ))
        }
        backends.ports = try connectNetworks(configuration, door: door)
        try add(VirtioEntropy(door: door))
        let balloon = VirtioBalloon(wanted: configuration.balloon)
        try add(balloon)
        backends.balloon = balloon
        try add(VirtioConsole(door: door, output: output))
        backends.sockets = try connectSockets(configuration, door: door)
        return backends
    }

    func add(_ device: any VirtioDevice) throws(MachineError) {
        guard bridge.add(VirtioPCI(device: device, memory: memory)) != nil else {
            throw MachineError(.host, "more devices than the PCI bus has slots (31)")
        }
    }
}
