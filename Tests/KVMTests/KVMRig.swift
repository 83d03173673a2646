// A guest of a few instructions on the host's KVM.
import CHost
import CPU
import GuestMemory
import HostOS
import KVM
import Testing

/// The host's KVM, or why the tests on it are left out.
enum HostKVM {
    static let answer: Result<KVMHost, KVMError> = Result { () throws(KVMError) in try KVMHost() }
    static var isThere: Bool { (try? answer.get()) != nil }
    static var reason: Comment {
        if case .failure(let error) = answer { return "\(error)" }
        return "KVM answers"
    }
}

/// One vCPU in a mode of choice, its code at 0x1000, 1 MiB of RAM.
final class KVMRig {
    enum Mode: CaseIterable { case real, protected, long }

    let memory: GuestMemory
    let cpu: VirtualCPU
    let machine: KVMMachine
    let engine: KVMEngine
    static let code: UInt64 = 0x1000
    static let stack: UInt64 = 0x8000

    init(_ mode: Mode, _ code: [UInt8], ringEntries: Int = 0) throws {
        let host = try HostKVM.answer.get()
        memory = try GuestMemory(size: 1 << 20)
        cpu = VirtualCPU(id: 0)
        cpu.attach(memory: memory)
        cpu.model = CPUModel.host.limited(to: try host.supportedCPUID())
        machine = try KVMMachine(host: host, memory: memory, ringEntries: ringEntries)
        cpu.vcpu.reset()
        engine = try KVMEngine(machine: machine, cpu: cpu)
        try memory.write(code, at: GuestPhysicalAddress(Self.code))
        enter(mode)
        try engine.loadState()
        // Software-enabled, LINT0 open to the 8259.
        var registers = [UInt32](repeating: 0, count: 64)
        registers[3] = 0x0005_0014
        registers[0xE] = ~0
        registers[0xF] = 0x1FF
        for n in 0x32...0x37 { registers[n] = 0x10000 }
        registers[0x35] = 0x700
        try engine.setLocalAPIC(KVMLocalAPIC(registers: registers, deadline: 0))
    }

    private func enter(_ mode: Mode) {
        let s = cpu.state
        let v = cpu.vcpu
        s.pointee.apic_base = 0xFEE0_0900
        s.pointee.rip = Self.code
        v.gpr[4] = Self.stack
        for n in 0..<6 {
            let isCode = n == Int(ROOST_CS)
            let attributes: UInt16
            switch mode {
            case .real: attributes = isCode ? 0x9B : 0x93
            case .protected: attributes = isCode ? 0xC09B : 0xC093
            case .long: attributes = isCode ? 0xA09B : 0xC093
            }
            v.segment(n).pointee = roost_segment(
                base: 0, limit: mode == .real ? 0xFFFF : ~0, selector: mode == .real ? 0 : isCode ? 8 : 16,
                attributes: attributes)
        }
        v.segment(Int(ROOST_TR)).pointee = roost_segment(base: 0, limit: 0xFFFF, selector: 0, attributes: 0x8B)
        s.pointee.idtr_base = 0
        s.pointee.idtr_limit = 0x3FF
        guard mode != .real else { return v.updateMode() }
        s.pointee.cr0 = 0x31
        if mode == .long {
            // Identity-mapped: one table of 2 MiB pages at 0xA000, the rest above it.
            try? memory.store(0xB003 as UInt64, at: GuestPhysicalAddress(0xA000))
            for n in 0..<4 as Range<UInt64> {
                try? memory.store(0xC003 + n * 0x1000, at: GuestPhysicalAddress(0xB000 + n * 8))
            }
            for n in 0..<2048 as Range<UInt64> {
                try? memory.store(n << 21 | 0x83, at: GuestPhysicalAddress(0xC000 + n * 8))
            }
            s.pointee.cr4 = 0x20
            s.pointee.cr3 = 0xA000
            s.pointee.efer = 0x500
            s.pointee.cr0 = 0x8000_0031
        }
        v.updateMode()
    }

    /// Runs to the next exit that is none of the kind that only says "go on".
    func run() -> VMExit {
        while true {
            let exit = engine.run()
            if exit != .interrupted { return exit }
        }
    }
}

/// Machine code for tests.
enum Payload {
    /// mov al, n; out 0x80, al
    static func say(_ n: UInt8) -> [UInt8] { [0xB0, n, 0xE6, 0x80] }
    static let spin: [UInt8] = [0xEB, 0xFE]
    static func said(_ n: UInt8) -> VMExit { .portWrite(port: 0x80, size: 1, value: UInt32(n)) }
}
