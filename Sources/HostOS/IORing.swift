// Transfers that the kernel carries out while their thread does something else (io_uring(7), liburing).
//
// Invariants: a ring is used by the thread that made it alone; a list of pieces stays in its slot until the kernel has
// taken it (IORING_FEAT_SUBMIT_STABLE), and whoever asked for the transfer keeps the memory until its completion came.
internal import CURing
internal import Glibc

/// A ring of requests to the kernel, for one thread.
public struct IORing: ~Copyable {
    private let ring: OpaquePointer
    /// Lists of the requests that the kernel hasn't taken yet.
    private var untaken: [ScatterList] = []

    /// Why there can't be one here; nil if there can.
    public static var obstacle: HostError? {
        do throws(HostError) { _ = try IORing(entries: 4) } catch { return error }
        return nil
    }

    /// Makes a ring; fails where the kernel, a filter of system calls or `kernel.io_uring_disabled` doesn't allow it.
    public init(entries: UInt32) throws(HostError) {
        var made: OpaquePointer?
        let failure = roost_ring_make(entries, &made)
        guard failure == 0, let made else { throw HostError("make an io_uring", errno: failure) }
        ring = made
    }

    deinit { roost_ring_free(ring) }

    // MARK: Requests

    /// Asks for a list to be filled from a file, or written to it; false if the ring is full, or the list too long for a
    /// call. Its completion tells the bytes that were moved, or an errno below zero.
    public mutating func move(_ list: ScatterList, _ descriptor: Int32, at offset: UInt64, fills: Bool, tag: UInt64)
        -> Bool
    {
        guard 1...FileDescriptor.mostPieces ~= list.pieces.count else { return false }
        untaken.append(list)
        let pieces = untaken[untaken.count - 1].pieces.withUnsafeBufferPointer { $0 }
        let isAsked = roost_ring_move(
            ring, descriptor, pieces.baseAddress, UInt32(pieces.count), offset, fills ? 1 : 0, tag)
        if isAsked == 0 { untaken.removeLast() }
        return isAsked != 0
    }

    /// Asks to be told, once, when a descriptor can be read; false if the ring is full.
    public mutating func watch(_ descriptor: Int32, tag: UInt64) -> Bool {
        roost_ring_watch(ring, descriptor, tag) != 0
    }

    /// Has the kernel take what was asked for; `waits` for a completion.
    public mutating func submit(waits: Bool) throws(HostError) {
        while true {
            let result = roost_ring_submit(ring, waits ? 1 : 0)
            if result >= 0 { break }
            if result == -EINTR { continue }
            // No room for completions: those that are there must be taken first.
            if result == -EBUSY || result == -EAGAIN { return }
            throw HostError("submit to an io_uring", errno: -result)
        }
        untaken.removeAll(keepingCapacity: true)
    }

    /// Takes a completion.
    public mutating func next() -> (tag: UInt64, result: Int32)? {
        var tag: UInt64 = 0
        var result: Int32 = 0
        return roost_ring_next(ring, &tag, &result) != 0 ? (tag, result) : nil
    }
}
