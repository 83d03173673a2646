// MSI-X of a PCI function: a table of messages and their pending bits in one 4 KiB base address register.
//
// PCI Local Bus Specification 3.0, 6.8.2.
//
//   capability   +2 control: bit 15 enable (RW), bit 14 function mask (RW), bits 10:0 table size - 1 (RO)
//   000-7FF      table, 16 bytes a vector: address low, address high, data, control (bit 0 mask); all RW
//   800-80F      pending bits, one a vector (RO)
internal import DeviceModel
internal import Synchronization

/// The messages of a function.
struct MSIX: Sendable {
    /// Offset of the capability in configuration space.
    var capability: Int
    /// Address low, address high, data and control of each vector.
    var table: [[UInt32]]
    /// Vectors that could not be sent yet.
    var pending: [Bool]

    init(capability: Int, count: Int) {
        self.capability = capability
        table = Array(repeating: [0, 0, 0, 1], count: count)
        pending = Array(repeating: false, count: count)
    }

    mutating func reset() { self = MSIX(capability: capability, count: table.count) }
}

/// The base address register with table and pending bits.
final class MSIXWindow: BusDevice {
    private let owner = Mutex(WeakFunction())

    private struct WeakFunction: Sendable {
        weak var function: PCIFunction?
    }

    init(_ function: PCIFunction) { owner.withLock { $0.function = function } }

    func read(offset: UInt64, size: Int) -> UInt64 {
        guard let function = owner.withLock({ $0.function }) else { return ~0 }
        let low = UInt64(function.msixRead(offset & ~3)) | UInt64(function.msixRead((offset & ~3) &+ 4)) << 32
        return low >> ((offset & 3) * 8)
    }

    func write(offset: UInt64, size: Int, value: UInt64) {
        // Only whole aligned words count; software may use two halves of a quadword.
        guard let function = owner.withLock({ $0.function }), offset & 3 == 0, size >= 4 else { return }
        function.msixWrite(offset, UInt32(truncatingIfNeeded: value))
        if size == 8 { function.msixWrite(offset &+ 4, UInt32(truncatingIfNeeded: value >> 32)) }
    }
}

extension PCIFunction {
    /// Adds MSI-X with up to 128 vectors in a base address register of its own (set-up only).
    public func addMSIX(vectors: Int, bar: Int) {
        let count = max(1, min(vectors, 128))
        let control = UInt16(count - 1)
        let body: [UInt8] = [
            UInt8(truncatingIfNeeded: control), UInt8(truncatingIfNeeded: control >> 8),
            UInt8(truncatingIfNeeded: bar), 0, 0, 0, UInt8(truncatingIfNeeded: bar), 0x08, 0, 0,
        ]
        let offset = addCapability(0x11, body, writable: [0x00, 0xC0])
        contents.withLock { $0.msix = MSIX(capability: offset, count: count) }
        addBAR(bar, .memory32, size: 4096, device: MSIXWindow(self))
    }

    /// Whether the guest uses MSI-X instead of the wire.
    public var isMSIXEnabled: Bool { contents.withLock { $0.isMSIXEnabled } }

    /// Sends a vector's message, or keeps it pending while it is masked.
    public func signal(vector: Int) {
        let message = contents.withLock { contents -> (target: any MessageInterruptTarget, UInt64, UInt32)? in
            guard let msix = contents.msix, vector >= 0, vector < msix.table.count, contents.isMSIXEnabled else {
                return nil
            }
            guard contents.canSend(vector) else {
                contents.msix?.pending[vector] = true
                return nil
            }
            return contents.message(vector)
        }
        if let (target, address, data) = message { target.deliver(address: address, data: data) }
    }

    /// Sends what has become possible to send.
    func flushPending() {
        let messages = contents.withLock { contents -> [(any MessageInterruptTarget, UInt64, UInt32)] in
            guard let msix = contents.msix, contents.isMSIXEnabled else { return [] }
            var messages: [(any MessageInterruptTarget, UInt64, UInt32)] = []
            for vector in msix.pending.indices where msix.pending[vector] && contents.canSend(vector) {
                contents.msix?.pending[vector] = false
                if let message = contents.message(vector) { messages.append(message) }
            }
            return messages
        }
        for (target, address, data) in messages { target.deliver(address: address, data: data) }
    }

    func msixRead(_ offset: UInt64) -> UInt32 {
        contents.withLock { contents in
            guard let msix = contents.msix else { return ~0 }
            if offset >= 0x800 {
                var bits: UInt32 = 0
                let first = Int(truncatingIfNeeded: (offset &- 0x800) &* 8)
                for bit in 0..<32 where first + bit < msix.pending.count && msix.pending[first + bit] {
                    bits |= 1 << UInt32(bit)
                }
                return bits
            }
            let vector = Int(truncatingIfNeeded: offset / 16)
            return vector < msix.table.count ? msix.table[vector][Int(offset / 4 % 4)] : 0
        }
    }

    func msixWrite(_ offset: UInt64, _ value: UInt32) {
        contents.withLock { contents in
            let vector = Int(truncatingIfNeeded: offset / 16)
            guard let msix = contents.msix, vector < msix.table.count else { return }
            let field = Int(offset / 4 % 4)
            contents.msix?.table[vector][field] = field == 3 ? value & 1 : value
        }
        flushPending()
    }
}

extension PCIFunction.Contents {
    var isMSIXEnabled: Bool {
        guard let msix else { return false }
        return config[msix.capability + 3] & 0x80 != 0
    }

    /// Whether nothing masks an existing vector.
    func canSend(_ vector: Int) -> Bool {
        guard let msix else { return false }
        return command.contains(.busMaster) && config[msix.capability + 3] & 0x40 == 0
            && msix.table[vector][3] & 1 == 0
    }

    func message(_ vector: Int) -> (any MessageInterruptTarget, UInt64, UInt32)? {
        guard let msix, let messages else { return nil }
        let entry = msix.table[vector]
        let address = UInt64(entry[0] & ~3) | UInt64(entry[1]) << 32
        // Elsewhere it would be a plain memory write, which no driver asks for.
        guard address >> 20 == 0xFEE else { return nil }
        return (messages, address, entry[2])
    }
}
