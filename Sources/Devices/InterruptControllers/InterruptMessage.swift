// An interrupt on its way to the local APICs, and the bus that brings it there.
// - Spec: SDM 3A 11.6 (interprocessor interrupts), 11.11 (message-signaled interrupts).
public import DeviceModel
internal import Synchronization

/// How a local APIC treats a message.
public enum DeliveryMode: UInt8, Sendable, Codable {
    case fixed, lowestPriority, systemManagement, reserved, nonMaskable, initialize, startup, external
}

/// One interrupt message: from an I/O APIC, a device (MSI) or another local APIC.
public struct InterruptMessage: Sendable, Equatable {
    /// APIC identifier, or logical destination.
    public var destination: UInt32
    /// The destination is logical.
    public var isLogical: Bool
    /// What to do.
    public var mode: DeliveryMode
    /// Vector for fixed, lowest priority and startup.
    public var vector: UInt8
    /// Level triggered: the I/O APIC waits for the end of interrupt.
    public var isLevel: Bool

    /// Makes a message of its parts.
    public init(
        destination: UInt32, isLogical: Bool = false, mode: DeliveryMode = .fixed, vector: UInt8, isLevel: Bool = false
    ) {
        self.destination = destination
        self.isLogical = isLogical
        self.mode = mode
        self.vector = vector
        self.isLevel = isLevel
    }

    /// Decodes an MSI; nil when the address is not in FEEx_xxxx.
    public init?(address: UInt64, data: UInt32) {
        guard address >> 20 == 0xFEE else { return nil }
        destination = UInt32(truncatingIfNeeded: address >> 12) & 0xFF
        isLogical = address & 4 != 0
        mode = DeliveryMode(rawValue: UInt8(truncatingIfNeeded: data >> 8) & 7) ?? .fixed
        vector = UInt8(truncatingIfNeeded: data)
        isLevel = data & 0x8000 != 0
    }

    /// The message as address and data of an MSI; bits 31:8 of the destination stand in address bits 63:40.
    public var words: (address: UInt64, data: UInt32) {
        let address = 0xFEE0_0000 | UInt64(destination & 0xFF) << 12 | UInt64(destination >> 8) << 40
        let data = UInt32(vector) | UInt32(mode.rawValue) << 8 | (isLevel ? 0xC000 : 0)
        return (address | (isLogical ? 4 : 0), data)
    }

    /// Every local APIC is meant.
    var isBroadcast: Bool { !isLogical && (destination == 0xFF || destination == 0xFFFF_FFFF) }
}

/// Where local APICs are when an engine has them: messages and routes go there.
public struct LocalAPICHost: Sendable {
    /// Delivers a message; false when nobody took it.
    public var deliver: @Sendable (InterruptMessage) -> Bool
    /// Tells what an I/O APIC pin sends while it is open and level-triggered, else nil.
    public var route: @Sendable (Int, InterruptMessage?) -> Void

    /// Makes one of its parts.
    public init(
        deliver: @escaping @Sendable (InterruptMessage) -> Bool,
        route: @escaping @Sendable (Int, InterruptMessage?) -> Void
    ) {
        self.deliver = deliver
        self.route = route
    }
}

/// Carries messages to local APICs by destination, and ends of interrupt back to I/O APICs.
public final class APICBus: MessageInterruptTarget {
    private struct Contents {
        var local: [LocalAPIC] = []
        var inputOutput: [IOAPIC] = []
        var turn = 0
        var host: LocalAPICHost?
        /// Messages that wait until all local APICs are where they go; nil: none has to.
        var held: [InterruptMessage]?
    }

    private let contents = Mutex(Contents())

    /// A bus with nothing on it.
    public init() {}

    /// Where the local APICs are now; nil: they are those on this bus. No vCPU runs meanwhile.
    public var host: LocalAPICHost? {
        get { contents.withLock { $0.host } }
        set {
            let chips = contents.withLock { contents in
                contents.host = newValue
                return contents.inputOutput
            }
            for chip in chips { chip.announceRoutes() }
        }
    }

    /// Holds messages back while local APICs go to an engine or come back from it: neither has them whole meanwhile.
    public func hold() { contents.withLock { $0.held = $0.held ?? [] } }

    /// Delivers what was held back, and holds nothing back any more.
    public func release() {
        while true {
            let messages = contents.withLock { contents -> [InterruptMessage]? in
                if contents.held?.isEmpty ?? true {
                    contents.held = nil
                    return nil
                }
                defer { contents.held = [] }
                return contents.held
            }
            guard let messages else { return }
            for message in messages { carry(message) }
        }
    }

    /// Adds a local APIC (set-up only).
    func add(_ apic: LocalAPIC) { contents.withLock { $0.local.append(apic) } }

    /// Lets go of all chips, which refer to the bus (at the end only).
    public func removeAll() {
        // They go when the lock is free again.
        let gone = contents.withLock { contents in
            defer { contents = Contents() }
            return contents
        }
        _ = gone
    }

    /// Adds an I/O APIC (set-up only).
    func add(_ apic: IOAPIC) { contents.withLock { $0.inputOutput.append(apic) } }

    /// The local APICs in the order they were made.
    public var localAPICs: [LocalAPIC] { contents.withLock { $0.local } }

    /// Delivers an MSI; dropped when the address is no interrupt message.
    public func deliver(address: UInt64, data: UInt32) {
        guard let message = InterruptMessage(address: address, data: data) else { return }
        _ = deliver(message)
    }

    /// Delivers a message to all it is meant for, except `excluded`; false when nobody took it.
    @discardableResult
    public func deliver(_ message: InterruptMessage, excluding excluded: LocalAPIC? = nil) -> Bool {
        // With the lock held, so that none is on its way to an engine when that gives its local APICs back.
        let (all, answer) = contents.withLock { contents -> ([LocalAPIC], Bool?) in
            if contents.held != nil {
                // Once is as often as a local APIC remembers it.
                if contents.held?.contains(message) == false { contents.held?.append(message) }
                return ([], true)
            }
            return (contents.local, contents.host?.deliver(message))
        }
        return answer ?? carry(message, to: all, excluding: excluded)
    }

    /// The same for a message that was held back.
    private func carry(_ message: InterruptMessage) {
        let (all, answer) = contents.withLock { ($0.local, $0.host?.deliver(message)) }
        if answer == nil { _ = carry(message, to: all, excluding: nil) }
    }

    private func carry(_ message: InterruptMessage, to all: [LocalAPIC], excluding excluded: LocalAPIC?) -> Bool {
        if message.mode == .lowestPriority { return deliverLowest(message, all) }
        var taken = false
        for apic in all where apic !== excluded && (message.isBroadcast || apic.matches(message)) {
            if apic.accept(message) { taken = true }
        }
        return taken
    }

    /// Picks the destination with the lowest processor priority, in turn among equals.
    private func deliverLowest(_ message: InterruptMessage, _ all: [LocalAPIC]) -> Bool {
        let turn = contents.withLock {
            $0.turn = ($0.turn &+ 1) & 0xFFFF
            return $0.turn
        }
        var best: (apic: LocalAPIC, priority: UInt8)?
        for index in 0..<all.count {
            let apic = all[(index + turn) % all.count]
            guard message.isBroadcast || apic.matches(message), apic.isSoftwareEnabled else { continue }
            let priority = apic.processorPriority
            if best.map({ priority < $0.priority }) ?? true { best = (apic, priority) }
        }
        guard let best else { return false }
        return best.apic.accept(message)
    }

    /// Tells the I/O APICs of the end of a level-triggered interrupt. Called with no lock held.
    public func endOfInterrupt(vector: UInt8) {
        for apic in contents.withLock({ $0.inputOutput }) { apic.endOfInterrupt(vector: vector) }
    }
}
