// Which engine runs.
internal import CPU

extension Processor {
    /// Makes the engine for the configured CPU model.
    func makeEngine(_ configuration: MachineConfiguration) throws(MachineError) -> any Engine {
        throw MachineError(.host, "no engine")
    }

    /// Power-on state.
    func reset() {}
}
