// A vCPU's state as plain data: what is architectural, nothing that is cached (law 3).
internal import CHost
public import DeviceModel

/// The whole state of a vCPU between two instructions.
public struct VCPUState: Codable, Sendable, Equatable {
    /// A segment register with its hidden part.
    public struct Segment: Codable, Sendable, Equatable {
        /// Base, as the hidden part holds it.
        public var base: UInt64
        /// Limit in bytes.
        public var limit: UInt32
        /// The visible part.
        public var selector: UInt16
        /// Access rights as VMX has them.
        public var attributes: UInt16
    }

    /// The layout's number.
    public var version = 1
    /// Name of the processor model.
    public var model: String
    /// RAX RCX RDX RBX RSP RBP RSI RDI R8 to R15.
    public var general: [UInt64]
    /// RIP.
    public var rip: UInt64
    /// RFLAGS whole.
    public var rflags: UInt64
    /// Current privilege level.
    public var cpl: UInt8
    /// ES CS SS DS FS GS LDTR TR.
    public var segments: [Segment]
    /// GDTR base and limit, IDTR base and limit.
    public var tables: [UInt64]
    /// CR0 CR2 CR3 CR4 CR8 XCR0 EFER.
    public var control: [UInt64]
    /// DR0 to DR7.
    public var debug: [UInt64]
    /// The PAE page-directory pointers.
    public var directoryPointers: [UInt64]
    /// STAR LSTAR CSTAR SFMASK KERNEL_GS_BASE SYSENTER_CS, _ESP, _EIP, PAT TSC_AUX APIC_BASE MISC_ENABLE XSS.
    public var registers: [UInt64]
    /// Default type, 11 fixed ranges, 8 bases, 8 masks.
    public var memoryTypes: [UInt64]
    /// The guest's time-stamp counter when it was saved.
    public var timeStamp: UInt64
    /// PKRU.
    public var protectionKeys: UInt32
    /// Generator of RDRAND: state and key.
    public var random: [UInt64]
    /// Halted, pending NMI, NMI blocked, interrupt shadow, pending fault, pending debug, interrupt window.
    public var events: [UInt8]
    /// Address that MONITOR armed.
    public var monitorAddress: UInt64
    /// Answers that an unfinished instruction already has.
    public var answers: [UInt64]
    /// Vector and x87 state, the standard XSAVE area.
    public var vectors: [UInt64]
}

extension VirtualCPU {
    private static var vectorWords: Int { 320 }

    /// Takes the state; the vCPU isn't running.
    public func saveState() -> VCPUState {
        let s = state
        let v = vcpu
        let answered = Int(min(s.pointee.completed_count, 16))
        let area = UnsafeRawPointer(roost_xsave_area(s)!)
        return VCPUState(
            model: model.name,
            general: (0..<16).map { v.gpr[$0] },
            rip: s.pointee.rip, rflags: v.rflags, cpl: s.pointee.cpl,
            segments: (0..<8).map {
                let g = v.segment($0).pointee
                return VCPUState.Segment(base: g.base, limit: g.limit, selector: g.selector, attributes: g.attributes)
            },
            tables: [
                s.pointee.gdtr_base, UInt64(s.pointee.gdtr_limit), s.pointee.idtr_base, UInt64(s.pointee.idtr_limit),
            ],
            control: [
                s.pointee.cr0, s.pointee.cr2, s.pointee.cr3, s.pointee.cr4, s.pointee.cr8, s.pointee.xcr0,
                s.pointee.efer,
            ],
            debug: (0..<8).map { roost_dr_at(s, $0).pointee },
            directoryPointers: (0..<4).map { roost_pdpte_at(s, $0).pointee },
            registers: [
                s.pointee.star, s.pointee.lstar, s.pointee.cstar, s.pointee.sfmask, s.pointee.kernel_gs_base,
                s.pointee.sysenter_cs, s.pointee.sysenter_esp, s.pointee.sysenter_eip, s.pointee.pat,
                s.pointee.tsc_aux, s.pointee.apic_base, s.pointee.misc_enable, s.pointee.xss,
            ],
            memoryTypes: [s.pointee.mtrr_default] + (0..<11).map { roost_mtrr_fixed_at(s, $0).pointee }
                + (0..<8).map { roost_mtrr_base_at(s, $0).pointee } + (0..<8).map { roost_mtrr_mask_at(s, $0).pointee },
            timeStamp: v.timeStamp, protectionKeys: s.pointee.pkru,
            random: [s.pointee.random_state, s.pointee.random_key],
            events: [
                s.pointee.halted, s.pointee.pending_nmi, s.pointee.nmi_blocked, s.pointee.interrupt_shadow,
                s.pointee.pending_fault, s.pointee.pending_debug, s.pointee.interrupt_window,
            ],
            monitorAddress: s.pointee.monitor_address,
            answers: (0..<answered).map { roost_completed_at(s, $0).pointee },
            vectors: (0..<Self.vectorWords).map { area.load(fromByteOffset: $0 * 8, as: UInt64.self) })
    }

    /// Puts a state back; throws, and changes nothing, when it doesn't fit this vCPU.
    public func restoreState(_ saved: VCPUState) throws(StateError) {
        try check(saved)
        let s = state
        let v = vcpu
        for n in 0..<16 { v.gpr[n] = saved.general[n] }
        s.pointee.rip = saved.rip
        v.rflags = saved.rflags
        s.pointee.cpl = saved.cpl
        for (n, g) in saved.segments.enumerated() {
            v.segment(n).pointee = roost_segment(
                base: g.base, limit: g.limit, selector: g.selector, attributes: g.attributes)
        }
        s.pointee.gdtr_base = saved.tables[0]
        s.pointee.gdtr_limit = UInt32(truncatingIfNeeded: saved.tables[1])
        s.pointee.idtr_base = saved.tables[2]
        s.pointee.idtr_limit = UInt32(truncatingIfNeeded: saved.tables[3])
        restoreControl(saved)
        restoreRegisters(saved)
        s.pointee.tsc_offset = saved.timeStamp &- v.rawCounter
        s.pointee.pkru = saved.protectionKeys
        (s.pointee.random_state, s.pointee.random_key) = (saved.random[0], saved.random[1])
        s.pointee.halted = saved.events[0]
        s.pointee.pending_nmi = saved.events[1]
        s.pointee.nmi_blocked = saved.events[2]
        s.pointee.interrupt_shadow = saved.events[3]
        s.pointee.pending_fault = saved.events[4]
        s.pointee.pending_debug = saved.events[5]
        s.pointee.interrupt_window = saved.events[6]
        s.pointee.monitor_address = saved.monitorAddress
        s.pointee.completed_count = UInt32(saved.answers.count)
        s.pointee.completed_next = 0
        for (n, value) in saved.answers.enumerated() { roost_completed_at(s, n).pointee = value }
        let area = UnsafeMutableRawPointer(roost_xsave_area(s)!)
        for (n, value) in saved.vectors.enumerated() {
            area.storeBytes(of: value, toByteOffset: n * 8, as: UInt64.self)
        }
        v.flushTLB()
        v.updateMode()
    }

    private func check(_ saved: VCPUState) throws(StateError) {
        if saved.version != 1 { throw StateError("vCPU state has version \(saved.version), not 1") }
        if saved.model != model.name { throw StateError("vCPU state is of a \(saved.model), this is a \(model.name)") }
        let counts = [
            saved.general.count == 16, saved.segments.count == 8, saved.tables.count == 4, saved.control.count == 7,
            saved.debug.count == 8, saved.directoryPointers.count == 4, saved.registers.count == 13,
            saved.memoryTypes.count == 28, saved.random.count == 2, saved.events.count == 7,
            saved.answers.count <= 16, saved.vectors.count == Self.vectorWords, saved.cpl <= 3,
        ]
        if counts.contains(false) { throw StateError("vCPU state is incomplete") }
        if saved.control[3] & ~state.pointee.cr4_allowed != 0 || saved.control[5] & ~state.pointee.xcr0_allowed != 0
            || saved.control[6] & ~state.pointee.efer_allowed != 0
        {
            throw StateError("vCPU state uses features that the \(model.name) model lacks")
        }
    }

    private func restoreControl(_ saved: VCPUState) {
        let s = state
        s.pointee.cr0 = saved.control[0]
        s.pointee.cr2 = saved.control[1]
        s.pointee.cr3 = saved.control[2]
        s.pointee.cr4 = saved.control[3]
        s.pointee.cr8 = saved.control[4]
        s.pointee.xcr0 = saved.control[5]
        s.pointee.efer = saved.control[6]
        for n in 0..<8 { roost_dr_at(s, n).pointee = saved.debug[n] }
        for n in 0..<4 { roost_pdpte_at(s, n).pointee = saved.directoryPointers[n] }
    }

    private func restoreRegisters(_ saved: VCPUState) {
        let s = state
        let r = saved.registers
        (s.pointee.star, s.pointee.lstar, s.pointee.cstar, s.pointee.sfmask) = (r[0], r[1], r[2], r[3])
        s.pointee.kernel_gs_base = r[4]
        (s.pointee.sysenter_cs, s.pointee.sysenter_esp, s.pointee.sysenter_eip) = (r[5], r[6], r[7])
        (s.pointee.pat, s.pointee.tsc_aux, s.pointee.apic_base) = (r[8], r[9], r[10])
        (s.pointee.misc_enable, s.pointee.xss) = (r[11], r[12])
        s.pointee.mtrr_default = saved.memoryTypes[0]
        for n in 0..<11 { roost_mtrr_fixed_at(s, n).pointee = saved.memoryTypes[1 + n] }
        for n in 0..<8 {
            roost_mtrr_base_at(s, n).pointee = saved.memoryTypes[12 + n]
            roost_mtrr_mask_at(s, n).pointee = saved.memoryTypes[20 + n]
        }
    }
}
