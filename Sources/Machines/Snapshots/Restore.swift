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
        try save(PendingRestore(snapshot: name))
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
        let record = try machine.snapshot(name)
        return try build(new, isSynchronized: false) { folder in
            var manifest = MachineManifest(image: try machine.manifest().image, machine: record.machine)
            manifest.snapshot = name
            let copy = StoredMachine(folder: folder)
            try machine.holdingLayers(exclusively: false) {
                for file in PrivateFolder.names(in: machine.folder) where Self.isShared(file) {
                    try Self.share(machine.folder + "/" + file, as: folder + "/" + file)
                }
            }
            try PrivateFolder.make(copy.snapshotsFolder)
            try PrivateFolder.make(copy.snapshotFolder(name))
            try Self.share(machine.snapshotFolder(name), copy.snapshotFolder(name))
            for (disk, layer) in zip(StoredMachine.ownDisks(record.machine), record.layers) {
                try copy.makeDisk(disk, over: layer, isSynchronized: false)
            }
            manifest.machine.distinguish(for: manifest.id)
            let pending = PendingRestore(snapshot: name, isDone: true, isClone: true)
            try DurableFile.write(try JSONText.pretty(pending), to: copy.goesOnPath, isSynchronized: false)
            return manifest
        }
    }

    /// Files that nobody writes to.
    private static func isShared(_ name: String) -> Bool {
        name.hasPrefix("layer-") || ["base.raw", "kernel", "initrd", "cidata.iso"].contains(name)
    }

    private static func share(_ path: String, as other: String) throws {
        if try !DurableFile.link(path, as: other) { try FileManager.default.copyItem(atPath: path, toPath: other) }
    }

    /// Shares all files of a folder, but those that somebody is at writing.
    private static func share(_ folder: String, _ other: String) throws {
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
    /// Makes a copy's network its own: addresses of its cards, and no ports of the host, which the first one has.
    mutating func distinguish(for id: UUID) {
        for index in networks.indices {
            networks[index].macAddress = Self.address(index, of: id)
            if case .user = networks[index].kind { networks[index].kind = .user(forwards: []) }
        }
        sockets?.path = nil
        if mounts != nil { mounts = [] }
    }
}
