// Images that were made to do harm, each in one way.
import Foundation
import Glibc
import Storage
import Testing

/// A file whose numbers are changed.
private struct Changed {
    private let handle: FileHandle

    init(_ path: String) throws { handle = try FileHandle(forUpdating: URL(fileURLWithPath: path)) }

    /// The number of 8 bytes at an offset, most significant byte first.
    func number(at offset: UInt64) throws -> UInt64 {
        try handle.seek(toOffset: offset)
        return try #require(try handle.read(upToCount: 8)).reduce(0) { $0 << 8 | UInt64($1) }
    }

    func put(_ bytes: [UInt8], at offset: UInt64) throws {
        try handle.seek(toOffset: offset)
        try handle.write(contentsOf: Data(bytes))
    }

    func put<Number: FixedWidthInteger>(_ number: Number, at offset: UInt64) throws {
        try put(withUnsafeBytes(of: number.bigEndian) { Array($0) }, at: offset)
    }

    func setLength(_ length: UInt64) throws { try handle.truncate(atOffset: length) }
}

@Suite(.serialized) struct HostileImageTests {
    /// Where an entry of a table leads.
    private static let offsetMask: UInt64 = 0x00FF_FFFF_FFFF_FE00

    private func make(_ path: String, _ change: (inout Qcow2Options) -> Void) throws {
        var options = Qcow2Options()
        options.clusterSize = 512
        options.size = 1 << 20
        change(&options)
        do { try Qcow2Image.create(path, options) }
    }

    @Test func `a VDI image with a block beyond all that a file can have is damaged`() throws {
        let folder = try Folder(inMemory: true)
        let path = folder.file("disk.vdi")
        var bytes = [UInt8](repeating: 0, count: 1024)
        let words: [(Int, UInt32)] = [
            (0x40, 0xBEDA_107F), (0x44, 0x0001_0001), (0x4C, 1), (0x154, 512), (0x158, 1024), (0x168, 512),
            (0x170, 1 << 20), (0x178, 1 << 28), (0x17C, .max), (0x180, .max), (512, .max - 2),
        ]
        for (place, word) in words {
            for byte in 0..<4 { bytes[place + byte] = UInt8(truncatingIfNeeded: word >> UInt32(8 * byte)) }
        }
        try Data(bytes).write(to: URL(fileURLWithPath: path))
        let image = try openDisk(path, DiskOptions(isReadOnly: true))
        #expect { try image.read(at: 0, count: 512) } throws: { ($0 as? StorageError)?.code == .damaged }
    }

    @Test func `zeroes on an image of version 2 that maps its own tables do no harm`() async throws {
        let folder = try Folder(inMemory: true)
        let (base, path) = (folder.file("base.raw"), folder.file("disk.qcow2"))
        // 127 tables of 64 clusters.
        try Disk.createRaw(base, size: 127 * 32768)
        try make(path) { options in
            options.version = 2
            options.size = 0
            options.base = "base.raw"
            options.baseFormat = .raw
        }
        do {
            let image = try openDisk(path)
            for table in [0, 126] as [UInt64] {
                try image.write([UInt8](repeating: 1, count: 512), at: table * 32768)
            }
        }
        let file = try Changed(path)
        let l1 = try file.number(at: 0x28)
        let shared = try file.number(at: l1) & Self.offsetMask
        let own = try file.number(at: l1 + 126 * 8) & Self.offsetMask
        for table in 0..<126 as Range<UInt64> { try file.put(shared, at: l1 + table * 8) }
        // All clusters are the last table's: with its fourth there are 8193 to be given back, and it is among them.
        for entry in 0..<64 as Range<UInt64> {
            try file.put(own, at: shared + entry * 8)
            try file.put(own, at: own + entry * 8)
        }
        await #expect(processExitsWith: .exitCode(42)) { [path = path as String] in
            let image = try openDisk(path)
            try? image.writeZeroes(at: 0, length: image.byteCount, mayUnmap: false)
            try? image.flush()
            exit(42)
        }
    }

    @Test func `snapshots that share one table aren't all looked at`() async throws {
        let folder = try Folder(inMemory: true)
        let path = folder.file("disk.qcow2")
        try make(path) { $0.clusterSize = 65536 }
        let file = try Changed(path)
        // 65536 entries without a name, of 40 bytes; their table of 32 MiB is a hole.
        var table: [UInt8] = []
        for _ in 0..<65536 { table += [0, 0, 0, 0, 4, 0, 0, 0, 0, 0x40, 0, 0] + [UInt8](repeating: 0, count: 28) }
        try file.put(table, at: 16 << 20)
        try file.put(UInt32(65536), at: 0x3C)
        try file.put(UInt64(16 << 20), at: 0x40)
        try file.setLength(96 << 20)
        await #expect(processExitsWith: .exitCode(42)) { [path = path as String] in
            alarm(60)
            let image = try openDisk(path, DiskOptions(isReadOnly: true)) as? Qcow2Image
            do { _ = try image?.check() } catch { exit((error as? StorageError)?.code == .unsupported ? 42 : 2) }
            exit(1)
        }
    }

    @Test func `a search for free clusters looks at no block of counts twice`() throws {
        let folder = try Folder(inMemory: true)
        let path = folder.file("disk.qcow2")
        try make(path) { $0.refcountBits = 1 }
        let file = try Changed(path)
        let block = try file.number(at: file.number(at: 0x30))
        try file.put([UInt8](repeating: 0xFF, count: 512), at: block)
        // A table of 8 MiB that names this block everywhere.
        var table: [UInt8] = []
        for shift in stride(from: 56, through: 0, by: -8) {
            table.append(UInt8(truncatingIfNeeded: block >> UInt64(shift)))
        }
        for _ in 0..<20 { table += table }
        try file.put(table, at: 1 << 20)
        try file.put(UInt64(1 << 20), at: 0x30)
        try file.put(UInt32(16384), at: 0x38)
        try file.setLength(8 << 30)
        let image = try openDisk(path)
        for _ in 0..<2 {
            #expect {
                try image.write([UInt8](repeating: 1, count: 512), at: 0)
            } throws: {
                "\($0)".contains("more clusters than it can have")
            }
        }
    }

    @Test func `header extensions end where the base's name begins`() throws {
        let folder = try Folder(inMemory: true)
        let (base, path) = (folder.file("base.raw"), folder.file("disk.qcow2"))
        try Disk.createRaw(base, size: 1 << 20)
        try make(path) { options in
            options.size = 0
            options.base = "base.raw"
            options.baseFormat = .raw
        }
        let file = try Changed(path)
        // In the place of the mark that ends them.
        let place = try file.number(at: 8) - 8
        try file.put(Array("base.raw".utf8), at: place)
        try file.put(place, at: 8)
        let found = try report(path)
        #expect(found.base == "base.raw" && found.baseFormat == "raw")
        #expect(try QEMU.isSound(path))
    }
}

extension CrashTests {
    @Test func `a refcount table that can't grow leaves nothing behind, and grows when there is room`() async throws {
        let folder = try Folder()
        let path = folder.file("disk.qcow2")
        var options = Qcow2Options()
        (options.size, options.clusterSize, options.refcountBits) = (UInt64(Self.size), 512, 64)
        do { try Qcow2Image.create(path, options) }
        await #expect(processExitsWith: .exitCode(42)) { [path = path as String] in
            let image = try openDisk(path)
            // All that a table of one cluster counts.
            var limit = rlimit(rlim_cur: 2 << 20, rlim_max: rlim_t.max)
            setrlimit(__rlimit_resource_t(1), &limit)
            let data = [UInt8](repeating: 7, count: 4096)
            var place: UInt64 = 0
            while (try? image.write(data, at: place)) != nil { place += 4096 }
            guard place > 1 << 20 else { exit(1) }
            // What could be written has room for its tables.
            try image.flush()
            limit.rlim_cur = limit.rlim_max
            setrlimit(__rlimit_resource_t(1), &limit)
            for step in 0..<256 as Range<UInt64> { try image.write(data, at: place + step * 4096) }
            try image.flush()
            let got = try image.read(at: 0, count: Int(place) + 256 * 4096)
            guard got.allSatisfy({ $0 == 7 }), let check = try (image as? Qcow2Image)?.check() else { exit(2) }
            exit(check.corruptions == 0 ? 42 : 3)
        }
        #expect(try QEMU.isSound(path, leaksAllowed: true))
    }
}
