// Memory in a file: a sparse image of RAM, each page where it lies in the memfd, and a checksum for each page.
//
// Invariants of this file: the mapping is as long as `pageCount` pages and stays until deinit; a file that was cut short
// is refused, and one that is cut short later ends the process as any mapped file does.
internal import CHost
internal import Glibc
public import HostOS
internal import Synchronization

/// Saved memory that can't be used, and why.
public struct SavedMemoryError: Error, CustomStringConvertible, Equatable, Sendable {
    /// What is wrong, in one line.
    public var description: String

    /// Makes an error with its reason.
    public init(_ description: String) { self.description = description }
}

/// A saved memory, mapped.
public final class SavedMemory: @unchecked Sendable {
    // SAFETY of @unchecked: the mapping is only read.
    private let base: UnsafeMutableRawPointer
    private let sums: [UInt32]
    private let firstDamage = Mutex<Int?>(nil)
    private let onDamage = Mutex<(@Sendable (SavedMemoryError) -> Void)?>(nil)

    /// Number of pages.
    public var pageCount: Int { sums.count }

    /// Maps a file; `sums` are those that the capture gave, one for each page.
    public init(file: borrowing FileDescriptor, sums: [UInt32]) throws(SavedMemoryError) {
        var status = stat()
        guard fstat(file.rawValue, &status) == 0, Int(status.st_size) == sums.count * 4096, !sums.isEmpty else {
            throw SavedMemoryError("the memory file has \(status.st_size) bytes, not \(sums.count * 4096)")
        }
        guard let address = mmap(nil, sums.count * 4096, PROT_READ, MAP_SHARED | MAP_NORESERVE, file.rawValue, 0),
            address != MAP_FAILED
        else { throw SavedMemoryError("\(HostError.last("map saved memory"))") }
        base = address
        self.sums = sums
    }

    deinit { munmap(base, sums.count * 4096) }

    /// What was found to be damaged.
    public var damage: SavedMemoryError? { firstDamage.withLock { $0 }.map(Self.error) }

    /// Sets what is called, on any thread, when a page turns out to be damaged.
    public func whenDamaged(_ body: @escaping @Sendable (SavedMemoryError) -> Void) { onDamage.withLock { $0 = body } }

    /// Whether a page holds anything but zeros.
    func holds(_ page: Int) -> Bool { sums[page] != 0 }

    /// Copies a page, looking whether it is what was saved.
    func copy(_ page: Int, to target: UnsafeMutableRawPointer) {
        withPage(page) { target.copyMemory(from: $0.baseAddress!, byteCount: 4096) }
    }

    /// A page, looked at whether it is what was saved.
    func withPage(_ page: Int, _ body: (UnsafeRawBufferPointer) -> Void) {
        let bytes = UnsafeRawBufferPointer(start: base + page * 4096, count: 4096)
        if Self.checksum(bytes) != sums[page] { report(page) }
        body(bytes)
    }

    private func report(_ page: Int) {
        let isFirst = firstDamage.withLock { first in
            defer { first = first ?? page }
            return first == nil
        }
        if isFirst { onDamage.withLock { $0 }?(Self.error(page)) }
    }

    private static func error(_ page: Int) -> SavedMemoryError {
        SavedMemoryError("the saved memory is damaged at offset 0x\(String(page * 4096, radix: 16))")
    }

    /// Checksum of a page, as `memory.sums` has it.
    public static func checksum(of page: ArraySlice<UInt8>) -> UInt32 { page.withUnsafeBytes { checksum($0) } }

    /// Checksum of a page: zero for a page of zeros, else its CRC-32C, which is written as ~0 where it is zero.
    static func checksum(_ bytes: UnsafeRawBufferPointer) -> UInt32 {
        if roost_is_zero(bytes.baseAddress!, bytes.count) != 0 { return 0 }
        let sum = roost_crc32c(0, bytes.baseAddress!, bytes.count)
        return sum == 0 ? ~0 : sum
    }
}
