// Taking and deleting snapshots of machines that are kept.
internal import Foundation
internal import HostOS
internal import Images
public import Machine
internal import Storage

/// Names of snapshots.
enum ImageName {
    static func isName(_ name: String) -> Bool { ImageStore.isName(name) && !name.hasPrefix("-") }
}

extension StoredMachine {
    /// Takes a snapshot of the machine as it runs in this process, or, without one, of its disks; then the lock must be
    /// held. It is in the list when all of it is on disk. Nil for a
    /// machine that doesn't run.
    @discardableResult
    public func takeSnapshot(
        _ name: String, of running: Machine?, progress: (SnapshotProgress) -> Void = { _ in }
    ) throws -> SnapshotResult? {
        guard ImageName.isName(name) else {
            throw MachinesError(.badRequest, "'\(name)' cannot be a snapshot's name: letters, digits, '.', '_', '-'")
        }
        guard !FileDescriptor.exists(snapshotFolder(name)) else {
            throw MachinesError(.exists, "machine '\(self.name)' has a snapshot '\(name)' already")
        }
        let manifest = try manifest()
        let own = Self.ownDisks(manifest.machine)
        if let other = manifest.machine.disks.first(where: { !$0.options.isReadOnly && !own.contains($0.path) }) {
            throw MachinesError(
                .badRequest,
                "disk \(other.path) isn't the machine's own, so a snapshot can't keep what it holds; add ,readonly or take it away"
            )
        }
        try explaining { () throws(HostError) in try PrivateFolder.make(snapshotsFolder) }
        sweepSnapshots()
        try requireRoomForLayer(running: running != nil)
        let work = snapshotsFolder + "/.taking-" + UUID().uuidString
        try explaining { () throws(HostError) in try PrivateFolder.make(work) }
        var result: SnapshotResult?
        do {
            let layers = own.map { _ in "layer-" + UUID().uuidString.lowercased() + ".qcow2" }
            let record = SnapshotRecord(
                created: Date().formatted(Date.ISO8601FormatStyle(includingFractionalSeconds: true)),
                parent: manifest.snapshot, machine: manifest.machine, layers: layers, hasMemory: running != nil)
            if let running {
                result = try running.saveSnapshot(
                    to: work + "/machine",
                    whilePaused: { () throws(MachineError) in
                        for (disk, layer) in zip(own, layers) {
                            try running.layDisk(folder + "/" + disk, as: folder + "/" + layer)
                        }
                    }, progress: progress)
            } else {
                for (disk, layer) in zip(own, layers) { try layDisk(disk, as: layer) }
            }
            try DurableFile.write(try JSONText.pretty(record), to: work + "/record.json")
            try HostFile.rename(work, to: snapshotFolder(name))
        } catch {
            try? FileManager.default.removeItem(atPath: work)
            throw error
        }
        try edit { $0.snapshot = name }
        return result
    }

    /// Keeps a disk's file as a layer, with a new one over it in its place. Killed in between, the file has both names.
    private func layDisk(_ disk: String, as layer: String) throws {
        _ = try Disk.open(folder + "/" + disk, DiskOptions(format: .qcow2))
        let isLinked = try explaining { () throws(HostError) in
            try DurableFile.link(folder + "/" + disk, as: folder + "/" + layer)
        }
        guard isLinked else {
            throw MachinesError(.fileSystem, "the file system of \(folder) has no hard links, which layers need")
        }
        try makeDisk(disk, over: layer)
    }

    /// Puts a new, empty image over a layer in a disk's place.
    func makeDisk(_ disk: String, over layer: String, isSynchronized: Bool = true) throws {
        let new = folder + "/.new-" + disk
        try? FileManager.default.removeItem(atPath: new)
        var options = Qcow2Options()
        options.base = layer
        options.baseFormat = .qcow2
        let image = try Qcow2Image.create(new, options, isSynchronized: isSynchronized)
        try image.flush()
        try explaining { () throws(HostError) in
            try DurableFile.move(new, to: folder + "/" + disk, isSynchronized: isSynchronized)
        }
    }

    /// Deletes a snapshot. Those taken after it stay, with its parent as theirs. Its layers may be merged then. Killed
    /// half-way, the machine boots from what its disks hold.
    public func deleteSnapshot(_ name: String) throws {
        let record = try snapshot(name)
        for child in try snapshots() where child.parent == name {
            var changed = try snapshot(child.name)
            changed.parent = record.parent
            try DurableFile.write(try JSONText.pretty(changed), to: snapshotFolder(child.name) + "/record.json")
        }
        // First of all: no start finds a snapshot gone that it is to go on from.
        if pendingRestore?.snapshot == name { try FileManager.default.removeItem(atPath: goesOnPath) }
        let doomed = snapshotsFolder + "/.deleted-" + UUID().uuidString
        // Who is about to open or share its files gets all of them or none.
        try holdingLayers(exclusively: true) {
            try explaining { () throws(HostError) in try HostFile.rename(snapshotFolder(name), to: doomed) }
        }
        try edit { if $0.snapshot == name { $0.snapshot = record.parent } }
        sweepSnapshots()
    }

    /// Removes what is half taken or half deleted, what exports and merges that were killed have left, and layers that
    /// nothing stands on; as long as a snapshot can't be read, none of these.
    func sweepSnapshots() {
        for name in (try? FileManager.default.contentsOfDirectory(atPath: snapshotsFolder)) ?? []
        where name.hasPrefix(".taking-") || name.hasPrefix(".deleted-") || ScratchName.isLeft(name, ".exporting-") {
            try? FileManager.default.removeItem(atPath: snapshotsFolder + "/" + name)
        }
        try? holdingLayers(exclusively: true) {
            let needed = try neededLayers()
            for name in try FileManager.default.contentsOfDirectory(atPath: folder)
            where name.hasPrefix("layer-") && !needed.contains(name) || ScratchName.isLeft(name, ".merging-") {
                try? FileManager.default.removeItem(atPath: folder + "/" + name)
            }
        }
    }

    /// Runs something with the layers held, for moments only: none is removed meanwhile, or, exclusively, nobody opens or
    /// shares one meanwhile. The machine's own lock doesn't keep others from reading snapshots.
    func holdingLayers<Result>(exclusively: Bool, _ body: () throws -> Result) throws -> Result {
        let lock = try explaining { () throws(HostError) in try DurableFile.openLock(folder + "/layers.lock") }
        while try !explaining({ () throws(HostError) in try lock.lock(exclusive: exclusively) }) {
            HostClock.sleep(nanoseconds: 1_000_000)
        }
        return try body()
    }

    /// The layers that disks and snapshots stand on.
    private func neededLayers() throws -> Set<String> {
        var names = Self.ownDisks(try manifest().machine)
        for name in try snapshotNames() { names += try snapshot(name).layers }
        return try withBases(names)
    }

    /// Disks and layers, and all files of the machine's that they stand on.
    func withBases(_ names: [String]) throws -> Set<String> {
        var all: Set<String> = []
        var waiting = names
        while let name = waiting.popLast() {
            if !all.insert(name).inserted { continue }
            if let base = try DiskReport.base(of: folder + "/" + name), !base.contains("/") { waiting.append(base) }
        }
        return all
    }
}

/// Names of what a process makes for a while: a prefix, the process's number, and something that nothing else has.
enum ScratchName {
    static func make(_ prefix: String) -> String { "\(prefix)\(DetachedProcess.ownNumber)-\(UUID().uuidString)" }

    /// Whether something of such a name was left behind: its process is gone.
    static func isLeft(_ name: String, _ prefix: String) -> Bool {
        guard name.hasPrefix(prefix) else { return false }
        guard let process = Int32(name.dropFirst(prefix.count).prefix { $0 != "-" }) else { return true }
        return !FileDescriptor.exists("/proc/\(process)")
    }
}
