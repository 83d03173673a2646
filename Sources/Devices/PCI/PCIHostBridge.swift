// The PCI host bridge: configuration mechanism 1 and memory-mapped configuration, one bus, 32 slots, one function each.
//
// PCI Local Bus Specification 3.0, 3.2.2.3.2; PCI Express Base Specification 2.0, 7.2.2. Identity: Intel Q35 (82G33 MCH).
//
//   port CF8     address: bit 31 enable, 23:16 bus, 15:11 device, 10:8 function, 7:2 register (32-bit accesses only)
//   port CF9     reset control, forwarded to the board
//   port CFC-CFF data
//   ECAM         bits 19:15 device, 14:12 function, 11:0 register
public import DeviceModel
internal import Synchronization

/// Where the bus finds its registers and where functions may be put.
public struct PCIWindows: Sendable {
    /// Start of memory-mapped configuration (1 MiB: one bus).
    public var ecam: UInt64
    /// Memory below 4 GiB for functions.
    public var memory: ClosedRange<UInt64>
    /// Memory above RAM for 64-bit functions, if any.
    public var highMemory: ClosedRange<UInt64>?
    /// Ports for functions.
    public var ports: ClosedRange<UInt64>

    /// Bytes of memory-mapped configuration.
    public static let ecamSize: UInt64 = 0x10_0000

    /// Makes windows; the defaults are the board's.
    public init(
        ecam: UInt64 = 0xE000_0000, memory: ClosedRange<UInt64> = 0xC000_0000...0xDFFF_FFFF,
        highMemory: ClosedRange<UInt64>? = nil, ports: ClosedRange<UInt64> = 0x1000...0xFFFF
    ) {
        self.ecam = ecam
        self.memory = memory
        self.highMemory = highMemory
        self.ports = ports
    }

    var memoryRanges: [ClosedRange<UInt64>] { [memory] + (highMemory.map { [$0] } ?? []) }
}

/// The host bridge and the bus behind it.
public final class PCIHostBridge: PCIDevice {
    /// The bridge's own function, in slot 0.
    public let function: PCIFunction
    /// Its windows.
    public let windows: PCIWindows

    private struct Contents: Sendable {
        var address: UInt32 = 0
        var slots: [(any PCIDevice)?] = Array(repeating: nil, count: 32)
    }

    private let ports: Bus
    private let memory: Bus
    private let messages: any MessageInterruptTarget
    private let lines: [SharedInterruptLine]
    private let resetPort: (any BusDevice)?
    private let contents = Mutex(Contents())
    private let mapping = Mutex(())

    /// Makes the bridge and attaches it to both buses. `interruptLines` are GSI 16 to 19; `resetPort` answers at CF9.
    public init(
        ports: Bus, memory: Bus, messages: any MessageInterruptTarget, interruptLines: [any InterruptLine],
        resetPort: (any BusDevice)? = nil, windows: PCIWindows = PCIWindows()
    ) {
        self.ports = ports
        self.memory = memory
        self.messages = messages
        self.windows = windows
        self.resetPort = resetPort
        lines = interruptLines.map { SharedInterruptLine($0) }
        function = PCIFunction(
            PCIIdentity(
                vendor: 0x8086, device: 0x29C0, classCode: 0x060000, subsystemVendor: 0x1AF4, subsystem: 0x1100))
        let own = WeakBridge(self)
        ports.attach(ConfigurationPorts(own, isData: false), at: 0xCF8, length: 4)
        ports.attach(ConfigurationPorts(own, isData: true), at: 0xCFC, length: 4)
        memory.attach(ConfigurationMemory(own), at: windows.ecam, length: PCIWindows.ecamSize)
    }

    /// Puts a device in a slot (1 to 31; set-up only); nil takes the lowest free one. Returns the slot, nil if none is free.
    @discardableResult
    public func add(_ device: any PCIDevice, slot wanted: Int? = nil) -> Int? {
        let slot = contents.withLock { contents -> Int? in
            let free = (1..<32).filter { contents.slots[$0] == nil }
            guard let slot = wanted ?? free.first, free.contains(slot) else { return nil }
            contents.slots[slot] = device
            return slot
        }
        guard let slot else { return nil }
        let line: any InterruptLine = lines.isEmpty ? UnconnectedLine() : lines[slot % lines.count].input(slot)
        device.function.connect(line: line, messages: messages, interruptLine: UInt8(16 + slot % 4))
        return slot
    }

    /// The devices by slot.
    public var devices: [(slot: Int, device: any PCIDevice)] {
        contents.withLock { contents in
            contents.slots.indices.compactMap { slot in contents.slots[slot].map { (slot, $0) } }
        }
    }

    private func device(_ slot: Int, _ number: Int) -> PCIFunction? {
        guard number == 0 else { return nil }
        return slot == 0 ? function : contents.withLock { $0.slots[slot]?.function }
    }

    /// Gives every base address register an address and enables the ranges, as firmware does.
    public func assignResources() {
        var nextMemory = windows.memory.lowerBound
        var nextPort = max(windows.ports.lowerBound, min(0xC000, windows.ports.upperBound))
        for (_, device) in devices {
            for resource in device.function.resources.sorted(by: { $0.size > $1.size }) {
                let isPort = resource.kind == .io
                let start = ((isPort ? nextPort : nextMemory) + resource.size - 1) & ~(resource.size - 1)
                guard start + resource.size - 1 <= (isPort ? windows.ports : windows.memory).upperBound else {
                    continue
                }
                device.function.assign(resource.index, address: start)
                if isPort { nextPort = start + resource.size } else { nextMemory = start + resource.size }
            }
            device.function.writeConfig(4, size: 2, value: 3)
        }
        remap()
    }

    /// Makes the buses agree with the base address registers.
    public func remap() {
        let functions = devices.map { $0.device.function }
        mapping.withLock { _ in
            for function in functions { function.releaseMoved(ports: ports, memory: memory) }
            for function in functions { function.claimWanted(ports: ports, memory: memory, windows: windows) }
        }
    }

    /// Resets the bus: configuration space and devices as after power-on; the board then assigns resources again.
    public func reset() {
        contents.withLock { $0.address = 0 }
        function.resetConfig()
        for (_, device) in devices {
            device.resetDevice()
            device.function.resetConfig()
        }
        remap()
    }

    /// Nothing beyond configuration space.
    public func resetDevice() {}

    // MARK: Configuration accesses

    fileprivate func readConfig(_ slot: Int, _ number: Int, _ register: Int, _ size: Int) -> UInt64 {
        guard let function = device(slot, number) else { return ~0 }
        return UInt64(function.readConfig(register, size: size))
    }

    fileprivate func writeConfig(_ slot: Int, _ number: Int, _ register: Int, _ size: Int, _ value: UInt32) {
        guard let function = device(slot, number) else { return }
        if function.writeConfig(register, size: size, value: value) { remap() }
    }

    fileprivate func readPort(isData: Bool, _ offset: Int, _ size: Int) -> UInt64 {
        let address = contents.withLock { $0.address }
        if !isData {
            if offset == 1, size == 1, let resetPort { return resetPort.read(offset: 0, size: 1) }
            return offset == 0 && size == 4 ? UInt64(address) : ~0
        }
        guard let (slot, number, register) = Self.target(address) else { return ~0 }
        return readConfig(slot, number, register + offset, size)
    }

    fileprivate func writePort(isData: Bool, _ offset: Int, _ size: Int, _ value: UInt32) {
        if !isData {
            if offset == 1, size == 1, let resetPort {
                return resetPort.write(offset: 0, size: 1, value: UInt64(value))
            }
            if offset == 0, size == 4 { contents.withLock { $0.address = value & 0x80FF_FFFC } }
            return
        }
        guard let (slot, number, register) = Self.target(contents.withLock({ $0.address })) else { return }
        writeConfig(slot, number, register + offset, size, value)
    }

    private static func target(_ address: UInt32) -> (Int, Int, Int)? {
        guard address >> 31 == 1, address >> 16 & 0xFF == 0 else { return nil }
        return (Int(address >> 11 & 31), Int(address >> 8 & 7), Int(address & 0xFC))
    }
}

extension PCIHostBridge: Saveable {
    /// What the guest wrote to the bridge.
    public struct State: Codable, Sendable {
        /// Version of this layout.
        public var version = 1
        /// The address register at CF8.
        public var address: UInt32
        /// The bridge's own function.
        public var function: PCIFunction.State
    }

    /// Takes the state of the bridge; the devices behind it have their own.
    public func saveState() -> State {
        State(address: contents.withLock { $0.address }, function: function.saveState())
    }

    /// Puts a state back, after those of the devices, and maps their ranges.
    public func restoreState(_ state: State) throws {
        guard state.version == 1 else { throw StateError("the saved state of the PCI host bridge doesn't fit") }
        try function.restoreState(state.function)
        contents.withLock { $0.address = state.address & 0x80FF_FFFC }
        remap()
    }
}

/// A reference that doesn't keep the bridge alive.
private final class WeakBridge: Sendable {
    private struct Reference: Sendable {
        weak var bridge: PCIHostBridge?
    }
    private let reference = Mutex(Reference())
    init(_ bridge: PCIHostBridge) { reference.withLock { $0.bridge = bridge } }
    var bridge: PCIHostBridge? { reference.withLock { $0.bridge } }
}

/// Ports CF8 to CFB, or CFC to CFF.
private final class ConfigurationPorts: BusDevice {
    private let owner: WeakBridge
    private let isData: Bool
    init(_ owner: WeakBridge, isData: Bool) {
        self.owner = owner
        self.isData = isData
    }
    func read(offset: UInt64, size: Int) -> UInt64 {
        owner.bridge?.readPort(isData: isData, Int(truncatingIfNeeded: offset), size) ?? ~0
    }
    func write(offset: UInt64, size: Int, value: UInt64) {
        owner.bridge?.writePort(
            isData: isData, Int(truncatingIfNeeded: offset), size, UInt32(truncatingIfNeeded: value))
    }
}

/// Memory-mapped configuration.
private final class ConfigurationMemory: BusDevice {
    private let owner: WeakBridge
    init(_ owner: WeakBridge) { self.owner = owner }

    private static func target(_ offset: UInt64) -> (Int, Int, Int) {
        (Int(offset >> 15 & 31), Int(offset >> 12 & 7), Int(offset & 0xFFF))
    }

    func read(offset: UInt64, size: Int) -> UInt64 {
        let (slot, number, register) = Self.target(offset)
        guard let bridge = owner.bridge else { return ~0 }
        guard size == 8 else { return bridge.readConfig(slot, number, register, size) }
        let high = bridge.readConfig(slot, number, register + 4, 4)
        return bridge.readConfig(slot, number, register, 4) & 0xFFFF_FFFF | high << 32
    }

    func write(offset: UInt64, size: Int, value: UInt64) {
        let (slot, number, register) = Self.target(offset)
        guard let bridge = owner.bridge else { return }
        bridge.writeConfig(slot, number, register, min(size, 4), UInt32(truncatingIfNeeded: value))
        if size == 8 { bridge.writeConfig(slot, number, register + 4, 4, UInt32(truncatingIfNeeded: value >> 32)) }
    }
}

/// A wire that several functions share: high while any of them wants it.
final class SharedInterruptLine: Sendable {
    private let wanted = Mutex<UInt32>(0)
    private let output: any InterruptLine

    init(_ output: any InterruptLine) { self.output = output }

    /// The end of the wire at a slot.
    func input(_ slot: Int) -> any InterruptLine { Input(line: self, bit: 1 &<< UInt32(truncatingIfNeeded: slot)) }

    private struct Input: InterruptLine {
        let line: SharedInterruptLine
        let bit: UInt32
        func set(_ level: Bool) {
            line.wanted.withLock { wanted in
                let before = wanted
                wanted = level ? wanted | bit : wanted & ~bit
                if (before == 0) != (wanted == 0) { line.output.set(wanted != 0) }
            }
        }
    }
}
