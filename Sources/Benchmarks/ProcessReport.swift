// What /proc tells about a child: its processor time, and its memory apart from the guest's.
import Foundation

enum ProcessReport {
    /// This process's children.
    static func children() -> [Int32] {
        let own = ProcessInfo.processInfo.processIdentifier
        // A child belongs to the thread that started it.
        let threads = (try? FileManager.default.contentsOfDirectory(atPath: "/proc/\(own)/task")) ?? []
        return threads.flatMap { thread in
            let text = (try? String(contentsOfFile: "/proc/\(own)/task/\(thread)/children", encoding: .utf8)) ?? ""
            return text.split(separator: " ").compactMap { Int32($0.trimmingCharacters(in: .whitespacesAndNewlines)) }
        }
    }

    /// User and system time that a process has used.
    static func processorSeconds(_ process: Int32) -> Double {
        let text = (try? String(contentsOfFile: "/proc/\(process)/stat", encoding: .utf8)) ?? ""
        let fields = text.split(separator: ")").last?.split(separator: " ") ?? []
        guard fields.count > 12, let user = Double(fields[11]), let system = Double(fields[12]) else { return 0 }
        return (user + system) / Double(sysconf(Int32(_SC_CLK_TCK)))
    }

    /// Seconds that a process's threads were ready to run and did not. See Documentation/scheduler/sched-stats.rst.
    static func waitedSeconds(_ process: Int32) -> Double {
        let threads = (try? FileManager.default.contentsOfDirectory(atPath: "/proc/\(process)/task")) ?? []
        return threads.reduce(0) { total, thread in
            let text = (try? String(contentsOfFile: "/proc/\(process)/task/\(thread)/schedstat", encoding: .utf8)) ?? ""
            let fields = text.split(separator: " ")
            return total + (fields.count > 1 ? (Double(fields[1]) ?? 0) / 1e9 : 0)
        }
    }

    /// MiB of shared memory that a process holds: a guest's.
    static func residentShared(_ process: Int32) -> Double {
        let text = (try? String(contentsOfFile: "/proc/\(process)/status", encoding: .utf8)) ?? ""
        let line = text.split(separator: "\n").first { $0.hasPrefix("RssShmem:") }
        return line.flatMap { Double($0.filter(\.isNumber)) }.map { $0 / 1024 } ?? 0
    }

    /// MiB resident in everything but the guest's own memory: Roost's memory file or, in another monitor, the mapping
    /// of just the guest's size.
    static func residentBeyondGuest(_ process: Int32, guestMiB: Int? = nil) -> Double {
        let text = (try? String(contentsOfFile: "/proc/\(process)/smaps", encoding: .utf8)) ?? ""
        var total = 0.0
        var isGuest = false
        for line in text.split(separator: "\n") {
            let fields = line.split(separator: " ")
            guard fields.count > 1 else { continue }
            if !fields[0].hasSuffix(":") {
                isGuest = line.contains("guest-ram")
            } else if fields[0] == "Size:" {
                if let guestMiB, Int(fields[1]) == guestMiB * 1024 { isGuest = true }
            } else if fields[0] == "Rss:", !isGuest {
                total += Double(fields[1]) ?? 0
            }
        }
        return total / 1024
    }
}

/// Tells how much of its time the child has not had to wait for its core, since the watch was made.
struct ProcessorWatch {
    private let start = ContinuousClock.now
    private let before = ProcessReport.children().first.map(ProcessReport.waitedSeconds) ?? 0

    /// The share; nil if there is no child.
    func share() -> Double? {
        guard let child = ProcessReport.children().first else { return nil }
        let elapsed = ContinuousClock.now - start
        let wall = Double(elapsed.components.seconds) + Double(elapsed.components.attoseconds) / 1e18
        return 1 - (ProcessReport.waitedSeconds(child) - before) / wall
    }
}

/// The niceness of all that was started from this terminal, where the kernel groups processes so: there a process's own
/// counts only against its neighbors in the group. See sched(7), "The autogroup feature".
enum SessionNiceness {
    private static let file = "/proc/self/autogroup"

    /// Runs a body with this niceness, if the kernel lets us, and puts the former one back.
    static func with(_ niceness: Int, _ body: () throws -> Void) rethrows {
        if niceness == 0 { return try body() }
        let text = (try? String(contentsOfFile: file, encoding: .utf8)) ?? ""
        set(niceness)
        defer { set(text.split { $0.isWhitespace }.last.flatMap { Int($0) } ?? 0) }
        try body()
    }

    private static func set(_ niceness: Int) {
        guard let handle = FileHandle(forWritingAtPath: file) else { return }
        try? handle.write(contentsOf: Data("\(niceness)".utf8))
        try? handle.close()
    }
}
