// QEMU's firmware configuration device, fw_cfg. QEMU docs/specs/fw_cfg.rst.
//
// port 510 W (16)   select an item; its offset starts at 0
// port 511 R (8)    the item's next byte, 0 beyond its end
// port 514 R/W (64, big-endian) address of a DMA descriptor; writing the low half (518) starts it; reads "QEMU CFG"
// DMA descriptor (big-endian): 0 control (0 error, 1 read, 2 skip, 3 select, 4 write, 31:16 item), 4 length, 8 address
// items: 00 "QEMU", 01 features (0 ports, 1 DMA), 03 RAM size, 05 CPUs, 0F most CPUs, 19 file directory, 20- files
public import DeviceModel
public import GuestMemory
internal import Synchronization

/// Items by number and files by name, read by the guest through ports or DMA.
public final class FirmwareConfig: BusDevice, Saveable {
    /// Items that have a number of their own.
    public enum Key: UInt16, Sendable {
        case signature = 0x00, features = 0x01, ramSize = 0x03, cpuCount = 0x05, kernelAddress = 0x07
        case kernelSize = 0x08, initrdAddress = 0x0A, initrdSize = 0x0B, maximumCPUs = 0x0F, kernelEntry = 0x10
        case kernelData = 0x11, initrdData = 0x12, commandLineAddress = 0x13, commandLineSize = 0x14
        case commandLineData = 0x15, setupAddress = 0x16, setupSize = 0x17, setupData = 0x18, fileDirectory = 0x19
    }

    /// Where the guest stands. The items themselves belong to the configuration.
    public struct State: Codable, Sendable {
        var version = 1
        var selected: UInt16 = 0
        var offset: UInt64 = 0
        var descriptorHigh: UInt32 = 0
    }

    private struct Contents {
        var state = State()
        var items: [UInt16: [UInt8]] = [:]
        var files: [(name: String, size: Int)] = []
    }

    private let contents = Mutex(Contents())
    private let memory: GuestMemory

    /// Makes the device with its signature, RAM size and CPU count.
    public init(memory: GuestMemory, cpuCount: Int) {
        self.memory = memory
        set(.signature, Array("QEMU".utf8))
        set(.features, Self.littleEndian(UInt32(3)))
        set(.ramSize, Self.littleEndian(memory.bootSize))
        set(.cpuCount, Self.littleEndian(UInt16(truncatingIfNeeded: cpuCount)))
        set(.maximumCPUs, Self.littleEndian(UInt16(truncatingIfNeeded: cpuCount)))
        set(.fileDirectory, [0, 0, 0, 0])
    }

    /// Attaches ports 0x510 to 0x511 and 0x514 to 0x51B.
    @discardableResult
    public func attach(to ports: Bus) -> Bool { ports.attachPorts(self, [(0x510, 2), (0x514, 8)]) }

    /// The bytes of a number, lowest first, as numbered items have them.
    public static func littleEndian<T: FixedWidthInteger>(_ value: T) -> [UInt8] {
        (0..<T.bitWidth / 8).map { UInt8(truncatingIfNeeded: value >> (T(truncatingIfNeeded: $0) * 8)) }
    }

    /// Sets a numbered item (set-up only).
    public func set(_ key: Key, _ bytes: [UInt8]) { contents.withLock { $0.items[key.rawValue] = bytes } }

    /// Adds a named file (set-up only); false when the name is longer than 55 bytes or taken, or there are too many.
    @discardableResult
    public func add(file name: String, _ bytes: [UInt8]) -> Bool {
        contents.withLock { contents in
            guard name.utf8.count <= 55, contents.files.count < 0x1000, bytes.count <= Int(UInt32.max),
                !contents.files.contains(where: { $0.name == name })
            else { return false }
            contents.items[UInt16(0x20 + contents.files.count)] = bytes
            contents.files.append((name, bytes.count))
            contents.items[Key.fileDirectory.rawValue] = Self.directory(contents.files)
            return true
        }
    }

    /// A big-endian count, then 64 bytes a file: size, item, reserved, name.
    private static func directory(_ files: [(name: String, size: Int)]) -> [UInt8] {
        var bytes = bigEndian(UInt32(truncatingIfNeeded: files.count))
        for (index, file) in files.enumerated() {
            bytes += bigEndian(UInt32(truncatingIfNeeded: file.size))
            bytes += bigEndian(UInt16(truncatingIfNeeded: 0x20 + index)) + [0, 0]
            bytes += Array(file.name.utf8) + [UInt8](repeating: 0, count: 56 - file.name.utf8.count)
        }
        return bytes
    }

    private static func bigEndian<T: FixedWidthInteger>(_ value: T) -> [UInt8] { littleEndian(value).reversed() }

    /// Power-on reset.
    public func reset() { contents.withLock { $0.state = State() } }

    // MARK: Ports (offsets are port numbers)

    /// Reads a port.
    public func read(offset: UInt64, size: Int) -> UInt64 {
        switch offset {
        case 0x510: return contents.withLock { UInt64($0.state.selected) }
        case 0x511: return contents.withLock { UInt64(Self.take($0.items, &$0.state, 1).first ?? 0) }
        case 0x514...0x51B:
            // "QEMU CFG", its first byte at the lowest port.
            return readByteWise(offset, size) { port in
                let signature: [UInt8] = [0x51, 0x45, 0x4D, 0x55, 0x20, 0x43, 0x46, 0x47]
                return signature[Int(truncatingIfNeeded: (port &- 0x514) & 7)]
            }
        default: return ~0
        }
    }

    /// Writes a port.
    public func write(offset: UInt64, size: Int, value: UInt64) {
        let word = UInt32(truncatingIfNeeded: value).byteSwapped
        switch offset {
        case 0x510 where size == 2:
            contents.withLock { contents in
                contents.state.selected = UInt16(truncatingIfNeeded: value)
                contents.state.offset = 0
            }
        case 0x514 where size == 4: contents.withLock { $0.state.descriptorHigh = word }
        case 0x518 where size == 4:
            let high = contents.withLock { contents in
                let high = contents.state.descriptorHigh
                contents.state.descriptorHigh = 0
                return high
            }
            transfer(GuestPhysicalAddress(UInt64(high) &<< 32 | UInt64(word)))
        case 0x514 where size == 8: transfer(GuestPhysicalAddress(value.byteSwapped))
        default: break
        }
    }

    /// The next `count` bytes of the selected item, fewer at its end.
    private static func take(_ items: [UInt16: [UInt8]], _ state: inout State, _ count: Int) -> ArraySlice<UInt8> {
        let item = items[state.selected & 0x3FFF] ?? []
        let start = Int(min(state.offset, UInt64(item.count)))
        let end = start + max(0, min(count, item.count - start))
        state.offset = min(state.offset &+ UInt64(max(0, count)), UInt64(UInt32.max))
        return item[start..<end]
    }

    // MARK: DMA

    /// Does what the descriptor at `address` says; its control field then reads 0, or 1 on an error.
    private func transfer(_ address: GuestPhysicalAddress) {
        guard let control = try? memory.load(address, as: UInt32.self).byteSwapped,
            let length = try? memory.load(address + 4, as: UInt32.self).byteSwapped,
            let buffer = try? memory.load(address + 8, as: UInt64.self).byteSwapped
        else { return }
        let done = contents.withLock { contents -> Bool in
            if control & 8 != 0 {
                contents.state.selected = UInt16(truncatingIfNeeded: control >> 16)
                contents.state.offset = 0
            }
            if control & 2 != 0 { return read(contents.items, &contents.state, GuestPhysicalAddress(buffer), length) }
            // Items are read-only: writing one fails; skipping moves on.
            if control & 16 != 0 { return false }
            if control & 4 != 0 {
                contents.state.offset = min(contents.state.offset &+ UInt64(length), UInt64(UInt32.max))
            }
            return true
        }
        try? memory.store((done ? UInt32(0) : 1).byteSwapped, at: address)
    }

    /// Copies to RAM, zeros beyond the item's end; the whole range must be RAM.
    private func read(
        _ items: [UInt16: [UInt8]], _ state: inout State, _ buffer: GuestPhysicalAddress, _ length: UInt32
    ) -> Bool {
        guard memory.isRAM(buffer, length: Int(length)) else { return false }
        var at = buffer
        var rest = Int(length)
        while rest > 0 {
            let count = min(rest, 65536)
            var bytes = Array(Self.take(items, &state, count))
            if bytes.count < count { bytes += [UInt8](repeating: 0, count: count - bytes.count) }
            guard (try? memory.write(bytes, at: at)) != nil else { return false }
            at = at + UInt64(count)
            rest -= count
        }
        return true
    }

    // MARK: State

    /// Takes the state.
    public func saveState() -> State { contents.withLock { $0.state } }

    /// Puts a state back.
    public func restoreState(_ state: State) throws {
        try requireVersion(state.version, 1, "fw_cfg")
        contents.withLock { $0.state = state }
    }
}
