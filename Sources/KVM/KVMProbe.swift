// Whether the hypervisor runs an ordinary kernel's code at the processor's speed. Asked, not guessed from names.
//
// A processor with VMX or SVM runs it directly. Where this process sees neither, something else stands behind /dev/kvm:
// a paravirtual KVM may run kernels made for it well and emulate all others, at a thousandth of the speed.
internal import CHost
internal import CPU
internal import GuestMemory
internal import HostOS

/// Finds out how good the host's KVM is.
public enum KVMProbe {
    /// Iterations of the loop, two instructions each.
    private static let iterations: UInt32 = 5000
    /// Nanoseconds that they may take: 5 million instructions a second, far below any processor, far above emulation.
    private static let patience: UInt64 = 2_000_000

    /// Why the translator is better; nil: nothing speaks against KVM.
    public static func obstacle(on host: KVMHost?) -> KVMError? {
        guard let host else { return KVMError(.absent, "there is no \(KVMHost.path)") }
        if KVMHost.processorHasVirtualization { return nil }
        do throws(KVMError) {
            let time = try kernelLoop(on: host)
            guard time > patience else { return nil }
            let rate = UInt64(iterations) * 2 * 1000 / max(1, time)
            return KVMError(
                .slow,
                "this host's KVM\(moduleWords) emulates kernels, at about \(max(1, rate)) million instructions a second: "
                    + "the processor shows no virtualization of its own")
        } catch {
            return error
        }
    }

    /// The kernel module behind /dev/kvm, by what the kernel shows of it.
    public static var module: String? {
        ["kvm_intel", "kvm_amd", "kvm_pvm"].first { FileDescriptor.exists("/sys/module/\($0)") }
    }

    /// Which kind of KVM answers, in words.
    public static var kind: String {
        let words =
            switch module {
            case "kvm_intel": "Intel VT-x"
            case "kvm_amd": "AMD-V"
            case "kvm_pvm": "paravirtual (kvm_pvm)"
            default: "of a kind that the kernel doesn't show"
            }
        return words + (runsUnderHypervisor ? ", nested" : "")
    }

    /// Whether this host is itself a guest.
    public static var runsUnderHypervisor: Bool {
        var (a, b, c, d): (UInt32, UInt32, UInt32, UInt32) = (0, 0, 0, 0)
        roost_cpuid(1, 0, &a, &b, &c, &d)
        return c >> 31 != 0
    }

    private static var moduleWords: String { module.map { " (\($0))" } ?? "" }

    /// Nanoseconds that a loop takes in 64-bit kernel mode, the better of two tries.
    static func kernelLoop(on host: KVMHost) throws(KVMError) -> UInt64 {
        let memory: GuestMemory
        do { memory = try GuestMemory(size: 1 << 20) } catch { throw KVMError("memory for a probe", error) }
        let cpu = VirtualCPU(id: 0, defersTables: true)
        cpu.attach(memory: memory)
        cpu.model = CPUModel.host.limited(to: try host.supportedCPUID())
        cpu.vcpu.reset()
        let engine = try KVMEngine(machine: try KVMMachine(host: host, memory: memory), cpu: cpu)
        // out 0x80, al; mov ecx, n; again: dec ecx; jnz again; jmp start
        let n = iterations
        let count = (0..<4).map { UInt8(truncatingIfNeeded: n >> UInt32($0 * 8)) }
        let code: [UInt8] = [0xE6, 0x80, 0xB9] + count + [0xFF, 0xC9, 0x75, 0xFC, 0xEB, 0xF3]
        try? memory.write(code, at: GuestPhysicalAddress(0x1000))
        try? memory.store(0x3003 as UInt64, at: GuestPhysicalAddress(0x2000))
        try? memory.store(0x83 as UInt64, at: GuestPhysicalAddress(0x4000))
        try? memory.store(0x4003 as UInt64, at: GuestPhysicalAddress(0x3000))
        enterLongMode(cpu)
        try engine.loadState()
        var best = UInt64.max
        guard runToPort(engine) else { return best }
        for _ in 0..<2 {
            let start = HostClock.monotonic
            guard runToPort(engine) else { return best }
            best = min(best, HostClock.monotonic &- start)
        }
        return best
    }

    private static func runToPort(_ engine: KVMEngine) -> Bool {
        for _ in 0..<64 {
            switch engine.run() {
            case .portWrite:
                engine.complete(0)
                return true
            case .interrupted: continue
            default: return false
            }
        }
        return false
    }

    private static func enterLongMode(_ cpu: VirtualCPU) {
        let s = cpu.state
        s.pointee.apic_base = 0xFEE0_0900
        s.pointee.rip = 0x1000
        for n in 0..<6 {
            let isCode = n == Int(ROOST_CS)
            cpu.vcpu.segment(n).pointee = roost_segment(
                base: 0, limit: ~0, selector: isCode ? 8 : 16, attributes: isCode ? 0xA09B : 0xC093)
        }
        (s.pointee.cr4, s.pointee.cr3, s.pointee.efer, s.pointee.cr0) = (0x20, 0x2000, 0x500, 0x8000_0031)
        cpu.vcpu.updateMode()
    }
}
