// When an address space's user code runs directly: as long as the time it runs pays for the ways in and out.
//
// Pure arithmetic on time-stamp counts, so that it can be tested without a stub.

/// The account of one address space: runs earn, ways in and out cost.
package struct UserSpacePolicy {
    /// A run earns its time: ways in and out may take as much again. Translated code takes longer by more than that,
    /// but for the simplest loops.
    static let share: UInt64 = 1
    /// A run up to a page fault earns so many times as much once the space has run for long: who keeps touching new pages
    /// is often on new code too, a compiler say, for which the translator takes six times as long or more.
    static let freshness: UInt64 = 6
    /// Interrupts that have found a space in user mode when it has run for long.
    private static let long = 6
    /// Ways out that a new account can pay: for the stub and its first mappings.
    private static let start: Int64 = 300
    /// The same after each time it was overdrawn.
    private static let restart: Int64 = 40
    private static let most: Int64 = 400
    private static let longestPause: UInt64 = 32

    /// Counts that one way in and out takes, measured.
    package var cost: Int64 = 30_000
    /// What is left.
    package private(set) var balance: Int64 = 0
    private var isOpen = false
    private var pauses: UInt64 = 4
    /// Looks at interrupts in user mode to be let pass before the next trial.
    package private(set) var pause: UInt64 = 0
    /// Returns to user mode to be let pass before the next way in.
    private var skip = 0
    private var nextSkip = 0
    /// Interrupts in a row that found this space in user mode.
    package var seen = 0

    /// An account that isn't open yet.
    package init() {}

    /// Whether it may run directly.
    package var mayRun: Bool { pause == 0 }

    /// Opens the account when it is used first.
    package mutating func open() {
        if isOpen { return }
        isOpen = true
        balance = Self.start * cost
    }

    /// Whether a page fault says that the code is new.
    private func isFresh(_ isFault: Bool) -> Bool { isFault && seen >= Self.long }

    /// The guest has entered its kernel by itself after a run: soon after it, that many returns from it are let pass.
    package mutating func entered(kernelAfter run: UInt64, isFault: Bool) {
        let cost = UInt64(truncatingIfNeeded: max(cost, 1))
        let pays = isFresh(isFault) ? min(run, 1 << 40) * Self.freshness >= cost : run >= 4 * cost
        nextSkip = pays ? 0 : min(nextSkip * 2 + 1, 1023)
        skip = nextSkip
    }

    /// Whether a return to user mode is one to run directly from.
    package mutating func takesReturn() -> Bool {
        if skip > 0 {
            skip -= 1
            return false
        }
        return mayRun
    }

    /// A run of some counts, which a page fault may have ended, and the counts that were spent around it.
    package mutating func charge(run: UInt64, overhead: UInt64, isFault: Bool) {
        let earned = min(run, 1 << 40) / Self.share * (isFresh(isFault) ? Self.freshness : 1)
        balance += Int64(truncatingIfNeeded: earned)
        // What takes very long is the host having something else to do.
        balance -= cost + min(Int64(truncatingIfNeeded: min(overhead, 1 << 40)), 30 * cost)
        if balance >= Self.most * cost {
            balance = Self.most * cost
            pauses = 4
        }
        if balance < 0 { suspend() }
    }

    /// Gives the space back to the translator for a while, twice as long each time.
    package mutating func suspend() {
        pause = pauses
        pauses = min(pauses * 2, Self.longestPause)
        balance = Self.restart * cost
        isOpen = true
    }

    /// An interrupt found the space in user mode.
    package mutating func tick() {
        seen = min(seen + 1, 1 << 20)
        skip = 0
        if pause > 0 { pause -= 1 }
    }
}
