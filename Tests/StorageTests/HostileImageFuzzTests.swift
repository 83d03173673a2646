// Malformed images: refused, or their accesses fail, and never a trap. ROOST_FUZZ_SEED chooses others.
import Foundation
import Glibc
import Storage
import Testing

@Suite(.serialized) struct HostileImageFuzzTests {
    static let kinds = [
        "qcow2 cluster_size=512", "qcow2 cluster_size=4096,compat=0.10", "qcow2 compression_type=zstd", "vmdk",
        "vmdk subformat=streamOptimized", "vmdk subformat=twoGbMaxExtentFlat", "vdi", "vpc", "vhdx",
    ]

    /// What an image's bytes are worth changing: those that aren't zero, headers and tables above all.
    private static func places(_ bytes: [UInt8]) -> [Int] {
        bytes.indices.filter { $0 < 512 || (bytes[$0] != 0 && bytes[$0] != 0x5A) }
    }

    @Test(arguments: kinds) func `ten thousand malformed images do no harm`(kind: String) throws {
        let words = kind.split(separator: " ").map(String.init)
        let folder = try Folder(inMemory: true)
        let (raw, path) = (folder.file("disk.raw"), folder.file("disk." + words[0]))
        try QEMU.image("create", "-q", "-f", "raw", raw, "1M")
        try QEMU.io(raw, "raw", ["write -P 0x5A 16k 8k", "write -P 0x5A 300k 4k", "write -P 0x5A 1020k 4k"])
        var arguments = ["convert", "-O", words[0]]
        if kind.contains("zstd") || kind.contains("compat") { arguments.append("-c") }
        if words.count > 1 { arguments += ["-o", words[1]] }
        let run = try QEMU.run("qemu-img", arguments + [raw, path])
        try #require(run.status == 0, "\(run.output)")
        if kind == "qcow2 cluster_size=512" { try QEMU.image("snapshot", "-c", "s", path) }
        let original = [UInt8](try Data(contentsOf: URL(fileURLWithPath: path)))
        let places = Self.places(original)
        let seed = ProcessInfo.processInfo.environment["ROOST_FUZZ_SEED"].flatMap { UInt64($0) } ?? 1
        let descriptor = open(path, O_RDWR)
        defer { close(descriptor) }
        var opened = 0
        for round in 0..<10_000 {
            var random = Seeded(seed &+ UInt64(round) &* 0x1_0001)
            var changed: [Range<Int>] = []
            for _ in 0..<Int.random(in: 1...3, using: &random) {
                let place = places.randomElement(using: &random) ?? 0
                let width = [1, 2, 4, 8].randomElement(using: &random) ?? 1
                let range = place / width * width..<min(original.count, place / width * width + width)
                let value: UInt64 =
                    [0, 1, .max, 1 << 63, 0x7FFF_FFFF, random.next(), random.next() & 0xFFFF, 4096, 512 << 16]
                    .randomElement(using: &random) ?? 0
                let bytes = withUnsafeBytes(of: Bool.random(using: &random) ? value.bigEndian : value) {
                    Array($0.suffix(range.count))
                }
                pwrite(descriptor, bytes, range.count, range.lowerBound)
                changed.append(range)
            }
            let isCut = round % (original.count > 1 << 21 ? 256 : 16) == 15
            if isCut { ftruncate(descriptor, Int.random(in: 0..<original.count, using: &random)) }
            if Bool.random(using: &random) { changed += Checksums.repair(words[0], descriptor, changed) }
            let outcome = exercise(path, &random, isQcow2: words[0] == "qcow2")
            opened += outcome.isOpened ? 1 : 0
            if outcome.mayBeWritten || isCut {
                ftruncate(descriptor, original.count)
                pwrite(descriptor, original, original.count, 0)
            } else {
                for range in changed { pwrite(descriptor, Array(original[range]), range.count, range.lowerBound) }
            }
        }
        // Some are harmless: the fuzzer reaches beyond the headers.
        #expect(opened > 100)
    }

    /// Opens, reads, writes.
    private func exercise(
        _ path: String, _ random: inout Seeded, isQcow2: Bool
    ) -> (isOpened: Bool, mayBeWritten: Bool) {
        let writes = isQcow2 && Bool.random(using: &random)
        let asRead = DiskOptions(isReadOnly: true, snapshot: isQcow2 && random.next() & 7 == 0 ? "s" : nil)
        guard let image = try? Disk.open(path, writes ? DiskOptions() : asRead) else {
            return (false, writes)
        }
        let size = image.byteCount
        let places: [UInt64] = [0, 16384, 300 * 1024, 1020 * 1024, size / 2, size &- 512]
        for place in places where place < size {
            let count = Int(min(20480, size - place)) & ~511
            _ = try? image.read(at: place & ~511, count: count)
            _ = try? image.extent(at: place & ~511, limit: min(size - (place & ~511), 1 << 20))
            if writes {
                try? image.write([UInt8](repeating: 1, count: min(count, 1024)), at: place & ~511)
                try? image.discard(at: place & ~511, length: UInt64(count))
                try? image.writeZeroes(at: place & ~511, length: UInt64(count), mayUnmap: false)
            }
        }
        if writes { try? image.flush() }
        if let image = image as? Qcow2Image {
            if random.next() & 3 == 0 { _ = try? image.check() }
            if writes, random.next() & 15 == 0 { _ = try? image.check(repairing: true) }
            if writes, random.next() & 15 == 0 { try? image.resize(to: 2 << 20) }
        }
        return (true, writes)
    }
}

/// Sums that a format protects its headers with, set right so that what was changed in them is looked at.
private enum Checksums {
    /// Sets the sums of what was changed right; returns where they are.
    static func repair(_ format: String, _ descriptor: Int32, _ changed: [Range<Int>]) -> [Range<Int>] {
        func isChanged(_ place: Int, _ count: Int) -> Bool { changed.contains { $0.overlaps(place..<place + count) } }
        switch format {
        case "vpc":
            return [(0, 512, 0x40), (512, 1024, 0x24)].map { (place: Int, count: Int, sum: Int) in
                var bytes = read(descriptor, place, count)
                for index in sum..<sum + 4 { bytes[index] = 0 }
                let value = ~bytes.reduce(UInt32(0)) { $0 &+ UInt32($1) }
                return put(value.bigEndian, descriptor, place + sum)
            }
        case "vhdx":
            return [(0x10000, 4096), (0x20000, 4096), (0x30000, 65536), (0x40000, 65536)].filter(isChanged).map {
                place, count in
                var bytes = read(descriptor, place, count)
                for index in 4..<8 { bytes[index] = 0 }
                let crc = bytes.reduce(UInt32.max) { $0 >> 8 ^ table[Int(UInt8(truncatingIfNeeded: $0) ^ $1)] }
                return put((~crc).littleEndian, descriptor, place + 4)
            }
        default: return []
        }
    }

    private static func read(_ descriptor: Int32, _ place: Int, _ count: Int) -> [UInt8] {
        var bytes = [UInt8](repeating: 0, count: count)
        pread(descriptor, &bytes, count, place)
        return bytes
    }

    private static func put(_ value: UInt32, _ descriptor: Int32, _ place: Int) -> Range<Int> {
        var value = value
        pwrite(descriptor, &value, 4, place)
        return place..<place + 4
    }

    /// Of CRC-32C.
    private static let table: [UInt32] = (0..<256).map { byte in
        (0..<8).reduce(UInt32(byte)) { crc, _ in crc >> 1 ^ (crc & 1 == 0 ? 0 : 0x82F6_3B78) }
    }
}
