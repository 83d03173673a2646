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
        try export(try manifest(), snapshot: nil, to: path, format, replacing, progress)
    }

    /// Writes a snapshot of the machine to one file, while it runs or not; nobody writes to what a snapshot stands on.
    public func export(
        snapshot name: String, to path: String, replacing: Bool, progress: ProgressReport
    ) throws {
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
        let memory = record.hasMemory ? try Snapshot(snapshotFolder(name) + "/machine") : nil
        try export(manifest, snapshot: memory, to: path, .tar, replacing, progress)
    }

    private func export(
        _ manifest: MachineManifest, snapshot: Snapshot?, to path: String, _ format: ExportFormat, _ replacing: Bool,
        _ progress: ProgressReport
    ) throws {
        if !replacing, FileDescriptor.exists(path) {
            throw MachinesError(.exists, "\(path) is there already; --replace replaces it")
        }
        // Built beside its place: nobody finds half of it.
        let scratch = path + ".\(DetachedProcess.ownNumber).exporting"
        try FileManager.default.createDirectory(atPath: scratch, withIntermediateDirectories: true)
        defer { try? FileManager.default.removeItem(atPath: scratch) }
        var package = try ExportPackage(manifest, of: self, scratch, format, progress)
        if let snapshot { try package.add(snapshot, scratch, progress) }
        let archive = scratch + "/archive"
        try package.write(to: archive, name: name, format, progress)
        try explaining { () throws(HostError) in try DurableFile.move(archive, to: path) }
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
        _ manifest: MachineManifest, of stored: StoredMachine, _ scratch: String, _ format: ExportFormat,
        _ progress: ProgressReport
    ) throws {
        self.manifest = manifest
        let machine = manifest.machine.resolved(in: stored.folder)
        self.manifest.machine.boot.kernel = "kernel"
        files.append(("kernel", machine.boot.kernel))
        if let initrd = machine.boot.initrd {
            guard FileDescriptor.exists(initrd) else {
                throw MachinesError(.badRequest, "a Multiboot kernel's modules can't be exported yet: \(initrd)")
            }
            self.manifest.machine.boot.initrd = "initrd"
            files.append(("initrd", initrd))
        }
        for (index, disk) in machine.disks.enumerated() {
            var options = disk.options
            options.isReadOnly = true
            options.isTemporary = false
            let image = try stored.holdingLayers(exclusively: false) { try Disk.open(disk.path, options) }
            let name = "disk\(index)." + (format == .ova ? "vmdk" : "qcow2")
            let target: DiskConverter.Target = format == .ova ? .vmdk : .qcow2(Qcow2Options(), isCompressed: true)
            try DiskConverter.convert(image, to: scratch + "/" + name, target) {
                progress("compressing disk \(index)", $0, $1)
            }
            self.manifest.machine.disks[index].path = name
            self.manifest.machine.disks[index].options.format = .qcow2
            self.manifest.machine.disks[index].options.snapshot = nil
            files.append((name, scratch + "/" + name))
            disks.append(name)
            sizes.append(image.byteCount)
        }
        self.manifest.machine.leaveHost()
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
