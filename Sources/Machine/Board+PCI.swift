// What sits on the PCI bus.
//
//   slot  device
//   0     host bridge
//   1…    virtio disks, in the order of the command line
//   then  virtio network, entropy, console
package import DeviceModel
public import Devices
internal import GuestMemory
internal import HostOS
public import Storage

extension RawImage: BlockBackend {}

extension Board {
    /// Makes the devices of a configuration and puts them on the bus.
    package func connect(_ configuration: MachineConfiguration, door: any Door) throws(MachineError) {
        for (index, disk) in configuration.disks.enumerated() {
            let device = VirtioBlock(backend: try open(disk), door: door, identifier: "disk\(index)")
            try add(device)
        }
    }

    private func add(_ device: any VirtioDevice) throws(MachineError) {
        guard bridge.add(VirtioPCI(device: device, memory: memory)) != nil else {
            throw MachineError(.host, "more devices than the PCI bus has slots (31)")
        }
    }

    private func open(_ disk: DiskConfiguration) throws(MachineError) -> RawImage {
        do {
            let image = try RawImage(path: disk.path, readOnly: disk.isReadOnly)
            if let note = image.note { Terminal.note("roost: \(note)") }
            return image
        } catch {
            throw MachineError(error.code == .inUse ? .diskInUse : .disk, error.description)
        }
    }
}
