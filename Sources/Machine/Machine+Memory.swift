// Memory that comes and goes while the machine runs.
internal import DeviceModel
internal import Devices
internal import GuestMemory

extension Machine {
    /// Bytes of memory that the guest has.
    public var memorySize: UInt64 { memory.bootSize + (backends.memory?.pluggedSize ?? 0) }

    /// Asks the guest to have so many bytes of memory; it takes or gives back when it likes, or can. Not less than it had at
    /// its start, nor more than it was made for.
    public func setMemory(_ bytes: UInt64) throws(MachineError) {
        guard let device = backends.memory else {
            throw MachineError(
                .memory,
                "this machine's memory stays as it is while it runs; --memory SIZE,max=SIZE makes one that grows")
        }
        let (least, block) = (memory.bootSize, VirtioMemory.blockSize)
        guard least...least + device.regionSize ~= bytes, (bytes - least) % block == 0 else {
            throw MachineError(
                .memory,
                "\(sizeInWords(bytes)) of memory: this machine can have \(sizeInWords(least)) to "
                    + "\(sizeInWords(least + device.regionSize)), in steps of \(sizeInWords(block))")
        }
        guard !isPaused else { throw MachineError(.memory, "it is paused: the guest can't be told") }
        door.admit(.memory(bytes)) { _ in device.request(bytes - least) }
    }
}
