// What stands between a device and its image, while another image takes its place.
import Foundation
import Glibc
import GuestMemory
import Machine
import Storage
import Synchronization
import Testing

@Suite("What stands behind disks", .serialized)
final class DiskBackendTests {
    private let folder = FileManager.default.temporaryDirectory.appendingPathComponent("roost-backend-\(UUID())").path
    private var path: String { folder + "/disk.raw" }
    private var layer: String { folder + "/layer" }

    init() throws {
        try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: true)
        try Disk.createRaw(folder + "/disk.raw", size: 1 << 20)
    }

    deinit { try? FileManager.default.removeItem(atPath: folder) }

    private func write(_ byte: UInt8, at offset: UInt64, _ backend: DiskBackend) throws {
        try backend.write(TransferBuffer([UInt8](repeating: byte, count: 512)), at: offset)
    }

    private func read(at offset: UInt64, _ backend: DiskBackend) throws -> UInt8? {
        let buffer = TransferBuffer(count: 512)
        try backend.read(at: offset, into: buffer)
        return buffer.bytes.first
    }

    private func open() throws -> DiskBackend {
        try DiskBackend(DiskConfiguration(path: path)) { (path, options) throws(StorageError) in
            try Disk.open(path, options)
        }
    }

    @Test("While its image is exchanged a disk is as large and as writable as ever")
    func constants() throws {
        let holder = Mutex<DiskBackend?>(nil)
        let seen = Mutex<[Bool]>([])
        let backend = try DiskBackend(DiskConfiguration(path: path)) { (path, options) throws(StorageError) in
            if let backend = holder.withLock({ $0 }) {
                seen.withLock { $0.append(!backend.isReadOnly && backend.byteCount == 1 << 20) }
            }
            return try Disk.open(path, options)
        }
        holder.withLock { $0 = backend }
        defer { holder.withLock { $0 = nil } }
        try backend.lay(as: layer)
        #expect(seen.withLock { $0 } == [true])
        #expect(!backend.isReadOnly && backend.byteCount == 1 << 20)
    }

    @Test("An image that can't be opened again is when it is needed next")
    func busy() throws {
        let isBusy = Mutex(false)
        let backend = try DiskBackend(DiskConfiguration(path: path)) { (path, options) throws(StorageError) in
            if isBusy.withLock({ $0 }) { throw StorageError(.inUse, "disk \(path): is already in use") }
            return try Disk.open(path, options)
        }
        try write(5, at: 4096, backend)
        isBusy.withLock { $0 = true }
        try backend.lay(as: layer)
        #expect(throws: (any Error).self) { try self.read(at: 4096, backend) }
        #expect(throws: (any Error).self) { try backend.flush() }
        isBusy.withLock { $0 = false }
        #expect(try read(at: 4096, backend) == 5)
        try write(6, at: 4096, backend)
        try backend.flush()
        #expect(try read(at: 4096, backend) == 6)
        let kept = try FileHandle(forReadingFrom: URL(fileURLWithPath: layer))
        try kept.seek(toOffset: 4096)
        #expect(try kept.read(upToCount: 1) == Data([5]))
    }

    @Test("A format that was named is that of the image, not of what is laid over it")
    func format() throws {
        let disk = DiskConfiguration(path: path, options: DiskOptions(format: .raw))
        let backend = try DiskBackend(disk) { (path, options) throws(StorageError) in try Disk.open(path, options) }
        try write(5, at: 4096, backend)
        try backend.lay(as: layer)
        try write(6, at: 0, backend)
        try backend.lay(as: layer + "2")
        #expect(try read(at: 4096, backend) == 5)
        #expect(try read(at: 0, backend) == 6)
    }

    @Test("A layer that can't be made leaves the disk as it was")
    func noLayer() throws {
        try Data([1, 2, 3]).write(to: URL(fileURLWithPath: layer))
        let backend = try open()
        try write(5, at: 4096, backend)
        #expect(throws: (any Error).self) { try backend.lay(as: self.layer) }
        #expect(try read(at: 4096, backend) == 5)
        #expect(try Data(contentsOf: URL(fileURLWithPath: layer)) == Data([1, 2, 3]))
    }

    @Test("A layer that the disk stands on stays, though its folder can't be synchronized", .enabled(if: getuid() != 0))
    func unsynchronized() throws {
        let backend = try open()
        try write(5, at: 4096, backend)
        // Files come and go there, but it can't be opened.
        chmod(folder, 0o300)
        #expect(throws: (any Error).self) { try backend.lay(as: self.layer) }
        chmod(folder, 0o700)
        #expect(try read(at: 4096, backend) == 5)
        #expect(access(layer, F_OK) == 0)
        #expect(try DiskReport.base(of: path) == "layer")
    }
}
