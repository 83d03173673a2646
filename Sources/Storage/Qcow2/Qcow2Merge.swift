// Making one image of two that stand on each other.
internal import HostOS
internal import Synchronization

extension Qcow2Volume {
    /// Whether the image itself says what is at `offset`, its base not asked, and for how many of at most `limit` bytes.
    mutating func ownExtent(at offset: UInt64, limit: UInt64) throws -> (content: OwnContent, length: UInt64) {
        let (source, length) = try locate(offset, limit)
        switch source {
        case .base: return (.none, length)
        case .zero: return (.zero, length)
        case .file, .compressed: return (.data, length)
        }
    }

    /// What an image holds of a range.
    enum OwnContent { case none, zero, data }
}

extension Qcow2Image {
    /// Writes what an image and its base, a qcow2 image too, hold together to a new file in the same folder, which is based
    /// on what the base is based on. It is durable then. Bytes done and in all go to `progress`.
    public static func merge(
        _ path: String, to target: String, progress: (UInt64, UInt64) -> Void = { _, _ in }
    ) throws(StorageError) {
        try Disk.explaining(path) {
            guard let upper = try Disk.open(path, DiskOptions(isReadOnly: true, format: .qcow2)) as? Qcow2Image,
                let lower = upper.base as? Qcow2Image
            else { throw StorageError(.badRequest, "disk \(path): has no qcow2 image as its base") }
            var options = Qcow2Options()
            options.size = upper.byteCount
            options.clusterSize = upper.header.clusterSize
            options.base = lower.header.backingName
            options.baseFormat = lower.base?.format
            let merged = try Qcow2Image.create(target, options)
            do {
                try upper.copy(over: lower, to: merged, progress)
                try merged.flush()
            } catch {
                ImageFile.remove(target)
                throw error
            }
        }
    }

    private func copy(
        over lower: Qcow2Image, to merged: Qcow2Image, _ progress: (UInt64, UInt64) -> Void
    ) throws {
        let piece: UInt64 = 2 << 20
        var buffer = [UInt8](repeating: 0, count: Int(piece))
        var offset: UInt64 = 0
        while offset < byteCount {
            progress(offset, byteCount)
            var (content, length) = try volume.withLock { try $0.ownExtent(at: offset, limit: byteCount - offset) }
            if content == .none {
                if offset < lower.byteCount {
                    let limit = min(length, lower.byteCount - offset)
                    (content, length) = try lower.volume.withLock { try $0.ownExtent(at: offset, limit: limit) }
                } else {
                    // Beyond its end the lower image hides what is below.
                    content = .zero
                }
            }
            switch content {
            case .none: break
            case .zero: try merged.writeZeroes(at: offset, length: length, mayUnmap: true)
            case .data:
                length = min(length, piece)
                try read(at: offset, into: &buffer, 0..<Int(length))
                try merged.write(buffer[..<Int(length)], at: offset)
            }
            offset += length
        }
        progress(byteCount, byteCount)
    }
}
