// Progress of what takes longer than a second, on standard error: one line redrawn on a terminal, a line a stage elsewhere.
internal import Foundation
internal import HostOS

/// Shows how far something is.
struct ProgressLine {
    private let isTerminal = Terminal.isTerminal(2)
    private let start = HostClock.monotonic
    private var stage = ""
    private var stageStart: UInt64 = 0
    private var lastDrawn: UInt64 = 0
    private var isDrawn = false
    private var isTold = false

    /// Takes in the state: stage, bytes done, bytes in all or 0.
    mutating func show(_ stage: String, _ done: UInt64, _ total: UInt64) {
        let now = HostClock.monotonic
        if stage != self.stage {
            self.stage = stage
            stageStart = now
            isTold = false
        }
        if !isTerminal && !isTold && now &- start > 1_000_000_000 {
            isTold = true
            write("\(stage)\n")
        }
        guard isTerminal, now &- start > 1_000_000_000, now &- lastDrawn > 100_000_000 else { return }
        lastDrawn = now
        isDrawn = true
        var line = stage
        if total > 0 {
            line += ": \(done / (total / 100 + 1))%, \(Listing.short(done)) of \(Listing.short(total))"
            let elapsed = Double(now &- stageStart) / 1e9
            if done > 0, elapsed > 1 { line += ", \(Int(elapsed * Double(total &- done) / Double(done)) + 1) s left" }
        } else if done > 0 {
            line += ": \(Listing.short(done))"
        }
        write("\r\u{1B}[K" + line)
    }

    /// Takes the line away.
    mutating func finish() {
        if isDrawn { write("\r\u{1B}[K") }
    }

    private func write(_ text: String) { FileHandle.standardError.write(Data(text.utf8)) }
}
