// What an engine needs from outside the CPU (law 1).

/// Why an engine stopped running a vCPU.
///
/// After a read the machine calls `complete(value)`, after a write `complete(0)`; the engine then runs the instruction
/// again, handing it the answers in order, so that an instruction with several accesses needs no continuation.
public enum VMExit: Sendable, Equatable {
    /// IN or INS of 1, 2 or 4 bytes.
    case portRead(port: UInt16, size: Int)
    /// OUT or OUTS of 1, 2 or 4 bytes.
    case portWrite(port: UInt16, size: Int, value: UInt32)
    /// A load outside RAM of 1, 2, 4 or 8 bytes.
    case mmioRead(address: UInt64, size: Int)
    /// A store outside RAM of 1, 2, 4 or 8 bytes.
    case mmioWrite(address: UInt64, size: Int, value: UInt64)
    /// RDMSR of a register that the CPU itself doesn't hold (local APIC, paravirtual clock).
    case readMSR(UInt32)
    /// WRMSR of such a register.
    case writeMSR(UInt32, value: UInt64)
    /// CR8 was written: the local APIC's task priority changes. No `complete`.
    case taskPriorityWrite(UInt8)
    /// The guest ended a level-triggered interrupt in a local APIC that the engine has: I/O APICs are to know. No `complete`.
    case endOfInterrupt(UInt8)
    /// HLT or MWAIT: nothing to do until an interrupt. No `complete`.
    case halt
    /// Another thread asked for attention. No `complete`.
    case interrupted
    /// An interrupt can now be injected, as `interrupt_window` asked. No `complete`.
    case interruptWindow
    /// Triple fault. RIP stands at the instruction that caused it.
    case shutdown
    /// VMCALL or VMMCALL: number in RAX. The machine sets RAX; no `complete`.
    case hypercall
    /// Two engines that were compared did not agree; the engine has the difference.
    case difference
    /// The engine's own failure, in words.
    case internalError(String)
}

/// `roost_vcpu.exit_kind`.
enum ExitKind: UInt32 {
    case none, portRead, portWrite, mmioRead, mmioWrite, readMSR, writeMSR, taskPriority, halt, shutdown, hypercall,
        difference
}
