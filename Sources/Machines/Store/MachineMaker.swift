// Making machines: a folder that is built beside the others and gets its name as the last step.
internal import Foundation
internal import HostOS
public import Images
public import Machine
internal import Storage

/// How far something is that takes a while: stage, bytes done, bytes in all (0 if not known).
public typealias ProgressReport = (_ stage: String, _ done: UInt64, _ total: UInt64) -> Void

extension MachineStore {
    /// Makes a machine of a configuration; with an image, its first disk is a new one over the image's. `userData` names a
    /// file for cloud-init, whose volume becomes the last disk.
    public func make(
        _ name: String, image: GuestImage? = nil, imageName: String? = nil, _ configuration: MachineConfiguration,
        isTemporary: Bool = false, userData: String? = nil, progress: ProgressReport = { _, _, _ in }
    ) throws -> StoredMachine {
        try build(name) { folder in
            var manifest = MachineManifest(image: imageName, machine: configuration)
            if isTemporary { manifest.isTemporary = true }
            manifest.machine = configuration.fixed(for: manifest.id)
            if configuration.clock == .host { manifest.machine.mounts = [] }
            if let image { try Self.adopt(image, into: &manifest.machine, folder, progress) }
            if let userData {
                let volume = try CloudInitVolume.bytes(userData: userData, id: manifest.id, name: name)
                try DurableFile.write(volume, to: folder + "/cidata.iso")
                manifest.machine.disks.append(
                    DiskConfiguration(path: "cidata.iso", options: DiskOptions(isReadOnly: true, format: .raw)))
            }
            return manifest
        }
    }

    /// Builds a machine's folder; `body` fills it and returns the manifest.
    func build(
        _ name: String, isSynchronized: Bool = true, _ body: (String) throws -> MachineManifest
    ) throws -> StoredMachine {
        try requireFree(name)
        try explaining { () throws(HostError) in try PrivateFolder.make(root) }
        sweep()
        let work = StoredMachine(folder: root + "/.making-" + UUID().uuidString)
        try explaining { () throws(HostError) in try PrivateFolder.make(work.folder) }
        let lock = try work.lock()
        defer { withExtendedLifetime(lock) {} }
        do {
            try work.save(try body(work.folder), isSynchronized: isSynchronized)
            let place = place(of: name)
            do { try HostFile.rename(work.folder, to: place.folder) } catch {
                if error.errno == HostErrorNumber.exists { try requireFree(name) }
                throw MachinesError(.fileSystem, "\(error)")
            }
            return place
        } catch {
            try? FileManager.default.removeItem(atPath: work.folder)
            throw error
        }
    }

    /// Gives the image's files further names in the machine's folder, so that the image may be built anew.
    private static func adopt(
        _ image: GuestImage, into machine: inout MachineConfiguration, _ folder: String, _ progress: ProgressReport
    ) throws {
        // Nobody may be writing to it: the machine's disk is to stand on what it is now.
        let base = try Disk.open(image.disk, DiskOptions(isReadOnly: true, format: .raw))
        for (path, name) in [(image.disk, "base.raw"), (image.kernel, "kernel"), (image.initrd, "initrd")] {
            let target = folder + "/" + name
            if try DurableFile.link(path, as: target) { continue }
            if path == image.disk {
                _ = try DiskConverter.convert(base, to: target, .raw(.off)) { progress("copying the image", $0, $1) }
            } else {
                try FileManager.default.copyItem(atPath: path, toPath: target)
            }
        }
        if machine.boot.kernel == image.kernel { machine.boot.kernel = "kernel" }
        if machine.boot.initrd == image.initrd { machine.boot.initrd = "initrd" }
        var options = Qcow2Options()
        options.base = "base.raw"
        options.baseFormat = .raw
        _ = try Qcow2Image.create(folder + "/disk.qcow2", options)
        machine.disks.insert(
            DiskConfiguration(path: "disk.qcow2", options: DiskOptions(format: .qcow2)), at: 0)
    }
}
