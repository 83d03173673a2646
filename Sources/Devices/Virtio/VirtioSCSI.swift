// The virtio SCSI host: a controller with a logical unit behind each target.
//
// Virtual I/O Device (VIRTIO) 1.2, 5.6. Queues: 0 control, 1 events, 2 requests.
//
//   configuration  00 num_queues 32   04 seg_max 32   08 max_sectors 32   0C cmd_per_lun 32   10 event_info_size 32
//                  14 sense_size 32 RW   18 cdb_size 32 RW   1C max_channel 16   1E max_target 16   20 max_lun 32
//   request        lun 8 bytes, id 64, task_attr 8, prio 8, crn 8, cdb[cdb_size]; data
//   response       sense_len 32, residual 32, status_qualifier 16, status 8, response 8, sense[sense_size]; data
//   lun            1, target, 01 and 14 bits of the unit, four zeroes
public import DeviceModel
internal import GuestMemory
internal import Synchronization

/// A SCSI host. Each unit's commands are done on a worker of its own, in order, and finish through the door.
public final class VirtioSCSI: VirtioDevice {
    /// Units that come and go are told.
    private static let hotPlug: UInt64 = 1 << 1
    /// So are changed parameters.
    private static let change: UInt64 = 1 << 2
    /// Targets.
    public static let targets = 32

    struct Slot: Sendable {
        var unit: SCSIUnit
        var worker: any Worker
    }

    /// A command or task management function that isn't given back yet.
    struct SCSITask: Sendable {
        var held: HeldChain
        var tag: UInt64
        var target: Int
        /// How it ends without being done.
        var aborted: Response?
    }

    struct Event: Sendable, Codable, Equatable {
        var code: UInt32
        var target: Int
        var reason: UInt32
    }

    struct Contents: Sendable {
        var slots: [Int: Slot] = [:]
        var tasks: [UInt64: SCSITask] = [:]
        var nextTask: UInt64 = 0
        var features: UInt64 = 0
        var controls = State()
        var reference = WeakTransport()
    }

    /// What the controller holds, as plain data.
    public struct State: Codable, Sendable, Equatable {
        /// The layout's version.
        public var version = 1
        var senseSize: UInt32 = 96
        var commandSize: UInt32 = 32
        var events: [Event] = []
        var hasMissedEvents = false
        /// The units' by target.
        public var units: [Int: SCSIUnit.State] = [:]
    }

    /// How a request was transported, or a function carried out.
    ///
    /// - Spec: virtio 1.2, 5.6.6.1 and 5.6.6.2
    enum Response: UInt8, Sendable {
        case done = 0
        case overrun = 1
        case aborted = 2
        case badTarget = 3
        case reset = 4
        case failure = 9
        case succeeded = 10
        case rejected = 11
        case incorrectUnit = 12
    }

    let door: any Door
    private let makeWorker: @Sendable () -> any Worker
    let contents = Mutex(Contents())
    /// What the guest sends passes here.
    let gate = TransferGate()

    /// Makes a controller without units.
    public init(
        door: any Door, makeWorker: @escaping @Sendable () -> any Worker
    ) {
        self.door = door
        self.makeWorker = makeWorker
    }

    // MARK: Identity

    /// SCSI host.
    public var deviceID: UInt16 { 8 }
    /// Mass storage, SCSI.
    public var classCode: UInt32 { 0x01_00_00 }
    /// Control, events, requests.
    public var queueSizes: [UInt16] { [64, 32, 256] }
    /// HOTPLUG and CHANGE.
    public var features: UInt64 { Self.hotPlug | Self.change }

    /// One request queue, limits, sizes.
    public var configuration: [UInt8] {
        let controls = contents.withLock { $0.controls }
        let words: [UInt32] = [
            1, 254, UInt32(SCSIUnit.largestTransfer / 512), 128, 16, controls.senseSize, controls.commandSize,
        ]
        return words.flatMap { littleEndian($0) } + littleEndian(UInt16(0)) + littleEndian(UInt16(Self.targets - 1))
            + littleEndian(UInt32(0))
    }

    /// The sizes of sense data and commands, a byte at a time.
    public func configure(offset: Int, value: UInt8) {
        guard 0x14..<0x1C ~= offset else { return }
        let shift = UInt32(offset & 3) * 8
        contents.withLock { contents in
            let field = offset < 0x18 ? \State.senseSize : \State.commandSize
            contents.controls[keyPath: field] &= ~(0xFF << shift)
            contents.controls[keyPath: field] |= UInt32(value) << shift
        }
    }

    // MARK: Life

    /// Keeps a weak reference.
    public func attach(to transport: VirtioPCI) { contents.withLock { $0.reference.transport = transport } }

    /// Notes what was agreed on.
    public func activate(features: UInt64) { contents.withLock { $0.features = features } }

    /// Forgets requests under way, which take nothing more from the guest's memory, and resets the units.
    ///
    /// A command that has all it needs is left to its unit's worker, which may wait long for the medium: those of the next
    /// driver come behind it.
    public func reset() {
        let (slots, busy) = contents.withLock { contents in
            let targets = Set(contents.tasks.values.map(\.target))
            contents.tasks = [:]
            contents.features = 0
            contents.controls = State()
            return (Array(contents.slots.values), contents.slots.filter { targets.contains($0.key) }.map(\.value))
        }
        gate.cut()
        for slot in slots { slot.unit.reset(.powerOn) }
        // What a command under way has changed of its unit meanwhile is undone.
        for slot in busy { slot.worker.run { slot.unit.reset(.powerOn) } }
    }

    /// Requests under way, and what the units remember.
    public func saveDeviceState() -> VirtioDeviceState {
        var state = VirtioDeviceState()
        contents.withLock { contents in
            state.inFlight = contents.tasks.sorted { $0.key < $1.key }.map { $0.value.held }
            var own = contents.controls
            own.units = contents.slots.mapValues { $0.unit.state }
            state.scsi = own
        }
        return state
    }

    /// Does the requests again that were under way.
    public func restoreDeviceState(_ state: VirtioDeviceState) throws {
        guard let own = state.scsi, own.version == 1, own.events.count <= Self.mostEvents,
            let transport = contents.withLock({ $0.reference.transport })
        else { throw StateError("the saved state of a SCSI controller doesn't fit") }
        contents.withLock { contents in
            contents.controls = own
            contents.controls.units = [:]
            for (target, unit) in own.units { contents.slots[target]?.unit.update { $0 = unit } }
        }
        for held in state.inFlight {
            var jobs: [Job] = []
            transport.withQueue(held.queue) { (queue) throws(VirtqueueError) in
                jobs.append(try keep(try queue.chain(from: held.head), in: queue, held.queue, transport))
            }
            submit(jobs, transport)
        }
        for queue in 0..<queueSizes.count { notified(queue: queue) }
    }

    // MARK: Units

    /// Puts a unit on a target; the guest is told. False if the target is taken or there is no such.
    public func plug(_ unit: SCSIUnit, target: Int) -> Bool {
        let worker = makeWorker()
        let isNew = contents.withLock { contents in
            guard 0..<Self.targets ~= target, contents.slots[target] == nil else { return false }
            contents.slots[target] = Slot(unit: unit, worker: worker)
            return true
        }
        // Transport reset, rescan.
        if isNew { send(Event(code: 1, target: target, reason: 1)) }
        return isNew
    }

    /// Takes a unit away; the guest is told. What it does not come to anymore ends as aborted; `gone` is called, on the
    /// unit's worker, when nothing uses it any more.
    public func unplug(target: Int, _ gone: @escaping @Sendable () -> Void) -> Bool {
        let slot = contents.withLock { contents -> Slot? in
            for (id, task) in contents.tasks where task.target == target && task.aborted == nil {
                contents.tasks[id]?.aborted = .reset
            }
            return contents.slots.removeValue(forKey: target)
        }
        guard let slot else { return false }
        // Transport reset, removed.
        send(Event(code: 1, target: target, reason: 2))
        slot.worker.run {
            slot.unit.retire()
            gone()
        }
        return true
    }

    /// Tells the guest that the medium of a unit may be another one: asynchronous notification of a changed parameter.
    public func mediumChanged(target: Int) {
        let sense = SCSISense.mediumChanged
        send(Event(code: 3, target: target, reason: UInt32(sense.code) | UInt32(sense.qualifier) << 8))
    }

    // MARK: Events

    private static let mostEvents = 64

    /// Tells the driver of an event, as soon as it has a buffer for it.
    private func send(_ event: Event) {
        let transport = contents.withLock { contents -> VirtioPCI? in
            let wanted = event.code == 3 ? Self.change : Self.hotPlug
            guard contents.features & wanted != 0 else { return nil }
            if contents.controls.events.count < Self.mostEvents {
                contents.controls.events.append(event)
            } else {
                contents.controls.hasMissedEvents = true
            }
            return contents.reference.transport
        }
        if let transport { deliverEvents(transport) }
    }

    private func takeEvent() -> [UInt8]? {
        contents.withLock { contents in
            guard !contents.controls.events.isEmpty else { return nil }
            let event = contents.controls.events.removeFirst()
            let missed: UInt32 = contents.controls.hasMissedEvents ? 1 << 31 : 0
            contents.controls.hasMissedEvents = false
            return littleEndian(event.code | missed)
                + [1, UInt8(truncatingIfNeeded: event.target), 0x40, 0, 0, 0, 0, 0] + littleEndian(event.reason)
        }
    }

    /// - Spec: virtio 1.2, 5.6.6.3
    private func deliverEvents(_ transport: VirtioPCI) {
        transport.withQueue(1) { (queue) throws(VirtqueueError) in
            var isPushed = false
            repeat {
                while contents.withLock({ !$0.controls.events.isEmpty }), let chain = try queue.pop() {
                    guard let event = takeEvent() else { break }
                    let written = transport.memory.scatter(event, into: chain.writable)
                    try queue.push(head: chain.head, written: written)
                    isPushed = true
                }
            } while try queue.enableNotifications() && contents.withLock { !$0.controls.events.isEmpty }
            if isPushed, try queue.shouldInterrupt() { transport.interrupt(queue: 1) }
        }
    }

    // MARK: Queues

    /// Takes requests and gives them to the units' workers.
    public func notified(queue index: Int) {
        guard let transport = contents.withLock({ $0.reference.transport }) else { return }
        if index == 1 { return deliverEvents(transport) }
        var jobs: [Job] = []
        transport.withQueue(index) { (queue) throws(VirtqueueError) in
            repeat {
                while let chain = try queue.pop() { jobs.append(try keep(chain, in: queue, index, transport)) }
            } while try queue.enableNotifications()
        }
        submit(jobs, transport)
    }

    /// A request taken from a queue.
    struct Job: Sendable {
        var id: UInt64
        var queue: Int
        var chain: DescriptorChain
        var epoch: UInt64
        var life: UInt64
        var header: [UInt8]
        /// The target that the request names; nil if it can't be one of ours.
        var target: Int?
        /// Not unit 0.
        var isOtherUnit: Bool
    }

    /// Notes a chain as under way, under the queue's lock; a driver can't have more of them than descriptors.
    private func keep(
        _ chain: DescriptorChain, in queue: Virtqueue, _ index: Int, _ transport: VirtioPCI
    ) throws(VirtqueueError) -> Job {
        let header = transport.memory.gather(chain.readable, limit: index == 0 ? 24 : 19 + 260)
        let unit = index == 0 ? 8 : 0
        let isWhole = header.count >= unit + 8 && header[unit] == 1
        let target = isWhole ? Int(header[unit + 1]) : -1
        let isOtherUnit = isWhole && (header[unit + 2] & 0x3F != 0 || header[unit + 3] != 0)
        let tag = number(header.dropFirst(index == 0 ? 16 : 8))
        let limit = queueSizes.reduce(0) { $0 + Int($1) }
        let id = contents.withLock { contents -> UInt64? in
            guard contents.tasks.count < limit else { return nil }
            let id = contents.nextTask
            contents.nextTask = id &+ 1
            contents.tasks[id] = SCSITask(
                held: HeldChain(queue: index, head: chain.head), tag: tag, target: index == 0 ? -1 : target)
            return id
        }
        guard let id else { throw .tooManyInFlight }
        return Job(
            id: id, queue: index, chain: chain, epoch: queue.epoch, life: gate.life, header: header,
            target: target < 0 ? nil : target, isOtherUnit: isOtherUnit)
    }

    private func submit(_ jobs: [Job], _ transport: VirtioPCI) {
        for job in jobs {
            let slot = job.target.flatMap { target in contents.withLock { $0.slots[target] } }
            if job.queue == 0 {
                control(job, slot, transport)
            } else if let slot {
                slot.worker.run { [weak self] in self?.perform(job, slot.unit, transport) }
            } else {
                finish(job, transport, Outcome(response: .badTarget))
            }
        }
    }
}
