// Where vCPUs wait while the machine is paused.
internal import HostOS

/// Counts the vCPUs that wait, for who pauses the machine.
///
/// Invariant: the counts are touched with the mutex held.
final class PauseGate: @unchecked Sendable {
    private let changed = ConditionLock()
    private var waiting = 0
    private var hasEnded = false

    /// A vCPU waits between two instructions.
    func arrive() { changed.update { waiting += 1 } }

    /// It goes on.
    func leave() { changed.update { waiting -= 1 } }

    /// The machine won't run any more.
    func end() { changed.update { hasEnded = true } }

    /// Waits until `count` vCPUs wait; false if the machine has ended.
    func waitForAll(_ count: Int) -> Bool {
        changed.wait(until: { hasEnded || waiting == count })
        return !hasEnded
    }
}
