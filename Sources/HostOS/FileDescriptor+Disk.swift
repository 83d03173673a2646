// Files and block devices as disks: positioned transfers, durability, holes, locks.
internal import CHost
internal import Glibc

/// What a path names.
public enum FileKind: Sendable, Equatable {
    /// A regular file.
    case regular
    /// A directory.
    case directory
    /// A block device.
    case blockDevice
    /// A pipe, socket, terminal or the like.
    case other
}

/// How a file is opened as a disk.
public enum DiskAccess: Sendable, Equatable {
    /// Reading only.
    case readOnly
    /// Reading and writing.
    case readWrite
}

extension FileDescriptor {
    /// Opens a file or block device as a disk; `isDirect` goes past the host's cache (`O_DIRECT`).
    public static func openDisk(
        _ path: String, _ access: DiskAccess, isDirect: Bool = false
    ) throws(HostError) -> FileDescriptor {
        // A limit on the length of files is to be an error of the write, not the end of the process.
        Glibc.signal(SIGXFSZ, SIG_IGN)
        let flags = (access == .readOnly ? O_RDONLY : O_RDWR) | O_NONBLOCK
        return try open(path, flags | (isDirect ? roost_direct_flag() : 0))
    }

    /// What it is.
    public var kind: FileKind {
        var status = stat()
        guard fstat(rawValue, &status) == 0 else { return .other }
        switch status.st_mode & S_IFMT {
        case S_IFREG: return .regular
        case S_IFDIR: return .directory
        case S_IFBLK: return .blockDevice
        default: return .other
        }
    }

    /// Bytes in the file or block device now.
    public func byteCount() throws(HostError) -> UInt64 {
        var status = stat()
        guard fstat(rawValue, &status) == 0 else { throw HostError.last("stat") }
        if status.st_mode & S_IFMT == S_IFBLK {
            var bytes: UInt64 = 0
            guard roost_block_size(rawValue, &bytes) == 0 else { throw HostError.last("size of block device") }
            return bytes
        }
        return UInt64(max(0, status.st_size))
    }

    /// Reads up to `count` bytes from `offset`; fewer only at the end of the file (`pread(2)`).
    public func read(at offset: UInt64, count: Int) throws(HostError) -> [UInt8] {
        var failure: HostError?
        let bytes = [UInt8](unsafeUninitializedCapacity: count) { buffer, filled in
            while filled < count {
                let got = pread(
                    rawValue, buffer.baseAddress! + filled, count - filled, Int(truncatingIfNeeded: offset) &+ filled)
                if got > 0 { filled += got }
                if got == 0 { break }
                if got < 0 && errno != EINTR {
                    failure = HostError.last("read")
                    break
                }
            }
        }
        if let failure { throw failure }
        return bytes
    }

    /// Writes all bytes at `offset` (`pwrite(2)`).
    public func write(_ bytes: [UInt8], at offset: UInt64) throws(HostError) { try write(bytes[...], at: offset) }

    /// Makes everything written durable (`fdatasync(2)`).
    public func synchronize() throws(HostError) { _ = try retrying("fdatasync") { fdatasync(rawValue) } }

    /// Gives a range back to the host: a hole in a file, a discard on a block device. False if it can't be done here.
    public func discard(at offset: UInt64, length: UInt64) throws(HostError) -> Bool {
        if length == 0 { return true }
        return try supported("discard") {
            kind == .blockDevice
                ? roost_block_discard(rawValue, offset, length)
                : roost_fallocate(rawValue, 0, Int64(truncatingIfNeeded: offset), Int64(truncatingIfNeeded: length))
        }
    }

    /// Makes a range read as zeroes without writing them. False if it can't be done here.
    public func zero(at offset: UInt64, length: UInt64) throws(HostError) -> Bool {
        if length == 0 { return true }
        return try supported("write zeroes") {
            kind == .blockDevice
                ? roost_block_zero(rawValue, offset, length)
                : roost_fallocate(rawValue, 1, Int64(truncatingIfNeeded: offset), Int64(truncatingIfNeeded: length))
        }
    }

    private func supported(_ operation: String, _ call: () -> Int32) throws(HostError) -> Bool {
        do { _ = try retrying(operation, call) } catch {
            if [EOPNOTSUPP, ENOSYS, ENOTTY, EINVAL].contains(error.errno) { return false }
            throw error
        }
        return true
    }

    /// Locks the whole file for as long as it is open; false if another holds a lock that conflicts.
    ///
    /// An open file description lock (`fcntl(2)`): shared ones stand together, an exclusive one alone.
    public func lock(exclusive: Bool) throws(HostError) -> Bool {
        do { _ = try retrying("lock") { roost_lock_file(rawValue, exclusive ? 1 : 0) } } catch {
            if error.errno == EAGAIN || error.errno == EACCES { return false }
            throw error
        }
        return true
    }

    /// Whether another holds a lock on the same file; takes none.
    public var isLockedElsewhere: Bool {
        // The kernel names no holder of an open file description lock: -1, as for none, so the lock itself is asked for.
        roost_is_locked(rawValue) != 0
    }

    /// The process that holds a lock on the same file, if it can be found out.
    ///
    /// The kernel doesn't name holders of open file description locks, but shows a lock among the details of its
    /// descriptor in `/proc`.
    public func lockHolder(exclusive: Bool) -> Int32? {
        let holder = roost_lock_holder(rawValue, exclusive ? 1 : 0)
        if holder > 0 { return holder }
        var own = stat()
        guard fstat(rawValue, &own) == 0 else { return nil }
        for process in Self.entries("/proc") where Int32(process) != nil {
            for descriptor in Self.entries("/proc/\(process)/fd") {
                var other = stat()
                guard !(process == "\(getpid())" && descriptor == "\(rawValue)"),
                    stat("/proc/\(process)/fd/\(descriptor)", &other) == 0, other.st_ino == own.st_ino,
                    other.st_dev == own.st_dev,
                    let details = Self.text("/proc/\(process)/fdinfo/\(descriptor)"), details.contains("lock:")
                else { continue }
                return Int32(process)
            }
        }
        return nil
    }

    private static func entries(_ path: String) -> [String] {
        guard let directory = opendir(path) else { return [] }
        defer { closedir(directory) }
        var names: [String] = []
        while let entry = readdir(directory) {
            let name = withUnsafeBytes(of: &entry.pointee.d_name) { bytes in
                String(decoding: bytes.prefix { $0 != 0 }, as: UTF8.self)
            }
            if !name.hasPrefix(".") { names.append(name) }
        }
        return names
    }

    private static func text(_ path: String) -> String? {
        guard let file = try? open(path, O_RDONLY), let bytes = try? file.read(at: 0, count: 4096) else { return nil }
        return String(decoding: bytes, as: UTF8.self)
    }
}
