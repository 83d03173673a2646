// How a snapshot of a running machine gets on, from its process to who asked for it.
internal import Foundation
internal import HostOS
internal import Machine
internal import Synchronization

/// One thing at a time is done with the snapshots of this process's machine.
private let snapshotsInTurn = Mutex(())

/// One thread at a time merges layers, most of the time without the above.
private let mergesInTurn = Mutex(())

/// One line of the stream.
struct SnapshotNews: Codable, Sendable {
    /// Bytes of memory looked at, and those there are.
    var done: UInt64 = 0
    var total: UInt64 = 0
    /// It is the last line.
    var isOver = false
    /// What went wrong.
    var failure: String?

    /// Takes a snapshot and tells how it gets on. It is taken to its end even if nobody listens any more.
    static func take(
        _ name: String, _ machine: Machine, _ stored: StoredMachine, _ events: EventLog, _ connection: LocalConnection
    ) {
        var last = SnapshotNews(isOver: true)
        do {
            var told: UInt64 = 0
            let result = try snapshotsInTurn.withLock { _ in
                try stored.takeSnapshot(name, of: machine) { progress in
                    let now = HostClock.monotonic
                    guard now &- told > 100_000_000 else { return }
                    told = now
                    send(
                        SnapshotNews(done: UInt64(progress.done) << 12, total: UInt64(progress.total) << 12), connection
                    )
                }
            }
            let standstill = result.map { result in
                ", the guest stood still for \(Double(result.pause / 1000) / 1000) ms; "
                    + "\(result.pagesInPause) of \(result.bytes >> 12) pages were saved in that time"
            }
            events.note("snapshot", name + (standstill ?? ""))
        } catch {
            last.failure = "\(error)"
        }
        send(last, connection)
    }

    /// Deletes a snapshot, which waits for one that is being taken.
    static func delete(_ name: String, _ stored: StoredMachine, _ connection: LocalConnection) {
        var last = SnapshotNews(isOver: true)
        do { try snapshotsInTurn.withLock { _ in try stored.deleteSnapshot(name) } } catch { last.failure = "\(error)" }
        send(last, connection)
        guard last.failure == nil else { return }
        // Nobody needs to wait for it, or to hear of it: what can't be merged now can be the next time.
        _ = try? HostThread.detached(name: "roost-merge") {
            mergesInTurn.withLock { _ in
                try? stored.mergeLayers(
                    running: true, inTurn: { body in try snapshotsInTurn.withLock { _ in try body() } })
            }
        }
    }

    private static func send(_ news: SnapshotNews, _ connection: LocalConnection) {
        if let line = try? JSONText.line(news) { _ = connection.write(line) }
    }
}

extension StoredMachine {
    /// Takes a snapshot of the machine, running or not; `progress` gets bytes of memory done and in all.
    public func takeSnapshot(_ name: String, progress: (UInt64, UInt64) -> Void) throws {
        guard isRunning else {
            let lock = try lock()
            defer { withExtendedLifetime(lock) {} }
            try finishRestore()
            try takeSnapshot(name, of: nil)
            return
        }
        let stream = try control().stream(MachineRequest.takeSnapshot, NameParameters(name: name))
        guard try follow(stream, progress) else {
            throw MachinesError(
                .notAnswering, "machine '\(self.name)' ended while the snapshot was taken; there is none")
        }
    }

    /// Follows what is told of a snapshot; whether it came to its end.
    private func follow(_ stream: LocalConnection, _ progress: (UInt64, UInt64) -> Void) throws -> Bool {
        while let line = stream.readLine(limit: 1 << 16) {
            guard let news = try? JSONDecoder().decode(SnapshotNews.self, from: Data(line.utf8)) else { break }
            if let failure = news.failure { throw MachinesError(.fileSystem, failure) }
            if news.isOver { return true }
            progress(news.done, news.total)
        }
        return false
    }

    /// Deletes a snapshot of the machine, running or not; `progress` gets the bytes of its layers that have been merged with
    /// others, and of all. A running machine does that afterwards.
    public func dropSnapshot(_ name: String, progress: (UInt64, UInt64) -> Void) throws {
        if isRunning {
            let stream = try control().stream(MachineRequest.deleteSnapshot, NameParameters(name: name))
            guard try follow(stream, progress) else {
                throw MachinesError(
                    .notAnswering,
                    "machine '\(self.name)' ended meanwhile; `roost snapshot list \(self.name)` shows whether '\(name)' is gone"
                )
            }
            return
        }
        let lock = try lock()
        defer { withExtendedLifetime(lock) {} }
        try finishRestore()
        try deleteSnapshot(name)
        // The snapshot is gone, whatever comes of this: a full disk is a reason to delete one.
        try? mergeLayers(running: false, progress: progress)
    }
}
