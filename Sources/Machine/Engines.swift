// Which engine runs, and the processor model that it runs.
package import CPU
internal import DeviceModel
internal import Devices
internal import GuestMemory
internal import HostOS
internal import KVM

extension Engine {
    package var difference: LockstepDifference? { nil }
    package var kicker: (@Sendable () -> Void)? { nil }
    package var isBetweenInstructions: Bool { true }
    package var isSettled: Bool { true }
    package var waitsByItself: Bool { false }
    package var writeLog: (any WriteLog)? { nil }
    package func takeOver(_ clock: KVMClock.Registers) throws {}
    package func giveBack(_ clock: KVMClock.Registers) throws -> Handover { Handover(clock: clock) }
    package func describe() {}
    package func makeRoomForTranslations() -> SavedTranslations? { nil }
    package func saveTranslations(into room: inout SavedTranslations) -> Bool { false }
    package func restoreTranslations(from file: TranslationFile, memory: UInt32) -> Bool { false }
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
        statistics.savedCodeBytes = savedCodeBytes
        statistics.codeFlushes = codeFlushes
        statistics.callouts = callouts
    }
}

extension Processor {
    /// Sets the processor model and connects the memory, once.
    func prepare(_ choice: EngineChoice) {
        kind = choice.kind
        cpu.model = choice.model
        cpu.attach(memory: memory)
        cpu.seedRandom(door.randomBytes(16))
    }

    /// Makes the engine that was chosen.
    func makeEngine(_ choice: EngineChoice, _ configuration: MachineConfiguration, board: Board) throws(MachineError)
        -> any Engine
    {
        switch choice.kind {
        case .kvm, .auto:
            guard let host = choice.host else { throw MachineError(.hypervisor, "there is no hypervisor") }
            do throws(KVMError) {
                return try HardwareEngine(
                    host: host, shared: choice.hypervisor, cpu: cpu, memory: memory, board: board, door: door)
            } catch {
                throw MachineError(.hypervisor, error.description)
            }
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
                if !isExact, choice.host == nil || choice.isMoving == false, let mode = configuration.userMode.direct {
                    runUserCodeDirectly(mode)
                }
                return translator
            } catch {
                throw MachineError(.host, "cannot make room for translated code: \(error)")
            }
        }
    }

    /// Stops the engine that runs, and has another go on from the same state. Between instructions, on the vCPU's thread.
    func moveEngine(to kind: EngineKind) throws {
        guard let old = engine, let mover, kind != self.kind else { return }
        self.kind = kind
        board?.apics.hold()
        defer { board?.apics.release() }
        let handover = try old.giveBack(clock.registers)
        clock.registers = handover.clock
        old.report(to: &statistics)
        direct?.stop()
        direct = nil
        replaceEngine(nil)
        memory.onCodeWritten(vcpu: cpu.id, nil)
        let new = try mover(kind)
        try new.takeOver(clock.registers)
        replaceEngine(new)
        if let vector = handover.interrupt, !new.inject(vector: vector) {
            throw MachineError(.hypervisor, "an interrupt could not be delivered")
        }
        // The clocks are to be told of the counter at once.
        lastOffset = ~lastOffset
        statistics.moves += 1
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
