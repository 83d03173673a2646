// Copying a disk from one format to another, without what is zero.

/// Copies disks.
public enum DiskConverter {
    /// What a copy is to be.
    public enum Target: Sendable {
        /// A raw file.
        case raw(Preallocation)
        /// A qcow2 image; its size is taken from the source.
        case qcow2(Qcow2Options, isCompressed: Bool)
        /// A stream-optimized VMDK image.
        case vmdk
    }

    /// Bytes that are read at once.
    static let piece = 2 << 20

    /// Copies `source` to a new file; `progress` hears how many bytes of how many are done. Returns the bytes written.
    @discardableResult
    public static func convert(
        _ source: any DiskImage, to path: String, _ target: Target, replacing: Bool = false,
        progress: (UInt64, UInt64) -> Void = { _, _ in }
    ) throws -> UInt64 {
        let image: any DiskImage
        var unit = 4096
        var isCompressed = false
        switch target {
        case .raw(let preallocation):
            image = try RawImage.create(
                path: path, size: source.byteCount, preallocation: preallocation, replacing: replacing)
        case .qcow2(var options, let compressed):
            options.size = source.byteCount
            unit = options.clusterSize
            isCompressed = compressed
            image = try Qcow2Image.create(path, options, replacing: replacing)
        case .vmdk: return try VMDKStreamWriter.write(source, to: path, replacing: replacing, progress: progress)
        }
        do {
            let written = try copy(source, image, unit, isCompressed, progress)
            try image.flush()
            return written
        } catch {
            ImageFile.remove(path)
            throw error
        }
    }

    private static func copy(
        _ source: any DiskImage, _ image: any DiskImage, _ unit: Int, _ isCompressed: Bool,
        _ progress: (UInt64, UInt64) -> Void
    ) throws -> UInt64 {
        let size = source.byteCount
        var buffer = [UInt8](repeating: 0, count: piece)
        var offset: UInt64 = 0
        var written: UInt64 = 0
        while offset < size {
            progress(offset, size)
            let extent = try source.extent(at: offset, limit: size - offset)
            // What is skipped ends at a whole unit, so that the next read begins at one.
            let next = offset + extent.length
            if extent.isZero, next == size || next / UInt64(unit) * UInt64(unit) > offset {
                offset = next == size ? size : next / UInt64(unit) * UInt64(unit)
                continue
            }
            let count = Int(min(UInt64(piece), size - offset))
            try source.read(at: offset, into: &buffer, 0..<count)
            written += try write(buffer, count, image, offset, unit, isCompressed)
            offset += UInt64(count)
        }
        progress(size, size)
        return written
    }

    /// Writes what isn't zero of a piece, unit by unit, units that follow one another together.
    private static func write(
        _ buffer: [UInt8], _ count: Int, _ image: any DiskImage, _ offset: UInt64, _ unit: Int, _ isCompressed: Bool
    ) throws -> UInt64 {
        var written = 0
        var start = 0
        var end = 0
        func put() throws {
            if start < end { try image.write(buffer[start..<end], at: offset + UInt64(start)) }
            written += end - start
        }
        while end < count {
            let next = min(count, end + unit)
            if buffer.isZero(end..<next) {
                try put()
                start = next
            } else if isCompressed, let qcow2 = image as? Qcow2Image {
                var cluster = Array(buffer[end..<next])
                cluster += [UInt8](repeating: 0, count: unit - cluster.count)
                if try !qcow2.writeCompressed(cluster, at: offset + UInt64(end)) {
                    try image.write(buffer[end..<next], at: offset + UInt64(end))
                }
                written += next - end
                start = next
            }
            end = next
        }
        try put()
        return UInt64(written)
    }
}
