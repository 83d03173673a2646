// Compressed clusters and grains, through zlib and zstd.
//
// Output is bounded by the caller; input by what it read from the file.
internal import CZlib
internal import CZstd

/// How a compressed block is stored.
enum Compression: Sendable, Equatable {
    /// Deflate without a header (RFC 1951): qcow2.
    case deflate
    /// Deflate in zlib's frame (RFC 1950): VMDK.
    case zlib
    /// Zstandard (RFC 8878): qcow2.
    case zstd

    /// Expands to exactly `count` bytes; nil if the input isn't that. What follows the compressed data is ignored.
    func expand(_ input: [UInt8], count: Int) -> [UInt8]? {
        switch self {
        case .deflate: return Self.inflate(input, count, window: -15)
        case .zlib: return Self.inflate(input, count, window: 15)
        case .zstd: return Self.expandZstd(input, count)
        }
    }

    /// Compresses; nil if that makes it no smaller than `limit`.
    func compress(_ input: [UInt8], limit: Int) -> [UInt8]? {
        switch self {
        // QEMU expands with a window of 4 KiB.
        case .deflate: return Self.deflate(input, limit, window: -12)
        case .zlib: return Self.deflate(input, limit, window: 15)
        case .zstd: return Self.compressZstd(input, limit)
        }
    }

    // MARK: zlib

    private static func inflate(_ input: [UInt8], _ count: Int, window: Int32) -> [UInt8]? {
        var stream = unsafe z_stream()
        guard unsafe inflateInit2_(&stream, window, ZLIB_VERSION, Int32(MemoryLayout<z_stream>.size)) == Z_OK else {
            return nil
        }
        defer { _ = unsafe inflateEnd(&stream) }
        var output = [UInt8](repeating: 0, count: count)
        // SAFETY: both arrays stay in place while the stream points at them, and it knows their lengths.
        let left = unsafe input.withUnsafeBufferPointer { source in
            unsafe output.withUnsafeMutableBufferPointer { target in
                unsafe stream.next_in = UnsafeMutablePointer(mutating: source.baseAddress)
                unsafe stream.avail_in = UInt32(clamping: source.count)
                unsafe stream.next_out = target.baseAddress
                unsafe stream.avail_out = UInt32(clamping: target.count)
                _ = unsafe CZlib.inflate(&stream, Z_FINISH)
                return unsafe stream.avail_out
            }
        }
        return left == 0 ? output : nil
    }

    private static func deflate(_ input: [UInt8], _ limit: Int, window: Int32) -> [UInt8]? {
        var stream = unsafe z_stream()
        guard
            unsafe deflateInit2_(
                &stream, Z_DEFAULT_COMPRESSION, Z_DEFLATED, window, 9, Z_DEFAULT_STRATEGY, ZLIB_VERSION,
                Int32(MemoryLayout<z_stream>.size)) == Z_OK
        else { return nil }
        defer { _ = unsafe deflateEnd(&stream) }
        var output = [UInt8](repeating: 0, count: max(0, limit))
        // SAFETY: as above.
        let (result, left) = unsafe input.withUnsafeBufferPointer { source in
            unsafe output.withUnsafeMutableBufferPointer { target in
                unsafe stream.next_in = UnsafeMutablePointer(mutating: source.baseAddress)
                unsafe stream.avail_in = UInt32(clamping: source.count)
                unsafe stream.next_out = target.baseAddress
                unsafe stream.avail_out = UInt32(clamping: target.count)
                let result = unsafe CZlib.deflate(&stream, Z_FINISH)
                return unsafe (result, stream.avail_out)
            }
        }
        guard result == Z_STREAM_END else { return nil }
        output.removeLast(Int(left))
        return output
    }

    // MARK: zstd

    private static func expandZstd(_ input: [UInt8], _ count: Int) -> [UInt8]? {
        guard let stream = unsafe ZSTD_createDStream() else { return nil }
        defer { _ = unsafe ZSTD_freeDStream(stream) }
        var output = [UInt8](repeating: 0, count: count)
        // SAFETY: both arrays stay in place while the buffers point at them, and carry their lengths.
        let filled = unsafe input.withUnsafeBytes { source in
            unsafe output.withUnsafeMutableBytes { target in
                var from = unsafe ZSTD_inBuffer(src: source.baseAddress, size: source.count, pos: 0)
                var to = unsafe ZSTD_outBuffer(dst: target.baseAddress, size: target.count, pos: 0)
                while unsafe to.pos < to.size {
                    let before = unsafe (from.pos, to.pos)
                    let result = unsafe ZSTD_decompressStream(stream, &to, &from)
                    if ZSTD_isError(result) != 0 { break }
                    if unsafe (from.pos, to.pos) == before { break }
                }
                return unsafe to.pos
            }
        }
        return filled == count ? output : nil
    }

    private static func compressZstd(_ input: [UInt8], _ limit: Int) -> [UInt8]? {
        var output = [UInt8](repeating: 0, count: max(0, limit))
        // SAFETY: both arrays are passed with their lengths.
        let size = unsafe input.withUnsafeBytes { source in
            unsafe output.withUnsafeMutableBytes { target in
                unsafe ZSTD_compress(target.baseAddress, target.count, source.baseAddress, source.count, 3)
            }
        }
        guard ZSTD_isError(size) == 0, size <= output.count else { return nil }
        output.removeLast(output.count - size)
        return output
    }
}
