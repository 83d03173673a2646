// What stands behind a disk, whatever its format.
public import HostOS

/// A part of a disk that is all of one kind.
public struct DiskExtent: Sendable, Equatable {
    /// Bytes, at least one.
    public var length: UInt64
    /// It reads as zeroes, and reading it is a waste of time.
    public var isZero: Bool
}

/// A place in a file of the host.
public struct FilePlace: Sendable {
    /// The file, open as long as its image is.
    public var descriptor: Int32
    /// Bytes from its beginning.
    public var offset: UInt64
}

/// An open disk image: sectors of 512 bytes that can be read, and written unless it is read-only.
///
/// Transfers take a list of pieces of memory, the guest's own as a rule, which it may write to meanwhile.
public protocol DiskImage: AnyObject, Sendable {
    /// Where it was opened.
    var path: String { get }
    /// How it is stored.
    var format: DiskFormat { get }
    /// Bytes that the guest sees, a multiple of 512.
    var byteCount: UInt64 { get }
    /// Whether writes fail.
    var isReadOnly: Bool { get }
    /// Something the user should know, in one line.
    var note: String? { get }
    /// Whether it is somewhere else, and a transfer may take as long as somebody there wants.
    var isRemote: Bool { get }
    /// Fills memory from `offset`.
    func read(at offset: UInt64, into list: ScatterList) throws
    /// Writes memory at `offset`.
    func write(_ list: ScatterList, at offset: UInt64) throws
    /// Where all of a transfer goes in one file, if whoever asks may carry it out without the image's help; what fails, or
    /// ends early, is to be done again with `read` or `write`.
    func place(of list: ScatterList, at offset: UInt64, forWriting: Bool) throws -> FilePlace?
    /// Makes everything written durable.
    func flush() throws
    /// Says that a range isn't needed any more; what it reads as is undefined.
    func discard(at offset: UInt64, length: UInt64) throws
    /// Makes a range read as zeroes; `mayUnmap` allows to give the room back.
    func writeZeroes(at offset: UInt64, length: UInt64, mayUnmap: Bool) throws
    /// What is at `offset`, up to where that changes or `limit` bytes on.
    func extent(at offset: UInt64, limit: UInt64) throws -> DiskExtent
}

extension DiskImage {
    /// No.
    public var isRemote: Bool { false }

    /// Nowhere.
    public func place(of list: ScatterList, at offset: UInt64, forWriting: Bool) throws -> FilePlace? { nil }

    /// Fills `range` of an array from `offset`.
    public func read(at offset: UInt64, into bytes: inout [UInt8], _ range: Range<Int>) throws {
        try bytes.withScatterList(range) { try read(at: offset, into: $0) }
    }

    /// Reads `count` bytes from `offset`.
    public func read(at offset: UInt64, count: Int) throws -> [UInt8] {
        try checkRange(offset, UInt64(max(0, count)))
        var bytes = [UInt8](repeating: 0, count: max(0, count))
        try read(at: offset, into: &bytes, 0..<bytes.count)
        return bytes
    }

    /// Writes bytes at `offset`.
    public func write(_ bytes: ArraySlice<UInt8>, at offset: UInt64) throws {
        try bytes.withScatterList { try write($0, at: offset) }
    }

    /// Writes bytes at `offset`.
    public func write(_ bytes: [UInt8], at offset: UInt64) throws { try write(bytes[...], at: offset) }

    /// Throws if a range isn't inside the disk.
    func checkRange(_ offset: UInt64, _ length: UInt64) throws(StorageError) {
        let end = byteCount
        guard offset <= end, length <= end - offset else {
            throw StorageError(.outOfRange, "disk \(path): access beyond its end")
        }
    }

    /// Throws if the disk can't be written, or a range isn't inside it.
    func checkWritable(_ offset: UInt64, _ length: UInt64) throws(StorageError) {
        try checkRange(offset, length)
        if isReadOnly { throw StorageError(.notWritable, "disk \(path): is read-only") }
    }
}

/// An image that can only be read.
protocol ReadOnlyDiskImage: DiskImage {}

extension ReadOnlyDiskImage {
    /// Always.
    public var isReadOnly: Bool { true }
    /// Fails.
    public func write(_ list: ScatterList, at offset: UInt64) throws { try refuse() }
    /// Nothing to do.
    public func flush() throws {}
    /// Fails.
    public func discard(at offset: UInt64, length: UInt64) throws { try refuse() }
    /// Fails.
    public func writeZeroes(at offset: UInt64, length: UInt64, mayUnmap: Bool) throws { try refuse() }

    private func refuse() throws { throw StorageError(.notWritable, "disk \(path): is read-only") }
}
