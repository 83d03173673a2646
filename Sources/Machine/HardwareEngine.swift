// The engine that has the host's hypervisor run the vCPU, and what it shares with the board: the local APIC's registers
// are the kernel's while it runs, messages go there, and ends of level-triggered interrupts come back.
internal import CHost
internal import CPU
internal import DeviceModel
internal import Devices
internal import GuestMemory
internal import KVM
internal import Synchronization

/// The guest of the host's KVM that all engines of a machine share, as long as any of them is there.
final class SharedHypervisor: Sendable {
    private struct Reference: Sendable { weak var machine: KVMMachine? }
    private let reference = Mutex(Reference())

    /// The guest, made now if there is none.
    func machine(host: KVMHost, memory: GuestMemory) throws(KVMError) -> KVMMachine {
        if let known = reference.withLock({ $0.machine }) { return known }
        let made = try KVMMachine(host: host, memory: memory)
        reference.withLock { $0.machine = made }
        return made
    }
}

/// One vCPU under KVM, with its part of the board.
final class HardwareEngine: Engine {
    private let kvm: KVMEngine
    private let cpu: VirtualCPU
    private let board: Board
    private let door: any Door
    private var kicks: QueueKicks?
    /// The serial port's output is collected until the next exit; this looks after it where there is none.
    private var collector: OutputCollector?

    /// Makes the guest and its vCPU. Nothing of the board changes before `takeOver`.
    init(
        host: KVMHost, shared: SharedHypervisor, cpu: VirtualCPU, memory: GuestMemory, board: Board, door: any Door
    ) throws(KVMError) {
        self.cpu = cpu
        self.board = board
        self.door = door
        kvm = try KVMEngine(machine: try shared.machine(host: host, memory: memory), cpu: cpu)
    }

    /// The first processor's engine connects the board.
    private var isFirst: Bool { cpu.id == 0 }

    func run() -> VMExit { kvm.run() }
    func complete(_ value: UInt64) { kvm.complete(value) }
    func completeWithGeneralProtection() { kvm.completeWithGeneralProtection() }
    var canTakeInterrupt: Bool { kvm.canTakeInterrupt }
    func inject(vector: UInt8) -> Bool { kvm.inject(vector: vector) }
    var kicker: (@Sendable () -> Void)? { { [kvm] in kvm.kick() } }
    var isBetweenInstructions: Bool { kvm.isBetweenInstructions }
    var isSettled: Bool { kvm.isSettled }
    var waitsByItself: Bool { true }
    var writeLog: (any WriteLog)? { HypervisorWriteLog(machine: kvm.machine) }

    func report(to statistics: inout RunStatistics) {
        statistics.hypervisorExits += kvm.exits
        statistics.collectedWrites += kvm.collectedWrites
    }

    func takeOver(_ clock: KVMClock.Registers) throws {
        let machine = kvm.machine
        let page = board.localAPICs[cpu.id].lend()
        // SAFETY: the vCPU doesn't run.
        unsafe cpu.state.pointee.apic_base = page.base
        try kvm.loadState()
        try kvm.setLocalAPIC(KVMLocalAPIC(registers: page.registers, deadline: page.deadline))
        if isFirst { machine.setClock(door.now) }
        kvm.writeRegisters([(0x4B56_4D00, clock.wallClock), (0x4B56_4D01, clock.systemTime)])
        guard isFirst else { return }
        board.apics.host = LocalAPICHost(
            deliver: { message in
                let (address, data) = message.words
                return machine.signal(KVMMachine.Message(address: address, data: data))
            },
            route: { pin, message in
                machine.route(
                    pin: pin, message.map { KVMMachine.Message(address: $0.words.address, data: $0.words.data) })
            })
        if kicks == nil { kicks = try QueueKicks(machine: machine, bus: board.mmio) }
        // Of several vCPUs each would take what another has written.
        if collector == nil && board.localAPICs.count == 1 { collector = OutputCollector(kvm, board.serial, door) }
    }

    func giveBack(_ clock: KVMClock.Registers) throws -> Handover {
        kicks?.stop()
        kicks = nil
        collector?.stop()
        collector = nil
        board.apics.host = nil
        let event = try kvm.storeState()
        let apic = try kvm.localAPIC()
        // SAFETY: the vCPU doesn't run.
        let base = unsafe cpu.state.pointee.apic_base
        board.localAPICs[cpu.id].takeBack(
            LocalAPICPage(registers: apic.registers, base: base, deadline: apic.deadline), undelivered: event?.vector)
        let registers = KVMClock.Registers(
            wallClock: kvm.readRegister(0x4B56_4D00) ?? clock.wallClock,
            systemTime: kvm.readRegister(0x4B56_4D01) ?? clock.systemTime)
        // What the local APIC had handed out is requested anew there; what the 8259 had, can't be.
        let external = event.map(\.vector).flatMap { vector in
            apic.registers[0x10 + Int(vector >> 5)] & 1 << UInt32(vector & 31) == 0 ? vector : nil
        }
        return Handover(clock: registers, interrupt: external)
    }

    func describe() { kvm.storeForReport() }

    deinit {
        kicks?.stop()
        collector?.stop()
    }
}

/// The kernel's dirty log.
private struct HypervisorWriteLog: WriteLog {
    let machine: KVMMachine

    func begin() throws(MachineError) { try asking { () throws(KVMError) in try machine.logWrites(true) } }
    func collect() throws(MachineError) { try asking { () throws(KVMError) in _ = try machine.collectWrites() } }
    func end() { try? machine.logWrites(false) }

    private func asking(_ body: () throws(KVMError) -> Void) throws(MachineError) {
        do throws(KVMError) { try body() } catch { throw MachineError(.hypervisor, error.description) }
    }
}

/// Saves an exit for each character that a polling driver writes: the kernel collects them until the next exit, which is
/// that driver's next look at the line status. A driver that waits for interrupts gets none before its byte is out: for
/// it, collecting ends. And for a guest that does neither, someone looks ten times a second.
private final class OutputCollector: Sendable {
    private static let port: UInt16 = 0x3F8
    private static let interval: UInt64 = 100_000_000

    private let kvm: KVMEngine
    private let serial: Serial16550A
    private let timer = Mutex<(any DoorTimer)?>(nil)

    init(_ kvm: KVMEngine, _ serial: Serial16550A, _ door: any Door) {
        self.kvm = kvm
        self.serial = serial
        guard serial.onTransmitterInterrupts({ [weak self] in self?.end() }) else { return }
        kvm.machine.collectWrites(toPort: Self.port, isOn: true)
        let timer = door.makeTimer { [weak self] in self?.look(door) }
        self.timer.withLock { $0 = timer }
        timer.arm(at: door.now &+ Self.interval)
    }

    private func look(_ door: any Door) {
        if kvm.hasCollectedWrites { kvm.kick() }
        timer.withLock { $0?.arm(at: door.now &+ Self.interval) }
    }

    private func end() {
        kvm.machine.collectWrites(toPort: Self.port, isOn: false)
        timer.withLock { timer in
            timer?.disarm()
            timer = nil
        }
    }

    func stop() {
        _ = serial.onTransmitterInterrupts(nil)
        end()
    }
}
