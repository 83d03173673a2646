// Memory in whole pages, which parts of files can be laid over.
internal import Glibc

/// Zero pages of this process, given out like `calloc`, that a file's pages can take the place of.
///
/// Invariant: what `allocate` returned is given to `free` with the same size, once.
public enum PageMemory {
    /// Bytes in a page of the host.
    public static let pageSize = 4096

    /// A size in whole pages.
    public static func rounded(_ size: Int) -> Int { (size + pageSize - 1) & ~(pageSize - 1) }

    /// Zero memory; untouched pages cost nothing. Without address space for it the process can't go on.
    public static func allocate(_ size: Int) -> UnsafeMutableRawPointer {
        let flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE
        guard let memory = mmap(nil, rounded(max(size, 1)), PROT_READ | PROT_WRITE, flags, -1, 0), memory != MAP_FAILED
        else { fatalError("no room for \(size) bytes") }
        return memory
    }

    /// Gives memory back.
    public static func free(_ memory: UnsafeMutableRawPointer, _ size: Int) { munmap(memory, rounded(max(size, 1))) }

    /// Lays a file's pages over memory: shared with other processes until this one writes to them. `offset` and `memory` are
    /// at the beginning of pages. False if the host refuses; the memory is what it was then.
    public static func lay(
        _ file: borrowing FileDescriptor, from offset: Int, count: Int, over memory: UnsafeMutableRawPointer
    ) -> Bool {
        let flags = MAP_PRIVATE | MAP_FIXED | MAP_NORESERVE
        return mmap(memory, rounded(count), PROT_READ | PROT_WRITE, flags, file.rawValue, off_t(offset)) == memory
    }
}
