// Interrupts from devices: wires and messages.

/// A level-triggered wire from a device to the interrupt controllers; raising twice is raising once.
public protocol InterruptLine: Sendable {
    /// Sets the level of the wire.
    func set(_ level: Bool)
}

extension InterruptLine {
    /// An edge: up and down.
    public func pulse() {
        set(true)
        set(false)
    }
}

/// Where message-signaled interrupts go: the local APICs.
///
/// - Spec: SDM 3A 11.11, message address and data.
public protocol MessageInterruptTarget: Sendable {
    /// Delivers one message.
    func deliver(address: UInt64, data: UInt32)
}

/// A wire that nothing is connected to.
public struct UnconnectedLine: InterruptLine {
    /// Makes one.
    public init() {}
    /// Does nothing.
    public func set(_ level: Bool) {}
}
