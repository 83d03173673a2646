// Zstandard frames one after the other, as a stream that is written and read a piece at a time; `zstd -d` reads it too.
internal import CZstd

/// Frames of Zstandard (RFC 8878, 3.1.1).
public enum ZstandardFrames {
    /// Bytes of the longest frame that so many bytes become.
    public static func longest(_ count: Int) -> Int { ZSTD_compressBound(max(0, count)) }

    /// A frame with these bytes; nil if there is no memory for it.
    public static func frame(_ bytes: [UInt8]) -> [UInt8]? {
        Compression.zstd.compress(bytes, limit: longest(bytes.count))
    }

    /// Expands the frame that these bytes begin with, and tells its length; nil if there is none that is whole and expands
    /// to exactly `count` bytes.
    public static func expand(_ bytes: [UInt8], count: Int) -> (content: [UInt8], length: Int)? {
        // SAFETY: the array is passed with its length.
        let length = unsafe bytes.withUnsafeBytes { unsafe ZSTD_findFrameCompressedSize($0.baseAddress, $0.count) }
        guard ZSTD_isError(length) == 0, length > 0, length <= bytes.count,
            let content = Compression.zstd.expand(Array(bytes[..<length]), count: count)
        else { return nil }
        return (content, length)
    }
}
