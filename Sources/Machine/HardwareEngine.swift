// The engine that has the host's hypervisor run the vCPU, and what it shares with the board: the local APIC's registers
// are the kernel's while it runs, messages go there, and ends of level-triggered interrupts come back.
internal import CHost
internal import CPU
internal import DeviceModel
internal import Devices
internal import GuestMemory
internal import KVM

/// One vCPU under KVM, with its part of the board.
final class HardwareEngine: Engine {
    private let kvm: KVMEngine
    private let cpu: VirtualCPU
    private let board: Board
    private let door: any Door

    /// Makes the guest and its vCPU. Nothing of the board changes before `takeOver`.
    init(
        host: KVMHost, cpu: VirtualCPU, memory: GuestMemory, board: Board, door: any Door
    ) throws(KVMError) {
        self.cpu = cpu
        self.board = board
        self.door = door
        kvm = try KVMEngine(machine: try KVMMachine(host: host, memory: memory), cpu: cpu)
    }

    func run() -> VMExit { kvm.run() }
    func complete(_ value: UInt64) { kvm.complete(value) }
    func completeWithGeneralProtection() { kvm.completeWithGeneralProtection() }
    var canTakeInterrupt: Bool { kvm.canTakeInterrupt }
    func inject(vector: UInt8) -> Bool { kvm.inject(vector: vector) }
    var kicker: (@Sendable () -> Void)? { { [kvm] in kvm.kick() } }
    var isBetweenInstructions: Bool { kvm.isBetweenInstructions }

    func report(to statistics: inout RunStatistics) {
        statistics.hypervisorExits += kvm.exits
        statistics.collectedWrites += kvm.collectedWrites
    }

    func takeOver(_ clock: KVMClock.Registers) throws {
        let machine = kvm.machine
        let page = board.localAPIC.lend()
        // SAFETY: the vCPU doesn't run.
        unsafe cpu.state.pointee.apic_base = page.base
        try kvm.loadState()
        try kvm.setLocalAPIC(KVMLocalAPIC(registers: page.registers, deadline: page.deadline))
        machine.setClock(door.now)
        kvm.writeRegisters([(0x4B56_4D00, clock.wallClock), (0x4B56_4D01, clock.systemTime)])
        board.apics.host = LocalAPICHost(
            deliver: { message in
                let (address, data) = message.words
                return machine.signal(KVMMachine.Message(address: address, data: data))
            },
            route: { pin, message in
                machine.route(pin: pin, message.map { KVMMachine.Message(address: $0.words.address, data: $0.words.data) })
            })
    }

    func giveBack(_ clock: KVMClock.Registers) throws -> KVMClock.Registers {
        board.apics.host = nil
        // Interrupts that devices send from here on wait in the lent registers' place; they are put together below.
        let event = try kvm.storeState()
        let apic = try kvm.localAPIC()
        // SAFETY: the vCPU doesn't run.
        let base = unsafe cpu.state.pointee.apic_base
        board.localAPIC.takeBack(
            LocalAPICPage(registers: apic.registers, base: base, deadline: apic.deadline), undelivered: event?.vector)
        return KVMClock.Registers(
            wallClock: kvm.readRegister(0x4B56_4D00) ?? clock.wallClock,
            systemTime: kvm.readRegister(0x4B56_4D01) ?? clock.systemTime)
    }

    func describe() { kvm.storeForReport() }
}
