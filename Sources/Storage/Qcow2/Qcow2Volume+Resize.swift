// Growing and shrinking qcow2 images.

extension Qcow2Volume {
    /// Changes the disk's size.
    mutating func resize(to newSize: UInt64) throws {
        guard newSize >= 512, newSize % 512 == 0, newSize <= 1 << 62 else {
            throw StorageError(.badRequest, "disk \(file.path): the size must be a multiple of 512, and not zero")
        }
        guard header.snapshotCount == 0 else {
            throw file.unsupported("has internal snapshots; its size can't be changed")
        }
        if newSize < byteCount {
            let start = newSize
            let old = byteCount
            // Gone for good: after growing again, what is cut off must read as zeroes.
            try writeZeroes(at: start, length: old - start, mayUnmap: true)
            try flush()
            try setSize(newSize)
        } else if newSize > byteCount {
            let old = byteCount
            try growL1(header.l1EntriesNeeded(for: newSize))
            if let base, base.byteCount > old {
                // What the base has there was cut off before, and must not come back.
                byteCount = newSize
                do { try writeZeroes(at: old, length: min(newSize, base.byteCount) - old, mayUnmap: true) } catch {
                    byteCount = old
                    throw error
                }
                try flush()
            }
            try setSize(newSize)
        }
    }

    private mutating func setSize(_ size: UInt64) throws {
        try write(size.bigEndianBytes, at: 0x18)
        try synchronize()
        header.size = size
        byteCount = size
    }

    /// Moves the L1 table to where it has room.
    private mutating func growL1(_ entries: Int) throws {
        guard entries > header.l1Entries else { return }
        guard entries <= Qcow2Header.largestL1 / 8 else {
            throw StorageError(.badRequest, "disk \(file.path): its clusters are too small for this size")
        }
        try writeTables()
        let clusters = (entries * 8 + clusterSize - 1) >> header.clusterBits
        let offset = try allocateRun(clusters)
        let table = l1 + [UInt64](repeating: 0, count: entries - l1.count)
        var bytes = table.big(0..<entries)
        bytes += [UInt8](repeating: 0, count: (clusters << header.clusterBits) - bytes.count)
        try writeRefcounts()
        try write(bytes, at: offset)
        try synchronize()
        var place: [UInt8] = []
        place.appendBig(UInt32(entries))
        place.appendBig(offset)
        try write(place, at: 0x24)
        try synchronize()
        let old = (header.l1Offset, UInt64(header.l1Clusters))
        l1 = table
        header.l1Entries = entries
        header.l1Offset = offset
        if old.1 > 0 { try drop(Release(first: old.0 >> clusterBits, count: old.1)) }
    }

    /// Clusters that follow one another, exactly so many.
    mutating func allocateRun(_ wanted: Int) throws -> UInt64 {
        var pieces: [(offset: UInt64, count: Int)] = []
        defer { for piece in pieces { giveBack(piece.offset, piece.count) } }
        while true {
            let (offset, count) = try allocate(upTo: wanted)
            if let last = pieces.last, last.offset + UInt64(last.count << header.clusterBits) == offset {
                pieces[pieces.count - 1].count += count
            } else {
                pieces.append((offset, count))
            }
            let last = pieces[pieces.count - 1]
            if last.count >= wanted {
                pieces.removeLast()
                let rest = last.count - wanted
                if rest > 0 { pieces.append((last.offset + UInt64(wanted << header.clusterBits), rest)) }
                return last.offset
            }
        }
    }
}
