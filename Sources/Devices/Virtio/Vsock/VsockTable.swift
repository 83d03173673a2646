// The streams between a guest and its host: a pure state machine, which says what is to be done.
//
// Virtual I/O Device (VIRTIO) 1.2, 5.10.6. What either side may have on its way to the other is bounded by credit: each
// header tells how much room its sender has (buf_alloc) and how much it has handed on (fwd_cnt). All counts wrap.
internal import DeviceModel

/// What a packet of the guest's means for the host's side of a stream.
enum VsockAction: Sendable, Equatable {
    /// The guest wants to connect.
    case requested(UInt64, VsockPorts)
    /// The guest has accepted.
    case accepted(UInt64, hostPort: UInt32)
    /// Bytes.
    case data(UInt64, ArraySlice<UInt8>)
    /// The guest sends no more, or takes no more; both: the stream is gone.
    case ended(UInt64, VsockShutdown)
}

/// One stream.
struct VsockConnection: Sendable {
    enum Phase: Sendable {
        /// The guest was asked.
        case requested
        /// The host was asked.
        case incoming
        case established
        /// The host has gone; the guest is to say that it knows.
        case closing
    }

    /// What is to be told the guest beside data.
    struct Control: OptionSet, Sendable {
        let rawValue: UInt8
        static let request = Control(rawValue: 1)
        static let response = Control(rawValue: 2)
        static let credit = Control(rawValue: 4)
        /// The host sends no more.
        static let end = Control(rawValue: 8)
        /// The host neither sends nor takes.
        static let close = Control(rawValue: 16)
    }

    /// Bytes that the guest may have on their way to the host.
    static let room: UInt32 = 256 << 10
    /// Bytes for the guest that wait here for its buffers.
    static let mostPending = 128 << 10

    let ports: VsockPorts
    var phase: Phase
    var pending = ByteQueue()
    var control: Control = []
    /// Bytes sent to the guest; how many it has handed on, and its room, as it says.
    var sent: UInt32 = 0
    var guestForwarded: UInt32 = 0
    var guestAllocation: UInt32 = 0
    /// Bytes received, handed on, and handed on as far as the guest was told.
    var received: UInt32 = 0
    var forwarded: UInt32 = 0
    var told: UInt32 = 0
    var guestEnded: VsockShutdown = []
    /// Whether it stands in the list of those with something to send.
    var isQueued = false
    /// Whether the host's side waits for room.
    var isAwaited = false

    init(_ ports: VsockPorts, _ phase: Phase) {
        self.ports = ports
        self.phase = phase
    }

    /// Bytes that the guest has room for.
    var credit: Int {
        let used = sent &- guestForwarded
        return used < guestAllocation ? Int(guestAllocation - used) : 0
    }

    /// Bytes that the host's side may hand over now.
    var window: Int {
        guard phase == .established, !guestEnded.contains(.receive) else { return 0 }
        return max(0, min(credit, Self.mostPending) - pending.count)
    }

    /// Whether there is a packet to send now.
    var hasPacket: Bool {
        if !control.isDisjoint(with: [.request, .response, .credit]) { return true }
        if !pending.isEmpty { return phase == .established && credit > 0 }
        return !control.isEmpty
    }
}

/// All streams of a device.
struct VsockTable: Sendable {
    /// Streams at most.
    static let mostConnections = 1024
    /// Answers to packets of no stream that wait at most; more are dropped.
    static let mostReplies = 1024
    /// Bytes in a packet at most.
    static let longestPacket = 64 << 10
    /// Ports that the host's side of its own connections gets.
    static let firstPort: UInt32 = 1 << 30

    let guest: UInt64
    private var connections: [UInt64: VsockConnection] = [:]
    private var identifiers: [VsockPorts: UInt64] = [:]
    private var queued: [UInt64] = []
    private var replies: [VsockHeader] = []
    private var nextIdentifier: UInt64 = 2
    private var nextPort = VsockTable.firstPort

    init(guest: UInt64) { self.guest = guest }

    /// Streams there are.
    var count: Int { connections.count }

    /// Bytes that the host's side of a stream may hand over now; at zero it is told when there is room.
    mutating func window(_ id: UInt64) -> Int {
        let window = connections[id]?.window ?? 0
        if window == 0 { connections[id]?.isAwaited = true }
        return window
    }

    /// Forgets all streams; those that there were.
    mutating func clear() -> [UInt64] {
        let all = connections.keys.sorted()
        let next = nextIdentifier
        self = VsockTable(guest: guest)
        nextIdentifier = next
        return all
    }

    private mutating func insert(_ connection: VsockConnection, _ id: UInt64) {
        connections[id] = connection
        identifiers[connection.ports] = id
        enqueue(id)
    }

    private mutating func remove(_ id: UInt64) {
        guard let gone = connections.removeValue(forKey: id) else { return }
        identifiers[gone.ports] = nil
        if gone.isQueued { queued.removeAll { $0 == id } }
    }

    private mutating func enqueue(_ id: UInt64) {
        guard let connection = connections[id], !connection.isQueued, connection.hasPacket else { return }
        connections[id]?.isQueued = true
        queued.append(id)
    }

    private mutating func reset(_ ports: VsockPorts, type: UInt16 = VsockHeader.stream) {
        guard replies.count < Self.mostReplies else { return }
        var header = VsockHeader(to: guest, ports, .reset)
        header.type = type
        replies.append(header)
    }

    // MARK: From the guest

    /// Takes a packet; all in it is as the guest wrote it. Beside the action: a stream whose host waited for room that
    /// there is now.
    mutating func take(_ header: VsockHeader, _ payload: ArraySlice<UInt8>) -> (VsockAction?, room: UInt64?) {
        guard header.source == guest, header.destination == VsockHeader.hostCID else { return (nil, nil) }
        let ports = VsockPorts(host: header.destinationPort, guest: header.sourcePort)
        let operation = VsockOperation(rawValue: header.operation)
        guard header.type == VsockHeader.stream, let operation else {
            if operation != .reset { reset(ports, type: header.type) }
            return (nil, nil)
        }
        guard let id = identifiers[ports] else {
            if operation == .request { return (accept(ports, header), nil) }
            if operation != .reset { reset(ports) }
            return (nil, nil)
        }
        connections[id]?.guestAllocation = header.allocation
        connections[id]?.guestForwarded = header.forwarded
        let action = take(operation, header, payload, id)
        enqueue(id)
        return (action, takeRoom(id))
    }

    /// The stream, if its host waits for room and there is some.
    private mutating func takeRoom(_ id: UInt64) -> UInt64? {
        guard let connection = connections[id], connection.isAwaited, connection.window > 0 else { return nil }
        connections[id]?.isAwaited = false
        return id
    }

    private mutating func accept(_ ports: VsockPorts, _ header: VsockHeader) -> VsockAction? {
        guard connections.count < Self.mostConnections else {
            reset(ports)
            return nil
        }
        let id = nextIdentifier
        nextIdentifier &+= 2
        var connection = VsockConnection(ports, .incoming)
        connection.guestAllocation = header.allocation
        connection.guestForwarded = header.forwarded
        insert(connection, id)
        return .requested(id, ports)
    }

    private mutating func take(
        _ operation: VsockOperation, _ header: VsockHeader, _ payload: ArraySlice<UInt8>, _ id: UInt64
    ) -> VsockAction? {
        guard let connection = connections[id] else { return nil }
        switch operation {
        case .response where connection.phase == .requested:
            connections[id]?.phase = .established
            return .accepted(id, hostPort: connection.ports.host)
        case .reset:
            remove(id)
            return connection.phase == .closing ? nil : .ended(id, .both)
        case .shutdown where connection.phase != .requested:
            return end(VsockShutdown(rawValue: header.flags).intersection(.both), id)
        case .data where connection.phase == .closing:
            connections[id]?.received &+= UInt32(truncatingIfNeeded: payload.count)
            return forward(payload.count, id)
        case .data where connection.phase == .established && !connection.guestEnded.contains(.send):
            let room = VsockConnection.room - (connection.received &- connection.forwarded)
            guard payload.count == header.length, payload.count <= room else { return abort(id) }
            connections[id]?.received &+= UInt32(truncatingIfNeeded: payload.count)
            return payload.isEmpty ? nil : .data(id, payload)
        case .creditUpdate: return nil
        case .creditRequest:
            connections[id]?.control.insert(.credit)
            return nil
        default: return abort(id)
        }
    }

    /// The guest has ended directions; when it has ended both, it is told that this is known.
    private mutating func end(_ directions: VsockShutdown, _ id: UInt64) -> VsockAction? {
        guard var connection = connections[id] else { return nil }
        connection.guestEnded.formUnion(directions)
        if connection.guestEnded.contains(.receive) { connection.pending = ByteQueue() }
        connections[id] = connection
        if connection.guestEnded == .both {
            remove(id)
            reset(connection.ports)
        }
        return connection.phase == .closing ? nil : .ended(id, connection.guestEnded)
    }

    /// Ends a stream that the guest has misused.
    private mutating func abort(_ id: UInt64) -> VsockAction? {
        guard let connection = connections[id] else { return nil }
        remove(id)
        reset(connection.ports)
        return connection.phase == .closing ? nil : .ended(id, .both)
    }

    // MARK: From the host

    /// Does what the host's side of a stream wants.
    mutating func apply(_ event: StreamEvent, to id: UInt64) -> VsockAction? {
        if case .open(let port) = event { return open(id, port) }
        guard let connection = connections[id] else {
            // The guest has given up meanwhile; who accepts may have learnt of that before it had anything to end.
            return event == .accept ? .ended(id, .both) : nil
        }
        switch event {
        case .open: break
        case .accept where connection.phase == .incoming:
            connections[id]?.phase = .established
            connections[id]?.control.insert(.response)
        case .data(let bytes) where connection.phase == .established && !connection.guestEnded.contains(.receive):
            // More than it was told there is room for is its own fault; an ordered door may be late by one part.
            guard connection.pending.count <= VsockConnection.mostPending else { return abort(id) }
            connections[id]?.pending.append(bytes)
        case .taken(let number): return forward(number, id)
        case .end where connection.phase == .established: connections[id]?.control.insert(.end)
        case .close where connection.phase == .established:
            connections[id]?.control.insert(.close)
        case .close: return abort(id)
        default: return nil
        }
        enqueue(id)
        return nil
    }

    private mutating func open(_ id: UInt64, _ port: UInt32) -> VsockAction? {
        guard connections.count < Self.mostConnections, connections[id] == nil else { return .ended(id, .both) }
        var ports = VsockPorts(host: nextPort, guest: port)
        // At most as many are taken as there are streams.
        while identifiers[ports] != nil { ports.host = max(ports.host &+ 1, Self.firstPort) }
        nextPort = max(ports.host &+ 1, Self.firstPort)
        var connection = VsockConnection(ports, .requested)
        connection.control = .request
        insert(connection, id)
        return nil
    }

    /// The host has taken bytes: the guest is told when it is worth a packet.
    private mutating func forward(_ number: Int, _ id: UInt64) -> VsockAction? {
        guard var connection = connections[id] else { return nil }
        let onTheirWay = connection.received &- connection.forwarded
        connection.forwarded &+= min(UInt32(clamping: number), onTheirWay)
        if connection.forwarded &- connection.told >= VsockConnection.room / 4 { connection.control.insert(.credit) }
        connections[id] = connection
        enqueue(id)
        return nil
    }

    // MARK: To the guest

    /// Whether there is a packet for the guest.
    mutating func hasPacket() -> Bool {
        while replies.isEmpty, let first = queued.first, connections[first]?.hasPacket != true {
            queued.removeFirst()
            connections[first]?.isQueued = false
        }
        return !replies.isEmpty || !queued.isEmpty
    }

    /// The next packet for the guest, with at most so many bytes of data, and a stream whose host waited for the room that
    /// this makes.
    mutating func nextPacket(room: Int) -> (header: VsockHeader, data: ArraySlice<UInt8>, room: UInt64?)? {
        guard hasPacket() else { return nil }
        if !replies.isEmpty { return (replies.removeFirst(), [], nil) }
        let id = queued.removeFirst()
        connections[id]?.isQueued = false
        guard var connection = connections[id] else { return nil }
        let (operation, data) = connection.takePacket(room: room)
        var header = VsockHeader(to: guest, connection.ports, operation)
        header.length = UInt32(truncatingIfNeeded: data.count)
        header.allocation = VsockConnection.room
        header.forwarded = connection.forwarded
        connection.told = connection.forwarded
        if operation == .shutdown {
            header.flags = (connection.phase == .closing ? VsockShutdown.both : .send).rawValue
        }
        connections[id] = connection
        enqueue(id)
        return (header, data, takeRoom(id))
    }
}

extension VsockConnection {
    /// Takes what goes into the next packet; there must be something.
    fileprivate mutating func takePacket(room: Int) -> (VsockOperation, ArraySlice<UInt8>) {
        // Every packet tells of credit.
        control.remove(.credit)
        if control.contains(.request) {
            control.remove(.request)
            return (.request, [])
        }
        if control.contains(.response) {
            control.remove(.response)
            return (.response, [])
        }
        if !pending.isEmpty, phase == .established, credit > 0, room > 0 {
            let part = pending.first(min(credit, room, VsockTable.longestPacket))
            pending.drop(part.count)
            sent &+= UInt32(truncatingIfNeeded: part.count)
            return (.data, part)
        }
        if pending.isEmpty, control.contains(.close) {
            control = []
            phase = .closing
            return (.shutdown, [])
        }
        if pending.isEmpty, control.contains(.end) {
            control.remove(.end)
            return (.shutdown, [])
        }
        return (.creditUpdate, [])
    }
}
