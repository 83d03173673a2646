// A connection to an NBD server: libnbd's handle with its calls. What libnbd says of an error is said on.
internal import CNBD
internal import HostOS

/// One connection. Whoever has it uses it alone.
@safe final class NBDConnection: @unchecked Sendable {
    // SAFETY of @unchecked and @safe: the handle lives from init to deinit, libnbd locks it for each call, and it keeps no
    // pointer beyond a call.
    private let handle: OpaquePointer
    private let library: roost_nbd

    /// libnbd's functions; nil where the library isn't installed.
    private static let library: roost_nbd? = {
        var functions = roost_nbd()
        return unsafe roost_nbd_load(&functions) == 0 ? functions : nil
    }()

    /// Connects to the server of a URI and opens the export that it names (NBD_OPT_GO).
    ///
    /// - Spec: NBD, "URI scheme"; the handshake and the transfers are libnbd's.
    init(_ uri: String) throws(StorageError) {
        guard let library = Self.library else {
            throw StorageError(.host, "disk \(uri): libnbd is not installed; `apt install libnbd0` installs it")
        }
        guard let handle = library.create!() else { throw Self.failure(uri, library) }
        self.library = library
        unsafe self.handle = unsafe handle
        _ = unsafe library.set_uri_allow_local_file!(handle, true)
        _ = unsafe library.set_pread_initialize!(handle, false)
        guard unsafe library.connect_uri!(handle, uri) == 0 else { throw Self.failure(uri, library) }
    }

    deinit { unsafe library.close!(handle) }

    private static func failure(_ uri: String, _ library: roost_nbd) -> StorageError {
        let reason = unsafe library.get_error!().map { unsafe String(cString: $0) } ?? "no connection"
        return StorageError(.host, "disk \(uri): \(reason)")
    }

    /// Whether the server is gone, or said something that no server may say.
    var isBroken: Bool { unsafe library.aio_is_dead!(handle) != 0 || library.aio_is_closed!(handle) != 0 }

    // MARK: What the server says of itself

    var byteCount: UInt64 { UInt64(max(0, unsafe library.get_size!(handle))) }
    var isReadOnly: Bool { unsafe library.is_read_only!(handle) != 0 }
    var flushes: Bool { unsafe library.can_flush!(handle) == 1 }
    var forces: Bool { unsafe library.can_fua!(handle) == 1 }
    var trims: Bool { unsafe library.can_trim!(handle) == 1 }
    var zeroes: Bool { unsafe library.can_zero!(handle) == 1 }
    /// A flush on one connection is good for what was written on others.
    var allowsSeveral: Bool { unsafe library.can_multi_conn!(handle) == 1 }
    /// The smallest block that it takes, and the most bytes of a request; 0 where it doesn't say.
    var blockSizes: (least: UInt64, most: UInt64) {
        (
            UInt64(max(0, unsafe library.get_block_size!(handle, LIBNBD_SIZE_MINIMUM))),
            UInt64(max(0, unsafe library.get_block_size!(handle, LIBNBD_SIZE_MAXIMUM)))
        )
    }

    // MARK: Transfers

    func read(at offset: UInt64, into bytes: inout [UInt8], _ range: Range<Int>) throws(HostError) {
        precondition(range.lowerBound >= 0 && range.upperBound <= bytes.count)
        if range.isEmpty { return }
        // SAFETY: the range lies in the array, which stays in place for the call.
        let result = unsafe bytes.withUnsafeMutableBytes { buffer in
            unsafe library.pread!(handle, buffer.baseAddress! + range.lowerBound, range.count, offset, 0)
        }
        try check(result, "read")
    }

    func write(_ bytes: ArraySlice<UInt8>, at offset: UInt64, forced: Bool) throws(HostError) {
        if bytes.isEmpty { return }
        // SAFETY: libnbd reads the bytes within the call.
        let result = unsafe bytes.withUnsafeBytes { buffer in
            unsafe library.pwrite!(handle, buffer.baseAddress!, buffer.count, offset, forced ? LIBNBD_CMD_FLAG_FUA : 0)
        }
        try check(result, "write")
    }

    func flush() throws(HostError) { try check(unsafe library.flush!(handle, 0), "flush") }

    func trim(at offset: UInt64, length: UInt64) throws(HostError) {
        try check(unsafe library.trim!(handle, length, offset, 0), "trim")
    }

    func zero(at offset: UInt64, length: UInt64, mayUnmap: Bool, forced: Bool) throws(HostError) {
        let flags = (mayUnmap ? 0 : LIBNBD_CMD_FLAG_NO_HOLE) | (forced ? LIBNBD_CMD_FLAG_FUA : 0)
        try check(unsafe library.zero!(handle, length, offset, flags), "write zeroes")
    }

    private func check(_ result: Int32, _ operation: String) throws(HostError) {
        if result == 0 { return }
        let number = library.get_errno!()
        throw HostError(operation, errno: number == 0 ? HostErrorNumber.ioError : number)
    }
}
