// qcow2 against qemu-img, in both directions.
import Foundation
import Storage
import Testing

@Suite struct Qcow2Tests {
    /// A kind of image.
    struct Kind: CustomTestStringConvertible, Sendable {
        var options: String
        var testDescription: String { options }
    }

    static let kinds = [
        "compat=0.10", "compat=1.1", "cluster_size=512", "cluster_size=4096,refcount_bits=1",
        "cluster_size=1024,refcount_bits=64", "cluster_size=512,refcount_bits=64", "refcount_bits=8,lazy_refcounts=on",
        "cluster_size=2M,refcount_bits=2",
        "compression_type=zstd,cluster_size=32k", "preallocation=metadata", "preallocation=falloc,refcount_bits=32",
    ].map(Kind.init)

    @Test(arguments: kinds) func `what qemu-img wrote is read, and goes on being written`(kind: Kind) throws {
        let folder = try Folder()
        let path = folder.file("disk.qcow2")
        try QEMU.image("create", "-q", "-f", "qcow2", "-o", kind.options, path, "4M")
        try QEMU.io(
            path, "qcow2", ["write -P 7 64k 100k", "write -P 9 3M 1M", "discard 3200k 256k", "write -z 70k 8k"])
        try changeAndCompare(path, folder, seed: 1)
    }

    /// Writes at random through Roost, and compares with memory and with what qemu-img reads.
    func changeAndCompare(_ path: String, _ folder: Folder, seed: UInt64) throws {
        var random = Seeded(seed)
        var model = Model(count: 0)
        do {
            let image = try #require(try openDisk(path) as? Qcow2Image)
            model = Model(count: Int(image.byteCount))
            model.bytes = try image.read(at: 0, count: model.bytes.count)
            for step in 0..<400 {
                try model.operate(image, &random)
                if step % 50 == 49 { try image.flush() }
            }
            #expect(try model.differences(image) == [])
            try image.flush()
            let report = try image.check()
            #expect(report.corruptions == 0 && report.leaks == 0, "\(report.findings)")
        }
        #expect(try QEMU.isSound(path))
        #expect(try model.matches(path, "qcow2", in: folder))
        #expect(try model.differences(try openDisk(path, DiskOptions(isReadOnly: true))) == [])
    }

    static let own: [Qcow2Options] = [(65536, 3, 16), (512, 3, 64), (4096, 2, 16), (2 << 20, 3, 1), (1024, 3, 4)].map {
        var options = Qcow2Options()
        options.size = 5 << 20
        (options.clusterSize, options.version, options.refcountBits) = $0
        return options
    }

    @Test(arguments: own) func `what Roost makes is sound and reads the same elsewhere`(options: Qcow2Options) throws {
        let folder = try Folder()
        let path = folder.file("disk.qcow2")
        do { try Qcow2Image.create(path, options) }
        #expect(try QEMU.isSound(path))
        try changeAndCompare(path, folder, seed: 2)
        for preallocation in [Preallocation.metadata, .falloc, .full] {
            var options = options
            options.preallocation = preallocation
            let path = folder.file("\(preallocation).qcow2")
            do { try Qcow2Image.create(path, options) }
            #expect(try QEMU.isSound(path))
            try changeAndCompare(path, folder, seed: 3)
        }
    }

    @Test(arguments: ["compat=1.1", "compat=0.10"])
    func `a chain of images reads through, and only the last is written`(options: String) throws {
        let folder = try Folder()
        let names = ["base.raw", "middle.qcow2", "top.qcow2"].map(folder.file)
        var random = Seeded(4)
        var model = Model(count: 6 << 20)
        for at in stride(from: 0, to: 3 << 20, by: 4096) where Bool.random(using: &random) {
            model.set(at..<at + 4096, [UInt8](repeating: UInt8.random(in: 1...255, using: &random), count: 4096))
        }
        // A base that ends inside a sector.
        try Data(model.bytes[..<((3 << 20) - 100)]).write(to: URL(fileURLWithPath: names[0]))
        model.set((3 << 20) - 100..<3 << 20, [UInt8](repeating: 0, count: 100))
        try QEMU.image("create", "-q", "-f", "qcow2", "-b", "base.raw", "-F", "raw", "-o", options, names[1], "5M")
        try QEMU.io(names[1], "qcow2", ["write -P 3 1M 300k", "write -z 2M 64k"])
        model.set(1 << 20..<(1 << 20) + 300 * 1024, [UInt8](repeating: 3, count: 300 * 1024))
        model.set(2 << 20..<(2 << 20) + 65536, [UInt8](repeating: 0, count: 65536))
        let before = try names[..<2].map { try Data(contentsOf: URL(fileURLWithPath: $0)) }
        var own = Qcow2Options()
        own.size = 6 << 20
        own.base = "middle.qcow2"
        own.version = options == "compat=1.1" ? 3 : 2
        do {
            let image = try Qcow2Image.create(names[2], own)
            #expect(try model.differences(image) == [])
            for _ in 0..<300 { try model.operate(image, &random) }
            #expect(try model.differences(image) == [])
        }
        #expect(try QEMU.isSound(names[2]))
        #expect(try model.matches(names[2], "qcow2", in: folder))
        #expect(try names[..<2].map { try Data(contentsOf: URL(fileURLWithPath: $0)) } == before)
    }

    @Test(arguments: [(6 << 20, 5 << 20), (5 << 20, 6 << 20)])
    func `two images on a base become one that reads the same`(sizes: (lower: Int, upper: Int)) throws {
        let folder = try Folder()
        let names = ["base.raw", "lower.qcow2", "upper.qcow2", "merged.qcow2"].map(folder.file)
        var random = Seeded(5)
        var model = Model(count: 7 << 20)
        for at in stride(from: 0, to: 7 << 20, by: 65536) where Bool.random(using: &random) {
            model.set(at..<at + 65536, [UInt8](repeating: UInt8.random(in: 1...255, using: &random), count: 65536))
        }
        try Data(model.bytes).write(to: URL(fileURLWithPath: names[0]))
        for (number, size) in [(1, sizes.lower), (2, sizes.upper)] {
            var options = Qcow2Options()
            options.size = UInt64(size)
            options.base = ["base.raw", "lower.qcow2"][number - 1]
            let kept = min(size, model.bytes.count)
            model.bytes = Array(model.bytes[..<kept]) + [UInt8](repeating: 0, count: size - kept)
            model.unknown = model.unknown.filter { $0 < kept / 512 }
            let image = try Qcow2Image.create(names[number], options)
            #expect(try model.differences(image) == [])
            for _ in 0..<60 { try model.operate(image, &random) }
            try image.flush()
        }
        #expect(try model.differences(try openDisk(names[2], DiskOptions(isReadOnly: true))) == [])
        var told: UInt64 = 0
        try patiently { try Qcow2Image.merge(names[2], to: names[3]) { done, _ in told = done } }
        #expect(told == UInt64(sizes.upper))
        #expect(try DiskReport.base(of: names[3]) == "base.raw")
        #expect(try QEMU.isSound(names[3]))
        #expect(try model.matches(names[3], "qcow2", in: folder))
        #expect(try model.differences(try openDisk(names[3], DiskOptions(isReadOnly: true))) == [])
        #expect(throws: StorageError.self) { try Qcow2Image.merge(names[3], to: folder.file("no")) }
    }

    @Test func `a base that is missing, of an unknown kind or the image itself is refused`() throws {
        let folder = try Folder()
        let path = folder.file("disk.qcow2")
        for (base, words) in [
            ("none.raw", "no such file"), ("disk.qcow2", "based on one another"), ("nbd://host/disk", "isn't a file"),
        ] {
            try QEMU.image(
                "create", "-q", "-f", "qcow2", "-u", "-b", base, "-F", base.hasSuffix("w") ? "raw" : "qcow2", path, "1M"
            )
            let error = #expect(throws: StorageError.self) { try Disk.open(path, DiskOptions(isReadOnly: true)) }
            #expect(error?.description.contains(words) == true, "\(String(describing: error))")
        }
    }

    @Test(arguments: ["zlib", "zstd"]) func `compressed clusters are read, replaced and written`(method: String) throws
    {
        let folder = try Folder()
        let (raw, path, own) = (folder.file("disk.raw"), folder.file("disk.qcow2"), folder.file("own.qcow2"))
        var random = Seeded(5)
        var model = Model(count: 6 << 20)
        for at in stride(from: 0, to: 6 << 20, by: 65536) {
            let seed = UInt8.random(in: 0...255, using: &random)
            // Some of them compress well, some badly, some are zero.
            let noise = (0..<65536).map { _ in seed & 3 == 0 ? UInt8.random(in: 0...255, using: &random) : seed / 2 }
            if seed & 3 != 3 { model.set(at..<at + 65536, noise) }
        }
        try Data(model.bytes).write(to: URL(fileURLWithPath: raw))
        try QEMU.image("convert", "-c", "-O", "qcow2", "-o", "compression_type=" + method, raw, path)
        #expect(try model.differences(try openDisk(path, DiskOptions(isReadOnly: true))) == [])
        try changeAndCompare(path, folder, seed: 6)
        var options = Qcow2Options()
        options.isZstd = method == "zstd"
        try DiskConverter.convert(
            try openDisk(raw, DiskOptions(isReadOnly: true)), to: own, .qcow2(options, isCompressed: true))
        #expect(try QEMU.isSound(own))
        #expect(try model.matches(own, "qcow2", in: folder))
        try changeAndCompare(own, folder, seed: 7)
    }

    @Test func `a conversion keeps the content and leaves zeroes out`() throws {
        let folder = try Folder()
        let (raw, path, back) = (folder.file("disk.raw"), folder.file("disk.qcow2"), folder.file("back.raw"))
        try QEMU.image("create", "-q", "-f", "raw", raw, "64M")
        try QEMU.io(raw, "raw", ["write -P 5 1M 1M", "write -P 6 50000k 12k", "write -P 1 67108352 512"])
        try DiskConverter.convert(
            try openDisk(raw, DiskOptions(isReadOnly: true)), to: path, .qcow2(Qcow2Options(), isCompressed: false))
        #expect(try QEMU.isSound(path))
        #expect(try QEMU.run("qemu-img", ["compare", raw, path]).status == 0)
        try DiskConverter.convert(try openDisk(path, DiskOptions(isReadOnly: true)), to: back, .raw(.off))
        #expect(try QEMU.run("qemu-img", ["compare", raw, back]).status == 0)
        #expect(try report(path).sizeOnHost < 3 << 20)
        #expect(try report(back).sizeOnHost < 3 << 20)
        #expect(throws: StorageError.self) { try DiskConverter.convert(try Disk.open(raw), to: raw, .raw(.off)) }
    }

    @Test func `snapshots inside an image are listed and read, and outlive what is written later`() throws {
        let folder = try Folder()
        let path = folder.file("disk.qcow2")
        try QEMU.image("create", "-q", "-f", "qcow2", path, "4M")
        try QEMU.io(path, "qcow2", ["write -P 1 0 2M"])
        try QEMU.image("snapshot", "-c", "first", path)
        try QEMU.io(path, "qcow2", ["write -P 2 1M 2M"])
        try QEMU.image("snapshot", "-c", "second", path)
        try changeAndCompare(path, folder, seed: 8)
        #expect(try report(path).snapshots?.map(\.name) == ["first", "second"])
        let first = try openDisk(path, DiskOptions(snapshot: "first"))
        #expect(first.isReadOnly)
        #expect(
            try first.read(at: 0, count: 4 << 20) == [UInt8](repeating: 1, count: 2 << 20)
                + [UInt8](repeating: 0, count: 2 << 20))
        let second = try openDisk(path, DiskOptions(snapshot: "2"))
        #expect(try second.read(at: 1 << 20, count: 2 << 20).allSatisfy { $0 == 2 })
        #expect(throws: StorageError.self) { try Disk.open(path, DiskOptions(snapshot: "third")) }
    }

    @Test func `an image that wasn't closed is repaired when it is opened for writing`() throws {
        let folder = try Folder()
        let path = folder.file("disk.qcow2")
        try QEMU.image("create", "-q", "-f", "qcow2", "-o", "lazy_refcounts=on,cluster_size=4096", path, "4M")
        // Killed with lazy refcounts: the image is dirty, and its refcounts are wrong.
        _ = try QEMU.run(
            "qemu-io", ["-f", "qcow2", "-c", "write -P 4 0 3M", "-c", "flush", "-c", "sigraise 9", path])
        #expect(try report(path).isDirty == true)
        var model = Model(count: 4 << 20)
        model.set(0..<3 << 20, [UInt8](repeating: 4, count: 3 << 20))
        #expect(try model.differences(try openDisk(path, DiskOptions(isReadOnly: true))) == [])
        #expect(try openDisk(path).note?.contains("repaired") == true)
        #expect(try report(path).isDirty == false)
        #expect(try QEMU.isSound(path))
        try changeAndCompare(path, folder, seed: 9)
    }

    @Test func `the size changes, and what is cut off is gone`() throws {
        let folder = try Folder()
        let path = folder.file("disk.qcow2")
        var options = Qcow2Options()
        options.size = 4 << 20
        options.clusterSize = 512
        do {
            let image = try Qcow2Image.create(path, options)
            try image.write([UInt8](repeating: 8, count: 2 << 20), at: 2 << 20)
        }
        #expect(throws: StorageError.self) { try Disk.resize(path, to: 3 << 20) }
        try patiently { try Disk.resize(path, to: (3 << 20) + 512, shrinks: true) }
        #expect(try QEMU.isSound(path))
        try patiently { try Disk.resize(path, to: 200 << 20) }
        #expect(try QEMU.isSound(path))
        let image = try openDisk(path, DiskOptions(isReadOnly: true))
        #expect(image.byteCount == 200 << 20)
        #expect(try image.read(at: 2 << 20, count: (1 << 20) + 512).allSatisfy { $0 == 8 })
        #expect(try image.read(at: (3 << 20) + 512, count: 1 << 20).allSatisfy { $0 == 0 })
    }

    @Test func `an overlay for the time of a run leaves its base alone`() throws {
        let folder = try Folder()
        let path = folder.file("disk.raw")
        try QEMU.image("create", "-q", "-f", "raw", path, "4M")
        try QEMU.io(path, "raw", ["write -P 1 0 4M"])
        let before = try Data(contentsOf: URL(fileURLWithPath: path))
        do {
            let image = try openDisk(path, DiskOptions(isTemporary: true))
            var model = Model(count: 4 << 20)
            model.set(0..<4 << 20, Array(before))
            var random = Seeded(10)
            for _ in 0..<300 { try model.operate(image, &random) }
            try image.flush()
            #expect(try model.differences(image) == [])
        }
        #expect(try Data(contentsOf: URL(fileURLWithPath: path)) == before)
    }

    @Test func `a guest can't make its raw disk an image that names files of the host`() throws {
        let folder = try Folder()
        let path = folder.file("disk.raw")
        try QEMU.image("create", "-q", "-f", "raw", path, "1M")
        let header: [UInt8] = [0x51, 0x46, 0x49, 0xFB] + [UInt8](repeating: 0, count: 508)
        do {
            let image = try openDisk(path)
            #expect(throws: StorageError.self) { try image.write(header, at: 0) }
            try image.write([UInt8](repeating: 0xFF, count: 512), at: 0)
        }
        try openDisk(path, DiskOptions(format: .raw)).write(header, at: 0)
    }

    @Test func `features that Roost doesn't know are refused with their name`() throws {
        let folder = try Folder()
        let path = folder.file("disk.qcow2")
        func refusal(_ options: DiskOptions = DiskOptions()) -> String {
            do { return try openDisk(path, options).path } catch { return "\(error)" }
        }
        try QEMU.image("create", "-q", "-f", "qcow2", "-o", "extended_l2=on", path, "1M")
        #expect(refusal().contains("subclusters"))
        try QEMU.image("create", "-q", "-f", "qcow2", "-o", "data_file=" + folder.file("data"), path, "1M")
        #expect(refusal().contains("another file"))
        // qemu-img gives up where the host's clock of processor time stood still while it tried how fast it is.
        let encrypted = [
            "create", "-q", "-f", "qcow2", "--object", "secret,id=s,data=x", "-o",
            "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10", path, "1M",
        ]
        for attempt in 1...20 {
            let run = try QEMU.run("qemu-img", encrypted)
            if run.status == 0 { break }
            try #require(run.output.contains("accurate CPU usage") && attempt < 20, "\(run.output)")
        }
        #expect(refusal().contains("encrypted"))
        try QEMU.image("create", "-q", "-f", "qcow2", path, "1M")
        let handle = try #require(FileHandle(forUpdatingAtPath: path))
        try handle.seek(toOffset: 0x4F)
        try handle.write(contentsOf: Data([2]))
        #expect(refusal().contains("corrupt"))
        #expect(refusal(DiskOptions(isReadOnly: true)) == path)
        try handle.seek(toOffset: 0x4F)
        try handle.write(contentsOf: Data([32]))
        #expect(refusal(DiskOptions(isReadOnly: true)).contains("bits 20"))
    }
}
