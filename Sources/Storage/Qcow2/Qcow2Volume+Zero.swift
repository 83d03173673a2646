// Giving room back, and making ranges read as zeroes without writing them.
internal import HostOS

extension Qcow2Volume {
    /// Gives the whole clusters in a range back. What they read as afterwards is zeroes, never what the base has.
    mutating func discard(at offset: UInt64, length: UInt64) throws {
        let start = (offset &+ clusterMask) & ~clusterMask
        // The last cluster counts as whole if the disk ends inside it.
        let end = offset + length == byteCount ? byteCount : (offset + length) & ~clusterMask
        guard start < end else { return }
        try clear(start..<end, keepsRoom: false, mustBeZero: false)
    }

    /// Makes a range read as zeroes.
    mutating func writeZeroes(at offset: UInt64, length: UInt64, mayUnmap: Bool) throws {
        let end = offset + length
        let first = min(end, (offset &+ clusterMask) & ~clusterMask)
        let last = end == byteCount ? end : max(first, end & ~clusterMask)
        if offset < first { try zeroPart(offset..<first) }
        if first < last { try clear(first..<last, keepsRoom: !mayUnmap, mustBeZero: true) }
        if last < end { try zeroPart(last..<end) }
    }

    /// Zeroes in a part of a cluster, unless it is zero.
    private mutating func zeroPart(_ range: Range<UInt64>) throws {
        var place = range.lowerBound
        while place < range.upperBound {
            let extent = try extent(at: place, limit: range.upperBound - place)
            if !extent.isZero {
                try write(guest: ScatterList(count: Int(extent.length)), at: place)
            }
            place += extent.length
        }
    }

    /// Clears whole clusters. Where neither the base nor an L2 table has anything, nothing is touched.
    private mutating func clear(_ range: Range<UInt64>, keepsRoom: Bool, mustBeZero: Bool) throws {
        var place = range.lowerBound
        while place < range.upperBound {
            if releases.count > Self.mostReleases { try writeTables() }
            let index = Int(place / header.bytesPerL2)
            let end = min(range.upperBound, (UInt64(index) + 1) * header.bytesPerL2)
            let readsZero = base.map { place >= $0.byteCount } ?? true
            if try l2Offset(index) == nil, readsZero || (header.version < 3 && !mustBeZero) {
                place = end
                continue
            }
            var table = try l2PlaceForWriting(index)
            while place < end {
                // Zeroes that are written give clusters back, the table's too if an image maps it.
                if header.version < 3 { table = try l2PlaceForWriting(index) }
                try clear(at: place, table, Int((place % header.bytesPerL2) >> clusterBits), keepsRoom, mustBeZero)
                place += UInt64(clusterSize)
            }
            place = end
        }
    }

    /// Clears the cluster at `offset`.
    private mutating func clear(
        at offset: UInt64, _ table: Int, _ index: Int, _ keepsRoom: Bool, _ mustBeZero: Bool
    ) throws {
        let entry = l2.slots[table].entries[index]
        let baseIsZero = base.map { offset >= $0.byteCount } ?? true
        let old = try cluster(entry)
        if old == .zero(host: nil) || (old == .unallocated && baseIsZero) { return }
        if header.version < 3 {
            // Without zero clusters: give back where that reads as zeroes, write them where it must be.
            if baseIsZero {
                l2[table, index] = 0
                try releaseContent(of: entry)
            } else if mustBeZero {
                let count = Int(min(UInt64(clusterSize), byteCount - offset))
                try write(guest: ScatterList(count: count), at: offset)
            }
            return
        }
        if keepsRoom, entry & Qcow2Entry.copied != 0 {
            switch old {
            case .data(let host), .zero(let host?):
                l2[table, index] = host | Qcow2Entry.copied | Qcow2Entry.zero
                return
            default: break
            }
        }
        l2[table, index] = baseIsZero ? 0 : Qcow2Entry.zero
        try releaseContent(of: entry)
    }
}
