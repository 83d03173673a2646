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
    /// Whether nothing else is on its way inside the engine; its next exit settles that.
    var isSettled: Bool { get }
    /// Whether a halted vCPU waits for its interrupt in `run`.
    var waitsByItself: Bool { get }
    /// What tells afterwards which pages the guest has written; nil where its first store to a page that isn't dirty is
    /// noticed before it happens.
    var writeLog: (any WriteLog)? { get }
    /// Takes over what the state block, the board and the clock hold, before the first run and after changes from outside.
    func takeOver(_ clock: KVMClock.Registers) throws
    /// Brings the state block and the board up to date, between instructions; the clock's registers are returned.
    func giveBack(_ clock: KVMClock.Registers) throws -> Handover
    /// Brings as much of the state block up to date as a report shows.
    func describe()
    /// Room for a copy of what it has made of the guest's code, which the vCPU needn't wait for; nil if it makes none.
    func makeRoomForTranslations() -> SavedTranslations?
    /// Takes the copy, while the vCPU waits; false if there is nothing worth it.
    func saveTranslations(into room: inout SavedTranslations) -> Bool
    /// Begins with what was saved with memory of this sum; false if that doesn't fit. Before the first run.
    func restoreTranslations(from file: TranslationFile, memory: UInt32) -> Bool
    /// What engines that were compared did not agree on.
    var difference: LockstepDifference? { get }
    /// Adds what only this engine counts.
    func report(to statistics: inout RunStatistics)
}

/// Notes which pages of RAM the processors of a machine write, while they run.
package protocol WriteLog: Sendable {
    /// Begins.
    func begin() throws(MachineError)
    /// Marks the pages written since it began, or since the last call, as dirty.
    func collect() throws(MachineError)
    /// Ends: what wasn't collected is forgotten.
    func end()
}

/// What goes from engine to engine beside the state block and the board.
package struct Handover: Sendable, Equatable {
    /// The paravirtual clock's registers.
    package var clock: KVMClock.Registers
    /// An interrupt that the 8259 has handed out and the guest hasn't got.
    package var interrupt: UInt8?

    /// Makes one of its parts.
    package init(clock: KVMClock.Registers, interrupt: UInt8? = nil) {
        self.clock = clock
        self.interrupt = interrupt
    }
}
