// A whole machine: memory, board, processor and console, from set-up to the end of its run.
internal import CPU
internal import DeviceModel
internal import Devices
internal import GuestMemory
internal import HostOS
internal import Network
internal import Synchronization

/// A virtual machine.
public final class Machine: Sendable {
    let configuration: MachineConfiguration
    let memory: GuestMemory
    let door: any Door
    let processors: [Processor]
    let board: Board
    /// Its console, for who attaches.
    public let console: Console
    let activity = MachineActivity()
    let backends: Backends
    let gate = PauseGate()
    let choice: EngineChoice
    /// Held by who pauses the machine, lets it go on, or does both to do something meanwhile.
    let standstill = ReadersWriterLock()
    /// The host's counter when the machine was paused; nil while it runs.
    let pausedAt = Mutex<UInt64?>(nil)
    private let moveNow: Alternation?
    /// Why the machine must end, where that is nothing that the guest did.
    private let failure = Mutex<String?>(nil)
    private let result = Mutex<MachineOutcome?>(nil)

    /// Makes a machine with everything connected and the kernel loaded; the guest doesn't run yet.
    public init(_ configuration: MachineConfiguration) throws(MachineError) {
        self.configuration = configuration
        Terminal.prepareStandardStreams()
        HostMemory.keepHeapSmall()
        try Self.check(configuration)
        do {
            memory = try GuestMemory(
                size: configuration.memory, growth: configuration.memoryGrowth, hugePages: configuration.usesHugePages)
        } catch {
            throw MachineError(.memory, "\(sizeInWords(configuration.memory)) of memory: \(error.reason)")
        }
        do {
            door = configuration.clock == .virtual ? VirtualDoor() : try HostDoor(at: configuration.snapshot?.time ?? 0)
        } catch {
            throw MachineError(.host, "\(error)")
        }
        choice = try EngineChoice(configuration)
        let count = configuration.mostProcessors
        let code = choice.kind == .translator ? configuration.snapshot?.openTranslations(count) ?? [] : []
        processors = (0..<count).map { [memory, door] number in
            Processor(number: number, of: count, memory: memory, door: door, trace: configuration.trace)
        }
        let processor = processors[0]
        do {
            console = try Console(configuration.console, log: configuration.consoleLog)
        } catch {
            throw MachineError(.console, "console: \(error)")
        }
        board = Board(
            configuration, memory: memory, door: door, power: processor, tscFrequency: processor.tscFrequency,
            output: { [console] in console.write($0) })
        backends = try board.connect(configuration, door: door) { [activity] in activity.note($0) }
        board.serial.onInputDrained { [console] in console.portDrained() }
        moveNow =
            if let interval = configuration.movesEveryMilliseconds {
                Alternation(processor, choice.kind, door, every: interval)
            } else { nil }
        if count > 1 { _ = VCPUGroup(processors.map(\.cpu), memory: memory) }
        do throws(MachineError) {
            try prepare(choice, code)
        } catch {
            stopBackends()
            takeApart()
            throw error
        }
        HostMemory.trimHeap()
        if let note = choice.note, configuration.showsNotes { Terminal.note("roost: \(note)") }
    }

    /// Connects engines and board, which refer to each other from then on, and puts in what the machine begins with.
    private func prepare(_ choice: EngineChoice, _ code: [TranslationFile?]) throws(MachineError) {
        let processor = processors[0]
        for processor in processors {
            processor.gate = gate
            processor.prepare(choice)
            processor.isPresent = processor.cpu.id < configuration.processors
            processor.connect(
                engine: processor.isPresent ? try processor.makeEngine(choice, configuration, board: board) : nil,
                board: board)
        }
        processor.mover = { [unowned processor, board, configuration] (kind) throws(MachineError) in
            var next = choice
            next.kind = kind
            return try processor.makeEngine(next, configuration, board: board)
        }
        if let snapshot = configuration.snapshot {
            try restore(snapshot, choice, code: code)
        } else {
            try start(try load())
        }
        board.events.onEject { [weak self] in self?.removeProcessor($0) }
        activity.react { [weak self] in self?.react(to: $0) }
    }

    deinit { takeApart() }

    /// Cuts the references by which its parts would keep each other; nothing runs any more.
    private func takeApart() {
        for processor in processors { processor.disconnect() }
        board.takeApart()
    }

    /// Puts all processors into the state after power-on.
    private func start(_ entry: EntryState) throws(MachineError) {
        for (number, processor) in processors.enumerated() {
            processor.start(number == 0 ? entry : nil, with: number == 0 ? nil : processors[0])
            try processor.begin()
        }
    }

    private static func check(_ configuration: MachineConfiguration) throws(MachineError) {
        guard 1...64 ~= configuration.processors, 1...64 ~= configuration.mostProcessors else {
            throw MachineError(
                .processor,
                "\(configuration.processors) processors, at most \(configuration.mostProcessors): there can be 1 to 64")
        }
        guard configuration.mostProcessors == 1 || (configuration.clock == .host && configuration.engine != .lockstep)
        else {
            throw MachineError(.processor, "virtual time and lockstep are for machines with one processor")
        }
        guard configuration.mostProcessors == 1 || configuration.movesEveryMilliseconds == nil else {
            throw MachineError(.processor, "moving between engines is for machines with one processor")
        }
        guard configuration.clock == .host || configuration.networks.isEmpty else {
            throw MachineError(.network, "virtual time has no network: packets come when they come")
        }
        guard configuration.clock == .host || configuration.sockets == nil else {
            throw MachineError(.network, "virtual time has no sockets: what the host sends comes when it comes")
        }
        guard configuration.memory >= 1 << 20 else {
            throw MachineError(.memory, "\(configuration.memory) bytes of memory: at least 1 MiB is needed")
        }
        guard configuration.memory % 4096 == 0 else {
            throw MachineError(.memory, "\(configuration.memory) bytes of memory: not a multiple of 4 KiB")
        }
        if configuration.usesHugePages, let obstacle = SharedMemory.obstacleToHugePages {
            throw MachineError(.memory, "huge pages: \(obstacle)")
        }
        guard configuration.memoryGrowth % VirtioMemory.blockSize == 0 else {
            throw MachineError(
                .memory, "what memory can grow by must be a multiple of \(sizeInWords(VirtioMemory.blockSize))")
        }
        let host = HostMemory.total
        for size in [configuration.memory, configuration.maximumMemory ?? 0] where size > host {
            throw MachineError(.memory, "\(sizeInWords(size)) of memory: the host has \(sizeInWords(host))")
        }
    }

    /// Loads tables and kernel into clean memory.
    private func load() throws(MachineError) -> EntryState {
        do {
            try board.prepare()
        } catch {
            throw MachineError(.memory, "\(sizeInWords(configuration.memory)) of memory can't hold the ACPI tables")
        }
        do {
            return try configuration.boot.load(into: memory)
        } catch {
            throw MachineError(.boot, error.description)
        }
    }

    /// Runs the guest until it ends, starting it again after resets.
    public func run() -> MachineOutcome {
        do {
            if isPaused { try resume() }
            let serial = board.serial
            let door = door
            let admit: @Sendable ([UInt8]) -> Bool = { bytes in
                door.admitNow(.input(bytes)) { event in
                    if case .input(let bytes) = event { _ = serial.receive(bytes) as Int }
                }
            }
            try console.start(serial, admit: admit) { [weak self] in self?.end() }
            activity.note(.started)
            let thread = try HostThread(name: "roost-cpu0") { [self] in
                let outcome = runToEnd()
                gate.end()
                result.withLock { $0 = failure.withLock { $0 }.map { .failed($0) } ?? outcome }
            }
            thread.join()
        } catch {
            Terminal.restore()
            return .failed("\(error)")
        }
        stopBackends()
        activity.note(.ended)
        Terminal.restore()
        return result.withLock { $0 } ?? .failed("the processor's thread ended without a result")
    }

    /// Ends what works for the devices; nothing runs any more.
    private func stopBackends() {
        for port in backends.ports { port.stop() }
        backends.sockets?.stop()
        backends.disks.close()
        console.finish()
    }

    private func runToEnd() -> MachineOutcome {
        while true {
            let outcome = runSession()
            guard outcome == .reset, configuration.rebootsOnReset else { return outcome }
            activity.note(.reset)
            board.reset()
            memory.clear()
            backends.memory?.unplugAll()
            processors[0].countReset()
            do {
                try start(try load())
            } catch {
                return .failed(error.description)
            }
        }
    }

    /// Runs all processors until one of them ends the session; the first one on this thread.
    private func runSession() -> MachineOutcome {
        if processors.count == 1 { return processors[0].run() }
        let first = Mutex<MachineOutcome?>(nil)
        let run: @Sendable (Processor) -> Void = { [processors] processor in
            let outcome = processor.run()
            let isFirst = first.withLock { kept in
                if kept != nil { return false }
                kept = outcome
                return true
            }
            if isFirst { for other in processors where other !== processor { other.stop() } }
        }
        var threads: [HostThread] = []
        do {
            for (number, processor) in processors.enumerated().dropFirst() {
                threads.append(try HostThread(name: "roost-cpu\(number)") { run(processor) })
            }
            run(processors[0])
        } catch {
            first.withLock { $0 = .failed("\(error)") }
            for processor in processors { processor.stop() }
        }
        for thread in threads { thread.join() }
        return first.withLock { $0 } ?? .failed("the processors' threads ended without a result")
    }

    /// Ends the machine, from any thread: it can't go on.
    func fail(_ reason: String) {
        failure.withLock { $0 = $0 ?? reason }
        processors[0].end()
    }

    /// Goes on with another engine as soon as no instruction is half done.
    public func move(to engine: EngineKind) { processors[0].move(to: engine) }

    /// Guest time in nanoseconds.
    package var time: UInt64 { door.now }

    /// Streams to and from the guest's sockets, if it has any.
    public var sockets: VsockEndpoint? { backends.sockets }

    /// What happened during the run.
    public var statistics: RunStatistics {
        var total = processors[0].statistics
        for processor in processors.dropFirst() { total.add(processor.statistics) }
        total.returnedMemory = backends.balloon?.readStatistics().returned ?? 0
        return total
    }
}

/// Moves a machine between the hypervisor and the translator again and again, for tests.
private final class Alternation: Sendable {
    private struct Turn: Sendable {
        var engine: EngineKind
        var timer: (any DoorTimer)?
    }

    private let turn: Mutex<Turn>

    init(_ processor: Processor, _ first: EngineKind, _ door: any Door, every milliseconds: Int) {
        turn = Mutex(Turn(engine: first))
        let interval = UInt64(max(1, milliseconds)) * 1_000_000
        let timer = door.makeTimer { [weak self, unowned processor] in
            self?.turn.withLock { turn in
                turn.engine = turn.engine == .kvm ? .translator : .kvm
                processor.move(to: turn.engine)
                turn.timer?.arm(at: door.now &+ interval)
            }
        }
        turn.withLock { $0.timer = timer }
        timer.arm(at: door.now &+ interval)
    }
}
