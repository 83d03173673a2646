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
            } catch let error as MachinesError where error.code == .stopped || error.code == .badRequest {
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
    /// Tells a guest that goes on from a snapshot what has changed: the time, and, for a copy, that it is another one and
    /// which addresses its network cards have, in the order of their slots.
    public func refresh(
        identity: (machine: String, host: String)?, addresses: [[UInt8]] = []
    ) throws(AgentError) {
        var news: [AgentMessage] = [.setClock(HostClock.realTime), .addEntropy(HostRandom.bytes(64))]
        if let identity { news.append(.setIdentity(machine: identity.machine, host: identity.host)) }
        for (index, address) in addresses.enumerated() {
            news.append(.setLinkAddress(interface: "eth\(index)", address))
        }
        try perform(news)
    }
}
