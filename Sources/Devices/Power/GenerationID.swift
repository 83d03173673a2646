// The generation of a virtual machine: a number in the guest's memory that is another one after the machine was copied or
// taken back to an earlier state. Microsoft, Virtual Machine Generation ID (2012).
//
// 16 bytes of reserved memory, whose address the ACPI device tells; a change is an event of the event block.
public import DeviceModel
public import GuestMemory
internal import Synchronization

/// The generation ID.
public final class GenerationID: Saveable, Sendable {
    /// Bytes of it.
    public static let length = 16

    /// The whole state.
    public struct State: Codable, Sendable {
        var version = 1
        /// The number.
        var bytes: [UInt8]
    }

    private let memory: GuestMemory
    private let address: GuestPhysicalAddress
    private let door: any Door
    private let contents: Mutex<State>

    /// Keeps a random number at an address.
    public init(at address: GuestPhysicalAddress, memory: GuestMemory, door: any Door) {
        self.memory = memory
        self.address = address
        self.door = door
        contents = Mutex(State(bytes: door.randomBytes(Self.length)))
    }

    /// The number.
    public var bytes: [UInt8] { contents.withLock { $0.bytes } }

    /// Writes the number where the guest will look for it: after memory was cleared.
    public func place() { try? memory.write(bytes, at: address) }

    /// Gives the machine another random number; for a machine that stands still.
    public func change() {
        contents.withLock { $0.bytes = door.randomBytes(Self.length) }
        place()
    }

    /// Takes the state.
    public func saveState() -> State { contents.withLock { $0 } }

    /// Puts a state back; the number itself is in memory.
    public func restoreState(_ state: State) throws {
        guard state.version == 1, state.bytes.count == Self.length else {
            throw StateError("the saved generation ID can't be")
        }
        contents.withLock { $0 = state }
    }
}
