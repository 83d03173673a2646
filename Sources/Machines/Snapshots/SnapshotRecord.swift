// What a machine's snapshots are, in its folder:
//
//   snapshots/NAME/record.json   what it is of
//   snapshots/NAME/machine       processors, devices and memory (Machine/Snapshot); not of a machine that didn't run
//   layer-NUMBER.qcow2           what a disk held; nobody writes to it any more, others stand on it
//   goes-on.json                 the snapshot that the next start goes on from (Restore.swift)
internal import Foundation
internal import HostOS
public import Machine
internal import Storage

/// A snapshot of a machine that is kept.
public struct SnapshotRecord: Codable, Sendable {
    /// Version of this layout.
    public private(set) var version = 1
    /// When it was taken, in ISO 8601.
    public var created: String
    /// The snapshot that the machine went on from before.
    public var parent: String?
    /// What the machine was made of.
    public var machine: MachineConfiguration
    /// The layers that held the machine's own disks, in their order.
    public var layers: [String]
    /// Whether it holds processors, devices and memory.
    public var hasMemory: Bool
    /// It was taken of another machine than this one: its guest has to be told that it is a copy. Nil: no.
    public var isCopy: Bool?
    /// Its guest had folders mounted of which `machine` says nothing. Nil: no.
    public var hadMounts: Bool?

    /// The same for a copy of the machine, which is made of other things.
    func copied(to machine: MachineConfiguration) -> SnapshotRecord {
        var copy = self
        copy.parent = nil
        copy.machine = machine
        copy.isCopy = true
        copy.hadMounts = hadMounts == true || self.machine.mounts?.isEmpty == false
        return copy
    }

    static let largest = 1 << 20
}

/// A snapshot in a list.
public struct SnapshotSummary: Codable, Sendable {
    /// Its name.
    public var name: String
    /// When it was taken, in ISO 8601.
    public var created: String
    /// The snapshot that the machine went on from before.
    public var parent: String?
    /// Whether it holds memory.
    public var hasMemory: Bool
    /// Bytes that memory and state take on the host's disk.
    public var bytes: Int64
    /// Whether the machine goes on from it now.
    public var isCurrent: Bool
}

extension StoredMachine {
    var snapshotsFolder: String { folder + "/snapshots" }

    func snapshotFolder(_ name: String) -> String { snapshotsFolder + "/" + name }

    /// The disks that are the machine's own: files in its folder that it writes to.
    static func ownDisks(_ machine: MachineConfiguration) -> [String] {
        machine.disks.filter { !$0.path.contains("/") && !$0.options.isReadOnly && $0.options.format == .qcow2 }
            .map(\.path)
    }

    /// Reads a snapshot's record.
    public func snapshot(_ name: String) throws(MachinesError) -> SnapshotRecord {
        let path = snapshotFolder(name) + "/record.json"
        guard ImageName.isName(name), FileDescriptor.exists(path) else {
            let known = (try? snapshots())?.map(\.name) ?? []
            throw MachinesError(
                .notFound,
                "machine '\(self.name)' has no snapshot '\(name)'"
                    + (known.isEmpty
                        ? "; `roost snapshot take \(self.name)` takes one"
                        : "; there is \(known.joined(separator: ", "))"))
        }
        do {
            let bytes = try HostFile.contents(of: path, limit: SnapshotRecord.largest)
            let record = try JSONDecoder().decode(SnapshotRecord.self, from: Data(bytes))
            guard record.version == 1 else {
                throw MachinesError(.damaged, "\(path) is of version \(record.version), this Roost reads 1")
            }
            return record
        } catch let error as MachinesError {
            throw error
        } catch {
            throw MachinesError(.damaged, "\(path) can't be read: \(error)")
        }
    }

    /// The names of all snapshots, whether they can be read or not. A folder that can't be read is an error: who decides
    /// what may go must not take it for an empty one.
    func snapshotNames() throws -> [String] {
        do {
            return try FileManager.default.contentsOfDirectory(atPath: snapshotsFolder).filter { ImageName.isName($0) }
        } catch let error as CocoaError where error.code == .fileReadNoSuchFile {
            return []
        }
    }

    /// All snapshots that can be read, the oldest first.
    public func snapshots() throws(MachinesError) -> [SnapshotSummary] {
        let current = try manifest().snapshot
        return PrivateFolder.names(in: snapshotsFolder).filter { ImageName.isName($0) }.compactMap { name in
            guard let record = try? snapshot(name) else { return nil }
            let files = ["memory", "memory.sums", "state.json"].map { snapshotFolder(name) + "/machine/" + $0 }
            return SnapshotSummary(
                name: name, created: record.created, parent: record.parent, hasMemory: record.hasMemory,
                bytes: files.reduce(0) { $0 + max(0, FileUsage.allocatedBytes($1)) }, isCurrent: name == current)
        }.sorted { ($0.created, $0.name) < ($1.created, $1.name) }
    }
}
