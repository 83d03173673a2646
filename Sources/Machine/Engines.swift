// Which engine runs, and the processor model that it runs.
package import CPU
internal import DeviceModel
internal import HostOS

extension Engine {
    package var difference: LockstepDifference? { nil }
}

extension LockstepEngine: Engine {
    package func report(to statistics: inout RunStatistics) {
        translator.report(to: &statistics)
        statistics.comparedBlocks = compared
        statistics.singleBlocks = single
        statistics.repeatedBlocks = repeated
    }
}

extension Interpreter: Engine {
    package func report(to statistics: inout RunStatistics) {}
}

extension Translator: Engine {
    package func report(to statistics: inout RunStatistics) {
        statistics.translations = translations
        statistics.codeEntries = entries
        statistics.codeBytes = codeBytes
        statistics.codeFlushes = codeFlushes
        statistics.callouts = callouts
    }
}

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
        case .lockstep:
            do {
                return try LockstepEngine(
                    cpu: cpu, memory: memory, codeCache: Int(min(configuration.codeCache, 512 << 20)))
            } catch {
                throw MachineError(.host, "cannot make room for translated code: \(error)")
            }
        case .translator:
            do {
                var settings = Translator.Settings()
                settings.codeCache = Int(min(configuration.codeCache, 512 << 20))
                settings.counts = configuration.countsInstructions
                // Both stop the engine at an instruction of their choice.
                let isExact = configuration.clock == .virtual || configuration.trace.contains(.instructions)
                settings.stopsExactly = isExact
                settings.visibleToPerf = configuration.namesForPerf
                let translator = try Translator(cpu: cpu, memory: memory, settings: settings)
                try observe(translator, configuration)
                if !isExact, let mode = configuration.userMode.direct { runUserCodeDirectly(mode) }
                return translator
            } catch {
                throw MachineError(.host, "cannot make room for translated code: \(error)")
            }
        }
    }

    /// Traces what is translated, and names it for perf.
    private func observe(_ translator: Translator, _ configuration: MachineConfiguration) throws(HostError) {
        let traces = configuration.trace.contains(.blocks)
        let map = configuration.namesForPerf ? try PerfMap(routines: translator.routines) : nil
        if !traces && map == nil { return }
        perfMap = map
        translator.onTranslation { block in
            map?.add(block)
            if traces { Terminal.note(block.listing) }
        }
    }

    /// Power-on state.
    func reset() { vcpu.reset() }
}
