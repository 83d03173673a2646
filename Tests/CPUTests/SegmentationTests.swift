// Segment loads, far transfers and descriptor queries against the rules of SDM 3A chapter 5.
import CHost
import CPU
import Testing

@Suite struct SegmentationTests {
    typealias Rig = SystemRig

    @Test func `A data segment load checks type, privilege and presence`() throws {
        let rig = try Rig()
        #expect(rig.load(3, Rig.data3) == nil)
        #expect(rig.load(3, Rig.executeOnly) == .generalProtection(0x80))
        #expect(rig.load(3, Rig.readOnly) == nil)
        #expect(rig.load(3, Rig.code0) == nil)
        #expect(rig.load(3, Rig.tss) == .generalProtection(0x28))
        #expect(rig.load(3, Rig.absentData) == .segmentNotPresent(0x38))
        #expect(rig.load(3, 0x1000) == .generalProtection(0x1000))
        #expect(rig.load(3, Rig.data0 | 3) == .generalProtection(0x10))
        #expect(rig.load(1, Rig.code0) == .invalidOpcode)
        rig.enterLevel(3)
        #expect(rig.load(3, Rig.data0) == .generalProtection(0x10))
        #expect(rig.load(3, Rig.conforming0 | 3) == nil)
        #expect(rig.load(3, 3) == nil)
        #expect(rig.v.segment(3).pointee.attributes & 0x80 == 0)
    }

    @Test func `A stack segment load checks RPL, DPL and type, and holds interrupts`() throws {
        let rig = try Rig()
        #expect(rig.load(2, 0) == .generalProtection(0))
        #expect(rig.load(2, Rig.data3) == .generalProtection(0x20))
        #expect(rig.load(2, Rig.data0 | 3) == .generalProtection(0x10))
        #expect(rig.load(2, Rig.readOnly) == .generalProtection(0x78))
        #expect(rig.load(2, Rig.absentData) == .stackFault(0x38))
        #expect(rig.s.pointee.interrupt_shadow == 0)
        #expect(rig.load(2, Rig.data0) == nil)
        #expect(rig.s.pointee.interrupt_shadow == 2)
        rig.enterLong(0)
        #expect(rig.load(2, 0) == nil)
        rig.enterLong(3)
        #expect(rig.load(2, 3) == .generalProtection(0))
    }

    @Test func `A load sets the accessed bit and takes base and limit from the descriptor`() throws {
        let rig = try Rig()
        rig.entry(Rig.free, Rig.descriptor(base: 0x1234_5678, limit: 0x12, access: 0x92, flags: 8))
        #expect(rig.load(0, Rig.free) == nil)
        let es = rig.v.segment(0).pointee
        #expect(es.base == 0x1234_5678)
        #expect(es.limit == 0x12FFF)
        #expect(es.attributes == 0x8093)
        #expect(rig.get(Rig.gdt + 0xB5, as: UInt8.self) == 0x93)
    }

    @Test func `The LDT is used through TI and its limit holds`() throws {
        let rig = try Rig()
        #expect(rig.load(0, 0x0C) == .generalProtection(0x0C))
        rig.put64(Rig.flat(0x93, 0xC), at: Rig.ldtBase + 8)
        rig.v.gpr[0] = UInt64(Rig.ldt)
        #expect(rig.run(.lldt) { ($0.form, $0.rm) = (.rm, 0) } == nil)
        #expect(rig.load(0, 0x0C) == nil)
        #expect(rig.load(0, 0x24) == .generalProtection(0x24))
    }

    @Test func `A real-mode load keeps limit, so unreal mode works`() throws {
        let rig = try Rig()
        rig.enterReal()
        rig.v.segment(3).pointee.limit = ~0
        #expect(rig.load(3, 0x1234) == nil)
        #expect(rig.v.segment(3).pointee.base == 0x12340)
        #expect(rig.v.segment(3).pointee.limit == ~0)
    }

    @Test func `Far jumps check the code segment`() throws {
        let rig = try Rig()
        #expect(rig.far(.jmpFar, 0, 0) == .generalProtection(0))
        #expect(rig.far(.jmpFar, Rig.data0, 0) == .generalProtection(0x10))
        #expect(rig.far(.jmpFar, Rig.code3, 0) == .generalProtection(0x18))
        #expect(rig.far(.jmpFar, Rig.absentCode, 0) == .segmentNotPresent(0x98))
        #expect(rig.far(.jmpFar, Rig.code16, 0x10000) == .generalProtection(0))
        #expect(rig.far(.jmpFar, Rig.code16, 0x1000) == nil)
        #expect(rig.s.pointee.code_size == 2)
        #expect(rig.s.pointee.rip == 0x1000)
        rig.enterLevel(3)
        #expect(rig.far(.jmpFar, Rig.conforming0, 0x6000) == nil)
        #expect(rig.s.pointee.cpl == 3)
        #expect(rig.v.segment(1).pointee.selector == Rig.conforming0 | 3)
    }

    @Test func `A far call pushes CS and the next instruction; a far return takes them back`() throws {
        let rig = try Rig()
        let before = rig.place
        #expect(rig.far(.callFar, Rig.conforming0, 0x7000) == nil)
        #expect(rig.get32(0x1FFF8) == 0x5002)
        #expect(rig.get32(0x1FFFC) == 0x08)
        #expect(rig.run(.retFar) == nil)
        #expect(rig.s.pointee.rip == 0x5002)
        #expect(rig.place[2...] == before[2...])
    }

    @Test func `A call gate to an inner level switches stacks and copies parameters`() throws {
        let rig = try Rig()
        rig.entry(Rig.free, Rig.gate(Rig.code0, 0x9000, access: 0xEC, count: 2))
        rig.enterLevel(3)
        rig.v.gpr[4] = 0x2FFF8
        rig.put32(0x1111, at: 0x2FFF8)
        rig.put32(0x2222, at: 0x2FFFC)
        #expect(rig.far(.callFar, Rig.free, 0xDEAD) == nil)
        #expect(rig.s.pointee.cpl == 0)
        #expect(rig.s.pointee.rip == 0x9000)
        #expect(rig.v.segment(2).pointee.selector == Rig.data0)
        #expect(rig.v.gpr[4] == 0x21000 - 24)
        let stack = (0..<6).map { rig.get32(0x21000 - 24 + UInt64($0) * 4) }
        #expect(stack == [0x5002, UInt64(Rig.code3), 0x1111, 0x2222, 0x2FFF8, UInt64(Rig.data3)])
        // Back, dropping the parameters from both stacks; DS with DPL 0 becomes null.
        #expect(rig.load(3, Rig.data0) == nil)
        #expect(rig.run(.retFarImmediate) { $0.immediate = 8 } == nil)
        #expect(rig.s.pointee.cpl == 3)
        #expect(rig.v.gpr[4] == 0x30000)
        #expect(rig.v.segment(3).pointee.attributes & 0x80 == 0)
        #expect(rig.v.segment(0).pointee.selector == Rig.data3)
    }

    @Test func `A call gate checks privilege, presence and target, and changes nothing on a fault`() throws {
        let rig = try Rig()
        rig.enterLevel(3)
        let before = rig.place
        rig.entry(Rig.free, Rig.gate(Rig.code0, 0x9000, access: 0x8C))
        #expect(rig.far(.callFar, Rig.free, 0) == .generalProtection(0xB0))
        rig.entry(Rig.free, Rig.gate(Rig.code0, 0x9000, access: 0x6C))
        #expect(rig.far(.callFar, Rig.free, 0) == .segmentNotPresent(0xB0))
        rig.entry(Rig.free, Rig.gate(Rig.data0, 0x9000, access: 0xEC))
        #expect(rig.far(.callFar, Rig.free, 0) == .generalProtection(0x10))
        rig.entry(Rig.free, Rig.gate(Rig.absentCode, 0x9000, access: 0xEC))
        #expect(rig.far(.callFar, Rig.free, 0) == .segmentNotPresent(0x98))
        rig.entry(Rig.free, Rig.gate(Rig.code0, 0x9000, access: 0xEC))
        #expect(rig.far(.jmpFar, Rig.free, 0) == .generalProtection(0x08))
        rig.put32(UInt64(Rig.data3), at: Rig.tssBase + 8)
        #expect(rig.far(.callFar, Rig.free, 0) == .invalidTSS(0x20))
        rig.put32(0, at: Rig.tssBase + 8)
        #expect(rig.far(.callFar, Rig.free, 0) == .invalidTSS(0))
        rig.put32(UInt64(Rig.absentData), at: Rig.tssBase + 8)
        #expect(rig.far(.callFar, Rig.free, 0) == .stackFault(0x38))
        rig.v.segment(7).pointee.limit = 7
        #expect(rig.far(.callFar, Rig.free, 0) == .invalidTSS(0x28))
        #expect(rig.place == before)
    }

    @Test func `A call to an expand-down inner stack keeps to its limit`() throws {
        let rig = try Rig()
        rig.entry(Rig.data1, Rig.descriptor(base: 0, limit: 0x21FFB, access: 0xB7, flags: 4))
        rig.entry(Rig.free, Rig.gate(Rig.code1, 0x9000, access: 0xEC))
        rig.enterLevel(3)
        #expect(rig.far(.callFar, Rig.free, 0) == .stackFault(0x48))
        rig.entry(Rig.data1, Rig.descriptor(base: 0, limit: 0xF00, access: 0xB7, flags: 4))
        #expect(rig.far(.callFar, Rig.free, 0) == nil)
        #expect(rig.s.pointee.cpl == 1)
    }

    @Test func `Far returns to an inner level are refused`() throws {
        let rig = try Rig()
        rig.enterLevel(3)
        rig.v.gpr[4] = 0x2FFF8
        rig.put32(0x6000, at: 0x2FFF8)
        rig.put32(UInt64(Rig.code0), at: 0x2FFFC)
        #expect(rig.run(.retFar) == .generalProtection(0x08))
        rig.put32(UInt64(Rig.code0 | 3), at: 0x2FFFC)
        #expect(rig.run(.retFar) == .generalProtection(0x08))
    }

    @Test func `A 64-bit call gate needs 64-bit code and loads RSP0 with a null SS`() throws {
        let rig = try Rig()
        rig.enterLong(3)
        rig.entry(Rig.free, Rig.gate(Rig.code0, 0x9000, access: 0xEC))
        rig.entry(Rig.free + 8, 0)
        func call() -> CPUException? {
            rig.put32(0, at: 0x28000)
            rig.put(UInt64(Rig.free), at: 0x28004, as: UInt16.self)
            return rig.run(.callFarIndirect) {
                $0.form = .rm
                $0.displacement = 0x28000
            }
        }
        #expect(call() == .generalProtection(0x08))
        rig.entry(Rig.free, Rig.gate(Rig.longCode0, 0x9000, access: 0xEC))
        #expect(call() == nil)
        #expect(rig.s.pointee.rip == 0x9000)
        #expect(rig.v.segment(2).pointee.selector == 0)
        #expect(rig.v.gpr[4] == 0x21000 - 32)
        #expect(rig.get64(0x21000 - 16) == 0x20000)
        rig.entry(Rig.free + 8, 0x0800_0000_0000)
        rig.enterLong(3)
        #expect(call() == .generalProtection(0xB0))
    }

    @Test func `LAR, LSL, VERR and VERW answer through ZF`() throws {
        let rig = try Rig()
        func ask(_ operation: CPU.Operation, _ selector: UInt16) -> Bool {
            rig.v.gpr[0] = UInt64(selector)
            rig.v.gpr[1] = 0
            #expect(rig.run(operation) { ($0.form, $0.reg, $0.rm) = (.regRM, 1, 0) } == nil)
            return rig.v.rflags & 0x40 != 0
        }
        #expect(ask(.lar, Rig.data3))
        #expect(rig.v.gpr[1] == 0xCFF300)
        #expect(ask(.lsl, Rig.tss))
        #expect(rig.v.gpr[1] == 0x167)
        #expect(!ask(.lsl, 0))
        #expect(!ask(.lar, 0xFF8))
        rig.entry(Rig.free, Rig.gate(Rig.code0, 0, access: 0x8C))
        #expect(ask(.lar, Rig.free))
        #expect(!ask(.lsl, Rig.free))
        #expect(ask(.verr, Rig.code0))
        #expect(!ask(.verr, Rig.executeOnly))
        #expect(!ask(.verw, Rig.readOnly))
        #expect(ask(.verw, Rig.data0))
        rig.enterLevel(3)
        #expect(!ask(.verw, Rig.data0))
        #expect(ask(.verr, Rig.conforming0))
        rig.enterVirtual8086(iopl: 3)
        #expect(rig.run(.lar) { ($0.form, $0.reg, $0.rm) = (.regRM, 1, 0) } == .invalidOpcode)
    }

    @Test func `ARPL raises the RPL only`() throws {
        let rig = try Rig()
        rig.v.gpr[0] = 0x10
        rig.v.gpr[1] = 0x1B
        #expect(rig.run(.arpl, size: 2) { ($0.form, $0.reg, $0.rm) = (.rmReg, 1, 0) } == nil)
        #expect(rig.v.gpr[0] == 0x13)
        #expect(rig.v.rflags & 0x40 != 0)
        rig.run(.arpl, size: 2) { ($0.form, $0.reg, $0.rm) = (.rmReg, 1, 0) }
        #expect(rig.v.rflags & 0x40 == 0)
    }

    @Test func `LTR marks the TSS busy and refuses a busy one`() throws {
        let rig = try Rig()
        rig.v.gpr[0] = UInt64(Rig.tss)
        #expect(rig.run(.ltr) { ($0.form, $0.rm) = (.rm, 0) } == .generalProtection(0x28))
        rig.v.gpr[0] = UInt64(Rig.otherTSS)
        #expect(rig.run(.ltr) { ($0.form, $0.rm) = (.rm, 0) } == nil)
        #expect(rig.get(Rig.gdt + 0x55, as: UInt8.self) == 0x8B)
        rig.enterLevel(3)
        #expect(rig.run(.ltr) { ($0.form, $0.rm) = (.rm, 0) } == .generalProtection(0))
    }

    @Test func `LGDT takes 24, 32 or 64 bits of base`() throws {
        let rig = try Rig()
        rig.put(0x7F, at: 0x28000, as: UInt16.self)
        rig.put64(0x1_1234_5678, at: 0x28002)
        let operand: (inout Instruction) -> Void = { ($0.form, $0.displacement) = (.rm, 0x28000) }
        #expect(rig.run(.lidt, size: 2, edit: operand) == nil)
        #expect(rig.s.pointee.idtr_base == 0x34_5678)
        #expect(rig.run(.lidt, size: 4, edit: operand) == nil)
        #expect(rig.s.pointee.idtr_base == 0x1234_5678)
        #expect(rig.s.pointee.idtr_limit == 0x7F)
        rig.enterLong(0)
        #expect(rig.run(.lidt, size: 8, edit: operand) == nil)
        #expect(rig.s.pointee.idtr_base == 0x1_1234_5678)
        rig.put64(0x8000_0000_0000, at: 0x28002)
        #expect(rig.run(.lidt, size: 8, edit: operand) == .generalProtection(0))
        rig.s.pointee.cr4 |= 0x800
        rig.enterLong(3)
        #expect(rig.run(.lidt, size: 8, edit: operand) == .generalProtection(0))
    }

    @Test func `SYSCALL and SYSRET swap flat segments, flags and privilege`() throws {
        let rig = try Rig()
        rig.enterLong(3)
        rig.s.pointee.star = 0x0023_0010_0000_0000
        rig.s.pointee.lstar = 0xFFFF_8000_0000_1000
        rig.s.pointee.sfmask = 0x200
        rig.v.rflags = 0x10247
        #expect(rig.run(.syscall) == nil)
        #expect(rig.v.gpr[1] == 0x5002)
        #expect(rig.v.gpr[11] == 0x247)
        #expect(rig.v.rflags == 0x47)
        #expect(rig.place[0...2] == [0x10, 0xFFFF_8000_0000_1000, 0x18])
        #expect(rig.s.pointee.cpl == 0)
        #expect(rig.run(.sysret, size: 8) == nil)
        #expect(rig.place == [0x33, 0x5002, 0x2B, 0x20000, 3, 0x247])
        #expect(rig.run(.sysret, size: 8) == .generalProtection(0))
        rig.enterLong(0)
        rig.v.gpr[1] = 0x8000_0000_0000
        #expect(rig.run(.sysret, size: 8) == .generalProtection(0))
        rig.v.gpr[1] = 0x1_0000_6000
        #expect(rig.run(.sysret, size: 4) == nil)
        #expect(rig.place[0...2] == [0x23, 0x6000, 0x2B])
        #expect(rig.s.pointee.code_size == 4)
    }

    @Test(arguments: ["GenuineIntel", "AuthenticAMD"])
    func `SYSCALL and SYSENTER outside 64-bit mode are the vendor's (SDM 2B; APM 3)`(vendor: String) throws {
        let isAMD = vendor == "AuthenticAMD"
        let rig = try Rig()
        let name = Array(vendor.utf8)
        func word(_ at: Int) -> UInt32 { (0..<4).reduce(0) { $0 | UInt32(name[at + $1]) << UInt32($1 * 8) } }
        let leaf = UnsafeMutablePointer<UInt32>.allocate(capacity: 6)
        leaf.initialize(to: 0)
        for (n, value) in [0, ~0, 13, word(0), word(8), word(4)].enumerated() { leaf[n] = value }
        let (table, count) = (rig.s.pointee.cpuid_table, rig.s.pointee.cpuid_count)
        rig.s.pointee.cpuid_table = UnsafePointer(leaf)
        rig.s.pointee.cpuid_count = 1
        defer {
            rig.s.pointee.cpuid_table = table
            rig.s.pointee.cpuid_count = count
            leaf.deallocate()
        }
        rig.s.pointee.sysenter_cs = 0x08
        rig.s.pointee.star = 0x0023_0010_0000_7000
        rig.s.pointee.cstar = 0xFFFF_8000_0000_2000
        rig.s.pointee.sfmask = 0x200
        // Legacy protected mode: STAR's low half, IF off.
        rig.s.pointee.efer = 1
        rig.enterLevel(3)
        rig.v.rflags = 0x246
        #expect(rig.run(.syscall) == (isAMD ? nil : .invalidOpcode))
        if isAMD {
            #expect(rig.place == [0x10, 0x7000, 0x18, 0x20000, 0, 0x46])
            #expect(rig.v.gpr[1] == 0x5002)
            #expect(rig.run(.sysret) == nil)
            #expect(rig.place == [0x23, 0x5002, 0x2B, 0x20000, 3, 0x246])
        }
        // Compatibility mode: CSTAR.
        rig.enterLong(3)
        rig.set(1, Rig.code3, base: 0, limit: ~0, attributes: 0xC0FB)
        rig.v.updateMode()
        rig.s.pointee.rip = 0x5000
        rig.v.rflags = 0x10247
        #expect(rig.run(.syscall) == (isAMD ? nil : .invalidOpcode))
        if isAMD {
            #expect(rig.place[0...2] == [0x10, 0xFFFF_8000_0000_2000, 0x18])
            #expect(rig.v.gpr[11] == 0x247)
            #expect(rig.s.pointee.code_size == 8)
        }
        rig.enterLong(3)
        #expect(rig.run(.sysenter) == (isAMD ? .invalidOpcode : nil))
    }

    @Test func `SYSENTER and SYSEXIT`() throws {
        let rig = try Rig()
        rig.enterLevel(3)
        #expect(rig.run(.sysenter) == .generalProtection(0))
        rig.s.pointee.sysenter_cs = 0x08
        rig.s.pointee.sysenter_esp = 0x21000
        rig.s.pointee.sysenter_eip = 0x7000
        rig.v.rflags = 0x202
        #expect(rig.run(.sysenter) == nil)
        #expect(rig.place == [0x08, 0x7000, 0x10, 0x21000, 0, 2])
        rig.v.gpr[1] = 0x2F000
        rig.v.gpr[2] = 0x6000
        #expect(rig.run(.sysexit) == nil)
        #expect(rig.place == [0x1B, 0x6000, 0x23, 0x2F000, 3, 2])
        #expect(rig.run(.sysexit) == .generalProtection(0))
    }

    @Test func `SWAPGS and the FS and GS base instructions`() throws {
        let rig = try Rig()
        #expect(rig.run(.swapgs) == .invalidOpcode)
        rig.enterLong(0)
        rig.s.pointee.kernel_gs_base = 0x1234
        #expect(rig.run(.swapgs) == nil)
        #expect(rig.v.segment(5).pointee.base == 0x1234)
        #expect(rig.run(.wrfsbase, size: 8) { ($0.form, $0.rm) = (.rm, 3) } == .invalidOpcode)
        rig.s.pointee.cr4 |= 0x10000
        rig.v.gpr[3] = 0x8000_0000_0000
        #expect(rig.run(.wrfsbase, size: 8) { ($0.form, $0.rm) = (.rm, 3) } == .generalProtection(0))
        rig.v.gpr[3] = 0x5_0000_0010
        #expect(rig.run(.wrfsbase, size: 4) { ($0.form, $0.rm) = (.rm, 3) } == nil)
        #expect(rig.run(.rdfsbase, size: 8) { ($0.form, $0.rm) = (.rm, 6) } == nil)
        #expect(rig.v.gpr[6] == 0x10)
    }

    @Test func `The I/O map decides above IOPL`() throws {
        let rig = try Rig()
        func check(_ port: UInt16, _ size: Int) -> CPUException? {
            do throws(CPUException) {
                try rig.v.checkIOPermission(port: port, size: size)
                return nil
            } catch { return error }
        }
        #expect(check(0x3F8, 1) == nil)
        rig.enterLevel(3)
        rig.put(0b1000_0000, at: Rig.tssBase + 0x68 + 1, as: UInt8.self)
        #expect(check(8, 4) == nil)
        #expect(check(15, 1) == .generalProtection(0))
        #expect(check(14, 2) == .generalProtection(0))
        #expect(check(12, 2) == nil)
        // The map ends with the TSS's limit.
        #expect(check(0x7F0, 1) == nil)
        #expect(check(0x7F8, 1) == .generalProtection(0))
        rig.s.pointee.rflags |= 0x3000
        #expect(check(15, 1) == nil)
        rig.enterVirtual8086(iopl: 3)
        #expect(check(15, 1) == .generalProtection(0))
    }
}
