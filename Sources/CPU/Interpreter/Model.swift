// Instructions whose answer is the processor model's: CPUID, MSRs, time stamps, random numbers, XCR0, PKRU.
internal import CHost

extension VCPU {
    /// The processor-model instructions.
    @inline(never)
    package func executeModel(_ i: UnsafePointer<Instruction>) throws(CPUException) {
        switch i.pointee.operation {
        case .cpuid: cpuid()
        case .rdtsc: try readTimeStamp(auxiliary: false)
        case .rdtscp: try readTimeStamp(auxiliary: true)
        case .rdpid: writeSized(i.pointee.rm, s.pointee.tsc_aux, i.pointee.operandSize)
        case .rdrand, .rdseed: random(i)
        case .rdmsr: try readModelRegister()
        case .wrmsr: try writeModelRegister()
        case .xgetbv: try readExtendedControl()
        case .xsetbv: try writeExtendedControl()
        case .rdpkru, .wrpkru: try accessPKRU(write: i.pointee.operation == .wrpkru)
        case .clflush, .clflushopt, .clwb:
            let _: UInt8 = try load(Int(i.pointee.segment), effectiveAddress(i))
        case .monitor: try monitor(i)
        case .mwait: try monitorWait()
        default:
            // RDPMC: no counters.
            throw .generalProtection(0)
        }
    }

    private func split(_ value: UInt64) {
        gpr[0] = value & 0xFFFF_FFFF
        gpr[2] = value >> 32
    }

    private var joined: UInt64 { (gpr[2] << 32) | (gpr[0] & 0xFFFF_FFFF) }

    private func cpuid() {
        var (a, b, c, d): (UInt32, UInt32, UInt32, UInt32) = (0, 0, 0, 0)
        if let table = s.pointee.cpuid_table {
            CPUIDTable.look(
                table, Int(s.pointee.cpuid_count), UInt32(truncatingIfNeeded: gpr[0]),
                UInt32(truncatingIfNeeded: gpr[1]), &a, &b, &c, &d)
        }
        let leaf = UInt32(truncatingIfNeeded: gpr[0])
        let sub = UInt32(truncatingIfNeeded: gpr[1])
        if leaf == 1 && c & 1 << 26 != 0 && s.pointee.cr4 & 0x4_0000 != 0 { c |= 1 << 27 }
        if leaf == 7 && sub == 0 && c & 8 != 0 && s.pointee.cr4 & 0x40_0000 != 0 { c |= 16 }
        if leaf == 0xD && sub == 0 { b = ExtendedState.standardSize(s.pointee.xcr0) }
        if leaf == 0xD && sub == 1 && a & 2 != 0 { b = ExtendedState.compactedSize(s.pointee.xcr0) }
        gpr[0] = UInt64(a)
        gpr[3] = UInt64(b)
        gpr[1] = UInt64(c)
        gpr[2] = UInt64(d)
    }

    /// The guest's time-stamp counter now.
    package var timeStamp: UInt64 { rawCounter &+ s.pointee.tsc_offset }

    private func readTimeStamp(auxiliary: Bool) throws(CPUException) {
        if s.pointee.cr4 & 4 != 0 && s.pointee.cpl != 0 { throw .generalProtection(0) }
        // The count of instructions is exact only where the engine is left.
        let isVirtual = s.pointee.virtual_clock != 0
        split(isVirtual ? try answer(.readMSR, address: 0x10, size: 8, value: 0) : timeStamp)
        if auxiliary { gpr[1] = s.pointee.tsc_aux & 0xFFFF_FFFF }
    }

    /// RDRAND and RDSEED: a generator seeded through the door, so that a run can be repeated.
    private func random(_ i: UnsafePointer<Instruction>) {
        s.pointee.random_state = s.pointee.random_state &+ 0x9E37_79B9_7F4A_7C15
        var z = s.pointee.random_state ^ s.pointee.random_key
        z = (z ^ (z >> 30)) &* 0xBF58_476D_1CE4_E5B9
        z = (z ^ (z >> 27)) &* 0x94D0_49BB_1331_11EB
        writeSized(i.pointee.rm, z ^ (z >> 31), i.pointee.operandSize)
        s.pointee.arithmetic_flags = 0x100
    }

    private func readExtendedControl() throws(CPUException) {
        if s.pointee.cr4 & 0x4_0000 == 0 { throw .invalidOpcode }
        switch gpr[1] & 0xFFFF_FFFF {
        case 0: split(s.pointee.xcr0)
        case 1: split(s.pointee.xcr0)  // all in use
        default: throw .generalProtection(0)
        }
    }

    private func writeExtendedControl() throws(CPUException) {
        if s.pointee.cr4 & 0x4_0000 == 0 { throw .invalidOpcode }
        let value = joined
        if s.pointee.cpl != 0 || gpr[1] & 0xFFFF_FFFF != 0 || value & 1 == 0 || value & ~s.pointee.xcr0_allowed != 0
            || value & 6 == 4
        {
            throw .generalProtection(0)
        }
        s.pointee.xcr0 = value
        updateMode()
    }

    private func accessPKRU(write: Bool) throws(CPUException) {
        if s.pointee.cr4 & 0x40_0000 == 0 { throw .invalidOpcode }
        if gpr[1] & 0xFFFF_FFFF != 0 || (write && gpr[2] & 0xFFFF_FFFF != 0) { throw .generalProtection(0) }
        if write {
            setPKRU(UInt32(truncatingIfNeeded: gpr[0]))
        } else {
            split(UInt64(s.pointee.pkru))
        }
    }

    /// Sets PKRU: translations hold what it allowed.
    package func setPKRU(_ value: UInt32) {
        if value == s.pointee.pkru { return }
        s.pointee.pkru = value
        flushTLB()
    }

    private func monitor(_ i: UnsafePointer<Instruction>) throws(CPUException) {
        if s.pointee.cpl != 0 { throw .invalidOpcode }
        if gpr[1] & 0xFFFF_FFFF != 0 { throw .generalProtection(0) }
        let offset = truncateAddress(gpr[0], i.pointee.addressSize)
        let _: UInt8 = try load(Int(i.pointee.segment), offset)
        s.pointee.monitor_address = linearAddress(Int(i.pointee.segment), offset)
    }

    /// MWAIT: as HLT; a wakeup without cause is allowed. There are no extensions (CPUID.05H:ECX is 0).
    private func monitorWait() throws(CPUException) {
        if s.pointee.cpl != 0 { throw .invalidOpcode }
        if gpr[1] & 0xFFFF_FFFF != 0 { throw .generalProtection(0) }
        s.pointee.monitor_address = 0
        if s.pointee.rflags & 0x200 == 0 { return }
        s.pointee.exit_kind = ExitKind.halt.rawValue
        throw .exit
    }
}

/// Lookup in the flat CPUID table: (leaf, subleaf, EAX, EBX, ECX, EDX) each.
enum CPUIDTable {
    static func look(
        _ table: UnsafePointer<UInt32>, _ count: Int, _ leaf: UInt32, _ sub: UInt32,
        _ a: inout UInt32, _ b: inout UInt32, _ c: inout UInt32, _ d: inout UInt32
    ) {
        for n in 0..<count {
            let row = table + n * 6
            if row[0] == leaf && (row[1] == sub || row[1] == ~0) {
                (a, b, c, d) = (row[2], row[3], row[4], row[5])
                return
            }
        }
    }
}
