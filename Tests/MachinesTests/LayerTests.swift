// Layers of disks that go while others read what stands on them.
import Foundation
import Images
import Machine
import Machines
import Synchronization
import Testing

@Suite("Layers that go") struct LayerTests {
    /// A machine that doesn't run, of an image with a disk of 1 MiB.
    private func machine(_ store: MachineStore, _ folder: String) throws -> StoredMachine {
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
        return try store.make(
            "m", image: made, MachineConfiguration(boot: BootSource(kernel: made.kernel, initrd: made.initrd)))
    }

    @Test("Clones and exports are made while layers below their snapshot are merged and removed")
    func meanwhile() throws {
        let folder = "/tmp/roost-layers-\(UUID().uuidString.prefix(8))"
        defer { try? FileManager.default.removeItem(atPath: folder) }
        let store = MachineStore(root: folder + "/machines")
        let machine = try machine(store, folder)
        for _ in 0..<4 {
            // What "kept" stands on is merged with it as the others go.
            let others = (0..<12).map { "s\($0)" }
            for name in others + ["kept"] { try machine.takeSnapshot(name) { _, _ in } }
            let isOver = Atomic(false)
            let thread = Thread {
                for name in others { try? machine.dropSnapshot(name) { _, _ in } }
                isOver.store(true, ordering: .releasing)
            }
            thread.start()
            repeat {
                // A layer that a clone has too is not merged.
                for _ in 0..<10 { try store.delete(try store.clone(machine, snapshot: "kept", as: "c")) }
                try machine.export(snapshot: "kept", to: folder + "/m.tar", replacing: true) { _, _, _ in }
            } while !isOver.load(ordering: .acquiring)
            #expect(try machine.snapshots().map(\.name) == ["kept"])
            try machine.dropSnapshot("kept") { _, _ in }
        }
    }
}
