// What a network card's driver sets by commands: its address, which packets it wants, how many pairs of queues it uses.
//
// Virtual I/O Device (VIRTIO) 1.2, 5.1.6.5. A command is a class, a command of the class and its data; the answer a byte.
//
//   class 0  which packets   0 promiscuous, 1 all multicast; one byte, on or off
//   class 1  addresses       0 tables: twice a number 32 and so many addresses, unicast first; 1 the card's own
//   class 4  queues          0 number of pairs 16
//
// A card that was reset is promiscuous.

/// What commands have set.
public struct VirtioNetControl: Codable, Sendable, Equatable {
    /// The answers.
    enum Answer: UInt8 {
        case done = 0
        case failed = 1
    }

    /// Longer commands are tables of addresses, whose packets are then all wanted.
    static let longestCommand = 4096

    /// The card's MAC address.
    var address: [UInt8]
    /// Pairs of queues in use.
    var pairs = 1
    private var isPromiscuous = true
    private var takesAllMulticast = false
    private var unicast: Set<UInt64> = []
    private var multicast: Set<UInt64> = []
    /// A table was too long to keep.
    private var hasTooMany = false

    init(address: [UInt8]) { self.address = address }

    /// Whether a card with so many pairs can have been set so.
    func isSound(pairs most: Int) -> Bool {
        let most = 1...most
        return address.count == 6 && most ~= pairs && unicast.count + multicast.count <= Self.longestCommand / 6
    }

    /// Whether the driver wants a frame.
    ///
    /// - Spec: virtio 1.2, 5.1.6.5.1
    func wants(_ frame: ArraySlice<UInt8>) -> Bool {
        if isPromiscuous || frame.count < 6 { return true }
        let target = frame.prefix(6)
        if target.elementsEqual(address) || target.allSatisfy({ $0 == 0xFF }) { return true }
        let isGroup = target[target.startIndex] & 1 != 0
        if hasTooMany || isGroup && takesAllMulticast { return true }
        return (isGroup ? multicast : unicast).contains(number(target))
    }

    /// Carries a command out; one that isn't whole was longer.
    mutating func obey(_ command: [UInt8], isWhole: Bool, features: VirtioNetFeatures, pairs most: Int) -> Answer {
        guard command.count >= 2 else { return .failed }
        let data = command[2...]
        switch (command[0], command[1]) {
        case (0, 0) where features.contains(.filter) && data.count == 1: isPromiscuous = data[2] != 0
        case (0, 1) where features.contains(.filter) && data.count == 1: takesAllMulticast = data[2] != 0
        case (1, 0) where features.contains(.filter): return setTables(data, isWhole: isWhole)
        case (1, 1) where features.contains(.settableAddress) && data.count == 6: address = Array(data)
        case (4, 0) where features.contains(.multiqueue) && data.count == 2:
            let wanted = Int(number(data))
            guard wanted >= 1, wanted <= most else { return .failed }
            pairs = wanted
        default: return .failed
        }
        return .done
    }

    private mutating func setTables(_ data: ArraySlice<UInt8>, isWhole: Bool) -> Answer {
        hasTooMany = !isWhole
        (unicast, multicast) = ([], [])
        if !isWhole { return .done }
        var rest = data
        guard let first = Self.table(&rest), let second = Self.table(&rest), rest.isEmpty else {
            hasTooMany = true
            return .failed
        }
        (unicast, multicast) = (first, second)
        return .done
    }

    /// Takes a table from the front of some bytes.
    private static func table(_ bytes: inout ArraySlice<UInt8>) -> Set<UInt64>? {
        guard bytes.count >= 4 else { return nil }
        let count = number(bytes.prefix(4))
        bytes = bytes.dropFirst(4)
        guard count <= UInt64(bytes.count / 6) else { return nil }
        var result: Set<UInt64> = []
        for _ in 0..<Int(count) {
            result.insert(number(bytes.prefix(6)))
            bytes = bytes.dropFirst(6)
        }
        return result
    }
}
