// Programs that look for what a translator takes for granted: distances that overflow, return addresses that mean something
// to the host, memory that changes between check and use.
import CHost
import CPU
import Foundation
import GuestMemory
import Synchronization
import Testing

@Suite struct HostileProgramTests: ProgramSuite {
    private static let stack = ProgramMachine.stack + 0x1800
    /// add rsp, 0x7fffffff; add rsp, 0x7fffffff; add rsp, 2
    private static let addFar: [UInt8] = [
        0x48, 0x81, 0xC4, 0xFF, 0xFF, 0xFF, 0x7F, 0x48, 0x81, 0xC4, 0xFF, 0xFF, 0xFF, 0x7F, 0x48, 0x83, 0xC4, 0x02,
    ]
    /// The same with SUB.
    private static let subFar: [UInt8] = [
        0x48, 0x81, 0xEC, 0xFF, 0xFF, 0xFF, 0x7F, 0x48, 0x81, 0xEC, 0xFF, 0xFF, 0xFF, 0x7F, 0x48, 0x83, 0xEC, 0x02,
    ]
    /// sub rsp, -0x80000000, twice: its negative doesn't fit 32 bits.
    private static let subLeast: [UInt8] = [
        0x48, 0x81, 0xEC, 0, 0, 0, 0x80, 0x48, 0x81, 0xEC, 0, 0, 0, 0x80,
    ]

    /// Ways of RSP 4 GiB up, and back.
    static let ways: [(up: [UInt8], down: [UInt8])] = [
        (addFar, subFar), (subLeast, subFar),
        // lea rsp, [rsp+0x7fffffff]; lea rsp, [rsp+0x7fffffff]; lea rsp, [rsp+2]
        (
            [
                0x48, 0x8D, 0xA4, 0x24, 0xFF, 0xFF, 0xFF, 0x7F, 0x48, 0x8D, 0xA4, 0x24, 0xFF, 0xFF, 0xFF, 0x7F, 0x48,
                0x8D, 0x64, 0x24, 2,
            ], subFar
        ),
    ]

    @Test(arguments: ways.indices, all)
    func `An access 4 GiB further up the stack isn't taken for one beside the last`(
        way: Int, on: (TestedEngine, ProgramMode)
    ) throws {
        // Both pages have the same entry of the TLB: the block before brings the first one back.
        // loop: mov rax, [rsp]; jmp next; next: mov rax, [rsp]; rsp += 4 GiB; mov [rsp], rcx; rsp -= 4 GiB; inc ecx; cmp ecx, 300; jne loop;
        // mov rax, [rsp]; int3
        var code: [UInt8] = [0xB9, 7, 0, 0, 0]
        let top = code.count
        code +=
            [0x48, 0x8B, 0x04, 0x24, 0xEB, 0, 0x48, 0x8B, 0x04, 0x24] + Self.ways[way].up + [0x48, 0x89, 0x0C, 0x24]
            + Self.ways[way].down
        code += [0xFF, 0xC1, 0x81, 0xF9] + immediate(300, 4)
        code += [0x75, UInt8(bitPattern: Int8(top - code.count - 2)), 0x48, 0x8B, 0x04, 0x24, 0xCC]
        let made = try make(on.0, on.1, [0: code])
        made.machine.mapAgain()
        #expect(run(made) == 299)
    }

    @Test(arguments: all) func `Displacements at both ends of their range aren't taken for neighbours`(
        engine: Engine, mode: ProgramMode
    ) throws {
        // mov ecx, 7; mov rdi, place + 0x80000000; loop: mov rax, [rdi+0x7fffffff]; mov [rdi-0x80000000], rcx; inc ecx;
        // cmp ecx, 300; jne loop; mov rax, [rdi-0x80000000]; int3
        var code: [UInt8] = [0xB9, 7, 0, 0, 0] + pointer(Self.stack + 0x8000_0000)
        let top = code.count
        code += [0x48, 0x8B, 0x87, 0xFF, 0xFF, 0xFF, 0x7F, 0x48, 0x89, 0x8F, 0, 0, 0, 0x80]
        code += [0xFF, 0xC1, 0x81, 0xF9] + immediate(300, 4)
        code += [0x75, UInt8(bitPattern: Int8(top - code.count - 2)), 0x48, 0x8B, 0x87, 0, 0, 0, 0x80, 0xCC]
        let made = try make(engine, mode, [0: code])
        made.machine.mapAgain()
        #expect(run(made) == 299)
    }

    /// Where a return goes, the vector of what that is, and whether the return itself is at fault.
    static let returns: [(address: UInt64, vector: UInt32, isAtReturn: Bool)] = [
        (0x8000_0000_0000_0001, 13, true), (0x8000_0000_0000_0000, 13, true), (1 << 47, 13, true), (0, 14, false),
        (1, 14, false), (0xFFFF_FFFF_FFFF_FFFF, 14, false),
    ]

    @Test(arguments: returns.indices, all) func `A return to nowhere faults, however many good ones came before`(
        n: Int, on: (TestedEngine, ProgramMode)
    ) throws {
        // mov ecx, 300; loop: lea rax, [rip+2]; jmp f; dec ecx; jnz loop; mov rdi, address; mov rax, rdi; f: push rax; ret
        let (address, vector, isAtReturn) = Self.returns[n]
        var code: [UInt8] = [0xB9] + immediate(300, 4) + [0x48, 0x8D, 0x05, 2, 0, 0, 0, 0xEB, 17]
        code += [0xFF, 0xC9, 0x75, 0xF3] + pointer(address) + [0x48, 0x89, 0xF8, 0x50, 0xC3]
        let made = try make(on.0, on.1, [0: code])
        let found = try #require(event(made))
        #expect(found.vector == vector)
        #expect(found.rip == (isAtReturn ? on.1.code + UInt64(code.count) - 1 : address))
        #expect(found.gpr[4] == Self.stack &- (isAtReturn ? 8 : 0))
    }

    @Test(arguments: all) func `A branch by nearly 2 GiB from the end of a page goes where it says`(
        engine: Engine, mode: ProgramMode
    ) throws {
        if mode.isKernel { return }
        // mov ecx, 300; mov rdi, hop; jmp rdi. At 0x80, run from 2 GiB further up: dec ecx; jz done; jmp rdi;
        // done: mov eax, 5; int3. hop, at 0xF00: jmp there.
        let place: UInt64 = 0xF00
        let target = 0x8000_0000 + mode.code + 0x80
        let code = [0xB9] + immediate(300, 4) + pointer(mode.code + place) + [0xFF, 0xE7]
        let there: [UInt8] = [0xFF, 0xC9, 0x74, 2, 0xFF, 0xE7, 0xB8, 5, 0, 0, 0, 0xCC]
        let hop = [0xE9] + immediate(target - (mode.code + place + 5), 4)
        let made = try make(engine, mode, [0: code, 0x80: there, Int(place): hop])
        made.machine.mapAgain()
        #expect(run(made) == 5)
    }

    @Test(arguments: [TestedEngine.interpreter, .translatorAtOnce])
    func `A control word that changes between check and use unmasks nothing on the host`(engine: Engine) throws {
        // fninit; mov ecx, 2000; mov rdi, word; loop: fldcw [rdi]; fld1; fldz; fdivp; fstp st0; dec ecx; jnz loop;
        // mov eax, 1; int3
        let word = ProgramMachine.control + 0x100
        var code: [UInt8] = [0xDB, 0xE3, 0xB9] + immediate(2000, 4) + pointer(word)
        let top = code.count
        code += [0xD9, 0x2F, 0xD9, 0xE8, 0xD9, 0xEE, 0xDE, 0xF9, 0xDD, 0xD8, 0xFF, 0xC9]
        code += [0x75, UInt8(bitPattern: Int8(top - code.count - 2)), 0xB8, 1, 0, 0, 0, 0xCC]
        let made = try make(engine, .user64, [0: code])
        let place = made.machine.memory.base + Int(ProgramMachine.controlWord)
        let isOver = Atomic(false)
        nonisolated(unsafe) let control = UnsafeMutableRawPointer(place).assumingMemoryBound(to: UInt16.self)
        control.pointee = 0x37F
        let other = Thread {
            while !isOver.load(ordering: .relaxed) {
                control.pointee = 0x37F
                atomicMemoryFence(ordering: .sequentiallyConsistent)
                control.pointee = 0x340
                atomicMemoryFence(ordering: .sequentiallyConsistent)
            }
        }
        other.start()
        var vectors: [UInt32: Int] = [:]
        for _ in 0..<200 {
            made.machine.resume(at: ProgramMode.user64.code, stack: Self.stack, rflags: 0x202)
            vectors[try #require(event(made)).vector, default: 0] += 1
        }
        isOver.store(true, ordering: .relaxed)
        #expect(Set(vectors.keys).isSubset(of: [3, 16]), "\(vectors)")
    }

    @Test(arguments: TestedEngine.allCases, [ProgramMode.kernel64, .absolute64])
    func `AVX is switched on while SSE registers are in use, and nothing is lost`(
        engine: Engine, mode: ProgramMode
    ) throws {
        // mov esi, 50; xor ecx, ecx; xor edx, edx; loop: mov eax, 3; xsetbv; mov ebx, 1; movd xmm0, ebx
        var code: [UInt8] = [0xBE, 50, 0, 0, 0, 0x31, 0xC9, 0x31, 0xD2]
        let top = code.count
        code += [0xB8, 3, 0, 0, 0, 0x0F, 0x01, 0xD1, 0xBB, 1, 0, 0, 0, 0x66, 0x0F, 0x6E, 0xC3]
        // mov eax, 7; xsetbv; mov ebx, 2; movd xmm0, ebx; vpaddd xmm1, xmm0, xmm0; vmovd eax, xmm1
        code += [0xB8, 7, 0, 0, 0, 0x0F, 0x01, 0xD1, 0xBB, 2, 0, 0, 0, 0x66, 0x0F, 0x6E, 0xC3]
        code += [0xC5, 0xF9, 0xFE, 0xC8, 0xC5, 0xF9, 0x7E, 0xC8]
        // cmp eax, 4; jne done; dec esi; jnz loop; done: int3
        code += [0x83, 0xF8, 4, 0x75, 4, 0xFF, 0xCE]
        code += [0x75, UInt8(bitPattern: Int8(top - code.count - 2)), 0xCC]
        #expect(run(try make(engine, mode, [0: code])) == 4)
    }

    @Test(arguments: TestedEngine.allCases, [ProgramMode.kernel64, .absolute64])
    func `A call that ends with user pages out of reach returns to code that can't reach them`(
        engine: Engine, mode: ProgramMode
    ) throws {
        // mov ecx, 300; mov rdi, page; loop: stac; call f; mov rax, [rdi]; dec ecx; jnz loop; int3.
        // f: cmp ecx, 1; jne skip; clac; skip: ret
        var code: [UInt8] = [0xB9] + immediate(300, 4) + pointer(ProgramMachine.control)
        let top = code.count
        code += [0x0F, 0x01, 0xCB, 0xE8] + immediate(UInt64(0x100 - code.count - 8), 4)
        let load = UInt64(code.count)
        code += [0x48, 0x8B, 0x07, 0xFF, 0xC9]
        code += [0x75, UInt8(bitPattern: Int8(top - code.count - 2)), 0xCC]
        let made = try make(engine, mode, [0: code, 0x100: [0x83, 0xF9, 1, 0x75, 3, 0x0F, 0x01, 0xCA, 0xC3]])
        made.machine.letUserReachControl()
        made.machine.cpu.state.pointee.cr4 |= 0x20_0000
        made.machine.resume(at: mode.code, stack: Self.stack, rflags: 0x202)
        let found = try #require(event(made))
        #expect(found.vector == 14)
        #expect(found.rip == mode.code + load)
        #expect(found.gpr[1] == 1)
    }

    @Test(arguments: all) func `A page that was read anew before it was told of is read once more`(
        engine: Engine, mode: ProgramMode
    ) throws {
        // mov ecx, 300; loop: call f; dec ecx; jnz loop; int3. f: mov eax, 1; ret
        let code: [UInt8] = [0xB9] + immediate(300, 4) + [0xE8, 0xF6, 0x0F, 0, 0, 0xFF, 0xC9, 0x75, 0xF7, 0xCC]
        let made = try make(engine, mode, [0: code, 0x1000: [0xB8, 1, 0, 0, 0, 0xC3]])
        #expect(run(made) == 1)
        for page in 0..<2 as Range<UInt64> {
            made.machine.memory.tellCodeWritten(ProgramMachine.codePhysical(page) >> 12)
            made.machine.resume(at: mode.code, stack: Self.stack, rflags: 0x202)
            #expect(run(made) == 1)
        }
    }

    @Test(arguments: [ProgramMode.user64, .absolute64])
    func `Of more written pages than are kept apart none is overlooked`(mode: ProgramMode) throws {
        // mov ecx, 300; loop: call f; dec ecx; jnz loop; int3. f: mov eax, 1; ret
        let code: [UInt8] = [0xB9] + immediate(300, 4) + [0xE8, 0xF6, 0x0F, 0, 0, 0xFF, 0xC9, 0x75, 0xF7, 0xCC]
        let made = try make(.translator, mode, [0: code, 0x1000: [0xB8, 1, 0, 0, 0, 0xC3]])
        #expect(run(made) == 1)
        let memory = made.machine.memory
        for page in 0..<100_000 as Range<UInt64> { memory.tellCodeWritten(page & 0x3FF) }
        try memory.write([2], at: GuestPhysicalAddress(ProgramMachine.codePhysical(1) + 1))
        made.machine.resume(at: mode.code, stack: Self.stack, rflags: 0x202)
        #expect(run(made) == 2)
    }
}
