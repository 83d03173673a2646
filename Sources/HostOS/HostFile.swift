// Whole files, and random bytes.
internal import CHost
internal import Glibc

/// Files read in one go.
public enum HostFile {
    /// All bytes of a regular file or pipe; fails with `EFBIG` beyond `limit` bytes.
    public static func contents(of path: String, limit: Int) throws(HostError) -> [UInt8] {
        let file = try FileDescriptor.open(path, O_RDONLY)
        var status = stat()
        guard fstat(file.rawValue, &status) == 0 else { throw HostError.last("stat \(path)") }
        switch status.st_mode & S_IFMT {
        case S_IFDIR: throw HostError("read \(path)", errno: EISDIR)
        case S_IFREG, S_IFIFO: break
        default: throw HostError("read \(path)", errno: EINVAL)
        }
        if status.st_size > limit { throw HostError("read \(path)", errno: EFBIG) }
        var bytes = [UInt8](repeating: 0, count: max(Int(status.st_size), 65536))
        var filled = 0
        while true {
            if filled == bytes.count {
                if filled >= limit { throw HostError("read \(path)", errno: EFBIG) }
                bytes.append(contentsOf: repeatElement(0, count: min(bytes.count, limit - filled)))
            }
            let count = bytes.count - filled
            let got = bytes.withUnsafeMutableBytes { read(file.rawValue, $0.baseAddress! + filled, count) }
            if got == 0 { break }
            if got > 0 { filled += got } else if errno != EINTR { throw HostError.last("read \(path)") }
        }
        bytes.removeSubrange(filled...)
        return bytes
    }
}

extension HostFile {
    /// Gives a file or folder another name, where nothing has it (`renameat2(2)`), and has the host keep that.
    public static func rename(_ old: String, to new: String) throws(HostError) {
        _ = try retrying("rename \(old) to \(new)") { roost_rename_new(old, new) }
        let folder = new.lastIndex(of: "/").map { String(new[..<$0]) } ?? "."
        let directory = try FileDescriptor.open(folder.isEmpty ? "/" : folder, O_RDONLY | O_DIRECTORY)
        _ = try retrying("fsync \(folder)") { fsync(directory.rawValue) }
    }
}

/// The host's random source.
public enum HostRandom {
    /// `count` random bytes (`getrandom(2)`).
    public static func bytes(_ count: Int) -> [UInt8] {
        var bytes = [UInt8](repeating: 0, count: max(0, count))
        var filled = 0
        while filled < bytes.count {
            let got = bytes.withUnsafeMutableBytes { roost_random($0.baseAddress! + filled, $0.count - filled) }
            if got > 0 { filled += Int(got) } else if errno != EINTR { break }
        }
        return bytes
    }
}

/// The host's memory.
public enum HostMemory {
    /// Has large blocks given back to the host when they are freed: before files as large as kernels are read.
    public static func keepHeapSmall() { roost_keep_heap_small() }

    /// Gives back what the heap holds and doesn't use.
    public static func trimHeap() { roost_trim_heap() }

    /// Bytes of RAM that the host has.
    public static var total: UInt64 {
        UInt64(max(0, sysconf(Int32(_SC_PHYS_PAGES)))) * UInt64(max(0, sysconf(Int32(_SC_PAGESIZE))))
    }
}
