// Transfers by io_uring, against what the file holds by plain reading.
import Foundation
import Glibc
import HostOS
import Testing

@Suite(.enabled("the kernel allows io_uring") { IORing.obstacle == nil }) struct IORingTests {
    /// Waits for so many completions, by tag.
    private func completions(_ ring: inout IORing, _ count: Int) throws -> [UInt64: Int32] {
        var results: [UInt64: Int32] = [:]
        while results.count < count {
            try ring.submit(waits: true)
            while let (tag, result) = ring.next() { results[tag] = result }
        }
        return results
    }

    @Test func `many transfers at once bring the right bytes`() throws {
        let scratch = try Scratch()
        let content = (0..<1 << 20).map { UInt8(truncatingIfNeeded: $0 &* 0x9E37 >> 7) }
        let path = try scratch.file("a", content)
        let file = try FileDescriptor.openDisk(path, .readWrite)
        var ring = try IORing(entries: 64)
        let lists = (0..<32).map { _ in ScatterList(count: 16384) }
        for (index, list) in lists.enumerated() {
            let isTaken1 = ring.move(list, file.rawValue, at: UInt64(index * 16384), fills: true, tag: UInt64(index))
            #expect(isTaken1)
        }
        let read = try completions(&ring, 32)
        #expect(read.values.allSatisfy { $0 == 16384 })
        for (index, list) in lists.enumerated() {
            let isSame = list.load() == Array(content[index * 16384..<(index + 1) * 16384])
            #expect(isSame)
        }
        // Back in the other order.
        for (index, list) in lists.enumerated() {
            let isTaken2 = ring.move(
                list, file.rawValue, at: UInt64((31 - index) * 16384), fills: false, tag: UInt64(index))
            #expect(isTaken2)
        }
        _ = try completions(&ring, 32)
        // Until here the kernel reads from them.
        withExtendedLifetime(lists) {}
        let now = try Data(contentsOf: URL(fileURLWithPath: path))
        var wanted: [UInt8] = []
        for index in (0..<32).reversed() { wanted += content[index * 16384..<(index + 1) * 16384] }
        wanted += content[(1 << 19)...]
        let isSame = Array(now) == wanted
        #expect(isSame)
    }

    @Test func `a transfer that fails or ends early says so`() throws {
        let scratch = try Scratch()
        let file = try FileDescriptor.openDisk(try scratch.file("a", [1, 2, 3]), .readOnly)
        var ring = try IORing(entries: 8)
        let list = ScatterList(count: 16)
        let isTaken3 = ring.move(list, file.rawValue, at: 0, fills: true, tag: 1)
        #expect(isTaken3)
        let isTaken4 = ring.move(list, -1, at: 0, fills: true, tag: 2)
        #expect(isTaken4)
        let isTaken5 = ring.move(list, file.rawValue, at: 0, fills: false, tag: 3)
        #expect(isTaken5)
        let results = try completions(&ring, 3)
        #expect(results == [1: 3, 2: -EBADF, 3: -EBADF])
        #expect(list.prefix(4).load() == [1, 2, 3, 0])
    }

    @Test func `a ring that is full, or a list that is too long, is said`() throws {
        let scratch = try Scratch()
        let file = try FileDescriptor.openDisk(try scratch.file("a", [1]), .readOnly)
        var ring = try IORing(entries: 4)
        let list = ScatterList(count: 1)
        for tag in 0..<4 as Range<UInt64> {
            let isTaken6 = ring.move(list, file.rawValue, at: 0, fills: true, tag: tag)
            #expect(isTaken6)
        }
        let isTaken7 = ring.move(list, file.rawValue, at: 0, fills: true, tag: 4)
        #expect(!isTaken7)
        let results = try completions(&ring, 4)
        withExtendedLifetime(list) {}
        #expect(results.count == 4)
        let isTaken8 = ring.move(ScatterList(count: 0), file.rawValue, at: 0, fills: true, tag: 5)
        #expect(!isTaken8)
    }

    @Test func `an event counter wakes a thread that waits for its ring`() throws {
        var ring = try IORing(entries: 4)
        let event = try FileDescriptor.eventCounter()
        let isTaken9 = ring.watch(event.rawValue, tag: 7)
        #expect(isTaken9)
        try ring.submit(waits: false)
        let early = ring.next()
        #expect(early == nil)
        event.signal()
        let results = try completions(&ring, 1)
        #expect(results[7] != nil)
    }
}
