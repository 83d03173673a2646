// The hardware task switch against SDM 3A chapter 8.
import CHost
import CPU
import Testing

@Suite struct TaskSwitchTests {
    typealias Rig = SystemRig

    /// Fills the second TSS (32-bit): ring 0, flat, EIP 0x6000, ESP 0x25000, EAX 0xA0 ... EDI 0xA7.
    func fill(_ rig: Rig, flags: UInt64 = 2) {
        rig.put32(0x10000, at: Rig.otherBase + 0x1C)
        rig.put32(0x6000, at: Rig.otherBase + 0x20)
        rig.put32(flags, at: Rig.otherBase + 0x24)
        for n in 0..<8 as Range<UInt64> { rig.put32(0xA0 + n, at: Rig.otherBase + 0x28 + n * 4) }
        rig.put32(0x25000, at: Rig.otherBase + 0x38)
        for n in 0..<6 as Range<UInt64> {
            rig.put32(UInt64(n == 1 ? Rig.code0 : Rig.data0), at: Rig.otherBase + 0x48 + n * 4)
        }
        rig.put32(0, at: Rig.otherBase + 0x60)
        rig.put32(0x68_0000, at: Rig.otherBase + 0x64)
    }

    func busy(_ rig: Rig, _ selector: UInt16) -> Bool {
        rig.get(Rig.gdt + UInt64(selector) + 5, as: UInt8.self) & 2 != 0
    }

    @Test func `A jump saves the old task, loads the new one and moves the busy bit`() throws {
        let rig = try Rig()
        fill(rig)
        rig.v.gpr[3] = 0xBB
        rig.s.pointee.dr.7 = 0x7FF
        #expect(rig.far(.jmpFar, Rig.otherTSS, 0) == nil)
        #expect(rig.place == [0x08, 0x6000, 0x10, 0x25000, 0, 2])
        #expect(rig.v.gpr[0] == 0xA0)
        #expect(rig.v.gpr[7] == 0xA7)
        #expect(rig.v.segment(7).pointee.selector == Rig.otherTSS)
        #expect(rig.v.segment(7).pointee.attributes & 15 == 11)
        #expect(rig.s.pointee.cr0 & 8 != 0)
        #expect(rig.s.pointee.dr.7 == 0x6AA)
        #expect(!busy(rig, Rig.tss))
        #expect(busy(rig, Rig.otherTSS))
        #expect(rig.get32(Rig.tssBase + 0x20) == 0x5002)
        #expect(rig.get32(Rig.tssBase + 0x24) == 2)
        #expect(rig.get32(Rig.tssBase + 0x34) == 0xBB)
        #expect(rig.get32(Rig.tssBase + 0x38) == 0x20000)
        #expect(rig.get32(Rig.tssBase + 0x4C) == 0x08)
        #expect(rig.get32(Rig.otherBase) == 0)
    }

    @Test func `A call nests: link, NT, both busy; IRET goes back`() throws {
        let rig = try Rig()
        fill(rig)
        #expect(rig.far(.callFar, Rig.otherTSS, 0) == nil)
        #expect(rig.v.rflags == 0x4002)
        #expect(rig.get(Rig.otherBase, as: UInt16.self) == UInt64(Rig.tss))
        #expect(busy(rig, Rig.tss) && busy(rig, Rig.otherTSS))
        #expect(rig.run(.iret) == nil)
        #expect(rig.place == [0x08, 0x5002, 0x10, 0x20000, 0, 2])
        #expect(rig.v.segment(7).pointee.selector == Rig.tss)
        #expect(busy(rig, Rig.tss) && !busy(rig, Rig.otherTSS))
        #expect(rig.get32(Rig.otherBase + 0x24) == 2)
        #expect(rig.get32(Rig.otherBase + 0x20) == 0x6002)
    }

    @Test func `A task gate delivers an exception with its error code on the new stack`() throws {
        let rig = try Rig()
        fill(rig)
        rig.vector(8, Rig.gate(Rig.otherTSS, 0, access: 0x85))
        rig.enterLevel(3)
        rig.deliver(.doubleFault)
        #expect(rig.place == [0x08, 0x6000, 0x10, 0x25000 - 4, 0, 0x4002])
        #expect(rig.get32(0x25000 - 4) == 0)
        #expect(rig.get32(Rig.tssBase + 0x20) == 0x5000)
        #expect(rig.get32(Rig.tssBase + 0x4C) == UInt64(Rig.code3))
    }

    @Test func `A far call through a task gate checks the gate's DPL`() throws {
        let rig = try Rig()
        fill(rig)
        rig.entry(Rig.free, Rig.gate(Rig.otherTSS, 0, access: 0x85))
        rig.enterLevel(3)
        #expect(rig.far(.callFar, Rig.free, 0) == .generalProtection(0xB0))
        #expect(rig.far(.callFar, Rig.otherTSS, 0) == .generalProtection(0x50))
        rig.entry(Rig.free, Rig.gate(Rig.otherTSS, 0, access: 0xE5))
        #expect(rig.far(.callFar, Rig.free, 0) == nil)
        #expect(rig.s.pointee.cpl == 0)
    }

    @Test func `Checks before the switch fault in the old task and change nothing`() throws {
        let rig = try Rig()
        fill(rig)
        let before = rig.place
        rig.entry(Rig.otherTSS, Rig.descriptor(base: Rig.otherBase, limit: 0x66, access: 0x89, flags: 0))
        #expect(rig.far(.jmpFar, Rig.otherTSS, 0) == .invalidTSS(0x50))
        rig.entry(Rig.otherTSS, Rig.descriptor(base: Rig.otherBase, limit: 0x67, access: 0x09, flags: 0))
        #expect(rig.far(.jmpFar, Rig.otherTSS, 0) == .segmentNotPresent(0x50))
        rig.entry(Rig.otherTSS, Rig.descriptor(base: Rig.otherBase, limit: 0x67, access: 0x8B, flags: 0))
        #expect(rig.far(.jmpFar, Rig.otherTSS, 0) == .generalProtection(0x50))
        rig.v.rflags = 0x4002
        rig.put(UInt64(Rig.data0), at: Rig.tssBase, as: UInt16.self)
        #expect(rig.run(.iret) == .invalidTSS(0x10))
        rig.v.rflags = 2
        #expect(rig.place == before)
        #expect(busy(rig, Rig.tss))
    }

    @Test(arguments: [
        (0x4C as UInt64, 0 as UInt64, CPUException.invalidTSS(0)),
        (0x4C, 0x10, .invalidTSS(0x10)),
        (0x4C, 0x18, .invalidTSS(0x18)),
        (0x4C, 0x98, .segmentNotPresent(0x98)),
        (0x50, 0, .invalidTSS(0)),
        (0x50, 0x23, .invalidTSS(0x20)),
        (0x50, 0x38, .stackFault(0x38)),
        (0x54, 0x80, .invalidTSS(0x80)),
        (0x54, 0x38, .segmentNotPresent(0x38)),
        (0x60, 0x10, .invalidTSS(0x10)),
        (0x60, 0x1000, .invalidTSS(0x1000)),
    ])
    func `A bad selector in the new TSS faults in the new task`(
        _ offset: UInt64, _ selector: UInt64, _ expected: CPUException
    ) throws {
        let rig = try Rig()
        fill(rig)
        rig.put32(selector, at: Rig.otherBase + offset)
        // The handler is a third task, which needs nothing of the broken one.
        let third: UInt64 = 0x3900
        rig.entry(Rig.free, Rig.descriptor(base: third, limit: 0x67, access: 0x89, flags: 0))
        for n in 0..<26 as Range<UInt64> { rig.put32(rig.get32(Rig.otherBase + n * 4), at: third + n * 4) }
        for n in 0..<6 as Range<UInt64> {
            rig.put32(UInt64(n == 1 ? Rig.code0 : Rig.data0), at: third + 0x48 + n * 4)
        }
        rig.put32(0, at: third + 0x60)
        rig.put32(0x7000, at: third + 0x20)
        rig.put32(0x26000, at: third + 0x38)
        rig.vector(UInt8(expected.vector), Rig.gate(Rig.free, 0, access: 0x85))
        #expect(rig.far(.jmpFar, Rig.otherTSS, 0) == nil)
        #expect(rig.s.pointee.rip == 0x7000)
        #expect(rig.v.gpr[4] == 0x26000 - 4)
        #expect(rig.get32(0x26000 - 4) == UInt64(expected.errorCode))
        #expect(rig.get(third, as: UInt16.self) == UInt64(Rig.otherTSS))
        #expect(rig.get32(Rig.otherBase + 0x20) == 0x6000)
    }

    @Test func `The T bit raises #DB with BT before the first instruction`() throws {
        let rig = try Rig()
        fill(rig)
        rig.put32(0x68_0001, at: Rig.otherBase + 0x64)
        rig.vector(1, Rig.gate(Rig.code0, 0x9000, access: 0x8E))
        #expect(rig.far(.jmpFar, Rig.otherTSS, 0) == nil)
        #expect(rig.s.pointee.rip == 0x9000)
        #expect(rig.s.pointee.dr.6 & 0x8000 != 0)
        #expect(rig.get32(rig.v.gpr[4]) == 0x6000)
    }

    @Test func `The new task's RF holds off a breakpoint at its first instruction, once`() throws {
        let rig = try Rig()
        fill(rig, flags: 0x1_0002)
        rig.vector(1, Rig.gate(Rig.code0, 0x9000, access: 0x8E))
        // jmp far to the TSS. The task: inc ebx; jmp back. The handler: hlt.
        rig.put64(0x50_0000_0000_EA, at: 0x5000)
        rig.put32(0xFCEB_C3FF, at: 0x6000)
        rig.put32(0xF4, at: 0x9000)
        rig.s.pointee.dr.0 = 0x6000
        rig.s.pointee.dr.7 = 0x402
        rig.v.armDebug()
        let interpreter = Interpreter(cpu: rig.cpu, memory: rig.memory)
        #expect(interpreter.run() == .halt)
        #expect(rig.s.pointee.rip == 0x9001)
        #expect(rig.v.gpr[3] == 0xA4)
        #expect(rig.get32(rig.v.gpr[4]) == 0x6000)
    }

    @Test func `The new task may be in virtual-8086 mode`() throws {
        let rig = try Rig()
        fill(rig, flags: 0x20202)
        rig.put32(0x600, at: Rig.otherBase + 0x4C)
        #expect(rig.far(.jmpFar, Rig.otherTSS, 0) == nil)
        #expect(rig.s.pointee.virtual8086 == 1)
        #expect(rig.s.pointee.cpl == 3)
        #expect(rig.v.segment(1).pointee.base == 0x6000)
        #expect(rig.v.segment(2).pointee.base == 0x100)
    }

    @Test func `A 16-bit TSS loads words and leaves FS and GS null`() throws {
        let rig = try Rig()
        rig.put(0x6000, at: Rig.otherBase + 0x0E, as: UInt16.self)
        rig.put(0x0202, at: Rig.otherBase + 0x10, as: UInt16.self)
        for n in 0..<8 as Range<UInt64> { rig.put(0xB0 + n, at: Rig.otherBase + 0x12 + n * 2, as: UInt16.self) }
        for (n, selector) in [Rig.data0, Rig.code16, Rig.data0, Rig.data0].enumerated() {
            rig.put(UInt64(selector), at: Rig.otherBase + 0x22 + UInt64(n) * 2, as: UInt16.self)
        }
        #expect(rig.far(.callFar, Rig.otherTSS16, 0) == nil)
        #expect(rig.s.pointee.rip == 0x6000)
        #expect(rig.v.rflags == 0x4202)
        #expect(rig.v.gpr[1] & 0xFFFF == 0xB1)
        #expect(rig.s.pointee.code_size == 2)
        #expect(rig.v.segment(4).pointee.attributes & 0x80 == 0)
        // Back from the 16-bit task: its words are saved.
        #expect(rig.run(.iret, size: 2) == nil)
        #expect(rig.place == [0x08, 0x5002, 0x10, 0x20000, 0, 2])
        #expect(rig.get(Rig.otherBase + 0x0E, as: UInt16.self) == 0x6002)
    }

    @Test func `Long mode has no task switch`() throws {
        let rig = try Rig()
        rig.enterLong(0)
        rig.put32(0, at: 0x28000)
        rig.put(UInt64(Rig.otherTSS), at: 0x28004, as: UInt16.self)
        let error = rig.run(.jmpFarIndirect) { ($0.form, $0.displacement) = (.rm, 0x28000) }
        #expect(error == .generalProtection(0x50))
    }
}
