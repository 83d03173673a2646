// A machine of KVM: memory slots from the guest's memory, interrupts in the kernel's local APICs, event descriptors.
//
// - Spec: Linux Documentation/virt/kvm/api.rst: KVM_CREATE_VM, KVM_SET_USER_MEMORY_REGION, KVM_CAP_SPLIT_IRQCHIP,
//   KVM_SIGNAL_MSI, KVM_SET_GSI_ROUTING, KVM_IRQFD, KVM_IOEVENTFD, KVM_GET_DIRTY_LOG.
internal import CHost
public import GuestMemory
public import HostOS
internal import Synchronization

/// One guest of the host's KVM; every vCPU's engine holds it. Threads may call it at any time.
///
/// The local APICs are the kernel's, the I/O APIC and the 8259 pair the board's own ("split").
public final class KVMMachine: Sendable {
    /// One range of guest memory as KVM has it.
    private struct Slot: Sendable {
        var number: UInt32
        var region: MemoryRegion
        var isLogged = false
    }

    private struct Contents: Sendable {
        var slots: [Slot] = []
        /// For each I/O APIC pin its level-triggered message, so that its end of interrupt is reported.
        var routes = [Message?](repeating: nil, count: Int(ROOST_KVM_ROUTES))
    }

    /// An interrupt message.
    public struct Message: Sendable, Equatable {
        /// FEEx_xxxx.
        public var address: UInt64
        /// Vector, mode, trigger.
        public var data: UInt32

        /// Makes a message.
        public init(address: UInt64, data: UInt32) {
            self.address = address
            self.data = data
        }
    }

    /// The host.
    public let host: KVMHost
    /// The guest's memory.
    public let memory: GuestMemory
    let descriptor: FileDescriptor
    /// Entries of each vCPU's dirty ring; zero: a bitmap for each slot.
    public let ringEntries: Int
    private let contents = Mutex(Contents())

    /// Makes a guest with this memory. `ringEntries` (a power of two) asks for dirty rings instead of bitmaps.
    public init(host: KVMHost, memory: GuestMemory, ringEntries: Int = 0) throws(KVMError) {
        self.host = host
        self.memory = memory
        let made = try asking("make a guest") { () throws(HostError) in
            try host.device.control(UInt64(ROOST_KVM_CREATE_VM.rawValue))
        }
        descriptor = FileDescriptor(owning: made)
        self.ringEntries = host.extent(of: KVM_CAP_DIRTY_LOG_RING) >= ringEntries * 16 ? ringEntries : 0
        // Intel's processors need three pages for real mode, in the hole below 4 GiB, before the board's own ROM.
        var identity: UInt64 = 0xFEFF_C000
        _ = descriptor.controlOrErrno(roost_kvm_set_identity_map, &identity)
        _ = try? descriptor.control(UInt64(ROOST_KVM_SET_TSS_ADDR.rawValue), value: 0xFEFF_D000)
        try enable(KVM_CAP_SPLIT_IRQCHIP, 24, "interrupt controllers")
        // Identifiers of 32 bits; 0xFF is no broadcast to x2APICs.
        try? enable(KVM_CAP_X2APIC_API, 3, "x2APIC")
        if self.ringEntries > 0 {
            try enable(KVM_CAP_DIRTY_LOG_RING, UInt64(self.ringEntries * 16), "dirty rings")
        }
        for (number, region) in memory.regions.filter({ $0.length > 0 }).enumerated() {
            contents.withLock { $0.slots.append(Slot(number: UInt32(number), region: region)) }
        }
        for slot in contents.withLock({ $0.slots }) { try set(slot) }
    }

    private func enable(_ capability: Int32, _ argument: UInt64, _ name: String) throws(KVMError) {
        var request = kvm_enable_cap()
        request.cap = UInt32(capability)
        request.args.0 = argument
        try asking(name) { () throws(HostError) in try descriptor.control(roost_kvm_enable_cap, &request) }
    }

    /// Has the kernel report model-specific registers that it doesn't know, instead of refusing them.
    func reportUnknownRegisters() {
        // KVM_MSR_EXIT_REASON_UNKNOWN
        try? enable(KVM_CAP_X86_USER_SPACE_MSR, 2, "registers")
    }

    // MARK: Memory

    private func set(_ slot: Slot) throws(KVMError) {
        var region = kvm_userspace_memory_region()
        region.slot = slot.number
        region.flags = (slot.region.kind == .rom ? 2 : 0) | (slot.isLogged ? 1 : 0)
        region.guest_phys_addr = slot.region.start.rawValue
        region.memory_size = slot.region.length
        region.userspace_addr = UInt64(UInt(bitPattern: memory.base)) &+ slot.region.start.rawValue
        try asking("memory at \(slot.region.start)") { () throws(HostError) in
            try descriptor.control(roost_kvm_set_memory, &region)
        }
    }

    /// Begins or ends noting which pages of RAM the guest writes; there is one log, so who finds it begun is refused.
    public func logWrites(_ isOn: Bool) throws(KVMError) {
        let slots = try contents.withLock { (contents) throws(KVMError) in
            if isOn, contents.slots.contains(where: \.isLogged) {
                throw KVMError(.refused, "KVM: the dirty log is in use")
            }
            for n in contents.slots.indices where contents.slots[n].region.kind == .ram {
                contents.slots[n].isLogged = isOn
            }
            return contents.slots.filter { $0.region.kind == .ram }
        }
        do throws(KVMError) {
            for slot in slots { try set(slot) }
        } catch {
            if isOn { try? logWrites(false) }
            throw error
        }
    }

    /// Marks the pages written since the last call as dirty in the guest's memory; how many there were.
    ///
    /// With dirty rings the engines' `harvestWrites` does this.
    @discardableResult
    public func collectWrites() throws(KVMError) -> Int {
        var count = 0
        for slot in contents.withLock({ $0.slots.filter(\.isLogged) }) {
            let pages = Int(slot.region.length / GuestMemory.pageSize)
            var bitmap = [UInt64](repeating: 0, count: (pages + 63) / 64)
            let answer = bitmap.withUnsafeMutableBytes { buffer in
                var log = kvm_dirty_log()
                log.slot = slot.number
                log.dirty_bitmap = buffer.baseAddress
                return descriptor.controlOrErrno(roost_kvm_get_dirty_log, &log)
            }
            if answer < 0 { throw KVMError("dirty log", HostError("KVM_GET_DIRTY_LOG", errno: -answer)) }
            let first = Int(slot.region.start.rawValue / GuestMemory.pageSize)
            for (index, word) in bitmap.enumerated() where word != 0 {
                var rest = word
                while rest != 0 {
                    mark(page: first + index * 64 + rest.trailingZeroBitCount)
                    count += 1
                    rest &= rest - 1
                }
            }
        }
        return count
    }

    /// A page of a slot was written, as a dirty ring tells.
    func markWritten(slot number: UInt32, offset: UInt64) {
        guard let slot = contents.withLock({ $0.slots.first { $0.number == number & 0xFFFF } }),
            offset < slot.region.length / GuestMemory.pageSize
        else { return }
        mark(page: Int(slot.region.start.rawValue / GuestMemory.pageSize + offset))
    }

    private func mark(page: Int) { _ = roost_set_flags(memory.pageFlags + page, PageFlags.dirty.rawValue) }

    /// Lets the kernel write-protect harvested pages anew.
    func resetRings() { _ = descriptor.controlOrErrno(roost_kvm_reset_dirty_rings) }

    // MARK: Interrupts

    /// Sends a message to the local APICs; false when none took it.
    @discardableResult
    public func signal(_ message: Message) -> Bool {
        var request = kvm_msi()
        request.address_lo = UInt32(truncatingIfNeeded: message.address)
        request.address_hi = UInt32(truncatingIfNeeded: message.address >> 32)
        request.data = message.data
        return descriptor.controlOrErrno(roost_kvm_signal_msi, &request) > 0
    }

    /// Tells what an I/O APIC pin sends, if that is level-triggered: only then is its end of interrupt an exit.
    public func route(pin: Int, _ message: Message?) {
        guard pin >= 0, pin < Int(ROOST_KVM_ROUTES) else { return }
        contents.withLock { contents in
            guard contents.routes[pin] != message else { return }
            contents.routes[pin] = message
            setRouting(contents.routes)
        }
    }

    private func setRouting(_ routes: [Message?]) {
        let list = UnsafeMutablePointer<roost_kvm_routing>.allocate(capacity: 1)
        defer { list.deallocate() }
        list.initialize(to: roost_kvm_routing())
        for (pin, message) in routes.enumerated() {
            guard let message else { continue }
            let entry = roost_kvm_route_at(list, list.pointee.count)!
            entry.pointee.gsi = UInt32(pin)
            entry.pointee.type = 2  // KVM_IRQ_ROUTING_MSI
            entry.pointee.u.msi.address_lo = UInt32(truncatingIfNeeded: message.address)
            entry.pointee.u.msi.address_hi = UInt32(truncatingIfNeeded: message.address >> 32)
            entry.pointee.u.msi.data = message.data
            list.pointee.count += 1
        }
        _ = descriptor.controlOrErrno(roost_kvm_set_gsi_routing, list)
    }

    /// Has the kernel send what pin `pin` was routed to whenever an event counter is signaled: for who works for the guest
    /// outside this process. In it, `signal` costs the same.
    public func connect(_ counter: borrowing FileDescriptor, pin: Int) throws(KVMError) {
        var request = kvm_irqfd()
        request.fd = UInt32(counter.rawValue)
        request.gsi = UInt32(pin)
        try asking("interrupt descriptor") { () throws(HostError) in
            try descriptor.control(roost_kvm_irqfd, &request)
        }
    }

    // MARK: Writes that need no exit

    /// Signals an event counter at each write to a guest-physical address, instead of an exit.
    public func signal(_ counter: borrowing FileDescriptor, onWriteTo address: UInt64, isOn: Bool) throws(KVMError) {
        var request = kvm_ioeventfd()
        request.addr = address
        request.fd = counter.rawValue
        request.flags = isOn ? 0 : 4  // KVM_IOEVENTFD_FLAG_DEASSIGN
        try asking("event descriptor at 0x\(String(address, radix: 16))") { () throws(HostError) in
            try descriptor.control(roost_kvm_ioeventfd, &request)
        }
    }

    /// Collects one-byte writes to a port until the next exit, instead of an exit for each.
    public func collectWrites(toPort port: UInt16, isOn: Bool) {
        guard host.extent(of: KVM_CAP_COALESCED_PIO) > 0 else { return }
        var zone = kvm_coalesced_mmio_zone()
        zone.addr = UInt64(port)
        zone.size = 1
        zone.pio = 1
        _ = descriptor.controlOrErrno(isOn ? roost_kvm_register_coalesced : roost_kvm_unregister_coalesced, &zone)
    }

    // MARK: Time

    /// Sets what the guest's paravirtual clock says now, in nanoseconds.
    public func setClock(_ nanoseconds: UInt64) {
        var clock = kvm_clock_data()
        clock.clock = nanoseconds
        _ = descriptor.controlOrErrno(roost_kvm_set_clock, &clock)
    }
}
