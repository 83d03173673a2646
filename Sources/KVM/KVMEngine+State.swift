// State between the kernel's vCPU and the state block that all engines have (CHost's `roost_vcpu`).
//
// - Spec: Linux Documentation/virt/kvm/api.rst: KVM_SET_REGS, KVM_SET_SREGS2, KVM_SET_XSAVE, KVM_SET_XCRS,
//   KVM_SET_DEBUGREGS, KVM_SET_VCPU_EVENTS, KVM_SET_MP_STATE, KVM_SET_MSRS; vcpu.rst, KVM_VCPU_TSC_OFFSET.
internal import CHost
internal import CPU
internal import HostOS

/// An event that was on its way into the guest when its state was taken, to be delivered by whoever goes on.
public struct KVMPendingEvent: Sendable, Equatable {
    /// The vector of an external interrupt that its controller has already handed out.
    public var vector: UInt8
}

extension KVMEngine {
    /// RFLAGS, RIP and the general registers.
    private func loadGeneral() throws(KVMError) {
        var r = kvm_regs()
        let g = cpu.vcpu.gpr
        (r.rax, r.rcx, r.rdx, r.rbx) = (g[0], g[1], g[2], g[3])
        (r.rsp, r.rbp, r.rsi, r.rdi) = (g[4], g[5], g[6], g[7])
        (r.r8, r.r9, r.r10, r.r11) = (g[8], g[9], g[10], g[11])
        (r.r12, r.r13, r.r14, r.r15) = (g[12], g[13], g[14], g[15])
        r.rip = cpu.state.pointee.rip
        r.rflags = cpu.vcpu.rflags
        try set(roost_kvm_set_regs, &r, "registers")
    }

    private func storeGeneral() throws(KVMError) {
        var r = kvm_regs()
        try set(roost_kvm_get_regs, &r, "registers")
        let g = cpu.vcpu.gpr
        (g[0], g[1], g[2], g[3]) = (r.rax, r.rcx, r.rdx, r.rbx)
        (g[4], g[5], g[6], g[7]) = (r.rsp, r.rbp, r.rsi, r.rdi)
        (g[8], g[9], g[10], g[11]) = (r.r8, r.r9, r.r10, r.r11)
        (g[12], g[13], g[14], g[15]) = (r.r12, r.r13, r.r14, r.r15)
        cpu.state.pointee.rip = r.rip
        cpu.vcpu.rflags = r.rflags
    }

    func set(_ request: UInt64, _ argument: UnsafeMutableRawPointer, _ what: String) throws(KVMError) {
        try asking(what) { () throws(HostError) in try descriptor.control(request, argument) }
    }

    // MARK: Segments, tables and control registers

    private func segment(_ n: Int32) -> kvm_segment {
        let from = cpu.vcpu.segment(Int(n)).pointee
        let a = from.attributes
        func bit(_ n: UInt16) -> UInt8 { UInt8(a >> n & 1) }
        var to = kvm_segment()
        (to.base, to.limit, to.selector) = (from.base, from.limit, from.selector)
        to.type = UInt8(a & 15)
        to.s = bit(4)
        to.dpl = UInt8(a >> 5 & 3)
        to.present = bit(7)
        (to.avl, to.l, to.db, to.g) = (bit(12), bit(13), bit(14), bit(15))
        to.unusable = 1 - to.present
        if n == ROOST_SS { to.dpl = cpu.state.pointee.cpl }
        if n == ROOST_TR { to.type |= 2 }
        // The processor wants G and the limit to agree.
        if to.limit > 0xF_FFFF { to.g = 1 } else if to.limit & 0xFFF != 0xFFF { to.g = 0 }
        return to
    }

    private func put(_ from: kvm_segment, _ n: Int32) {
        var a = UInt16(from.type & 15) | UInt16(from.s & 1) << 4 | UInt16(from.dpl & 3) << 5
        a |= UInt16(from.avl & 1) << 12 | UInt16(from.l & 1) << 13 | UInt16(from.db & 1) << 14
        a |= UInt16(from.g & 1) << 15
        if from.unusable == 0 && from.present != 0 { a |= 0x80 }
        cpu.vcpu.segment(Int(n)).pointee = roost_segment(
            base: from.base, limit: from.limit, selector: from.selector, attributes: a)
    }

    private var hasDirectoryPointers: Bool { machine.host.extent(of: KVM_CAP_SREGS2) > 0 }

    private func loadSystem() throws(KVMError) {
        let s = cpu.state
        var r = kvm_sregs2()
        r.es = segment(ROOST_ES)
        r.cs = segment(ROOST_CS)
        r.ss = segment(ROOST_SS)
        r.ds = segment(ROOST_DS)
        r.fs = segment(ROOST_FS)
        r.gs = segment(ROOST_GS)
        r.ldt = segment(ROOST_LDTR)
        r.tr = segment(ROOST_TR)
        r.gdt.base = s.pointee.gdtr_base
        r.gdt.limit = UInt16(truncatingIfNeeded: s.pointee.gdtr_limit)
        r.idt.base = s.pointee.idtr_base
        r.idt.limit = UInt16(truncatingIfNeeded: s.pointee.idtr_limit)
        (r.cr0, r.cr2, r.cr3, r.cr4) = (s.pointee.cr0, s.pointee.cr2, s.pointee.cr3, s.pointee.cr4)
        (r.cr8, r.efer, r.apic_base) = (s.pointee.cr8, s.pointee.efer, s.pointee.apic_base)
        // PAE without long mode: the pointers in force, which memory may no longer hold.
        if r.cr0 >> 31 & 1 != 0 && r.cr4 & 0x20 != 0 && r.efer & 0x400 == 0 {
            r.pdptrs = s.pointee.pdpte
            r.flags = 1
        }
        if hasDirectoryPointers { return try set(roost_kvm_set_sregs2, &r, "system registers") }
        var old = kvm_sregs()
        (old.cs, old.ds, old.es, old.fs, old.gs, old.ss) = (r.cs, r.ds, r.es, r.fs, r.gs, r.ss)
        (old.tr, old.ldt, old.gdt, old.idt) = (r.tr, r.ldt, r.gdt, r.idt)
        (old.cr0, old.cr2, old.cr3, old.cr4, old.cr8) = (r.cr0, r.cr2, r.cr3, r.cr4, r.cr8)
        (old.efer, old.apic_base) = (r.efer, r.apic_base)
        try set(roost_kvm_set_sregs, &old, "system registers")
    }

    private func storeSystem() throws(KVMError) {
        let s = cpu.state
        var r = kvm_sregs2()
        if hasDirectoryPointers {
            try set(roost_kvm_get_sregs2, &r, "system registers")
        } else {
            var old = kvm_sregs()
            try set(roost_kvm_get_sregs, &old, "system registers")
            (r.cs, r.ds, r.es, r.fs, r.gs, r.ss) = (old.cs, old.ds, old.es, old.fs, old.gs, old.ss)
            (r.tr, r.ldt, r.gdt, r.idt) = (old.tr, old.ldt, old.gdt, old.idt)
            (r.cr0, r.cr2, r.cr3, r.cr4, r.cr8) = (old.cr0, old.cr2, old.cr3, old.cr4, old.cr8)
            (r.efer, r.apic_base) = (old.efer, old.apic_base)
        }
        put(r.es, ROOST_ES)
        put(r.cs, ROOST_CS)
        put(r.ss, ROOST_SS)
        put(r.ds, ROOST_DS)
        put(r.fs, ROOST_FS)
        put(r.gs, ROOST_GS)
        put(r.ldt, ROOST_LDTR)
        put(r.tr, ROOST_TR)
        (s.pointee.gdtr_base, s.pointee.gdtr_limit) = (r.gdt.base, UInt32(r.gdt.limit))
        (s.pointee.idtr_base, s.pointee.idtr_limit) = (r.idt.base, UInt32(r.idt.limit))
        (s.pointee.cr0, s.pointee.cr2, s.pointee.cr3, s.pointee.cr4) = (r.cr0, r.cr2, r.cr3, r.cr4)
        (s.pointee.cr8, s.pointee.efer, s.pointee.apic_base) = (r.cr8, r.efer, r.apic_base)
        s.pointee.cpl = r.cr0 & 1 == 0 ? 0 : r.ss.dpl & 3
        if r.flags & 1 != 0 { s.pointee.pdpte = r.pdptrs }
    }

    // MARK: Events

    private func loadEvents() throws(KVMError) {
        let s = cpu.state
        var events = kvm_vcpu_events()
        // VALID_NMI_PENDING, VALID_SHADOW
        events.flags = 1 | 4
        events.nmi.pending = s.pointee.pending_nmi
        events.nmi.masked = s.pointee.nmi_blocked
        events.interrupt.shadow = s.pointee.interrupt_shadow == 0 ? 0 : s.pointee.interrupt_shadow == 1 ? 2 : 1
        s.pointee.pending_nmi = 0
        try set(roost_kvm_set_events, &events, "events")
        // KVM_MP_STATE_UNINITIALIZED, HALTED, RUNNABLE.
        var state = kvm_mp_state(mp_state: s.pointee.awaits_startup != 0 ? 1 : s.pointee.halted != 0 ? 3 : 0)
        s.pointee.halted = 0
        try set(roost_kvm_set_mp_state, &state, "halt state")
    }

    /// Exceptions and software interrupts on their way are raised anew by their instruction, which is still to come.
    private func storeEvents() throws(KVMError) -> KVMPendingEvent? {
        let s = cpu.state
        var events = kvm_vcpu_events()
        try set(roost_kvm_get_events, &events, "events")
        s.pointee.pending_nmi = events.nmi.pending | events.nmi.injected
        s.pointee.nmi_blocked = events.nmi.injected != 0 ? 0 : events.nmi.masked
        let shadow = events.interrupt.shadow
        s.pointee.interrupt_shadow = shadow & 1 != 0 ? 2 : shadow & 2 != 0 ? 1 : 0
        s.pointee.pending_debug = 0
        s.pointee.pending_fault = 0
        s.pointee.completed_count = 0
        s.pointee.completed_next = 0
        s.pointee.monitor_address = 0
        var state = kvm_mp_state()
        try set(roost_kvm_get_mp_state, &state, "halt state")
        s.pointee.halted = state.mp_state == 3 ? 1 : 0
        s.pointee.awaits_startup = state.mp_state == 1 || state.mp_state == 2 ? 1 : 0
        guard events.interrupt.injected != 0 && events.interrupt.soft == 0 else { return nil }
        return KVMPendingEvent(vector: events.interrupt.nr)
    }

    private func loadDebug() throws(KVMError) {
        let d = cpu.state.pointee.dr
        var registers = kvm_debugregs()
        registers.db = (d.0, d.1, d.2, d.3)
        (registers.dr6, registers.dr7) = (d.6, d.7)
        try set(roost_kvm_set_debugregs, &registers, "debug registers")
    }

    private func storeDebug() throws(KVMError) {
        var registers = kvm_debugregs()
        try set(roost_kvm_get_debugregs, &registers, "debug registers")
        let d = registers.db
        cpu.state.pointee.dr = (d.0, d.1, d.2, d.3, 0, 0, registers.dr6, registers.dr7)
    }

    // MARK: Whole

    /// Hands the state block's contents to the kernel's vCPU.
    public func loadState() throws(KVMError) {
        abandonExit()
        try loadSystem()
        try loadGeneral()
        try loadVectors()
        try loadDebug()
        try loadRegisters()
        try loadTimeStamp()
        try loadEvents()
    }

    /// Brings the state block up to date; only between instructions. What was on its way into the guest is returned.
    public func storeState() throws(KVMError) -> KVMPendingEvent? {
        try storeGeneral()
        try storeSystem()
        try storeVectors()
        try storeDebug()
        try storeRegisters()
        try storeTimeStamp()
        let event = try storeEvents()
        cpu.vcpu.flushTLB()
        cpu.vcpu.updateMode()
        return event
    }

    /// As much of the state as can be had, for a report.
    public func storeForReport() {
        try? storeGeneral()
        try? storeSystem()
        cpu.vcpu.updateMode()
    }
}
