// What sits on the PCI bus.
//
//   slot  device
//   0     host bridge
//   1…    virtio disks, in the order of the command line
//   then  virtio network, virtio entropy
internal import DeviceModel
internal import Devices
internal import GuestMemory
internal import Storage

extension Board {
    /// Makes the devices of a configuration.
    func connect(_ configuration: MachineConfiguration, door: any Door) throws(MachineError) {
    }
}
