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

    /// The file's number.
    public var rawValue: Int32 { file.rawValue }

    /// Whether a list goes past the cache as it is: whole blocks, in aligned memory.
    public func takes(_ list: ScatterList, at offset: UInt64) -> Bool {
        Self.isWhole(offset, list.count) && list.isAligned(to: Self.block)
            && list.pieces.count <= FileDescriptor.mostPieces
    }

    /// Fills a list, and returns how many bytes there were before the file's end; nil if those aren't whole blocks.
    public func read(at offset: UInt64, into list: ScatterList) throws(HostError) -> Int? {
        guard Self.isWhole(offset, list.count) else { return nil }
        return try inPieces(of: list, fills: true) { (part, place) throws(HostError) in
            try part.pieces.withUnsafeBufferPointer { (pieces) throws(HostError) in
                try retrying("read") {
                    preadv(
                        file.rawValue, pieces.baseAddress!, Int32(pieces.count),
                        Int(truncatingIfNeeded: offset) &+ place)
                }
            }
        }
    }

    /// Writes all bytes; false, and nothing written, if those aren't whole blocks.
    public func write(_ list: ScatterList, at offset: UInt64) throws(HostError) -> Bool {
        guard Self.isWhole(offset, list.count) else { return false }
        let done = try inPieces(of: list, fills: false) { (part, place) throws(HostError) in
            let put = try part.pieces.withUnsafeBufferPointer { (pieces) throws(HostError) in
                try retrying("write") {
                    pwritev(
                        file.rawValue, pieces.baseAddress!, Int32(pieces.count),
                        Int(truncatingIfNeeded: offset) &+ place)
                }
            }
            // What is left of a block can't be written this way.
            guard put > 0, put & (Self.block - 1) == 0 else { throw HostError("write", errno: EIO) }
            return put
        }
        return done == list.count
    }

    /// Moves a list in parts that are aligned, each by one call: its own memory, or other memory that is copied. Ends
    /// where a read gets less than it asked for: that is the file's end, perhaps inside a block.
    private func inPieces(
        of list: ScatterList, fills: Bool, _ move: (ScatterList, Int) throws(HostError) -> Int
    ) throws(HostError) -> Int {
        let isAligned = takes(list, at: 0)
        let size = isAligned ? list.count : min(list.count, Self.piece)
        let memory = UnsafeMutableRawBufferPointer.allocate(byteCount: isAligned ? 0 : size, alignment: Self.block)
        defer { memory.deallocate() }
        var done = 0
        while done < list.count {
            let part = list[done..<min(list.count, done + size)]
            let bounce =
                isAligned ? part : ScatterList(lent: UnsafeMutableRawBufferPointer(rebasing: memory[..<part.count]))
            if !isAligned && !fills { part.copy(to: memory) }
            let moved = try move(bounce, done)
            if !isAligned && fills { part.prefix(moved).copy(from: UnsafeRawBufferPointer(memory)) }
            done += moved
            if fills && moved < part.count { break }
        }
        return done
    }
}
