// What happens to a machine, as JSON lines: in its folder, and for whoever follows.
internal import Foundation
internal import HostOS
internal import Machine
internal import Synchronization

/// One event as it is written.
public struct MachineEventRecord: Codable, Sendable {
    /// When, in ISO 8601 with milliseconds.
    public var time: String
    /// The machine's name then.
    public var machine: String
    /// What.
    public var event: String
    /// More about it.
    public var detail: String?
}

/// Keeps a machine's events.
final class EventLog: Sendable {
    /// This run's.
    let lines = ByteLog(capacity: 256 << 10)
    private let machine: StoredMachine
    private let file: Mutex<LimitedLog>

    init(_ machine: StoredMachine) throws(MachinesError) {
        self.machine = machine
        let path = machine.eventsPath
        file = Mutex(try explaining { () throws(HostError) in try LimitedLog(path: path, limit: 1 << 20) })
    }

    func note(_ event: String, _ detail: String? = nil) {
        let time = Date().formatted(Date.ISO8601FormatStyle(includingFractionalSeconds: true))
        let record = MachineEventRecord(time: time, machine: machine.name, event: event, detail: detail)
        guard let line = try? JSONText.line(record) else { return }
        file.withLock { $0.append(line) }
        lines.append(line)
    }

    /// Notes what Linux says on the console when it can't go on, until the console is at its end.
    func watch(_ history: ByteLog) throws(HostError) {
        let reader = try history.follow(from: 0)
        try HostThread.detached(name: "roost-panic") { [self] in
            var scanner = LineScanner(marker: "Kernel panic - not syncing: ")
            while let part = reader.wait(limit: 65536) {
                for text in scanner.scan(part.bytes) { note("panicked", text) }
            }
        }
    }
}

/// Finds a marker in a stream, and what follows it on its line.
package struct LineScanner {
    private static let longest = 256
    private let marker: [UInt8]
    private var line: [UInt8] = []

    /// A scanner that has seen nothing.
    package init(marker: String) { self.marker = Array(marker.utf8) }

    /// What stood behind the marker in each line that came to its end with these bytes. Of a line, only the end counts
    /// that is no longer than a console's few lines.
    package mutating func scan(_ bytes: [UInt8]) -> [String] {
        var found: [String] = []
        for byte in bytes {
            if byte == 10 || byte == 13 {
                if let place = place(in: line) {
                    found.append(String(decoding: line[(place + marker.count)...], as: UTF8.self))
                }
                line.removeAll(keepingCapacity: true)
            } else if line.count < Self.longest {
                line.append(byte)
            }
        }
        return found
    }

    private func place(in line: [UInt8]) -> Int? {
        guard line.count >= marker.count else { return nil }
        return (0...line.count - marker.count).first { line[$0...].starts(with: marker) }
    }
}
