// The virtio console: one port.
//
// Virtual I/O Device (VIRTIO) 1.2, 5.3. Queue 0 receives (input to the guest), queue 1 transmits.
//
//   configuration  00 cols 16   02 rows 16   04 max_nr_ports 32   08 emerg_wr 32 (W: one character)
public import DeviceModel
internal import Synchronization

/// A virtio console.
public final class VirtioConsole: VirtioDevice {
    private struct Contents: Sendable {
        var input: [UInt8] = []
        var columns: UInt16 = 80
        var rows: UInt16 = 25
        var reference = WeakTransport()
    }

    static let largestInput = 65536
    static let largestOutput = 65536

    private let door: any Door
    private let output: @Sendable ([UInt8]) -> Void
    private let contents = Mutex(Contents())

    /// Makes a console; `output` gets what the guest prints, on the thread that prints it.
    public init(door: any Door, output: @escaping @Sendable ([UInt8]) -> Void) {
        self.door = door
        self.output = output
    }

    /// Console.
    public var deviceID: UInt16 { 3 }
    /// Simple communication controller, other.
    public var classCode: UInt32 { 0x078000 }
    /// Receive and transmit.
    public var queueSizes: [UInt16] { [128, 128] }
    /// SIZE and EMERG_WRITE.
    public var features: UInt64 { 1 << 0 | 1 << 2 }

    /// Size of the terminal and number of ports.
    public var configuration: [UInt8] {
        let (columns, rows) = contents.withLock { ($0.columns, $0.rows) }
        return littleEndian(columns) + littleEndian(rows) + littleEndian(UInt32(1)) + [0, 0, 0, 0]
    }

    /// The emergency write: its first byte is a character.
    public func configure(offset: Int, value: UInt8) { if offset == 8 { output([value]) } }

    /// Keeps a weak reference.
    public func attach(to transport: VirtioPCI) { contents.withLock { $0.reference.transport = transport } }

    /// Input typed before the driver came waits for its buffers.
    public func activate(features: UInt64) {}

    /// Keeps what was typed: it is for whoever drives the console next.
    public func reset() {}

    /// The driver gives buffers for input, or output.
    public func notified(queue: Int) {
        guard let transport = contents.withLock({ $0.reference.transport }) else { return }
        if queue == 0 { return deliver(transport) }
        transport.drain(1) { chain, _ in
            let bytes = transport.memory.gather(chain.readable, limit: Self.largestOutput)
            if !bytes.isEmpty { output(bytes) }
            return 0
        }
    }

    /// Bytes of input that still find room.
    public var inputRoom: Int { contents.withLock { Self.largestInput - $0.input.count } }

    /// Input from outside, on any thread; what finds no room is dropped (see `inputRoom`).
    public func receive(_ bytes: [UInt8]) {
        door.admit(.input(bytes)) { [weak self] event in
            guard let self, case .input(let bytes) = event else { return }
            let transport = contents.withLock { contents in
                contents.input += bytes.prefix(Self.largestInput - contents.input.count)
                return contents.reference.transport
            }
            if let transport { deliver(transport) }
        }
    }

    /// The terminal has another size.
    public func resize(columns: UInt16, rows: UInt16) {
        let transport = contents.withLock { contents in
            contents.columns = columns
            contents.rows = rows
            return contents.reference.transport
        }
        transport?.configurationChanged()
    }

    private func deliver(_ transport: VirtioPCI) {
        transport.withQueue(0) { (queue) throws(VirtqueueError) in
            var delivered = false
            // Another vCPU may add empty buffers without end.
            var left = 4096
            while left > 0, contents.withLock({ !$0.input.isEmpty }) {
                left -= 1
                guard let chain = try queue.pop() else {
                    if try queue.enableNotifications() { continue }
                    break
                }
                let part = contents.withLock { contents in
                    let part = Array(contents.input.prefix(chain.writableLength))
                    contents.input.removeFirst(part.count)
                    return part
                }
                try queue.push(head: chain.head, written: transport.memory.scatter(part, into: chain.writable))
                delivered = true
            }
            if delivered, try queue.shouldInterrupt() { transport.interrupt(queue: 0) }
        }
    }

    /// Input that waits.
    public func saveDeviceState() -> VirtioDeviceState {
        var state = VirtioDeviceState()
        state.input = contents.withLock { $0.input }
        return state
    }

    /// Puts input back.
    public func restoreDeviceState(_ state: VirtioDeviceState) throws {
        guard state.input.count <= Self.largestInput else { throw StateError("too much saved input") }
        contents.withLock { $0.input = state.input }
    }
}
