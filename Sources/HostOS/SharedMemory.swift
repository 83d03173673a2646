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
        guard
            let address = mmap(
                nil, span, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0),
            address != MAP_FAILED
        else {
            let error = HostError.last("reserve \(span) bytes of address space")
            close(descriptor)
            throw error
        }
        base = address
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
