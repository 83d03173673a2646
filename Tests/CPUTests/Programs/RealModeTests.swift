// 16-bit code in translated form: branches of every kind, x87, and two code segments with other code at one offset.
import CHost
import CPU
import GuestMemory
import Testing

@Suite struct RealModeTests {
    /// Loaded at 0x2000, for segment 0x200: offset and bytes.
    private static let program: [(Int, [UInt8])] = [
        (
            0,
            [
                0xDB, 0xE3, 0x90,  //        fninit; nop
                0xBE, 0x28, 0x00,  //        mov si, 40
                0xB9, 0x07, 0x00,  // 06:    mov cx, 7
                0xE8, 0x46, 0x00,  // 09:    call 52
                0xE2, 0xFB,  //              loop 09
                0xE3, 0x01,  //              jcxz 11
                0xF4,  //                    hlt
                0x6A, 0x05,  // 11:          push 5
                0xE8, 0x42, 0x00,  //        call 58
                0xBB, 0x64, 0x00,  //        mov bx, 64
                0x89, 0xF7,  //              mov di, si
                0x83, 0xE7, 0x02,  //        and di, 2
                0xFF, 0x21,  //              jmp [bx+di]
                0x83, 0xC0, 0x03,  // 20:    add ax, 3
                0xEB, 0x03,  //              jmp 28
                0x83, 0xC0, 0x05,  // 25:    add ax, 5
                0xFF, 0x16, 0x68, 0x00,  //28: call [68]
                0xBA, 0x52, 0x00,  //        mov dx, 52
                0xFF, 0xD2,  //              call dx
                0xD9, 0xE8,  //              fld1
                0xD9, 0xEB,  //              fldpi
                0xDE, 0xC1,  //              faddp
                0xDF, 0x1E, 0x6A, 0x00,  //  fistp word [6a]
                0x03, 0x06, 0x6A, 0x00,  //  add ax, [6a]
                0x9A, 0x00, 0x03, 0x00, 0x04,  // call 0400:0300
                0x0E,  //                    push cs
                0xE8, 0xB8, 0x02,  //        call 300
                0xE8, 0xB5, 0x17,  //        call 1800
                0x4E,  //                    dec si
                0x75, 0xB8,  //              jnz 06
                0xA3, 0x6A, 0x00,  //        mov [6a], ax
                0xF4,  //                    hlt
                0x01, 0xC0,  // 52:          add ax, ax
                0x83, 0xD0, 0x01,  //        adc ax, 1
                0xC3,  //                    ret
                0x89, 0xE5,  // 58:          mov bp, sp
                0x03, 0x46, 0x02,  //        add ax, [bp+2]
                0xC2, 0x02, 0x00,  //        ret 2
                0x35, 0x34, 0x12,  // 60:    xor ax, 1234
                0xC3,  //                    ret
            ]
        ),
        // Data, segment 0x600's: the table of jumps, a pointer, the result.
        (0x4064, [0x20, 0x00, 0x25, 0x00, 0x60, 0x00, 0x00, 0x00]),
        (0x300, [0x83, 0xC0, 0x11, 0xCB]),  // add ax, 11; retf
        (0x1800, [0x83, 0xE8, 0x09, 0x72, 0x02, 0xEB, 0x01, 0x40, 0xC3]),  // sub ax, 9; jc, jmp, inc ax; ret
        (0x2300, [0x35, 0x0F, 0x0F, 0xCB]),  // xor ax, f0f; retf: segment 0x400's
    ]

    private static let load = 0x2000

    /// The result, and the registers, when the program has halted before `end`.
    private func run(
        _ program: [(Int, [UInt8])] = RealModeTests.program, end: UInt64 = 0x52,
        _ make: (VirtualCPU, GuestMemory) throws -> any ProgramEngine
    ) throws -> (UInt64, [UInt64]) {
        let memory = try GuestMemory(size: 0x10_0000)
        let cpu = VirtualCPU(id: 0)
        cpu.attach(memory: memory)
        cpu.vcpu.reset()
        for (offset, bytes) in program {
            try memory.write(bytes, at: GuestPhysicalAddress(UInt64(Self.load + offset)))
        }
        // Exceptions end at a HLT as well, at 0x1000 + vector.
        for n in 0..<32 as Range<UInt16> {
            let handler: UInt16 = 0x1000 + n
            try memory.write(
                [UInt8(truncatingIfNeeded: handler), UInt8(handler >> 8), 0, 0], at: GuestPhysicalAddress(UInt64(n) * 4)
            )
        }
        try memory.write([UInt8](repeating: 0xF4, count: 32), at: GuestPhysicalAddress(0x1000))
        for n in [ROOST_CS, ROOST_SS, ROOST_DS, ROOST_ES] {
            let selector: UInt16 = n == ROOST_CS ? 0x200 : 0x600
            cpu.vcpu.segment(Int(n)).pointee = roost_segment(
                base: UInt64(selector) << 4, limit: 0xFFFF, selector: selector,
                attributes: n == ROOST_CS ? 0x9B : 0x93)
        }
        cpu.state.pointee.rip = 0
        cpu.vcpu.gpr[4] = 0x8000
        cpu.vcpu.updateMode()
        let engine = try make(cpu, memory)
        for _ in 0..<10_000 where engine.run() == .halt {
            try #require(cpu.state.pointee.rip == end, "an exception: \(cpu.state.pointee.rip)")
            return (memory.read(UInt16.self, 0x606A), (0..<8).map { cpu.vcpu.gpr[$0] })
        }
        return (~0, [])
    }

    @Test func `16-bit code does the same in translated form`() throws {
        let expected = try run { Interpreter(cpu: $0, memory: $1) }
        var settings = Translator.Settings()
        settings.codeCache = 1 << 20
        settings.heat = 0
        var translator: Translator?
        let got = try run { cpu, memory in
            let made = try Translator(cpu: cpu, memory: memory, settings: settings)
            translator = made
            return made
        }
        #expect(got.0 == expected.0)
        #expect(got.1 == expected.1)
        let lockstep = try run { try LockstepEngine(cpu: $0, memory: $1, codeCache: 1 << 20) }
        #expect(lockstep.0 == expected.0)
        // Only far transfers and PUSH CS are the interpreter's; other counts are first accesses to a page.
        let callouts = (translator?.callouts ?? [:]).filter { $0.value > 2 }
        #expect(callouts == ["CALL": 40, "PUSH": 40, "RETF": 80])
    }

    /// A translator that interprets nothing first.
    private func translator(_ cpu: VirtualCPU, _ memory: GuestMemory) throws -> Translator {
        var settings = Translator.Settings()
        settings.codeCache = 1 << 20
        settings.heat = 0
        return try Translator(cpu: cpu, memory: memory, settings: settings)
    }

    @Test func `MOVBE and CRC32 have the size that the prefix gives them in 16-bit code`() throws {
        let code: [UInt8] = [
            0xBE, 0x03, 0x00,  //                          mov si, 3
            0x66, 0xB8, 0x44, 0x33, 0x22, 0x11,  // 03:    mov eax, 11223344
            0x66, 0xA3, 0x74, 0x00,  //                    mov [74], eax
            0x66, 0x0F, 0x38, 0xF0, 0x1E, 0x74, 0x00,  //  movbe ebx, [74]
            0x66, 0x0F, 0x38, 0xF1, 0x1E, 0x6A, 0x00,  //  movbe [6a], ebx
            0x66, 0x31, 0xC9,  //                          xor ecx, ecx
            0xF2, 0x0F, 0x38, 0xF1, 0xC8,  //              crc32 ecx, ax
            0x66, 0x31, 0xD2,  //                          xor edx, edx
            0x66, 0xF2, 0x0F, 0x38, 0xF1, 0xD0,  //        crc32 edx, eax
            0x4E,  //                                      dec si
            0x75, 0xD4,  //                                jnz 03
            0xF4,  //                                      hlt
        ]
        let end = UInt64(code.count)
        let expected = try run([(0, code)], end: end) { Interpreter(cpu: $0, memory: $1) }
        let got = try run([(0, code)], end: end) { try translator($0, $1) }
        #expect(expected.0 == 0x3344 && expected.1[3] == 0x4433_2211)
        #expect(got.0 == expected.0)
        #expect(got.1 == expected.1)
    }

    // andn eax, ebx, ebx; rorx eax, ebx, 5
    @Test(arguments: [[0xC4, 0xE2, 0x60, 0xF2, 0xC3], [0xC4, 0xE3, 0x7B, 0xF0, 0xC3, 5]] as [[UInt8]])
    func `Instructions with VEX are invalid in real mode`(bytes: [UInt8]) throws {
        // The handler of #UD.
        let end: UInt64 = 0x1007
        _ = try run([(0, bytes + [0xF4])], end: end) { Interpreter(cpu: $0, memory: $1) }
        _ = try run([(0, bytes + [0xF4])], end: end) { try translator($0, $1) }
    }
}

extension GuestMemory {
    fileprivate func read(_ type: UInt16.Type, _ place: Int) -> UInt64 {
        UInt64(UnsafeRawPointer(base + place).loadUnaligned(as: type))
    }
}
