// The agent in the guest, where the guest has one.
internal import AgentProtocol
internal import Devices
public import HostOS

extension Machine {
    /// Opens a stream to the agent; throws if there is none, or it doesn't answer in time.
    public func connectAgent(milliseconds: Int32 = 2000) throws(MachineError) -> FileDescriptor {
        guard let sockets else { throw MachineError(.network, "the machine has no sockets for the guest's agent") }
        do {
            return try sockets.connect(to: agentPort, milliseconds: milliseconds)
        } catch {
            throw MachineError(.agent, "no agent answers in the guest: it isn't up yet, or its image has none")
        }
    }
}
