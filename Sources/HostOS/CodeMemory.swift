// Memory for generated code: one memfd mapped twice, writable at one place, executable at another, never both at once.
internal import CHost
internal import Glibc

/// A span of generated code.
///
/// Invariant: both mappings cover `size` bytes until the value is destroyed.
public final class CodeMemory: @unchecked Sendable {
    /// Where code is written.
    public let writable: UnsafeMutablePointer<UInt8>
    /// Where the same bytes are executed.
    public let executable: UnsafeRawPointer
    /// Bytes in each mapping.
    public let size: Int

    /// Makes `size` bytes, a multiple of the page size.
    ///
    /// perf names code by /tmp/perf-PID.map only in memory that has no file: where `isAnonymous`, a shared mapping without
    /// one is mapped a second time instead of a memfd.
    public init(size: Int, isAnonymous: Bool = false) throws(HostError) {
        self.size = size
        if isAnonymous {
            (writable, executable) = try Self.mapAnonymous(size)
            return
        }
        let file = try retrying("memfd_create") { roost_memfd_create("roost-code") }
        defer { close(file) }
        guard ftruncate(file, size) == 0 else { throw HostError.last("size a memfd to \(size) bytes") }
        guard let data = mmap(nil, size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0), data != MAP_FAILED else {
            throw HostError.last("map \(size) bytes for writing code")
        }
        guard let code = mmap(nil, size, PROT_READ | PROT_EXEC, MAP_SHARED, file, 0), code != MAP_FAILED else {
            let error = HostError.last("map \(size) bytes for executing code")
            munmap(data, size)
            throw error
        }
        writable = data.bindMemory(to: UInt8.self, capacity: size)
        executable = UnsafeRawPointer(code)
    }

    private static func mapAnonymous(
        _ size: Int
    ) throws(HostError) -> (writable: UnsafeMutablePointer<UInt8>, executable: UnsafeRawPointer) {
        guard let data = mmap(nil, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0), data != MAP_FAILED
        else { throw HostError.last("map \(size) bytes for writing code") }
        guard let code = roost_map_again(data, size), code != MAP_FAILED else {
            let error = HostError.last("map \(size) bytes for executing code")
            munmap(data, size)
            throw error
        }
        guard mprotect(code, size, PROT_READ | PROT_EXEC) == 0 else {
            let error = HostError.last("make \(size) bytes executable")
            munmap(data, size)
            munmap(code, size)
            throw error
        }
        return (data.bindMemory(to: UInt8.self, capacity: size), UnsafeRawPointer(code))
    }

    deinit {
        munmap(writable, size)
        munmap(UnsafeMutableRawPointer(mutating: executable), size)
    }
}
