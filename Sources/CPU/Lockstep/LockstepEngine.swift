// The engine that compares the two others.
internal import CHost
public import GuestMemory
public import HostOS

/// Runs one vCPU by translator and interpreter side by side; stops at the first difference.
public final class LockstepEngine {
    /// The engine that the machine sees.
    public let translator: Translator
    private let lockstep: UnsafeMutablePointer<Lockstep>

    /// Makes both engines for a vCPU attached to its machine's memory; `codeCache` bytes of translated code.
    public init(cpu: VirtualCPU, memory: GuestMemory, codeCache: Int = 32 << 20) throws(HostError) {
        var settings = Translator.Settings()
        settings.codeCache = codeCache
        settings.heat = 0
        settings.counts = true
        settings.exactFlags = true
        settings.chains = false
        translator = try Translator(cpu: cpu, memory: memory, settings: settings)
        lockstep = .allocate(capacity: 1)
        lockstep.initialize(to: Lockstep())
        cpu.state.pointee.lockstep = UnsafeMutableRawPointer(lockstep)
        cpu.state.pointee.other_tlb = lockstep.pointee.tables
    }

    deinit {
        translator.cpu.state.pointee.lockstep = nil
        translator.cpu.state.pointee.other_tlb = nil
        lockstep.pointee.deallocate()
        lockstep.deinitialize(count: 1)
        lockstep.deallocate()
    }

    /// The first difference, after the exit that tells of it.
    public var difference: LockstepDifference? { lockstep.pointee.difference }
    /// Blocks run by both engines.
    public var compared: UInt64 { lockstep.pointee.compared }
    /// Blocks that only the interpreter runs.
    public var single: UInt64 { lockstep.pointee.single }
    /// Blocks run again because devices or interrupts came between.
    public var repeated: UInt64 { lockstep.pointee.repeated }

    /// Runs until something outside the CPU is needed, or the engines differ.
    public func run() -> VMExit { translator.run() }

    /// Answers the access that the last exit asked for; the instruction goes on with the next `run`.
    public func complete(_ value: UInt64) { translator.complete(value) }

    /// Refuses the MSR access that the last exit asked for: #GP(0).
    public func completeWithGeneralProtection() { translator.completeWithGeneralProtection() }

    /// Whether an external interrupt can be injected now.
    public var canTakeInterrupt: Bool { translator.canTakeInterrupt }

    /// Delivers an external interrupt; only when `canTakeInterrupt`. False when delivery itself shut the vCPU down.
    public func inject(vector: UInt8) -> Bool { translator.inject(vector: vector) }
}
