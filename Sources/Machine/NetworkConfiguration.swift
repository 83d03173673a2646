// Network cards of a machine, and what they are plugged into.
internal import Devices
internal import HostOS
internal import Storage

/// A host port that leads to a guest's.
public struct ForwardConfiguration: Sendable, Equatable {
    /// UDP instead of TCP.
    public var isUDP: Bool
    /// Port on the host's loopback interface.
    public var hostPort: UInt16
    /// Port on the guest.
    public var guestPort: UInt16

    /// Names both ends.
    public init(isUDP: Bool = false, hostPort: UInt16, guestPort: UInt16) {
        self.isUDP = isUDP
        self.hostPort = hostPort
        self.guestPort = guestPort
    }
}

/// What a network card is plugged into.
public enum NetworkKind: Sendable, Equatable {
    /// A user-mode network with these forwards.
    case user(forwards: [ForwardConfiguration])
    /// A program, passt, with these forwards.
    case passt(forwards: [ForwardConfiguration])
    /// An interface of the host, in a bridge or alone; without a name the kernel chooses one.
    case tap(interface: String?, bridge: String?, queues: Int)
    /// A switch between machines of this host.
    case virtualSwitch(name: String)
    /// A vhost-user back end, another program, which listens at a path, or which this machine waits for there.
    case vhostUser(path: String, listens: Bool)

    /// The most pairs of queues that a card can have.
    public static var mostQueues: Int { VirtioNet.mostPairs }

    /// Pairs of queues.
    var queues: Int {
        if case .tap(_, _, let queues) = self { return queues }
        return 1
    }
}

/// A limit on what passes a network card, each way by itself.
public struct NetworkLimit: Sendable, Equatable {
    /// Bits a second.
    public var rate: UInt64
    /// Bytes that may pass at once after a pause.
    public var burst: UInt64

    /// A limit; without a burst, as much as passes in a tenth of a second, at least 64 KiB.
    public init(rate: UInt64, burst: UInt64? = nil) {
        self.rate = rate
        self.burst = burst ?? max(rate / 80, 65536)
    }
}

/// A network card.
public struct NetworkConfiguration: Sendable, Equatable {
    /// What it is plugged into.
    public var kind: NetworkKind
    /// Its MAC address, six bytes; nil is one of the machine's own.
    public var macAddress: [UInt8]?
    /// A file that gets all packets.
    public var capture: String?
    /// How much may pass.
    public var limit: NetworkLimit?

    /// A card that is plugged into something.
    public init(_ kind: NetworkKind) { self.kind = kind }

    /// The same with its paths on the host changed.
    public func mappingPaths(_ change: (String) -> String) -> NetworkConfiguration {
        var result = self
        result.capture = capture.map(change)
        if case .vhostUser(let path, let listens) = kind {
            result.kind = .vhostUser(path: change(path), listens: listens)
        }
        return result
    }

    /// The address of a machine's card: the same each time, and another for each machine and card.
    ///
    /// A machine is known by its first disk that keeps what it writes, which no other machine has open; one without, by
    /// what it boots. Locally administered (IEEE 802, 8.4.2: bit 1 of the first byte).
    static func address(of index: Int, _ configuration: MachineConfiguration) -> [UInt8] {
        let disk = configuration.disks.first { !$0.options.isReadOnly && !$0.options.isTemporary }?.path
        let boot = [configuration.boot.kernel, configuration.boot.initrd ?? ""]
        let identity = (disk.map { [$0] } ?? boot).map(PrivateFolder.canonical).joined(separator: "\n")
        // FNV-1a (draft-eastlake-fnv), folded to 32 bits.
        var hash: UInt64 = 0xCBF2_9CE4_8422_2325
        for byte in identity.utf8 { hash = (hash ^ UInt64(byte)) &* 0x100_0000_01B3 }
        let folded = hash ^ hash >> 32
        return [0x52] + (0..<4).map { UInt8(truncatingIfNeeded: folded >> UInt64($0 * 8)) }
            + [UInt8(truncatingIfNeeded: index)]
    }
}
