// Cache modes: what the kernel says of the descriptors, and the same content whatever the mode.
import Foundation
import Glibc
import Storage
import Testing

@Suite struct CacheTests {
    private func options(_ cache: CacheMode, _ format: DiskFormat? = nil) -> DiskOptions {
        var options = DiskOptions(format: format)
        options.cache = cache
        return options
    }

    /// The flags of this process's descriptors of a file (`proc_pid_fdinfo(5)`).
    private func flags(_ path: String) throws -> [Int] {
        try FileManager.default.contentsOfDirectory(atPath: "/proc/self/fd").compactMap { number in
            guard (try? FileManager.default.destinationOfSymbolicLink(atPath: "/proc/self/fd/\(number)")) == path,
                let text = try? String(contentsOfFile: "/proc/self/fdinfo/\(number)", encoding: .utf8),
                let line = text.split(separator: "\n").first(where: { $0.hasPrefix("flags:") })
            else { return nil }
            return Int(line.filter(\.isNumber), radix: 8)
        }
    }

    @Test(arguments: CacheMode.allCases) func `the host's cache is passed by when it is to be`(mode: CacheMode) throws {
        let folder = try Folder()
        let path = URL(fileURLWithPath: folder.file("disk.raw")).resolvingSymlinksInPath().path
        try Disk.createRaw(path, size: 1 << 20)
        let image = try openDisk(path, options(mode, .raw))
        let isDirect = try flags(path).contains { $0 & 0o40000 != 0 }
        #expect(isDirect == (mode == .none))
        withExtendedLifetime(image) {}
    }

    @Test(arguments: CacheMode.allCases, [512, 4096, 65536])
    func `an image holds the same in each mode`(mode: CacheMode, clusterSize: Int) throws {
        let folder = try Folder()
        let path = folder.file("disk.qcow2")
        var creation = Qcow2Options()
        creation.size = 4 << 20
        creation.clusterSize = clusterSize
        do { try Qcow2Image.create(path, creation) }
        var (random, model) = (Seeded(UInt64(clusterSize)), Model(count: 4 << 20))
        do {
            let image = try openDisk(path, options(mode))
            for _ in 0..<200 { try model.operate(image, &random) }
            #expect(try model.differences(image) == [])
            try image.flush()
        }
        #expect(try QEMU.isSound(path))
        #expect(try model.matches(path, "qcow2", in: folder))
    }

    @Test(arguments: CacheMode.allCases)
    func `a raw disk that isn't whole blocks holds the same in each mode`(mode: CacheMode) throws {
        let folder = try Folder()
        let path = folder.file("disk.raw")
        let size = 3 << 20 + 1536
        try Disk.createRaw(path, size: UInt64(size))
        var (random, model) = (Seeded(9), Model(count: size))
        do {
            let image = try openDisk(path, options(mode, .raw))
            for _ in 0..<300 { try model.operate(image, &random) }
            #expect(try model.differences(image) == [])
            try image.flush()
        }
        #expect(try Data(contentsOf: URL(fileURLWithPath: path)).count == size)
        #expect(try model.matches(path, "raw", in: folder))
    }

    @Test func `discards and zeroes reach the host's file`() throws {
        let folder = try Folder()
        let path = folder.file("disk.raw")
        try Disk.createRaw(path, size: 8 << 20)
        let image = try openDisk(path, options(.writeback, .raw))
        func taken() -> Int {
            var status = stat()
            stat(path, &status)
            return Int(status.st_blocks) * 512
        }
        try image.write([UInt8](repeating: 7, count: 8 << 20), at: 0)
        try image.flush()
        #expect(taken() >= 8 << 20)
        try image.discard(at: 0, length: 4 << 20)
        #expect(taken() < 5 << 20)
        try image.writeZeroes(at: 4 << 20, length: 2 << 20, mayUnmap: true)
        #expect(taken() < 3 << 20)
        try image.writeZeroes(at: 6 << 20, length: 1 << 20, mayUnmap: false)
        #expect(taken() >= 2 << 20)
        #expect(try image.read(at: 0, count: 7 << 20).allSatisfy { $0 == 0 })
        #expect(try image.read(at: 7 << 20, count: 1 << 20).allSatisfy { $0 == 7 })
    }
}
