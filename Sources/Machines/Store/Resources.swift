// How much of its host a machine that is kept has: at once if it runs, and at each start.
internal import AgentClient
internal import AgentProtocol
internal import HostOS
internal import Machine

extension StoredMachine {
    /// Gives it so many processors while it runs; a guest that loses some decides when.
    public func setProcessors(_ count: Int) throws {
        _ = try control().call(MachineRequest.setProcessors, CountParameters(count: count)) as NoParameters
    }

    /// The same in the process that has the machine.
    func setProcessors(_ count: Int, of machine: Machine) throws {
        try machine.setProcessors(count)
        try edit { $0.machine.processors = count }
        bringOnline(machine)
    }

    /// Has the agent, if there is one, take processors into use: Linux leaves that to a program.
    private func bringOnline(_ machine: Machine) {
        let script = """
            for second in 1 2 3; do
                for file in /sys/devices/system/cpu/cpu*/online; do
                    [ "$(cat $file)" = 1 ] || echo 1 >$file
                done
                sleep 1
            done
            """
        try? HostThread.detached(name: "roost-online") {
            guard let agent = try? AgentConnection(try machine.connectAgent()),
                let nowhere = try? FileDescriptor.open("/dev/null", 1)
            else { return }
            let streams = ProgramStreams(input: nil, output: nowhere.rawValue, errors: nowhere.rawValue)
            _ = try? agent.run(
                ProgramRequest(command: ["sh", "-c", script]), streams,
                deadline: HostClock.monotonic &+ 20_000_000_000)
        }
    }
}
