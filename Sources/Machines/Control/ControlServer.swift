// The machine's end of its control socket: a thread waits for connections, each has one of its own.
//
// Clients are other processes of the same user. One that sends garbage or too much, sends nothing, or never reads, holds
// up its own thread only, and not for long.
internal import Foundation
public import HostOS
internal import Synchronization

/// Answers requests until it is closed.
public final class ControlServer: Sendable {
    /// What is done for each verb, on the connection's thread.
    public typealias Handler = @Sendable (ControlCall) throws -> ControlReply

    private let listener: LocalServer
    private let handlers: [String: Handler]
    private let connections = Mutex<[ObjectIdentifier: LocalConnection]>([:])
    /// Requests that are being answered, and streams.
    private let pending = Mutex(0)

    /// Listens at a path.
    public init(path: String, handlers: [String: Handler]) throws(HostError) {
        listener = try LocalServer(at: path)
        self.handlers = handlers
        try HostThread.detached(name: "roost-control") { [self] in
            while let connection = listener.accept() { welcome(connection) }
        }
    }

    /// Ends it: no more connections, and those there are are cut; answers and streams have half a second to come to their
    /// own end. (The answer to a request that ended the machine is on its way when this is called.)
    public func close() {
        listener.close()
        var patience = 50
        while patience > 0, pending.withLock({ $0 }) > 0 {
            HostClock.sleep(nanoseconds: 10_000_000)
            patience -= 1
        }
        for connection in connections.withLock({ $0.values.map { $0 } }) { connection.close() }
    }

    private func welcome(_ connection: LocalConnection) {
        let isWelcome = connections.withLock { connections in
            guard connections.count < ControlRules.mostConnections else { return false }
            connections[ObjectIdentifier(connection)] = connection
            return true
        }
        guard isWelcome else { return connection.close() }
        let forget: @Sendable () -> Void = { [self] in
            connection.close()
            connections.withLock { $0[ObjectIdentifier(connection)] = nil }
        }
        let isStarted: Void? = try? HostThread.detached(name: "roost-client") { [self] in
            serve(connection)
            forget()
        }
        if isStarted == nil { forget() }
    }

    /// Answers a connection's requests until it is at its end or has become a stream.
    private func serve(_ connection: LocalConnection) {
        connection.setTimeout(milliseconds: ControlRules.patience)
        while let line = connection.readLine(limit: ControlRules.longestLine) {
            pending.withLock { $0 += 1 }
            defer { pending.withLock { $0 -= 1 } }
            guard answer(line, on: connection) else { return }
        }
    }

    /// Answers a request; returns whether the connection takes another.
    private func answer(_ line: String, on connection: LocalConnection) -> Bool {
        do {
            let call = try ControlCall(line)
            guard let handler = handlers[call.verb] else {
                throw MachinesError(.badRequest, "this machine's Roost knows no request '\(call.verb)'")
            }
            switch try handler(call) {
            case .done: return send(ControlAnswer(result: NoParameters()), to: connection)
            case .result(let value): return send(value, to: connection)
            case .stream(let body):
                guard send(ControlAnswer(result: NoParameters()), to: connection) else { return false }
                connection.setTimeout(milliseconds: 0)
                body(connection)
                return false
            }
        } catch {
            let known = error as? MachinesError
            return send(
                ControlAnswer<NoParameters>(
                    error: .init(code: known?.code.name ?? "failed", message: known?.description ?? "\(error)")),
                to: connection)
        }
    }

    private func send<Value: Codable & Sendable>(_ value: Value, to connection: LocalConnection) -> Bool {
        send(ControlAnswer(result: value), to: connection)
    }

    private func send<Value>(_ answer: ControlAnswer<Value>, to connection: LocalConnection) -> Bool {
        guard let line = try? JSONText.line(answer) else { return false }
        return connection.write(line) == nil
    }
}

extension ControlStream {
    /// Passes bytes between a connection and a descriptor that never waits, until one of them is at its end. What a client
    /// that is gone has sent, and the descriptor has no room for, goes nowhere.
    package static func relay(_ stream: SharedDescriptor, _ connection: LocalConnection) {
        stream.descriptor.setNonBlocking()
        let other = stream.descriptor.rawValue
        var toConnection: ArraySlice<UInt8> = []
        var toOther: ArraySlice<UInt8> = []
        var isTaken = true
        while true {
            let ready = connection.wait(
                reading: isTaken && toOther.isEmpty, writing: !toConnection.isEmpty, other: other,
                readingOther: toConnection.isEmpty, writingOther: !toOther.isEmpty)
            if ready.isGone && !ready.canRead { return }
            if ready.canRead {
                toOther = connection.read(limit: 65536)[...]
                if toOther.isEmpty { return }
            }
            if ready.other, toConnection.isEmpty {
                do throws(HostError) {
                    let bytes = try FileDescriptor.readAvailable(other, limit: 65536)
                    if bytes?.isEmpty == true { return }
                    toConnection = (bytes ?? [])[...]
                } catch { return }
            }
            // Who takes nothing more may have sent something before.
            do throws(HostError) {
                if !toOther.isEmpty { toOther = toOther.dropFirst(try stream.descriptor.writeAvailable(toOther)) }
            } catch { (toOther, isTaken) = ([], false) }
            guard let written = connection.writeNow(toConnection) else { return }
            toConnection = toConnection.dropFirst(written)
        }
    }
}

/// Streams what a log holds and gets to a connection, and its input to whoever takes it.
package enum ControlStream {
    /// Runs until the log or the connection is at its end. `input` returns how many bytes it took; it is asked again when
    /// the log wakes its readers.
    static func pump(
        _ reader: ByteLogReader, to connection: LocalConnection, input: (@Sendable ([UInt8]) -> Int)?
    ) {
        var outgoing: ArraySlice<UInt8> = []
        var incoming: [UInt8] = []
        var hasInput = true
        while true {
            if outgoing.isEmpty {
                guard let part = reader.read(limit: 65536) else { return }
                outgoing = part.bytes[...]
            }
            if let input, !incoming.isEmpty { incoming.removeFirst(input(incoming)) }
            guard let written = connection.writeNow(outgoing) else { return }
            outgoing = outgoing.dropFirst(written)
            if written > 0 && outgoing.isEmpty { continue }
            let ready = connection.wait(
                reading: hasInput && incoming.isEmpty, writing: !outgoing.isEmpty, other: reader.descriptor)
            if ready.isGone && !ready.canRead { return }
            if ready.canRead {
                let bytes = connection.read(limit: 4096)
                if bytes.isEmpty { hasInput = false } else if input != nil { incoming = bytes }
            }
            // With output still to go, a signal of the log must not become a loop: it is taken, and the log read later.
            if ready.other && !outgoing.isEmpty { reader.calm() }
        }
    }
}
