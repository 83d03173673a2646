// Counting references to clusters, and finding free ones.
//
// QEMU's docs/interop/qcow2.txt, "Host cluster management": a table of blocks of counts, a count 1 to 64 bits wide, most
// significant byte first, those below a byte from its least significant bits up.
internal import HostOS

extension Qcow2Volume {
    /// The largest count.
    var mostReferences: UInt64 { header.refcountOrder == 6 ? .max : (1 << (1 << UInt64(header.refcountOrder))) - 1 }

    /// The block that holds a cluster's count, loaded, and the index in it; nil if there is no block.
    private mutating func refcountPlace(_ cluster: UInt64) throws -> (place: Int, index: Int)? {
        let perBlock = UInt64(header.refcountsPerBlock)
        guard cluster / perBlock < UInt64(refcountTable.count) else { return nil }
        let offset = refcountTable[Int(cluster / perBlock)] & ~511
        if offset == 0 { return nil }
        let index = Int(cluster % perBlock)
        if let place = refcounts.place(of: offset) { return (place, index) }
        guard offset & clusterMask == 0 else { throw file.damaged("has a refcount block inside a cluster") }
        let bytes = try file.read(at: offset, exactly: clusterSize, "refcount block")
        try makeRoomForRefcounts()
        return (refcounts.insert(offset, bytes), index)
    }

    /// Blocks may be written at any time: counts rise before anything refers to a cluster, and fall afterwards.
    private mutating func makeRoomForRefcounts() throws {
        if refcounts.mustWriteFirst() { try writeRefcounts() }
    }

    /// Writes refcount blocks that changed.
    mutating func writeRefcounts() throws {
        for place in refcounts.dirtyPlaces {
            guard let dirty = refcounts.slots[place].dirty else { continue }
            let slot = refcounts.slots[place]
            guard !isVital(slot.offset, UInt64(clusterSize)) else {
                throw file.damaged("has a refcount block where other tables are")
            }
            try write(Array(slot.entries[dirty]), at: slot.offset + UInt64(dirty.lowerBound))
            refcounts.markClean(place)
        }
    }

    private func count(_ place: Int, _ index: Int) -> UInt64 {
        let order = header.refcountOrder
        if order < 3 {
            let perByte = 8 >> order
            let byte = refcounts.slots[place].entries[index / perByte]
            return UInt64(byte >> UInt8((index % perByte) << order)) & mostReferences
        }
        var value: UInt64 = 0
        let bytes = 1 << (order - 3)
        for byte in index * bytes..<(index + 1) * bytes {
            value = value << 8 | UInt64(refcounts.slots[place].entries[byte])
        }
        return value
    }

    private mutating func setCount(_ place: Int, _ index: Int, _ value: UInt64) {
        let bits = 1 << header.refcountOrder
        let range = index * bits / 8..<max(index * bits / 8 + 1, (index + 1) * bits / 8)
        var bytes = Array(refcounts.slots[place].entries[range])
        Self.set(&bytes, bits < 8 ? index % (8 / bits) : 0, value, order: header.refcountOrder)
        for (step, byte) in bytes.enumerated() { refcounts[place, range.lowerBound + step] = byte }
    }

    /// Sets a count in the bytes of a block.
    static func set(_ bytes: inout [UInt8], _ index: Int, _ value: UInt64, order: Int) {
        if order < 3 {
            let perByte = 8 >> order
            let shift = UInt8((index % perByte) << order)
            let mask = UInt8((1 << (1 << order)) - 1) << shift
            bytes[index / perByte] = bytes[index / perByte] & ~mask | UInt8(truncatingIfNeeded: value) << shift & mask
            return
        }
        let count = 1 << (order - 3)
        for byte in 0..<count {
            bytes[index * count + byte] = UInt8(truncatingIfNeeded: value >> UInt64(8 * (count - 1 - byte)))
        }
    }

    /// How many references a cluster has.
    mutating func refcount(_ cluster: UInt64) throws -> UInt64 {
        guard let (place, index) = try refcountPlace(cluster) else { return 0 }
        return count(place, index)
    }

    /// Sets how many references a cluster has; its block must be there.
    mutating func setRefcount(_ cluster: UInt64, _ value: UInt64) throws {
        guard value <= mostReferences else { throw file.unsupported("has no room to count \(value) references") }
        guard let (place, index) = try refcountPlace(cluster) else {
            throw file.damaged("has no refcount block for cluster \(cluster)")
        }
        setCount(place, index, value)
        if value == 0 { firstFree = min(firstFree, cluster) }
    }

    /// Takes one reference from clusters; those that lose their last one become holes.
    mutating func drop(_ release: Release) throws {
        var hole: Range<UInt64>?
        func punch(_ hole: Range<UInt64>?) {
            guard let hole, !file.isBlockDevice else { return }
            // A hole that can't be made is only room lost.
            _ = try? file.discard(at: hole.lowerBound << clusterBits, length: UInt64(hole.count) << clusterBits)
        }
        for cluster in release.first..<release.first &+ release.count {
            let value = try refcount(cluster)
            if value > 0 { try setRefcount(cluster, value - 1) }
            guard value == 1, !isVital(cluster << clusterBits, UInt64(clusterSize)) else { continue }
            l2.remove(cluster << clusterBits)
            if compressedCursor >> clusterBits == cluster { compressedCursor = 0 }
            if let expanded, expanded.offset >> clusterBits == cluster { self.expanded = nil }
            if let old = hole, old.upperBound == cluster {
                hole = old.lowerBound..<cluster + 1
            } else {
                punch(hole)
                hole = cluster..<cluster + 1
            }
        }
        punch(hole)
    }

    // MARK: Allocation

    /// Counts that one search for free clusters looks at, at most: those of 64 TiB in clusters of 64 KiB.
    private static let mostSteps = 1 << 30

    /// Takes up to `most` free clusters that follow one another; each is counted once.
    mutating func allocate(upTo most: Int) throws -> (offset: UInt64, count: Int) {
        var cluster = firstFree
        // Nothing that counts lies far behind the file's end: a hostile image can't have a search go on for long.
        let last = max(cluster, highWater >> clusterBits) + (1 << 20)
        var (steps, full) = (0, Set<UInt64>())
        while true {
            guard cluster <= last else { throw file.damaged("counts references to clusters far beyond its end") }
            guard let (place, index) = try refcountPlace(cluster) else {
                try addRefcountBlock(for: cluster)
                continue
            }
            let limit = header.refcountsPerBlock
            var first = index
            while first < limit, count(place, first) != 0 { first += 1 }
            var end = first
            while end < limit, end - first < most, count(place, end) == 0 { end += 1 }
            if end == first {
                cluster += UInt64(limit - index)
                steps += limit - index
                firstFree = cluster
                // No block counts twice, so a file has to hold all that is looked at.
                guard full.insert(refcounts.slots[place].offset).inserted, steps <= Self.mostSteps else {
                    throw file.damaged("counts references to more clusters than it can have")
                }
                continue
            }
            let offset = (cluster + UInt64(first - index)) << clusterBits
            guard offset < 1 << 56, !isVital(offset, UInt64(end - first) << clusterBits) else {
                throw file.damaged("counts no reference to clusters that are in use; repair it with 'roost disk check'")
            }
            for index in first..<end { setCount(place, index, 1) }
            firstFree = (offset >> clusterBits) + UInt64(end - first)
            return (offset, end - first)
        }
    }

    /// Gives back clusters that were allocated and that nothing refers to.
    mutating func giveBack(_ offset: UInt64, _ count: Int) {
        for cluster in 0..<UInt64(count) { try? setRefcount((offset >> clusterBits) + cluster, 0) }
    }

    /// Whether clusters just allocated read as zeroes: the file has never been so long.
    func isFresh(_ offset: UInt64) -> Bool { offset >= highWater && !file.isBlockDevice }

    /// Makes the block that counts the references of some clusters. It lies among them, at the first in question, and
    /// counts itself.
    private mutating func addRefcountBlock(for cluster: UInt64) throws {
        let perBlock = UInt64(header.refcountsPerBlock)
        guard cluster / perBlock < UInt64(refcountTable.count) else { return try growRefcountTable() }
        let tableIndex = Int(cluster / perBlock)
        let offset = cluster << clusterBits
        guard !isVital(offset, UInt64(clusterSize)) else {
            throw file.damaged("counts no reference to its own tables; repair it with 'roost disk check'")
        }
        try makeRoomForRefcounts()
        let place = refcounts.insert(offset, [UInt8](repeating: 0, count: clusterSize))
        setCount(place, Int(cluster % perBlock), 1)
        do {
            try write(refcounts.slots[place].entries, at: offset)
            refcounts.markClean(place)
            try synchronize()
            refcountTable[tableIndex] = offset
            try write(
                refcountTable.big(tableIndex..<tableIndex + 1),
                at: header.refcountTableOffset + UInt64(tableIndex * 8))
        } catch {
            refcountTable[tableIndex] = 0
            refcounts.markClean(place)
            refcounts.remove(offset)
            throw error
        }
    }

    /// Moves the refcount table to where it doesn't reach yet, half as large again, with blocks for what it takes there.
    private mutating func growRefcountTable() throws {
        let perBlock = UInt64(header.refcountsPerBlock)
        let start = UInt64(refcountTable.count) * perBlock
        let clusters = header.refcountTableClusters + max(1, header.refcountTableClusters / 2)
        guard clusters << header.clusterBits <= Qcow2Header.largestRefcountTable, start < 1 << (56 - clusterBits) else {
            throw file.unsupported("is as large as its refcount table can count")
        }
        var blocks: UInt64 = 1
        while blocks * perBlock < blocks + UInt64(clusters) { blocks += 1 }
        var table = refcountTable
        table += [UInt64](repeating: 0, count: (clusters << header.clusterBits) / 8 - table.count)
        for block in 0..<blocks { table[refcountTable.count + Int(block)] = (start + block) << clusterBits }
        let offset = (start + blocks) << clusterBits
        let old = (header.refcountTableOffset, UInt64(header.refcountTableClusters))
        do {
            try countNewTable(start, blocks, UInt64(clusters))
            try moveRefcountTable(table, clusters, to: offset)
        } catch {
            // Nothing leads to them; the next attempt makes them anew.
            for block in 0..<blocks { refcounts.remove((start + block) << clusterBits) }
            throw error
        }
        refcountTable = table
        header.refcountTableOffset = offset
        header.refcountTableClusters = clusters
        try drop(Release(first: old.0 >> clusterBits, count: old.1))
    }

    /// Puts blocks in place, from a first cluster on, that count themselves and a refcount table behind them.
    private mutating func countNewTable(_ start: UInt64, _ blocks: UInt64, _ clusters: UInt64) throws {
        let perBlock = UInt64(header.refcountsPerBlock)
        for block in 0..<blocks {
            // What this block counts of the new clusters.
            let used = min(perBlock, blocks + clusters - block * perBlock)
            try makeRoomForRefcounts()
            let place = refcounts.insert((start + block) << clusterBits, [UInt8](repeating: 0, count: clusterSize))
            for index in 0..<Int(used) { setCount(place, index, 1) }
            refcounts.markDirty(place)
        }
        try writeRefcounts()
    }

    /// Writes a refcount table, and then to the header where it is.
    private mutating func moveRefcountTable(_ table: [UInt64], _ clusters: Int, to offset: UInt64) throws {
        try write(table.big(0..<table.count), at: offset)
        try synchronize()
        var place: [UInt8] = []
        place.appendBig(offset)
        place.appendBig(UInt32(clusters))
        try write(place, at: 0x30)
        try synchronize()
    }
}
