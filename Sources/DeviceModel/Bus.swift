// What a device answers: accesses to its ports or its memory.

/// A device on the port or memory bus. Called on vCPU threads, at any time, from several threads: it locks for itself.
public protocol BusDevice: AnyObject, Sendable {
    /// Reads `size` (1, 2, 4 or 8) bytes at `offset` from the start of the device's range. Absent bits read as ones.
    func read(offset: UInt64, size: Int) -> UInt64
    /// Writes the low `size` bytes of `value` at `offset` from the start of the device's range.
    func write(offset: UInt64, size: Int, value: UInt64)
}

/// A device some of whose writes only say that there is work: whoever serves them needs not be the vCPU's thread.
public protocol NotifiedDevice: BusDevice {
    /// Where such writes go, from the start of the device's range.
    var notificationOffsets: [UInt64] { get }
    /// Does what a write there does; the value doesn't matter.
    func notify(offset: UInt64)
}

/// A map from address ranges to devices; one for ports, one for memory-mapped I/O. Ranges can move (PCI BARs).
public final class Bus: @unchecked Sendable {
    // SAFETY of @unchecked: `ranges` is replaced whole under `lock`; readers take the lock too (a few nanoseconds).
    private let state = LockedState()

    /// An empty bus.
    public init() {}

    /// Has `observer` told of each device that comes (true) or goes (false), and of those that are there; nil ends that.
    public func observe(_ observer: (@Sendable (any BusDevice, UInt64, Bool) -> Void)?) { state.observe(observer) }

    /// Attaches a device; false if the range is empty, wraps or overlaps another.
    @discardableResult
    public func attach(_ device: any BusDevice, at start: UInt64, length: UInt64) -> Bool {
        state.attach(device, start, length)
    }

    /// Detaches whatever was attached at exactly `start`.
    public func detach(at start: UInt64) { state.detach(start) }

    /// Detaches all devices, some of which refer to the bus (at the end only).
    public func removeAll() { state.removeAll() }

    /// Reads; all ones where nothing answers or the access crosses the end of a device.
    public func read(_ address: UInt64, size: Int) -> UInt64 {
        let ones: UInt64 = size >= 8 ? ~0 : (1 &<< UInt64(truncatingIfNeeded: size &* 8)) &- 1
        guard let (device, offset) = state.find(address, size) else { return ones }
        return device.read(offset: offset, size: size) & ones
    }

    /// Writes; dropped where nothing answers.
    public func write(_ address: UInt64, size: Int, value: UInt64) {
        guard let (device, offset) = state.find(address, size) else { return }
        device.write(offset: offset, size: size, value: value)
    }
}
