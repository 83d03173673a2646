// Reaching the agent in the guest of a machine that is kept.
public import AgentClient
internal import AgentProtocol
internal import HostOS

extension StoredMachine {
    /// A stream to the agent; a guest that is booting is waited for, at most so long.
    public func agent(within seconds: Int) throws -> AgentConnection {
        let deadline = HostClock.monotonic &+ UInt64(max(0, seconds)) &* 1_000_000_000
        while true {
            do {
                let stream = try control().stream(MachineRequest.agent, NoParameters())
                return try AgentConnection(try stream.duplicate(), received: stream.takeReceived())
            } catch let error as MachinesError where error.code == .stopped {
                throw error
            } catch {
                guard HostClock.monotonic < deadline else {
                    throw MachinesError(
                        .notAnswering,
                        "machine '\(name)' runs, but no agent answers in its guest; `roost console \(name)` shows what it does"
                    )
                }
                HostClock.sleep(nanoseconds: 100_000_000)
            }
        }
    }
}

extension AgentConnection {
    /// Gives the guest's network cards, in the order of their slots, the addresses that the machine's have.
    public func setAddresses(_ addresses: [[UInt8]]) throws {
        let commands = addresses.enumerated().map { index, address in
            let text = address.map { ($0 < 16 ? "0" : "") + String($0, radix: 16) }.joined(separator: ":")
            return "ip link set dev eth\(index) address \(text)"
        }
        var request = ProgramRequest(command: ["/bin/sh", "-c", commands.joined(separator: "; ")])
        request.folder = "/"
        // O_WRONLY
        let nowhere = try FileDescriptor.open("/dev/null", 1)
        _ = try run(request, ProgramStreams(input: nil, output: nowhere.rawValue, errors: nowhere.rawValue))
    }

    /// Tells a guest that goes on from a snapshot what has changed: the time, and, for a copy, that it is another one.
    public func refresh(identity: (machine: String, host: String)?) throws(AgentError) {
        try perform(.setClock(HostClock.realTime))
        try perform(.addEntropy(HostRandom.bytes(64)))
        if let identity { try perform(.setIdentity(machine: identity.machine, host: identity.host)) }
    }
}
