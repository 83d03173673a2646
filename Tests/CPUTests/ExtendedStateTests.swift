// The XSAVE family, XCR0 and PKRU against SDM 1 chapter 13.
import CHost
import CPU
import GuestMemory
import Testing

@Suite("Extended state") struct ExtendedStateTests {
    // Instructions on [RDI].
    static let xsave: [UInt8] = [0x0F, 0xAE, 0x27]
    static let xrstor: [UInt8] = [0x0F, 0xAE, 0x2F]
    static let xsaveopt: [UInt8] = [0x0F, 0xAE, 0x37]
    static let xsavec: [UInt8] = [0x0F, 0xC7, 0x27]
    static let xsaves: [UInt8] = [0x0F, 0xC7, 0x2F]
    static let xrstors: [UInt8] = [0x0F, 0xC7, 0x1F]
    static let fxsave: [UInt8] = [0x0F, 0xAE, 0x07]
    static let fxrstor: [UInt8] = [0x0F, 0xAE, 0x0F]
    static let xgetbv: [UInt8] = [0x0F, 0x01, 0xD0]
    static let xsetbv: [UInt8] = [0x0F, 0x01, 0xD1]
    static let rdpkru: [UInt8] = [0x0F, 0x01, 0xEE]
    static let wrpkru: [UInt8] = [0x0F, 0x01, 0xEF]
    static let cpuid: [UInt8] = [0x0F, 0xA2]
    static let data = CodeRig.data

    /// A rig with everything that a server's processor has: x87, SSE, AVX and PKRU in XCR0.
    private func makeRig() throws -> CodeRig {
        let rig = try CodeRig(model: CodeRig.model("server"))
        rig.s.pointee.cr4 |= 0x44_0600
        rig.s.pointee.xcr0 = 0x207
        rig.v.gpr[7] = Self.data
        rig.v.updateMode()
        return rig
    }

    private func run(_ rig: CodeRig, _ code: [UInt8], mask: UInt64 = ~0) throws -> UInt8? {
        rig.v.gpr[0] = mask & 0xFFFF_FFFF
        rig.v.gpr[2] = mask >> 32
        return try rig.run(code)
    }

    /// Fills XMM1, YMM1's upper half and ST0's place with a number.
    private func fill(_ rig: CodeRig, _ value: UInt64) {
        guard let area = roost_xsave_area(rig.s) else { return }
        for at in [32, 176, 184, 592, 600] {
            UnsafeMutableRawPointer(area + at).storeBytes(of: value, as: UInt64.self)
        }
    }

    private func state(_ rig: CodeRig, _ at: Int) -> UInt64 {
        guard let area = roost_xsave_area(rig.s) else { return 0 }
        return UnsafeRawPointer(area + at).load(as: UInt64.self)
    }

    @Test("XSETBV: x87 always, AVX only with SSE, nothing unknown, CPL 0 (SDM 1 13.3)")
    func controlRegister() throws {
        let rig = try makeRig()
        rig.v.gpr[1] = 0
        for (value, vector) in [(7, nil), (3, nil), (0x207, nil), (0, 13), (5, 13), (0xF, 13), (1, nil)]
            as [(UInt64, UInt8?)]
        {
            #expect(try run(rig, Self.xsetbv, mask: value) == vector, "\(value)")
            if vector == nil { #expect(rig.s.pointee.xcr0 == value) }
        }
        #expect(try run(rig, Self.xgetbv) == nil)
        #expect(rig.v.gpr[0] == 1)
        rig.v.gpr[1] = 5
        #expect(try run(rig, Self.xgetbv) == 13)
    }

    @Test(
        "The standard form: what is asked for, at CPUID's offsets; the rest of the area stays (SDM 1 13.7)",
        arguments: [xsave, xsaveopt])
    func standardForm(code: [UInt8]) throws {
        let rig = try makeRig()
        fill(rig, 0x1122_3344_5566_7788)
        rig.s.pointee.pkru = 0x5555_5554
        try rig.system.memory.write([UInt8](repeating: 0xEE, count: 1024), at: .init(Self.data))
        for n in 64..<72 as Range<UInt64> { rig.system.put64(0, at: Self.data + n * 8) }
        #expect(try run(rig, code, mask: 0x206) == nil)
        #expect(rig.system.get64(Self.data + 512) == 0x206)
        #expect(rig.system.get64(Self.data + 520) == 0)
        #expect(rig.system.get64(Self.data + 32) == 0xEEEE_EEEE_EEEE_EEEE)
        #expect(rig.system.get64(Self.data + 176) == 0x1122_3344_5566_7788)
        #expect(rig.system.get64(Self.data + 592) == 0x1122_3344_5566_7788)
        #expect(rig.system.get64(Self.data + 832) == 0x5555_5554)
        #expect(rig.system.get64(Self.data + 840) == 0xEEEE_EEEE_EEEE_EEEE)
    }

    @Test(
        "What was saved is restored, and a component that isn't in the area gets its first value (SDM 1 13.8)",
        arguments: [(xsave, xrstor), (xsavec, xrstor), (xsaves, xrstors)])
    func restoring(save: [UInt8], restore: [UInt8]) throws {
        let rig = try makeRig()
        fill(rig, 0xABCD)
        rig.s.pointee.pkru = 0xC
        #expect(try run(rig, save) == nil)
        fill(rig, 1)
        rig.s.pointee.pkru = 0
        #expect(try run(rig, restore) == nil)
        for at in [32, 176, 592] { #expect(state(rig, at) == 0xABCD, "\(at)") }
        #expect(rig.s.pointee.pkru == 0xC)
        // Only SSE is in the area: AVX and PKRU go to their first values, x87 isn't asked for.
        rig.system.put64(2, at: Self.data + 512)
        fill(rig, 1)
        rig.s.pointee.pkru = 0xFC
        #expect(try run(rig, restore, mask: 0x206) == nil)
        #expect([32, 176, 592].map { state(rig, $0) } == [1, 0xABCD, 0])
        #expect(rig.s.pointee.pkru == 0)
    }

    @Test("The compacted form has no gap for a component that isn't in it (SDM 1 13.4.3)", arguments: [xsavec, xsaves])
    func compactedForm(code: [UInt8]) throws {
        let rig = try makeRig()
        rig.s.pointee.pkru = 0x74
        #expect(try run(rig, code, mask: 0x202) == nil)
        #expect(rig.system.get64(Self.data + 512) == 0x202)
        #expect(rig.system.get64(Self.data + 520) == 0x8000_0000_0000_0202)
        #expect(rig.system.get64(Self.data + 576) == 0x74)
        rig.s.pointee.pkru = 0
        #expect(try run(rig, code == Self.xsaves ? Self.xrstors : Self.xrstor, mask: 0x202) == nil)
        #expect(rig.s.pointee.pkru == 0x74)
    }

    @Test("Headers, alignment and control bits that fault (SDM 1 13.7 to 13.12)")
    func faults() throws {
        let rig = try makeRig()
        #expect(try run(rig, Self.xsave) == nil)
        rig.v.gpr[7] = Self.data + 8
        #expect(try run(rig, Self.xsave) == 13)
        rig.v.gpr[7] = Self.data
        // XRSTORS takes the compacted form only; reserved bits of the header; components that XCR0 hasn't.
        #expect(try run(rig, Self.xrstors) == 13)
        rig.system.put64(1, at: Self.data + 528)
        #expect(try run(rig, Self.xrstor) == 13)
        rig.system.put64(0, at: Self.data + 528)
        rig.system.put64(8, at: Self.data + 512)
        #expect(try run(rig, Self.xrstor) == 13)
        rig.system.put64(1 << 63 | 1, at: Self.data + 520)
        rig.system.put64(3, at: Self.data + 512)
        #expect(try run(rig, Self.xrstor) == 13)
        rig.s.pointee.cr0 |= 8
        #expect(try run(rig, Self.xsave) == 7)
        rig.s.pointee.cr0 &= ~8
        rig.s.pointee.cr4 &= ~0x4_0000
        #expect(try run(rig, Self.xsave) == 6)
        #expect(try run(rig, Self.xgetbv) == 6)
    }

    @Test(
        "Of one instruction 16 accesses reach devices; then reads give ones, writes nothing, and it ends",
        arguments: [fxsave, fxrstor])
    func devices(code: [UInt8]) throws {
        let rig = try makeRig()
        // From 2 MiB on there is no memory.
        rig.system.put64(0xE000_0087, at: 0x12008)
        rig.v.gpr[7] = 0x20_0000
        try rig.load(code)
        var accesses = 0
        var end: VMExit?
        while end == nil && accesses < 100 {
            let exit = rig.interpreter.run()
            switch exit {
            case .mmioRead, .mmioWrite:
                accesses += 1
                rig.interpreter.complete(0)
            default: end = exit
            }
        }
        #expect(end == .halt)
        #expect(accesses == 16)
        // XMM0 is beyond the first 16 quadwords.
        #expect(state(rig, 160) == (code == Self.fxrstor ? ~0 : 0))
        // The next instruction asks again.
        try rig.load([0x48, 0x8B, 0x07])
        #expect(rig.interpreter.run() == .mmioRead(address: 0xE000_0000, size: 8))
        rig.interpreter.complete(5)
        #expect(rig.interpreter.run() == .halt)
        #expect(rig.v.gpr[0] == 5)
    }

    @Test("XSAVES and XRSTORS are the supervisor's")
    func privilege() throws {
        for (code, vector) in [(Self.xsaves, 13), (Self.xrstors, 13), (Self.xsavec, nil)] as [([UInt8], UInt8?)] {
            let rig = try makeRig()
            rig.system.enterLong(3)
            rig.s.pointee.cr4 |= 0x44_0600
            rig.v.updateMode()
            // HLT faults at CPL 3, so an instruction that works ends with 13 one byte later.
            let end = try run(rig, code)
            #expect(end == 13)
            let next = CodeRig.code + UInt64(vector == nil ? code.count : 0)
            #expect(rig.frame.rip == next)
        }
    }

    @Test("RDPKRU and WRPKRU: ECX and EDX zero, CR4.PKE (SDM 2B)")
    func protectionKeyRights() throws {
        let rig = try makeRig()
        rig.v.gpr[1] = 0
        #expect(try run(rig, Self.wrpkru, mask: 0x5555_5550) == nil)
        rig.v.gpr[2] = 7
        #expect(try rig.run(Self.rdpkru) == nil)
        #expect(rig.v.gpr[0] == 0x5555_5550)
        #expect(rig.v.gpr[2] == 0)
        #expect(try run(rig, Self.wrpkru, mask: 1 << 32) == 13)
        rig.v.gpr[1] = 1
        #expect(try run(rig, Self.rdpkru) == 13)
        rig.s.pointee.cr4 &= ~0x40_0000
        rig.v.gpr[1] = 0
        #expect(try run(rig, Self.rdpkru) == 6)
    }

    @Test("CPUID tells the sizes that the instructions use", arguments: [3, 7, 0x203, 0x207] as [UInt64])
    func sizes(xcr0: UInt64) throws {
        let rig = try makeRig()
        rig.s.pointee.xcr0 = xcr0
        func ask(_ leaf: UInt64, _ sub: UInt64) throws -> [UInt64] {
            rig.v.gpr[0] = leaf
            rig.v.gpr[1] = sub
            #expect(try rig.run(Self.cpuid) == nil)
            return [rig.v.gpr[0], rig.v.gpr[3], rig.v.gpr[1], rig.v.gpr[2]]
        }
        #expect(try ask(0xD, 0) == [0x207, xcr0 & 0x200 != 0 ? 840 : xcr0 & 4 != 0 ? 832 : 576, 840, 0])
        let compacted = 576 + (xcr0 & 4 != 0 ? 256 : 0) + (xcr0 & 0x200 != 0 ? 8 : 0) as UInt64
        #expect(try ask(0xD, 1)[1] == compacted)
        #expect(try ask(0xD, 9)[0...1] == [8, 832])
        // The last byte that XSAVEC writes is the last that CPUID counts; of the header it writes the first 16.
        try rig.system.memory.write([UInt8](repeating: 0xEE, count: 1024), at: .init(Self.data))
        rig.s.pointee.pkru = 0
        #expect(try run(rig, Self.xsavec) == nil)
        let area = try rig.system.memory.read(.init(Self.data), length: 1024)
        #expect(area.dropFirst(Int(compacted)).allSatisfy { $0 == 0xEE })
        #expect(area[compacted == 576 ? 527 : Int(compacted) - 1] != 0xEE)
    }
}
