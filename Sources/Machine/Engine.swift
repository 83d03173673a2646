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
    /// Makes the running or next `run` return soon, from any thread; nil where the attention word is enough.
    var kicker: (@Sendable () -> Void)? { get }
    /// Whether no instruction waits for an answer in the engine itself.
    var isBetweenInstructions: Bool { get }
    /// Takes over what the state block, the board and the clock hold, before the first run and after changes from outside.
    func takeOver(_ clock: KVMClock.Registers) throws
    /// Brings the state block and the board up to date, between instructions; the clock's registers are returned.
    func giveBack(_ clock: KVMClock.Registers) throws -> KVMClock.Registers
    /// Brings as much of the state block up to date as a report shows.
    func describe()
    /// What engines that were compared did not agree on.
    var difference: LockstepDifference? { get }
    /// Adds what only this engine counts.
    func report(to statistics: inout RunStatistics)
}
