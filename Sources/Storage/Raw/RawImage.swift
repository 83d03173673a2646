// A raw disk image: a file or a block device, byte for byte.
public import HostOS

/// A raw disk image, locked for as long as it is open.
///
/// Its size is fixed when it is opened, rounded down to whole sectors of 512 bytes; an access to what has been cut off
/// since then fails.
public final class RawImage: DiskImage {
    /// Where it was opened.
    public let path: String
    /// Bytes, a multiple of 512.
    public let byteCount: UInt64
    /// Whether writes fail.
    public let isReadOnly: Bool
    /// Something the user should know, in one line.
    public let note: String?
    /// Raw.
    public var format: DiskFormat { .raw }

    private let file: ImageFile
    private let isGuessed: Bool
    private let roundsUp: Bool

    /// Opens and locks an image.
    public convenience init(path: String, readOnly: Bool) throws(StorageError) {
        try self.init(file: try ImageFile(path: path, readOnly: readOnly))
    }

    /// An open file as a raw image.
    ///
    /// `isGuessed` says that its content decided that it is raw: then the guest must not write a first sector that
    /// would make it another format the next time, one that could name any of the host's files as its base.
    /// `roundsUp` has a last sector that isn't whole filled with zeroes, as images do with their bases.
    init(file: ImageFile, isGuessed: Bool = false, roundsUp: Bool = false) throws(StorageError) {
        path = file.path
        let size: UInt64
        do { size = try file.byteCount() } catch { throw StorageError(.host, "disk \(file.path): \(error)") }
        guard size >= 512 || roundsUp else {
            throw StorageError(.empty, "disk \(path): holds \(size) bytes, less than one sector of 512")
        }
        let rest = size & 511
        byteCount = (size & ~511) &+ (roundsUp && rest != 0 ? 512 : 0)
        note = rest == 0 || roundsUp ? nil : "disk \(path): its last \(rest) bytes don't fill a sector and are left out"
        isReadOnly = file.isReadOnly
        self.file = file
        self.isGuessed = isGuessed
        self.roundsUp = roundsUp
    }

    /// Checks a range against the size now: a file may have shrunk since it was opened.
    private func check(_ offset: UInt64, _ length: UInt64) throws {
        try checkWritable(offset, length)
        if !file.isBlockDevice, try file.byteCount() < offset + length {
            throw StorageError(.outOfRange, "disk \(path): has shrunk while in use")
        }
    }

    /// Fills memory from `offset`.
    public func read(at offset: UInt64, into list: ScatterList) throws {
        try checkRange(offset, UInt64(list.count))
        guard try file.read(at: offset, into: list) == list.count || roundsUp else {
            throw StorageError(.outOfRange, "disk \(path): has shrunk while in use")
        }
    }

    /// Where it is in the file; the first sector is written by `write`, which looks at it.
    public func place(of list: ScatterList, at offset: UInt64, forWriting: Bool) throws -> FilePlace? {
        if forWriting {
            try check(offset, UInt64(list.count))
            if isGuessed && offset < 512 { return nil }
        } else {
            try checkRange(offset, UInt64(list.count))
        }
        return file.place(of: list, at: offset)
    }

    /// Writes memory at `offset`.
    public func write(_ list: ScatterList, at offset: UInt64) throws {
        try check(offset, UInt64(list.count))
        var (place, rest) = (offset, list)
        if isGuessed && offset < 512 {
            // A copy: what is looked at is what is written.
            let bytes = list.prefix(512 - Int(offset)).load()
            try refuseDisguise(bytes, at: Int(offset))
            try file.write(bytes, at: offset)
            place += UInt64(bytes.count)
            rest = list.dropFirst(bytes.count)
        }
        if rest.count > 0 { try file.write(rest, at: place) }
    }

    private func refuseDisguise(_ bytes: [UInt8], at offset: Int) throws {
        var sector = try read(at: 0, count: 512)
        sector.replaceSubrange(offset..<offset + bytes.count, with: bytes)
        let disguise = DiskFormat.detect(sector)
        guard disguise == .raw else {
            throw StorageError(
                .notWritable,
                "disk \(path): the guest wrote the header of a \(disguise) image; give format=raw to allow that")
        }
    }

    /// Makes everything written durable.
    public func flush() throws { try file.synchronize() }

    /// Gives a range back to the host; what it reads as is undefined.
    public func discard(at offset: UInt64, length: UInt64) throws {
        try check(offset, length)
        _ = try file.discard(at: offset, length: length)
    }

    /// Makes a range read as zeroes; `mayUnmap` allows a hole.
    public func writeZeroes(at offset: UInt64, length: UInt64, mayUnmap: Bool) throws {
        try check(offset, length)
        if mayUnmap, !file.isBlockDevice, try file.discard(at: offset, length: length) { return }
        if try file.zero(at: offset, length: length) { return }
        let zeroes = [UInt8](repeating: 0, count: Int(min(length, 1 << 20)))
        var done: UInt64 = 0
        while done < length {
            let part = min(UInt64(zeroes.count), length - done)
            try file.write(zeroes[..<Int(part)], at: offset + done)
            done += part
        }
    }

    /// A hole or data, as the file system has it.
    public func extent(at offset: UInt64, limit: UInt64) throws -> DiskExtent {
        try checkRange(offset, limit)
        return try file.extent(at: offset, limit: limit)
    }

    /// Changes the file's length; the image must be opened anew afterwards.
    func resize(to size: UInt64) throws {
        guard !file.isBlockDevice, size >= 512, size & 511 == 0, size <= 1 << 62 else {
            throw StorageError(.badRequest, "disk \(path): its size must be a multiple of 512, and a file's")
        }
        try file.setByteCount(size)
    }

    /// Makes a new file of `size` bytes.
    static func create(
        path: String, size: UInt64, preallocation: Preallocation, replacing: Bool = false
    ) throws -> RawImage {
        guard size >= 512, size & 511 == 0, size <= 1 << 62 else {
            throw StorageError(.badRequest, "disk \(path): its size must be a multiple of 512, and not zero")
        }
        let file = try ImageFile(creating: path, replacing: replacing)
        do {
            try file.setByteCount(size)
            if preallocation != .off && preallocation != .metadata { try file.allocate(at: 0, length: size) }
            return try RawImage(file: file)
        } catch {
            file.unlink()
            throw error
        }
    }
}
