// What a vhost-user front end says to its back end.
//
// QEMU, docs/interop/vhost-user.rst, "Message Specification". Numbers are in the host's byte order.
//
//   request 32   flags 32 (bits 0 and 1 version, 2 this is a reply)   size 32   payload
internal import HostOS

/// The requests that a network card needs, by their numbers.
///
/// - Spec: vhost-user, "Front-end message types"
enum VhostUserRequest: UInt32 {
    case getFeatures = 1
    case setFeatures = 2
    case setOwner = 3
    case setMemoryTable = 5
    case setVringSize = 8
    case setVringAddresses = 9
    case setVringBase = 10
    case setVringKick = 12
    case setVringCall = 13
    case getProtocolFeatures = 15
    case setProtocolFeatures = 16
    case setVringEnabled = 18
}

/// A connection to a back end.
struct VhostUserChannel: Sendable {
    private static let version: UInt32 = 1
    private static let isReply: UInt32 = 4
    private static let headerLength = 12
    /// No back end takes longer to answer.
    private static let patience = 5000

    let connection: LocalConnection

    init(_ connection: LocalConnection) {
        self.connection = connection
        connection.setTimeout(milliseconds: Self.patience)
    }

    /// Sends a request that isn't answered.
    func tell(
        _ request: VhostUserRequest, _ payload: [UInt8] = [], descriptors: [Int32] = []
    ) throws(NetworkError) {
        let header = bytes(request.rawValue) + bytes(Self.version) + bytes(UInt32(payload.count))
        if let error = connection.write(header + payload, descriptors: descriptors) {
            throw NetworkError(.host, "the back end went away: \(error)")
        }
    }

    /// Sends a request and takes the number that answers it.
    func ask(_ request: VhostUserRequest) throws(NetworkError) -> UInt64 {
        try tell(request)
        let answer = try receive(Self.headerLength + 8)
        guard answer[0..<4].elementsEqual(bytes(request.rawValue)), answer[4] & 3 == UInt8(Self.version),
            answer[4] & UInt8(Self.isReply) != 0, answer[8..<12].elementsEqual(bytes(UInt32(8)))
        else { throw NetworkError(.host, "what answers doesn't speak vhost-user") }
        return answer[12...].reversed().reduce(0) { $0 << 8 | UInt64($1) }
    }

    private func receive(_ count: Int) throws(NetworkError) -> [UInt8] {
        var all: [UInt8] = []
        while all.count < count {
            let some = connection.read(limit: count - all.count)
            if some.isEmpty {
                throw NetworkError(.host, "the back end doesn't answer (is it one for vhost-user?)")
            }
            all += some
        }
        return all
    }
}

/// A number as a message holds it.
func bytes<T: FixedWidthInteger>(_ value: T) -> [UInt8] {
    (0..<T.bitWidth / 8).map { UInt8(truncatingIfNeeded: value >> T($0 * 8)) }
}
