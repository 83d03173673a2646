// QEMU's pc-testdev, for those who test processors (kvm-unit-tests).
//
// ports 2000-2017 W   level of interrupt line n: 0 low, else high
// ports E0-E3 R/W     a latch, by 1, 2 or 4 bytes
// ports E4-E7 W       flush the page of the address written (nothing to do here); R as the latch
// FF000000-FF00FFFF R/W  64 KiB of I/O RAM
public import DeviceModel
internal import Synchronization

/// Interrupt lines, a latch and I/O RAM that a test program drives itself.
public final class TestDevice: Saveable {
    /// Where the I/O RAM is.
    public static let memoryStart: UInt64 = 0xFF00_0000
    /// Its length in bytes.
    public static let memoryLength = 65536

    /// The device's whole state.
    public struct State: Codable, Sendable {
        var version = 1
        var latch: UInt32 = 0
        var memory = [UInt8](repeating: 0, count: TestDevice.memoryLength)
    }

    private final class Room: BusDevice {
        let reader: @Sendable (UInt64, Int) -> UInt64
        let writer: @Sendable (UInt64, Int, UInt64) -> Void

        init(
            read: @escaping @Sendable (UInt64, Int) -> UInt64, write: @escaping @Sendable (UInt64, Int, UInt64) -> Void
        ) {
            reader = read
            writer = write
        }

        func read(offset: UInt64, size: Int) -> UInt64 { reader(offset, size) }
        func write(offset: UInt64, size: Int, value: UInt64) { writer(offset, size, value) }
    }

    fileprivate let state: Box

    /// The state by reference, so that each range's closures can share it.
    fileprivate final class Box: Sendable {
        let mutex = Mutex(State())
    }

    private let lines: [any InterruptLine]

    /// Makes the device; `lines` are the interrupt lines by number, at most 24.
    public init(lines: [any InterruptLine]) {
        self.lines = Array(lines.prefix(24))
        state = Box()
    }

    /// Attaches all its ranges; false if one didn't fit.
    @discardableResult
    public func attach(ports: Bus, memory: Bus) -> Bool {
        let lines = self.lines
        let interrupts = Room(read: { _, _ in 0 }) { offset, _, value in
            guard offset < UInt64(lines.count) else { return }
            lines[Int(truncatingIfNeeded: offset)].set(value & 0xFFFF_FFFF != 0)
        }
        let box = state
        let latch = Room(read: { offset, size in box.readLatch(offset) }) { offset, size, value in
            if offset < 4 { box.writeLatch(offset, size, value) }
        }
        let room = Room(read: { box.readMemory($0, $1) }, write: { box.writeMemory($0, $1, $2) })
        let attached = [
            ports.attach(interrupts, at: 0x2000, length: 24), ports.attach(latch, at: 0xE0, length: 8),
            memory.attach(room, at: Self.memoryStart, length: UInt64(Self.memoryLength)),
        ]
        return attached.allSatisfy { $0 }
    }

    /// Takes the state.
    public func saveState() -> State { state.mutex.withLock { $0 } }

    /// Puts a state back.
    public func restoreState(_ new: State) throws {
        try requireVersion(new.version, 1, "test device")
        guard new.memory.count == Self.memoryLength else { throw StateError("test device: not 64 KiB of I/O RAM") }
        state.mutex.withLock { $0 = new }
    }
}

extension TestDevice.Box {
    func readLatch(_ offset: UInt64) -> UInt64 { mutex.withLock { UInt64($0.latch) &>> ((offset & 3) &* 8) } }

    func writeLatch(_ offset: UInt64, _ size: Int, _ value: UInt64) {
        mutex.withLock { state in
            let bits: UInt32 = size >= 4 ? ~0 : size == 2 ? 0xFFFF : 0xFF
            let shift = UInt32(truncatingIfNeeded: offset & 3) &* 8
            let kept = ~(bits &<< shift)
            state.latch = state.latch & kept | (UInt32(truncatingIfNeeded: value) & bits) &<< shift
        }
    }

    func readMemory(_ offset: UInt64, _ size: Int) -> UInt64 {
        mutex.withLock { state in
            readByteWise(offset, size) { at in
                at < UInt64(state.memory.count) ? state.memory[Int(truncatingIfNeeded: at)] : 0xFF
            }
        }
    }

    func writeMemory(_ offset: UInt64, _ size: Int, _ value: UInt64) {
        mutex.withLock { state in
            writeByteWise(offset, size, value) { at, byte in
                if at < UInt64(state.memory.count) { state.memory[Int(truncatingIfNeeded: at)] = byte }
            }
        }
    }
}
