// The engine that has the host's hypervisor run the vCPU.
//
// - Spec: Linux Documentation/virt/kvm/api.rst, section 5: the kvm_run structure.
//
// An exit that wants an answer (input, memory-mapped read, register) gets it through the shared page, and the next
// KVM_RUN finishes the instruction: until then it is "unfinished", and its state can't be taken.
internal import CHost
public import CPU
internal import HostOS

/// Runs one vCPU on the host's processor. Its thread calls everything but `kick`.
public final class KVMEngine: @unchecked Sendable {
    // SAFETY of @unchecked: only `kick` is for other threads, and touches `immediate_exit` and `thread` by atomics.

    /// What the exit that was returned last waits for.
    private enum Waiting {
        case nothing
        /// Elements of a string instruction, from `next` on.
        case port(isInput: Bool, next: Int)
        case memory
        case register(isRead: Bool)
        /// A write that was collected; the exit itself comes after all of them.
        case collected
    }

    /// The guest.
    public let machine: KVMMachine
    /// The state block that this engine exchanges state with.
    public let cpu: VirtualCPU
    let descriptor: FileDescriptor
    private let mapping: DescriptorMapping
    private let run_: UnsafeMutablePointer<kvm_run>
    private let collected: UnsafeMutablePointer<kvm_coalesced_mmio_ring>?
    private let collectedCapacity: UInt32
    private let dirtyRing: DescriptorMapping?
    private var dirtyNext = 0
    private let thread = KickableThread()
    private var waiting = Waiting.nothing
    /// An exit has been taken from the kernel and not yet been told of.
    private var hasExit = false
    /// An external interrupt that the kernel couldn't take yet.
    private var held: UInt8?
    /// An external interrupt was given to the kernel, and no exit has shown yet that the guest has it.
    private var isUnsettled = false
    /// Times that KVM_RUN returned.
    public private(set) var exits: UInt64 = 0
    /// Writes that came collected with another exit.
    public private(set) var collectedWrites: UInt64 = 0

    /// Makes vCPU number `cpu.id` of a guest, with the model of `cpu`; its state comes with `loadState`.
    public init(machine: KVMMachine, cpu: VirtualCPU) throws(KVMError) {
        self.machine = machine
        self.cpu = cpu
        let made = try asking("make a vCPU") { () throws(HostError) in
            try machine.descriptor.control(UInt64(ROOST_KVM_CREATE_VCPU.rawValue), value: UInt64(cpu.id))
        }
        let file = FileDescriptor(owning: made)
        let map: DescriptorMapping
        do { map = try DescriptorMapping(file, size: machine.host.mapSize) } catch {
            throw KVMError("map a vCPU", error)
        }
        mapping = map
        run_ = map.base.bindMemory(to: kvm_run.self, capacity: 1)
        let page = Int(machine.host.extent(of: KVM_CAP_COALESCED_MMIO)) * 4096
        let hasRing = page > 0 && page + 4096 <= map.size
        collected = hasRing ? (map.base + page).bindMemory(to: kvm_coalesced_mmio_ring.self, capacity: 1) : nil
        collectedCapacity = UInt32(
            (4096 - MemoryLayout<kvm_coalesced_mmio_ring>.size) / MemoryLayout<kvm_coalesced_mmio>.stride)
        if machine.ringEntries > 0 {
            let size = machine.ringEntries * MemoryLayout<kvm_dirty_gfn>.stride
            do { dirtyRing = try DescriptorMapping(file, offset: 64 * 4096, size: size) } catch {
                throw KVMError("map a dirty ring", error)
            }
        } else {
            dirtyRing = nil
        }
        descriptor = file
        run_.pointee.kvm_valid_regs = 1  // KVM_SYNC_X86_REGS
        machine.reportUnknownRegisters()
        try setCPUID()
    }

    private func setCPUID() throws(KVMError) {
        let rows = cpu.model.rows(on: try machine.host.supportedCPUID(), processor: cpu.id, of: cpu.count)
        let list = UnsafeMutablePointer<roost_kvm_cpuid>.allocate(capacity: 1)
        defer { list.deallocate() }
        list.initialize(to: roost_kvm_cpuid())
        for row in rows.prefix(Int(ROOST_KVM_CPUID_ENTRIES)) {
            let entry = roost_kvm_cpuid_at(list, list.pointee.count)!
            entry.pointee.function = row.leaf
            entry.pointee.index = row.subleaf ?? 0
            entry.pointee.flags = row.subleaf == nil ? 0 : 1
            entry.pointee.eax = row.registers[0]
            entry.pointee.ebx = row.registers[1]
            entry.pointee.ecx = row.registers[2]
            entry.pointee.edx = row.registers[3]
            list.pointee.count += 1
        }
        try asking("set CPUID") { () throws(HostError) in try descriptor.control(roost_kvm_set_cpuid, list) }
    }

    /// Whether writes wait in the ring that no exit has brought yet; from any thread, and so a moment old.
    public var hasCollectedWrites: Bool { collected.map { $0.pointee.first != roost_ring_last($0) } ?? false }

    // MARK: Running

    /// Makes the running or next `run` return `.interrupted`; from any thread.
    public func kick() {
        roost_kvm_immediate_exit(run_, 1)
        thread.kick()
    }

    /// Whether no instruction is half done.
    public var isBetweenInstructions: Bool {
        if case .nothing = waiting { return !hasExit }
        return false
    }

    /// Whether an external interrupt from the 8259 can be injected now.
    public var canTakeInterrupt: Bool {
        run_.pointee.ready_for_interrupt_injection != 0 && isBetweenInstructions && !isUnsettled
    }

    /// Whether no external interrupt is on its way where `storeState` can't see it; the next exit settles that.
    public var isSettled: Bool { !isUnsettled }

    /// Injects an external interrupt, only when `canTakeInterrupt`.
    public func inject(vector: UInt8) -> Bool {
        held = vector
        isUnsettled = true
        return deliverHeld()
    }

    /// The kernel has room for one: with the one before still on its way, this one waits for the next run.
    private func deliverHeld() -> Bool {
        guard let vector = held else { return true }
        var request = kvm_interrupt(irq: UInt32(vector))
        let result = descriptor.controlOrErrno(roost_kvm_interrupt, &request)
        if result == -HostErrorNumber.exists { return true }
        held = nil
        return result >= 0
    }

    /// Runs until something outside the CPU is needed.
    public func run() -> VMExit {
        if case .port(let isInput, let next) = waiting, next < run_.pointee.io.count {
            return portExit(isInput: isInput, next)
        }
        waiting = .nothing
        if hasExit { return nextExit() }
        let state = cpu.state
        if state.pointee.pending_nmi != 0 {
            state.pointee.pending_nmi = 0
            _ = descriptor.controlOrErrno(UInt64(ROOST_KVM_NMI.rawValue))
        }
        if held != nil && !deliverHeld() { return .internalError("KVM refused an interrupt") }
        run_.pointee.request_interrupt_window = state.pointee.interrupt_window
        thread.enter()
        let result = descriptor.controlOrErrno(UInt64(ROOST_KVM_RUN.rawValue))
        exits &+= 1
        state.pointee.rip = run_.pointee.s.regs.regs.rip
        if result < 0 {
            if result != -HostErrorNumber.interrupted && result != -HostErrorNumber.again {
                return .internalError(refusal(-result))
            }
            run_.pointee.exit_reason = UInt32(KVM_EXIT_INTR)
        } else if held == nil {
            isUnsettled = false
        }
        hasExit = true
        return nextExit()
    }

    /// Ends an exit that nobody will answer, since other state comes: what it would have changed is overwritten.
    func abandonExit() {
        if isBetweenInstructions && isSettled { return }
        // An access may be in several pieces, each an exit; the kernel finishes them without running the guest.
        roost_kvm_immediate_exit(run_, 1)
        for _ in 0..<16 where descriptor.controlOrErrno(UInt64(ROOST_KVM_RUN.rawValue)) < 0 { break }
        roost_kvm_immediate_exit(run_, 0)
        (waiting, hasExit, held, isUnsettled) = (.nothing, false, nil, false)
    }

    /// The writes collected before an exit, one after the other, then the exit.
    private func nextExit() -> VMExit {
        if let collected, collected.pointee.first != roost_ring_last(collected) {
            let first = collected.pointee.first
            let entry = roost_ring_at(collected, first % collectedCapacity)!.pointee
            roost_ring_take(collected, (first &+ 1) % collectedCapacity)
            collectedWrites &+= 1
            waiting = .collected
            let value =
                UInt64(entry.data.0) | UInt64(entry.data.1) << 8 | UInt64(entry.data.2) << 16
                | UInt64(entry.data.3) << 24
            let size = Int(entry.len == 2 || entry.len == 4 ? entry.len : 1)
            let mask: UInt64 = (1 << UInt64(size * 8)) - 1
            if entry.pio != 0 {
                return .portWrite(
                    port: UInt16(truncatingIfNeeded: entry.phys_addr), size: size,
                    value: UInt32(truncatingIfNeeded: value & mask))
            }
            return .mmioWrite(address: entry.phys_addr, size: size, value: value & mask)
        }
        hasExit = false
        return decode()
    }

    private func decode() -> VMExit {
        let state = cpu.state
        switch Int32(bitPattern: run_.pointee.exit_reason) {
        case KVM_EXIT_IO:
            return portExit(isInput: run_.pointee.io.direction == 0, 0)
        case KVM_EXIT_MMIO:
            let size = Int(run_.pointee.mmio.len)
            guard size == 1 || size == 2 || size == 4 || size == 8 else { return oddAccess(size) }
            waiting = .memory
            let address = run_.pointee.mmio.phys_addr
            if run_.pointee.mmio.is_write == 0 { return .mmioRead(address: address, size: size) }
            return .mmioWrite(
                address: address, size: size, value: memoryData & (size == 8 ? ~0 : (1 << UInt64(size * 8)) - 1))
        case KVM_EXIT_INTR:
            roost_kvm_immediate_exit(run_, 0)
            _ = roost_attention_take(state, ROOST_ATTENTION_KICK | ROOST_ATTENTION_INTERRUPT)
            return .interrupted
        case KVM_EXIT_IRQ_WINDOW_OPEN:
            state.pointee.interrupt_window = 0
            return .interruptWindow
        case KVM_EXIT_IOAPIC_EOI: return .endOfInterrupt(run_.pointee.eoi.vector)
        case KVM_EXIT_X86_RDMSR:
            waiting = .register(isRead: true)
            return .readMSR(run_.pointee.msr.index)
        case KVM_EXIT_X86_WRMSR:
            waiting = .register(isRead: false)
            return .writeMSR(run_.pointee.msr.index, value: run_.pointee.msr.data)
        case KVM_EXIT_HLT: return .halt
        case KVM_EXIT_SHUTDOWN: return .shutdown
        case KVM_EXIT_DIRTY_RING_FULL:
            harvestWrites()
            return .interrupted
        default: return .internalError(fault())
        }
    }

    /// An access that no processor makes of its own: MMIO of odd length comes from accesses across pages.
    private func oddAccess(_ size: Int) -> VMExit {
        waiting = .memory
        let address = run_.pointee.mmio.phys_addr
        return run_.pointee.mmio.is_write == 0
            ? .mmioRead(address: address, size: 1)
            : .mmioWrite(address: address, size: 1, value: memoryData & 0xFF)
    }

    private var memoryData: UInt64 {
        get { withUnsafeBytes(of: &run_.pointee.mmio.data) { $0.loadUnaligned(as: UInt64.self) } }
        set { withUnsafeMutableBytes(of: &run_.pointee.mmio.data) { $0.storeBytes(of: newValue, as: UInt64.self) } }
    }

    // MARK: Answers

    private func portData(_ element: Int) -> UnsafeMutableRawPointer {
        let size = Int(run_.pointee.io.size)
        let offset = Int(truncatingIfNeeded: run_.pointee.io.data_offset) &+ element &* size
        // The kernel's numbers, and within the mapping for any that make sense.
        return UnsafeMutableRawPointer(run_) + min(max(0, offset), mapping.size - 8)
    }

    private func portExit(isInput: Bool, _ element: Int) -> VMExit {
        waiting = .port(isInput: isInput, next: element)
        let size = Int(run_.pointee.io.size)
        let port = run_.pointee.io.port
        if isInput { return .portRead(port: port, size: size) }
        let data = portData(element)
        let value: UInt32 =
            switch size {
            case 1: UInt32(data.load(as: UInt8.self))
            case 2: UInt32(data.loadUnaligned(as: UInt16.self))
            default: data.loadUnaligned(as: UInt32.self)
            }
        return .portWrite(port: port, size: size, value: value)
    }

    /// Answers the access that the last exit asked for.
    public func complete(_ value: UInt64) {
        switch waiting {
        case .nothing, .collected: break
        case .port(let isInput, let next):
            if isInput {
                let data = portData(next)
                switch run_.pointee.io.size {
                case 1: data.storeBytes(of: UInt8(truncatingIfNeeded: value), as: UInt8.self)
                case 2: data.storeBytes(of: UInt16(truncatingIfNeeded: value), as: UInt16.self)
                default: data.storeBytes(of: UInt32(truncatingIfNeeded: value), as: UInt32.self)
                }
            }
            waiting = .port(isInput: isInput, next: next + 1)
        case .memory: if run_.pointee.mmio.is_write == 0 { memoryData = value }
        case .register(let isRead):
            if isRead { run_.pointee.msr.data = value }
            run_.pointee.msr.error = 0
        }
    }

    /// Refuses the MSR access that the last exit asked for: #GP(0).
    public func completeWithGeneralProtection() { run_.pointee.msr.error = 1 }

    /// Marks pages that the dirty ring names as dirty in the guest's memory; how many entries there were.
    @discardableResult
    public func harvestWrites() -> Int {
        guard let dirtyRing else { return 0 }
        let entries = dirtyRing.base.bindMemory(to: kvm_dirty_gfn.self, capacity: machine.ringEntries)
        var count = 0
        while count < machine.ringEntries {
            let entry = entries + dirtyNext
            guard roost_dirty_flags(entry) & 1 != 0 else { break }
            machine.markWritten(slot: entry.pointee.slot, offset: entry.pointee.offset)
            roost_dirty_harvested(entry)
            dirtyNext = (dirtyNext + 1) % machine.ringEntries
            count += 1
        }
        if count > 0 { machine.resetRings() }
        return count
    }

    // MARK: Faults

    /// KVM_RUN itself failed.
    private func refusal(_ number: Int32) -> String {
        "KVM refused to run the vCPU: \(HostError("", errno: number).reason)"
    }

    /// An exit that nothing can be done about.
    private func fault() -> String {
        func hex(_ value: UInt64) -> String { "0x" + String(value, radix: 16) }
        let reason = run_.pointee.exit_reason
        switch Int32(bitPattern: reason) {
        case KVM_EXIT_INTERNAL_ERROR:
            let error = run_.pointee.internal
            let names = [
                "", "it can't emulate an instruction", "simultaneous exceptions", "a fault in event delivery",
                "an exit that it doesn't expect",
            ]
            let what = Int(error.suberror) < names.count ? names[Int(error.suberror)] : ""
            let words = [error.data.0, error.data.1, error.data.2, error.data.3].prefix(Int(min(error.ndata, 4)))
            return
                "KVM gave up (internal error \(error.suberror)): \(what); data \(words.map(hex).joined(separator: " "))"
        case KVM_EXIT_FAIL_ENTRY:
            let code = run_.pointee.fail_entry.hardware_entry_failure_reason
            return
                "the processor refused to enter the guest: reason \(hex(code)) on processor \(run_.pointee.fail_entry.cpu)"
        case KVM_EXIT_UNKNOWN:
            return "KVM doesn't know the processor's exit \(hex(run_.pointee.hw.hardware_exit_reason))"
        default: return "KVM stopped with exit \(reason), which Roost didn't ask for"
        }
    }
}
