// A raw disk image: a file or a block device, byte for byte.
internal import Glibc
internal import HostOS

/// A raw disk image, locked for as long as it is open.
///
/// One machine may write an image, or several may read it. Its size is fixed when it is opened, rounded down to whole
/// sectors of 512 bytes; an access to what has been cut off since then fails.
public final class RawImage: Sendable {
    /// Where it was opened.
    public let path: String
    /// Bytes, a multiple of 512.
    public let byteCount: UInt64
    /// Whether writes fail.
    public let isReadOnly: Bool
    /// Something the user should know, in one line.
    public let note: String?

    private let file: FileDescriptor
    private let isBlockDevice: Bool

    /// Opens and locks an image.
    public init(path: String, readOnly: Bool) throws(StorageError) {
        let file: FileDescriptor
        do { file = try FileDescriptor.openDisk(path, readOnly ? .readOnly : .readWrite) } catch {
            throw Self.explain(error, path, readOnly)
        }
        switch file.kind {
        case .regular: isBlockDevice = false
        case .blockDevice: isBlockDevice = true
        case .directory: throw StorageError(.directory, "disk \(path): is a directory")
        case .other: throw StorageError(.notADisk, "disk \(path): is neither a file nor a block device")
        }
        do {
            guard try file.lock(exclusive: !readOnly) else {
                let holder = file.lockHolder(exclusive: !readOnly).map { " by process \($0)" } ?? ""
                throw StorageError(.inUse, "disk \(path): is already in use\(holder)")
            }
            let size = try file.byteCount()
            guard size >= 512 else {
                throw StorageError(.empty, "disk \(path): holds \(size) bytes, less than one sector of 512")
            }
            byteCount = size & ~511
        } catch let error as StorageError {
            throw error
        } catch {
            throw StorageError(.host, "disk \(path): \(error)")
        }
        let rest = (try? file.byteCount()).map { $0 & 511 } ?? 0
        note = rest == 0 ? nil : "disk \(path): its last \(rest) bytes don't fill a sector and are left out"
        self.path = path
        isReadOnly = readOnly
        self.file = file
    }

    private static func explain(_ error: HostError, _ path: String, _ readOnly: Bool) -> StorageError {
        switch error.errno {
        case ENOENT, ENOTDIR: return StorageError(.missing, "disk \(path): no such file")
        case EISDIR: return StorageError(.directory, "disk \(path): is a directory")
        case EROFS: return StorageError(.notWritable, "disk \(path): is on a read-only file system; add ,readonly")
        case EACCES, EPERM:
            if readOnly { return StorageError(.notReadable, "disk \(path): may not be read (\(error.reason))") }
            return StorageError(.notWritable, "disk \(path): is not writable; add ,readonly to read it")
        default: return StorageError(.host, "disk \(path): \(error.reason)")
        }
    }

    /// Checks a range against the size now: a file may have shrunk since it was opened.
    private func check(_ offset: UInt64, _ length: UInt64, forWriting: Bool) throws {
        guard offset <= byteCount, length <= byteCount - offset else {
            throw StorageError(.outOfRange, "disk \(path): access beyond its end")
        }
        guard forWriting else { return }
        if isReadOnly { throw StorageError(.notWritable, "disk \(path): is read-only") }
        if !isBlockDevice, try file.byteCount() < offset + length {
            throw StorageError(.outOfRange, "disk \(path): has shrunk while in use")
        }
    }

    /// Reads `count` bytes from `offset`.
    public func read(at offset: UInt64, count: Int) throws -> [UInt8] {
        try check(offset, UInt64(max(0, count)), forWriting: false)
        let bytes = try file.read(at: offset, count: max(0, count))
        guard bytes.count == count else {
            throw StorageError(.outOfRange, "disk \(path): has shrunk while in use")
        }
        return bytes
    }

    /// Writes bytes at `offset`.
    public func write(_ bytes: [UInt8], at offset: UInt64) throws {
        try check(offset, UInt64(bytes.count), forWriting: true)
        try file.write(bytes, at: offset)
    }

    /// Makes everything written durable.
    public func flush() throws { try file.synchronize() }

    /// Gives a range back to the host; what it reads as is undefined.
    public func discard(at offset: UInt64, length: UInt64) throws {
        try check(offset, length, forWriting: true)
        _ = try file.discard(at: offset, length: length)
    }

    /// Makes a range read as zeroes; `mayUnmap` allows a hole.
    public func writeZeroes(at offset: UInt64, length: UInt64, mayUnmap: Bool) throws {
        try check(offset, length, forWriting: true)
        if mayUnmap, !isBlockDevice, try file.discard(at: offset, length: length) { return }
        if try file.zero(at: offset, length: length) { return }
        let chunk: UInt64 = 1 << 20
        var done: UInt64 = 0
        while done < length {
            let part = min(chunk, length - done)
            try file.write([UInt8](repeating: 0, count: Int(part)), at: offset + done)
            done += part
        }
    }
}
