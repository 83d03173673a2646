// One vCPU's thread: runs the engine, answers its exits, injects interrupts, waits while the guest is halted.
internal import CHost
package import CPU
package import DeviceModel
internal import Devices
package import GuestMemory
internal import HostOS
internal import Synchronization

/// What other threads want of a vCPU.
private struct Wishes: Sendable {
    var nonMaskable = false
    var initialize = false
    var startup: UInt8?
    /// This session of the guest is over.
    var stopped = false
    var power: PowerEvent?
    var ended = false
    /// Go on with this engine.
    var engine: EngineKind?
    /// Wait between two instructions until this is withdrawn.
    var pause = false
}

/// One processor of the machine: its state, its engine and its local APIC.
package final class Processor: PowerControl, @unchecked Sendable {
    // SAFETY of @unchecked: `wishes`, `wake` and the attention bits are for all threads; the rest is touched by the
    // thread in `run` only, and by set-up before it starts.
    private let wishes = Mutex(Wishes())
    private let wake = WakeFlag()
    let cpu: VirtualCPU
    let memory: GuestMemory
    let door: any Door
    /// The door, if its time is the count of instructions.
    private let ordered: VirtualDoor?
    private var traced: (instructions: UInt64, rip: UInt64) = (.max, .max)
    var engine: (any Engine)?
    /// Which one that is.
    var kind = EngineKind.auto
    var board: Board?
    var clock: KVMClock
    /// Makes `engine.run` return, for other threads.
    private let kicker = Mutex<(@Sendable () -> Void)?>(nil)
    /// Makes another engine and lets this one go.
    var mover: ((EngineKind) throws(MachineError) -> any Engine)?
    private let scale: ClockScale
    private let frequency: UInt64
    var lastOffset: UInt64 = 0
    private var nextSample: UInt64 = 0
    private var sinceSample = 0
    private var events = EventRing()
    private let trace: TraceOptions
    /// Whether the guest has it; changes only while the machine stands still.
    var isPresent = true
    /// Told whenever the vCPU's thread begins or ends to wait in a pause.
    var gate: PauseGate?
    /// What the 8259 has handed out and the guest hasn't got, while the machine is paused.
    var undelivered: UInt8?
    var direct: DirectExecution?
    /// Names for perf.
    var perfMap: PerfMap?
    /// Counts so far; complete when `run` has returned.
    package internal(set) var statistics = RunStatistics()
    private var exitCounts = [UInt64](repeating: 0, count: VMExit.kindNames.count)
    private var accesses = AccessCounts()

    /// Makes a processor with its state block cleared. `number` is its place among the `count` of the machine.
    package init(number: Int = 0, of count: Int = 1, memory: GuestMemory, door: any Door, trace: TraceOptions) {
        cpu = VirtualCPU(id: number, defersTables: true, count: count)
        self.memory = memory
        self.door = door
        self.trace = trace
        clock = KVMClock(memory: memory)
        ordered = door as? VirtualDoor
        frequency = ordered == nil ? HostTSC.frequency : VirtualDoor.frequency
        scale = ClockScale(frequency: frequency)
        ordered?.attach(cpu)
    }

    /// Whether time is the count of instructions.
    var isOrdered: Bool { ordered != nil }

    /// Ticks a second of the guest's counter.
    package var tscFrequency: UInt64 { frequency }

    /// Connects engine and board (set-up only).
    package func connect(engine: (any Engine)?, board: Board) {
        self.board = board
        replaceEngine(engine)
        // A device or timer may still be at it while the machine goes.
        board.localAPICs[cpu.id].onAttention { [weak self] attention in
            guard let self else { return }
            switch attention {
            case .nonMaskable: wishes.withLock { $0.nonMaskable = true }
            case .interrupt: break
            case .initialize:
                wishes.withLock { wishes in
                    wishes.initialize = true
                    wishes.startup = nil
                }
            case .startup(let vector): wishes.withLock { if $0.startup == nil { $0.startup = vector } }
            }
            kick(ROOST_ATTENTION_INTERRUPT)
        }
    }

    /// Lets go of engine and board, which have references back; nothing runs any more.
    func disconnect() {
        replaceEngine(nil)
        memory.onCodeWritten(vcpu: cpu.id, nil)
        direct = nil
        mover = nil
        board = nil
    }

    /// Lets user code run outside the engine.
    func runUserCodeDirectly(_ mode: DirectMode) { direct = DirectExecution(cpu: cpu, memory: memory, mode: mode) }

    /// The handle on its state.
    package var vcpu: VCPU { cpu.vcpu }

    // MARK: From any thread

    private func kick(_ bits: UInt32) {
        // SAFETY: the attention word is atomic and lives as long as `cpu`.
        unsafe roost_attention_set(cpu.state, bits)
        let running = unsafe roost_direct_running(cpu.state)
        if running != 0 { StubProcess.kick(running - 1) }
        if let kicker = kicker.withLock({ $0 }) { kicker() }
        wake.raise()
    }

    /// Puts another engine in the place of the one that runs, on its thread.
    func replaceEngine(_ new: (any Engine)?) {
        engine = new
        kicker.withLock { $0 = new?.kicker }
    }

    /// Asks for the machine to go on with another engine.
    package func move(to engine: EngineKind) {
        wishes.withLock { $0.engine = engine }
        kick(ROOST_ATTENTION_KICK)
    }

    /// Asks for power-off, reset or debug exit.
    package func request(_ event: PowerEvent) {
        wishes.withLock { if $0.power == nil { $0.power = event } }
        kick(ROOST_ATTENTION_KICK)
    }

    /// Ends this session of the guest: another processor's run has ended.
    func stop() {
        wishes.withLock { $0.stopped = true }
        kick(ROOST_ATTENTION_KICK)
    }

    /// Has the vCPU's thread wait between two instructions, or go on.
    func setPause(_ isWanted: Bool) {
        wishes.withLock { $0.pause = isWanted }
        kick(ROOST_ATTENTION_KICK)
    }

    /// Ends the machine.
    package func end() {
        wishes.withLock { $0.ended = true }
        kick(ROOST_ATTENTION_KICK)
    }

    // MARK: The run loop

    /// Runs until something ends the guest's session.
    package func run() -> MachineOutcome {
        let started = door.now
        defer { finish(since: started) }
        while true {
            if let outcome = waitUntilPresent() ?? runEngine() { return outcome }
        }
    }

    /// Waits as long as the guest hasn't got this processor.
    private func waitUntilPresent() -> MachineOutcome? {
        while !isPresent {
            if let outcome = takeWishes() { return outcome }
            if !waitInPause(nil) { wake.wait() }
        }
        return nil
    }

    /// Runs as long as the guest has this processor, or until something ends its session.
    private func runEngine() -> MachineOutcome? {
        guard var engine, let board else { return .failed("no engine") }
        let apic = board.localAPICs[cpu.id]
        // SAFETY: only this thread touches the state block while it runs.
        let state = unsafe cpu.state
        while true {
            ordered?.fireDue()
            if let outcome = takeWishes() { return outcome }
            if waitInPause(engine) {
                if isPresent { continue }
                direct?.stop()
                return nil
            }
            // A hypervisor that has the local APICs takes these messages itself.
            if unsafe state.pointee.awaits_startup != 0 && !engine.waitsByItself {
                wake.wait()
                continue
            }
            if let outcome = moveIfWanted() { return outcome }
            if let moved = self.engine, moved !== engine { engine = moved }
            // It came halted, or a move that was none woke it. An engine with the local APIC in it waits by itself.
            if unsafe state.pointee.halted != 0 && !engine.waitsByItself {
                waitForInterrupt(apic)
                if !isStopWanted { unsafe state.pointee.halted = 0 }
                continue
            }
            if apic.hasDeliverableInterrupt {
                if engine.canTakeInterrupt {
                    if let vector = apic.acknowledge() {
                        note(.interrupt(vector))
                        statistics.interrupts += 1
                        unsafe state.pointee.halted = 0
                        if !engine.inject(vector: vector) { return tripleFault() }
                    }
                    unsafe state.pointee.interrupt_window = apic.hasDeliverableInterrupt ? 1 : 0
                } else {
                    unsafe state.pointee.interrupt_window = 1
                }
            }
            keepTime(apic)
            if ordered != nil || trace.contains(.instructions) { setLimit() }
            let exit = engine.run()
            exitCounts[exit.kind] += 1
            if exit != .interrupted { note(.exit(exit)) }
            switch exit {
            case .portRead(let port, let size):
                accesses.add(port: port)
                answer(engine, board.ports.read(UInt64(port), size: size))
            case .portWrite(let port, let size, let value):
                accesses.add(port: port)
                board.ports.write(UInt64(port), size: size, value: UInt64(value))
                engine.complete(0)
            case .mmioRead(let address, let size):
                accesses.add(memory: address)
                let offset = address &- BoardLayout.localAPIC
                let value =
                    offset < 0x1000 ? apic.read(offset: offset, size: size) : board.mmio.read(address, size: size)
                answer(engine, value)
            case .mmioWrite(let address, let size, let value):
                accesses.add(memory: address)
                let offset = address &- BoardLayout.localAPIC
                if offset < 0x1000 {
                    apic.write(offset: offset, size: size, value: value)
                    if offset == 0x80 { unsafe state.pointee.cr8 = UInt64(apic.taskPriority) }
                } else {
                    board.mmio.write(address, size: size, value: value)
                }
                engine.complete(0)
            case .readMSR(let number): readMSR(number, engine, apic)
            case .writeMSR(let number, let value): writeMSR(number, value, engine, apic)
            case .taskPriorityWrite: unsafe apic.taskPriority = UInt8(truncatingIfNeeded: state.pointee.cr8 & 15)
            case .halt:
                waitForInterrupt(apic)
                // Woken to go on elsewhere, it is still halted.
                if isStopWanted { unsafe state.pointee.halted = 1 }
            case .endOfInterrupt(let vector): board.apics.endOfInterrupt(vector: vector)
            case .interrupted, .interruptWindow: break
            case .shutdown:
                engine.describe()
                return tripleFault()
            case .hypercall:
                // KVM_ENOSYS: no hypercall is offered.
                unsafe vcpu.gpr[0] = ~0 &- 999
            case .difference: return .difference(report: differenceReport(engine))
            case .internalError(let text): return engineFailure(engine, text)
            }
        }
    }

    private func takeWishes() -> MachineOutcome? {
        takeMessages()
        let (power, ended) = wishes.withLock { wishes in
            if wishes.nonMaskable {
                wishes.nonMaskable = false
                // SAFETY: this is the vCPU's thread.
                unsafe cpu.state.pointee.pending_nmi = 1
            }
            defer {
                wishes.power = nil
                wishes.stopped = false
            }
            return (wishes.power, wishes.ended || wishes.stopped)
        }
        if ended { return .ended }
        switch power {
        case nil: return nil
        case .powerOff: return .poweredOff
        case .reset: return .reset
        case .debugExit(let status): return .debugExit(status: status)
        case .panic: return .panicked
        }
    }

    /// INIT and start-up messages (SDM 3A 9.4.4). The first processor is never made to wait.
    private func takeMessages() {
        let (initialize, startup) = wishes.withLock { wishes in
            defer {
                wishes.initialize = false
                wishes.startup = nil
            }
            return (wishes.initialize, wishes.startup)
        }
        if initialize && cpu.id != 0 {
            vcpu.initialize()
            // SAFETY: this is the vCPU's thread.
            unsafe cpu.state.pointee.awaits_startup = 1
        }
        guard let startup, unsafe cpu.state.pointee.awaits_startup != 0 else { return }
        unsafe cpu.state.pointee.awaits_startup = 0
        // SAFETY: this is the vCPU's thread.
        let code = unsafe vcpu.segment(Int(ROOST_CS))
        unsafe code.pointee.selector = UInt16(startup) << 8
        unsafe code.pointee.base = UInt64(startup) << 12
        unsafe cpu.state.pointee.rip = 0
        unsafe cpu.state.pointee.halted = 0
        vcpu.updateMode()
    }

    private var isMoveWanted: Bool { wishes.withLock { $0.engine != nil } }

    /// Whether a halted vCPU was woken for another reason than an interrupt.
    private var isStopWanted: Bool { wishes.withLock { $0.engine != nil || $0.pause } }

    /// Whether the instruction at RIP hasn't begun.
    private func isBetweenInstructions(_ engine: any Engine) -> Bool {
        // SAFETY: this is the vCPU's thread.
        let isWhole = unsafe cpu.state.pointee.completed_count == 0 && cpu.state.pointee.pending_fault == 0
        return engine.isBetweenInstructions && isWhole
    }

    /// Waits while a pause is wanted, if no instruction is half done; whether it has waited.
    private func waitInPause(_ engine: (any Engine)?) -> Bool {
        guard let gate, wishes.withLock({ $0.pause }) else { return false }
        if let engine, !isBetweenInstructions(engine) {
            kick(ROOST_ATTENTION_KICK)
            return false
        }
        if let engine, !engine.isSettled {
            // An interrupt is on its way into the guest, which it doesn't enter while it is kicked. It has taken the
            // interrupt when it can take the next one.
            // SAFETY: this is the vCPU's thread.
            unsafe cpu.state.pointee.interrupt_window = 1
            return false
        }
        gate.arrive()
        while wishes.withLock({ $0.pause && !$0.ended && !$0.stopped }) { wake.wait() }
        gate.leave()
        return true
    }

    /// Goes on with another engine if someone wants that and no instruction is half done; else once it is.
    private func moveIfWanted() -> MachineOutcome? {
        guard isMoveWanted, let engine else { return nil }
        guard isBetweenInstructions(engine) else {
            kick(ROOST_ATTENTION_KICK)
            return nil
        }
        guard engine.isSettled else { return nil }
        guard
            let kind = wishes.withLock({ wishes in
                defer { wishes.engine = nil }
                return wishes.engine
            })
        else { return nil }
        do {
            try moveEngine(to: kind)
            return nil
        } catch {
            return .failed("the machine could not go on with another engine: \(error)")
        }
    }

    private func answer(_ engine: any Engine, _ value: UInt64) {
        if trace.contains(.exits) { note(.answer(value)) }
        engine.complete(value)
    }

    private func readMSR(_ number: UInt32, _ engine: any Engine, _ apic: LocalAPIC) {
        if KVMClock.owns(number) { return answer(engine, clock.read(number)) }
        if number == 0x10 { return answer(engine, vcpu.timeStamp) }
        if let value = apic.readMSR(number) { answer(engine, value) } else { engine.completeWithGeneralProtection() }
    }

    private func writeMSR(_ number: UInt32, _ value: UInt64, _ engine: any Engine, _ apic: LocalAPIC) {
        if KVMClock.owns(number) {
            if clock.write(number, value, now: door.now, wallTime: door.wallClock) { sampleClock(apic) }
            return engine.complete(0)
        }
        if number == 0x10 {
            // SAFETY: this is the vCPU's thread.
            unsafe cpu.state.pointee.tsc_offset = value &- vcpu.rawCounter
            return engine.complete(0)
        }
        guard apic.writeMSR(number, value) else { return engine.completeWithGeneralProtection() }
        // SAFETY: this is the vCPU's thread.
        unsafe cpu.state.pointee.apic_base = apic.base
        if number == 0x808 { unsafe cpu.state.pointee.cr8 = UInt64(apic.taskPriority) }
        engine.complete(0)
    }

    private func waitForInterrupt(_ apic: LocalAPIC) {
        let start = door.now
        while true {
            let wished = wishes.withLock { wishes in
                wishes.nonMaskable || wishes.power != nil || wishes.ended || wishes.stopped || wishes.initialize
                    || wishes.engine != nil || wishes.pause
            }
            // SAFETY: this is the vCPU's thread.
            let open = unsafe cpu.state.pointee.rflags & 0x200 != 0 || cpu.state.pointee.monitor_address != 0
            let nonMaskable = unsafe cpu.state.pointee.pending_nmi != 0
            if wished || nonMaskable || (open && apic.hasDeliverableInterrupt) { break }
            // Other processors' stores to a watched line aren't seen: MWAIT may end for no reason.
            if unsafe cpu.group != nil && cpu.state.pointee.monitor_address != 0 { break }
            if let ordered, ordered.skipToDeadline() { ordered.fireDue() } else { wake.wait() }
        }
        statistics.halted &+= door.now &- start
    }

    // MARK: Time

    /// Once a second, and when the guest writes its counter: tells the clocks of what the counter now says.
    private func keepTime(_ apic: LocalAPIC) {
        // SAFETY: this is the vCPU's thread.
        let offset = unsafe cpu.state.pointee.tsc_offset
        if ordered != nil && offset == lastOffset { return }
        sinceSample &+= 1
        if offset == lastOffset && sinceSample & 31 != 0 { return }
        let now = door.now
        if offset == lastOffset && now < nextSample { return }
        lastOffset = offset
        nextSample = now &+ 1_000_000_000
        sampleClock(apic)
    }

    private func sampleClock(_ apic: LocalAPIC) {
        let before = door.now
        let tsc = guestTSC
        let now = before &+ (door.now &- before) / 2
        let ticks = now.multipliedFullWidth(by: frequency)
        let expected = ticks.high < 1_000_000_000 ? UInt64(1_000_000_000).dividingFullWidth(ticks).quotient : 0
        apic.setTSCOffset(tsc &- expected)
        // An engine that waits by itself has the paravirtual clock too.
        if !(engine?.waitsByItself ?? false) { clock.update(tsc: tsc, now: now, scale: scale) }
    }

    /// What RDTSC would give the guest now.
    private var guestTSC: UInt64 { vcpu.timeStamp }

    /// Sets where the engine stops: at the next timer, or at once when every instruction is to be printed.
    private func setLimit() {
        // SAFETY: this is the vCPU's thread.
        let state = unsafe cpu.state
        unsafe state.pointee.instruction_limit = ordered?.limit ?? .max
        guard trace.contains(.instructions) else { return }
        unsafe state.pointee.instruction_limit = state.pointee.instructions &+ 1
        let place = unsafe (instructions: state.pointee.instructions, rip: state.pointee.rip)
        if place == traced { return }
        traced = place
        let report = ProcessorReport(vcpu: vcpu, memory: memory)
        for line in report.listing(count: 1) { Terminal.note(line) }
    }

    // MARK: Starting and ending

    /// Power-on state; then the state that the boot protocol wants, or, without one, the wait for a start-up message.
    /// The time-stamp counter goes with that of `first`.
    package func start(_ entry: EntryState?, with first: Processor? = nil) {
        reset()
        clock.reset()
        lastOffset = 0
        nextSample = 0
        wishes.withLock { wishes in
            wishes.stopped = false
            wishes.initialize = false
            wishes.startup = nil
        }
        // SAFETY: neither vCPU runs yet.
        if let first { unsafe cpu.state.pointee.tsc_offset = first.cpu.state.pointee.tsc_offset }
        unsafe cpu.state.pointee.awaits_startup = entry == nil ? 1 : 0
        entry?.apply(to: vcpu)
        guard let board else { return }
        // SAFETY: the vCPU doesn't run yet.
        let state = unsafe cpu.state
        unsafe state.pointee.apic_base = board.localAPICs[cpu.id].base
        // As firmware leaves them: RAM is write-back by default, the PCI hole uncached.
        unsafe state.pointee.mtrr_default = 0x806
        unsafe state.pointee.mtrr_base.0 = GuestMemory.holeStart
        let bits = UInt64(1) << UInt64(cpu.model.physicalAddressBits)
        unsafe state.pointee.mtrr_mask.0 = (bits &- 1) & ~0x3FFF_FFFF | 0x800
        unsafe state.pointee.cr8 = 0
    }

    /// Has the engine take over what `start` has put together.
    package func begin() throws(MachineError) {
        do { try engine?.takeOver(clock.registers) } catch { throw MachineError(.hypervisor, "\(error)") }
    }

    private func note(_ what: RunEvent.What) {
        // SAFETY: this is the vCPU's thread.
        let event = RunEvent(rip: unsafe cpu.state.pointee.rip, what: what)
        events.append(event)
        if trace.isEmpty { return }
        switch what {
        case .interrupt where trace.contains(.interrupts): Terminal.note(event.line)
        case .exit where trace.contains(.exits), .answer where trace.contains(.exits): Terminal.note(event.line)
        default: break
        }
    }

    private func finish(since started: UInt64) {
        // SAFETY: this is the vCPU's thread.
        let state = unsafe cpu.state
        unsafe statistics.instructions = state.pointee.instructions
        unsafe statistics.tlbMisses = state.pointee.tlb_misses
        unsafe statistics.pageWalks = state.pointee.page_walks
        unsafe statistics.exceptions = state.pointee.exceptions
        perfMap?.flush()
        direct?.stop()
        statistics.direct = direct?.statistics
        statistics.tscFrequency = frequency
        if ordered != nil { statistics.memoryHash = memory.contentHash() }
        statistics.elapsed &+= door.now &- started
        engine?.report(to: &statistics)
        for (kind, count) in exitCounts.enumerated() where count > 0 {
            statistics.exits[VMExit.kindNames[kind]] = count
        }
        statistics.accesses = accesses.named
    }

    /// Counts one more start of the guest.
    func countReset() { statistics.resets += 1 }

    private func differenceReport(_ engine: any Engine) -> String {
        guard let difference = engine.difference else { return "the engines differ" }
        return LockstepReport(difference: difference, memory: memory).text
    }

    /// The engine can't go on: what it says, and the processor's state.
    private func engineFailure(_ engine: any Engine, _ text: String) -> MachineOutcome {
        engine.describe()
        return .engineFailed(report: report(text))
    }

    private func tripleFault() -> MachineOutcome {
        .tripleFault(report: report("triple fault: the guest's processor has shut down"))
    }

    private func report(_ text: String) -> String {
        let report = ProcessorReport(vcpu: vcpu, memory: memory)
        let lines =
            [text, report.registers, "next instructions:"]
            + report.listing(count: 4) + ["last events, the latest at the end:"] + events.lines
        return lines.joined(separator: "\n")
    }
}

extension EntryState {
    /// Puts a vCPU that has just been reset into this state.
    func apply(to vcpu: VCPU) {
        // SAFETY: the state block outlives the handle, and its vCPU doesn't run.
        let state = unsafe vcpu.s
        for (number, value) in registers { unsafe vcpu.gpr[number & 15] = value }
        unsafe state.pointee.rip = rip
        vcpu.rflags = 2
        let long = mode == .long64
        for n in 0..<6 {
            let isCode = n == Int(ROOST_CS)
            unsafe vcpu.segment(n).pointee = roost_segment(
                base: 0, limit: 0xFFFF_FFFF, selector: isCode ? codeSelector : dataSelector,
                attributes: isCode ? (long ? 0xA09B : 0xC09B) : 0xC093)
        }
        unsafe vcpu.segment(Int(ROOST_LDTR)).pointee = roost_segment(
            base: 0, limit: 0xFFFF, selector: 0, attributes: 0x82)
        unsafe vcpu.segment(Int(ROOST_TR)).pointee = roost_segment(
            base: 0, limit: 0xFFFF, selector: 0, attributes: 0x8B)
        unsafe state.pointee.gdtr_base = gdtBase
        unsafe state.pointee.gdtr_limit = UInt32(gdtLimit)
        // CR0: PE, ET, NE, and PG in long mode; caches on.
        unsafe state.pointee.cr0 = 0x31
        if long {
            unsafe state.pointee.cr4 = 0x20
            unsafe state.pointee.cr3 = pageTable
            unsafe state.pointee.efer = 0x500
            unsafe state.pointee.cr0 = 0x8000_0031
        }
        vcpu.updateMode()
    }
}
