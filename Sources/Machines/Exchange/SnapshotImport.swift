// The snapshot in an archive: the machine made of it goes on from there, as a clone. Nothing that the archive says is
// believed.
internal import Foundation
internal import HostOS
internal import Machine
internal import Storage

/// Takes a snapshot out of an archive into the folder of a machine that is being made.
struct SnapshotImport {
    private let archivePath: String
    private let machine: StoredMachine
    private let name: String
    private let hadMounts: Bool

    /// Names the archive and the machine's folder; the manifest is the archive's.
    init(_ archivePath: String, _ folder: String, _ manifest: MachineManifest) {
        self.archivePath = archivePath
        machine = StoredMachine(folder: folder)
        name = manifest.snapshot.flatMap { ImageName.isName($0) ? $0 : nil } ?? "imported"
        hadMounts = manifest.machine.mounts?.isEmpty == false
    }

    /// Takes it out; the disks are in the folder already.
    func unpack(
        _ archive: borrowing TarReader, _ manifest: inout MachineManifest, _ progress: ProgressReport
    ) throws {
        guard manifest.machine.memory <= HostMemory.total else {
            throw MachinesError(.badRequest, "\(archivePath): the machine has more memory than this host")
        }
        let folder = machine.snapshotFolder(name) + "/machine"
        for folder in [machine.snapshotsFolder, machine.snapshotFolder(name), folder] {
            try explaining { () throws(HostError) in try PrivateFolder.make(folder) }
        }
        for (name, limit) in Snapshot.smallFiles {
            // A sum of four bytes for each page.
            let most = name == "memory.sums" ? manifest.machine.memory / 1024 : limit
            let bytes = try archive.contents(try find(name, in: archive), limit: most)
            try explaining { () throws(HostError) in try DurableFile.write(bytes, to: folder + "/" + name) }
        }
        let snapshot = try Snapshot(folder)
        guard snapshot.manifest.memory == manifest.machine.memory,
            snapshot.manifest.processors == manifest.machine.processors
        else {
            throw MachinesError(.damaged, "\(archivePath): the snapshot is of another machine than machine.json tells")
        }
        let memory = try find("memory.zst", in: archive)
        try snapshot.unpackMemory(from: archive.file, at: memory.offset, count: memory.size) {
            progress("taking out memory", $0, $1)
        }
        try finish(&manifest)
    }

    private func find(_ name: String, in archive: borrowing TarReader) throws(MachinesError) -> TarEntry {
        guard let entry = archive.entry(name) else {
            throw MachinesError(.damaged, "\(archivePath): the snapshot's file '\(name)' is not in the archive")
        }
        return entry
    }

    /// Makes layers of the disks, and has the next start go on from the snapshot.
    private func finish(_ manifest: inout MachineManifest) throws {
        manifest.machine.distinguish(for: manifest.id)
        manifest.snapshot = name
        let disks = StoredMachine.ownDisks(manifest.machine)
        let layers = disks.map { _ in "layer-" + UUID().uuidString.lowercased() + ".qcow2" }
        for (disk, layer) in zip(disks, layers) {
            try explaining { () throws(HostError) in
                try DurableFile.synchronize(machine.folder + "/" + disk)
                try DurableFile.move(machine.folder + "/" + disk, to: machine.folder + "/" + layer)
            }
            try machine.makeDisk(disk, over: layer)
        }
        let record = SnapshotRecord(
            created: Date().formatted(Date.ISO8601FormatStyle(includingFractionalSeconds: true)), parent: nil,
            machine: manifest.machine, layers: layers, hasMemory: true, isCopy: true, hadMounts: hadMounts)
        try DurableFile.write(try JSONText.pretty(record), to: machine.snapshotFolder(name) + "/record.json")
        let pending = PendingRestore(snapshot: name, isDone: true, isClone: true, hadMounts: hadMounts)
        try DurableFile.write(try JSONText.pretty(pending), to: machine.goesOnPath)
    }
}
