// Starting a machine's process in the background, and hearing from it how that went.
internal import Foundation
internal import HostOS

/// A start that failed, as the machine's process tells it.
public struct StartFailure: Error, Codable, Sendable, CustomStringConvertible {
    /// The exit status that tells the kind of failure.
    public var status: Int32
    /// What is wrong.
    public var description: String

    /// A failure.
    public init(status: Int32, _ description: String) {
        self.status = status
        self.description = description
    }
}

/// What goes through the pipe between who starts a machine in the background and its process.
struct StartReport: Codable {
    var failure: StartFailure?
}

extension StoredMachine {
    /// Starts the machine's process: this program again, with these arguments. Returns when its guest runs.
    public func launch(_ arguments: [String]) throws {
        let log = monitorLogPath
        let start = try explaining { () throws(HostError) in
            try DetachedProcess.start(DetachedProcess.ownPath, arguments, log: log)
        }
        var text: [UInt8] = []
        while true {
            let bytes = ByteStream(writing: start.report.rawValue).read(limit: 4096)
            if bytes.isEmpty || text.count > 1 << 16 { break }
            text += bytes
        }
        if let report = try? JSONDecoder().decode(StartReport.self, from: Data(text)) {
            guard let failure = report.failure else { return }
            _ = start.hasEnded(within: 5000)
            throw failure
        }
        _ = start.hasEnded(within: 1000)
        let said = (try? HostFile.contents(of: log, limit: 1 << 20)) ?? []
        let last =
            String(decoding: said, as: UTF8.self).split(separator: "\n").last.map(String.init) ?? "it said nothing"
        throw MachinesError(.startFailed, "machine '\(name)': its process ended at once: \(last)")
    }
}

/// The process's end of the pipe to its starter.
public struct LaunchReport: ~Copyable {
    private let pipe: FileDescriptor?

    /// Takes the pipe, if this process was started with one.
    public init() { pipe = DetachedProcess.takeReport() }

    /// Says how it went; the starter goes its way.
    public consuming func finish(_ failure: StartFailure? = nil) {
        guard let line = try? JSONText.line(StartReport(failure: failure)), pipe != nil else { return }
        write(line)
    }

    private borrowing func write(_ line: [UInt8]) {
        _ = ByteStream(writing: DetachedProcess.reportDescriptor).write(line)
    }
}
