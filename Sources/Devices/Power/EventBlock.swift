// What ACPI's generic event device looks at: which events there were, and which processors there are. A block of our own,
// whose only driver are the methods in the board's tables.
//
// block at port 620, read in whole double words
//
//   00 R     events since this was last read: 0 the generation ID has changed   1 processors are to come or to go
//   04 08 R  processors that are there, 31:0 and 63:32
//   0C 10 R  processors that have come since this was last read
//   14 18 R  processors that the guest is asked to let go, since this was last read
//   1C W     number of a processor that the guest has let go
public import DeviceModel
internal import Synchronization

/// Events for the guest's ACPI, and the processors that come and go.
public final class EventBlock: BusDevice, Saveable {
    /// First port of the block.
    public static let port: UInt16 = 0x620
    /// Ports in the block.
    public static let length: UInt16 = 0x20

    /// Something that the guest is told of.
    public enum Event: UInt32, Sendable {
        /// The generation ID has changed.
        case generation = 1
        /// Processors are to come or to go.
        case processors = 2
    }

    /// The block's whole state.
    public struct State: Codable, Sendable, Equatable {
        var version = 1
        var events: UInt32 = 0
        /// A bit for each processor.
        var present: UInt64
        var arrived: UInt64 = 0
        var leaving: UInt64 = 0
    }

    private struct Contents {
        var state: State
        var ejected: (@Sendable (Int) -> Void)?
    }

    private let contents: Mutex<Contents>
    private let line: any InterruptLine
    /// A bit for each processor that there can be.
    private let possible: UInt64

    /// Makes a block for so many processors, the first of which are there; `line` leads to the generic event device.
    public init(processors: Int, of possible: Int, line: any InterruptLine) {
        self.line = line
        self.possible = Self.first(possible)
        contents = Mutex(Contents(state: State(present: Self.first(processors))))
    }

    private static func first(_ count: Int) -> UInt64 { count >= 64 ? .max : (1 &<< UInt64(max(count, 1))) &- 1 }

    /// Sets what is called when the guest has let go of a processor, on the vCPU's thread that says so.
    public func onEject(_ body: @escaping @Sendable (Int) -> Void) { contents.withLock { $0.ejected = body } }

    /// Attaches the block at port 0x620.
    @discardableResult
    public func attach(to ports: Bus) -> Bool {
        ports.attach(self, at: UInt64(Self.port), length: UInt64(Self.length))
    }

    /// The processors that are there, a bit each.
    public var present: UInt64 { contents.withLock { $0.state.present } }

    /// Tells of an event.
    public func tell(_ event: Event) {
        contents.withLock { $0.state.events |= event.rawValue }
        line.pulse()
    }

    /// Processors have come, which is still to be told.
    public func add(_ processors: UInt64) {
        contents.withLock { contents in
            contents.state.present |= processors & possible
            contents.state.arrived |= processors & possible
            contents.state.leaving &= ~processors
        }
    }

    /// Asks the guest to let processors go.
    public func askFor(_ processors: UInt64) {
        contents.withLock { $0.state.leaving |= processors & $0.state.present & ~1 }
        tell(.processors)
    }

    /// Power-on reset; the processors stay.
    public func reset() { contents.withLock { $0.state = State(present: $0.state.present) } }

    // MARK: Registers

    /// Reads a register.
    public func read(offset: UInt64, size: Int) -> UInt64 {
        guard size == 4 else { return 0 }
        return contents.withLock { contents in
            switch offset {
            case 0x00:
                defer { contents.state.events = 0 }
                return UInt64(contents.state.events)
            case 0x04: return contents.state.present & 0xFFFF_FFFF
            case 0x08: return contents.state.present >> 32
            case 0x0C, 0x10: return Self.take(&contents.state.arrived, upper: offset == 0x10)
            case 0x14, 0x18: return Self.take(&contents.state.leaving, upper: offset == 0x18)
            default: return 0
            }
        }
    }

    private static func take(_ bits: inout UInt64, upper: Bool) -> UInt64 {
        defer { bits &= upper ? 0xFFFF_FFFF : ~0xFFFF_FFFF }
        return upper ? bits >> 32 : bits & 0xFFFF_FFFF
    }

    /// Writes a register.
    public func write(offset: UInt64, size: Int, value: UInt64) {
        // The first processor stays.
        guard offset == 0x1C, size == 4, 1..<64 ~= value else { return }
        let ejected = contents.withLock { contents -> (@Sendable (Int) -> Void)? in
            guard contents.state.present & 1 &<< value != 0 else { return nil }
            contents.state.present &= ~(1 &<< value)
            contents.state.arrived &= ~(1 &<< value)
            return contents.ejected
        }
        ejected?(Int(value))
    }

    // MARK: State

    /// Takes the state.
    public func saveState() -> State { contents.withLock { $0.state } }

    /// Puts a state back.
    public func restoreState(_ state: State) throws {
        try requireVersion(state.version, 1, "event block")
        guard state.present & 1 != 0, (state.present | state.arrived | state.leaving) & ~possible == 0 else {
            throw StateError("event block: this machine hasn't so many processors")
        }
        contents.withLock { $0.state = state }
    }
}
