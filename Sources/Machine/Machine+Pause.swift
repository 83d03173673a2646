// Stopping a machine between two instructions, with everything that could reach it, and letting it go on.
internal import CHost
internal import CPU
internal import DeviceModel
internal import Devices
internal import HostOS
internal import Synchronization

extension Machine {
    /// Whether the machine is paused.
    public var isPaused: Bool { pausedAt.withLock { $0 != nil } }

    /// Stops the processors between instructions; time, timers and everything from outside stand still. Returns when that
    /// is so, with all state in the vCPUs' blocks and the board. Nothing happens if it is so already.
    public func pause() throws(MachineError) {
        standstill.lockForWriting()
        defer { standstill.unlock() }
        try stopProcessors()
    }

    /// The same for who has the lock.
    func stopProcessors() throws(MachineError) {
        if isPaused { return }
        for processor in processors { processor.setPause(true) }
        // Who asks meanwhile whether it is paused isn't kept waiting: `run` does, which has the processors come.
        guard gate.waitForAll(processors.count) else {
            for processor in processors { processor.setPause(false) }
            throw MachineError(.ended, "the machine has ended")
        }
        board.apics.hold()
        defer { board.apics.release() }
        do throws(MachineError) {
            for processor in processors { try processor.giveBack() }
        } catch {
            for processor in processors { processor.setPause(false) }
            throw error
        }
        // At the same moment: a guest that sees its two clocks run apart trusts one of them no more.
        let counter = HostTSC.counter(at: door.close())
        pausedAt.withLock { $0 = counter }
    }

    /// Ends the machine, whatever the guest does; `run` returns.
    public func end() {
        for processor in processors { processor.end() }
        try? resume()
    }

    /// Goes on after `pause`; the guest's clocks go on from where they stood. Nothing happens if the machine runs.
    public func resume() throws(MachineError) {
        standstill.lockForWriting()
        defer { standstill.unlock() }
        try letProcessorsGo()
    }

    /// Runs `body` while the machine stands still; one that was paused stays so. For who has the lock.
    func standingStill(_ body: () throws(MachineError) -> Void) throws(MachineError) {
        let wasPaused = isPaused
        try stopProcessors()
        do throws(MachineError) { try body() } catch {
            if !wasPaused { try letProcessorsGo() }
            throw error
        }
        if !wasPaused { try letProcessorsGo() }
    }

    /// The same as `resume` for who has the lock.
    func letProcessorsGo() throws(MachineError) {
        guard let since = pausedAt.withLock({ $0 }) else { return }
        // What waits for the door comes at once, and is for the local APICs as they will be.
        board.apics.hold()
        let missed = HostTSC.counter(at: door.open()) &- since
        pausedAt.withLock { $0 = nil }
        defer {
            board.apics.release()
            for processor in processors { processor.setPause(false) }
            console.goOn()
        }
        for processor in processors { try processor.takeOver(missed: missed) }
    }
}

extension Processor {
    /// Brings what the engine holds into the state block and the board; the vCPU's thread waits in a pause.
    func giveBack() throws(MachineError) {
        guard let engine else { return }
        do {
            let handover = try engine.giveBack(clock.registers)
            clock.registers = handover.clock
            undelivered = handover.interrupt
        } catch {
            throw MachineError(.hypervisor, "the processor's state could not be read: \(error)")
        }
    }

    /// Has the engine take over what `giveBack` left or a saved state brought; the time-stamp counter doesn't count the
    /// host's ticks that were `missed`.
    func takeOver(missed: UInt64) throws(MachineError) {
        // SAFETY: the vCPU's thread waits, or hasn't started.
        if !isOrdered { unsafe cpu.state.pointee.tsc_offset &-= missed }
        // The clocks are to be told of the counter at once.
        unsafe lastOffset = ~cpu.state.pointee.tsc_offset
        try begin()
        guard let vector = undelivered else { return }
        undelivered = nil
        if let engine, !engine.inject(vector: vector) {
            throw MachineError(.hypervisor, "an interrupt could not be delivered")
        }
    }
}
