// A machine as one file: a tar archive, or an OVA package, which is one too.
//
//   machine.json   the manifest; paths are names of files in the archive
//   snapshot.json state.json memory.sums checksums memory.zst
//                  of a snapshot: the moment at which the machine goes on (Machine/Snapshot)
//   kernel initrd  what it boots
//   disk0.qcow2…   its disks, whole and compressed; in an OVA package disk0.vmdk…
//   NAME.ovf       first in an OVA package: what others read
internal import Foundation
internal import HostOS
internal import Images
internal import Machine
internal import Storage

/// The kinds of files that a machine is exported to.
public enum ExportFormat: String, Sendable, CaseIterable {
    /// Roost's own.
    case tar
    /// An OVA package (DMTF DSP0243).
    case ova
}

extension StoredMachine {
    /// Writes the machine to one file; it must not run.
    public func export(
        to path: String, _ format: ExportFormat, replacing: Bool, progress: ProgressReport
    ) throws {
        let lock = try lock()
        defer { withExtendedLifetime(lock) {} }
        let manifest = try manifest()
        let source = ExportSource(manifest: manifest, images: try images(of: manifest.machine))
        try export(source, to: path, format, replacing, progress)
    }

    /// Writes a snapshot of the machine to one file, while it runs or not; nobody writes to what a snapshot stands on. It may
    /// be deleted meanwhile.
    public func export(
        snapshot name: String, to path: String, replacing: Bool, progress: ProgressReport
    ) throws {
        let kept = snapshotsFolder + "/" + ScratchName.make(".exporting-")
        defer { try? FileManager.default.removeItem(atPath: kept) }
        let source = try holdingLayers(exclusively: false) { try open(name, keeping: kept) }
        try export(source, to: path, .tar, replacing, progress)
    }

    /// Opens a snapshot's disks, and gives the files of its memory further names in a folder. The layers are held.
    private func open(_ name: String, keeping kept: String) throws -> ExportSource {
        let record = try snapshot(name)
        guard record.machine.folders.isEmpty || !record.hasMemory else {
            throw MachinesError(
                .badRequest, "snapshot '\(name)' is of a machine with shared folders (--share), which are this host's")
        }
        var manifest = try manifest()
        manifest.machine = record.machine
        manifest.snapshot = record.hasMemory ? name : nil
        for (disk, layer) in zip(Self.ownDisks(record.machine), record.layers) {
            for index in manifest.machine.disks.indices where manifest.machine.disks[index].path == disk {
                manifest.machine.disks[index].path = layer
            }
        }
        var source = ExportSource(manifest: manifest, images: try images(of: manifest.machine))
        if record.hasMemory {
            try explaining { () throws(HostError) in try PrivateFolder.make(kept) }
            try MachineStore.share(snapshotFolder(name) + "/machine", kept)
            source.snapshot = try Snapshot(kept)
        }
        return source
    }

    /// Opens disks to read them.
    private func images(of machine: MachineConfiguration) throws -> [any DiskImage] {
        try machine.resolved(in: folder).disks.map { disk in
            var options = disk.options
            options.isReadOnly = true
            options.isTemporary = false
            return try Disk.open(disk.path, options)
        }
    }

    private func export(
        _ source: ExportSource, to path: String, _ format: ExportFormat, _ replacing: Bool, _ progress: ProgressReport
    ) throws {
        if !replacing, FileDescriptor.exists(path) {
            throw MachinesError(.exists, "\(path) is there already; --replace replaces it")
        }
        // Built beside its place: nobody finds half of it.
        ExportScratch.sweep(path)
        let scratch = ExportScratch.folder(for: path)
        try FileManager.default.createDirectory(atPath: scratch, withIntermediateDirectories: true)
        defer { try? FileManager.default.removeItem(atPath: scratch) }
        var package = try ExportPackage(source, of: self, scratch, format, progress)
        if let snapshot = source.snapshot { try package.add(snapshot, scratch, progress) }
        let archive = scratch + "/archive"
        try package.write(to: archive, name: name, format, progress)
        try explaining { () throws(HostError) in try DurableFile.move(archive, to: path) }
    }
}

/// What is exported, open.
private struct ExportSource {
    var manifest: MachineManifest
    var images: [any DiskImage]
    var snapshot: Snapshot?
}

/// The folders beside an archive in which it is built.
private enum ExportScratch {
    private static let suffix = ".exporting"

    static func folder(for path: String) -> String { "\(path).\(DetachedProcess.ownNumber)\(suffix)" }

    /// Removes those that exports to a path have left that were killed.
    static func sweep(_ path: String) {
        let words = PrivateFolder.absolute(path).split(separator: "/", omittingEmptySubsequences: false)
        let folder = words.dropLast().joined(separator: "/") + "/"
        let prefix = (words.last ?? "") + "."
        for name in (try? FileManager.default.contentsOfDirectory(atPath: folder)) ?? []
        where name.hasPrefix(prefix) && name.hasSuffix(suffix) {
            let number = name.dropFirst(prefix.count).dropLast(suffix.count)
            guard let process = Int32(number), !FileDescriptor.exists("/proc/\(process)") else { continue }
            try? FileManager.default.removeItem(atPath: folder + name)
        }
    }
}

/// What goes into an archive.
private struct ExportPackage {
    private var manifest: MachineManifest
    /// Names in the archive and the files that they are.
    private var files: [(name: String, path: String)] = []
    private var disks: [String] = []
    private var sizes: [UInt64] = []

    init(
        _ source: ExportSource, of stored: StoredMachine, _ scratch: String, _ format: ExportFormat,
        _ progress: ProgressReport
    ) throws {
        manifest = source.manifest
        let machine = manifest.machine.resolved(in: stored.folder)
        manifest.machine.boot.kernel = "kernel"
        files.append(("kernel", machine.boot.kernel))
        if let initrd = machine.boot.initrd {
            guard FileDescriptor.exists(initrd) else {
                throw MachinesError(.badRequest, "a Multiboot kernel's modules can't be exported yet: \(initrd)")
            }
            manifest.machine.boot.initrd = "initrd"
            files.append(("initrd", initrd))
        }
        for (index, image) in source.images.enumerated() {
            let name = "disk\(index)." + (format == .ova ? "vmdk" : "qcow2")
            let target: DiskConverter.Target = format == .ova ? .vmdk : .qcow2(Qcow2Options(), isCompressed: true)
            try DiskConverter.convert(image, to: scratch + "/" + name, target) {
                progress("compressing disk \(index)", $0, $1)
            }
            manifest.machine.disks[index].path = name
            manifest.machine.disks[index].options.format = .qcow2
            manifest.machine.disks[index].options.snapshot = nil
            files.append((name, scratch + "/" + name))
            disks.append(name)
            sizes.append(image.byteCount)
        }
        manifest.machine.leaveHost()
    }

    /// Adds a snapshot, its memory compressed.
    mutating func add(_ snapshot: Snapshot, _ scratch: String, _ progress: ProgressReport) throws {
        for (name, _) in Snapshot.smallFiles { files.append((name, snapshot.path + "/" + name)) }
        let memory = scratch + "/memory.zst"
        try snapshot.packMemory(to: memory) { progress("compressing memory", $0, $1) }
        files.append(("memory.zst", memory))
    }

    mutating func write(to path: String, name: String, _ format: ExportFormat, _ progress: ProgressReport) throws {
        var archive = try TarWriter(path: path, replacing: false)
        if format == .ova {
            let machine = manifest.machine
            let descriptor = OVFDescriptor(
                name: name, processors: machine.processors, memory: machine.memory, disks: disks,
                networkCards: machine.networks.count)
            let further = ["machine.json"] + files.map(\.name).filter { !disks.contains($0) }
            try archive.add(name + ".ovf", Array(descriptor.text(sizes: sizes, further: further).utf8))
        }
        try archive.add("machine.json", try manifest.serialized())
        for (name, file) in files { try archive.add(name, file: file) { progress("writing \(name)", $0, $1) } }
        try archive.finish()
    }
}

extension MachineConfiguration {
    /// Gives up all that belongs to one host: folders, sockets, captures, and what is in drives. Of mounted folders their
    /// places in the guest stay, which it may have to let go of.
    mutating func leaveHost() {
        sockets?.path = nil
        folders = []
        mounts = mounts?.map { MountConfiguration(folder: "", path: $0.path) }
        drives = drives.map { _ in nil }
        for index in networks.indices { networks[index].capture = nil }
    }
}
