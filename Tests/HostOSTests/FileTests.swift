// Files as disks and as wholes, on a real file system.
import Foundation
import Glibc
import HostOS
import Testing

/// A folder of the test's own.
final class Scratch {
    let path = NSTemporaryDirectory() + "roost-hostos-\(UUID().uuidString)"

    init() throws { try FileManager.default.createDirectory(atPath: path, withIntermediateDirectories: true) }

    deinit { try? FileManager.default.removeItem(atPath: path) }

    func file(_ name: String, _ bytes: [UInt8] = []) throws -> String {
        let full = path + "/" + name
        try Data(bytes).write(to: URL(fileURLWithPath: full))
        return full
    }
}

@Suite("Files") struct FileTests {
    @Test("A descriptor is closed when its owner goes away, and not passed to programs")
    func ownership() throws {
        let scratch = try Scratch()
        let path = try scratch.file("a")
        var number: Int32 = -1
        do {
            let file = try FileDescriptor.open(path, O_RDONLY)
            number = file.rawValue
            #expect(fcntl(number, F_GETFD) & FD_CLOEXEC != 0)
        }
        #expect(fcntl(number, F_GETFD) == -1)
    }

    @Test("An error names what was done, the reason and errno")
    func errors() throws {
        let scratch = try Scratch()
        #expect {
            _ = try FileDescriptor.open(scratch.path + "/none", O_RDONLY)
        } throws: { error in
            guard let error = error as? HostError else { return false }
            return error.errno == ENOENT && "\(error)".contains("none") && "\(error)".contains("No such file")
        }
    }

    @Test("Positioned reads and writes; a read stops at the end of the file")
    func transfers() throws {
        let scratch = try Scratch()
        let disk = try FileDescriptor.openDisk(try scratch.file("disk", [UInt8](0..<200)), .readWrite)
        #expect(disk.kind == .regular)
        #expect(try disk.byteCount() == 200)
        try disk.write([1, 2, 3], at: 500)
        #expect(try disk.read(at: 499, count: 10) == [0, 1, 2, 3])
        #expect(try disk.read(at: 150, count: 2) == [150, 151])
        #expect(try disk.read(at: 1 << 40, count: 10).isEmpty)
        try disk.synchronize()
    }

    @Test("A log that has become too long is emptied, and goes on")
    func emptied() throws {
        let scratch = try Scratch()
        let file = try FileDescriptor.open(
            try scratch.file("log", [UInt8](repeating: 7, count: 100)), O_WRONLY | O_APPEND)
        let log = ByteStream(writing: file.rawValue)
        log.emptyFile(of: 101)
        #expect(try file.byteCount() == 100)
        log.emptyFile(of: 100)
        #expect(log.write([1, 2]) == nil)
        #expect(try file.byteCount() == 2)
    }

    @Test("A read-only disk can't be written")
    func readOnly() throws {
        let scratch = try Scratch()
        let disk = try FileDescriptor.openDisk(try scratch.file("disk", [7]), .readOnly)
        #expect(throws: HostError.self) { try disk.write([1], at: 0) }
        #expect(try disk.read(at: 0, count: 1) == [7])
    }

    @Test("Discarded and zeroed ranges read as zeroes, the rest stays, the length too")
    func holes() throws {
        let scratch = try Scratch()
        let path = try scratch.file("disk", [UInt8](repeating: 9, count: 1 << 16))
        let disk = try FileDescriptor.openDisk(path, .readWrite)
        let before = FileUsage.allocatedBytes(path)
        if try disk.discard(at: 4096, length: 32768) {
            #expect(try disk.read(at: 4096, count: 32768).allSatisfy { $0 == 0 })
            #expect(FileUsage.allocatedBytes(path) < before)
        }
        if try disk.zero(at: 40960, length: 4096) {
            #expect(try disk.read(at: 40960, count: 4096).allSatisfy { $0 == 0 })
        }
        #expect(try disk.read(at: 45056, count: 20480).allSatisfy { $0 == 9 })
        #expect(try disk.byteCount() == 1 << 16)
    }

    @Test("Locks: readers together, a writer alone, and the holder is named")
    func locks() throws {
        let scratch = try Scratch()
        let path = try scratch.file("disk", [1])
        let first = try FileDescriptor.openDisk(path, .readWrite)
        let second = try FileDescriptor.openDisk(path, .readWrite)
        #expect(try first.lock(exclusive: false))
        #expect(try second.lock(exclusive: false))
        let third = try FileDescriptor.openDisk(path, .readWrite)
        #expect(try !third.lock(exclusive: true))
        #expect(third.lockHolder(exclusive: true) == getpid())
    }

    @Test("A lock ends with its descriptor")
    func unlocking() throws {
        let scratch = try Scratch()
        let path = try scratch.file("disk", [1])
        do {
            let holder = try FileDescriptor.openDisk(path, .readWrite)
            #expect(try holder.lock(exclusive: true))
        }
        let next = try FileDescriptor.openDisk(path, .readWrite)
        #expect(try next.lock(exclusive: true))
        #expect(next.lockHolder(exclusive: true) == nil)
    }

    @Test("Whole files: limits, directories, devices that never end")
    func wholeFiles() throws {
        let scratch = try Scratch()
        let bytes = (0..<200_000).map { UInt8(truncatingIfNeeded: $0) }
        let path = try scratch.file("whole", bytes)
        #expect(try HostFile.contents(of: path, limit: 1 << 20) == bytes)
        func failure(_ path: String, limit: Int) -> Int32? {
            do throws(HostError) {
                _ = try HostFile.contents(of: path, limit: limit)
                return nil
            } catch { return error.errno }
        }
        #expect(failure(path, limit: 1000) == EFBIG)
        #expect(failure(scratch.path, limit: 1000) == EISDIR)
        #expect(failure("/dev/zero", limit: 1000) == EINVAL)
        #expect(failure(scratch.path + "/none", limit: 1000) == ENOENT)
    }

    @Test("Random bytes in the number asked for, and not the same twice")
    func random() {
        #expect(HostRandom.bytes(0).isEmpty)
        #expect(HostRandom.bytes(-1).isEmpty)
        #expect(HostRandom.bytes(100_000).count == 100_000)
        #expect(HostRandom.bytes(32) != HostRandom.bytes(32))
    }
}
