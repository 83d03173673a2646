// The virtio socket device: streams between programs of the guest and of its host.
//
// Virtual I/O Device (VIRTIO) 1.2, 5.10. Queues: 0 receives, 1 transmits, 2 events.
//
//   configuration  00 guest_cid 64
//   event          00 id 32: 0 transport reset, all streams are gone
public import DeviceModel
internal import Synchronization

/// The host's side of a guest's streams. It is called with a queue locked and must not wait; what it does to a stream it
/// says by `VirtioVsock.perform`, on any thread, with no lock of its own held.
public protocol VsockBackend: AnyObject, Sendable {
    /// The guest wants to connect to a port of the host's: `accept` or `close`.
    func requested(_ stream: UInt64, hostPort: UInt32, guestPort: UInt32)
    /// The guest has accepted what the host opened.
    func accepted(_ stream: UInt64, hostPort: UInt32)
    /// Bytes from the guest: `taken` when they have been handed on.
    func received(_ bytes: ArraySlice<UInt8>, on stream: UInt64)
    /// The guest sends no more, or takes no more; with both the stream is gone.
    func ended(_ stream: UInt64, sends: Bool, takes: Bool)
    /// `VirtioVsock.window` isn't zero any more.
    func hasRoom(_ stream: UInt64)
}

/// A virtio socket device.
public final class VirtioVsock: VirtioDevice {
    private struct Contents: Sendable {
        var table: VsockTable
        var reference = WeakTransport()
        var resetNews = ResetNews.none
        /// Gives up waiting for a driver that doesn't say that it knows.
        var timer: (any DoorTimer)?
    }

    /// After a restore the driver is to learn that all streams are gone. Until it has given the event's buffer back it would
    /// take what is opened meanwhile for one of these: no packets until then.
    private enum ResetNews: Sendable { case none, owed, told }

    /// Nanoseconds that a driver has to give the buffer back.
    private static let patience: UInt64 = 5_000_000_000

    /// Chains looked at in one go: more than all that may wait for the guest.
    private static let mostChains = 65536

    private let door: any Door
    private let backend: any VsockBackend
    private let contents: Mutex<Contents>

    /// Makes a device; `cid` is the guest's context identifier, 3 or more.
    public init(cid: UInt32, door: any Door, backend: any VsockBackend) {
        self.door = door
        self.backend = backend
        contents = Mutex(Contents(table: VsockTable(guest: UInt64(cid))))
        let timer = door.makeTimer { [weak self] in self?.endSilence() }
        contents.withLock { $0.timer = timer }
    }

    /// Socket.
    public var deviceID: UInt16 { 19 }
    /// Simple communication controller, other.
    public var classCode: UInt32 { 0x078000 }
    /// Receive, transmit, events.
    public var queueSizes: [UInt16] { [256, 256, 16] }
    /// Streams.
    public var features: UInt64 { 1 << 0 }
    /// The guest's context identifier.
    public var configuration: [UInt8] { littleEndian(contents.withLock { $0.table.guest }) }
    /// Keeps a weak reference.
    public func attach(to transport: VirtioPCI) { contents.withLock { $0.reference.transport = transport } }
    /// Nothing to do until the first packet.
    public func activate(features: UInt64) {}

    /// All streams are gone.
    public func reset() {
        let gone = contents.withLock { contents in
            contents.resetNews = .none
            contents.timer?.disarm()
            return contents.table.clear()
        }
        for stream in gone { backend.ended(stream, sends: true, takes: true) }
    }

    /// Streams there are.
    public var streamCount: Int { contents.withLock { $0.table.count } }

    // MARK: The host's side

    /// Bytes of data that may be handed over now; at zero, `hasRoom` tells when it isn't any more.
    public func window(_ stream: UInt64) -> Int { contents.withLock { $0.table.window(stream) } }

    /// Does something to a stream. The host's identifiers for what it opens are odd; those of the device are even.
    public func perform(_ event: StreamEvent, on stream: UInt64) {
        door.admit(.stream(stream, event)) { [weak self] event in
            guard let self, case .stream(let stream, let event) = event else { return }
            let (action, transport, hasPacket) = contents.withLock { contents in
                let transport = contents.reference.transport
                if case .open = event, transport?.isRunning != true {
                    return (VsockAction?.some(.ended(stream, .both)), transport, false)
                }
                let action = contents.table.apply(event, to: stream)
                return (action, transport, contents.table.hasPacket())
            }
            if let action { tell(action) }
            if hasPacket, let transport { deliver(transport) }
        }
    }

    private func tell(_ action: VsockAction) {
        switch action {
        case .requested(let id, let ports): backend.requested(id, hostPort: ports.host, guestPort: ports.guest)
        case .accepted(let id, let port): backend.accepted(id, hostPort: port)
        case .data(let id, let bytes): backend.received(bytes, on: id)
        case .ended(let id, let ends):
            backend.ended(id, sends: ends.contains(.send), takes: ends.contains(.receive))
        }
    }

    // MARK: Queues

    /// Buffers in a queue. Locks are taken in this order: transmit queue, receive queue, `contents`.
    public func notified(queue: Int) {
        guard let transport = contents.withLock({ $0.reference.transport }) else { return }
        switch queue {
        case 1:
            transport.drain(1) { chain, _ in
                take(chain, transport)
                return 0
            }
            if contents.withLock({ $0.table.hasPacket() }) { deliver(transport) }
        case 2: if contents.withLock({ $0.resetNews == .told }) { endSilence() } else { tellReset(transport) }
        default: deliver(transport)
        }
    }

    /// One packet of the guest's.
    private func take(_ chain: DescriptorChain, _ transport: VirtioPCI) {
        let length = chain.readableLength
        guard length >= VsockHeader.length, length <= VsockHeader.length + VsockTable.longestPacket else { return }
        let bytes = transport.memory.gather(chain.readable, limit: length)
        guard let header = VsockHeader(bytes[...]) else { return }
        let payload = bytes[VsockHeader.length...].prefix(Int(header.length))
        let (action, room) = contents.withLock { $0.table.take(header, payload) }
        if let action { tell(action) }
        if let room { backend.hasRoom(room) }
    }

    /// Puts packets that wait into the buffers there are.
    private func deliver(_ transport: VirtioPCI) {
        var roomy: [UInt64] = []
        if contents.withLock({ $0.resetNews != .none }) { return }
        transport.withQueue(0) { (queue) throws(VirtqueueError) in
            var pushed = false
            for _ in 0..<Self.mostChains where contents.withLock({ $0.table.hasPacket() }) {
                guard let chain = try queue.pop() else {
                    if try queue.enableNotifications() { continue }
                    break
                }
                var written = 0
                let room = chain.writableLength - VsockHeader.length
                if room >= 0, let packet = contents.withLock({ $0.table.nextPacket(room: room) }) {
                    written = transport.memory.scatter(packet.header.bytes + packet.data, into: chain.writable)
                    if let room = packet.room { roomy.append(room) }
                }
                try queue.push(head: chain.head, written: written)
                pushed = true
            }
            if pushed, try queue.shouldInterrupt() { transport.interrupt(queue: 0) }
        }
        for stream in roomy { backend.hasRoom(stream) }
    }

    /// Tells the driver, if that is owed, that all streams are gone.
    ///
    /// - Spec: virtio 1.2, 5.10.6.7
    private func tellReset(_ transport: VirtioPCI) {
        transport.withQueue(2) { (queue) throws(VirtqueueError) in
            guard contents.withLock({ $0.resetNews == .owed }), let chain = try queue.pop() else { return }
            contents.withLock { $0.resetNews = .told }
            // Of the buffer that it gives back.
            _ = try queue.enableNotifications()
            try queue.push(head: chain.head, written: transport.memory.scatter([0, 0, 0, 0], into: chain.writable))
            if try queue.shouldInterrupt() { transport.interrupt(queue: 2) }
        }
    }

    /// The driver knows that its streams are gone: what has waited goes out.
    private func endSilence() {
        let transport = contents.withLock { contents in
            contents.resetNews = .none
            contents.timer?.disarm()
            return contents.reference.transport
        }
        if let transport, transport.isRunning { deliver(transport) }
    }

    // MARK: State

    /// Nothing of the streams: their other ends aren't where the state is put back.
    public func saveDeviceState() -> VirtioDeviceState { VirtioDeviceState() }

    /// The driver learns that its streams are gone.
    public func restoreDeviceState(_ state: VirtioDeviceState) throws {
        let transport = contents.withLock { contents in
            contents.resetNews = contents.reference.transport?.isRunning == true ? .owed : .none
            if contents.resetNews == .owed { contents.timer?.arm(at: door.now &+ Self.patience) }
            return contents.reference.transport
        }
        if let transport { tellReset(transport) }
    }
}
