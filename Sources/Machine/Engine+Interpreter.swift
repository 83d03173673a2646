// Which engine runs, and the processor model that it runs.
internal import CPU
internal import DeviceModel

extension Interpreter: Engine {}
extension Translator: Engine {}

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
        switch configuration.engine {
        case .interpreter: return Interpreter(cpu: cpu, memory: memory)
        case .translator:
            do {
                return try Translator(cpu: cpu, memory: memory)
            } catch {
                throw MachineError(.host, "cannot make room for translated code: \(error)")
            }
        }
    }

    /// Power-on state.
    func reset() { vcpu.reset() }
}
