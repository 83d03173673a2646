// Files by their place instead of by a path: what a guest may do in a folder never leaves it.
//
// A place is an O_PATH descriptor. From one to the next leads one name, which is neither `.` nor `..`, has no slash, and
// isn't followed if it is a symbolic link.
internal import CHost
internal import Glibc

/// What `stat(2)` tells.
public struct FileStatus: Sendable, Equatable {
    /// File system, number and, where it is known, the time it was made.
    public var device, inode, born: UInt64
    /// Which file it is: numbers are used again, at another time.
    public var identity: [UInt64] { [device, inode, born] }
    /// Length in bytes, blocks of 512 bytes, the file system's favorite block size.
    public var size, blocks, blockSize: UInt64
    /// Last access, change of contents, change of status: seconds and nanoseconds.
    public var times: [(seconds: UInt64, nanoseconds: UInt32)] { [accessed, modified, changed] }
    /// The three times.
    public var accessed, modified, changed: (seconds: UInt64, nanoseconds: UInt32)
    /// Type and permissions.
    public var mode: UInt32
    /// Names, owner, group, device number.
    public var links, user, group, special: UInt32

    /// Whether it is a folder.
    public var isFolder: Bool { mode & S_IFMT == S_IFDIR }
    /// Whether it is a regular file.
    public var isRegular: Bool { mode & S_IFMT == S_IFREG }
    /// Whether it is a symbolic link.
    public var isSymbolicLink: Bool { mode & S_IFMT == S_IFLNK }

    fileprivate init(_ status: stat, born: UInt64) {
        self.born = born
        func time(_ time: timespec) -> (UInt64, UInt32) {
            (UInt64(bitPattern: Int64(time.tv_sec)), UInt32(truncatingIfNeeded: time.tv_nsec))
        }
        (device, inode) = (UInt64(status.st_dev), UInt64(status.st_ino))
        size = UInt64(max(0, status.st_size))
        blocks = UInt64(max(0, status.st_blocks))
        blockSize = UInt64(max(0, status.st_blksize))
        (accessed, modified, changed) = (time(status.st_atim), time(status.st_mtim), time(status.st_ctim))
        mode = status.st_mode
        links = UInt32(clamping: status.st_nlink)
        (user, group) = (status.st_uid, status.st_gid)
        special = UInt32(truncatingIfNeeded: status.st_rdev)
    }

    /// Whether both are the same.
    public static func == (a: FileStatus, b: FileStatus) -> Bool {
        a.identity == b.identity && a.size == b.size && a.mode == b.mode && a.modified == b.modified
    }
}

/// A time to set: nil leaves it, `.max` nanoseconds are now.
public typealias NewTime = (seconds: Int64, nanoseconds: Int)?

/// A file, folder or link at its place.
public final class FolderPlace: Sendable {
    private let descriptor: FileDescriptor

    private init(_ descriptor: consuming FileDescriptor) { self.descriptor = descriptor }

    /// The folder at a path.
    public convenience init(folder path: String) throws(HostError) {
        self.init(try FileDescriptor.open(path, Int32(0o10000000) | O_DIRECTORY))
    }

    /// Whether a name leads from a folder to something directly in it.
    public static func isName(_ name: [UInt8]) -> Bool {
        1...255 ~= name.count && !name.contains(0) && !name.contains(UInt8(ascii: "/")) && name != [0x2E]
            && name != [0x2E, 0x2E]
    }

    private static func call(_ name: [UInt8], _ body: (UnsafePointer<CChar>) -> Int) throws(HostError) -> Int {
        guard isName(name) else { throw HostError("use a name", errno: EINVAL) }
        return try callText(name, body)
    }

    private static func callText(_ text: [UInt8], _ body: (UnsafePointer<CChar>) -> Int) throws(HostError) -> Int {
        let terminated = text.map { CChar(bitPattern: $0) } + [0]
        return try retrying("folder") { terminated.withUnsafeBufferPointer { body($0.baseAddress!) } }
    }

    /// What is there under a name.
    public func child(_ name: [UInt8]) throws(HostError) -> FolderPlace {
        let child = try Self.call(name) { Int(roost_open_child(descriptor.rawValue, $0)) }
        return FolderPlace(FileDescriptor(owning: Int32(child)))
    }

    /// What the host knows of it.
    public func status() throws(HostError) -> FileStatus {
        var status = stat()
        _ = try retrying("stat") { roost_stat_place(descriptor.rawValue, &status) }
        return FileStatus(status, born: roost_birth(descriptor.rawValue))
    }

    /// Opens a regular file or folder.
    public func open(_ flags: Int32) throws(HostError) -> FileDescriptor {
        FileDescriptor(owning: try retrying("open") { roost_reopen(descriptor.rawValue, flags) })
    }

    /// Opens a regular file of a name, and makes it if it isn't there.
    public func create(_ name: [UInt8], _ flags: Int32, mode: UInt32) throws(HostError) -> FileDescriptor {
        let file = try Self.call(name) { Int(roost_create(descriptor.rawValue, $0, flags, mode)) }
        return FileDescriptor(owning: Int32(file))
    }

    /// Makes a folder.
    public func makeFolder(_ name: [UInt8], mode: UInt32) throws(HostError) {
        _ = try Self.call(name) { Int(mkdirat(descriptor.rawValue, $0, mode)) }
    }

    /// Makes a regular file, a FIFO or a socket; no device.
    public func makeNode(_ name: [UInt8], mode: UInt32) throws(HostError) {
        guard [S_IFREG, S_IFIFO, S_IFSOCK].contains(mode & S_IFMT) else {
            throw HostError("make a device", errno: EPERM)
        }
        _ = try Self.call(name) { Int(mknodat(descriptor.rawValue, $0, mode, 0)) }
    }

    /// Makes a symbolic link, whose text nobody here follows.
    public func makeSymbolicLink(_ name: [UInt8], to text: [UInt8]) throws(HostError) {
        guard !text.isEmpty, !text.contains(0), text.count < Int(PATH_MAX) else {
            throw HostError("make a link", errno: ENAMETOOLONG)
        }
        let terminated = text.map { CChar(bitPattern: $0) } + [0]
        _ = try Self.call(name) { name in
            Int(terminated.withUnsafeBufferPointer { symlinkat($0.baseAddress!, descriptor.rawValue, name) })
        }
    }

    /// The text of a symbolic link.
    public func linkText() throws(HostError) -> [UInt8] {
        var bytes = [UInt8](repeating: 0, count: Int(PATH_MAX))
        let count = try retrying("readlink") {
            bytes.withUnsafeMutableBytes {
                roost_readlink_place(
                    descriptor.rawValue, $0.baseAddress!.assumingMemoryBound(to: CChar.self), UInt($0.count))
            }
        }
        return Array(bytes.prefix(Int(count)))
    }

    /// Takes a name out.
    public func remove(_ name: [UInt8], isFolder: Bool) throws(HostError) {
        _ = try Self.call(name) { Int(unlinkat(descriptor.rawValue, $0, isFolder ? Int32(AT_REMOVEDIR) : 0)) }
    }

    /// Gives a file another name; flags of `renameat2(2)`: 1 replaces nothing, 2 exchanges.
    public func rename(_ name: [UInt8], to folder: FolderPlace, _ other: [UInt8], flags: UInt32) throws(HostError) {
        guard Self.isName(other), flags <= 2 else { throw HostError("rename", errno: EINVAL) }
        let terminated = other.map { CChar(bitPattern: $0) } + [0]
        _ = try Self.call(name) { name in
            Int(
                terminated.withUnsafeBufferPointer {
                    roost_rename(descriptor.rawValue, name, folder.descriptor.rawValue, $0.baseAddress!, flags)
                })
        }
    }

    /// Gives it one more name in a folder.
    public func link(in folder: FolderPlace, as name: [UInt8]) throws(HostError) {
        _ = try Self.call(name) { Int(roost_link_place(descriptor.rawValue, folder.descriptor.rawValue, $0)) }
    }

    /// Sets permissions; not of a symbolic link.
    public func setMode(_ mode: UInt32) throws(HostError) {
        guard try !status().isSymbolicLink else { throw HostError("chmod", errno: EOPNOTSUPP) }
        _ = try retrying("chmod") { roost_chmod_place(descriptor.rawValue, mode) }
    }

    /// Sets owner and group; the maximum leaves one as it is.
    public func setOwner(_ user: UInt32, _ group: UInt32) throws(HostError) {
        _ = try retrying("chown") { roost_chown_place(descriptor.rawValue, user, group) }
    }

    /// Sets times of access and modification.
    public func setTimes(_ accessed: NewTime, _ modified: NewTime) throws(HostError) {
        // UTIME_NOW and UTIME_OMIT of <sys/stat.h>.
        let times = [accessed, modified].map { time in
            guard let time else { return timespec(tv_sec: 0, tv_nsec: (1 << 30) - 2) }
            return timespec(
                tv_sec: Int(time.seconds), tv_nsec: time.nanoseconds == .max ? (1 << 30) - 1 : time.nanoseconds)
        }
        _ = try retrying("utimens") {
            times.withUnsafeBufferPointer { roost_utimens_place(descriptor.rawValue, $0.baseAddress!) }
        }
    }
}

/// What `statvfs(3)` tells.
public struct FileSystemStatus: Sendable {
    /// Blocks: all, free, free for anyone; files: all, free.
    public var blocks, freeBlocks, availableBlocks, files, freeFiles: UInt64
    /// Block size, fragment size, longest name.
    public var blockSize, fragmentSize, longestName: UInt32
}

extension FileDescriptor {
    /// What its file system has.
    public func fileSystemStatus() throws(HostError) -> FileSystemStatus {
        var status = statvfs()
        _ = try retrying("statvfs") { fstatvfs(rawValue, &status) }
        return FileSystemStatus(
            blocks: UInt64(status.f_blocks), freeBlocks: UInt64(status.f_bfree),
            availableBlocks: UInt64(status.f_bavail), files: UInt64(status.f_files), freeFiles: UInt64(status.f_ffree),
            blockSize: UInt32(truncatingIfNeeded: status.f_bsize),
            fragmentSize: UInt32(truncatingIfNeeded: status.f_frsize),
            longestName: UInt32(truncatingIfNeeded: status.f_namemax))
    }

    /// What the host knows of the open file.
    public func fileStatus() throws(HostError) -> FileStatus {
        var status = stat()
        _ = try retrying("fstat") { fstat(rawValue, &status) }
        return FileStatus(status, born: roost_birth(rawValue))
    }

    /// Sets the permissions of the open file.
    public func setMode(_ mode: UInt32) throws(HostError) {
        _ = try retrying("fchmod") { fchmod(rawValue, mode) }
    }

    /// Writes all bytes at the end of the open file, wherever others have put that meanwhile.
    public func append(_ bytes: ArraySlice<UInt8>) throws(HostError) {
        var left = bytes
        while !left.isEmpty {
            let count = try retrying("append") {
                left.withUnsafeBytes { roost_append(rawValue, $0.baseAddress!, UInt($0.count)) }
            }
            left = left.dropFirst(count)
        }
    }

    /// Makes or removes room in a file; the modes of `fallocate(2)`.
    public func changeRoom(_ mode: Int32, at offset: UInt64, length: UInt64) throws(HostError) {
        guard let offset = Int64(exactly: offset), let length = Int64(exactly: length) else {
            throw HostError("fallocate", errno: EFBIG)
        }
        _ = try retrying("fallocate") { roost_fallocate_mode(rawValue, mode, offset, length) }
    }

    /// Where the next data (3) or hole (4) is from an offset on (`lseek(2)`).
    public func seek(_ offset: UInt64, whence: Int32) throws(HostError) -> UInt64 {
        guard let offset = Int(exactly: offset), whence == 3 || whence == 4 else {
            throw HostError("lseek", errno: EINVAL)
        }
        return UInt64(try retrying("lseek") { lseek(rawValue, offset, whence) })
    }

    /// Writes an open file to its disk.
    public func synchronize(dataOnly: Bool) throws(HostError) {
        _ = try retrying("fsync") { dataOnly ? fdatasync(rawValue) : fsync(rawValue) }
    }

    /// Has the host allow as many descriptors as it will; how many that is.
    public static func raiseLimit() -> Int { Int(clamping: roost_raise_descriptor_limit()) }
}

/// A folder that is being read.
///
/// Invariant: `stream` is used by one thread at a time, its owner's.
public final class FolderReader: @unchecked Sendable {
    private let stream: OpaquePointer
    private var place = 0

    /// Reads the folder that a descriptor stands for.
    public init(_ descriptor: consuming FileDescriptor) throws(HostError) {
        let copy = try retrying("dup") { fcntl(descriptor.rawValue, F_DUPFD_CLOEXEC, 0) }
        guard let stream = fdopendir(copy) else {
            close(copy)
            throw HostError.last("read folder")
        }
        self.stream = stream
    }

    deinit { closedir(stream) }

    /// Its descriptor's number.
    public var descriptor: Int32 { dirfd(stream) }

    /// The entry at a place that an earlier one named as its next, zero being the first; nil at the end.
    public func entry(at wanted: UInt64) -> (name: [UInt8], inode: UInt64, type: UInt32, next: UInt64)? {
        let wanted = Int(truncatingIfNeeded: wanted)
        if wanted != place { seekdir(stream, wanted) }
        guard let entry = readdir(stream) else {
            place = wanted
            return nil
        }
        place = Int(entry.pointee.d_off)
        let name = withUnsafeBytes(of: &entry.pointee.d_name) { Array($0.prefix { $0 != 0 }) }
        return (name, UInt64(entry.pointee.d_ino), UInt32(entry.pointee.d_type), UInt64(bitPattern: Int64(place)))
    }
}
