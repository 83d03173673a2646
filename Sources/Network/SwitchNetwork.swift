// A switch between machines of one host, without a process of its own.
//
// Each network is a folder, private to its user, and each port a datagram socket in it, named by its card's MAC address.
// A datagram is the sending port's name (6 bytes) and a packet. A port sends to the port behind which it has seen an
// address (IEEE 802.1Q, 8.7), else to all. When a process ends its sockets answer no more; who joins next sweeps them up.
internal import HostOS
internal import Synchronization

/// A port of a switch.
public final class SwitchNetwork: NetworkLink {
    static let prefix = 6
    /// Addresses remembered at most.
    static let mostAddresses = 1024
    /// Milliseconds that a sender waits for a receiver whose queue is full.
    private static let patience = 100

    private final class Peer: Sendable {
        let socket: LocalDatagramSocket
        init(_ socket: LocalDatagramSocket) { self.socket = socket }
    }

    /// Ports as the sending thread knows them.
    private struct Ports {
        var peers: [String: Peer] = [:]
        /// Those that let a sender wait for nothing: they get what they have room for.
        var slow: Set<String> = []
        var changed = -1
    }

    private let folder: String
    private let own: [UInt8]
    private let socket: LocalDatagramSocket
    private let queue: PacketQueue
    private let stopping: PacketQueue
    private let learned = Mutex<[UInt64: String]>([:])

    /// Joins a network with a card's address; `runtime` is where the folders of networks are.
    public init(network name: String, address: [UInt8], runtime: String? = nil) throws(NetworkError) {
        guard Self.isName(name), address.count == 6 else {
            throw NetworkError(.badName, "network: a switch's name has 1 to 32 letters, digits, - and _, not \(name)")
        }
        let top = runtime ?? PrivateFolder.runtime
        let folder = top + (runtime == nil ? "/roost" : "") + "/networks/" + name
        let port = Self.portName(address)
        do {
            // Nobody else can change what is in a folder that nobody else can enter.
            try PrivateFolder.make(top)
            try PrivateFolder.make(folder)
            let joined = try PrivateFolder.alone(in: folder) { () throws(HostError) -> LocalDatagramSocket? in
                Self.sweep(folder)
                if PrivateFolder.names(in: folder).contains(port) { return nil }
                return try LocalDatagramSocket(at: folder + "/" + port)
            }
            guard let joined else {
                throw NetworkError(
                    .addressInUse, "network \(name): another card has the address \(port); give this one mac=…")
            }
            socket = joined
            queue = try PacketQueue()
            stopping = try PacketQueue()
        } catch let error as NetworkError {
            throw error
        } catch { throw NetworkError(.host, "network \(name): \(error)") }
        self.folder = folder
        own = address
    }

    deinit { stop() }

    private static func isName(_ name: String) -> Bool {
        1...32 ~= name.utf8.count
            && name.utf8.allSatisfy {
                UInt8(ascii: "a")...UInt8(ascii: "z") ~= $0 || UInt8(ascii: "A")...UInt8(ascii: "Z") ~= $0
                    || UInt8(ascii: "0")...UInt8(ascii: "9") ~= $0 || $0 == UInt8(ascii: "-") || $0 == UInt8(ascii: "_")
            }
    }

    static func portName(_ address: some Sequence<UInt8>) -> String {
        address.map { ($0 < 16 ? "0" : "") + String($0, radix: 16) }.joined(separator: ":")
    }

    /// Takes away sockets that nobody has open.
    private static func sweep(_ folder: String) {
        for name in PrivateFolder.names(in: folder) {
            let path = folder + "/" + name
            do throws(HostError) {
                _ = try LocalDatagramSocket(to: path, patience: 1)
            } catch {
                if error.errno == HostErrorNumber.connectionRefused { PrivateFolder.remove(path) }
            }
        }
    }

    /// Starts moving packets: one thread sends, one receives.
    public func start(
        deliver: @escaping @Sendable ([UInt8]) -> Void, resume: @escaping @Sendable () -> Void
    ) throws(NetworkError) {
        do {
            queue.keep(try HostThread(name: "roost-switch-tx") { [unowned self] in runSender(resume) })
            stopping.keep(try HostThread(name: "roost-switch-rx") { [unowned self] in runReceiver(deliver) })
        } catch { throw NetworkError(.host, "network: \(error)") }
    }

    /// A packet from the guest, on any thread.
    public func send(_ packet: [UInt8]) -> Bool { queue.add(packet) }

    /// Ends the threads and leaves the network; not to be called by `deliver`.
    public func stop() {
        if queue.isStopped { return }
        queue.stop()
        stopping.stop()
        PrivateFolder.remove(folder + "/" + Self.portName(own))
    }

    // MARK: Sending

    private func runSender(_ resume: () -> Void) {
        var ports = Ports()
        while let (packets, isAwaited) = queue.take() {
            if isAwaited { resume() }
            for packet in packets {
                for packet in PacketFinisher.finish(packet, for: [.checksum, .tcp4, .tcp6]) { forward(packet, &ports) }
            }
            if packets.isEmpty {
                _ = FileDescriptor.waitForInput(queue.wake.rawValue, -1)
                queue.wake.drain()
            }
        }
    }

    /// Sends a packet to the port that it is for, or to all.
    private func forward(_ packet: [UInt8], _ ports: inout Ports) {
        let target = Self.key(packet, OffloadHeader.length)
        let isGroup = packet[OffloadHeader.length] & 1 != 0
        let datagram = own + packet
        if !isGroup, let port = learned.withLock({ $0[target] }) {
            if send(datagram, to: port, &ports, waits: true) { return }
            learned.withLock { _ = $0.removeValue(forKey: target) }
        }
        let changed = PrivateFolder.changed(folder)
        if changed != ports.changed {
            ports.changed = changed
            let names = PrivateFolder.names(in: folder).filter { $0 != Self.portName(own) }
            ports.peers = ports.peers.filter { names.contains($0.key) }
            for name in names where ports.peers[name] == nil { connect(name, &ports) }
        }
        for port in ports.peers.keys { _ = send(datagram, to: port, &ports, waits: false) }
    }

    private func connect(_ port: String, _ ports: inout Ports) {
        if let socket = try? LocalDatagramSocket(to: folder + "/" + port, patience: Self.patience) {
            ports.peers[port] = Peer(socket)
        }
    }

    /// Sends to one port; false if it is gone.
    private func send(_ datagram: [UInt8], to port: String, _ ports: inout Ports, waits: Bool) -> Bool {
        if ports.peers[port] == nil { connect(port, &ports) }
        guard let peer = ports.peers[port] else { return false }
        switch peer.socket.send(datagram, waits: waits && !ports.slow.contains(port)) {
        case .sent: ports.slow.remove(port)
        case .full: if waits { ports.slow.insert(port) }
        case .gone:
            ports.peers[port] = nil
            // It may have come back under its name.
            ports.changed = -1
            return false
        }
        return true
    }

    // MARK: Receiving

    private func runReceiver(_ deliver: ([UInt8]) -> Void) {
        var buffer = [UInt8](repeating: 0, count: Self.prefix + PacketFinisher.longestPacket)
        while stopping.take() != nil {
            let (isReady, isWoken) = FileDescriptor.waitForInput(socket.descriptor.rawValue, stopping.wake.rawValue)
            if isWoken { stopping.wake.drain() }
            guard isReady else { continue }
            var left = 256
            while left > 0 {
                left -= 1
                let count = socket.receive(into: &buffer)
                if count < 0 { break }
                guard count >= Self.prefix + OffloadHeader.length + 14 else { continue }
                learn(buffer)
                deliver(Array(buffer[Self.prefix..<count]))
            }
        }
    }

    /// Remembers behind which port an address is; when too many are known, all are forgotten.
    private func learn(_ datagram: [UInt8]) {
        let source = Self.prefix + OffloadHeader.length + 6
        guard datagram[source] & 1 == 0, !datagram[..<Self.prefix].elementsEqual(own) else { return }
        let key = Self.key(datagram, source)
        let port = Self.portName(datagram[..<Self.prefix])
        learned.withLock { learned in
            if learned[key] == port { return }
            if learned.count >= Self.mostAddresses { learned = [:] }
            learned[key] = port
        }
    }

    /// An address as a number.
    private static func key(_ bytes: [UInt8], _ offset: Int) -> UInt64 {
        bytes[offset..<offset + 6].reduce(0) { $0 << 8 | UInt64($1) }
    }
}
