// Transfers to and from memory in pieces, against the same bytes in one array.
import Foundation
import Glibc
import HostOS
import Testing

/// Pieces of memory in an order of their own, with gaps.
private final class Pieces {
    let memory: UnsafeMutableRawBufferPointer
    let ranges: [UnsafeMutableRawBufferPointer]

    init(_ lengths: [Int], alignment: Int = 1) {
        let gap = max(alignment, 64)
        let room = lengths.map { ($0 + gap - 1) / gap * gap + gap }
        memory = .allocate(byteCount: room.reduce(gap, +), alignment: 4096)
        memory.initializeMemory(as: UInt8.self, repeating: 0xEE)
        var (ranges, place) = ([UnsafeMutableRawBufferPointer](), memory.count)
        for (length, room) in zip(lengths, room) {
            place -= room
            let start = alignment > 1 ? place / alignment * alignment : place + length % 7
            ranges.append(UnsafeMutableRawBufferPointer(rebasing: memory[start..<start + length]))
        }
        self.ranges = ranges
    }

    deinit { memory.deallocate() }

    var list: ScatterList { ScatterList(ranges, owner: self) }
    var bytes: [UInt8] { ranges.flatMap { Array($0) } }
}

@Suite struct ScatterListTests {
    private let sample = (0..<300_000).map { UInt8(truncatingIfNeeded: $0 &* 31 >> 3) }

    @Test func `a part of a list is that part of its bytes`() {
        let pieces = Pieces([1, 0, 700, 13, 4096, 3])
        let count = pieces.list.count
        #expect(count == 4813)
        pieces.list.store(sample)
        #expect(pieces.bytes == Array(sample.prefix(count)) && pieces.list.load() == pieces.bytes)
        for (start, end) in [(0, 0), (0, 1), (1, 701), (0, count), (350, 4000), (count - 1, count), (count, count)] {
            #expect(pieces.list[start..<end].load() == Array(sample[start..<end]))
        }
        pieces.list[500..<800].zero()
        #expect(pieces.bytes == sample[..<500] + [UInt8](repeating: 0, count: 300) + sample[800..<count])
        pieces.list.dropFirst(4800).store([1, 2, 3])
        #expect(pieces.list.prefix(4803).dropFirst(4799).load() == [sample[4799], 1, 2, 3])
        #expect(pieces.memory.count { $0 == 0xEE } >= 64)
    }

    @Test(arguments: [1, 3, 5000]) func `a list of any number of pieces goes to a file and back`(number: Int) throws {
        let scratch = try Scratch()
        let path = try scratch.file("disk", [UInt8](repeating: 9, count: 10))
        let file = try FileDescriptor.openDisk(path, .readWrite)
        let lengths = (0..<number).map { 1 + $0 % 97 }
        let out = Pieces(lengths)
        out.list.store(sample)
        try file.write(out.list, at: 3)
        let content = try Data(contentsOf: URL(fileURLWithPath: path))
        #expect(Array(content) == [9, 9, 9] + out.bytes + [UInt8](repeating: 9, count: max(0, 7 - out.list.count)))
        let back = Pieces(lengths)
        #expect(try file.read(at: 3, into: back.list) == back.list.count && back.bytes == out.bytes)
        // Beyond the end there is nothing.
        let rest = Pieces([4, 100])
        #expect(try file.read(at: UInt64(content.count) - 2, into: rest.list) == 2)
        #expect(Array(rest.bytes.prefix(2)) == Array(content.suffix(2)) && rest.bytes[2] == 0xEE)
    }

    @Test(arguments: [(4096, [8192, 4096, 4096]), (1, [8192, 5000, 3192]), (512, [512, 15872])])
    func `past the host's cache, pieces needn't be aligned`(alignment: Int, lengths: [Int]) throws {
        let path = FileManager.default.currentDirectoryPath + "/.build/roost-direct-\(UUID().uuidString)"
        defer { unlink(path) }
        try Data(count: 20480).write(to: URL(fileURLWithPath: path))
        let file: DirectFile
        do { file = try DirectFile(path, .readWrite) } catch {
            try #require(error.errno == EINVAL)
            return
        }
        let out = Pieces(lengths, alignment: alignment)
        out.list.store(sample)
        #expect(try file.write(out.list, at: 4096))
        #expect(Array(try Data(contentsOf: URL(fileURLWithPath: path))[4096...]) == Array(sample.prefix(16384)))
        let back = Pieces(lengths, alignment: alignment)
        #expect(try file.read(at: 4096, into: back.list) == 16384 && back.bytes == out.bytes)
        // The file's end, and what isn't whole blocks.
        let end = Pieces([4096, 8192], alignment: alignment)
        #expect(try file.read(at: 16384, into: end.list) == 4096)
        #expect(try file.read(at: 512, into: end.list) == nil)
        #expect(try file.write(end.list.dropFirst(1), at: 0) == false)
    }
}
