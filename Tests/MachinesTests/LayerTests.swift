// Layers of disks that go while others read what stands on them, and those that must stay.
import Foundation
import Machine
import Machines
import Storage
import Synchronization
import Testing

@Suite("Layers that go") struct LayerTests {
    @Test("Clones and exports are made while layers below their snapshot are merged and removed")
    func meanwhile() throws {
        let home = try StoreHome()
        defer { home.remove() }
        let machine = try home.machine()
        for _ in 0..<4 {
            // What "kept" stands on is merged with it as the others go.
            let others = (0..<12).map { "s\($0)" }
            for name in others + ["kept"] { try machine.take(name) }
            let isOver = Atomic(false)
            let thread = Thread {
                for name in others { try? machine.drop(name) }
                isOver.store(true, ordering: .releasing)
            }
            thread.start()
            repeat {
                // A layer that a clone has too is not merged.
                for _ in 0..<10 { try home.store.delete(try home.store.clone(machine, snapshot: "kept", as: "c")) }
                try machine.export(snapshot: "kept", to: home.folder + "/m.tar", replacing: true) { _, _, _ in }
            } while !isOver.load(ordering: .acquiring)
            #expect(try machine.snapshots().map(\.name) == ["kept"])
            try machine.drop("kept")
        }
    }

    @Test("The layers of a snapshot whose record can't be read stay")
    func unreadable() throws {
        let home = try StoreHome()
        defer { home.remove() }
        let machine = try home.machine()
        for (name, sector) in [("a", UInt64(0)), ("b", 1), ("c", 2)] {
            try machine.write(7, sector: sector)
            try machine.take(name)
        }
        let layers = try machine.snapshot("a").layers
        let path = URL(fileURLWithPath: machine.folder + "/snapshots/a/record.json")
        let text = try String(contentsOf: path, encoding: .utf8)
        for (old, new) in [("\"version\" : 1", "\"version\" : 9"), ("{", "")] {
            try text.replacingOccurrences(of: old, with: new).write(to: path, atomically: true, encoding: .utf8)
            try machine.drop(old == "{" ? "b" : "c")
            #expect(try machine.files("layer-").isSuperset(of: layers))
        }
        try text.write(to: path, atomically: true, encoding: .utf8)
        try machine.restore("a")
        #expect(try machine.bytes(sectors: 0..<3) == [7, 0, 0])
        // Nor is a folder of snapshots that can't be read an empty one.
        let (folder, aside) = (machine.folder + "/snapshots", machine.folder + "/aside")
        try FileManager.default.moveItem(atPath: folder, toPath: aside)
        try Data().write(to: URL(fileURLWithPath: folder))
        #expect(throws: (any Error).self) { try machine.mergeLayers(running: false) }
        #expect(try machine.files("layer-").isSuperset(of: layers))
    }

    /// A machine with three snapshots, one on the other, each after a sector was written.
    private func three(_ home: StoreHome) throws -> StoredMachine {
        let machine = try home.machine()
        for number in UInt64(1)...3 {
            try machine.write(UInt8(number), sector: number)
            try machine.take("s\(number)")
        }
        return machine
    }

    @Test("While bytes of layers are copied, snapshots are deleted, and what is copied stays")
    func copying() throws {
        let home = try StoreHome()
        defer { home.remove() }
        let machine = try three(home)
        try machine.deleteSnapshot("s2")
        #expect(try machine.files("layer-").count == 3)
        var isHeld = false
        var isFirst = true
        try machine.mergeLayers(
            running: true,
            inTurn: { body in
                isHeld = true
                defer { isHeld = false }
                try body()
            },
            progress: { _, _ in
                #expect(!isHeld)
                guard isFirst else { return }
                isFirst = false
                #expect(throws: Never.self) {
                    try machine.deleteSnapshot("s1")
                    try machine.take("s4")
                    #expect(try machine.files(".merging-").count == 1)
                }
            })
        #expect(!isFirst)
        #expect(try machine.files(".merging-").isEmpty)
        #expect(try machine.files("layer-") == Set(machine.snapshot("s3").layers + machine.snapshot("s4").layers))
        #expect(try machine.bytes(sectors: 0..<5) == [0, 1, 2, 3, 0])
    }

    @Test("What was made of layers that have gone, or have become others, is dropped", arguments: [true, false])
    func overtaken(isGone: Bool) throws {
        let home = try StoreHome()
        defer { home.remove() }
        let machine = try three(home)
        // The disk stands on the first one's layer then, which the third one's stands on by the second one's.
        if isGone { try machine.restore("s1") }
        let kept = try machine.snapshot(isGone ? "s1" : "s3").layers
        try machine.deleteSnapshot("s2")
        if !isGone { try machine.deleteSnapshot("s1") }
        var isFirst = true
        try machine.mergeLayers(
            running: true,
            progress: { _, _ in
                guard isFirst else { return }
                isFirst = false
                #expect(throws: Never.self) {
                    if isGone { try machine.deleteSnapshot("s3") } else { try machine.mergeLayers(running: true) }
                }
            })
        #expect(!isFirst)
        #expect(try machine.files(".merging-").isEmpty)
        #expect(try machine.files("layer-") == Set(kept))
        #expect(try machine.bytes(sectors: 1..<4) == (isGone ? [1, 0, 0] : [1, 2, 3]))
    }

    @Test("A clone has the layers that it needs, and no others")
    func clones() throws {
        let home = try StoreHome()
        defer { home.remove() }
        let machine = try three(home)
        let clone = try home.store.clone(machine, snapshot: "s2", as: "c")
        #expect(
            try clone.files("layer-") == Set(machine.snapshot("s1").layers + machine.snapshot("s2").layers))
        #expect(try clone.bytes(sectors: 1..<4) == [1, 2, 0])
    }

    @Test("A snapshot that is deleted while it is exported comes out whole")
    func exported() throws {
        let home = try StoreHome()
        defer { home.remove() }
        let machine = try home.machine()
        var options = Qcow2Options()
        options.size = 1 << 20
        _ = try Qcow2Image.create(machine.folder + "/second.qcow2", options)
        try machine.change {
            $0.disks.append(DiskConfiguration(path: "second.qcow2", options: DiskOptions(format: .qcow2)))
        }
        try machine.write(5, sector: 3)
        try machine.take("s")
        let path = home.folder + "/m.tar"
        var isFirst = true
        try machine.export(snapshot: "s", to: path, replacing: false) { _, _, _ in
            guard isFirst else { return }
            isFirst = false
            #expect(throws: Never.self) { try machine.drop("s") }
        }
        #expect(try machine.snapshots().isEmpty && machine.files("layer-").isEmpty)
        let copy = try home.store.importMachine(path, as: "c", boot: nil, progress: { _, _, _ in })
        #expect(try copy.manifest().machine.disks.count == 2)
    }
}
