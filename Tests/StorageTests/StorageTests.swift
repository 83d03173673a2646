import Foundation
import Glibc
import Storage
import Synchronization
import Testing

/// A file that goes away with its owner.
private final class ScratchFile {
    let path: String

    init(bytes: Int) throws {
        var template = Array("/tmp/roost-storage-XXXXXX".utf8CString)
        let descriptor = mkstemp(&template)
        path = String(decoding: template.dropLast().map { UInt8(bitPattern: $0) }, as: UTF8.self)
        try #require(descriptor >= 0 && ftruncate(descriptor, bytes) == 0)
        close(descriptor)
    }

    deinit { unlink(path) }
}

private func failure(_ path: String, readOnly: Bool = false) -> StorageError? {
    do {
        _ = try RawImage(path: path, readOnly: readOnly)
        return nil
    } catch { return error }
}

/// Locks an image of a megabyte for a moment, if it is free; something that isn't as it must be meanwhile.
private func watch(_ path: String) -> String? {
    do {
        let image = try RawImage(path: path, readOnly: false)
        defer { withExtendedLifetime(image) {} }
        var status = stat()
        for _ in 0..<20 where stat(path, &status) == 0 && status.st_size != 1 << 20 { return "\(status.st_size) bytes" }
        return nil
    } catch { return error.code == .inUse ? nil : error.description }
}

@Suite struct RawImageTests {
    @Test func `what is written is read back`() throws {
        let file = try ScratchFile(bytes: 65536)
        let image = try RawImage(path: file.path, readOnly: false)
        #expect(image.byteCount == 65536 && image.note == nil && !image.isReadOnly)
        let data = (0..<1024).map { UInt8(truncatingIfNeeded: $0 * 3) }
        try image.write(data, at: 512)
        try image.flush()
        #expect(try image.read(at: 512, count: 1024) == data)
        try image.writeZeroes(at: 512, length: 512, mayUnmap: false)
        #expect(try image.read(at: 512, count: 512).allSatisfy { $0 == 0 })
        try image.writeZeroes(at: 1024, length: 512, mayUnmap: true)
        #expect(try image.read(at: 1024, count: 512).allSatisfy { $0 == 0 })
        try image.discard(at: 0, length: 65536)
        #expect(throws: StorageError.self) { try image.read(at: 65536, count: 1) }
        #expect(throws: StorageError.self) { try image.write([0], at: .max) }
    }

    @Test func `a file that can't be a disk is refused with its reason`() throws {
        #expect(failure("/nonexistent/disk.img")?.code == .missing)
        #expect(failure("/tmp")?.code == .directory)
        #expect(failure("/tmp", readOnly: true)?.code == .directory)
        #expect(failure("/dev/zero")?.code == .notADisk)
        let file = try ScratchFile(bytes: 100)
        #expect(failure(file.path)?.code == .empty)
        #expect(failure("/nonexistent/disk.img")?.description == "disk /nonexistent/disk.img: no such file")
    }

    @Test func `a file that isn't whole sectors is rounded down and says so`() throws {
        let file = try ScratchFile(bytes: 1500)
        let image = try RawImage(path: file.path, readOnly: true)
        #expect(image.byteCount == 1024)
        #expect(image.note?.contains("476 bytes") == true)
    }

    @Test func `a file that may not be written is refused`() throws {
        let file = try ScratchFile(bytes: 512)
        chmod(file.path, 0o400)
        // Root may write it all the same.
        if getuid() != 0 { #expect(failure(file.path)?.code == .notWritable) }
        #expect(failure(file.path, readOnly: true) == nil)
    }

    @Test func `one writes or several read`() throws {
        let file = try ScratchFile(bytes: 4096)
        do {
            let writer = try RawImage(path: file.path, readOnly: false)
            #expect(failure(file.path)?.code == .inUse)
            #expect(failure(file.path, readOnly: true)?.code == .inUse)
            #expect(failure(file.path)?.description.contains("process \(getpid())") == true)
            withExtendedLifetime(writer) {}
        }
        // Another test's child may hold the descriptor between fork and exec.
        for _ in 0..<100 where failure(file.path, readOnly: true) != nil { usleep(10_000) }
        let reader = try RawImage(path: file.path, readOnly: true)
        #expect(failure(file.path, readOnly: true) == nil)
        #expect(failure(file.path)?.code == .inUse)
        #expect(throws: StorageError.self) { try reader.write([UInt8](repeating: 0, count: 512), at: 0) }
    }

    @Test func `a file that is replaced is cut off only by who has its lock`() throws {
        let file = try ScratchFile(bytes: 1 << 20)
        let isOver = Mutex(false)
        let wrong = Mutex<[String]>([])
        let ended = DispatchSemaphore(value: 0)
        Thread.detachNewThread { [path = file.path] in
            while !isOver.withLock({ $0 }) {
                if let finding = watch(path) { wrong.withLock { $0.append(finding) } }
            }
            ended.signal()
        }
        for _ in 0..<3000 { try? Disk.createRaw(file.path, size: 1 << 20, replacing: true) }
        isOver.withLock { $0 = true }
        ended.wait()
        #expect(wrong.withLock { $0.first } == nil)
    }

    @Test func `another process is kept out and told who has it`() async throws {
        let file = try ScratchFile(bytes: 4096)
        let image = try RawImage(path: file.path, readOnly: false)
        await #expect(processExitsWith: .exitCode(42)) { [path = file.path as String] in
            let error = failure(path)
            let isNamed = error?.description.hasSuffix("is already in use by process \(getppid())") == true
            exit(error?.code == .inUse && isNamed ? 42 : 1)
        }
        withExtendedLifetime(image) {}
    }

    @Test func `a file that shrinks fails beyond its end`() throws {
        let file = try ScratchFile(bytes: 8192)
        let image = try RawImage(path: file.path, readOnly: false)
        truncate(file.path, 4096)
        #expect(try image.read(at: 0, count: 4096).count == 4096)
        #expect(throws: StorageError.self) { try image.read(at: 4096, count: 512) }
        #expect(throws: StorageError.self) { try image.write([UInt8](repeating: 1, count: 512), at: 4096) }
        var status = stat()
        stat(file.path, &status)
        #expect(status.st_size == 4096)
    }

    @Test func `a write that the host has no room for fails and loses nothing`() async throws {
        let file = try ScratchFile(bytes: 8192)
        await #expect(processExitsWith: .exitCode(42)) { [path = file.path as String] in
            guard let image = try? RawImage(path: path, readOnly: false) else { exit(1) }
            signal(SIGXFSZ, SIG_IGN)
            var limit = rlimit(rlim_cur: 4096, rlim_max: 4096)
            setrlimit(__rlimit_resource_t(1), &limit)
            do {
                try image.write([UInt8](repeating: 1, count: 512), at: 4096)
                exit(2)
            } catch { exit((try? image.read(at: 0, count: 8192).count) == 8192 ? 42 : 3) }
        }
    }
}
