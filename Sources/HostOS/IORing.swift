// Transfers that the kernel carries out while their thread does something else (io_uring(7), liburing).
//
// Invariants: a ring is used by the thread that made it alone; a list of pieces stays in its slot until the kernel has
// taken it (IORING_FEAT_SUBMIT_STABLE), and whoever asked for the transfer keeps the memory until its completion came.
internal import CURing
internal import Glibc

/// A ring of requests to the kernel, for one thread.
public struct IORing: ~Copyable {
    private let ring: UnsafeMutablePointer<io_uring>
    /// Lists of the requests that the kernel hasn't taken yet.
    private var untaken: [ScatterList] = []

    /// Why there can't be one here; nil if there can.
    public static var obstacle: HostError? {
        do throws(HostError) { _ = try IORing(entries: 4) } catch { return error }
        return nil
    }

    /// Makes a ring; fails where the kernel, a filter of system calls or `kernel.io_uring_disabled` doesn't allow it.
    public init(entries: UInt32) throws(HostError) {
        let ring = UnsafeMutablePointer<io_uring>.allocate(capacity: 1)
        ring.initialize(to: io_uring())
        // Completions wait for the thread's next call, where the kernel knows that (6.0): no interrupt between.
        var result: Int32 = 0
        for flags in [UInt32(1) << 8 | UInt32(1) << 12, 0] {
            var parameters = io_uring_params()
            parameters.flags = flags
            result = io_uring_queue_init_params(entries, ring, &parameters)
            if result != -EINVAL { break }
        }
        guard result == 0 else {
            ring.deallocate()
            throw HostError("make an io_uring", errno: -result)
        }
        // SUBMIT_STABLE and NODROP.
        guard ring.pointee.features & 6 == 6 else {
            io_uring_queue_exit(ring)
            ring.deallocate()
            throw HostError("make an io_uring", errno: ENOSYS)
        }
        self.ring = ring
    }

    deinit {
        io_uring_queue_exit(ring)
        ring.deallocate()
    }

    // MARK: Requests

    private func entry(_ operation: io_uring_op, _ descriptor: Int32, _ tag: UInt64) -> UnsafeMutablePointer<
        io_uring_sqe
    >? {
        guard let entry = io_uring_get_sqe(ring) else { return nil }
        entry.pointee = io_uring_sqe()
        entry.pointee.opcode = UInt8(operation.rawValue)
        entry.pointee.fd = descriptor
        entry.pointee.user_data = tag
        return entry
    }

    /// Asks for a list to be filled from a file, or written to it; false if the ring is full, or the list too long for a
    /// call. Its completion tells the bytes that were moved, or an errno below zero.
    public mutating func move(_ list: ScatterList, _ descriptor: Int32, at offset: UInt64, fills: Bool, tag: UInt64)
        -> Bool
    {
        guard 1...FileDescriptor.mostPieces ~= list.pieces.count,
            let entry = entry(fills ? IORING_OP_READV : IORING_OP_WRITEV, descriptor, tag)
        else { return false }
        untaken.append(list)
        entry.pointee.off = offset
        let pieces = untaken[untaken.count - 1].pieces.withUnsafeBufferPointer { $0 }
        entry.pointee.addr = UInt64(UInt(bitPattern: pieces.baseAddress))
        entry.pointee.len = UInt32(pieces.count)
        return true
    }

    /// Asks to be told, once, when a descriptor can be read; false if the ring is full.
    public mutating func watch(_ descriptor: Int32, tag: UInt64) -> Bool {
        guard let entry = entry(IORING_OP_POLL_ADD, descriptor, tag) else { return false }
        entry.pointee.poll32_events = UInt32(POLLIN)
        return true
    }

    /// Has the kernel take what was asked for; `waits` for a completion.
    public mutating func submit(waits: Bool) throws(HostError) {
        while true {
            let result = io_uring_submit_and_wait(ring, waits ? 1 : 0)
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
        var completion: UnsafeMutablePointer<io_uring_cqe>?
        guard io_uring_peek_cqe(ring, &completion) == 0, let completion else { return nil }
        defer { io_uring_cqe_seen(ring, completion) }
        return (completion.pointee.user_data, completion.pointee.res)
    }
}
