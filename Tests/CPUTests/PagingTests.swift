// Page walks, access rights and the TLB, from SDM 3A chapter 4. Tables are written by the tests, accesses go through the
// handlers' own `load` and `store`.
import CHost
import CPU
import GuestMemory
import Testing

/// A vCPU with flat segments and page tables from 0x10000 up.
struct PagingRig {
    /// CR4 bits.
    static let pse: UInt64 = 0x10, pae: UInt64 = 0x20, pge: UInt64 = 0x80, la57: UInt64 = 0x1000
    static let pcide: UInt64 = 0x2_0000, smep: UInt64 = 0x10_0000, smap: UInt64 = 0x20_0000, pke: UInt64 = 0x40_0000

    let cpu = VirtualCPU(id: 0)
    let memory: GuestMemory
    var v: VCPU { cpu.vcpu }
    var s: UnsafeMutablePointer<roost_vcpu> { cpu.state }

    init() throws {
        memory = try GuestMemory(size: 0x80_0000)
        cpu.attach(memory: memory)
        v.reset()
        s.pointee.cr4_allowed = ~0 & 0x7F_FFFF
    }

    /// Puts a mode into force: CR0.PG and WP on.
    func enter(long: Bool, cr4: UInt64, cr3: UInt64 = 0x10000, noExecute: Bool = true) {
        s.pointee.cr0 = 0x8001_0031
        s.pointee.cr4 = cr4
        s.pointee.cr3 = cr3
        s.pointee.efer = (long ? 0x500 : 0) | (noExecute ? 0x800 : 0)
        for n in 0..<6 { v.segment(n).pointee = roost_segment(base: 0, limit: ~0, selector: 8, attributes: 0xC093) }
        v.segment(1).pointee.attributes = long ? 0xA09B : 0xC09B
        level(0)
        v.flushTLB()
    }

    func level(_ cpl: UInt8, ac: Bool = false) {
        s.pointee.cpl = cpl
        v.rflags = ac ? 0x4_0002 : 2
        v.updateMode()
    }

    func put64(_ value: UInt64, _ address: UInt64) throws { try memory.store(value, at: GuestPhysicalAddress(address)) }
    func put32(_ value: UInt32, _ address: UInt64) throws { try memory.store(value, at: GuestPhysicalAddress(address)) }
    func get64(_ address: UInt64) throws -> UInt64 { try memory.load(GuestPhysicalAddress(address)) }
    func get32(_ address: UInt64) throws -> UInt32 { try memory.load(GuestPhysicalAddress(address)) }

    /// 4-level tables: linear 0x40_0000 to 0x40_2000 by 4 KiB pages, entries at 0x13000.
    func longTables(_ entry: UInt64, second: UInt64 = 0) throws {
        try put64(0x11007, 0x10000)
        try put64(0x12007, 0x11000)
        try put64(0x13007, 0x12010)
        try put64(entry, 0x13000)
        try put64(second, 0x13008)
    }

    /// What a load throws, nil if nothing.
    func read(_ linear: UInt64) -> CPUException? {
        do throws(CPUException) {
            _ = try v.load(3, linear, as: UInt8.self)
            return nil
        } catch { return error }
    }

    func value(_ linear: UInt64) -> UInt64? { try? v.load(3, linear, as: UInt64.self) }

    func write(_ linear: UInt64, _ value: UInt64 = 0x55) -> CPUException? {
        do throws(CPUException) {
            try v.store(3, linear, UInt8(truncatingIfNeeded: value))
            return nil
        } catch { return error }
    }

    func fetch(_ linear: UInt64) -> CPUException? {
        do throws(CPUException) {
            _ = try v.translateFetch(linear)
            return nil
        } catch { return error }
    }
}

@Suite("Paging") struct PagingTests {
    @Test("2-level: 4 KiB pages; A in both entries, D only by a write (SDM 3A 4.3, 4.8)")
    func twoLevel() throws {
        let rig = try PagingRig()
        try rig.put32(0x11007, 0x10004)
        try rig.put32(0x20_0007, 0x11000)
        try rig.put64(0x1122_3344_5566_7788, 0x20_0010)
        rig.enter(long: false, cr4: 0)
        #expect(rig.value(0x40_0010) == 0x1122_3344_5566_7788)
        #expect(try rig.get32(0x10004) == 0x11027)
        #expect(try rig.get32(0x11000) == 0x20_0027)
        #expect(rig.write(0x40_0010) == nil)
        #expect(try rig.get32(0x11000) == 0x20_0067)
        #expect(rig.read(0x40_1000) == .pageFault(0))
        #expect(rig.s.pointee.cr2 == 0x40_1000)
        #expect(rig.write(0x80_0123) == .pageFault(2))
        #expect(rig.s.pointee.cr2 == 0x80_0123)
    }

    @Test("PSE: 4 MiB pages only with CR4.PSE; bit 21 is reserved (SDM 3A table 4-4)")
    func largeLegacy() throws {
        let rig = try PagingRig()
        try rig.put32(0x40_0087, 0x10004)
        try rig.put64(0xABCD, 0x50_0000)
        rig.enter(long: false, cr4: PagingRig.pse)
        #expect(rig.value(0x50_0000) == 0xABCD)
        #expect(try rig.get32(0x10004) == 0x40_00A7)
        try rig.put32(0x60_0087, 0x10004)
        rig.v.flushPage(0x50_0000)
        #expect(rig.read(0x50_0000) == .pageFault(9))
    }

    @Test("PSE-36: bits 20:13 are physical 39:32")
    func pse36() throws {
        let rig = try PagingRig()
        // 4 GiB + 4 MiB: outside RAM, so the access leaves as MMIO at that address.
        try rig.put32(0x40_0087 | 1 << 13, 0x10004)
        rig.enter(long: false, cr4: PagingRig.pse)
        #expect(rig.read(0x40_0123) == .exit)
        #expect(rig.s.pointee.exit_address == 0x1_0040_0123)
    }

    @Test("PAE: pointers are registers, loaded by MOV CR3; reserved bits are #GP(0) (SDM 3A 4.4.1)")
    func pae() throws {
        let rig = try PagingRig()
        try rig.put64(0x11001, 0x10020)
        try rig.put64(0x12007, 0x11010)
        try rig.put64(0x20_0007, 0x12000)
        try rig.put64(0x77, 0x20_0000)
        rig.enter(long: false, cr4: PagingRig.pae)
        #expect(throws: Never.self) { try rig.v.writeCR3(0x10020) }
        #expect(rig.value(0x40_0000) == 0x77)
        // A store to the table changes nothing until CR3 is loaded again.
        try rig.put64(0, 0x10020)
        rig.v.flushTLB()
        #expect(rig.value(0x40_0000) == 0x77)
        #expect(throws: Never.self) { try rig.v.writeCR3(0x10020) }
        #expect(rig.read(0x40_0000) == .pageFault(0))
        for bit in [1, 2, 5, 8, 63] as [UInt64] {
            try rig.put64(0x11001 | 1 << bit, 0x10020)
            #expect(throws: CPUException.generalProtection(0)) { try rig.v.writeCR3(0x10020) }
        }
        // XD without NXE is reserved, and bits 62:52 always.
        try rig.put64(0x11001, 0x10020)
        try rig.put64(0x20_0007 | 1 << 60, 0x12000)
        try rig.v.writeCR3(0x10020)
        #expect(rig.read(0x40_0000) == .pageFault(9))
    }

    @Test("4-level: 4 KiB, 2 MiB and 1 GiB pages")
    func fourLevel() throws {
        let rig = try PagingRig()
        try rig.longTables(0x20_0007)
        try rig.put64(0x40_0087, 0x12018)
        try rig.put64(0x87, 0x11008)
        try rig.put64(1, 0x20_0008)
        try rig.put64(2, 0x41_0008)
        rig.enter(long: true, cr4: PagingRig.pae)
        #expect(rig.value(0x40_0008) == 1)
        #expect(rig.value(0x61_0008) == 2)
        #expect(rig.value(0x4020_0008) == 1)
        #expect(try rig.get64(0x10000) == 0x11027)
        #expect(try rig.get64(0x11008) == 0xA7)
        #expect(try rig.get64(0x12018) == 0x40_00A7)
        // Reserved: bits between the flags and the frame of a large page, PS in the top level.
        try rig.put64(0x40_2087, 0x12018)
        rig.v.flushTLB()
        #expect(rig.read(0x60_0000) == .pageFault(9))
        try rig.put64(0x11087, 0x10000)
        rig.v.flushTLB()
        #expect(rig.write(0x40_0000) == .pageFault(11))
    }

    @Test("5-level: CR4.LA57 adds a level, canonical is 57 bits")
    func fiveLevel() throws {
        let rig = try PagingRig()
        try rig.longTables(0x20_0007)
        try rig.put64(0x10007, 0x14008)
        try rig.put64(9, 0x20_0000)
        rig.enter(long: true, cr4: PagingRig.pae | PagingRig.la57, cr3: 0x14000)
        #expect(rig.value(0x1_0000_0040_0000) == 9)
        #expect(rig.read(0x40_0000) == .pageFault(0))
        #expect(rig.read(1 << 57) == .generalProtection(0))
    }

    @Test("Non-canonical addresses: #GP(0), #SS(0) through SS")
    func canonical() throws {
        let rig = try PagingRig()
        try rig.longTables(0x20_0007)
        rig.enter(long: true, cr4: PagingRig.pae)
        #expect(rig.read(0x8000_0000_0000) == .generalProtection(0))
        #expect(rig.fetch(0x8000_0000_0000) == .generalProtection(0))
        #expect(throws: CPUException.stackFault(0)) { _ = try rig.v.load(2, 0x8000_0000_0000, as: UInt8.self) }
    }

    @Test(
        "Error codes of rights at CPL 3 and 0 (SDM 3A 4.6, 4.7)",
        arguments: [
            // entry bits, CPL, write, code
            (7, 3, true, nil), (5, 3, false, nil), (5, 3, true, 7), (3, 3, false, 5), (3, 3, true, 7), (0, 3, true, 6),
            (0, 3, false, 4), (1, 0, true, 3), (1, 0, false, nil), (5, 0, true, 3), (3, 0, true, nil),
        ] as [(UInt64, UInt8, Bool, UInt32?)])
    func rights(bits: UInt64, cpl: UInt8, isWrite: Bool, code: UInt32?) throws {
        let rig = try PagingRig()
        try rig.longTables(0x20_0000 | bits)
        rig.enter(long: true, cr4: PagingRig.pae)
        rig.level(cpl)
        let fault = isWrite ? rig.write(0x40_0000) : rig.read(0x40_0000)
        #expect(fault == code.map { .pageFault($0) })
        // A fault sets no D bit.
        if fault != nil { #expect(try rig.get64(0x13000) & 0x40 == 0) }
    }

    @Test("CR0.WP clear: the supervisor writes read-only pages, the user doesn't")
    func writeProtect() throws {
        let rig = try PagingRig()
        try rig.longTables(0x20_0005)
        rig.enter(long: true, cr4: PagingRig.pae)
        try rig.v.writeCR0(0x8000_0031)
        #expect(rig.write(0x40_0000) == nil)
        rig.level(3)
        #expect(rig.write(0x40_0000) == .pageFault(7))
        rig.level(0)
        try rig.v.writeCR0(0x8001_0031)
        #expect(rig.write(0x40_0000) == .pageFault(3))
    }

    @Test("Execute-disable, SMEP: fetches fault with I set")
    func fetches() throws {
        let rig = try PagingRig()
        try rig.longTables(0x20_0007 | 1 << 63, second: 0x20_1007)
        rig.enter(long: true, cr4: PagingRig.pae)
        #expect(rig.fetch(0x40_0000) == .pageFault(0x11))
        #expect(rig.fetch(0x40_1000) == nil)
        #expect(rig.fetch(0x40_2000) == .pageFault(0x10))
        try rig.v.writeCR4(PagingRig.pae | PagingRig.smep)
        #expect(rig.fetch(0x40_1000) == .pageFault(0x11))
        rig.level(3)
        #expect(rig.fetch(0x40_1000) == nil)
        rig.enter(long: true, cr4: PagingRig.pae, noExecute: false)
        #expect(rig.fetch(0x40_0000) == .pageFault(9))
    }

    @Test("SMAP: user pages need EFLAGS.AC; implicit accesses ignore it")
    func supervisorAccessPrevention() throws {
        let rig = try PagingRig()
        try rig.longTables(0x20_0007)
        rig.enter(long: true, cr4: PagingRig.pae | PagingRig.smap)
        #expect(rig.read(0x40_0000) == .pageFault(1))
        #expect(rig.write(0x40_0000) == .pageFault(3))
        #expect(try rig.get64(0x13000) & 0x40 == 0)
        rig.level(0, ac: true)
        #expect(rig.write(0x40_0000) == nil)
        #expect(throws: CPUException.pageFault(1)) {
            let _: UInt8 = try rig.v.loadLinear(0x40_0000, supervisor: true)
        }
        rig.level(0)
        #expect(rig.read(0x40_0000) == .pageFault(1))
        rig.level(3)
        #expect(rig.read(0x40_0000) == nil)
    }

    @Test("Protection keys: AD and WD, the supervisor's writes only with CR0.WP (SDM 3A 4.6.2)")
    func protectionKeys() throws {
        let rig = try PagingRig()
        try rig.longTables(0x20_0007 | 5 << 59)
        rig.enter(long: true, cr4: PagingRig.pae | PagingRig.pke)
        rig.level(3)
        #expect(rig.write(0x40_0000) == nil)
        rig.v.setPKRU(2 << 10)
        #expect(rig.read(0x40_0000) == nil)
        #expect(rig.write(0x40_0000) == .pageFault(0x27))
        rig.v.setPKRU(1 << 10)
        #expect(rig.read(0x40_0000) == .pageFault(0x25))
        #expect(rig.fetch(0x40_0000) == nil)
        rig.level(0)
        #expect(rig.read(0x40_0000) == .pageFault(0x21))
        rig.v.setPKRU(2 << 10)
        try rig.v.writeCR0(0x8000_0031)
        #expect(rig.write(0x40_0000) == nil)
        // Supervisor pages have no key.
        try rig.longTables(0x20_0003 | 5 << 59)
        rig.v.setPKRU(3 << 10)
        #expect(rig.write(0x40_0000) == nil)
    }

    @Test("MOV CR3 flushes, global pages stay; INVLPG flushes them too (SDM 3A 4.10.4)")
    func globals() throws {
        let rig = try PagingRig()
        try rig.longTables(0x20_0107, second: 0x20_1007)
        try rig.put64(1, 0x20_0000)
        try rig.put64(2, 0x20_1000)
        try rig.put64(3, 0x20_2000)
        rig.enter(long: true, cr4: PagingRig.pae | PagingRig.pge)
        #expect(rig.value(0x40_0000) == 1)
        #expect(rig.value(0x40_1000) == 2)
        try rig.put64(0x20_2107, 0x13000)
        try rig.put64(0x20_2007, 0x13008)
        #expect(rig.value(0x40_0000) == 1)
        #expect(rig.value(0x40_1000) == 2)
        try rig.v.writeCR3(0x10000)
        #expect(rig.value(0x40_0000) == 1)
        #expect(rig.value(0x40_1000) == 3)
        rig.v.flushPage(0x40_0000)
        #expect(rig.value(0x40_0000) == 3)
    }

    @Test("The first CR3 write after reset flushes as every other")
    func firstFlush() throws {
        let rig = try PagingRig()
        try rig.longTables(0x20_0007)
        try rig.put64(1, 0x20_0000)
        try rig.put64(3, 0x20_2000)
        rig.v.reset()
        rig.enter(long: true, cr4: PagingRig.pae)
        for n in 0..<5000 as Range<UInt64> {
            let target: UInt64 = n & 1 == 0 ? 0x20_0007 : 0x20_2007
            try rig.put64(target, 0x13000)
            try rig.v.writeCR3(0x10000)
            #expect(rig.value(0x40_0000) == (n & 1 == 0 ? 1 : 3))
        }
    }

    @Test("PCID: bit 63 keeps translations, without it that PCID's are flushed (SDM 3A 4.10.4.1)")
    func processContexts() throws {
        let rig = try PagingRig()
        try rig.longTables(0x20_0007)
        try rig.put64(1, 0x20_0000)
        try rig.put64(3, 0x20_2000)
        rig.enter(long: true, cr4: PagingRig.pae | PagingRig.pcide)
        try rig.v.writeCR3(0x10001)
        #expect(rig.value(0x40_0000) == 1)
        try rig.put64(0x20_2007, 0x13000)
        try rig.v.writeCR3(0x10002)
        try rig.v.writeCR3(0x10001 | 1 << 63)
        #expect(rig.value(0x40_0000) == 1)
        #expect(rig.s.pointee.cr3 == 0x10001)
        try rig.v.writeCR3(0x10001)
        #expect(rig.value(0x40_0000) == 3)
    }

    @Test("INVLPG of any address of a large page flushes all of it")
    func largeFlush() throws {
        let rig = try PagingRig()
        try rig.longTables(0)
        try rig.put64(0x20_0087, 0x12010)
        rig.enter(long: true, cr4: PagingRig.pae)
        #expect(rig.write(0x40_3000) == nil)
        try rig.put64(0, 0x12010)
        rig.v.flushPage(0x5F_F000)
        #expect(rig.write(0x40_3000) == .pageFault(2))
    }

    @Test("A store across pages writes nothing when the second page faults")
    func crossingStore() throws {
        let rig = try PagingRig()
        try rig.longTables(0x20_0007)
        rig.enter(long: true, cr4: PagingRig.pae)
        #expect(throws: CPUException.pageFault(2)) { try rig.v.store(3, 0x40_0FFC, ~0 as UInt64) }
        #expect(rig.s.pointee.cr2 == 0x40_1000)
        #expect(try rig.get64(0x20_0FF8) == 0)
        try rig.put64(0x30_0007, 0x13008)
        try rig.v.store(3, 0x40_0FFC, 0x1122_3344_5566_7788 as UInt64)
        #expect(try rig.get32(0x20_0FFC) == 0x5566_7788)
        #expect(try rig.get32(0x30_0000) == 0x1122_3344)
        #expect(rig.value(0x40_0FFC) == 0x1122_3344_5566_7788)
    }

    @Test("A store to a page first read is walked again, so that D is set")
    func dirtyAfterRead() throws {
        let rig = try PagingRig()
        try rig.longTables(0x20_0007)
        rig.enter(long: true, cr4: PagingRig.pae)
        #expect(rig.read(0x40_0000) == nil)
        #expect(try rig.get64(0x13000) == 0x20_0027)
        #expect(rig.write(0x40_0000) == nil)
        #expect(try rig.get64(0x13000) == 0x20_0067)
    }
}
