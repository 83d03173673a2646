// Internal snapshots against qemu-img, and killed at any moment.
import Foundation
import Glibc
import Storage
import Testing

@Suite(.serialized) struct SnapshotTests {
    private static let size = 4 << 20
    private static let kinds: [(Int, Int, Int)] = [(65536, 3, 16), (512, 3, 64), (4096, 2, 16), (1024, 3, 8)]

    private func make(_ path: String, _ kind: (Int, Int, Int)) throws {
        var options = Qcow2Options()
        options.size = UInt64(Self.size)
        (options.clusterSize, options.version, options.refcountBits) = kind
        try Qcow2Image.create(path, options)
    }

    private func open(_ path: String) throws -> Qcow2Image { try #require(try openDisk(path) as? Qcow2Image) }

    @Test(arguments: kinds)
    func `what was kept is there again, sound and the same for qemu-img`(kind: (Int, Int, Int)) throws {
        let folder = try Folder(inMemory: true)
        let path = folder.file("disk.qcow2")
        try make(path, kind)
        var (random, model) = (Seeded(UInt64(kind.0)), Model(count: Self.size))
        var kept: [String: Model] = [:]
        for round in 0..<12 {
            do {
                let image = try open(path)
                for _ in 0..<40 { try model.operate(image, &random) }
                _ = try model.differences(image)
                let names = kept.keys.sorted()
                switch Int.random(in: 0..<4, using: &random) {
                case 0 where !names.isEmpty:
                    let name = names[Int.random(in: 0..<names.count, using: &random)]
                    try image.deleteSnapshot(name)
                    kept[name] = nil
                case 1 where !names.isEmpty:
                    let name = names[Int.random(in: 0..<names.count, using: &random)]
                    try image.applySnapshot(name)
                    model = try #require(kept[name])
                default:
                    try image.createSnapshot("s\(round)")
                    kept["s\(round)"] = model
                }
                #expect(try model.differences(image) == [])
                for _ in 0..<10 { try model.operate(image, &random) }
                #expect(try model.differences(image) == [])
                try image.flush()
                let check = try image.check()
                #expect(check.corruptions == 0 && check.leaks == 0, "\(check.findings)")
            }
            #expect(try QEMU.isSound(path), "round \(round)")
            #expect(try model.matches(path, "qcow2", in: folder))
            let list = try QEMU.run("qemu-img", ["snapshot", "-l", path]).output
            for (name, model) in kept {
                #expect(list.contains(" \(name) "), "\(list)")
                let copy = folder.file("copy.raw")
                try QEMU.image("convert", "-f", "qcow2", "-O", "raw", "-l", "snapshot.name=\(name)", path, copy)
                #expect(try Data(contentsOf: URL(fileURLWithPath: copy)) == Data(model.bytes), "\(name)")
            }
        }
        // What Roost keeps QEMU applies and deletes, and the other way round.
        try QEMU.image("snapshot", "-c", "theirs", path)
        do { try open(path).createSnapshot("ours") }
        try QEMU.image("snapshot", "-a", "ours", path)
        do {
            try open(path).applySnapshot("theirs")
            try open(path).deleteSnapshot("theirs")
        }
        try QEMU.image("snapshot", "-d", "ours", path)
        #expect(try QEMU.isSound(path))
        #expect(try model.matches(path, "qcow2", in: folder))
    }

    @Test func `what can't be is refused`() throws {
        let folder = try Folder(inMemory: true)
        let path = folder.file("disk.qcow2")
        try make(path, (4096, 3, 1))
        let image = try open(path)
        try image.createSnapshot("empty")
        #expect { try image.createSnapshot("empty") } throws: { ($0 as? StorageError)?.code == .exists }
        #expect { try image.deleteSnapshot("none") } throws: { ($0 as? StorageError)?.code == .missing }
        #expect { try image.createSnapshot("") } throws: { ($0 as? StorageError)?.code == .badRequest }
        try image.write([UInt8](repeating: 1, count: 4096), at: 0)
        // One bit can't count two references.
        #expect { try image.createSnapshot("full") } throws: { ($0 as? StorageError)?.code == .unsupported }
        try image.flush()
        #expect(try image.check().corruptions == 0)
        #expect(try image.read(at: 0, count: 4096).allSatisfy { $0 == 1 })
    }

    /// Makes, applies and deletes snapshots for ever.
    static func load(_ path: String, _ seed: UInt64) throws {
        var random = Seeded(seed)
        guard let image = try openDisk(path) as? Qcow2Image else { return }
        var number = 0
        while true {
            number += 1
            try image.createSnapshot("n\(number)")
            try image.write([UInt8](repeating: UInt8.random(in: 1...255, using: &random), count: 65536), at: 65536)
            try image.applySnapshot("n\(number)")
            if number > 3 { try image.deleteSnapshot("n\(number - 3)") }
        }
    }

    @Test func `killed at any moment, an image is sound, and what was kept before is the same`() async throws {
        for round in 0..<CrashTests.kills {
            let folder = try Folder(inMemory: true)
            let path = folder.file("disk.qcow2")
            try make(path, [(65536, 3, 16), (4096, 3, 16), (512, 3, 64)][round % 3])
            do {
                let image = try open(path)
                try image.write([UInt8](repeating: 7, count: Self.size / 2), at: 0)
                try image.createSnapshot("first")
            }
            let seed = UInt64(round) &+ 500
            await #expect(processExitsWith: .signal(SIGKILL)) { [path = path as String, seed = seed as UInt64] in
                Thread.detachNewThread {
                    var random = Seeded(seed)
                    usleep(UInt32.random(in: 0..<150_000, using: &random))
                    kill(getpid(), SIGKILL)
                }
                try SnapshotTests.load(path, seed)
                sleep(10)
            }
            // Not even a lost cluster but what the writes between have left.
            #expect(try QEMU.isSound(path, leaksAllowed: true), "round \(round)")
            let kept = try openDisk(path, DiskOptions(isReadOnly: true, snapshot: "first"))
            let bytes = try kept.read(at: 0, count: Self.size)
            #expect(
                bytes[..<(Self.size / 2)].allSatisfy { $0 == 7 } && bytes[(Self.size / 2)...].allSatisfy { $0 == 0 })
        }
    }
}
