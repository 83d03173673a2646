// What disk image formats need of a file: making one, its length, which parts hold data.
internal import Glibc

extension FileDescriptor {
    /// Makes a file to be a disk; it must not exist yet unless `replacing`.
    public static func createDisk(_ path: String, replacing: Bool = false) throws(HostError) -> FileDescriptor {
        try open(path, O_RDWR | O_CREAT | (replacing ? O_TRUNC : O_EXCL))
    }

    /// Opens a file that is to become a disk, with what it holds, or makes one.
    public static func openOrCreateDisk(_ path: String) throws(HostError) -> FileDescriptor {
        try open(path, O_RDWR | O_CREAT)
    }

    /// Writes all bytes at `offset`.
    public func write(_ bytes: ArraySlice<UInt8>, at offset: UInt64) throws(HostError) {
        try bytes.withScatterList { (list) throws(HostError) in try write(list, at: offset) }
    }

    /// Sets the file's length (`ftruncate(2)`).
    public func setByteCount(_ count: UInt64) throws(HostError) {
        _ = try retrying("truncate") { ftruncate(rawValue, Int(truncatingIfNeeded: count)) }
    }

    /// Takes room for a range on the host's disk (`posix_fallocate(3)`).
    public func allocate(at offset: UInt64, length: UInt64) throws(HostError) {
        if length == 0 { return }
        var code: Int32
        repeat {
            code = posix_fallocate(rawValue, Int(truncatingIfNeeded: offset), Int(truncatingIfNeeded: length))
        } while code == EINTR
        if code != 0 { throw HostError("allocate", errno: code) }
    }

    /// The next part at or after `offset` that may hold data; nil if there is nothing but a hole to the end.
    ///
    /// - Spec: `lseek(2)`, SEEK_DATA and SEEK_HOLE
    public func nextData(at offset: UInt64) throws(HostError) -> Range<UInt64>? {
        let (seekData, seekHole): (Int32, Int32) = (3, 4)
        let start = lseek(rawValue, Int(truncatingIfNeeded: offset), seekData)
        if start < 0 {
            if errno == ENXIO { return nil }
            if errno == EINVAL { return offset..<max(offset, try byteCount()) }
            throw HostError.last("seek data")
        }
        let end = try retrying("seek hole") { lseek(rawValue, start, seekHole) }
        return UInt64(start)..<UInt64(max(start, end))
    }

    /// The file system's and the file's number, which tell whether two descriptors are of one file.
    public var identity: [UInt64] {
        var status = stat()
        guard fstat(rawValue, &status) == 0 else { return [] }
        return [UInt64(status.st_dev), UInt64(status.st_ino)]
    }
}
