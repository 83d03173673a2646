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

    /// Asks the guest of a machine that runs to have so much memory.
    public func setMemory(_ bytes: UInt64) throws {
        _ = try control().call(MachineRequest.setMemory, ByteCountParameters(bytes: bytes)) as NoParameters
    }

    /// The same in the process that has the machine. What the guest has from the start stays: snapshots go on from there.
    func setMemory(_ bytes: UInt64, of machine: Machine) throws {
        try machine.setMemory(bytes)
        try edit { $0.machine.wantedMemory = bytes == $0.machine.memory ? nil : bytes }
        bringOnline(machine)
    }

    /// Asks the guest of a machine that runs to give back so much memory, now and at each start.
    public func setBalloon(_ bytes: UInt64) throws {
        _ = try control().call(MachineRequest.balloon, ByteCountParameters(bytes: bytes)) as NoParameters
    }

    /// The same in the process that has the machine.
    func setBalloon(_ bytes: UInt64, of machine: Machine) throws {
        try edit { $0.machine.balloon = bytes }
        machine.setBalloon(bytes)
    }

    /// Has the agent, if there is one, take processors and memory into use: Linux leaves that to a program. A guest that
    /// boots is waited for.
    func bringOnline(_ machine: Machine) {
        let script = """
            modprobe -q virtio_mem
            cd /sys/devices/system
            echo online_movable >memory/auto_online_blocks
            for second in 1 2 3; do
                for file in cpu/cpu*/online; do
                    [ "$(cat $file)" = 1 ] || echo 1 >$file
                done
                for file in memory/memory*/state; do
                    [ "$(cat $file)" != offline ] || echo online_movable >$file
                done
                sleep 1
            done
            """
        try? HostThread.detached(name: "roost-online") {
            var agent: AgentConnection?
            for _ in 0..<60 where agent == nil && machine.state != .ended {
                agent = try? AgentConnection(try machine.connectAgent())
                if agent == nil { HostClock.sleep(nanoseconds: 1_000_000_000) }
            }
            guard let agent, let nowhere = try? FileDescriptor.open("/dev/null", 1) else { return }
            let streams = ProgramStreams(input: nil, output: nowhere.rawValue, errors: nowhere.rawValue)
            _ = try? agent.run(
                ProgramRequest(command: ["sh", "-c", script]), streams,
                deadline: HostClock.monotonic &+ 20_000_000_000)
        }
    }
}
