// Which engine runs, and the processor model that it runs.
internal import CPU
internal import DeviceModel

extension Interpreter: Engine {}

extension Processor {
    /// Makes the engine for the configured CPU model.
    func makeEngine(_ configuration: MachineConfiguration) throws(MachineError) -> any Engine {
        if let name = configuration.cpuModel {
            var missing: [String] = []
            guard let model = CPUModel.named(name, missing: &missing) else {
                throw MachineError(
                    .processor, "there is no CPU model '\(name)'; there are \(CPUModel.names.joined(separator: ", "))")
            }
            guard missing.isEmpty else {
                throw MachineError(
                    .processor, "CPU model '\(name)': the host lacks \(missing.joined(separator: ", "))")
            }
            cpu.model = model
        }
        cpu.attach(memory: memory)
        cpu.seedRandom(door.randomBytes(16))
        return Interpreter(cpu: cpu, memory: memory)
    }

    /// Power-on state.
    func reset() { vcpu.reset() }
}
