// State into the kernel's vCPU and out again; between engines.
import CHost
import CPU
import GuestMemory
import KVM
import Testing

@Suite("KVM state", .serialized, .enabled(if: HostKVM.isThere, HostKVM.reason))
struct StateTests {
    @Test("What goes in comes out", arguments: KVMRig.Mode.allCases)
    func roundTrip(_ mode: KVMRig.Mode) throws {
        let rig = try KVMRig(mode, Payload.spin)
        let s = rig.cpu.state
        for n in 0..<16 where n != 4 { rig.cpu.vcpu.gpr[n] = 0x0101_0101_0101_0101 &* UInt64(n + 1) }
        rig.cpu.vcpu.rflags = 0x246
        let area = UnsafeMutableRawPointer(roost_xsave_area(s)!)
        for n in 0..<32 {
            area.storeBytes(of: UInt64(n) &* 0x1234_5678_9ABC, toByteOffset: 160 + n * 8, as: UInt64.self)
        }
        area.storeBytes(of: 0x027F, toByteOffset: 0, as: UInt16.self)
        area.storeBytes(of: 0x1FA0, toByteOffset: 24, as: UInt32.self)
        if s.pointee.xcr0_allowed & 4 != 0 {
            s.pointee.xcr0 = 7
            for n in 0..<32 { area.storeBytes(of: UInt64(n) &* 0x1111, toByteOffset: 576 + n * 8, as: UInt64.self) }
        }
        s.pointee.star = 0x0023_0010_0000_0000
        s.pointee.lstar = 0xFFFF_FFFF_8100_0000
        s.pointee.kernel_gs_base = 0xFFFF_8880_0000_1000
        s.pointee.sfmask = 0x4_7700
        s.pointee.pat = 0x0407_0506_0007_0106
        s.pointee.dr.0 = 0x1234
        s.pointee.dr.6 = 0xFFFF_0FF0
        s.pointee.cr2 = 0xABCD_E000
        s.pointee.mtrr_default = 0x806
        let before = rig.cpu.saveState()
        try rig.engine.loadState()
        for n in 0..<16 { rig.cpu.vcpu.gpr[n] = 0 }
        area.initializeMemory(as: UInt8.self, repeating: 0, count: 832)
        (s.pointee.star, s.pointee.lstar, s.pointee.pat, s.pointee.cr2, s.pointee.cr3) = (0, 0, 0, 0, 0)
        #expect(try rig.engine.storeState() == nil)
        var after = rig.cpu.saveState()
        // A hypervisor without hardware beneath it may let the guest read the host's counter.
        if KVMHost.processorHasVirtualization {
            #expect(after.timeStamp >= before.timeStamp && after.timeStamp - before.timeStamp < 100_000_000_000)
        }
        after.timeStamp = before.timeStamp
        // The processor sets the busy bit of TR and bit 4 of CR0 by itself.
        #expect(after.general == before.general)
        #expect(after.rip == before.rip && after.rflags == before.rflags && after.cpl == before.cpl)
        #expect(after.segments.prefix(6) == before.segments.prefix(6))
        #expect(after.tables == before.tables)
        #expect(after.control == before.control)
        #expect(after.debug == before.debug)
        #expect(after.registers == before.registers)
        #expect(Array(after.vectors[0..<3]) == Array(before.vectors[0..<3]))
        #expect(Array(after.vectors[20..<52]) == Array(before.vectors[20..<52]))
        #expect(Array(after.vectors[72..<104]) == Array(before.vectors[72..<104]))
        #expect(after.events == before.events)
    }

    @Test("A program goes on where another engine left it", arguments: KVMRig.Mode.allCases)
    func move(_ mode: KVMRig.Mode) throws {
        // again: inc eax; out 0x80, al; jmp again
        let code: [UInt8] = mode == .real ? [0x40, 0xE6, 0x80, 0xEB, 0xFB] : [0xFF, 0xC0, 0xE6, 0x80, 0xEB, 0xFA]
        let rig = try KVMRig(mode, code)
        var expected: UInt8 = 0
        for round in 0..<6 {
            if round % 2 == 0 {
                try rig.engine.loadState()
                for _ in 0..<3 {
                    expected += 1
                    #expect(rig.run() == Payload.said(expected))
                    rig.engine.complete(0)
                }
                rig.engine.kick()
                #expect(rig.engine.run() == .interrupted)
                #expect(rig.engine.isBetweenInstructions)
                #expect(try rig.engine.storeState() == nil)
            } else {
                let translator = try Translator(cpu: rig.cpu, memory: rig.memory, settings: Translator.Settings())
                for n in 0..<3 {
                    expected += 1
                    #expect(translator.run() == Payload.said(expected))
                    translator.complete(0)
                    if n == 2 {
                        // The instruction ends before the engine does.
                        roost_attention_set(rig.cpu.state, ROOST_ATTENTION_KICK)
                        #expect(translator.run() == .interrupted)
                    }
                }
                #expect(rig.cpu.state.pointee.completed_count == 0)
            }
        }
    }
}
