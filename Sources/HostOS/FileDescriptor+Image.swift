// What disk image formats need of a file: transfers in parts of a buffer, its length, which parts hold data.
internal import Glibc

extension FileDescriptor {
    /// Makes a file to be a disk; it must not exist yet unless `replacing`.
    public static func createDisk(_ path: String, replacing: Bool = false) throws(HostError) -> FileDescriptor {
        try open(path, O_RDWR | O_CREAT | (replacing ? O_TRUNC : O_EXCL))
    }

    /// Fills `range` of an array from `offset`; returns how many bytes there were before the end of the file.
    public func read(
        at offset: UInt64, into bytes: inout [UInt8], _ range: Range<Int>
    ) throws(HostError) -> Int {
        precondition(range.lowerBound >= 0 && range.upperBound <= bytes.count)
        var failure: HostError?
        var filled = 0
        bytes.withUnsafeMutableBytes { buffer in
            while filled < range.count {
                let got = pread(
                    rawValue, buffer.baseAddress! + range.lowerBound + filled, range.count - filled,
                    Int(truncatingIfNeeded: offset) &+ filled)
                if got > 0 { filled += got }
                if got == 0 { break }
                if got < 0 && errno != EINTR {
                    failure = HostError.last("read")
                    break
                }
            }
        }
        if let failure { throw failure }
        return filled
    }

    /// Writes all bytes at `offset` (`pwrite(2)`).
    public func write(_ bytes: ArraySlice<UInt8>, at offset: UInt64) throws(HostError) {
        var failure: HostError?
        bytes.withUnsafeBytes { buffer in
            var done = 0
            while done < buffer.count {
                let put = pwrite(
                    rawValue, buffer.baseAddress! + done, buffer.count - done, Int(truncatingIfNeeded: offset) &+ done)
                if put > 0 { done += put }
                if put == 0 || (put < 0 && errno != EINTR) {
                    failure = put == 0 ? HostError("write", errno: EIO) : HostError.last("write")
                    return
                }
            }
        }
        if let failure { throw failure }
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
