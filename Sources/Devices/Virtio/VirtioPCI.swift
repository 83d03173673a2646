// The modern PCI transport of virtio.
//
// Virtual I/O Device (VIRTIO) 1.2, 4.1. BAR 1: MSI-X; BAR 4 (64-bit, 16 KiB): the four structures.
//
//   0000  common configuration (4.1.4.3)
//         00 device_feature_select RW   04 device_feature RO   08 driver_feature_select RW   0C driver_feature RW
//         10 config_msix_vector RW      12 num_queues RO       14 device_status RW           15 config_generation RO
//         16 queue_select RW            18 queue_size RW       1A queue_msix_vector RW       1C queue_enable RW
//         1E queue_notify_off RO        20 queue_desc RW       28 queue_driver RW            30 queue_device RW
//   1000  ISR status: bit 0 queue, bit 1 configuration; cleared by reading
//   2000  device-specific configuration
//   3000  notifications, four bytes a queue
public import DeviceModel
public import GuestMemory
internal import Synchronization

/// Bits of the device status register.
///
/// - Spec: virtio 1.2, 2.1
public struct VirtioStatus: OptionSet, Sendable {
    /// The bits.
    public let rawValue: UInt8
    /// Wraps the bits.
    public init(rawValue: UInt8) { self.rawValue = rawValue }
    /// The guest has seen the device.
    public static let acknowledge = VirtioStatus(rawValue: 1)
    /// The guest has a driver.
    public static let driver = VirtioStatus(rawValue: 2)
    /// The driver works the device.
    public static let driverOK = VirtioStatus(rawValue: 4)
    /// Features are agreed on.
    public static let featuresOK = VirtioStatus(rawValue: 8)
    /// The device met an error it can't recover from.
    public static let needsReset = VirtioStatus(rawValue: 64)
    /// The guest has given up.
    public static let failed = VirtioStatus(rawValue: 128)
}

/// A virtio device on the PCI bus.
public final class VirtioPCI: PCIDevice {
    struct QueueSetup: Sendable, Codable, Equatable {
        var size: UInt16
        var vector: UInt16 = 0xFFFF
        var isEnabled = false
        var descriptors: UInt64 = 0
        var available: UInt64 = 0
        var used: UInt64 = 0
    }

    struct Control: Sendable {
        var deviceFeatureSelect: UInt32 = 0
        var driverFeatureSelect: UInt32 = 0
        var driverFeatures: UInt64 = 0
        var configVector: UInt16 = 0xFFFF
        var status = VirtioStatus()
        var generation: UInt8 = 0
        var queueSelect: UInt16 = 0
        var interruptStatus: UInt8 = 0
        var queues: [QueueSetup]
    }

    private final class LockedQueue: Sendable {
        let queue: Mutex<Virtqueue>
        init(_ memory: GuestMemory) { queue = Mutex(Virtqueue(memory: memory)) }
    }

    /// Queues in which chains were left.
    private struct Rest: Sendable {
        var queues: Set<Int> = []
        var timer: (any DoorTimer)?
    }

    /// The PCI function.
    public let function: PCIFunction
    /// The device behind the transport.
    public let device: any VirtioDevice
    /// The guest's memory.
    public let memory: GuestMemory

    // Locks are taken in this order: a queue, `control`, the function.
    private let queues: [LockedQueue]
    private let control: Mutex<Control>
    private let offered: UInt64
    private let door: any Door
    private let rest = Mutex(Rest())

    /// Puts a device behind a transport; add the transport to a `PCIHostBridge`.
    public init(device: any VirtioDevice, memory: GuestMemory, door: any Door) {
        self.device = device
        self.memory = memory
        self.door = door
        offered =
            device.features | VirtioFeature.version1 | VirtioFeature.eventIndex | VirtioFeature.indirectDescriptors
        queues = device.queueSizes.map { _ in LockedQueue(memory) }
        control = Mutex(Control(queues: device.queueSizes.map { QueueSetup(size: $0) }))
        function = PCIFunction(
            PCIIdentity(
                vendor: 0x1AF4, device: 0x1040 &+ device.deviceID, classCode: device.classCode, revision: 1,
                subsystemVendor: 0x1AF4, subsystem: 0x1100, hasInterruptPin: true))
        function.addMSIX(vectors: device.queueSizes.count + 1, bar: 1)
        function.addBAR(4, .memory64, size: 0x4000, device: VirtioWindow(self))
        addStructure(1, offset: 0, length: 0x38)
        addStructure(3, offset: 0x1000, length: 1)
        addStructure(4, offset: 0x2000, length: 0x1000)
        addStructure(2, offset: 0x3000, length: 0x1000, extra: littleEndian(UInt32(4)))
        function.addAccessWindow()
        device.attach(to: self)
    }

    /// - Spec: virtio 1.2, 4.1.4
    private func addStructure(_ type: UInt8, offset: UInt32, length: UInt32, extra: [UInt8] = []) {
        let body = [UInt8(16 + extra.count), type, 4, 0, 0, 0] + littleEndian(offset) + littleEndian(length) + extra
        function.addCapability(0x09, body)
    }

    // MARK: For devices

    /// Works on a queue under its lock; an error breaks the device until it is reset. Nil if the device isn't running.
    @discardableResult
    public func withQueue<Result: Sendable>(
        _ index: Int, _ body: (inout Virtqueue) throws(VirtqueueError) -> Result
    ) -> Result? {
        guard queues.indices.contains(index), isRunning else { return nil }
        var isBroken = false
        let result = queues[index].queue.withLock { queue -> Result? in
            do {
                return try body(&queue)
            } catch {
                queue.stop()
                isBroken = true
                return nil
            }
        }
        if isBroken { needReset() }
        return result
    }

    /// Takes chains from a queue until it is empty, and asks to be notified of the next. More than `limit` chains, or another
    /// vCPU that adds without end, don't hold up this thread: the device looks at the rest later.
    ///
    /// `body` gets each chain under the queue's lock and returns the bytes written, or nil to give it back later.
    public func drain(_ index: Int, limit: Int = 65536, _ body: (DescriptorChain, UInt64) -> Int?) {
        let hasRest = withQueue(index) { (queue) throws(VirtqueueError) -> Bool in
            var pushed = false
            var left = limit
            var hasMore = true
            while hasMore, left > 0 {
                while left > 0, let chain = try queue.pop() {
                    left -= 1
                    if let written = body(chain, queue.epoch) {
                        try queue.push(head: chain.head, written: written)
                        pushed = true
                    }
                }
                hasMore = try queue.enableNotifications()
            }
            if pushed, try queue.shouldInterrupt() { interrupt(queue: index) }
            return hasMore
        }
        if hasRest == true { lookAgain(at: index) }
    }

    /// Has the device look at a queue once more, soon: the driver has told of what was left there, and won't again.
    public func lookAgain(at index: Int) {
        let timer = rest.withLock { rest in
            rest.queues.insert(index)
            let timer = rest.timer ?? door.makeTimer { [weak self] in self?.lookAgain() }
            rest.timer = timer
            return timer
        }
        timer.arm(at: door.now)
    }

    private func lookAgain() {
        let queues = rest.withLock { rest in
            defer { rest.queues = [] }
            return rest.queues
        }
        for index in queues.sorted() where isRunning { device.notified(queue: index) }
    }

    /// Gives a chain back if the queue still lives as it did when the chain was taken.
    public func complete(_ index: Int, head: UInt16, epoch: UInt64, _ fill: () -> Int) {
        withQueue(index) { (queue) throws(VirtqueueError) in
            guard queue.epoch == epoch, queue.isReady else { return }
            try queue.push(head: head, written: fill())
            if try queue.shouldInterrupt() { interrupt(queue: index) }
        }
    }

    /// Whether the driver is ready, the device isn't broken, and it may use memory.
    public var isRunning: Bool {
        let status = control.withLock { $0.status }
        return status.contains(.driverOK) && !status.contains(.needsReset) && function.isBusMaster
    }

    /// Interrupts for a queue.
    public func interrupt(queue index: Int) {
        let vector = control.withLock { control -> UInt16 in
            raise(1, &control)
            return index < control.queues.count ? control.queues[index].vector : 0xFFFF
        }
        function.signal(vector: Int(vector))
    }

    /// Tells the driver that the device-specific configuration has changed.
    public func configurationChanged() {
        let vector = control.withLock { control -> UInt16? in
            control.generation = control.generation &+ 1
            guard control.status.contains(.driverOK) else { return nil }
            raise(2, &control)
            return control.configVector
        }
        if let vector { function.signal(vector: Int(vector)) }
    }

    /// Breaks the device until the driver resets it.
    ///
    /// - Spec: virtio 1.2, 2.1.2
    public func needReset() {
        control.withLock { _ = $0.status.insert(.needsReset) }
        configurationChanged()
    }

    /// Sets bits of the ISR status and, without MSI-X, the wire: both at once, or the wire of an interrupt could be that of
    /// one which is being read.
    private func raise(_ bits: UInt8, _ control: inout Control) {
        control.interruptStatus |= bits
        if !function.isMSIXEnabled { function.setInterrupt(true) }
    }

    /// The ISR status, which reading clears, and the wire with it.
    private func takeInterruptStatus() -> UInt8 {
        control.withLock { control in
            defer {
                control.interruptStatus = 0
                function.setInterrupt(false)
            }
            return control.interruptStatus
        }
    }

    /// Number of queues.
    var queueCount: Int { queues.count }

    // MARK: Reset

    /// Resets device and queues as writing 0 to the status register does.
    public func resetDevice() {
        control.withLock { control in
            control = Control(queues: device.queueSizes.map { QueueSetup(size: $0) })
        }
        for queue in queues { queue.queue.withLock { $0.reset() } }
        device.reset()
        _ = takeInterruptStatus()
    }

    // MARK: Register accesses

    func read(_ offset: UInt64, _ size: Int) -> UInt64 {
        switch offset {
        case 0..<0x1000: return readCommon(Int(offset), size)
        case 0x1000: return UInt64(takeInterruptStatus())
        case 0x2000..<0x3000:
            let bytes = device.configuration
            let start = Int(offset - 0x2000)
            return number((0..<size).map { start + $0 < bytes.count ? bytes[start + $0] : 0 })
        default: return 0
        }
    }

    func write(_ offset: UInt64, _ size: Int, _ value: UInt64) {
        switch offset {
        case 0..<0x1000: writeCommon(Int(offset), size, value)
        case 0x2000..<0x3000:
            for index in 0..<min(size, 8) {
                device.configure(
                    offset: Int(offset - 0x2000) + index, value: UInt8(truncatingIfNeeded: value >> UInt64(index * 8)))
            }
        case 0x3000..<0x4000:
            let index = Int(offset - 0x3000) / 4
            if queues.indices.contains(index), isRunning { device.notified(queue: index) }
        default: break
        }
    }

    private func readCommon(_ offset: Int, _ size: Int) -> UInt64 {
        control.withLock { control in
            let selected = Int(control.queueSelect)
            let queue = selected < control.queues.count ? control.queues[selected] : nil
            switch offset {
            case 0x00: return UInt64(control.deviceFeatureSelect)
            case 0x04: return Self.word(offered, control.deviceFeatureSelect)
            case 0x08: return UInt64(control.driverFeatureSelect)
            case 0x0C: return Self.word(control.driverFeatures, control.driverFeatureSelect)
            case 0x10: return UInt64(control.configVector)
            case 0x12: return UInt64(control.queues.count)
            case 0x14 where size == 2: return UInt64(control.status.rawValue) | UInt64(control.generation) << 8
            case 0x14: return UInt64(control.status.rawValue)
            case 0x15: return UInt64(control.generation)
            case 0x16: return UInt64(control.queueSelect)
            case 0x18: return UInt64(queue?.size ?? 0)
            case 0x1A: return UInt64(queue?.vector ?? 0xFFFF)
            case 0x1C: return queue?.isEnabled == true ? 1 : 0
            case 0x1E: return queue == nil ? 0 : UInt64(selected)
            case 0x20: return queue?.descriptors ?? 0
            case 0x24: return (queue?.descriptors ?? 0) >> 32
            case 0x28: return queue?.available ?? 0
            case 0x2C: return (queue?.available ?? 0) >> 32
            case 0x30: return queue?.used ?? 0
            case 0x34: return (queue?.used ?? 0) >> 32
            default: return 0
            }
        }
    }

    private static func word(_ features: UInt64, _ select: UInt32) -> UInt64 {
        select < 2 ? features >> UInt64(select * 32) & 0xFFFF_FFFF : 0
    }

    private func writeCommon(_ offset: Int, _ size: Int, _ value: UInt64) {
        if offset == 0x14 { return writeStatus(VirtioStatus(rawValue: UInt8(truncatingIfNeeded: value))) }
        if offset == 0x1C { return enableSelectedQueue(value & 0xFFFF) }
        let word = UInt32(truncatingIfNeeded: value)
        let half = UInt16(truncatingIfNeeded: value)
        control.withLock { control in
            switch offset {
            case 0x00: control.deviceFeatureSelect = word
            case 0x08: control.driverFeatureSelect = word
            case 0x0C:
                guard !control.status.contains(.featuresOK), control.driverFeatureSelect < 2 else { return }
                let shift = UInt64(control.driverFeatureSelect * 32)
                control.driverFeatures = control.driverFeatures & ~(0xFFFF_FFFF << shift) | UInt64(word) << shift
            case 0x10: control.configVector = half <= control.queues.count ? half : 0xFFFF
            case 0x16: control.queueSelect = half
            default: control.writeQueue(offset, size, value, largest: device.queueSizes)
            }
        }
    }

    /// - Spec: virtio 1.2, 3.1.1
    private func writeStatus(_ status: VirtioStatus) {
        if status.rawValue == 0 { return resetDevice() }
        let activated = control.withLock { control -> (features: UInt64, queues: [Int])? in
            let before = control.status
            var after = status.union(before.intersection(.needsReset))
            if status.contains(.featuresOK), !before.contains(.featuresOK) {
                let agreed = control.driverFeatures
                if agreed & ~offered != 0 || agreed & VirtioFeature.version1 == 0 { after.remove(.featuresOK) }
            }
            if !after.contains(.featuresOK) { after.remove(.driverOK) }
            control.status = after
            guard after.contains(.driverOK), !before.contains(.driverOK) else { return nil }
            return (control.driverFeatures, control.queues.indices.filter { control.queues[$0].isEnabled })
        }
        guard let activated else { return }
        device.activate(features: activated.features)
        // Some drivers (Linux's balloon) put buffers in a queue before, and their notification came too early.
        for queue in activated.queues { device.notified(queue: queue) }
    }

    private func enableSelectedQueue(_ value: UInt64) {
        let setup = control.withLock { control -> (Int, QueueSetup, UInt64)? in
            let index = Int(control.queueSelect)
            guard value == 1, index < control.queues.count, !control.queues[index].isEnabled,
                control.status.contains(.featuresOK)
            else { return nil }
            control.queues[index].isEnabled = true
            return (index, control.queues[index], control.driverFeatures)
        }
        guard let (index, queue, features) = setup else { return }
        let isGood = queues[index].queue.withLock { locked in
            (try? locked.enable(
                size: queue.size, descriptors: queue.descriptors, available: queue.available, used: queue.used,
                eventIndex: features & VirtioFeature.eventIndex != 0,
                indirect: features & VirtioFeature.indirectDescriptors != 0)) != nil
        }
        if !isGood { needReset() }
    }
}

extension VirtioPCI.Control {
    /// Writes a register of the selected queue.
    mutating func writeQueue(_ offset: Int, _ size: Int, _ value: UInt64, largest: [UInt16]) {
        let index = Int(queueSelect)
        guard index < queues.count else { return }
        let half = UInt16(truncatingIfNeeded: value)
        if offset == 0x1A {
            queues[index].vector = half <= queues.count ? half : 0xFFFF
            return
        }
        guard !queues[index].isEnabled else { return }
        switch offset {
        case 0x18: if half.nonzeroBitCount == 1, half <= largest[index] { queues[index].size = half }
        case 0x20, 0x24: Self.set(&queues[index].descriptors, isHigh: offset == 0x24, size, value)
        case 0x28, 0x2C: Self.set(&queues[index].available, isHigh: offset == 0x2C, size, value)
        case 0x30, 0x34: Self.set(&queues[index].used, isHigh: offset == 0x34, size, value)
        default: break
        }
    }

    /// Sets a 64-bit register whole or by halves.
    private static func set(_ register: inout UInt64, isHigh: Bool, _ size: Int, _ value: UInt64) {
        if isHigh {
            register = register & 0xFFFF_FFFF | (value & 0xFFFF_FFFF) << 32
        } else if size == 8 {
            register = value
        } else {
            register = register & ~0xFFFF_FFFF | value & 0xFFFF_FFFF
        }
    }
}

/// The base address register with the four structures.
private final class VirtioWindow: NotifiedDevice {
    private let owner = Mutex(WeakTransport())

    init(_ transport: VirtioPCI) { owner.withLock { $0.transport = transport } }

    func read(offset: UInt64, size: Int) -> UInt64 { owner.withLock { $0.transport }?.read(offset, size) ?? ~0 }

    func write(offset: UInt64, size: Int, value: UInt64) {
        owner.withLock { $0.transport }?.write(offset, size, value)
    }

    var notificationOffsets: [UInt64] {
        let count = owner.withLock { $0.transport }?.queueCount ?? 0
        return (0..<UInt64(count)).map { 0x3000 + 4 * $0 }
    }

    func notify(offset: UInt64) { write(offset: offset, size: 2, value: 0) }
}

// MARK: Saved state

extension VirtioPCI: Saveable {
    /// Transport, queues, function and device.
    public struct State: Codable, Sendable {
        /// Version of this layout.
        public var version = 1
        /// The PCI function.
        public var function: PCIFunction.State
        /// Selectors: device feature, driver feature, queue.
        public var selectors: [UInt32]
        /// Features that the driver wrote.
        public var driverFeatures: UInt64
        /// Status, generation and interrupt status.
        public var status, generation, interruptStatus: UInt8
        /// Vector for configuration changes.
        public var configVector: UInt16
        /// Registers of each queue.
        var setups: [QueueSetup]
        /// The queues.
        public var queues: [Virtqueue.State]
        /// What the device holds beside them.
        public var device: VirtioDeviceState
        /// Queues in which chains were left.
        var rest: [Int]?
    }

    /// Takes the state.
    public func saveState() -> State {
        let control = control.withLock { $0 }
        return State(
            function: function.saveState(),
            selectors: [control.deviceFeatureSelect, control.driverFeatureSelect, UInt32(control.queueSelect)],
            driverFeatures: control.driverFeatures, status: control.status.rawValue, generation: control.generation,
            interruptStatus: control.interruptStatus, configVector: control.configVector, setups: control.queues,
            queues: queues.map { $0.queue.withLock { $0.state } }, device: device.saveDeviceState(),
            rest: rest.withLock { $0.queues.isEmpty ? nil : $0.queues.sorted() })
    }

    /// Puts a state back, guest memory first.
    public func restoreState(_ state: State) throws {
        guard state.version == 1, state.selectors.count == 3, state.setups.count == queues.count,
            state.queues.count == queues.count, state.driverFeatures & ~offered == 0
        else { throw StateError("the saved state of a virtio device doesn't fit") }
        resetDevice()
        try function.restoreState(state.function)
        for (queue, saved) in zip(queues, state.queues) { try queue.queue.withLock { try $0.restore(saved) } }
        control.withLock { control in
            control.deviceFeatureSelect = state.selectors[0]
            control.driverFeatureSelect = state.selectors[1]
            control.queueSelect = UInt16(truncatingIfNeeded: state.selectors[2])
            control.driverFeatures = state.driverFeatures
            control.status = VirtioStatus(rawValue: state.status)
            control.generation = state.generation
            control.interruptStatus = state.interruptStatus
            control.configVector = state.configVector
            control.queues = state.setups
        }
        if VirtioStatus(rawValue: state.status).contains(.driverOK) { device.activate(features: state.driverFeatures) }
        try device.restoreDeviceState(state.device)
        for index in state.rest ?? [] where queues.indices.contains(index) { lookAgain(at: index) }
    }
}
