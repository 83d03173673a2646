// What sits on the PCI bus.
//
//   slot  device
//   0     host bridge
//   1…    virtio disks, in the order of the command line
//   then  virtio network cards, in the order of the command line, entropy, balloon, console (hvc0, for output only),
//         sockets, the SCSI controller, shared folders, panic device, watchdog,
//         memory that comes and goes, mounted folders
package import DeviceModel
internal import Devices
internal import GuestMemory
internal import HostOS
internal import Network
internal import Storage

/// What the board's devices stand on, kept as long as the machine.
package struct Backends: Sendable {
    let disks: MachineDisks
    var ports: [NetworkPort] = []
    var cards: [VirtioNet] = []
    var balloon: VirtioBalloon?
    var memory: VirtioMemory?
    var sockets: VsockEndpoint?
    var mounts: MountedFolders?
}

extension Board {
    /// Makes the devices of a configuration and puts them on the bus.
    package func connect(
        _ configuration: MachineConfiguration, door: any Door,
        tell: @escaping @Sendable (MachineEvent) -> Void = { _ in }
    ) throws(MachineError) -> Backends {
        // Requests are done at once where time is virtual: they finish at the instruction that made them.
        let isVirtual = configuration.clock == .virtual
        let makeWorker: @Sendable () -> any Worker = {
            isVirtual ? InlineWorker() : WorkerThreads(name: "roost-disk")
        }
        var backends = Backends(disks: MachineDisks(door: door, traffic: traffic, makeWorker: makeWorker))
        for disk in configuration.disks {
            if disk.bus == .scsi {
                _ = try backends.disks.attach(disk)
                continue
            }
            let (name, backend) = try backends.disks.openVirtio(disk)
            try add(
                VirtioBlock(
                    backend: backend, door: door, identifier: name,
                    queues: disk.queues ?? min(configuration.processors, Self.mostDiskQueues),
                    server: isVirtual ? WorkerServer(InlineWorker()) : try Self.server(of: backend, disk)))
        }
        for path in configuration.drives { _ = try backends.disks.addDrive(path) }
        (backends.ports, backends.cards) = try connectNetworks(configuration, door: door)
        try add(VirtioEntropy(door: door))
        let balloon = VirtioBalloon(wanted: configuration.balloon, door: door)
        try add(balloon)
        backends.balloon = balloon
        try add(VirtioConsole(door: door, output: output))
        backends.sockets = try connectSockets(configuration, door: door)
        try add(backends.disks.controller)
        try connectFolders(configuration, door: door)
        try connectGuards(configuration, door: door, tell: tell)
        if !memory.plugRegion.isEmpty {
            let device = VirtioMemory(region: memory.plugRegion)
            device.request((configuration.wantedMemory ?? 0) &- min(memory.bootSize, configuration.wantedMemory ?? 0))
            try add(device)
            backends.memory = device
        }
        backends.mounts = try connectMounts(configuration, door: door)
        return backends
    }

    /// Who carries out a disk's requests.
    private static func server(of backend: DiskBackend, _ disk: DiskConfiguration) throws(MachineError)
        -> any BlockServer
    {
        let width = backend.isConcurrent ? diskThreads : 1
        if disk.transfers != .threads, backend.allowsDirect {
            guard let obstacle = IORing.obstacle else { return DiskRings(backend, threads: width) }
            if disk.transfers == .ring { throw MachineError(.disk, "disk \(disk.path): aio=io_uring: \(obstacle)") }
        } else if disk.transfers == .ring {
            throw MachineError(.disk, "disk \(disk.path): aio=io_uring is for raw and qcow2 images without limits")
        }
        return WorkerThreads(name: "roost-disk", width: width)
    }

    /// Most threads that serve a disk whose image several can use at once.
    private static var diskThreads: Int { 4 }
    /// Queues of a disk, unless the user says how many.
    private static var mostDiskQueues: Int { 8 }

    func add(_ device: any VirtioDevice) throws(MachineError) {
        guard bridge.add(VirtioPCI(device: device, memory: memory, door: door)) != nil else {
            throw MachineError(.host, "more devices than the PCI bus has slots (31)")
        }
    }
}
