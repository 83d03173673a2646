// Commands and task management of the virtio SCSI host.
//
// virtio 1.2, 5.6.6.1 (requests) and 5.6.6.2 (control):
//
//   control   type 32 (0 task management, 1 query, 2 subscribe)
//             task management: subtype 32, lun 8 bytes, tag 64; response 8
//             query, subscribe: lun 8 bytes, events 32; events 32, response 8
internal import DeviceModel
internal import GuestMemory
internal import Synchronization

/// How a request ends.
struct Outcome: Sendable {
    var response = VirtioSCSI.Response.done
    var result = SCSIResult()

    /// As the door carries it: response, status and the sense data's length in a number, sense data before the data.
    var packed: (code: Int32, data: [UInt8]) {
        let code = UInt32(response.rawValue) | UInt32(result.status) << 8 | UInt32(result.sense.count) << 16
        return (Int32(bitPattern: code), result.sense + result.data)
    }

    init(response: VirtioSCSI.Response = .done, result: SCSIResult = SCSIResult()) {
        self.response = response
        self.result = result
    }

    init(_ code: Int32, _ data: [UInt8], taken: Int) {
        let code = UInt32(bitPattern: code)
        response = VirtioSCSI.Response(rawValue: UInt8(truncatingIfNeeded: code)) ?? .failure
        let sense = min(Int(code >> 16 & 0xFF), data.count)
        result.status = UInt8(truncatingIfNeeded: code >> 8)
        result.sense = Array(data[..<sense])
        result.data = Array(data[sense...])
        result.taken = taken
    }
}

extension VirtioSCSI {
    /// Bytes of a response before its data, and of the sense data in it.
    private func sizes() -> (command: Int, sense: Int) {
        let controls = contents.withLock { $0.controls }
        return (Int(min(controls.commandSize, 260)), Int(min(controls.senseSize, 252)))
    }

    /// The request as it is noted; nil after a reset. Numbers aren't given twice.
    private func noted(_ job: Job) -> SCSITask? { contents.withLock { $0.tasks[job.id] } }

    /// Carries out a command, on its unit's worker, unless there was a reset since it came.
    func perform(_ job: Job, _ unit: SCSIUnit, _ transport: VirtioPCI) {
        guard let task = noted(job) else { return }
        let (commandSize, senseSize) = sizes()
        let start = 19 + commandSize
        let outcome: Outcome
        if let response = task.aborted {
            outcome = Outcome(response: response)
        } else if job.header.count < start || job.chain.writableLength < 12 + senseSize {
            outcome = Outcome(response: .failure)
        } else {
            let command = SCSICommand(
                block: Array(job.header[19..<start]), room: job.chain.writableLength - 12 - senseSize,
                sent: job.chain.readableLength - start
            ) { [gate] in Self.gather(job, from: start, $0, transport.memory, gate) }
            outcome = job.isOtherUnit ? Self.answerForAbsent(command) : Self.execute(command, unit)
        }
        let (code, data) = outcome.packed
        let taken = outcome.result.taken
        door.admit(.blockCompletion(id: job.id, error: code, data: data)) { [weak self] event in
            guard case .blockCompletion(_, let code, let data) = event else { return }
            self?.finish(job, transport, Outcome(code, data, taken: taken))
        }
    }

    /// Bytes that the guest sends with a command; none after a reset, when they may be something else.
    private static func gather(
        _ job: Job, from start: Int, _ count: Int, _ memory: GuestMemory, _ gate: TransferGate
    ) -> [UInt8] {
        let request = TransferBuffer(memory, gate: gate, life: job.life)
        let bytes = try? request.withMemory { _ in memory.gather(job.chain.readable, offset: start, limit: count) }
        return bytes ?? []
    }

    private static func execute(_ command: SCSICommand, _ unit: SCSIUnit) -> Outcome {
        do throws(SCSIFailure) { return Outcome(result: try unit.execute(command)) } catch {
            switch error {
            case .overrun: return Outcome(response: .overrun)
            case .sense(let sense): return Outcome(result: SCSIResult(sense))
            }
        }
    }

    /// What a target says for a unit that it doesn't have.
    private static func answerForAbsent(_ command: SCSICommand) -> Outcome {
        guard command.operation == 0x12, !command.flag(1, 0) else { return Outcome(result: SCSIResult(.noSuchUnit)) }
        return Outcome(
            result: SCSIResult(data: Array(SCSIUnit.absentData.prefix(Int(command.field(3, 2))))))
    }

    /// Writes the response and gives the request back.
    func finish(_ job: Job, _ transport: VirtioPCI, _ outcome: Outcome) {
        let (chain, result) = (job.chain, outcome.result)
        let (commandSize, senseSize) = sizes()
        transport.complete(job.queue, head: chain.head, epoch: job.epoch) {
            contents.withLock { _ = $0.tasks.removeValue(forKey: job.id) }
            let room = max(0, chain.writableLength - 12 - senseSize)
            let sent = max(0, chain.readableLength - 19 - commandSize)
            let data = result.data.prefix(room)
            let sense = Array(result.sense.prefix(senseSize))
            let header =
                littleEndian(UInt32(sense.count))
                + littleEndian(UInt32(clamping: room - data.count + sent - result.taken))
                + [0, 0, result.status, outcome.response.rawValue] + sense
            var written = transport.memory.scatter(
                header + [UInt8](repeating: 0, count: 12 + senseSize - header.count), into: chain.writable)
            if !data.isEmpty {
                written += transport.memory.scatter(Array(data), into: chain.writable, offset: 12 + senseSize)
            }
            return written
        }
    }

    // MARK: Control

    /// Carries out what came through the control queue.
    func control(_ job: Job, _ slot: Slot?, _ transport: VirtioPCI) {
        guard job.header.count >= 20 else { return answer(job, transport, .failure) }
        switch number(job.header[0..<4]) {
        case 0 where job.header.count >= 24:
            guard let slot else { return answer(job, transport, .badTarget) }
            guard !job.isOtherUnit else { return answer(job, transport, .incorrectUnit) }
            manage(job, slot, transport)
        case 1, 2: answer(job, transport, .done, [0, 0, 0, 0])
        default: answer(job, transport, .rejected)
        }
    }

    /// A task management function. What it aborts is marked; it ends on the unit's worker, behind all those.
    ///
    /// - Spec: SAM-5, 7
    private func manage(_ job: Job, _ slot: Slot, _ transport: VirtioPCI) {
        let target = job.target ?? -1
        let tag = number(job.header[16..<24])
        func matching(_ response: Response, _ matches: (SCSITask) -> Bool) -> Bool {
            contents.withLock { contents in
                let found = contents.tasks.filter { $0.value.target == target && matches($0.value) }
                for id in found.keys where contents.tasks[id]?.aborted == nil { contents.tasks[id]?.aborted = response }
                return !found.isEmpty
            }
        }
        func isThere(_ matches: (SCSITask) -> Bool) -> Bool {
            contents.withLock { $0.tasks.values.contains { $0.target == target && matches($0) } }
        }
        var response = Response.done
        switch number(job.header[4..<8]) {
        case 0: _ = matching(.aborted) { $0.tag == tag }
        case 1, 3: _ = matching(.aborted) { _ in true }
        case 2: break
        case 4, 5:
            _ = matching(.reset) { _ in true }
        case 6: response = isThere { $0.tag == tag } ? .succeeded : .done
        case 7: response = isThere { _ in true } ? .succeeded : .done
        default: response = .rejected
        }
        let resets = 4...5 ~= number(job.header[4..<8])
        slot.worker.run { [weak self, response] in
            guard let self, noted(job) != nil else { return }
            if resets { slot.unit.reset(.unitReset) }
            door.admit(.blockCompletion(id: job.id, error: Int32(response.rawValue), data: [])) { [weak self] _ in
                self?.answer(job, transport, response)
            }
        }
    }

    private func answer(_ job: Job, _ transport: VirtioPCI, _ response: Response, _ before: [UInt8] = []) {
        transport.complete(0, head: job.chain.head, epoch: job.epoch) {
            contents.withLock { _ = $0.tasks.removeValue(forKey: job.id) }
            return transport.memory.scatter(before + [response.rawValue], into: job.chain.writable)
        }
    }
}
