// One machine's folder:
//
//   machine.json    what it is                       lock           locked by the process that runs or changes it
//   run.json        its latest run                   console.log    what the console showed, .1 what was before
//   events.log      JSON lines                       monitor.log    what its process said
//   disk.qcow2      its disk, over base.raw          base.raw kernel initrd    the image's, further names of its files
//   cidata.iso      for cloud-init                   layers.lock    locked by those who open or remove layers
//   control.sock    where its process listens
internal import Foundation
internal import HostOS
public import Machine
internal import Synchronization

/// A machine that is kept, running or not.
public struct StoredMachine: Sendable {
    /// Its folder.
    public let folder: String
    /// Its name now: the folder's.
    public var name: String { path.split(separator: "/").last.map(String.init) ?? folder }
    /// Where the folder is now.
    var path: String { folder == Self.entered.folder ? PrivateFolder.canonical(folder) : folder }

    /// The machine whose folder this process is in.
    static let entered = StoredMachine(folder: ".")

    /// Names the folder of a machine.
    public init(folder: String) { self.folder = folder }

    /// Enters the folder, which whoever has the lock does to run the machine: its files are found there whatever its name
    /// becomes.
    func enter(with lock: MachineLock) throws(MachinesError) -> StoredMachine {
        try explaining { () throws(HostError) in try PrivateFolder.enter(folder) }
        // Another one may have got the name meanwhile.
        guard try Self.entered.isLocked(by: lock) else {
            throw MachinesError(.notFound, "machine '\(name)' has another name now")
        }
        return Self.entered
    }

    private func isLocked(by lock: MachineLock) throws(MachinesError) -> Bool {
        let file = try explaining { () throws(HostError) in try DurableFile.openLock(folder + "/lock") }
        return file.identity == lock.identity
    }

    var manifestPath: String { folder + "/machine.json" }
    private var runPath: String { folder + "/run.json" }
    /// What its console showed.
    public var consoleLogPath: String { folder + "/console.log" }
    /// What happened to it, in JSON lines.
    public var eventsPath: String { folder + "/events.log" }
    /// What the process that ran it last has said.
    public var monitorLogPath: String { folder + "/monitor.log" }

    /// What it is.
    public func manifest() throws(MachinesError) -> MachineManifest { try MachineManifest(reading: manifestPath) }

    /// Changes what it is; the lock must be held.
    public func save(_ manifest: MachineManifest, isSynchronized: Bool = true) throws(MachinesError) {
        let bytes = try manifest.serialized()
        try explaining { () throws(HostError) in
            try DurableFile.write(bytes, to: manifestPath, isSynchronized: isSynchronized)
        }
    }

    /// Puts its own files on the disk; those that it shares are there.
    public func synchronize() throws {
        for name in try FileManager.default.contentsOfDirectory(atPath: folder).sorted() {
            let path = folder + "/" + name
            // A socket can't be opened.
            if name != Self.socketName, DurableFile.names(of: path) == 1 { try DurableFile.synchronize(path) }
        }
        for name in try snapshotNames() {
            let record = snapshotFolder(name) + "/record.json"
            if DurableFile.names(of: record) == 1 { try DurableFile.synchronize(record) }
            try DurableFile.synchronize(snapshotFolder(name))
        }
        try DurableFile.synchronize(folder)
        try DurableFile.synchronize(folder + "/..")
    }

    /// Its latest run; nil if there was none.
    public var latestRun: RunRecord? {
        guard let bytes = try? HostFile.contents(of: runPath, limit: 1 << 20) else { return nil }
        return try? JSONDecoder().decode(RunRecord.self, from: Data(bytes))
    }

    /// Writes what its run is at; a power failure ends the run and may take this.
    func save(_ run: RunRecord) throws(MachinesError) {
        let bytes = try JSONText.pretty(run)
        try explaining { () throws(HostError) in try DurableFile.write(bytes, to: runPath, isSynchronized: false) }
    }

    /// Whether it runs in a process, and isn't merely held for a moment by one that changes or copies it.
    public var isRunning: Bool { isTaken && otherWork == nil }

    /// Whether a process has it.
    var isTaken: Bool {
        guard let lock = try? DurableFile.openLock(folder + "/lock") else { return false }
        return lock.isLockedElsewhere
    }

    /// Removes what processes that were killed had half written; the lock is held.
    func sweepHalfWritten() {
        let snapshots = PrivateFolder.names(in: snapshotsFolder).map { snapshotsFolder + "/" + $0 }
        for folder in [folder] + snapshots {
            for name in (try? FileManager.default.contentsOfDirectory(atPath: folder)) ?? []
            where DurableFile.isHalfWritten(name) || name.hasPrefix(".new-") {
                PrivateFolder.remove(folder + "/" + name)
            }
        }
    }

    /// What it is doing.
    public var status: MachineStatus {
        let run = latestRun
        if isRunning { return run?.state == .paused ? .paused : .running }
        guard let run else { return .stopped }
        if run.ended == nil { return .killed }
        return run.isFailure == true ? .failed : .stopped
    }

    /// How long another command that is at work on it is waited for: most take less.
    private static let patience: UInt64 = 1_000_000_000

    /// Takes it for as long as the result is kept; the lock goes with the process.
    public func lock() throws(MachinesError) -> MachineLock {
        let lock = SharedDescriptor(
            try explaining { () throws(HostError) in try DurableFile.openLock(folder + "/lock") })
        let deadline = HostClock.monotonic &+ Self.patience
        while try !explaining({ () throws(HostError) in try lock.descriptor.lock(exclusive: true) }) {
            guard let otherWork else {
                throw MachinesError(.running, "machine '\(name)' runs; `roost stop \(name)` stops it")
            }
            guard HostClock.monotonic < deadline else { throw otherWork }
            HostClock.sleep(nanoseconds: 5_000_000)
        }
        // The folder may have been deleted, or its name given to another, before the lock was ours.
        let taken = MachineLock(lock)
        guard (try? isLocked(by: taken)) == true else {
            throw MachinesError(.notFound, "machine '\(name)' has been deleted")
        }
        return taken
    }

    /// The process that has it; nil if none has.
    public var holder: Int32? {
        guard let lock = try? DurableFile.openLock(folder + "/lock"), lock.isLockedElsewhere else { return nil }
        return lock.lockHolder(exclusive: true)
    }

    /// Why a machine that somebody has can't be had though it doesn't run; nil if it runs. One that is about to run counts
    /// as one that doesn't yet.
    private var otherWork: MachinesError? {
        if let run = latestRun, run.ended == nil, FileDescriptor.exists("/proc/\(run.process)") { return nil }
        return MachinesError(
            .running,
            "machine '\(name)' doesn't run, but another command is at work on it; try again when that is done")
    }

    /// Waits until nobody has it any more; false if that takes longer.
    public func hasStopped(within seconds: Int) -> Bool {
        let deadline = HostClock.monotonic &+ UInt64(max(0, seconds)) &* 1_000_000_000
        while isTaken {
            if HostClock.monotonic >= deadline { return false }
            HostClock.sleep(nanoseconds: 20_000_000)
        }
        return true
    }

    /// Changes what it is made of, while it doesn't run. What goes on from a snapshot keeps its processors and memory.
    public func change(_ body: (inout MachineConfiguration) throws -> Void) throws {
        let lock = try lock()
        defer { withExtendedLifetime(lock) {} }
        let goesOn = try finishRestore()
        try edit { manifest in
            let before = manifest.machine
            try body(&manifest.machine)
            guard goesOn.snapshot == nil || manifest.machine.hasSize(of: before) else {
                throw MachinesError(
                    .badRequest,
                    "machine '\(name)' goes on from a snapshot, with the processors and memory of then; start it first, and stop it"
                )
            }
        }
    }

    /// Changes the manifest as it is now; this process has the machine. Requests come on threads of their own, and what one
    /// of them writes must not undo another's.
    func edit(_ body: (inout MachineManifest) throws -> Void) throws {
        try manifestsInTurn.withLock { _ in
            var manifest = try manifest()
            try body(&manifest)
            // What is written must be read again.
            if let fault = MachineManifest.fault(in: manifest.machine) { throw MachinesError(.badRequest, fault) }
            try save(manifest)
        }
    }

    /// The socket at which its process listens while it runs. It lies in the folder, which is there whoever asks, from
    /// wherever and whenever; a user's runtime folder isn't.
    static let socketName = "control.sock"
    /// Where its process listens, for that process: it is in the folder, and a longer path couldn't be bound.
    var socketPath: String { folder + "/" + Self.socketName }

    /// A connection to its process.
    public func control() throws(MachinesError) -> ControlClient {
        guard isTaken else {
            throw MachinesError(.stopped, "machine '\(name)' doesn't run; `roost start \(name)` starts it")
        }
        if let otherWork { throw otherWork }
        return try ControlClient(folder: folder, name: name)
    }

    /// The last lines that its console showed.
    public func consoleTail(lines count: Int) -> [String] {
        var text: [UInt8] = []
        for path in [consoleLogPath + ".1", consoleLogPath] {
            text += (try? HostFile.contents(of: path, limit: 64 << 20)) ?? []
        }
        return Array(
            String(decoding: text, as: UTF8.self)
                .split(omittingEmptySubsequences: false) { $0 == "\n" || $0 == "\r\n" }.map(String.init).suffix(count))
    }

    /// The last lines that its console showed, for a message: what of them would steer a terminal is left out.
    public func plainConsoleTail(lines count: Int) -> [String] {
        consoleTail(lines: count).map { line in
            let plain = line.unicodeScalars.filter { !($0.value < 0x20 || 0x7F...0x9F ~= $0.value) }
            return String(String.UnicodeScalarView(plain.prefix(1000)))
        }
    }

    /// Bytes that its files take on the host's disk, without those that it shares with its image.
    public var bytesOnDisk: Int64 {
        let names = (try? FileManager.default.subpathsOfDirectory(atPath: folder)) ?? []
        return names.reduce(0) { sum, name in
            let path = folder + "/" + name
            return sum + (DurableFile.names(of: path) > 1 ? 0 : FileUsage.allocatedBytes(path))
        }
    }
}

extension MachineConfiguration {
    /// Whether it has the processors and the memory of another.
    fileprivate func hasSize(of other: MachineConfiguration) -> Bool {
        processors == other.processors && maximumProcessors == other.maximumProcessors && memory == other.memory
            && maximumMemory == other.maximumMemory && wantedMemory == other.wantedMemory
    }
}

/// One manifest at a time is changed by this process.
private let manifestsInTurn = Mutex(())

/// A machine that this process has to itself.
public final class MachineLock: Sendable {
    private let lock: SharedDescriptor

    /// Which file it is.
    fileprivate var identity: [UInt64] { lock.descriptor.identity }

    fileprivate init(_ lock: SharedDescriptor) { self.lock = lock }
}

/// Runs something of the file system's and says its errors in one kind.
func explaining<Result: ~Copyable>(
    _ body: () throws(HostError) -> Result
) throws(MachinesError) -> Result {
    do { return try body() } catch { throw MachinesError(.fileSystem, "\(error)") }
}
