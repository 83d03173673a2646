// What a run of the programs in one system printed, line by line.
internal import Foundation

/// One program's figure in one run.
package struct Measurement: Codable {
    package var seconds: Double
    package var operations: UInt64
    package var checksum: String
    /// Which code ran, where the processor decides.
    package var path: String?
    /// The share of the time in which the process had its core when it wanted it.
    package var processorShare: Double?
}

/// Collects the lines of one process (a guest, or one native program) into figures.
package struct SystemRun {
    package var results: [String: Measurement] = [:]
    /// Programs that gave no figure, and why.
    package var failures: [String: String] = [:]
    /// Seconds from the start of the process to the first line of the guest's init.
    package var boot: Double?
    /// MiB resident beyond the guest's memory, the most seen.
    package var residentBeyondGuest: Double?
    /// The guest's clock against the host's, between the guest's first and last word: 1 is right.
    package var clockRate: Double?

    /// The program that is running.
    package private(set) var current: String?
    package private(set) var isDone = false
    private var lastLine = ""
    private var panic: String?
    /// The line that tells best why a guest ended: its panic, or its last.
    package var lastWords: String { panic ?? lastLine }
    /// When the last word from the guest's init came.
    package private(set) var lastWord = ContinuousClock.now
    private let start = ContinuousClock.now
    private var clocks: [(guest: Double, host: ContinuousClock.Instant)] = []

    package init() {}

    /// Takes a line; says whether it was a result.
    package mutating func take(_ line: String) -> Bool {
        if !line.isEmpty { lastLine = line }
        if line.contains("Kernel panic") { panic = panic ?? line }
        guard let marker = line.range(of: "@bench ") else { return false }
        let words = line[marker.upperBound...].split(separator: " ").map(String.init)
        lastWord = .now
        switch words.first {
        case "begin": boot = boot ?? (lastWord - start).seconds
        case "clock": takeClock(words)
        case "start": current = words.count > 1 ? words[1] : nil
        case "result":
            guard words.count == 6, let seconds = Double(words[2]), let operations = UInt64(words[3]),
                seconds.isFinite, seconds > 0
            else { return false }
            results[words[1]] = Measurement(
                seconds: seconds, operations: operations, checksum: words[4], path: words[5] == "-" ? nil : words[5])
            current = nil
            return true
        case "error": if let current { failures[current] = words.dropFirst().joined(separator: " ") }
        case "fail":
            guard words.count > 1 else { return false }
            failures[words[1]] = failures[words[1]] ?? Self.reason(words)
            current = nil
        case "done": isDone = true
        default: break
        }
        return false
    }

    private static func reason(_ words: [String]) -> String {
        let text = words.dropFirst(2).joined(separator: " ")
        return text == "status 137" ? "killed: too slow, or out of memory" : text
    }

    private mutating func takeClock(_ words: [String]) {
        guard words.count == 2, let guest = Double(words[1]) else { return }
        clocks.append((guest, lastWord))
        guard clocks.count == 2 else { return }
        let host = (clocks[1].host - clocks[0].host).seconds
        // The guest's figure has a resolution of 10 ms.
        if host > 2 { clockRate = (clocks[1].guest - clocks[0].guest) / host }
    }

    /// Starts on a program without being told by a line.
    package mutating func begin(_ program: String) { current = program }
}

extension Duration {
    /// The duration in seconds.
    package var seconds: Double { Double(components.seconds) + Double(components.attoseconds) / 1e18 }
}
