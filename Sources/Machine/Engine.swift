// What the machine asks of an engine; nothing else may know which one runs (law 1).
package import CPU

/// Runs one vCPU; used by one thread.
package protocol Engine: AnyObject {
    /// Runs until something outside the CPU is needed.
    func run() -> VMExit
    /// Answers the last access.
    func complete(_ value: UInt64)
    /// Refuses the last MSR access.
    func completeWithGeneralProtection()
    /// Whether an external interrupt can be injected now.
    var canTakeInterrupt: Bool { get }
    /// Injects an external interrupt; false if that was a triple fault.
    func inject(vector: UInt8) -> Bool
    /// What engines that were compared did not agree on.
    var difference: LockstepDifference? { get }
    /// Adds what only this engine counts.
    func report(to statistics: inout RunStatistics)
}
