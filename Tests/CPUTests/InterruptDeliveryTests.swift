// Interrupts, exceptions, IRET, INT n, flags and debug registers against SDM 3A chapter 6 and SDM 3B chapter 17.
import CHost
import CPU
import Testing

@Suite struct InterruptDeliveryTests {
    typealias Rig = SystemRig

    /// Dwords on the stack, from ESP up.
    func stack(_ rig: Rig, _ count: Int, size: UInt64 = 4) -> [UInt64] {
        (0..<UInt64(count)).map {
            let address = rig.v.segment(2).pointee.base + rig.v.gpr[4] + $0 * size
            return size == 8 ? rig.get64(address) : size == 4 ? rig.get32(address) : rig.get(address, as: UInt16.self)
        }
    }

    @Test func `Real mode pushes FLAGS, CS and IP and clears IF and TF`() throws {
        let rig = try Rig()
        rig.enterReal()
        rig.v.rflags = 0x347
        rig.put32(0x1234_5678, at: 0x21 * 4)
        #expect(rig.run(.int, size: 2) { $0.immediate = 0x21 } == nil)
        #expect(rig.v.segment(1).pointee.selector == 0x1234)
        #expect(rig.v.segment(1).pointee.base == 0x12340)
        #expect(rig.s.pointee.rip == 0x5678)
        #expect(rig.v.rflags == 0x47)
        #expect(stack(rig, 3, size: 2) == [0x12, 0x600, 0x347])
        #expect(rig.run(.iret, size: 2) == nil)
        #expect(rig.place == [0x600, 0x12, 0x2F00, 0x100, 0, 0x347])
    }

    @Test func `An IVT entry beyond IDTR's limit ends in shutdown when 13 and 8 are beyond it too`() throws {
        let rig = try Rig()
        rig.enterReal()
        rig.s.pointee.idtr_limit = 0x13
        #expect(rig.run(.int, size: 2) { $0.immediate = 0x21 } == .generalProtection(0x10A))
        #expect(rig.deliver(.generalProtection(0)) == .exit)
        #expect(rig.s.pointee.exit_kind == 9)
    }

    @Test func `An interrupt gate at the same level clears IF, a trap gate does not`() throws {
        let rig = try Rig()
        rig.vector(0x30, Rig.gate(Rig.code0, 0x9000, access: 0x8E))
        rig.vector(0x31, Rig.gate(Rig.code0, 0xA000, access: 0x8F))
        rig.v.rflags = 0x4302
        #expect(rig.inject(0x30) == nil)
        #expect(rig.place == [0x08, 0x9000, 0x10, 0x20000 - 12, 0, 2])
        #expect(stack(rig, 3) == [0x5000, 0x08, 0x4302])
        rig.v.rflags = 0x302
        #expect(rig.inject(0x31) == nil)
        #expect(rig.v.rflags == 0x202)
    }

    @Test func `A 16-bit gate pushes words`() throws {
        let rig = try Rig()
        rig.vector(0x30, Rig.gate(Rig.code0, 0xFFFF_9000, access: 0x86))
        #expect(rig.inject(0x30) == nil)
        #expect(rig.s.pointee.rip == 0x9000)
        #expect(stack(rig, 3, size: 2) == [0x5000, 0x08, 2])
    }

    @Test func `Faults push RF and their error code; #DB and interrupts do not set RF`() throws {
        let rig = try Rig()
        for n in [1, 6, 13] as [UInt8] { rig.vector(n, Rig.gate(Rig.code0, 0x9000, access: 0x8E)) }
        rig.deliver(.generalProtection(0x18))
        #expect(stack(rig, 4) == [0x18, 0x5000, 0x08, 0x10002])
        rig.deliver(.invalidOpcode)
        #expect(stack(rig, 3) == [0x9000, 0x08, 0x10002])
        rig.s.pointee.pending_debug = 0x42
        rig.deliver(.debug)
        #expect(stack(rig, 3) == [0x9000, 0x08, 2])
        #expect(rig.s.pointee.dr.6 == 0xFFFF_4FF2)
        #expect(rig.s.pointee.pending_debug == 0)
    }

    @Test func `An inner handler gets the stack of the TSS, and IRET goes back`() throws {
        let rig = try Rig()
        rig.vector(0x80, Rig.gate(Rig.code0, 0x9000, access: 0xEE))
        rig.enterLevel(3)
        rig.v.rflags = 0x202
        rig.v.gpr[4] = 0x30000
        #expect(rig.run(.int) { $0.immediate = 0x80 } == nil)
        #expect(rig.place == [0x08, 0x9000, 0x10, 0x21000 - 20, 0, 2])
        #expect(stack(rig, 5) == [0x5002, 0x1B, 0x202, 0x30000, 0x23])
        #expect(rig.run(.iret) == nil)
        #expect(rig.place == [0x1B, 0x5002, 0x23, 0x30000, 3, 0x202])
    }

    @Test func `INT n checks the gate's DPL, exceptions and interrupts do not`() throws {
        let rig = try Rig()
        rig.vector(0x40, Rig.gate(Rig.code0, 0x9000, access: 0x8E))
        rig.vector(13, Rig.gate(Rig.code0, 0xB000, access: 0x8E))
        rig.enterLevel(3)
        let before = rig.place
        #expect(rig.run(.int) { $0.immediate = 0x40 } == .generalProtection(0x202))
        #expect(rig.place == before)
        #expect(rig.inject(0x40) == nil)
        rig.enterLevel(3)
        #expect(rig.run(.int1) == .generalProtection(0xB))
    }

    @Test func `INT3 at a gate with a low DPL faults at the instruction`() throws {
        let rig = try Rig()
        rig.vector(3, Rig.gate(Rig.code0, 0x9000, access: 0x8E))
        rig.vector(13, Rig.gate(Rig.code0, 0xB000, access: 0x8E))
        rig.enterLevel(3)
        rig.s.pointee.rip = 0x5001
        #expect(rig.run(.int3) == .breakpoint)
        rig.deliver(.breakpoint)
        #expect(rig.s.pointee.rip == 0xB000)
        #expect(stack(rig, 2) == [0x1A, 0x5000])
    }

    @Test(arguments: [
        (0x8E as UInt64, SystemRig.code0, 0x7FF as UInt32, nil as CPUException?),
        (0x8E, SystemRig.code0, 0x17F, .generalProtection(0x183)),
        (0x0E, SystemRig.code0, 0x7FF, .segmentNotPresent(0x183)),
        (0x8C, SystemRig.code0, 0x7FF, .generalProtection(0x183)),
        (0x8E, 0, 0x7FF, .generalProtection(1)),
        (0x8E, SystemRig.data0, 0x7FF, .generalProtection(0x11)),
        (0x8E, SystemRig.absentCode, 0x7FF, .segmentNotPresent(0x99)),
        (0x8E, SystemRig.code3 & ~3, 0x7FF, .generalProtection(0x19)),
        (0x8E, 0x1000, 0x7FF, .generalProtection(0x1001)),
    ])
    func `A bad gate faults with EXT for an external interrupt`(
        _ access: UInt64, _ selector: UInt16, _ limit: UInt32, _ expected: CPUException?
    ) throws {
        let rig = try Rig()
        for n in [11, 13] as [UInt8] { rig.vector(n, Rig.gate(Rig.code0, 0x9000 + UInt64(n), access: 0x8E)) }
        rig.vector(0x30, Rig.gate(selector, 0xA000, access: access))
        rig.s.pointee.idtr_limit = limit
        #expect(rig.inject(0x30) == nil)
        guard let expected else {
            #expect(rig.s.pointee.rip == 0xA000)
            return
        }
        #expect(rig.s.pointee.rip == 0x9000 + UInt64(expected.vector))
        #expect(stack(rig, 2) == [UInt64(expected.errorCode), 0x5000])
    }

    @Test func `Contributory pairs make a double fault, a failing double fault shuts down`() throws {
        let rig = try Rig()
        rig.vector(8, Rig.gate(Rig.code0, 0x9008, access: 0x8E))
        // #GP without a gate: #NP is contributory.
        rig.deliver(.generalProtection(0))
        #expect(rig.s.pointee.rip == 0x9008)
        #expect(stack(rig, 2) == [0, 0x5000])
        // #UD is benign: its failure is delivered as itself.
        rig.vector(13, Rig.gate(Rig.code0, 0x9013, access: 0x8E))
        rig.s.pointee.rip = 0x5000
        rig.deliver(.invalidOpcode)
        #expect(rig.s.pointee.rip == 0x9013)
        #expect(stack(rig, 2) == [0x33, 0x5000])
        // #PF then #GP: double.
        rig.s.pointee.rip = 0x5000
        rig.deliver(.pageFault(2))
        #expect(rig.s.pointee.rip == 0x9008)
        rig.vector(8, 0)
        rig.s.pointee.rip = 0x5000
        let before = rig.place
        #expect(rig.deliver(.pageFault(2)) == .exit)
        #expect(rig.s.pointee.exit_kind == 9)
        #expect(rig.place == before)
    }

    @Test func `Bad inner stacks make #TS and #SS with their selectors`() throws {
        let rig = try Rig()
        rig.vector(0x80, Rig.gate(Rig.code0, 0x9000, access: 0xEE))
        rig.enterLevel(3)
        func int() -> CPUException? { rig.run(.int) { $0.immediate = 0x80 } }
        for (ss, expected) in [
            (0, CPUException.invalidTSS(0)), (Rig.data3, .invalidTSS(0x20)), (Rig.readOnly, .invalidTSS(0x78)),
            (0x1000, .invalidTSS(0x1000)), (Rig.absentData, .stackFault(0x38)),
        ] as [(UInt16, CPUException)] {
            rig.put32(UInt64(ss), at: Rig.tssBase + 8)
            #expect(int() == expected)
        }
        rig.entry(Rig.free, Rig.descriptor(base: 0, limit: 0x20FFF, access: 0x93, flags: 4))
        rig.put32(UInt64(Rig.free), at: Rig.tssBase + 8)
        #expect(int() == nil)
        rig.enterLevel(3)
        rig.entry(Rig.free, Rig.descriptor(base: 0, limit: 0x20FFE, access: 0x93, flags: 4))
        #expect(int() == .stackFault(0xB0))
        rig.v.segment(7).pointee.limit = 8
        #expect(int() == .invalidTSS(0x28))
    }

    @Test func `A handler beyond its segment's limit is #GP(0)`() throws {
        let rig = try Rig()
        rig.vector(0x30, Rig.gate(Rig.code16, 0x1_0000, access: 0x8E))
        #expect(rig.run(.int) { $0.immediate = 0x30 } == .generalProtection(0))
    }

    @Test func `Virtual-8086 mode is left with all segments pushed, and IRET enters it again`() throws {
        let rig = try Rig()
        rig.vector(0x30, Rig.gate(Rig.code0, 0x9000, access: 0x8E))
        rig.enterVirtual8086(iopl: 0)
        #expect(rig.inject(0x30) == nil)
        #expect(rig.place == [0x08, 0x9000, 0x10, 0x21000 - 36, 0, 2])
        #expect(stack(rig, 9) == [0x10, 0x600, 0x20202, 0x100, 0x2F00, 0x600, 0x600, 0x600, 0x600])
        #expect(rig.s.pointee.virtual8086 == 0)
        #expect(rig.v.segment(3).pointee.attributes == 0)
        #expect(rig.run(.iret) == nil)
        #expect(rig.place == [0x600, 0x10, 0x2F00, 0x100, 3, 0x20202])
        #expect(rig.s.pointee.virtual8086 == 1)
        #expect(rig.v.segment(5).pointee.base == 0x6000)
    }

    @Test func `In virtual-8086 mode INT n, IRET, PUSHF, POPF, CLI and STI need IOPL 3`() throws {
        let rig = try Rig()
        rig.vector(0x30, Rig.gate(Rig.code0, 0x9000, access: 0xEE))
        rig.vector(0x31, Rig.gate(Rig.conforming0, 0x9000, access: 0xEE))
        rig.enterVirtual8086(iopl: 0)
        #expect(rig.run(.int) { $0.immediate = 0x30 } == .generalProtection(0))
        #expect(rig.run(.iret, size: 2) == .generalProtection(0))
        #expect(rig.run(.cli) == .generalProtection(0))
        #expect(throws: CPUException.generalProtection(0)) { try rig.v.pushedFlags(size: 2) }
        #expect(throws: CPUException.generalProtection(0)) { try rig.v.popFlags(2, size: 2) }
        rig.enterVirtual8086(iopl: 3)
        #expect(rig.run(.cli) == nil)
        #expect(rig.v.rflags == 0x23002)
        try rig.v.popFlags(0x4202, size: 2)
        #expect(rig.v.rflags == 0x27202)
        #expect(rig.run(.int) { $0.immediate = 0x31 } == .generalProtection(0x30))
        #expect(rig.run(.int) { $0.immediate = 0x30 } == nil)
        #expect(rig.s.pointee.cpl == 0)
    }

    @Test func `IRET checks CS, SS and EIP and changes nothing on a fault`() throws {
        let rig = try Rig()
        func frame(_ words: [UInt64]) {
            for (n, word) in words.enumerated() { rig.put32(word, at: 0x20000 + UInt64(n) * 4) }
        }
        let before = rig.place
        for (cs, ss, expected) in [
            (0, 0x23, CPUException.generalProtection(0)), (0x10, 0x23, .generalProtection(0x10)),
            (0x98, 0x23, .segmentNotPresent(0x98)), (0x0B, 0x23, .generalProtection(0x08)),
            (0x18, 0x23, .generalProtection(0x18)), (0x1B, 0, .generalProtection(0)),
            (0x1B, 0x20, .generalProtection(0x20)), (0x1B, 0x13, .generalProtection(0x10)),
            (0x1B, 0x1B, .generalProtection(0x18)), (0x1008, 0x23, .generalProtection(0x1008)),
        ] as [(UInt64, UInt64, CPUException)] {
            frame([0x6000, cs, 2, 0x30000, ss])
            #expect(rig.run(.iret) == expected)
        }
        frame([0x10000, 0x70, 2])
        #expect(rig.run(.iret) == .generalProtection(0))
        #expect(rig.place == before)
        rig.enterLevel(3)
        frame([0x6000, 0x08, 2])
        #expect(rig.run(.iret) == .generalProtection(0x08))
    }

    @Test func `IRET changes IOPL at CPL 0 and IF within IOPL only`() throws {
        let rig = try Rig()
        func iret(_ cs: UInt64, _ flags: UInt64, size: UInt8 = 4) {
            rig.v.gpr[4] = 0x20000
            rig.put32(0x6000, at: 0x20000)
            rig.put32(cs, at: 0x20004)
            rig.put32(flags, at: 0x20008)
            #expect(rig.run(.iret, size: size) == nil)
        }
        iret(0x08, 0x3D_3FD7)
        #expect(rig.v.rflags == 0x3D_3FD7)
        rig.v.rflags = 2
        rig.enterLevel(3)
        iret(0x1B, 0x3D_3FD7)
        #expect(rig.v.rflags == 0x25_0DD7)
        rig.v.rflags = 0x3002
        iret(0x1B, 0x202)
        #expect(rig.v.rflags == 0x3202)
    }

    @Test func `POPF follows CPL and IOPL and clears RF`() throws {
        let rig = try Rig()
        rig.v.rflags = 0x10002
        try rig.v.popFlags(0x3D_7FD7, size: 4)
        #expect(rig.v.rflags == 0x24_7FD7)
        rig.enterLevel(3)
        try rig.v.popFlags(0x0002, size: 4)
        #expect(rig.v.rflags == 0x3002)
        rig.v.rflags = 0x202
        try rig.v.popFlags(0x3002, size: 4)
        #expect(rig.v.rflags == 0x202)
        try rig.v.popFlags(0x4_00D7, size: 2)
        #expect(rig.v.rflags == 0x2D7)
        #expect(try rig.v.pushedFlags(size: 4) == 0x2D7)
    }

    @Test func `Long mode always pushes SS:RSP on an aligned stack`() throws {
        let rig = try Rig()
        rig.enterLong(0)
        rig.longVector(0x30, Rig.longCode0, 0xFFFF_8000_0000_9000)
        rig.v.gpr[4] = 0x20009
        #expect(rig.inject(0x30) == nil)
        #expect(rig.s.pointee.rip == 0xFFFF_8000_0000_9000)
        #expect(rig.v.gpr[4] == 0x20000 - 40)
        #expect(stack(rig, 5, size: 8) == [0x5000, 0x88, 2, 0x20009, 0x10])
        #expect(rig.run(.iret, size: 8) == nil)
        #expect(rig.place == [0x88, 0x5000, 0x10, 0x20009, 0, 2])
    }

    @Test func `Long mode from user code: RSP0, null SS, error code, and back`() throws {
        let rig = try Rig()
        rig.enterLong(3)
        rig.longVector(14, Rig.longCode0, 0x9000)
        rig.v.rflags = 0x202
        #expect(rig.deliver(.pageFault(6)) == nil)
        #expect(rig.place == [0x88, 0x9000, 0, 0x21000 - 48, 0, 2])
        #expect(stack(rig, 6, size: 8) == [6, 0x5000, 0x93, 0x10202, 0x20000, 0x23])
        rig.v.gpr[4] += 8
        #expect(rig.run(.iret, size: 8) == nil)
        #expect(rig.place == [0x93, 0x5000, 0x23, 0x20000, 3, 0x10202])
    }

    @Test func `A return to user code keeps the base of a null FS and drops kernel data segments`() throws {
        let rig = try Rig()
        rig.enterLong(3)
        rig.set(4, 0, base: 0x7F00_1234_5000, limit: 0, attributes: 0)
        rig.longVector(0x30, Rig.longCode0, 0x9000)
        #expect(rig.inject(0x30) == nil)
        #expect(rig.load(3, Rig.data0) == nil)
        #expect(rig.run(.iret, size: 8) == nil)
        #expect(rig.v.segment(4).pointee.base == 0x7F00_1234_5000)
        #expect(rig.v.segment(3).pointee.attributes == 0)
        #expect(rig.v.segment(3).pointee.selector == 0)
        #expect(rig.v.segment(0).pointee.selector == Rig.data3)
    }

    @Test func `IST replaces the stack whatever the level`() throws {
        let rig = try Rig()
        rig.enterLong(0)
        rig.longVector(2, Rig.longCode0, 0x9000, ist: 1)
        #expect(rig.inject(2) == nil)
        #expect(rig.v.gpr[4] == 0x23000 - 40)
        #expect(rig.s.pointee.nmi_blocked == 1)
        #expect(rig.run(.iret, size: 8) == nil)
        #expect(rig.s.pointee.nmi_blocked == 0)
    }

    @Test func `Long mode refuses other gates, other code and bad stacks`() throws {
        let rig = try Rig()
        rig.enterLong(3)
        func int() -> CPUException? { rig.run(.int) { $0.immediate = 0x30 } }
        rig.longVector(0x30, Rig.longCode0, 0x9000)
        #expect(int() == .generalProtection(0x182))
        rig.longVector(0x30, Rig.longCode0, 0x9000, access: 0x6E)
        #expect(int() == .segmentNotPresent(0x182))
        rig.longVector(0x30, Rig.longCode0, 0x9000, access: 0xE5)
        #expect(int() == .generalProtection(0x182))
        rig.longVector(0x30, Rig.code0, 0x9000, access: 0xEE)
        #expect(int() == .generalProtection(0x08))
        rig.longVector(0x30, Rig.longCode0, 0x8000_0000_0000, access: 0xEE)
        #expect(int() == .generalProtection(0))
        rig.longVector(0x30, Rig.longCode0, 0x9000, access: 0xEE)
        rig.put64(0x8000_0000_0000, at: Rig.tssBase + 4)
        #expect(int() == .stackFault(0))
        rig.s.pointee.idtr_limit = 0x30E
        #expect(int() == .generalProtection(0x182))
    }

    @Test func `IRET from 64-bit to compatibility mode, and NT is #GP in long mode`() throws {
        let rig = try Rig()
        rig.enterLong(0)
        for (n, word) in ([0x6000, UInt64(Rig.code3), 0x202, 0x2_F000, UInt64(Rig.data3)] as [UInt64]).enumerated() {
            rig.put64(word, at: 0x20000 + UInt64(n) * 8)
        }
        rig.v.rflags = 0x4002
        #expect(rig.run(.iret, size: 8) == .generalProtection(0))
        rig.v.rflags = 2
        #expect(rig.run(.iret, size: 8) == nil)
        #expect(rig.place == [0x1B, 0x6000, 0x23, 0x2F000, 3, 0x202])
        #expect(rig.s.pointee.code_size == 4)
        rig.longVector(0x80, Rig.longCode0, 0x9000, access: 0xEE)
        #expect(rig.run(.int) { $0.immediate = 0x80 } == nil)
        #expect(rig.s.pointee.code_size == 8)
        #expect(stack(rig, 5, size: 8) == [0x6002, 0x1B, 0x202, 0x2F000, 0x23])
    }

    @Test func `STI holds interrupts for one instruction only when IF was clear`() throws {
        let rig = try Rig()
        #expect(rig.run(.sti) == nil)
        #expect(rig.s.pointee.interrupt_shadow == 1)
        rig.s.pointee.interrupt_shadow = 0
        #expect(rig.run(.sti) == nil)
        #expect(rig.s.pointee.interrupt_shadow == 0)
        rig.enterLevel(3)
        #expect(rig.run(.cli) == .generalProtection(0))
        #expect(rig.run(.hlt) == .generalProtection(0))
        rig.enterLevel(0)
        #expect(rig.run(.hlt) == .exit)
        #expect(rig.s.pointee.exit_kind == 8)
    }

    @Test func `Debug registers: aliases, reserved bits, general detect, privilege`() throws {
        let rig = try Rig()
        func write(_ n: UInt8, _ value: UInt64) -> CPUException? {
            rig.v.gpr[0] = value
            return rig.run(.movToDR) { ($0.reg, $0.rm) = (n, 0) }
        }
        #expect(write(4, 0) == nil)
        #expect(rig.s.pointee.dr.6 == 0xFFFF_0FF0)
        #expect(write(7, 0xFFFF_FFFF) == nil)
        #expect(rig.s.pointee.dr.7 == 0xFFFF_27FF)
        #expect(write(0, 1) == .debug)
        #expect(rig.s.pointee.pending_debug & 0x20 != 0)
        rig.vector(1, Rig.gate(Rig.code0, 0x9000, access: 0x8E))
        rig.deliver(.debug)
        #expect(rig.s.pointee.dr.6 == 0xFFFF_2FF0)
        #expect(rig.s.pointee.dr.7 & 0x2000 == 0)
        rig.s.pointee.cr4 = 8
        #expect(write(4, 0) == .invalidOpcode)
        rig.enterLevel(3)
        #expect(write(6, 0) == .generalProtection(0))
        rig.enterLong(0)
        #expect(write(7, 1 << 32) == .generalProtection(0))
    }

    @Test func `Breakpoints match by type, length and enable`() throws {
        let rig = try Rig()
        func arm(_ n: UInt64, _ address: UInt64, type: UInt64, length: UInt64) {
            roost_dr_at(rig.s, Int(n)).pointee = address
            rig.s.pointee.dr.7 |= 1 << (n * 2 + 1) | type << (16 + n * 4) | length << (18 + n * 4)
        }
        func data(_ address: UInt64, _ size: Int, _ write: Bool) -> UInt8 {
            rig.s.pointee.pending_debug = 0
            rig.v.matchDataBreakpoint(address, size: size, write: write)
            return rig.s.pointee.pending_debug
        }
        arm(0, 0x5000, type: 0, length: 0)
        arm(1, 0x6002, type: 1, length: 3)
        arm(2, 0x7000, type: 3, length: 0)
        #expect(rig.v.instructionBreakpoint(at: 0x5000))
        #expect(rig.s.pointee.pending_debug == 1)
        #expect(!rig.v.instructionBreakpoint(at: 0x6000))
        #expect(data(0x6000, 1, true) == 2)
        #expect(data(0x6000, 1, false) == 0)
        #expect(data(0x5FFD, 4, true) == 2)
        #expect(data(0x6004, 4, true) == 0)
        #expect(data(0x6FFF, 2, false) == 4)
        #expect(data(0x7001, 1, false) == 0)
        arm(3, 0x3F8, type: 2, length: 0)
        try rig.v.checkIOPermission(port: 0x3F8, size: 1)
        #expect(rig.s.pointee.pending_debug & 8 == 0)
        rig.s.pointee.cr4 = 8
        try rig.v.checkIOPermission(port: 0x3F8, size: 1)
        #expect(rig.s.pointee.pending_debug & 8 != 0)
    }
}
