// Control registers, EFER, reset and saved state (SDM 3A 2.5, 4.1, 10.1).
import CHost
import CPU
import DeviceModel
import GuestMemory
import Testing

@Suite("Control registers") struct ControlRegisterTests {
    @Test("Reset: 16-bit code at FFFFFFF0 (SDM 3A 10.1.4)")
    func reset() throws {
        let rig = try PagingRig()
        rig.v.reset()
        #expect(rig.s.pointee.cr0 == 0x6000_0010)
        #expect(rig.v.rflags == 2)
        #expect(rig.s.pointee.rip == 0xFFF0)
        #expect(rig.v.segment(1).pointee.base == 0xFFFF_0000)
        #expect(rig.v.segment(1).pointee.selector == 0xF000)
        #expect(rig.s.pointee.code_size == 2)
        #expect(rig.s.pointee.dr.6 == 0xFFFF_0FF0)
        #expect(rig.s.pointee.dr.7 == 0x400)
        #expect(rig.v.gpr[2] == UInt64(rig.s.pointee.signature))
    }

    @Test(
        "CR0: PG needs PE, NW needs CD, bits 63:32 are zero",
        arguments: [0x8000_0010, 0x2000_0011, 0x1_0000_0011] as [UInt64])
    func refusedCR0(value: UInt64) throws {
        let rig = try PagingRig()
        #expect(throws: CPUException.generalProtection(0)) { try rig.v.writeCR0(value) }
        #expect(rig.s.pointee.cr0 == 0x6000_0010)
    }

    @Test("IA-32e mode: PG with LME sets LMA, needs PAE; PAE can't be cleared in it")
    func longMode() throws {
        let rig = try PagingRig()
        try rig.v.writeEFER(0x100)
        #expect(throws: CPUException.generalProtection(0)) { try rig.v.writeCR0(0x8000_0011) }
        #expect(rig.s.pointee.efer == 0x100)
        try rig.v.writeCR4(0x20)
        try rig.v.writeCR0(0x8000_0011)
        #expect(rig.s.pointee.efer == 0x500)
        #expect(rig.s.pointee.long_mode == 1)
        #expect(throws: CPUException.generalProtection(0)) { try rig.v.writeCR4(0) }
        #expect(throws: CPUException.generalProtection(0)) { try rig.v.writeEFER(0) }
        #expect(throws: CPUException.generalProtection(0)) { try rig.v.writeCR4(0x1020) }
        try rig.v.writeCR0(0x11)
        #expect(rig.s.pointee.efer == 0x100)
        #expect(rig.s.pointee.long_mode == 0)
    }

    @Test("PCIDE: only in IA-32e mode with PCID 0; PG can't be cleared with it")
    func processContexts() throws {
        let rig = try PagingRig()
        #expect(throws: CPUException.generalProtection(0)) { try rig.v.writeCR4(0x2_0020) }
        rig.enter(long: true, cr4: 0x20, cr3: 0x10005)
        #expect(throws: CPUException.generalProtection(0)) { try rig.v.writeCR4(0x2_0020) }
        try rig.v.writeCR3(0x10000)
        try rig.v.writeCR4(0x2_0020)
        #expect(throws: CPUException.generalProtection(0)) { try rig.v.writeCR0(0x11) }
    }

    @Test("CR3: bit 63 only with PCIDE, address bits beyond MAXPHYADDR are reserved")
    func pageTableBase() throws {
        let rig = try PagingRig()
        rig.enter(long: true, cr4: 0x20)
        #expect(throws: CPUException.generalProtection(0)) { try rig.v.writeCR3(0x10000 | 1 << 63) }
        #expect(throws: CPUException.generalProtection(0)) { try rig.v.writeCR3(1 << 51) }
        #expect(rig.s.pointee.cr3 == 0x10000)
    }

    @Test("CR4 and EFER: bits of absent features are #GP(0)")
    func absentFeatures() throws {
        let rig = try PagingRig()
        rig.s.pointee.cr4_allowed = 0x20
        #expect(throws: CPUException.generalProtection(0)) { try rig.v.writeCR4(0x10_0000) }
        rig.s.pointee.efer_allowed = 0
        #expect(throws: CPUException.generalProtection(0)) { try rig.v.writeEFER(0x800) }
    }

    @Test("CR8: four bits, told to the machine as they are")
    func taskPriority() throws {
        let rig = try PagingRig()
        #expect(throws: CPUException.generalProtection(0)) { try rig.v.writeCR8(16) }
        #expect(throws: CPUException.exit) { try rig.v.writeCR8(9) }
        #expect(rig.s.pointee.exit_value == 9)
    }

    @Test("The mode from CS, CR0, EFER and RFLAGS")
    func modes() throws {
        let rig = try PagingRig()
        rig.enter(long: true, cr4: 0x20)
        #expect(rig.s.pointee.code_size == 8)
        #expect(rig.s.pointee.linear_mask == ~0)
        rig.v.segment(1).pointee.attributes = 0xC09B
        rig.v.updateMode()
        #expect(rig.s.pointee.code_size == 4)
        #expect(rig.s.pointee.linear_mask == 0xFFFF_FFFF)
        rig.v.segment(1).pointee.attributes = 0x809B
        rig.v.updateMode()
        #expect(rig.s.pointee.code_size == 2)
    }

    @Test("A saved state comes back whole; one that doesn't fit changes nothing")
    func savedState() throws {
        let rig = try PagingRig()
        try rig.longTables(0x20_0007)
        try rig.put64(0x99, 0x20_0000)
        rig.enter(long: true, cr4: 0x20)
        rig.v.gpr[5] = 0x1234
        rig.s.pointee.lstar = 0xFFFF_8000_0000_1000
        rig.s.pointee.dr.2 = 77
        var saved = rig.cpu.saveState()
        rig.v.reset()
        rig.s.pointee.cr4_allowed = 0x20
        #expect(throws: Never.self) { try rig.cpu.restoreState(saved) }
        #expect(rig.value(0x40_0000) == 0x99)
        #expect(rig.v.gpr[5] == 0x1234)
        #expect(rig.s.pointee.code_size == 8)
        var again = rig.cpu.saveState()
        again.timeStamp = saved.timeStamp
        #expect(again == saved)
        saved.version = 2
        #expect(throws: StateError.self) { try rig.cpu.restoreState(saved) }
        again.general = []
        #expect(throws: StateError.self) { try rig.cpu.restoreState(again) }
        #expect(rig.v.gpr[5] == 0x1234)
    }
}
