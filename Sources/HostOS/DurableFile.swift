// Files and folders that appear, change and go as a whole.
internal import Glibc

/// Changes to the file system that are there wholly or not at all, whatever happens meanwhile.
public enum DurableFile {
    /// Writes a file: beside it, to the disk, then in its place. Not synchronized, it may be empty after a power failure,
    /// but is whole for all who read it meanwhile.
    public static func write(
        _ bytes: [UInt8], to path: String, mode: UInt32 = 0o600, isSynchronized: Bool = true
    ) throws(HostError) {
        let temporary = "\(path).\(getpid()).new"
        unlink(temporary)
        do {
            let file = try FileDescriptor.open(temporary, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW, mode: mode)
            try file.write(bytes[...], at: 0)
            if isSynchronized { _ = try retrying("sync \(path)") { fsync(file.rawValue) } }
            try move(temporary, to: path, isSynchronized: isSynchronized)
        } catch {
            unlink(temporary)
            throw error
        }
    }

    /// Whether a name is one that `write` gives to what isn't in its place yet.
    public static func isHalfWritten(_ name: String) -> Bool {
        let words = name.split(separator: ".", omittingEmptySubsequences: false)
        return words.count > 2 && words.last == "new" && Int32(words[words.count - 2]) != nil
    }

    /// Puts a file in the place of another, for good; `HostFile.rename` replaces nothing.
    public static func move(_ path: String, to other: String, isSynchronized: Bool = true) throws(HostError) {
        guard rename(path, other) == 0 else { throw HostError.last("rename \(path) to \(other)") }
        if isSynchronized { try synchronize(folder(of: other)) }
    }

    /// Puts what a file or folder holds on the disk.
    public static func synchronize(_ path: String) throws(HostError) {
        let descriptor = try FileDescriptor.open(path, O_RDONLY)
        _ = try retrying("sync \(path)") { fsync(descriptor.rawValue) }
    }

    private static func folder(of path: String) -> String {
        guard let slash = path.lastIndex(of: "/") else { return "." }
        return slash == path.startIndex ? "/" : String(path[..<slash])
    }

    /// Gives a file one more name; false where the file systems don't allow that.
    public static func link(_ path: String, as other: String) throws(HostError) -> Bool {
        if Glibc.link(path, other) == 0 { return true }
        if [EXDEV, EPERM, EMLINK, EOPNOTSUPP].contains(errno) { return false }
        throw HostError.last("link \(path) as \(other)")
    }

    /// How many names a file has.
    public static func names(of path: String) -> Int {
        var status = stat()
        return stat(path, &status) == 0 ? Int(status.st_nlink) : 0
    }

    /// Opens the lock file of a folder for as long as the result is kept, without taking the lock.
    public static func openLock(_ path: String) throws(HostError) -> FileDescriptor {
        try FileDescriptor.open(path, O_RDWR | O_CREAT | O_NOFOLLOW, mode: 0o600)
    }
}

/// A text file that grows up to a limit; then it becomes `PATH.1`, and a new one begins.
public struct LimitedLog: ~Copyable, Sendable {
    private let path: String
    private let limit: Int
    private var file: FileDescriptor
    private var count: Int

    /// Opens it, to go on at its end.
    public init(path: String, limit: Int) throws(HostError) {
        let opened = try Self.open(path)
        count = Int(clamping: try opened.byteCount())
        file = opened
        self.path = path
        self.limit = limit
    }

    private static func open(_ path: String) throws(HostError) -> FileDescriptor {
        try FileDescriptor.open(path, O_WRONLY | O_CREAT | O_APPEND | O_NOFOLLOW, mode: 0o600)
    }

    /// Adds bytes; what the disk has no room for is lost.
    public mutating func append(_ bytes: [UInt8]) {
        if count >= limit, rename(path, path + ".1") == 0, let next = try? Self.open(path) {
            file = next
            count = 0
        }
        if ByteStream(writing: file.rawValue).write(bytes) == nil { count += bytes.count }
    }
}
