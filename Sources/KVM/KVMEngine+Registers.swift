// Vector state, model-specific registers, the time-stamp counter and the local APIC, in and out.
internal import CHost
internal import CPU
internal import HostOS

/// The kernel's local APIC as its register page shows it.
///
/// - Spec: SDM 3A 11.4.1, table 11-1: register n stands at offset n * 16.
public struct KVMLocalAPIC: Sendable, Equatable {
    /// The 64 registers.
    public var registers: [UInt32]
    /// IA32_TSC_DEADLINE.
    public var deadline: UInt64

    /// Makes one of its parts.
    public init(registers: [UInt32], deadline: UInt64) {
        self.registers = registers
        self.deadline = deadline
    }
}

extension KVMEngine {
    // MARK: Vectors

    /// Where the host keeps PKRU in the standard form.
    private static let protectionKeysOffset: Int? = {
        var (a, b, c, d): (UInt32, UInt32, UInt32, UInt32) = (0, 0, 0, 0)
        roost_cpuid(0xD, 9, &a, &b, &c, &d)
        return a == 4 || a == 8 ? Int(b) : nil
    }()

    func loadVectors() throws(KVMError) {
        let area = UnsafeMutableRawPointer.allocate(byteCount: 4096, alignment: 64)
        defer { area.deallocate() }
        area.initializeMemory(as: UInt8.self, repeating: 0, count: 4096)
        let state = cpu.state
        // x87, SSE and AVX stand where the block has them; the header says that all are in use.
        area.copyMemory(from: roost_xsave_area(state), byteCount: 832)
        let avx: UInt64 = state.pointee.xcr0_allowed & 4
        var components: UInt64 = 3 | avx
        if let place = Self.protectionKeysOffset, state.pointee.xcr0_allowed & 0x200 != 0, place <= 4088 {
            area.storeBytes(of: UInt64(state.pointee.pkru), toByteOffset: place, as: UInt64.self)
            components |= 0x200
        }
        (area + 512).initializeMemory(as: UInt8.self, repeating: 0, count: 64)
        area.storeBytes(of: components, toByteOffset: 512, as: UInt64.self)
        var control = kvm_xcrs()
        control.nr_xcrs = 1
        control.xcrs.0.value = state.pointee.xcr0
        if state.pointee.xcr0_allowed > 3 || state.pointee.features & 1 << UInt64(CPUFeature.xsave.rawValue) != 0 {
            try set(roost_kvm_set_xcrs, &control, "XCR0")
        }
        try set(roost_kvm_set_xsave, area, "vector registers")
    }

    func storeVectors() throws(KVMError) {
        let area = UnsafeMutableRawPointer.allocate(byteCount: 4096, alignment: 64)
        defer { area.deallocate() }
        area.initializeMemory(as: UInt8.self, repeating: 0, count: 4096)
        try set(roost_kvm_get_xsave, area, "vector registers")
        let state = cpu.state
        let block = UnsafeMutableRawPointer(roost_xsave_area(state)!)
        let components = area.load(fromByteOffset: 512, as: UInt64.self)
        // A component that the header leaves out is in its initial state.
        if components & 1 != 0 {
            block.copyMemory(from: area, byteCount: 24)
            (block + 32).copyMemory(from: area + 32, byteCount: 128)
        } else {
            (block + 0).initializeMemory(as: UInt8.self, repeating: 0, count: 24)
            block.storeBytes(of: 0x37F, as: UInt16.self)
            (block + 32).initializeMemory(as: UInt8.self, repeating: 0, count: 128)
        }
        block.storeBytes(of: area.load(fromByteOffset: 24, as: UInt32.self), toByteOffset: 24, as: UInt32.self)
        copy(area, block, at: 160, count: 256, isThere: components & 2 != 0)
        copy(area, block, at: 576, count: 256, isThere: components & 4 != 0)
        if let place = Self.protectionKeysOffset, place <= 4088 {
            state.pointee.pkru = components & 0x200 != 0 ? area.load(fromByteOffset: place, as: UInt32.self) : 0
        }
        var control = kvm_xcrs()
        try set(roost_kvm_get_xcrs, &control, "XCR0")
        if control.nr_xcrs > 0 { state.pointee.xcr0 = control.xcrs.0.value }
    }

    private func copy(
        _ from: UnsafeMutableRawPointer, _ to: UnsafeMutableRawPointer, at offset: Int, count: Int, isThere: Bool
    ) {
        if isThere {
            (to + offset).copyMemory(from: from + offset, byteCount: count)
        } else {
            (to + offset).initializeMemory(as: UInt8.self, repeating: 0, count: count)
        }
    }

    // MARK: Model-specific registers

    /// Registers that stand in the state block, by number.
    private static var registers: [(number: UInt32, place: WritableKeyPath<roost_vcpu, UInt64>)] {
        [
            (0x174, \.sysenter_cs), (0x175, \.sysenter_esp), (0x176, \.sysenter_eip), (0x1A0, \.misc_enable),
            (0x277, \.pat), (0x2FF, \.mtrr_default), (0xDA0, \.xss), (0xC000_0081, \.star), (0xC000_0082, \.lstar),
            (0xC000_0083, \.cstar), (0xC000_0084, \.sfmask), (0xC000_0102, \.kernel_gs_base),
            (0xC000_0103, \.tsc_aux),
        ]
    }

    /// Fixed ranges of the MTRRs.
    private static let fixedRanges: [UInt32] = [
        0x250, 0x258, 0x259, 0x268, 0x269, 0x26A, 0x26B, 0x26C, 0x26D, 0x26E, 0x26F,
    ]

    func loadRegisters() throws(KVMError) {
        let s = cpu.state
        var values = Self.registers.map { ($0.number, s.pointee[keyPath: $0.place]) }
        for (n, number) in Self.fixedRanges.enumerated() { values.append((number, roost_mtrr_fixed_at(s, n).pointee)) }
        for n in 0..<8 {
            values.append((0x200 + UInt32(n) * 2, roost_mtrr_base_at(s, n).pointee))
            values.append((0x201 + UInt32(n) * 2, roost_mtrr_mask_at(s, n).pointee))
        }
        writeRegisters(values)
    }

    func storeRegisters() throws(KVMError) {
        let s = cpu.state
        for (number, place) in Self.registers {
            if let value = readRegister(number) { s.pointee[keyPath: place] = value }
        }
        for (n, number) in Self.fixedRanges.enumerated() {
            if let value = readRegister(number) { roost_mtrr_fixed_at(s, n).pointee = value }
        }
        for n in 0..<8 {
            if let value = readRegister(0x200 + UInt32(n) * 2) { roost_mtrr_base_at(s, n).pointee = value }
            if let value = readRegister(0x201 + UInt32(n) * 2) { roost_mtrr_mask_at(s, n).pointee = value }
        }
    }

    /// Writes registers; those that the model or the kernel lacks stay as they are.
    public func writeRegisters(_ values: [(number: UInt32, value: UInt64)]) {
        let list = UnsafeMutablePointer<roost_kvm_msrs>.allocate(capacity: 1)
        defer { list.deallocate() }
        var rest = values.prefix(Int(ROOST_KVM_MSR_ENTRIES))
        while !rest.isEmpty {
            list.initialize(to: roost_kvm_msrs())
            list.pointee.count = UInt32(rest.count)
            for (n, entry) in rest.enumerated() {
                roost_kvm_msr_at(list, UInt32(n))!.pointee = kvm_msr_entry(
                    index: entry.number, reserved: 0, data: entry.value)
            }
            // The kernel stops at the first one that it refuses.
            let done = max(0, descriptor.controlOrErrno(roost_kvm_set_msrs, list))
            rest = rest.dropFirst(Int(done) + 1)
        }
    }

    /// Reads a register; nil if the model or the kernel lacks it.
    public func readRegister(_ number: UInt32) -> UInt64? {
        let list = UnsafeMutablePointer<roost_kvm_msrs>.allocate(capacity: 1)
        defer { list.deallocate() }
        list.initialize(to: roost_kvm_msrs())
        list.pointee.count = 1
        roost_kvm_msr_at(list, 0)!.pointee.index = number
        guard descriptor.controlOrErrno(roost_kvm_get_msrs, list) == 1 else { return nil }
        return roost_kvm_msr_at(list, 0)!.pointee.data
    }

    // MARK: The time-stamp counter

    private func offset(_ request: UInt64, _ value: inout UInt64) -> Bool {
        withUnsafeMutablePointer(to: &value) { pointer in
            var attribute = kvm_device_attr()
            attribute.addr = UInt64(UInt(bitPattern: pointer))
            return descriptor.controlOrErrno(request, &attribute) >= 0
        }
    }

    /// The block's offset is the kernel's: what to add to the host's counter.
    func loadTimeStamp() throws(KVMError) {
        var value = cpu.state.pointee.tsc_offset
        if offset(roost_kvm_set_attribute, &value) { return }
        writeRegisters([(0x10, cpu.vcpu.timeStamp)])
    }

    func storeTimeStamp() throws(KVMError) {
        var value: UInt64 = 0
        if offset(roost_kvm_get_attribute, &value) {
            cpu.state.pointee.tsc_offset = value
        } else if let counter = readRegister(0x10) {
            cpu.state.pointee.tsc_offset = counter &- cpu.vcpu.rawCounter
        }
    }

    // MARK: The local APIC

    /// Takes the local APIC's registers.
    public func localAPIC() throws(KVMError) -> KVMLocalAPIC {
        var page = kvm_lapic_state()
        try set(roost_kvm_get_lapic, &page, "local APIC")
        let registers = withUnsafeBytes(of: &page) { bytes in
            (0..<64).map { bytes.loadUnaligned(fromByteOffset: $0 * 16, as: UInt32.self) }
        }
        return KVMLocalAPIC(registers: registers, deadline: readRegister(0x6E0) ?? 0)
    }

    /// Puts the local APIC's registers, after `loadState`, which sets its base.
    public func setLocalAPIC(_ apic: KVMLocalAPIC) throws(KVMError) {
        var page = kvm_lapic_state()
        withUnsafeMutableBytes(of: &page) { bytes in
            for (n, value) in apic.registers.prefix(64).enumerated() {
                bytes.storeBytes(of: value, toByteOffset: n * 16, as: UInt32.self)
            }
        }
        try set(roost_kvm_set_lapic, &page, "local APIC")
        writeRegisters([(0x6E0, apic.deadline)])
    }
}
