// The other end of a machine's control socket.
internal import Foundation
public import HostOS

/// Asks a machine's process for things; for one thread.
public final class ControlClient: Sendable {
    private let connection: LocalConnection
    private let name: String

    /// Connects to the process of the machine in a folder; `name` is for error messages. A machine that is about to listen is
    /// waited for, not long.
    init(folder: String, name: String) throws(MachinesError) {
        var tries = 0
        while true {
            do {
                connection = try LocalConnection(to: StoredMachine.socketName, in: folder)
                break
            } catch {
                tries += 1
                let isEarly = [HostErrorNumber.notFound, HostErrorNumber.connectionRefused].contains(error.errno)
                if !isEarly || tries > 20 {
                    throw MachinesError(.notAnswering, "machine '\(name)' doesn't answer: \(error)")
                }
                HostClock.sleep(nanoseconds: 50_000_000)
            }
        }
        self.name = name
        connection.setTimeout(milliseconds: ControlRules.patience)
    }

    /// Makes a request and returns what was answered.
    public func call<Parameters: Codable, Result: Codable>(
        _ verb: String, _ parameters: Parameters, returning type: Result.Type = NoParameters.self
    ) throws(MachinesError) -> Result {
        let line = try JSONText.line(ControlRequest(verb: verb, parameters: parameters))
        guard connection.write(line) == nil, let text = connection.readLine(limit: 16 << 20) else {
            throw MachinesError(.notAnswering, "machine '\(name)' doesn't answer; `roost kill \(name)` ends it")
        }
        guard let answer = try? JSONDecoder().decode(ControlAnswer<Result>.self, from: Data(text.utf8)) else {
            throw MachinesError(
                .notAnswering, "machine '\(name)' runs under another version of Roost: \(text.prefix(200))")
        }
        if let error = answer.error {
            throw MachinesError(.init(name: error.code), "machine '\(name)': \(error.message)")
        }
        guard let result = answer.result else {
            throw MachinesError(.notAnswering, "machine '\(name)' answers with nothing")
        }
        return result
    }

    /// Makes a request that needs nothing more.
    public func call(_ verb: String) throws(MachinesError) { _ = try call(verb, NoParameters()) as NoParameters }

    /// Makes a request that turns the connection into a stream, and returns it.
    public func stream<Parameters: Codable>(
        _ verb: String, _ parameters: Parameters
    ) throws(MachinesError) -> LocalConnection {
        _ = try call(verb, parameters) as NoParameters
        connection.setTimeout(milliseconds: 0)
        return connection
    }
}
