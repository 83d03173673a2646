// Errors of networks, and what is forwarded.

/// A network that can't be set up, and why.
public struct NetworkError: Error, Sendable, Equatable, CustomStringConvertible {
    /// What kind of error it is.
    public struct Code: Sendable, Equatable, Hashable {
        private let name: String
        /// A host port is in use.
        public static let portInUse = Code(name: "portInUse")
        /// A host port may not be opened.
        public static let portRefused = Code(name: "portRefused")
        /// There is no such forward, or the network has none at all.
        public static let noForward = Code(name: "noForward")
        /// A forward is misspelled.
        public static let badForward = Code(name: "badForward")
        /// An interface or a network has a name that can't be.
        public static let badName = Code(name: "badName")
        /// The process may not do it.
        public static let needsPrivileges = Code(name: "needsPrivileges")
        /// Another card in the network has the same address.
        public static let addressInUse = Code(name: "addressInUse")
        /// The host failed to do it.
        public static let host = Code(name: "host")
    }

    /// The kind.
    public var code: Code
    /// One line for a person.
    public var description: String

    /// Makes an error from its parts.
    public init(_ code: Code, _ description: String) {
        self.code = code
        self.description = description
    }
}

/// A port of the host that leads to a port of the guest.
public struct PortForward: Sendable, Equatable, CustomStringConvertible {
    /// What is forwarded.
    public enum Transport: String, Sendable, Equatable {
        /// Connections.
        case tcp
        /// Datagrams.
        case udp
    }

    /// Connections or datagrams.
    public var transport: Transport
    /// The port on the host's loopback address.
    public var hostPort: UInt16
    /// The port in the guest.
    public var guestPort: UInt16

    /// Makes a forward from its parts.
    public init(_ transport: Transport, hostPort: UInt16, guestPort: UInt16) {
        self.transport = transport
        self.hostPort = hostPort
        self.guestPort = guestPort
    }

    /// Reads `tcp:HOSTPORT:GUESTPORT` or `udp:HOSTPORT:GUESTPORT`.
    public init(parsing text: String) throws(NetworkError) {
        let parts = text.split(separator: ":", omittingEmptySubsequences: false)
        guard parts.count == 3, let transport = Transport(rawValue: String(parts[0])),
            let hostPort = UInt16(parts[1]), hostPort > 0, let guestPort = UInt16(parts[2]), guestPort > 0
        else {
            throw NetworkError(
                .badForward, "forward \(text): expected tcp:HOSTPORT:GUESTPORT or udp:HOSTPORT:GUESTPORT")
        }
        self.init(transport, hostPort: hostPort, guestPort: guestPort)
    }

    /// As it is written.
    public var description: String { "\(transport.rawValue):\(hostPort):\(guestPort)" }
}
