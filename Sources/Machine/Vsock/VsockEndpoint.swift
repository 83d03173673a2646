// The host's side of a guest's sockets: Unix sockets, and descriptors for Roost itself.
//
//   host to guest   connect to PATH, send "CONNECT port\n", read "OK hostport\n": what follows is the stream
//   guest to host   port N of the host (CID 2) is the Unix socket PATH_N
//
// One thread reads; what the guest sends is written where it is sent, and by the thread as far as there was no room.
internal import DeviceModel
public import Devices
public import HostOS
internal import Synchronization

/// How programs of the host reach a guest's sockets.
public struct VsockConfiguration: Sendable, Equatable, Codable {
    /// The Unix socket's path; nil: only Roost itself does.
    public var path: String?
    /// The guest's context identifier, 3 or more.
    public var cid: UInt32

    /// Says how.
    public init(path: String? = nil, cid: UInt32 = 3) {
        self.path = path
        self.cid = cid
    }
}

/// Where a guest's streams end on the host.
public final class VsockEndpoint: Sendable {
    /// Streams and clients at most.
    private static let mostPeers = 1024
    /// "CONNECT 4294967295\n" is shorter.
    private static let longestGreeting = 32
    private static let wakeToken: UInt64 = 0
    private static let listenerToken: UInt64 = 1

    /// Takes what the guest connects to a port.
    public typealias Handler = @Sendable (_ stream: consuming FileDescriptor) -> Void

    private struct Contents: Sendable {
        weak var device: VirtioVsock?
        var peers: [UInt64: VsockPeer] = [:]
        /// What the thread is to look at, of the peers.
        var work: Set<UInt64> = []
        /// Connections that the guest wants: stream, port.
        var arrivals: [(UInt64, UInt32)] = []
        var handlers: [UInt32: Handler] = [:]
        var nextStream: UInt64 = 3
        var isStopping = false
        var thread: HostThread?
    }

    private let path: String?
    private let listener: LocalListener?
    private let waiting: DescriptorSet
    private let wake: SharedDescriptor
    private let contents = Mutex(Contents())

    /// Makes an endpoint; with a path programs of the host reach the guest, and it them.
    package init(path: String?) throws(HostError) {
        self.path = path
        waiting = try DescriptorSet()
        wake = SharedDescriptor(try FileDescriptor.eventCounter())
        listener = try path.map { path throws(HostError) in try LocalListener(at: path) }
        try waiting.add(wake.descriptor, token: Self.wakeToken)
        if let listener { try waiting.add(listener.descriptor, token: Self.listenerToken) }
    }

    /// Begins to serve a device.
    package func start(_ device: VirtioVsock) throws(HostError) {
        contents.withLock { $0.device = device }
        // A machine that can't be made lets go of its endpoint, perhaps before the thread has begun.
        let thread = try HostThread(name: "roost-vsock") { [weak self] in self?.run() }
        contents.withLock { $0.thread = thread }
    }

    /// Ends all streams and the thread.
    package func stop() {
        let thread = contents.withLock { contents in
            contents.isStopping = true
            defer { contents.thread = nil }
            return contents.thread
        }
        wake.descriptor.signal()
        thread?.join()
        listener?.remove()
        contents.withLock { $0.peers = [:] }
    }

    // MARK: For Roost itself

    /// Opens a stream to a port of the guest's; waits at most so long for the guest to accept.
    public func connect(to port: UInt32, milliseconds: Int32 = 5000) throws(HostError) -> FileDescriptor {
        let pair = try LocalStream.pair()
        let other = FileDescriptor(owning: pair.other)
        guard let (stream, device) = add(VsockPeer(pair.own, .opening, other: other.identity)) else {
            throw HostError("connect to port \(port) of the guest", errno: HostErrorNumber.busy)
        }
        device.perform(.open(guestPort: port), on: stream)
        // The answer is the one that programs of the host get.
        var answer: [UInt8] = []
        while answer.last != UInt8(ascii: "\n") {
            guard other.waitForInput(milliseconds: milliseconds), let byte = other.readByte() else {
                throw HostError("connect to port \(port) of the guest", errno: HostErrorNumber.connectionRefused)
            }
            answer.append(byte)
        }
        return other
    }

    /// Ends a stream that `connect` has opened. Closed only, it would stay until the guest has made room for all that was
    /// sent, which it may never do.
    public func abandon(_ descriptor: borrowing FileDescriptor) {
        let identity = descriptor.identity
        guard let found = contents.withLock({ $0.peers.first { $0.value.other == identity } }) else { return }
        found.value.state.withLock { $0.isAbandoned = true }
        schedule(found.key)
    }

    /// Has a handler take what the guest connects to a port of the host's, on the thread that serves all streams: it must
    /// not wait. Nil: no more.
    public func listen(on port: UInt32, _ handler: Handler?) {
        contents.withLock { $0.handlers[port] = handler }
    }

    // MARK: Peers

    /// Adds a peer of the host's own making.
    private func add(_ peer: VsockPeer) -> (UInt64, VirtioVsock)? {
        let added = contents.withLock { contents -> (UInt64, VirtioVsock)? in
            guard contents.peers.count < Self.mostPeers, !contents.isStopping, let device = contents.device else {
                return nil
            }
            let stream = contents.nextStream
            contents.nextStream &+= 2
            contents.peers[stream] = peer
            return (stream, device)
        }
        guard let added, (try? waiting.addEdges(peer.stream.descriptor, token: added.0)) != nil else { return nil }
        return added
    }

    private func peer(_ stream: UInt64) -> (VsockPeer, VirtioVsock)? {
        contents.withLock { contents in
            guard let peer = contents.peers[stream], let device = contents.device else { return nil }
            return (peer, device)
        }
    }

    private func remove(_ stream: UInt64) {
        let peer = contents.withLock { $0.peers.removeValue(forKey: stream) }
        if let peer { waiting.remove(peer.stream.descriptor) }
    }

    /// Has the thread look at a stream, if there is anything of it.
    private func schedule(_ stream: UInt64) {
        let isFirst = contents.withLock { contents in
            guard contents.peers[stream] != nil, contents.work.insert(stream).inserted else { return false }
            return contents.work.count == 1
        }
        if isFirst { wake.descriptor.signal() }
    }

    // MARK: The thread

    private func run() {
        var buffer = [UInt8](repeating: 0, count: 64 << 10)
        while true {
            for (token, isHungUp) in waiting.wait() {
                switch token {
                case Self.wakeToken: wake.descriptor.drain()
                case Self.listenerToken: takeClients()
                default:
                    if isHungUp { peer(token)?.0.state.withLock { $0.isHungUp = true } }
                    serve(token, &buffer)
                }
            }
            let (isStopping, work, arrivals) = contents.withLock { contents in
                defer {
                    contents.work = []
                    contents.arrivals = []
                }
                return (contents.isStopping, contents.work, contents.arrivals)
            }
            if isStopping { return }
            for (stream, port) in arrivals { connectHost(stream, port) }
            for stream in work { serve(stream, &buffer) }
        }
    }

    /// Programs of the host that have connected; those too many are turned away.
    private func takeClients() {
        while let stream = listener?.accept() { _ = add(VsockPeer(stream, .greeting)) }
    }

    /// Connects what the guest wants to a port of the host's.
    private func connectHost(_ stream: UInt64, _ port: UInt32) {
        let (handler, device, hasRoom) = contents.withLock {
            ($0.handlers[port], $0.device, $0.peers.count < Self.mostPeers)
        }
        guard let device else { return }
        do {
            guard hasRoom else { throw HostError("connect", errno: HostErrorNumber.busy) }
            if let handler {
                let pair = try LocalStream.pair()
                let other = FileDescriptor(owning: pair.other)
                try keep(pair.own, stream)
                handler(other)
            } else if let path {
                try keep(try LocalStream(to: "\(path)_\(port)"), stream)
            } else {
                throw HostError("connect", errno: HostErrorNumber.connectionRefused)
            }
        } catch {
            remove(stream)
            device.perform(.close, on: stream)
            return
        }
        device.perform(.accept, on: stream)
        schedule(stream)
    }

    private func keep(_ own: LocalStream, _ stream: UInt64) throws(HostError) {
        contents.withLock { $0.peers[stream] = VsockPeer(own, .open) }
        try waiting.addEdges(own.descriptor, token: stream)
    }

    /// Moves what can be moved.
    private func serve(_ stream: UInt64, _ buffer: inout [UInt8]) {
        guard let (peer, device) = peer(stream) else { return }
        if peer.state.withLock({ $0.phase == .greeting }) { return greet(peer, stream, device, &buffer) }
        let taken = peer.flush()
        if taken > 0 { device.perform(.taken(taken), on: stream) }
        if peer.state.withLock({ $0.phase == .open }) { read(peer, stream, device, &buffer) }
        let (guestIsDone, hostIsGone) = peer.state.withLock { ($0.guestIsGone && $0.outgoing.isEmpty, $0.hostIsGone) }
        if guestIsDone || hostIsGone { remove(stream) }
        if hostIsGone { device.perform(.close, on: stream) }
    }

    private func read(_ peer: VsockPeer, _ stream: UInt64, _ device: VirtioVsock, _ buffer: inout [UInt8]) {
        while !peer.state.withLock({ $0.hostHasEnded }) {
            let window = device.window(stream)
            guard window > 0 else { return }
            switch peer.stream.read(into: &buffer, limit: min(window, buffer.count)) {
            case .moved(let count): device.perform(.data(Array(buffer[..<count])), on: stream)
            case .wait: return
            case .end:
                peer.state.withLock { $0.hostHasEnded = true }
                if !peer.state.withLock({ $0.isHungUp }) { device.perform(.end, on: stream) }
            case .gone: peer.state.withLock { ($0.hostHasEnded, $0.isHungUp) = (true, true) }
            }
        }
    }

    /// Reads which port of the guest's a program wants, and no further.
    private func greet(_ peer: VsockPeer, _ stream: UInt64, _ device: VirtioVsock, _ buffer: inout [UInt8]) {
        switch peer.stream.read(into: &buffer, limit: Self.longestGreeting, peeking: true) {
        case .wait: return
        case .end, .gone: return remove(stream)
        case .moved(let count):
            guard let end = buffer[..<count].firstIndex(of: UInt8(ascii: "\n")) else {
                if count == Self.longestGreeting || peer.state.withLock({ $0.isHungUp }) { remove(stream) }
                return
            }
            let words = String(decoding: buffer[..<end], as: UTF8.self).split(separator: " ")
            guard words.count == 2, words[0].uppercased() == "CONNECT", let port = UInt32(words[1]) else {
                return remove(stream)
            }
            _ = peer.stream.read(into: &buffer, limit: end + 1)
            peer.state.withLock { $0.phase = .opening }
            device.perform(.open(guestPort: port), on: stream)
        }
    }
}

// MARK: What the guest does

extension VsockEndpoint: VsockBackend {
    /// The thread connects it; those too many are refused.
    public func requested(_ stream: UInt64, hostPort: UInt32, guestPort: UInt32) {
        let refusing = contents.withLock { contents -> VirtioVsock? in
            if contents.arrivals.count >= Self.mostPeers { return contents.device }
            contents.arrivals.append((stream, hostPort))
            return nil
        }
        if let refusing { refusing.perform(.close, on: stream) } else { wake.descriptor.signal() }
    }

    /// The program that asked is told.
    public func accepted(_ stream: UInt64, hostPort: UInt32) {
        guard let (peer, _) = peer(stream) else { return }
        peer.state.withLock { $0.phase = .open }
        _ = peer.send(Array("OK \(hostPort)\n".utf8)[...])
        schedule(stream)
    }

    /// Written at once as far as there is room.
    public func received(_ bytes: ArraySlice<UInt8>, on stream: UInt64) {
        guard let (peer, device) = peer(stream) else { return }
        let taken = peer.send(bytes)
        if taken > 0 { device.perform(.taken(taken), on: stream) }
        if peer.state.withLock({ $0.isGone }) { schedule(stream) }
    }

    /// What the guest sent before comes first. What isn't connected yet needs not be, once both have ended; what is being
    /// connected at this moment hears of the end when it accepts.
    public func ended(_ stream: UInt64, sends: Bool, takes: Bool) {
        guard let (peer, _) = peer(stream) else {
            if sends, takes { contents.withLock { $0.arrivals.removeAll { $0.0 == stream } } }
            return
        }
        peer.state.withLock { state in
            state.guestEndsSending = state.guestEndsSending || sends
            state.guestEndsTaking = state.guestEndsTaking || takes
        }
        schedule(stream)
    }

    /// The thread reads on.
    public func hasRoom(_ stream: UInt64) { schedule(stream) }
}
