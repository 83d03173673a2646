// Memory for generated code: one memfd mapped twice, writable at one place, executable at another, never both at once.
//
// Code that was saved can be taken from its file: the file's pages lie over the executable mapping, shared with all who run
// the same, until this process patches one. That goes through /proc/self/mem, so that they are never writable.
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
    /// Where code ends that lies in a file's pages; 0: there is none.
    private var adoptedEnd = 0
    /// /proc/self/mem, if there is such code.
    private var ownMemory: Int32 = -1

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

    /// Takes code from a file's pages: `count` bytes at `position`, both page multiples. Where the host has no way to patch
    /// such pages, it is copied.
    public func adopt(
        _ file: borrowing FileDescriptor, from offset: Int, count: Int, at position: Int
    ) throws(HostError) {
        precondition(position % PageMemory.pageSize == 0 && count >= 0 && position + count <= size && adoptedEnd == 0)
        let target = UnsafeMutableRawPointer(mutating: executable + position)
        if canPatchFiles(file, offset),
            mmap(
                target, count, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_FIXED, file.rawValue, off_t(offset)) == target
        {
            adoptedEnd = position + count
            return
        }
        let code = try file.read(at: UInt64(offset), count: count)
        (writable + position).update(from: code, count: count)
    }

    /// Whether a page of a file that is mapped without the right to write can be patched; leaves `ownMemory` open if so.
    private func canPatchFiles(_ file: borrowing FileDescriptor, _ offset: Int) -> Bool {
        let flags = MAP_PRIVATE
        guard let page = mmap(nil, PageMemory.pageSize, PROT_READ | PROT_EXEC, flags, file.rawValue, off_t(offset)),
            page != MAP_FAILED
        else { return false }
        defer { munmap(page, PageMemory.pageSize) }
        ownMemory = open("/proc/self/mem", O_RDWR | O_CLOEXEC)
        if ownMemory < 0 { return false }
        var byte = page.load(as: UInt8.self)
        if pwrite(ownMemory, &byte, 1, off_t(Int(bitPattern: page))) == 1 { return true }
        close(ownMemory)
        ownMemory = -1
        return false
    }

    /// Four bytes of code.
    @inline(__always)
    public func word(at position: Int) -> Int32 { executable.loadUnaligned(fromByteOffset: position, as: Int32.self) }

    /// Overwrites four bytes of code.
    @inline(__always)
    public func patch(_ position: Int, _ word: Int32) {
        if position >= adoptedEnd {
            UnsafeMutableRawPointer(writable).storeBytes(of: word, toByteOffset: position, as: Int32.self)
        } else {
            withUnsafeBytes(of: word) { patch(position, $0) }
        }
    }

    /// Overwrites code.
    public func patch(_ position: Int, _ bytes: UnsafeRawBufferPointer) {
        if position >= adoptedEnd {
            (writable + position).update(
                from: bytes.baseAddress!.assumingMemoryBound(to: UInt8.self), count: bytes.count)
            return
        }
        let place = off_t(Int(bitPattern: executable + position))
        guard pwrite(ownMemory, bytes.baseAddress, bytes.count, place) == bytes.count else {
            fatalError("code can't be patched any more: \(HostError.last("write /proc/self/mem"))")
        }
    }

    deinit {
        if ownMemory >= 0 { close(ownMemory) }
        munmap(writable, size)
        munmap(UnsafeMutableRawPointer(mutating: executable), size)
    }
}
