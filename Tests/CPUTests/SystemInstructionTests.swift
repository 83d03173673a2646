// Instructions of the operating system that need a running program to show what they do.
import CHost
import CPU
import GuestMemory
import Testing

@Suite("System instructions") struct SystemInstructionTests {
    @Test("MONITOR and MWAIT: CPL 0, ECX 0, a wait that an interrupt ends (SDM 2B)")
    func monitorAndWait() throws {
        let rig = try CodeRig(model: CodeRig.model("server"))
        rig.v.gpr[0] = CodeRig.data + 8
        rig.v.gpr[1] = 0
        #expect(try rig.run([0x0F, 0x01, 0xC8]) == nil)
        #expect(rig.s.pointee.monitor_address == CodeRig.data + 8)
        rig.v.rflags |= 0x200
        #expect(try rig.run([0x0F, 0x01, 0xC9, 0x0F, 0x0B]) == nil)
        #expect(rig.s.pointee.rip == CodeRig.code + 3)
        rig.v.gpr[1] = 1
        #expect(try rig.run([0x0F, 0x01, 0xC8]) == 13)
        rig.v.gpr[1] = 0
        for code in [0xC8, 0xC9] as [UInt8] {
            rig.system.enterLong(3)
            #expect(try rig.run([0x0F, 0x01, code]) == 6)
        }
    }

    @Test("INVPCID: one address, one context, all (SDM 2A)")
    func invalidateByContext() throws {
        let rig = try CodeRig(model: CodeRig.model("server"))
        // Linear 1 GiB by a table at 0x14000 that the tests change behind the TLB.
        let linear: UInt64 = 0x4000_0000
        for root in [0x10000, 0x16000] as [UInt64] {
            rig.system.put64(0x11007, at: root)
        }
        rig.system.put64(0x13007, at: 0x11008)
        rig.system.put64(0x14007, at: 0x13000)
        rig.system.put64(1, at: 0x50000)
        rig.system.put64(2, at: 0x51000)
        rig.s.pointee.cr4 |= 0x2_0000
        func remap(_ page: UInt64) { rig.system.put64(page | 7, at: 0x14000) }
        func value() -> UInt64? { try? rig.v.load(3, linear, as: UInt64.self) }
        func invalidate(_ kind: UInt64, pcid: UInt64, _ address: UInt64 = 0) throws -> UInt8? {
            rig.system.put64(pcid, at: CodeRig.data)
            rig.system.put64(address, at: CodeRig.data + 8)
            rig.v.gpr[0] = kind
            rig.v.gpr[7] = CodeRig.data
            return try rig.run([0x66, 0x0F, 0x38, 0x82, 0x07])
        }
        for (kind, pcid, address) in [(0, 1, linear), (1, 1, 0), (2, 0, 0), (3, 0, 0)] as [(UInt64, UInt64, UInt64)] {
            try rig.v.writeCR3(0x10001)
            remap(0x50000)
            #expect(try invalidate(2, pcid: 0) == nil)
            #expect(value() == 1)
            remap(0x51000)
            #expect(value() == 1, "still cached")
            // From another context: its own translations stay, the named one's go.
            try rig.v.writeCR3(0x16002 | 1 << 63)
            #expect(try invalidate(kind, pcid: pcid, address) == nil, "\(kind)")
            try rig.v.writeCR3(0x10001 | 1 << 63)
            #expect(value() == 2, "kind \(kind)")
        }
        #expect(try invalidate(4, pcid: 0) == 13)
        #expect(try invalidate(1, pcid: 0x1000) == 13)
        #expect(try invalidate(0, pcid: 1, 0x8000_0000_0000) == 13)
        rig.system.enterLong(3)
        #expect(try invalidate(2, pcid: 0) == 13)
    }

    @Test("TF traps after the next instruction, with DR6.BS (SDM 3B 18.3.1.4)")
    func singleStep() throws {
        let rig = try CodeRig()
        // pushf; or dword [rsp], 0x100; popf; nop; inc eax
        let code: [UInt8] = [0x9C, 0x81, 0x0C, 0x24, 0, 1, 0, 0, 0x9D, 0x90, 0xFF, 0xC0]
        rig.v.gpr[0] = 0
        #expect(try rig.run(code) == 1)
        #expect(rig.system.get64(rig.v.gpr[4]) == CodeRig.code + 10)
        #expect(rig.s.pointee.dr.6 & 0x4000 != 0)
        #expect(rig.v.gpr[0] == 0)
    }

    @Test("INT n and INT1 clear TF: no trap follows, and the image has TF but not RF (SDM 3B 18.3.1)")
    func singleStepIntoHandler() throws {
        let rig = try CodeRig()
        // Vector 0x20: inc eax; hlt. Vector 0x21: iretq.
        try rig.system.memory.write([0xFF, 0xC0, 0xF4], at: .init(0x9000))
        try rig.system.memory.write([0x48, 0xCF], at: .init(0x9010))
        rig.system.longVector(0x20, SystemRig.longCode0, 0x9000)
        rig.system.longVector(0x21, SystemRig.longCode0, 0x9010)
        rig.v.gpr[0] = 0
        rig.v.rflags = 0x1_0102
        #expect(try rig.run([0xCD, 0x20]) == nil)
        #expect(rig.v.gpr[0] == 1)
        #expect(rig.system.get64(rig.v.gpr[4]) == CodeRig.code + 2)
        #expect(rig.system.get64(rig.v.gpr[4] + 16) == 0x102)
        // INT1 and INT3: their own handler is entered once.
        for (code, vector) in [(0xF1, 1), (0xCC, 3)] as [(UInt8, UInt8)] {
            rig.v.rflags = 0x102
            #expect(try rig.run([code]) == vector)
            #expect(rig.system.get64(rig.v.gpr[4]) == CodeRig.code + 1)
        }
        #expect(rig.s.pointee.dr.6 & 0x4000 == 0)
        // IRET brings TF back: it traps after the instruction that follows.
        rig.v.rflags = 0x102
        #expect(try rig.run([0xCD, 0x21, 0x90, 0x90]) == 1)
        #expect(rig.system.get64(rig.v.gpr[4]) == CodeRig.code + 3)
        #expect(rig.s.pointee.dr.6 & 0x4000 != 0)
    }

    /// Goes on at `code + 24` by IRETQ, with these flags; RAX and RCX are lost.
    private func returning(_ rflags: UInt32) -> [UInt8] {
        func word(_ value: UInt32) -> [UInt8] { (0..<4).map { UInt8(truncatingIfNeeded: value >> UInt32($0 * 8)) } }
        // mov eax, target; mov rcx, rsp; push 0x10; push rcx; push rflags; push 0x88; push rax; iretq
        var code: [UInt8] = [0xB8]
        code += word(UInt32(CodeRig.code + 24))
        code += [0x48, 0x89, 0xE1, 0x6A, 0x10, 0x51, 0x68]
        code += word(rflags)
        code += [0x68, 0x88, 0, 0, 0, 0x50, 0x48, 0xCF]
        return code
    }

    @Test("RF that IRET loads holds for one instruction, whether breakpoints are armed or not (SDM 3B 18.3.1.1)")
    func resumeFlag() throws {
        let rig = try CodeRig()
        rig.s.pointee.dr.0 = CodeRig.code + 24
        rig.s.pointee.dr.7 = 0x402
        rig.v.armDebug()
        rig.v.gpr[3] = 0
        // target: inc ebx; jmp target
        #expect(try rig.run(returning(0x1_0002) + [0xFF, 0xC3, 0xEB, 0xFC]) == 1)
        #expect(rig.v.gpr[3] == 1)
        #expect(rig.system.get64(rig.v.gpr[4]) == CodeRig.code + 24)
        #expect(try rig.run(returning(2) + [0xFF, 0xC3, 0xEB, 0xFC]) == 1)
        #expect(rig.v.gpr[3] == 1)
        // Nothing armed: a trap later has it clear.
        rig.s.pointee.dr.7 = 0x400
        rig.v.armDebug()
        #expect(try rig.run(returning(0x1_0002) + [0x90, 0xCC]) == 3)
        #expect(rig.system.get64(rig.v.gpr[4] + 16) & 0x1_0000 == 0)
    }

    @Test("A repeated string instruction meets its breakpoint once, however often it is suspended (SDM 3B 18.3.1.1)")
    func resumeFlagOfStrings() throws {
        let rig = try CodeRig()
        // A data breakpoint elsewhere has it go on element by element.
        rig.s.pointee.dr.0 = CodeRig.code
        rig.s.pointee.dr.1 = 0x6_0000
        rig.s.pointee.dr.7 = 0x40A | 0xD << 20
        rig.v.armDebug()
        rig.v.gpr[1] = 5
        rig.v.gpr[7] = CodeRig.data
        #expect(try rig.run([0xF3, 0xAA]) == 1)
        #expect(rig.v.gpr[1] == 5)
        rig.v.rflags |= 0x1_0000
        #expect(try rig.run([0xF3, 0xAA]) == nil)
        #expect(rig.v.gpr[1] == 0)
        #expect(rig.v.gpr[7] == CodeRig.data + 5)
    }

    @Test("An instruction breakpoint faults before it, a data breakpoint traps after it (SDM 3B 18.2)")
    func breakpoints() throws {
        let rig = try CodeRig()
        // mov [rdi], eax; nop; inc eax
        let code: [UInt8] = [0x89, 0x07, 0x90, 0xFF, 0xC0]
        rig.v.gpr[0] = 7
        rig.v.gpr[7] = CodeRig.data + 4
        rig.s.pointee.dr.0 = CodeRig.code + 2
        rig.s.pointee.dr.7 = 0x402
        rig.v.armDebug()
        #expect(try rig.run(code) == 1)
        #expect(rig.system.get64(rig.v.gpr[4]) == CodeRig.code + 2)
        #expect(rig.s.pointee.dr.6 & 0xF == 1)
        // With RF in the frame, as a debugger sets it, the instruction runs.
        #expect(rig.system.get64(rig.v.gpr[4] + 16) & 0x1_0000 == 0)
        rig.v.rflags |= 0x1_0000
        #expect(try rig.run([0x90, 0x90, 0x90]) == 1)
        rig.s.pointee.dr.0 = CodeRig.code
        rig.v.armDebug()
        rig.v.rflags |= 0x1_0000
        #expect(try rig.run([0x90, 0x90, 0x90]) == nil)
        // DR1: a write of 4 bytes at the data.
        rig.s.pointee.dr.6 = 0xFFFF_0FF0
        rig.s.pointee.dr.1 = CodeRig.data + 4
        rig.s.pointee.dr.7 = 0x408 | 0xD << 20
        rig.v.armDebug()
        rig.system.put32(0, at: CodeRig.data + 4)
        #expect(try rig.run(code) == 1)
        #expect(rig.system.get64(rig.v.gpr[4]) == CodeRig.code + 2)
        #expect(rig.s.pointee.dr.6 & 0xF == 2)
        #expect(rig.system.get32(CodeRig.data + 4) == 7)
    }

    @Test("An instruction that the model lacks is #UD, or the older one that its prefix doesn't change")
    func models() throws {
        let (small, large) = (
            try CodeRig(model: CodeRig.model("x86-64")), try CodeRig(model: CodeRig.model("x86-64-v3"))
        )
        // popcnt eax, ecx; movbe eax, [rdi]; andn eax, ecx, edx; crc32 eax, cl
        for code in [
            [0xF3, 0x0F, 0xB8, 0xC1], [0x0F, 0x38, 0xF0, 0x07], [0xC4, 0xE2, 0x70, 0xF2, 0xC2],
            [0xF2, 0x0F, 0x38, 0xF0, 0xC1],
        ] as [[UInt8]] {
            for rig in [small, large] { rig.v.gpr[7] = CodeRig.data }
            #expect(try small.run(code) == 6, "\(code)")
            #expect(try large.run(code) == nil, "\(code)")
        }
        // tzcnt and lzcnt eax, ecx: BSF and BSR without the feature.
        for (rig, trailing, leading) in [(small, 4, 8), (large, 4, 23)] as [(CodeRig, UInt64, UInt64)] {
            rig.v.gpr[1] = 0x110
            #expect(try rig.run([0xF3, 0x0F, 0xBC, 0xC1]) == nil)
            #expect(rig.v.gpr[0] == trailing)
            #expect(try rig.run([0xF3, 0x0F, 0xBD, 0xC1]) == nil)
            #expect(rig.v.gpr[0] == leading)
        }
    }

    @Test("RDRAND and RDSEED set CF and give each time another number; RDPID gives TSC_AUX")
    func randomNumbers() throws {
        let rig = try CodeRig(model: CodeRig.model("server"))
        rig.system.cpu.seedRandom([UInt8](1...16))
        var seen: Set<UInt64> = []
        for code in [[0x48, 0x0F, 0xC7, 0xF0], [0x48, 0x0F, 0xC7, 0xF8]] as [[UInt8]] {
            for _ in 0..<100 {
                #expect(try rig.run(code) == nil)
                #expect(rig.v.rflags & 0x8D5 == 1)
                seen.insert(rig.v.gpr[0])
            }
        }
        #expect(seen.count == 200)
    }
}
