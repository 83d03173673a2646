// Machines that are kept, in a folder of a test's own: none of them ever runs.
import Foundation
import Images
import Machine
import Machines
import Storage

/// A store for one test, which removes it at its end.
struct StoreHome {
    let folder: String
    let store: MachineStore

    init() throws {
        folder = "/tmp/roost-layers-\(UUID().uuidString.prefix(8))"
        store = MachineStore(root: folder + "/machines")
        try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: true)
    }

    func remove() { try? FileManager.default.removeItem(atPath: folder) }

    /// A machine "m" of an image with a disk of 1 MiB.
    func machine(_ adjust: (inout MachineConfiguration) -> Void = { _ in }) throws -> StoredMachine {
        let image = folder + "/image"
        try FileManager.default.createDirectory(atPath: image, withIntermediateDirectories: true)
        for (name, count) in [("kernel", 100), ("initrd", 1), ("disk.raw", 1 << 20)] {
            try Data(count: count).write(to: URL(fileURLWithPath: image + "/" + name))
        }
        let manifest = """
            {"version":1,"name":"image","variant":"minimal","suite":"none","kernel":"kernel","initrd":"initrd",
            "disk":"disk.raw","commandLine":"","kernelRelease":"0","created":"2026-01-01T00:00:00Z","diskSize":1048576}
            """
        try Data(manifest.utf8).write(to: URL(fileURLWithPath: image + "/image.json"))
        let made = try ImageStore.standard.locate(image)
        var configuration = MachineConfiguration(boot: BootSource(kernel: made.kernel, initrd: made.initrd))
        adjust(&configuration)
        return try store.make("m", image: made, configuration)
    }
}

extension StoredMachine {
    /// Takes a snapshot.
    func take(_ name: String) throws { try takeSnapshot(name) { _, _ in } }

    /// Deletes one, and merges layers.
    func drop(_ name: String) throws { try dropSnapshot(name) { _, _ in } }

    /// Files in its folder whose names begin with something.
    func files(_ prefix: String) throws -> Set<String> {
        Set(try FileManager.default.contentsOfDirectory(atPath: folder).filter { $0.hasPrefix(prefix) })
    }

    /// Fills a sector of its disk.
    func write(_ byte: UInt8, sector: UInt64) throws {
        let disk = try Disk.open(folder + "/disk.qcow2", DiskOptions(format: .qcow2))
        try disk.write([UInt8](repeating: byte, count: 512), at: sector * 512)
        try disk.flush()
    }

    /// The first bytes of its disk's sectors.
    func bytes(sectors: Range<UInt64>) throws -> [UInt8] {
        let disk = try Disk.open(folder + "/disk.qcow2", DiskOptions(isReadOnly: true, format: .qcow2))
        return try sectors.map { try disk.read(at: $0 * 512, count: 512)[0] }
    }
}
