// Where the bytes of a disk request come from and go to, without a copy: guest memory, or memory of our own.
//
// Invariants: RAM is mapped for as long as its `GuestMemory` exists; a list of guest memory is only used between `begin`
// and `end`, and a device that is reset waits for all that have begun (`TransferGate.cut`): its driver may use the memory
// for something else from then on.
public import HostOS

/// A range of guest memory that a device was told of; it lay in RAM when it was checked, and RAM doesn't move.
public struct GuestMemoryRange: Sendable, Equatable, Codable {
    /// First byte.
    public var address: GuestPhysicalAddress
    /// Length in bytes.
    public var length: Int

    /// Makes a range.
    public init(address: GuestPhysicalAddress, length: Int) {
        self.address = address
        self.length = length
    }
}

/// The transfer came too late: the device has been reset since it was asked for.
public struct TransferCut: Error, Sendable {
    /// Makes one.
    public init() {}
}

/// The transfers of a device that go to guest memory, or come from there, now.
public final class TransferGate: @unchecked Sendable {
    // SAFETY of @unchecked: the numbers are touched with the lock held.
    private let lock = ConditionLock()
    private var number: UInt64 = 0
    private var active = 0

    /// A gate through which nothing goes yet.
    public init() {}

    /// Counts resets: what was asked for in an earlier life isn't let through.
    public var life: UInt64 {
        var life: UInt64 = 0
        lock.update { life = number }
        return life
    }

    func begin(_ life: UInt64) -> Bool {
        var isOpen = false
        lock.wait(
            until: { true },
            then: {
                isOpen = number == life; active += isOpen ? 1 : 0
            })
        return isOpen
    }

    func end() { lock.update { active -= 1 } }

    /// Begins a new life, and waits for the transfers of the last to end.
    public func cut() {
        lock.wait(until: { true }, then: { number &+= 1 })
        lock.wait(until: { active == 0 })
    }
}

/// Where the bytes of a request are.
public struct TransferBuffer: Sendable {
    private enum Place: Sendable {
        case guest(GuestMemory, [GuestMemoryRange], TransferGate, life: UInt64)
        case own(ScatterList)
    }

    private let place: Place
    /// A transfer may fill it; else it is only read.
    private let isFilled: Bool
    /// Bytes.
    public let count: Int

    /// A part of a list of ranges of guest memory, for as long as the gate's life is this one.
    public init(
        _ memory: GuestMemory, _ ranges: [GuestMemoryRange], from offset: Int, count: Int, isFilled: Bool,
        gate: TransferGate, life: UInt64
    ) {
        var (parts, skip, rest) = ([GuestMemoryRange](), offset, count)
        for range in ranges where rest > 0 {
            let length = min(range.length - skip, rest)
            if length > 0 {
                parts.append(GuestMemoryRange(address: range.address + UInt64(skip), length: length))
                rest -= length
            }
            skip = max(0, skip - range.length)
        }
        place = .guest(memory, parts, gate, life: life)
        self.isFilled = isFilled
        self.count = count - rest
    }

    /// Memory of our own, to be filled.
    public init(count: Int) {
        self.count = max(0, count)
        place = .own(ScatterList(count: self.count))
        isFilled = true
    }

    /// Bytes to be read.
    public init(_ bytes: [UInt8]) {
        self.init(count: bytes.count)
        own.store(bytes)
    }

    /// What a buffer of our own holds.
    public var bytes: [UInt8] { own.load() }

    /// The memory, which is the transfer's until `end`.
    public func begin() throws -> ScatterList {
        guard case .guest(let memory, let ranges, let gate, let life) = place else { return own }
        guard gate.begin(life) else { throw TransferCut() }
        var pieces: [UnsafeMutableRawBufferPointer] = []
        pieces.reserveCapacity(ranges.count)
        for range in ranges {
            guard let host = memory.hostAddress(range.address, length: range.length, forWriting: isFilled) else {
                gate.end()
                throw GuestMemoryError(address: range.address, length: range.length)
            }
            pieces.append(UnsafeMutableRawBufferPointer(start: host, count: range.length))
        }
        return ScatterList(pieces, owner: memory)
    }

    /// The transfer that has begun is over, whatever came of it.
    public func end() {
        guard case .guest(let memory, let ranges, let gate, _) = place else { return }
        if isFilled { for range in ranges { memory.wasFilled(range) } }
        gate.end()
    }

    private var own: ScatterList {
        if case .own(let list) = place { return list }
        return ScatterList(count: 0)
    }

    /// Transfers.
    public func withMemory<Result>(_ body: (ScatterList) throws -> Result) throws -> Result {
        let list = try begin()
        defer { end() }
        return try body(list)
    }
}

extension GuestMemory {
    /// A range was filled over some time. A page that began to be saved meanwhile is kept as it is now: what the guest
    /// finds in the range isn't defined before it is told, and the rest of the page is as it was.
    fileprivate func wasFilled(_ range: GuestMemoryRange) {
        _ = hostAddress(range.address, length: range.length, forWriting: true)
        didWrite(range.address, length: range.length)
    }
}
