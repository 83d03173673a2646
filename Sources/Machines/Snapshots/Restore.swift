// Going back to a snapshot, and clones.
internal import Foundation
internal import HostOS
internal import Images
internal import Machine
internal import Storage

/// What the next start of a machine goes on from; first of all it says what is to be done to get there.
struct PendingRestore: Codable, Sendable {
    /// The snapshot's name.
    var snapshot: String
    /// The disks stand on the snapshot's layers already.
    var isDone = false
    /// The guest is a copy, and has to be told.
    var isClone = false
    /// The guest had folders mounted of which the snapshot's record says nothing.
    var hadMounts: Bool?
}

/// What the next start goes on from; without a snapshot it boots.
struct GoingOn: Sendable {
    var snapshot: Snapshot?
    /// The guest is a copy, and has to be told.
    var isClone = false
    /// The guest has other folders of the host's mounted than it is to have.
    var hasOtherMounts = false
}

extension StoredMachine {
    var goesOnPath: String { folder + "/goes-on.json" }

    var pendingRestore: PendingRestore? {
        guard let bytes = try? HostFile.contents(of: goesOnPath, limit: 1 << 16) else { return nil }
        return try? JSONDecoder().decode(PendingRestore.self, from: Data(bytes))
    }

    private func save(_ pending: PendingRestore) throws {
        try DurableFile.write(try JSONText.pretty(pending), to: goesOnPath)
    }

    /// Takes the machine back to a snapshot; what it has been since is lost. It must not run. Killed half-way, the rest is
    /// done by the next who takes the machine.
    public func restore(_ name: String) throws {
        let lock = try lock()
        defer { withExtendedLifetime(lock) {} }
        let record = try snapshot(name)
        if record.hasMemory { _ = try Snapshot(snapshotFolder(name) + "/machine") }
        try save(
            PendingRestore(snapshot: name, isClone: record.isCopy == true, hadMounts: record.hadMounts))
        try finishRestore()
    }

    /// Does what is left of a restore that was begun; the lock is held. Where the guest goes on from now.
    @discardableResult
    func finishRestore() throws -> GoingOn {
        guard var pending = pendingRestore else { return GoingOn() }
        let record = try snapshot(pending.snapshot)
        if !pending.isDone {
            var manifest = try manifest()
            manifest.machine = record.machine
            manifest.snapshot = pending.snapshot
            for (disk, layer) in zip(Self.ownDisks(record.machine), record.layers) { try makeDisk(disk, over: layer) }
            try save(manifest)
            pending.isDone = true
            try save(pending)
            sweepSnapshots()
        }
        guard record.hasMemory else {
            try? FileManager.default.removeItem(atPath: goesOnPath)
            return GoingOn()
        }
        return GoingOn(
            snapshot: try Snapshot(snapshotFolder(pending.snapshot) + "/machine"), isClone: pending.isClone,
            hasOtherMounts: try manifest().machine.mounts != record.machine.mounts || pending.hadMounts == true)
    }

    /// The guest goes on: the next start boots.
    func hasGoneOn() { try? FileManager.default.removeItem(atPath: goesOnPath) }
}

extension MachineStore {
    /// Makes a machine that goes on from another's snapshot: its disks are new ones over the same layers, its memory the
    /// same file until it writes to it. Neither needs the other any more. Its files are on the disk after `synchronize`.
    public func clone(_ machine: StoredMachine, snapshot name: String, as new: String) throws -> StoredMachine {
        try build(new, isSynchronized: false) { folder in
            let copy = StoredMachine(folder: folder)
            let first = try machine.holdingLayers(exclusively: false) { try Self.share(name, of: machine, with: copy) }
            var manifest = MachineManifest(image: try machine.manifest().image, machine: first.machine)
            manifest.snapshot = name
            for (disk, layer) in zip(StoredMachine.ownDisks(first.machine), first.layers) {
                try copy.makeDisk(disk, over: layer, isSynchronized: false)
            }
            manifest.machine.distinguish(for: manifest.id)
            let record = first.copied(to: manifest.machine)
            try DurableFile.write(
                try JSONText.pretty(record), to: copy.snapshotFolder(name) + "/record.json", isSynchronized: false)
            let pending = PendingRestore(snapshot: name, isDone: true, isClone: true, hadMounts: record.hadMounts)
            try DurableFile.write(try JSONText.pretty(pending), to: copy.goesOnPath, isSynchronized: false)
            return manifest
        }
    }

    /// Shares a snapshot with a machine that is being made, and what it stands on: files that nobody writes to. Returns its
    /// record. The layers are held.
    private static func share(
        _ name: String, of machine: StoredMachine, with copy: StoredMachine
    ) throws -> SnapshotRecord {
        let record = try machine.snapshot(name)
        let others = ["base.raw", "kernel", "initrd", "cidata.iso"].filter {
            FileDescriptor.exists(machine.folder + "/" + $0)
        }
        for file in try machine.withBases(record.layers).union(others) {
            try share(machine.folder + "/" + file, as: copy.folder + "/" + file)
        }
        try PrivateFolder.make(copy.snapshotsFolder)
        try PrivateFolder.make(copy.snapshotFolder(name))
        try share(machine.snapshotFolder(name), copy.snapshotFolder(name))
        return record
    }

    private static func share(_ path: String, as other: String) throws {
        if try !DurableFile.link(path, as: other) { try FileManager.default.copyItem(atPath: path, toPath: other) }
    }

    /// Shares all files of a folder with another, but those that somebody is at writing.
    static func share(_ folder: String, _ other: String) throws {
        for name in try FileManager.default.contentsOfDirectory(atPath: folder)
        where !DurableFile.isHalfWritten(name) {
            let (from, to) = (folder + "/" + name, other + "/" + name)
            let kind = try FileManager.default.attributesOfItem(atPath: from)[.type] as? FileAttributeType
            if kind == .typeDirectory {
                try PrivateFolder.make(to)
                try share(from, to)
            } else {
                try share(from, as: to)
            }
        }
    }
}

extension MachineConfiguration {
    /// Makes a copy's network its own: addresses of its cards, and neither ports of the host nor captures, which the first
    /// one has.
    mutating func distinguish(for id: UUID) {
        for index in networks.indices {
            networks[index].macAddress = Self.address(index, of: id)
            networks[index].capture = nil
            switch networks[index].kind {
            case .user: networks[index].kind = .user(forwards: [])
            case .passt: networks[index].kind = .passt(forwards: [])
            case .tap, .virtualSwitch, .vhostUser: break
            }
        }
        sockets?.path = nil
        if mounts != nil { mounts = [] }
    }
}
