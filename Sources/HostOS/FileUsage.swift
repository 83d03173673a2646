// How much of the host's disk a file takes.
internal import Glibc

/// Space on the host's file systems.
public enum FileUsage {
    /// Bytes allocated to a file, holes left out; zero if it cannot be looked at.
    public static func allocatedBytes(_ path: String) -> Int64 {
        var status = stat()
        guard lstat(path, &status) == 0 else { return 0 }
        return Int64(status.st_blocks) * 512
    }
}
