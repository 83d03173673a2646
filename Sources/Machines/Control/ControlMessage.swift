// What is said on a machine's control socket: one JSON line each way, then, for some requests, bytes.
//
//   request   {"version":1,"verb":"balloon","parameters":{"bytes":268435456}}
//   answer    {"version":1,"result":{…}}     or   {"version":1,"error":{"code":"…","message":"…"}}
//
// A request whose answer is a stream ends the talk in lines: what follows the answer's line are that stream's bytes, and
// what follows the request's line are its input.
internal import Foundation
public import HostOS

/// The rules of the talk.
enum ControlRules {
    static let version = 1
    /// Bytes of a line; who sends more is cut off.
    static let longestLine = 64 << 10
    /// Connections at one time.
    static let mostConnections = 64
    /// How long an end may take to send or take a line.
    static let patience = 10_000
}

/// The part of a request that says what is wanted.
struct ControlHead: Codable {
    var version = ControlRules.version
    var verb: String
}

/// A request with what it needs.
struct ControlRequest<Parameters: Codable>: Codable {
    var version = ControlRules.version
    var verb: String
    var parameters: Parameters
}

/// A request that needs nothing more.
public struct NoParameters: Codable, Sendable {
    /// Nothing.
    public init() {}
}

/// An answer.
struct ControlAnswer<Result: Codable>: Codable {
    struct Failure: Codable {
        var code: String
        var message: String
    }

    var version = ControlRules.version
    var result: Result?
    var error: Failure?
}

/// What a handler makes of a request.
public enum ControlReply {
    /// Done, nothing to tell.
    case done
    /// Done, and this is the answer.
    case result(any Codable & Sendable)
    /// The connection is the handler's from now on, on the connection's own thread; it is closed when that returns.
    case stream(@Sendable (LocalConnection) -> Void)
}

/// A request as a handler gets it.
public struct ControlCall: Sendable {
    /// What is wanted.
    public let verb: String
    private let line: Data

    init(_ line: String) throws(MachinesError) {
        self.line = Data(line.utf8)
        guard let head = try? JSONDecoder().decode(ControlHead.self, from: self.line) else {
            throw MachinesError(.badRequest, "not a request")
        }
        guard head.version == ControlRules.version else {
            throw MachinesError(
                .badRequest,
                "the request is of version \(head.version), this machine's Roost speaks \(ControlRules.version)")
        }
        verb = head.verb
    }

    /// What came with the request.
    public func parameters<Value: Codable>(_ type: Value.Type) throws(MachinesError) -> Value {
        do { return try JSONDecoder().decode(ControlRequest<Value>.self, from: line).parameters } catch {
            throw MachinesError(.badRequest, "the request '\(verb)' lacks parameters, or they are of the wrong kind")
        }
    }
}
