// Whether a disk's requests are answered by the host's cache, or wait for its disk.
internal import Devices
internal import GuestMemory
internal import HostOS
internal import Synchronization

/// What a disk's transfers have taken lately.
final class Pace: Sendable {
    /// Nanoseconds beyond what their length explains.
    private let time = Atomic<UInt64>(0)
    /// From here on they wait for a disk.
    private static let slow: UInt64 = 100_000

    /// Whether a request is likely to hold up its thread.
    func isSlow(_ job: BlockJob) -> Bool {
        switch job.operation {
        case .read, .write: time.load(ordering: .relaxed) > Self.slow
        case .flush, .discard, .writeZeroes: true
        case .identify, .refused: false
        }
    }

    /// Carries a request out, and notes how long it takes if it is a transfer: half a nanosecond a byte is copying.
    func perform(_ job: BlockJob, of source: BlockSource) -> BlockCompletion {
        let bytes: Int
        switch job.operation {
        case .read(_, let buffer), .write(_, let buffer): bytes = buffer.count
        default: return source.perform(job)
        }
        let begin = HostClock.monotonic
        let completion = source.perform(job)
        let taken = HostClock.monotonic &- begin
        let beyond = min(taken &- min(taken, UInt64(bytes) / 2), 1_000_000_000)
        let old = time.load(ordering: .relaxed)
        time.store(old &- old / 8 &+ beyond / 8, ordering: .relaxed)
        return completion
    }
}

/// Requests that were carried out and finish together.
struct CompletionBatch {
    private(set) var completions: [BlockCompletion] = []
    private var begin: UInt64 = 0

    /// Nanoseconds by which the first may be held back for the others.
    private static let longest: UInt64 = 100_000
    private static let largest = 32

    var isEmpty: Bool { completions.isEmpty }

    /// Whether no more should be waited for.
    var isRipe: Bool {
        completions.count >= Self.largest || (!isEmpty && HostClock.monotonic &- begin > Self.longest)
    }

    mutating func append(_ completion: BlockCompletion) {
        if completions.isEmpty { begin = HostClock.monotonic }
        completions.append(completion)
    }

    mutating func finish(_ source: BlockSource) {
        source.finish(completions)
        completions = []
    }

    /// The same unless that has to wait; whether it was done.
    mutating func finishNow(_ source: BlockSource) -> Bool {
        guard source.finishNow(completions) else { return false }
        completions = []
        return true
    }
}
