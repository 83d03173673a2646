// Memory backed by a memfd, mapped at addresses of our choosing.
internal import CHost
internal import Glibc

/// A reserved span of host addresses in which parts of one memfd are mapped.
///
/// Invariant: every byte that `map` returned stays mapped until the value is destroyed.
public final class SharedMemory: @unchecked Sendable {
    /// First host address of the reserved span.
    public let base: UnsafeMutableRawPointer
    /// Length of the reserved span in bytes.
    public let span: Int
    /// The memfd that backs it.
    public let descriptor: Int32

    /// Reserves `span` bytes of host addresses and makes a sparse memfd of `size` bytes.
    public init(name: String, size: Int, span: Int) throws(HostError) {
        descriptor = try retrying("memfd_create") { roost_memfd_create(name) }
        guard ftruncate(descriptor, size) == 0 else {
            let error = HostError.last("size a memfd to \(size) bytes")
            close(descriptor)
            throw error
        }
        // At a multiple of a huge page, so that the memfd's can be mapped as such.
        let huge = 2 << 20
        guard
            let reserved = mmap(
                nil, span + huge, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0),
            reserved != MAP_FAILED
        else {
            let error = HostError.last("reserve \(span) bytes of address space")
            close(descriptor)
            throw error
        }
        let before = (huge - Int(bitPattern: reserved) % huge) % huge
        base = reserved + before
        if before > 0 { munmap(reserved, before) }
        munmap(base + (span + 4095) & ~4095, huge - before)
        self.span = span
    }

    /// Maps `length` bytes of the memfd from `fileOffset` at `base + offset`; all page multiples.
    public func map(offset: Int, fileOffset: Int, length: Int, writable: Bool = true, executable: Bool = false)
        throws(HostError)
    {
        precondition(offset >= 0 && length >= 0 && offset + length <= span)
        if length == 0 { return }
        let protection = PROT_READ | (writable ? PROT_WRITE : 0) | (executable ? PROT_EXEC : 0)
        let result = mmap(
            base + offset, length, protection, MAP_SHARED | MAP_FIXED | MAP_NORESERVE, descriptor, fileOffset)
        if result == MAP_FAILED { throw HostError.last("map \(length) bytes of guest memory") }
    }

    /// Fixes the memfd's size for good, whoever else has it: pages that it lost would end us with SIGBUS.
    public func fixSize() throws(HostError) {
        _ = try retrying("seal a memfd") { roost_seal_size(descriptor) }
    }

    /// Asks for huge pages in a part that is mapped (`madvise(2)`, MADV_HUGEPAGE).
    public func useHugePages(offset: Int, length: Int) throws(HostError) {
        precondition(offset >= 0 && length >= 0 && offset + length <= span)
        if length > 0, madvise(base + offset, length, 14) != 0 { throw HostError.last("use huge pages") }
    }

    /// Why the host gives no huge pages for shared memory; nil: it does.
    ///
    /// - Spec: Linux, Documentation/admin-guide/mm/transhuge.rst
    public static var obstacleToHugePages: String? {
        let path = "/sys/kernel/mm/transparent_hugepage/shmem_enabled"
        guard let bytes = try? HostFile.contents(of: path, limit: 4096) else {
            return "the host's kernel has no transparent huge pages"
        }
        let words = String(decoding: bytes, as: UTF8.self)
        if words.contains("[advise]") || words.contains("[always]") || words.contains("[within_size]")
            || words.contains("[force]")
        {
            return nil
        }
        return "the host gives none for shared memory; as root: echo advise >\(path)"
    }

    /// The first page from an offset in the memfd on that was ever touched, or the maximum.
    public func nextData(from offset: Int) -> Int {
        let found = lseek(descriptor, offset, roost_seek_data)
        return found < 0 ? .max : max(found & ~4095, offset)
    }

    /// The first page from an offset in the memfd on that was never touched.
    public func nextHole(from offset: Int) -> Int {
        let found = lseek(descriptor, offset, roost_seek_hole)
        return found < 0 ? .max : (found &+ 4095) & ~4095
    }

    deinit {
        munmap(base, span)
        close(descriptor)
    }
}
