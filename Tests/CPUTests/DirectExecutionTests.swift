// Direct execution on tiny long-mode guests: what a stub holds, what user code does in it, how it is left.
import CHost
import CPU
import Foundation
import GuestMemory
import HostOS
import Testing

/// User code at 0x100000, its stack and data in the same 2 MiB, mapped by a page table at 0x13000; handlers that halt.
private final class DirectRig {
    static let code: UInt64 = 0x10_0000
    static let data: UInt64 = 0x14_0000
    static let handler: UInt64 = 0x8000

    let rig: SystemRig
    let engine: Translator
    let direct: DirectExecution
    var s: UnsafeMutablePointer<roost_vcpu> { rig.s }

    /// `flags`: bits of each page's entry beyond its frame.
    init(_ bytes: [UInt8], flags: UInt64 = 0x67) throws {
        rig = try SystemRig()
        engine = try Translator(cpu: rig.cpu, memory: rig.memory)
        direct = DirectExecution(cpu: rig.cpu, memory: rig.memory, mode: .always)
        rig.enterLong(3)
        rig.put64(0x13027, at: 0x12000)
        for page: UInt64 in 0..<512 { rig.put64(page << 12 | flags, at: 0x13000 + page * 8) }
        // The supervisor's: never the user's.
        for page: UInt64 in 0..<0x30 { rig.put64(page << 12 | 0x63, at: 0x13000 + page * 8) }
        rig.put64(0x11027, at: 0x10000)
        rig.put64(0x12027, at: 0x11000)
        rig.entry(0x30, SystemRig.flat(0xFB, 0xA))
        rig.entry(0x28, SystemRig.flat(0xF3, 0xC))
        rig.set(1, 0x33, base: 0, limit: ~0, attributes: 0xA0FB)
        rig.set(2, 0x2B, base: 0, limit: ~0, attributes: 0xC0F3)
        for n in [0, 3, 4, 5] { rig.set(n, 0, base: 0, limit: 0, attributes: 0) }
        s.pointee.cr0 = 0x8001_0031
        s.pointee.cr4 = 0x4_0620
        s.pointee.xcr0 = 7
        rig.v.rflags = 0x202
        rig.v.gpr[4] = 0x18_0000
        s.pointee.rip = Self.code
        for vector: UInt64 in 0..<32 {
            rig.longVector(
                UInt8(vector), SystemRig.longCode0, Self.handler + vector * 16, access: vector == 3 ? 0xEE : 0x8E)
            // hlt
            rig.put(0xF4, at: Self.handler + vector * 16, as: UInt8.self)
        }
        s.pointee.lstar = Self.handler + 32 * 16
        s.pointee.star = 0x88 << 32
        rig.put(0xF4, at: Self.handler + 32 * 16, as: UInt8.self)
        for (n, byte) in bytes.enumerated() { rig.put(UInt64(byte), at: Self.code + UInt64(n), as: UInt8.self) }
        rig.v.armDebug()
        rig.v.flushTLB()
        roost_attention_set(s, ROOST_ATTENTION_DIRECT)
    }

    /// Runs to a halt; the vector whose handler halted, 32 for SYSCALL.
    func run() -> UInt64 {
        let exit = engine.run()
        #expect(exit == .halt)
        return (s.pointee.rip &- Self.handler) / 16
    }

    var isAvailable: Bool { direct.statistics.unavailable == nil }
}

@Suite("Direct execution", .serialized)
struct DirectExecutionTests {
    // mov ecx, 0x100000; again: add rax, rcx; dec rcx; jnz again
    static let loop: [UInt8] = [0xB9, 0x00, 0x00, 0x10, 0x00, 0x48, 0x01, 0xC8, 0x48, 0xFF, 0xC9, 0x75, 0xF8]

    @Test("a loop runs natively, to the system call that ends it")
    func loopToSystemCall() throws {
        let rig = try DirectRig(Self.loop + [0x0F, 0x05])
        rig.rig.v.gpr[0] = 7
        #expect(rig.run() == 32)
        #expect(rig.rig.v.gpr[0] == 7 + 0x80_0008_0000)
        #expect(rig.rig.v.gpr[1] == DirectRig.code + UInt64(Self.loop.count) + 2)
        #expect(rig.direct.statistics.leaves["system call"] == 1)
        #expect(rig.s.pointee.instructions < 1000)
    }

    @Test(
        "faults come as the guest's own, at the instruction",
        arguments: [
            ([0x0F, 0x0B], 6), ([0xF4], 13), ([0x31, 0xC9, 0xF7, 0xF1], 0), ([0xCC], 3), ([0xCD, 0x03], 3),
            ([0xF1], 1), ([0xA0, 0, 0, 1, 0, 0, 0, 0, 0], 14), ([0xA1, 0, 0, 0, 0, 0, 0, 0, 0x80], 13),
            ([0x9C, 0x81, 0x0C, 0x24, 0, 1, 0, 0, 0x9D, 0x90], 1), ([0xCD, 0x55], 13),
            ([0xCD, 0x04], 13),
        ] as [([UInt8], UInt64)])
    func faults(bytes: [UInt8], vector: UInt64) throws {
        let rig = try DirectRig(Self.loop + bytes)
        #expect(rig.run() == vector)
        #expect(rig.direct.statistics.entries > 0)
        let stack = rig.rig.v.gpr[4]
        let hasCode = vector == 13 || vector == 14
        let saved = rig.rig.get64(stack + (hasCode ? 8 : 0))
        let start = DirectRig.code + UInt64(Self.loop.count)
        // Traps: the next instruction. DIV stands two bytes behind.
        let isTrap = vector == 1 || vector == 3
        #expect(saved == (isTrap ? start + UInt64(bytes.count) : start + (vector == 0 ? 2 : 0)))
    }

    @Test("a call of the vsyscall page faults there, and not at its caller")
    func vsyscall() throws {
        // mov rax, 0xffffffffff600000; call rax; syscall
        let rig = try DirectRig(Self.loop + [0x48, 0xC7, 0xC0, 0, 0, 0x60, 0xFF, 0xFF, 0xD0, 0x0F, 0x05])
        #expect(rig.run() == 14)
        let stack = rig.rig.v.gpr[4]
        #expect(rig.s.pointee.cr2 == 0xFFFF_FFFF_FF60_0000)
        #expect(rig.rig.get64(stack + 8) == 0xFFFF_FFFF_FF60_0000)
        #expect(rig.rig.get64(stack + 32) == 0x18_0000 - 8)
        #expect(rig.rig.get64(0x18_0000 - 8) == DirectRig.code + UInt64(Self.loop.count) + 9)
        #expect(rig.direct.statistics.entries > 0)
    }

    @Test("SYSCALL of 32-bit code shows no address of the host")
    func systemCallOf32BitCode() throws {
        // push 0x23; push 0x100100; retfq. There: mov eax, 20; syscall; hlt
        let rig = try DirectRig(Self.loop + [0x6A, 0x23, 0x68, 0, 1, 0x10, 0, 0x48, 0xCB])
        rig.rig.entry(0x20, SystemRig.flat(0xFB, 0xC))
        for (n, byte) in ([0xB8, 20, 0, 0, 0, 0x0F, 0x05, 0xF4] as [UInt8]).enumerated() {
            rig.rig.put(UInt64(byte), at: 0x10_0100 + UInt64(n), as: UInt8.self)
        }
        // In page 0; #UD on processors without it; the next instruction where the kernel ignores it.
        let vector = rig.run()
        #expect(vector == 14 || vector == 6 || vector == 13)
        let rip = rig.rig.get64(rig.rig.v.gpr[4] + (vector == 6 ? 0 : 8))
        #expect(rip < 0x1000 || rip == 0x10_0105 || rip == 0x10_0107)
        #expect(rig.direct.statistics.entries > 0)
    }

    @Test("code that stores to its own page gets on")
    func storesToOwnPage() throws {
        // mov ecx, 1000; again: inc dword [0x100800]; dec ecx; jnz again; mov eax, [0x100800]; syscall
        let rig = try DirectRig([
            0xB9, 0xE8, 0x03, 0, 0, 0xFF, 0x05, 0xF5, 0x07, 0, 0, 0xFF, 0xC9, 0x75, 0xF6, 0x8B, 0x05, 0xEB, 0x07, 0, 0,
            0x0F, 0x05,
        ])
        #expect(rig.run() == 32)
        #expect(rig.rig.v.gpr[0] == 1000)
        #expect(rig.rig.get32(0x10_0800) == 1000)
        #expect(rig.direct.statistics.entries > 0)
    }

    @Test("protection keys that forbid key 0 something are obeyed")
    func protectionKeys() throws {
        // mov rax, [0x140000]; syscall
        let rig = try DirectRig([0x48, 0x8B, 0x04, 0x25, 0, 0, 0x14, 0, 0x0F, 0x05])
        rig.s.pointee.cr4 |= 0x40_0000
        rig.s.pointee.pkru = 1
        #expect(rig.run() == 14)
        #expect(rig.s.pointee.cr2 == 0x14_0000)
        #expect(rig.direct.statistics.entries == 0)
    }

    @Test("a page whose last byte is an escape is looked at again before another page")
    func escapeAtTheEnd() throws {
        // 0f at the page's end; after it 1f 00 (nop) at one place, a2 (cpuid) at another; then syscall.
        let rig = try DirectRig([0x90], flags: 0x25)
        for n: UInt64 in 0xFF0..<0xFFF { rig.rig.put(0x90, at: DirectRig.code + n, as: UInt8.self) }
        rig.rig.put(0x0F, at: DirectRig.code + 0xFFF, as: UInt8.self)
        rig.rig.put32(0x050F_001F, at: 0x10_1000)
        rig.rig.put32(0x0005_0FA2, at: 0x10_3000)
        rig.rig.put64(DirectRig.code | 0x25, at: 0x13000 + 0x102 * 8)
        rig.s.pointee.rip = 0x10_0FF0
        #expect(rig.run() == 32)
        #expect(rig.direct.statistics.entries > 0)
        let before = rig.direct.statistics.leaves
        #expect(before["guarded instruction"] == nil && before["code for the translator"] == nil)
        rig.rig.enterUser(at: 0x10_2FF0)
        roost_attention_set(rig.s, ROOST_ATTENTION_DIRECT)
        #expect(rig.run() == 32)
        let after = rig.direct.statistics.leaves
        #expect(after["guarded instruction"] != nil || after["code for the translator"] != nil)
    }

    @Test("CPUID shows the model, also in a loop that would run natively")
    func cpuid() throws {
        // xor eax, eax; cpuid; mov r8, rbx; …
        let rig = try DirectRig(Self.loop + [0x31, 0xC0, 0x0F, 0xA2, 0x49, 0x89, 0xD8, 0x0F, 0x05], flags: 0x25)
        let leaf1 = try DirectRig([0xB8, 1, 0, 0, 0, 0x31, 0xC9, 0x0F, 0xA2, 0x49, 0x89, 0xC9, 0x0F, 0x05])
        #expect(rig.run() == 32)
        #expect(leaf1.run() == 32)
        #expect(UInt32(truncatingIfNeeded: leaf1.rig.v.gpr[0]) == leaf1.s.pointee.signature)
        #expect(leaf1.rig.v.gpr[9] & 1 << 31 != 0, "the model says that there is a hypervisor")
    }

    @Test("what is beside writable code and looks like CPUID is read as it is")
    func dataBesideCode() throws {
        // mov rax, [0x100800]; syscall
        let rig = try DirectRig(Self.loop + [0x48, 0x8B, 0x04, 0x25, 0, 8, 0x10, 0, 0x0F, 0x05])
        let data: UInt64 = 0x9090_9090_9090_A20F
        rig.rig.put64(data, at: 0x10_0800)
        #expect(rig.run() == 32)
        #expect(rig.rig.v.gpr[0] == data)
    }

    @Test("stores to a page that ran in a private copy reach the page")
    func privateCopyIsGivenUp() throws {
        // cpuid; syscall
        let rig = try DirectRig(Self.loop + [0x0F, 0xA2, 0x0F, 0x05], flags: 0x25)
        #expect(rig.run() == 32)
        #expect(rig.direct.statistics.leaves["guarded instruction"] == 1)
        // mov [0x100800], rsp; mov rax, [0x100800]; syscall
        let writer =
            Self.loop + [
                0x48, 0x89, 0x24, 0x25, 0, 8, 0x10, 0, 0x48, 0x8B, 0x04, 0x25, 0, 8, 0x10, 0, 0x0F, 0x05,
            ]
        for (n, byte) in writer.enumerated() { rig.rig.put(UInt64(byte), at: 0x10_2000 + UInt64(n), as: UInt8.self) }
        rig.rig.put64(0x10_0067, at: 0x13000 + 0x100 * 8)
        rig.rig.v.flushPage(DirectRig.code)
        rig.rig.enterUser(at: 0x10_2000)
        roost_attention_set(rig.s, ROOST_ATTENTION_DIRECT)
        let before = rig.direct.statistics.entries
        #expect(rig.run() == 32)
        #expect(rig.direct.statistics.entries > before)
        #expect(rig.rig.v.gpr[0] == 0x18_0000)
        #expect(rig.rig.get64(0x10_0800) == 0x18_0000)
    }

    @Test("accessed and dirty bits are set as by the processor, and not before")
    func accessedAndDirty() throws {
        // mov rax, [0x140000]; mov [0x141000], rax
        let rig = try DirectRig(
            [0x48, 0x8B, 0x04, 0x25, 0, 0, 0x14, 0, 0x48, 0x89, 0x04, 0x25, 0, 0x10, 0x14, 0] + Self.loop + [
                0x0F, 0x05,
            ],
            flags: 0x07)
        #expect(rig.run() == 32)
        func entry(_ address: UInt64) -> UInt64 { rig.rig.get64(0x13000 + (address >> 12) * 8) & 0x60 }
        #expect(entry(0x14_0000) == 0x20)
        #expect(entry(0x14_1000) == 0x60)
        #expect(entry(0x14_2000) == 0)
        #expect(entry(DirectRig.code) == 0x20)
        #expect(rig.direct.statistics.entries > 0)
    }

    @Test("an INVLPG or a CR3 write takes effect in the stub")
    func invalidation() throws {
        // mov rax, [0x140000]; syscall
        let code: [UInt8] = [0x48, 0x8B, 0x04, 0x25, 0, 0, 0x14, 0, 0x0F, 0x05]
        let rig = try DirectRig(code)
        rig.rig.put64(111, at: 0x14_0000)
        rig.rig.put64(222, at: 0x15_0000)
        rig.rig.put64(333, at: 0x16_0000)
        func again() {
            rig.rig.enterUser(at: DirectRig.code)
            roost_attention_set(rig.s, ROOST_ATTENTION_DIRECT)
        }
        #expect(rig.run() == 32)
        #expect(rig.rig.v.gpr[0] == 111)
        rig.rig.put64(0x15_0067, at: 0x13000 + 0x140 * 8)
        rig.rig.v.flushPage(0x14_0000)
        again()
        #expect(rig.run() == 32)
        #expect(rig.rig.v.gpr[0] == 222)
        rig.rig.put64(0x16_0067, at: 0x13000 + 0x140 * 8)
        rig.rig.v.newAddressSpace()
        again()
        #expect(rig.run() == 32)
        #expect(rig.rig.v.gpr[0] == 333)
        rig.rig.put64(0, at: 0x13000 + 0x140 * 8)
        rig.rig.v.flushTLB()
        again()
        #expect(rig.run() == 14)
        #expect(rig.s.pointee.cr2 == 0x14_0000)
        #expect(rig.direct.statistics.entries >= 4)
    }

    @Test("a stub holds its own pages and the guest's, and nothing of Roost")
    func onlyTheGuestIsMapped() throws {
        let rig = try DirectRig(Self.loop + [0x0F, 0x05])
        _ = rig.run()
        let process = try #require(rig.direct.stubProcesses.first)
        let maps = try String(contentsOfFile: "/proc/\(process)/maps", encoding: .utf8)
        for line in maps.split(separator: "\n") {
            let fields = line.split(separator: " ", omittingEmptySubsequences: true)
            let start = try #require(UInt64(fields[0].split(separator: "-")[0], radix: 16))
            let rights = fields[1]
            if line.contains("[vsyscall]") { continue }
            if start >= StubProcess.address && start < StubProcess.address + StubProcess.size {
                #expect(rights == "r-xs" || rights == "r--s", "\(line)")
                continue
            }
            #expect(line.contains("guest-ram") && start < 0x20_0000 && start >= 0x3_0000, "\(line)")
            #expect(!rights.contains("wx"), "\(line)")
        }
        let files = try FileManager.default.contentsOfDirectory(atPath: "/proc/\(process)/fd")
        #expect(files == ["0"])
    }

    @Test("code that asks for attention ends a loop without end")
    func attention() throws {
        // again: jmp again
        let rig = try DirectRig([0xEB, 0xFE])
        nonisolated(unsafe) let state = rig.s
        let thread = try HostThread(name: "kick") {
            for _ in 0..<200 {
                Thread.sleep(forTimeInterval: 0.01)
                roost_attention_set(state, ROOST_ATTENTION_KICK)
                let running = roost_direct_running(state)
                if running != 0 {
                    StubProcess.kick(running - 1)
                    return
                }
                _ = roost_attention_take(state, ROOST_ATTENTION_KICK)
            }
        }
        #expect(rig.engine.run() == .interrupted)
        thread.join()
        #expect(rig.s.pointee.rip == DirectRig.code)
        #expect(rig.direct.statistics.leaves["attention"] == 1)
    }

    @Test("stubs end with their owner")
    func stubsEnd() throws {
        var process: Int32 = 0
        do {
            let rig = try DirectRig(Self.loop + [0x0F, 0x05])
            _ = rig.run()
            process = try #require(rig.direct.stubProcesses.first)
            #expect(FileManager.default.fileExists(atPath: "/proc/\(process)"))
        }
        #expect(!FileManager.default.fileExists(atPath: "/proc/\(process)"))
    }

    @Test(
        "pages are refused for instructions that show the host, not for their bytes inside others",
        arguments: [
            ([0x0F, 0xA2], false), ([0x0F, 0x31], false), ([0x0F, 0x01, 0xD0], false), ([0x0F, 0x01, 0xF9], false),
            ([0x66, 0x0F, 0x01, 0x20], false), ([0x0F, 0x34], false), ([0xF3, 0x0F, 0xC7, 0xF8], false),
            ([0x0F, 0xC7, 0xF0], false), ([0x0F, 0x03, 0xC1], false), ([0x0F, 0x00, 0xC8], false),
            ([0x81, 0xE1, 0x00, 0x0F, 0xA2, 0x00], true), ([0xE8, 0x0F, 0x01, 0x00, 0x00], true),
            ([0x0F, 0x01, 0xD6], true), ([0x0F, 0xC7, 0x0F], true), ([0x0F, 0xAE, 0xF0], true),
            ([0x0F, 0xC7, 0x64, 0x24, 0x40], false), ([0x0F, 0xAE, 0x20], false), ([0x0F, 0xAE, 0x37], false),
            ([0x0F, 0xAE, 0x6C, 0x24, 0x40], true), ([0x0F, 0xAE, 0xE8], true), ([0x0F, 0xAE, 0x54, 0x24, 0x04], true),
        ] as [([UInt8], Bool)])
    func scan(bytes: [UInt8], mayRun: Bool) {
        var page = [UInt8](repeating: 0x90, count: 4096)
        page.replaceSubrange(1000..<1000 + bytes.count, with: bytes)
        #expect(CodeScan.mayRun(CodeScan.Page(page, previous: nil, next: nil)) == mayRun)
        // Across the page's end; behind a prefix the next page's scan finds it.
        if bytes[0] != 0x0F { return }
        page = [UInt8](repeating: 0x90, count: 4096)
        page[4095] = bytes[0]
        let next = Array(bytes[1...]) + [UInt8](repeating: 0x90, count: 32)
        #expect(CodeScan.mayRun(CodeScan.Page(page, previous: nil, next: next)) == mayRun)
        if !mayRun { #expect(!CodeScan.mayRun(CodeScan.Page(page, previous: nil, next: nil))) }
    }

    @Test("runs that don't pay for themselves give the space back, for longer each time, and long ones make it good")
    func policy() {
        var policy = UserSpacePolicy()
        policy.cost = 10_000
        policy.open()
        var runs = 0
        while policy.mayRun && runs < 10_000 {
            policy.charge(run: 5_000, overhead: 0, isFault: true)
            runs += 1
        }
        #expect(runs > 100 && runs < 1000)
        let first = policy.pause
        for _ in 0..<first { policy.tick() }
        #expect(policy.mayRun)
        while policy.mayRun { policy.charge(run: 0, overhead: 0, isFault: false) }
        #expect(policy.pause == first * 2)
        for _ in 0..<policy.pause { policy.tick() }
        for _ in 0..<1000 { policy.charge(run: 10_000_000, overhead: 0, isFault: false) }
        #expect(policy.mayRun)
    }

    @Test("runs up to page faults pay sooner once a space has run for long; runs up to system calls don't")
    func freshCode() {
        for (isFault, seen, pays) in [(true, 20, true), (true, 1, false), (false, 20, false)] {
            var policy = UserSpacePolicy()
            policy.cost = 10_000
            policy.open()
            policy.seen = seen
            for _ in 0..<10_000 where policy.mayRun { policy.charge(run: 2_000, overhead: 0, isFault: isFault) }
            #expect(policy.mayRun == pays)
            for _ in 0..<max(policy.pause, 1) { policy.tick() }
            policy.seen = seen
            policy.entered(kernelAfter: 2_000, isFault: isFault)
            #expect(policy.takesReturn() == pays)
        }
    }
}

extension SystemRig {
    /// Back to user mode, as a kernel would return to it.
    func enterUser(at rip: UInt64) {
        set(1, 0x33, base: 0, limit: ~0, attributes: 0xA0FB)
        set(2, 0x2B, base: 0, limit: ~0, attributes: 0xC0F3)
        s.pointee.cpl = 3
        v.rflags = 0x202
        v.gpr[4] = 0x18_0000
        s.pointee.rip = rip
        v.armDebug()
    }
}
