// What blocks must not get wrong; code that changes under the translator's feet: by itself, through another mapping, by a device; caches that overflow;
// loops that never come back by themselves.
import CHost
import CPU
import Foundation
import GuestMemory
import Testing

@Suite struct SelfModifyingTests: ProgramSuite {
    @Test(arguments: all) func `Flags outlive the alignment check of a vector access`(
        engine: Engine, mode: ProgramMode
    ) throws {
        // and rsp, -16; xor eax, eax; xorps xmm0, xmm0; mov [rsp-16], rax; mov [rsp-8], rax; sub eax, 1;
        // movaps xmm1, [rsp-16]; setc al; movzx eax, al; int3
        let code: [UInt8] = [
            0x48, 0x83, 0xE4, 0xF0, 0x31, 0xC0, 0x0F, 0x57, 0xC0, 0x48, 0x89, 0x44, 0x24, 0xF0, 0x48, 0x89, 0x44, 0x24,
            0xF8, 0x83, 0xE8, 0x01, 0x0F, 0x28, 0x4C, 0x24, 0xF0, 0x0F, 0x92, 0xC0, 0x0F, 0xB6, 0xC0, 0xCC,
        ]
        #expect(run(try make(engine, mode, [0: code])) == 1)
    }

    @Test(arguments: all) func `A push from memory whose page isn't in the TLB leads no group of stack accesses`(
        engine: Engine, mode: ProgramMode
    ) throws {
        // mov rdi, address; mov eax, 7; push [rdi]; push rax; pop rcx; pop rdx; mov eax, ecx; int3
        let code =
            pointer(ProgramMachine.alias + 0x6000)
            + [0xB8, 7, 0, 0, 0, 0xFF, 0x37, 0x50, 0x59, 0x5A, 0x89, 0xC8, 0xCC]
        #expect(run(try make(engine, mode, [0: code])) == 7)
    }

    @Test(arguments: all) func `A store into the running block counts at once`(engine: Engine, mode: ProgramMode) throws
    {
        // mov rdi, place; mov byte [rdi], 5; mov eax, 1; int3
        let code = pointer(mode.code + 14) + [0xC6, 0x07, 5, 0xB8, 1, 0, 0, 0, 0xCC]
        #expect(run(try make(engine, mode, [0: code])) == 5)
    }

    @Test(arguments: all) func `A store into the next block counts, also when that is translated and linked`(
        engine: Engine, mode: ProgramMode
    ) throws {
        // mov ecx, 100; xor eax, eax; loop: mov rdi, place; inc byte [rdi]; jmp next; next: add eax, 0; loop; int3
        let place = 21
        let code =
            [0xB9, 100, 0, 0, 0, 0x31, 0xC0] + pointer(mode.code + UInt64(place) + 2) + [0xFE, 0x07, 0xEB, 0]
            + [0x83, 0xC0, 0, 0xFF, 0xC9, 0x75, 0xEB, 0xCC]
        // The byte's values 1 to 100.
        #expect(run(try make(engine, mode, [0: code])) == 5050)
    }

    @Test(arguments: all) func `A store through another mapping counts`(engine: Engine, mode: ProgramMode) throws {
        let place: UInt64 = 21
        let code =
            [0xB9, 100, 0, 0, 0, 0x31, 0xC0] + pointer(ProgramMachine.alias + place + 2) + [0xFE, 0x07, 0xEB, 0]
            + [0x83, 0xC0, 0, 0xFF, 0xC9, 0x75, 0xEB, 0xCC]
        #expect(run(try make(engine, mode, [0: code])) == 5050)
    }

    @Test(arguments: all) func `A page of code is data for a while, then code again`(
        engine: Engine, mode: ProgramMode
    ) throws {
        // 300 times: the page is filled with EBX, then gets MOV EAX, EBX's value; RET; and is called.
        var code: [UInt8] = [0x31, 0xDB, 0x31, 0xED]  // xor ebx, ebx; xor ebp, ebp
        let top = code.count
        code += pointer(ProgramMachine.alias + 0x1000) + [0xB9, 0, 4, 0, 0, 0x89, 0xD8, 0xFC, 0xF3, 0xAB]
        code += pointer(mode.code + 0x1000)
        // mov byte [rdi], 0xB8; mov [rdi+1], ebx; mov byte [rdi+5], 0xC3; call rdi; add ebp, eax
        code += [0xC6, 0x07, 0xB8, 0x89, 0x5F, 1, 0xC6, 0x47, 5, 0xC3, 0xFF, 0xD7, 0x01, 0xC5]
        code += [0xFF, 0xC3, 0x81, 0xFB] + immediate(300, 4)  // inc ebx; cmp ebx, 300
        code += [0x75, UInt8(bitPattern: Int8(top - code.count - 2)), 0x89, 0xE8, 0xCC]  // jne; mov eax, ebp
        #expect(run(try make(engine, mode, [0: code])) == 300 * 299 / 2)
    }

    @Test(arguments: all) func `A device's write into translated code is seen by a loop that runs`(
        engine: Engine, mode: ProgramMode
    ) throws {
        // loop: call f; cmp eax, 2; jne loop; int3 ... f: mov eax, 1; ret
        let code: [UInt8] = [0xE8, 0xFB, 0x0F, 0, 0, 0x83, 0xF8, 2, 0x75, 0xF6, 0xCC]
        let made = try make(engine, mode, [0: code, 0x1000: [0xB8, 1, 0, 0, 0, 0xC3]])
        let memory = made.machine.memory
        Thread.detachNewThread {
            usleep(5000)
            try? memory.write([2], at: GuestPhysicalAddress(ProgramMachine.codePhysical(1) + 1))
        }
        #expect(run(made) == 2)
    }

    @Test(arguments: all) func `Code generated without end goes through a small cache`(
        engine: Engine, mode: ProgramMode
    ) throws {
        // 12,000 functions, one after the other over four pages.
        var code: [UInt8] = [0x31, 0xDB, 0x31, 0xED]
        code += pointer(mode.code + 0x1000)
        let top = code.count
        code += [0xC6, 0x07, 0xB8, 0x89, 0x5F, 1, 0xC6, 0x47, 5, 0xC3, 0xFF, 0xD7, 0x01, 0xC5]
        code += [0x48, 0x83, 0xC7, 16]  // add rdi, 16
        code += [0xFF, 0xC3, 0xF7, 0xC3] + immediate(1023, 4) + [0x75, 10]  // inc ebx; test ebx, 1023; jnz +10
        code += pointer(mode.code + 0x1000)
        code += [0x81, 0xFB] + immediate(12_000, 4)
        code += [0x75, UInt8(bitPattern: Int8(top - code.count - 2)), 0x89, 0xE8, 0xCC]
        let made = try make(engine, mode, [0: code])
        #expect(run(made) == 12_000 * 11_999 / 2 & 0xFFFF_FFFF)
        // What runs once isn't translated, unless told to.
        if engine == .translatorAtOnce, let translator = made.engine as? Translator {
            #expect(translator.codeFlushes > 0)
        }
    }

    /// Loops by every kind of branch.
    static let loops: [[UInt8]] = [
        [0xEB, 0xFE],  // jmp
        [0xF8, 0x73, 0xFD],  // clc; jnc
        [0xB9, 0, 0, 0, 0x70, 0xE2, 0xFE, 0xEB, 0xF7],  // mov ecx, ...; loop; jmp
        [0x48, 0x8D, 0x05, 0, 0, 0, 0, 0xFF, 0xE0],  // lea rax, [rip]; jmp rax
        [0x48, 0x8D, 0x05, 0, 0, 0, 0, 0x50, 0xC3],  // lea rax, [rip]; push rax; ret
        [0xE8, 2, 0, 0, 0, 0xEB, 0xF9, 0xC3],  // call; jmp; ret
        [0xE8, 0, 0, 0, 0, 0x58, 0x48, 0x83, 0xE8, 5, 0xFF, 0xE0],  // call +0; pop rax; sub rax, 5; jmp rax
        [0x31, 0xC9, 0xE3, 0xFC],  // xor ecx, ecx; jrcxz
    ]

    @Test(arguments: loops, [ProgramMode.user64, .absolute64])
    func `A loop in translated code ends when another thread asks`(loop: [UInt8], mode: ProgramMode) throws {
        for engine in Engine.allCases {
            let made = try make(engine, mode, [0x20: loop, 0: [0xEB, 0x1E]])
            let cpu = made.machine.cpu
            for _ in 0..<5 {
                Thread.detachNewThread {
                    usleep(1000)
                    roost_attention_set(cpu.state, ROOST_ATTENTION_KICK)
                }
                #expect(made.engine.run() == .interrupted)
            }
        }
    }

    /// mov ecx, 200; xor ebx, ebx; loop: call 0xFF8; add ebx, eax; dec ecx; jnz loop; mov eax, ebx; int3; and at 0xFF8, with
    /// its immediate half on each page: five NOPs; mov eax, value; ret.
    private static func across(_ value: UInt8) -> [UInt8] {
        var code = [UInt8](repeating: 0xCC, count: 0x1003)
        let start: [UInt8] = [
            0xB9, 200, 0, 0, 0, 0x31, 0xDB, 0xE8, 0xEC, 0x0F, 0, 0, 0x01, 0xC3, 0xFF, 0xC9, 0x75, 0xF5, 0x89, 0xD8,
            0xCC,
        ]
        code.replaceSubrange(0..<start.count, with: start)
        code.replaceSubrange(
            0xFF8..<0x1003, with: [0x90, 0x90, 0x90, 0x90, 0x90, 0xB8, 0, 0, value, 0, 0xC3])
        return code
    }

    @Test(arguments: all) func `An instruction that goes on in another page is what that page says`(
        engine: Engine, mode: ProgramMode
    ) throws {
        let made = try make(engine, mode, [0: Self.across(1)])
        let (machine, v) = (made.machine, made.machine.cpu.vcpu)
        machine.load(Self.across(1), copy: Self.across(2))
        func again() -> UInt64? {
            machine.resume(at: mode.code, stack: ProgramMachine.stack + 0x1800, rflags: 0x202)
            return run(made)
        }
        func map(copy: Bool) {
            let bits: UInt64 = mode.isKernel ? 0x103 : 7
            machine.put(
                ProgramMachine.entry(of: 1, mode) - Place.kernel, ProgramMachine.codePhysical(1, copy: copy) | bits)
        }
        func enter(_ space: UInt16) {
            v.s.pointee.address_space = space
            v.enteredAddressSpace()
        }
        #expect(again() == 200 << 16)
        // The page is another one.
        map(copy: true)
        v.flushPage(mode.code + 0x1000)
        #expect(again() == 400 << 16)
        #expect(again() == 400 << 16)
        map(copy: false)
        v.flushPage(mode.code + 0x1000)
        #expect(again() == 200 << 16)
        // It is another one in another address space; pages of the kernel are the same in all.
        if !mode.isKernel {
            let first = v.s.pointee.address_space
            v.newAddressSpace()
            let second = v.s.pointee.address_space
            map(copy: true)
            #expect(again() == 400 << 16)
            for value in 3...6 as ClosedRange<UInt8> {
                enter(first)
                map(copy: false)
                #expect(again() == 200 << 16)
                // Its bytes change while the other space is in force, and with them the first page's.
                try machine.memory.write(
                    [value], at: GuestPhysicalAddress(ProgramMachine.codePhysical(1, copy: true)))
                if value > 4 {
                    try machine.memory.write([0x90], at: GuestPhysicalAddress(ProgramMachine.codePhysical(0) + 0xFF8))
                }
                #expect(again() == 200 << 16)
                enter(second)
                map(copy: true)
                #expect(again() == 200 * UInt64(value) << 16)
                #expect(again() == 200 * UInt64(value) << 16)
            }
        }
    }
}
