// A file or block device past the host's cache (`O_DIRECT`): whole blocks, from and to aligned memory.
internal import Glibc

/// A disk whose transfers don't go through the host's cache.
///
/// What isn't whole blocks is left to a descriptor that uses the cache; the kernel keeps the two in agreement.
public final class DirectFile: Sendable {
    private let file: FileDescriptor
    /// Bytes of a block: what all of today's disks and file systems take.
    private static let block = 4096
    /// Bytes moved at once.
    private static let piece = 1 << 20

    /// Opens a disk; fails with EINVAL where the file system has only cached transfers.
    public init(_ path: String, _ access: DiskAccess) throws(HostError) {
        file = try FileDescriptor.openDisk(path, access, isDirect: true)
    }

    /// See `FileDescriptor.identity`.
    public var identity: [UInt64] { file.identity }

    private static func isWhole(_ offset: UInt64, _ count: Int) -> Bool {
        (offset | UInt64(count)) & UInt64(block - 1) == 0 && count > 0
    }

    /// Fills `range` of an array, and returns how many bytes there were before the file's end; nil if those aren't whole
    /// blocks.
    public func read(at offset: UInt64, into bytes: inout [UInt8], _ range: Range<Int>) throws(HostError) -> Int? {
        precondition(range.lowerBound >= 0 && range.upperBound <= bytes.count)
        guard Self.isWhole(offset, range.count) else { return nil }
        let size = min(range.count, Self.piece)
        let memory = UnsafeMutableRawPointer.allocate(byteCount: size, alignment: Self.block)
        defer { memory.deallocate() }
        var filled = 0
        while filled < range.count {
            let wanted = min(size, range.count - filled)
            let got = try retrying("read") {
                pread(file.rawValue, memory, wanted, Int(truncatingIfNeeded: offset) &+ filled)
            }
            bytes.withUnsafeMutableBytes { buffer in
                (buffer.baseAddress! + range.lowerBound + filled).copyMemory(from: memory, byteCount: got)
            }
            filled += got
            // The file's end, perhaps inside a block.
            if got < wanted { break }
        }
        return filled
    }

    /// Writes all bytes; false, and nothing written, if those aren't whole blocks.
    public func write(_ bytes: ArraySlice<UInt8>, at offset: UInt64) throws(HostError) -> Bool {
        guard Self.isWhole(offset, bytes.count) else { return false }
        let size = min(bytes.count, Self.piece)
        let memory = UnsafeMutableRawPointer.allocate(byteCount: size, alignment: Self.block)
        defer { memory.deallocate() }
        var done = 0
        while done < bytes.count {
            let wanted = min(size, bytes.count - done)
            bytes.withUnsafeBytes { memory.copyMemory(from: $0.baseAddress! + done, byteCount: wanted) }
            let put = try retrying("write") {
                pwrite(file.rawValue, memory, wanted, Int(truncatingIfNeeded: offset) &+ done)
            }
            // What is left of a block can't be written this way.
            guard put > 0, put & (Self.block - 1) == 0 else { throw HostError("write", errno: EIO) }
            done += put
        }
        return true
    }
}
