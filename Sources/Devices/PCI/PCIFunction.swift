// A PCI function: configuration space, base address registers, capabilities, MSI-X and the INTx wire.
//
// PCI Local Bus Specification 3.0, chapter 6 (configuration space) and 6.8.2 (MSI-X).
//
//   00 vendor (RO)        02 device (RO)       04 command (RW 0x0547)       06 status (bits 15:11, 8 write 1 to clear)
//   08 revision (RO)      09 class (RO)        0C cache line (RW)           0E header type (RO)
//   10-27 base address registers               2C subsystem (RO)            34 capabilities (RO)
//   3C interrupt line (RW)                     3D interrupt pin (RO)        40- capabilities
//
// Configuration space has 256 bytes; beyond them everything reads as ones.
public import DeviceModel
internal import Synchronization

/// Bits of the command register.
///
/// - Spec: PCI 3.0, 6.2.2
public struct PCICommand: OptionSet, Sendable {
    /// The bits.
    public let rawValue: UInt16
    /// Wraps the bits.
    public init(rawValue: UInt16) { self.rawValue = rawValue }
    /// The function answers in its I/O ranges.
    public static let ioSpace = PCICommand(rawValue: 1 << 0)
    /// The function answers in its memory ranges.
    public static let memorySpace = PCICommand(rawValue: 1 << 1)
    /// The function may read and write memory and send messages.
    public static let busMaster = PCICommand(rawValue: 1 << 2)
    /// The function keeps its INTx wire low.
    public static let interruptDisable = PCICommand(rawValue: 1 << 10)
}

/// What a function says of itself.
public struct PCIIdentity: Sendable {
    /// Vendor ID.
    public var vendor: UInt16
    /// Device ID.
    public var device: UInt16
    /// Class, subclass and programming interface, 24 bits.
    public var classCode: UInt32
    /// Revision ID.
    public var revision: UInt8
    /// Subsystem vendor ID.
    public var subsystemVendor: UInt16
    /// Subsystem ID.
    public var subsystem: UInt16
    /// Whether the function drives INTA.
    public var hasInterruptPin: Bool

    /// Makes an identity from its parts.
    public init(
        vendor: UInt16, device: UInt16, classCode: UInt32, revision: UInt8 = 0, subsystemVendor: UInt16 = 0,
        subsystem: UInt16 = 0, hasInterruptPin: Bool = false
    ) {
        self.vendor = vendor
        self.device = device
        self.classCode = classCode
        self.revision = revision
        self.subsystemVendor = subsystemVendor
        self.subsystem = subsystem
        self.hasInterruptPin = hasInterruptPin
    }
}

/// The kind of a base address register.
public enum PCIBARKind: Sendable, Equatable {
    /// I/O ports.
    case io
    /// Memory below 4 GiB.
    case memory32
    /// Memory anywhere; takes two registers.
    case memory64
}

/// Whatever sits in a slot of the bus.
public protocol PCIDevice: AnyObject, Sendable {
    /// Its one function.
    var function: PCIFunction { get }
    /// Back to the state after power-on, configuration space apart.
    func resetDevice()
}

/// A PCI function; safe to call from any thread.
public final class PCIFunction: Sendable {
    struct BAR: Sendable {
        var kind: PCIBARKind
        var size: UInt64
        var device: any BusDevice
        var mapped: UInt64?
    }

    struct Contents: Sendable {
        var config = [UInt8](repeating: 0, count: 256)
        var initial = [UInt8](repeating: 0, count: 256)
        var writable = [UInt8](repeating: 0, count: 256)
        var clearable = [UInt8](repeating: 0, count: 256)
        var bars = [BAR?](repeating: nil, count: 6)
        var lastCapability = 0
        var nextFree = 0x40
        var msix: MSIX?
        var accessWindow: Int?
        var registers: [(range: Range<Int>, written: @Sendable () -> Void)] = []
        var lineWanted = false
        var line: any InterruptLine = UnconnectedLine()
        var messages: (any MessageInterruptTarget)?
    }

    let contents: Mutex<Contents>

    /// Makes a function without capabilities and base address registers.
    public init(_ identity: PCIIdentity) {
        var start = Contents()
        start.set16(0x00, identity.vendor)
        start.set16(0x02, identity.device)
        start.config[0x08] = identity.revision
        start.config[0x09] = UInt8(truncatingIfNeeded: identity.classCode)
        start.config[0x0A] = UInt8(truncatingIfNeeded: identity.classCode >> 8)
        start.config[0x0B] = UInt8(truncatingIfNeeded: identity.classCode >> 16)
        start.set16(0x2C, identity.subsystemVendor)
        start.set16(0x2E, identity.subsystem)
        start.config[0x3D] = identity.hasInterruptPin ? 1 : 0
        start.writable[0x04] = 0x47
        start.writable[0x05] = 0x05
        start.writable[0x0C] = 0xFF
        start.writable[0x3C] = 0xFF
        start.clearable[0x07] = 0xF9
        start.initial = start.config
        contents = Mutex(start)
    }

    // MARK: Building

    /// Adds a base address register (set-up only); `size` is a power of two, a 64-bit one also takes the next register.
    public func addBAR(_ index: Int, _ kind: PCIBARKind, size: UInt64, device: any BusDevice) {
        precondition(index >= 0 && index < (kind == .memory64 ? 5 : 6) && size >= 16 && size.nonzeroBitCount == 1)
        contents.withLock { contents in
            contents.bars[index] = BAR(kind: kind, size: size, device: device)
            let register = 0x10 + index * 4
            let mask = ~(size - 1)
            contents.setMask32(register, UInt32(truncatingIfNeeded: mask))
            switch kind {
            case .io: contents.config[register] = 0x01
            case .memory32: contents.config[register] = 0x00
            case .memory64:
                contents.config[register] = 0x0C
                contents.setMask32(register + 4, UInt32(truncatingIfNeeded: mask >> 32))
            }
            contents.initial = contents.config
        }
    }

    /// Adds a capability (set-up only): `body` follows the identifier and the link; returns its offset.
    @discardableResult
    public func addCapability(_ identifier: UInt8, _ body: [UInt8], writable: [UInt8] = []) -> Int {
        contents.withLock { $0.addCapability(identifier, body, writable) }
    }

    /// Adds virtio's window for base address register access through configuration space (set-up only).
    ///
    /// - Spec: virtio 1.2, 4.1.4.9
    func addAccessWindow() {
        // cfg_type 5, bar, id, padding, offset, length: bar, offset, length and data are writable.
        let body: [UInt8] = [20, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
        let mask: [UInt8] = [0, 0, 0xFF, 0, 0, 0] + [UInt8](repeating: 0xFF, count: 12)
        let offset = addCapability(0x09, body, writable: mask)
        contents.withLock { $0.accessWindow = offset }
    }

    /// Adds a register of the device's own to configuration space (set-up only), with the bits that can be written; `written`
    /// is called after each write to it.
    public func addRegister(_ offset: Int, writable: [UInt8], written: @escaping @Sendable () -> Void) {
        precondition(offset >= 0x40 && offset + writable.count <= 256)
        contents.withLock { contents in
            for (index, mask) in writable.enumerated() { contents.writable[offset + index] = mask }
            contents.registers.append((offset..<offset + writable.count, written))
        }
    }

    /// Sets a byte of configuration space that the device itself changes.
    public func setRegister(_ offset: Int, _ value: UInt8) {
        guard 0..<256 ~= offset else { return }
        contents.withLock { $0.config[offset] = value }
    }

    /// Connects the function to its wire and to the local APICs; the bus does so when the function is added.
    func connect(line: any InterruptLine, messages: any MessageInterruptTarget, interruptLine: UInt8) {
        contents.withLock {
            $0.line = line
            $0.messages = messages
            $0.config[0x3C] = interruptLine
            $0.initial[0x3C] = interruptLine
        }
    }

    // MARK: Configuration space

    /// The command register.
    public var command: PCICommand { contents.withLock { $0.command } }

    /// Whether the function may touch memory.
    public var isBusMaster: Bool { command.contains(.busMaster) }

    /// Reads 1, 2 or 4 bytes of configuration space.
    public func readConfig(_ offset: Int, size: Int) -> UInt32 {
        let ones: UInt32 = size >= 4 ? ~0 : (1 &<< UInt32(truncatingIfNeeded: size &* 8)) &- 1
        guard offset >= 0, size >= 1, size <= 4, offset <= 256 - size else { return ones }
        if let access = windowAccess(offset, size) {
            let value = access.device.read(offset: access.offset, size: access.size)
            contents.withLock { $0.set32(access.data, UInt32(truncatingIfNeeded: value)) }
        }
        return contents.withLock { contents in
            var value: UInt32 = 0
            for index in 0..<size { value |= UInt32(contents.read8(offset + index)) << UInt32(index * 8) }
            return value
        }
    }

    /// Writes 1, 2 or 4 bytes of configuration space; true if what the function answers to may have changed.
    @discardableResult
    public func writeConfig(_ offset: Int, size: Int, value: UInt32) -> Bool {
        guard offset >= 0, size >= 1, size <= 4, offset <= 256 - size else { return false }
        contents.withLock { contents in
            for index in 0..<size {
                let byte = UInt8(truncatingIfNeeded: value >> UInt32(index * 8))
                let place = offset + index
                let mask = contents.writable[place]
                let kept = contents.config[place] & ~mask & ~(byte & contents.clearable[place])
                contents.config[place] = kept | (byte & mask)
            }
            contents.updateLine()
        }
        let written = contents.withLock { $0.registers.filter { $0.range.overlaps(offset..<offset + size) } }
        for register in written { register.written() }
        if let access = windowAccess(offset, size) {
            let data = contents.withLock { $0.get32(access.data) }
            access.device.write(offset: access.offset, size: access.size, value: UInt64(data))
        }
        flushPending()
        return offset < 0x28
    }

    private func windowAccess(_ offset: Int, _ size: Int)
        -> (device: any BusDevice, offset: UInt64, size: Int, data: Int)?
    {
        contents.withLock { contents in
            guard let window = contents.accessWindow, offset < window + 20, offset + size > window + 16 else {
                return nil
            }
            let index = Int(contents.config[window + 4])
            let start = UInt64(contents.get32(window + 8))
            let length = UInt64(contents.get32(window + 12))
            guard index < 6, let bar = contents.bars[index], length == 1 || length == 2 || length == 4,
                start & (length - 1) == 0, start <= bar.size - length
            else { return nil }
            return (bar.device, start, Int(length), window + 16)
        }
    }

    /// Forgets everything the guest wrote.
    func resetConfig() {
        contents.withLock { contents in
            contents.config = contents.initial
            contents.lineWanted = false
            contents.msix?.reset()
            contents.updateLine()
        }
    }

    // MARK: Mapping

    /// Where the base address register says it is, if the command register enables it.
    private static func wanted(_ index: Int, _ bar: BAR, _ contents: borrowing Contents) -> UInt64? {
        let register = 0x10 + index * 4
        let needed: PCICommand = bar.kind == .io ? .ioSpace : .memorySpace
        guard contents.command.contains(needed) else { return nil }
        let low = UInt64(contents.get32(register))
        switch bar.kind {
        case .io: return low & ~3
        case .memory32: return low & ~15
        case .memory64: return (low & ~15) | UInt64(contents.get32(register + 4)) << 32
        }
    }

    /// Detaches the ranges that are no longer where the registers say.
    func releaseMoved(ports: Bus, memory: Bus) {
        contents.withLock { contents in
            for index in 0..<6 {
                guard let bar = contents.bars[index], let mapped = bar.mapped,
                    Self.wanted(index, bar, contents) != mapped
                else { continue }
                (bar.kind == .io ? ports : memory).detach(at: mapped)
                contents.bars[index]?.mapped = nil
            }
        }
    }

    /// Attaches the ranges that the registers ask for where they lie in a window and nothing else answers.
    func claimWanted(ports: Bus, memory: Bus, windows: PCIWindows) {
        contents.withLock { contents in
            for index in 0..<6 {
                guard let bar = contents.bars[index], bar.mapped == nil,
                    let start = Self.wanted(index, bar, contents), start & (bar.size - 1) == 0
                else { continue }
                let end = start | (bar.size - 1)
                let allowed = bar.kind == .io ? [windows.ports] : windows.memoryRanges
                guard allowed.contains(where: { $0.contains(start) && $0.contains(end) }) else { continue }
                if (bar.kind == .io ? ports : memory).attach(bar.device, at: start, length: bar.size) {
                    contents.bars[index]?.mapped = start
                }
            }
        }
    }

    /// The base address registers, for whoever assigns addresses.
    var resources: [(index: Int, kind: PCIBARKind, size: UInt64)] {
        contents.withLock { contents in
            contents.bars.indices.compactMap { index in
                contents.bars[index].map { (index, $0.kind, $0.size) }
            }
        }
    }

    /// Puts an address in a base address register, as firmware does.
    func assign(_ index: Int, address: UInt64) {
        contents.withLock { contents in
            guard let bar = contents.bars[index] else { return }
            let register = 0x10 + index * 4
            let type = contents.get32(register) & 0xF
            contents.set32(register, UInt32(truncatingIfNeeded: address) | (bar.kind == .io ? type & 3 : type))
            if bar.kind == .memory64 { contents.set32(register + 4, UInt32(truncatingIfNeeded: address >> 32)) }
        }
    }

    /// Where a base address register is attached now.
    public func mappedAddress(ofBAR index: Int) -> UInt64? {
        contents.withLock { index >= 0 && index < 6 ? $0.bars[index]?.mapped : nil }
    }

    // MARK: Interrupts

    /// Wants the INTx wire at a level; the command register and MSI-X may hold it low.
    public func setInterrupt(_ level: Bool) {
        contents.withLock {
            $0.lineWanted = level
            $0.updateLine()
        }
    }
}

extension PCIFunction.Contents {
    var command: PCICommand { PCICommand(rawValue: get16(0x04)) }

    func get16(_ offset: Int) -> UInt16 { UInt16(config[offset]) | UInt16(config[offset + 1]) << 8 }

    func get32(_ offset: Int) -> UInt32 { UInt32(get16(offset)) | UInt32(get16(offset + 2)) << 16 }

    mutating func set16(_ offset: Int, _ value: UInt16) {
        config[offset] = UInt8(truncatingIfNeeded: value)
        config[offset + 1] = UInt8(truncatingIfNeeded: value >> 8)
    }

    mutating func set32(_ offset: Int, _ value: UInt32) {
        set16(offset, UInt16(truncatingIfNeeded: value))
        set16(offset + 2, UInt16(truncatingIfNeeded: value >> 16))
    }

    mutating func setMask32(_ offset: Int, _ value: UInt32) {
        for index in 0..<4 { writable[offset + index] = UInt8(truncatingIfNeeded: value >> UInt32(index * 8)) }
    }

    /// One byte, with the interrupt status bit as it is now.
    func read8(_ offset: Int) -> UInt8 {
        let status: UInt8 = offset == 0x06 && lineWanted ? 0x08 : 0
        return config[offset] | status
    }

    mutating func addCapability(_ identifier: UInt8, _ body: [UInt8], _ mask: [UInt8]) -> Int {
        let offset = nextFree
        precondition(offset + 2 + body.count <= 256, "capabilities beyond configuration space")
        config[offset] = identifier
        for (index, byte) in body.enumerated() { config[offset + 2 + index] = byte }
        for (index, byte) in mask.enumerated() { writable[offset + 2 + index] = byte }
        config[lastCapability == 0 ? 0x34 : lastCapability + 1] = UInt8(truncatingIfNeeded: offset)
        config[0x06] |= 0x10
        lastCapability = offset
        nextFree = (offset + 2 + body.count + 3) & ~3
        initial = config
        return offset
    }

    mutating func updateLine() {
        guard config[0x3D] != 0 else { return }
        line.set(lineWanted && !command.contains(.interruptDisable) && !isMSIXEnabled)
    }
}

// MARK: Saved state

extension PCIFunction: Saveable {
    /// What the guest wrote and what is pending.
    public struct State: Codable, Sendable {
        /// Version of this layout.
        public var version = 1
        /// Configuration space.
        public var config: [UInt8]
        /// The MSI-X table.
        public var vectors: [[UInt32]]
        /// Pending bits of MSI-X, one a vector.
        public var pending: [Bool]
        /// Whether the function wants its wire high.
        public var lineWanted: Bool
    }

    /// Takes the state.
    public func saveState() -> State {
        contents.withLock {
            State(
                config: $0.config, vectors: $0.msix?.table ?? [], pending: $0.msix?.pending ?? [],
                lineWanted: $0.lineWanted)
        }
    }

    /// Puts a state back; the host bridge maps the ranges afterwards (`PCIHostBridge.remap`).
    public func restoreState(_ state: State) throws {
        try contents.withLock { contents in
            let count = contents.msix?.table.count ?? 0
            guard state.version == 1, state.config.count == 256, state.vectors.count == count,
                state.pending.count == count, state.vectors.allSatisfy({ $0.count == 4 })
            else { throw StateError("the saved state of a PCI function doesn't fit") }
            for index in 0..<256 {
                let mask = contents.writable[index]
                contents.config[index] = (contents.initial[index] & ~mask) | (state.config[index] & mask)
            }
            contents.msix?.table = state.vectors
            contents.msix?.pending = state.pending
            contents.lineWanted = state.lineWanted
            contents.updateLine()
        }
    }
}
