// Which engine runs the processor, and why: what `--engine auto` decides by asking.
internal import CPU
internal import GuestMemory
internal import KVM

/// A decision for one machine.
struct EngineChoice: Sendable {
    /// What runs the processor; never `.auto`.
    var kind: EngineKind
    /// The processor model, with nothing that the engine can't give.
    var model: CPUModel
    /// The host's hypervisor, if it is used.
    var host: KVMHost?
    /// What the engines of all processors share of it.
    let hypervisor = SharedHypervisor()
    /// Why it isn't, in a line, where `auto` had to decide that.
    var note: String?
    /// The machine moves between the hypervisor and the translator.
    var isMoving = false

    /// Decides for a configuration.
    init(_ configuration: MachineConfiguration) throws(MachineError) {
        model = .host
        if let name = configuration.cpuModel {
            var missing: [String] = []
            guard let found = CPUModel.named(name, missing: &missing) else {
                throw MachineError(
                    .processor, "there is no CPU model '\(name)'; there are \(CPUModel.names.joined(separator: ", "))")
            }
            guard missing.isEmpty else {
                throw MachineError(
                    .processor, "CPU model '\(name)': the host lacks \(missing.joined(separator: ", "))")
            }
            model = found
        }
        kind = configuration.engine
        isMoving = configuration.movesEveryMilliseconds != nil
        switch configuration.engine {
        case .interpreter, .translator, .lockstep:
            if isMoving { try useHypervisor(configuration) }
            kind = configuration.engine
        case .kvm: try useHypervisor(configuration)
        case .auto:
            guard Self.softwareOnly(configuration) == nil else {
                kind = .translator
                return
            }
            let whole = model
            do throws(MachineError) {
                try useHypervisor(configuration)
                if let slow = KVMProbe.obstacle(on: host) { throw MachineError(.hypervisor, slow.description) }
            } catch {
                (kind, host, model) = (.translator, nil, whole)
                note = "the translator runs this machine: \(error.description)"
            }
        }
    }

    /// What the user asked for that only the software engines have.
    private static func softwareOnly(_ configuration: MachineConfiguration) -> String? {
        if configuration.clock == .virtual { return "--clock virtual" }
        if !configuration.trace.isDisjoint(with: [.instructions, .blocks]) { return "--trace" }
        if configuration.namesForPerf { return "--perf" }
        if configuration.userMode != .auto { return "--user-mode" }
        return nil
    }

    private mutating func useHypervisor(_ configuration: MachineConfiguration) throws(MachineError) {
        kind = .kvm
        if let option = Self.softwareOnly(configuration) {
            throw MachineError(.hypervisor, "\(option) needs an engine in software")
        }
        do throws(KVMError) {
            let host = try KVMHost()
            let supported = try host.supportedCPUID()
            if configuration.cpuModel == nil || configuration.cpuModel == "host" {
                model = model.limited(to: supported)
            } else {
                let missing = model.lacking(in: supported)
                guard missing.isEmpty else {
                    throw KVMError(
                        .unsuitable,
                        "CPU model '\(model.name)': the host's KVM lacks \(missing.joined(separator: ", "))")
                }
            }
            self.host = host
        } catch {
            throw MachineError(.hypervisor, error.description)
        }
    }
}
