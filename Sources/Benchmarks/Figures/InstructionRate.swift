// Instructions a second of an engine on small loops, in long mode with paging on: nothing but the engine is measured.
import CHost
import CPU
import GuestMemory

/// A loop of 64-bit code and how many of its instructions one round takes.
struct Loop {
    var name: String
    var code: [UInt8]

    /// Registers only: add, xor, lea, sub, rotate, and the branch back.
    static let registers = Loop(
        name: "registers",
        code: [
            0x48, 0x01, 0xD8,  // add rax, rbx
            0x48, 0x31, 0xC1,  // xor rcx, rax
            0x48, 0x8D, 0x14, 0x08,  // lea rdx, [rax+rcx]
            0x48, 0x29, 0xD3,  // sub rbx, rdx
            0x48, 0xC1, 0xC3, 0x05,  // rol rbx, 5
            0x48, 0xFF, 0xCE,  // dec rsi
            0x75, 0xEA,  // jnz
        ])

    /// A load, an add to memory, a store and the bookkeeping, over 64 KiB.
    static let memory = Loop(
        name: "memory",
        code: [
            0x48, 0x8B, 0x04, 0x3A,  // mov rax, [rdx+rdi]
            0x48, 0x01, 0x44, 0x3A, 0x08,  // add [rdx+rdi+8], rax
            0x48, 0x89, 0x5C, 0x3A, 0x10,  // mov [rdx+rdi+16], rbx
            0x48, 0x83, 0xC2, 0x18,  // add rdx, 24
            0x81, 0xE2, 0xF8, 0xFF, 0x00, 0x00,  // and edx, 0xFFF8
            0x48, 0xFF, 0xCE,  // dec rsi
            0x75, 0xE3,  // jnz
        ])

    /// Millions of guest instructions a second over `rounds` rounds; the median of five runs.
    func rate(rounds: UInt64, translates: Bool) throws -> Double {
        let memory = try GuestMemory(size: 16 << 20)
        let cpu = VirtualCPU(id: 0)
        cpu.attach(memory: memory)
        let run: () -> VMExit
        if translates {
            var settings = Translator.Settings()
            settings.counts = true
            let translator = try Translator(cpu: cpu, memory: memory, settings: settings)
            run = { translator.run() }
        } else {
            let interpreter = Interpreter(cpu: cpu, memory: memory)
            run = { interpreter.run() }
        }
        try memory.write(code + [0xF4], at: GuestPhysicalAddress(0x10_0000))
        // Identity map of the first 16 MiB by 2 MiB pages.
        for n in 0..<8 as Range<UInt64> {
            try memory.store((n << 21) | 0x83, at: GuestPhysicalAddress(0x6000 + n * 8))
        }
        try memory.store(0x5003 as UInt64, at: GuestPhysicalAddress(0x4000))
        try memory.store(0x6003 as UInt64, at: GuestPhysicalAddress(0x5000))
        var rates: [Double] = []
        for _ in 0..<5 {
            enterLongMode(cpu)
            cpu.vcpu.gpr[6] = rounds
            cpu.vcpu.gpr[7] = 0x20_0000
            let before = cpu.state.pointee.instructions
            let clock = ContinuousClock()
            let start = clock.now
            while run() != .halt {}
            let seconds =
                Double((clock.now - start).components.attoseconds) / 1e18
                + Double((clock.now - start).components.seconds)
            rates.append(Double(cpu.state.pointee.instructions - before) / seconds / 1e6)
        }
        return rates.sorted()[2]
    }

    private func enterLongMode(_ cpu: VirtualCPU) {
        let v = cpu.vcpu
        v.reset()
        let s = cpu.state
        s.pointee.cr0 = 0x8000_0033
        s.pointee.cr3 = 0x4000
        s.pointee.cr4 = 0x20
        s.pointee.efer = 0x500
        for n in [ROOST_ES, ROOST_SS, ROOST_DS, ROOST_FS, ROOST_GS] {
            v.segment(Int(n)).pointee = roost_segment(base: 0, limit: ~0, selector: 0x18, attributes: 0xC093)
        }
        v.segment(Int(ROOST_CS)).pointee = roost_segment(base: 0, limit: ~0, selector: 0x10, attributes: 0xA09B)
        v.rflags = 2
        v.updateMode()
        s.pointee.rip = 0x10_0000
    }
}
