// Processors that come and go while the machine runs.
//
// All that there can be are made with the machine, each with a thread and a local APIC. One that isn't there has no engine
// until it comes for the first time, takes no message, and its thread waits. Whether it is there changes only while the
// machine is paused.
internal import CPU
internal import DeviceModel
internal import Devices
internal import HostOS

extension Machine {
    /// Number of processors that the guest has.
    public var processorCount: Int { board.events.present.nonzeroBitCount }

    /// Gives the guest processors, at once, or asks it to let some go, which it does when it likes, or not at all.
    public func setProcessors(_ count: Int) throws(MachineError) {
        guard 1...processors.count ~= count else {
            throw MachineError(
                .processor,
                "\(count) processors: this machine can have 1 to \(processors.count) (--cpus \(processorCount),max=…)")
        }
        let added = try addProcessors(upTo: count)
        door.admit(.processors(count)) { [events = board.events] _ in
            if added != 0 { return events.tell(.processors) }
            let there = (1..<64).filter { events.present >> UInt64($0) & 1 != 0 }
            let surplus = there.suffix(max(0, there.count + 1 - count))
            if !surplus.isEmpty { events.askFor(surplus.reduce(0) { $0 | 1 << UInt64($1) }) }
        }
    }

    /// Puts processors that aren't there where they can be started; a bit for each.
    private func addProcessors(upTo count: Int) throws(MachineError) -> UInt64 {
        standstill.lockForWriting()
        defer { standstill.unlock() }
        guard !isPaused else { throw MachineError(.processor, "it is paused: the guest can't be told") }
        let there = board.events.present
        let missing = (0..<processors.count).filter { there >> UInt64($0) & 1 == 0 }
        let added = Array(missing.prefix(max(0, count - there.nonzeroBitCount)))
        try plug(added)
        let bits = added.reduce(UInt64(0)) { $0 | 1 << UInt64($1) }
        board.events.add(bits)
        return bits
    }

    /// Puts processors into the state after power-on; they wait for the guest to start them.
    private func plug(_ numbers: [Int]) throws(MachineError) {
        if numbers.isEmpty { return }
        try standingStill { () throws(MachineError) in
            for number in numbers {
                try makeEngine(for: processors[number])
                board.localAPICs[number].reset()
                processors[number].start(nil, with: processors[0])
                processors[number].isPresent = true
            }
        }
    }

    /// Makes a processor's engine, if it has none yet.
    func makeEngine(for processor: Processor) throws(MachineError) {
        guard processor.engine == nil else { return }
        processor.replaceEngine(try processor.makeEngine(choice, configuration, board: board))
    }

    /// The guest has let go of a processor.
    func removeProcessor(_ number: Int) {
        // The thread that says so may be the one that is to stop.
        try? HostThread.detached(name: "roost-unplug") { [weak self] in
            guard let self else { return }
            standstill.lockForWriting()
            defer { standstill.unlock() }
            // It may be there again.
            guard board.events.present >> UInt64(number) & 1 == 0 else { return }
            try? standingStill { () throws(MachineError) in
                processors[number].isPresent = false
                board.localAPICs[number].reset()
                processors[number].start(nil, with: processors[0])
            }
        }
    }

    /// After a restore: the processors that the saved machine had.
    func adoptProcessors() throws(MachineError) {
        for processor in processors {
            processor.isPresent = board.events.present >> UInt64(processor.cpu.id) & 1 != 0
            if processor.isPresent { try makeEngine(for: processor) }
        }
    }
}
