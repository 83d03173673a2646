// Making, applying and deleting internal snapshots.
//
// What changes is written beside what there is: tables of the new state, and refcounts counted anew, in clusters that the
// old state doesn't use. Then one write of a part of the header (bytes 18 to 47, within a sector) makes them the image. So
// a process that is killed leaves the old state or the new one, each sound and without a lost cluster.
internal import Glibc
internal import HostOS

/// What an image is to be.
private struct Plan {
    var header: Qcow2Header
    /// The L1 table, whose L2 tables may be another tree's.
    var l1: [UInt64]
    /// The active tree has tables of its own already: only marks change.
    var ownsTables: Bool
    var snapshots: [Qcow2Snapshot]
}

/// Clusters as they will be counted, and which of them are free in the old state and the new one.
private struct NewCounts {
    var counts: [UInt32]
    /// Counts of the old state: what isn't zero must stay as it is.
    let old: [UInt32]
    let clusterBits: UInt64
    private var cursor = 1

    init(counts: [UInt32], old: [UInt32], clusterBits: UInt64) {
        self.counts = counts
        self.old = old
        self.clusterBits = clusterBits
    }

    /// The first byte of that many free clusters that follow one another, which are counted once each.
    mutating func take(_ wanted: Int) -> UInt64 {
        var run = 0
        while run < wanted {
            let index = cursor
            let isFree = (index >= old.count || old[index] == 0) && (index >= counts.count || counts[index] == 0)
            run = isFree ? run + 1 : 0
            cursor += 1
        }
        let first = cursor - wanted
        if cursor > counts.count { counts += [UInt32](repeating: 0, count: cursor - counts.count) }
        for index in first..<cursor { counts[index] = 1 }
        return UInt64(first) << clusterBits
    }

    /// Bytes of the file that hold something.
    var used: Int { (counts.lastIndex { $0 != 0 } ?? 0) + 1 }
}

extension Qcow2Volume {
    // MARK: What is asked for

    /// Keeps the disk as it is now under a name.
    mutating func createSnapshot(_ name: String) throws {
        let (snapshots, _) = try Qcow2Snapshot.table(file, header)
        guard !name.isEmpty, name.utf8.count <= 1023, !name.utf8.contains(0) else {
            throw StorageError(.badRequest, "disk \(file.path): a snapshot's name has 1 to 1023 bytes")
        }
        guard !snapshots.contains(where: { $0.name == name }) else {
            throw StorageError(.exists, "disk \(file.path): has a snapshot '\(name)' already")
        }
        guard snapshots.count < Qcow2Header.mostSnapshots else {
            throw file.unsupported("has as many snapshots as there can be")
        }
        try prepareForSnapshots()
        let number = (snapshots.compactMap { UInt64($0.id) }.max() ?? 0) &+ 1
        var now = timespec()
        unsafe clock_gettime(CLOCK_REALTIME, &now)
        let snapshot = Qcow2Snapshot(
            id: "\(number)", name: name, seconds: UInt32(truncatingIfNeeded: now.tv_sec),
            nanoseconds: UInt32(truncatingIfNeeded: now.tv_nsec), diskSize: header.size, l1Offset: header.l1Offset,
            l1Entries: header.l1Entries)
        // The tables there are become the snapshot's.
        try carryOut(Plan(header: header, l1: l1, ownsTables: false, snapshots: snapshots + [snapshot]))
    }

    /// Makes the disk what it was.
    mutating func applySnapshot(_ name: String) throws {
        let (snapshots, _) = try Qcow2Snapshot.table(file, header)
        let found = try Qcow2Snapshot.find(name, snapshots, file)
        try prepareForSnapshots()
        var new = header
        new.size = found.diskSize ?? header.size
        let needed = new.l1EntriesNeeded(for: new.size)
        guard new.size <= 1 << 62, needed <= found.l1Entries else {
            throw file.damaged("has a snapshot whose L1 table is too small")
        }
        new.l1Entries = max(new.l1Entries, needed)
        let bytes = try file.read(at: found.l1Offset, exactly: found.l1Entries * 8, "snapshot's L1 table")
        // What is behind the disk is a machine's state, and stays the snapshot's.
        var l1 = Array([UInt64](big: bytes).prefix(needed))
        l1 += [UInt64](repeating: 0, count: new.l1Entries - l1.count)
        try carryOut(Plan(header: new, l1: l1, ownsTables: false, snapshots: snapshots))
    }

    /// Forgets what the disk was.
    mutating func deleteSnapshot(_ name: String) throws {
        var (snapshots, _) = try Qcow2Snapshot.table(file, header)
        let found = try Qcow2Snapshot.find(name, snapshots, file)
        try prepareForSnapshots()
        snapshots.removeAll { $0.l1Offset == found.l1Offset && $0.id == found.id }
        try carryOut(Plan(header: header, l1: l1, ownsTables: true, snapshots: snapshots))
    }

    private mutating func prepareForSnapshots() throws {
        if header.hasBitmaps { throw file.unsupported("has dirty bitmaps; make its snapshots with 'qemu-img'") }
        try flush()
        let report = try check()
        guard report.corruptions == 0 else {
            throw file.damaged("is not sound: \(report.findings.first ?? ""); see 'roost disk check'")
        }
    }

    // MARK: Carrying it out

    private mutating func carryOut(_ plan: Plan) throws {
        var (new, tables) = (plan.header, plan.l1)
        let old = try countedNow()
        var counts = NewCounts(counts: try countReferences(of: plan), old: old, clusterBits: clusterBits)
        try writeTables(&tables, &counts, ownsThem: plan.ownsTables)
        if plan.ownsTables, tables == plan.l1 {
            for cluster in try clusters(of: new.l1Offset, new.l1Entries * 8) { counts.counts[cluster] += 1 }
        } else {
            new.l1Offset = try put(tables.big(0..<tables.count), &counts)
        }
        let list = plan.snapshots.flatMap(\.encoded)
        new.snapshotCount = plan.snapshots.count
        new.snapshotsOffset = list.isEmpty ? 0 : try put(list, &counts)
        guard counts.counts.allSatisfy({ UInt64($0) <= mostReferences }) else {
            throw file.unsupported("has refcounts of \(1 << header.refcountOrder) bits, too few for another snapshot")
        }
        try writeCounts(&counts, &new)
        try file.synchronize()
        try file.write(try new.encoded()[0x18..<0x48], at: 0x18)
        try file.synchronize()
        giveBack(old, counts)
        let wasTemporary = isTemporary
        self = try Qcow2Volume(file: file, header: new, base: base)
        isTemporary = wasTemporary
    }

    /// What the file counts now.
    private mutating func countedNow() throws -> [UInt32] {
        let clusters = (try file.byteCount() &+ clusterMask) >> clusterBits
        guard clusters <= Self.mostCheckedClusters else { throw file.unsupported("is too large for snapshots") }
        var counts = [UInt32](repeating: 0, count: Int(clusters))
        for cluster in counts.indices { counts[cluster] = UInt32(clamping: try refcount(UInt64(cluster))) }
        return counts
    }

    /// Clusters that a range of the file touches.
    private func clusters(of offset: UInt64, _ length: Int) throws -> Range<Int> {
        let end = offset &+ UInt64(max(0, length))
        guard length >= 0, end >= offset, end >> clusterBits < Self.mostCheckedClusters else {
            throw file.damaged("has a table beyond its end")
        }
        return Int(offset >> clusterBits)..<Int((end + clusterMask) >> clusterBits)
    }

    /// References to the header, to data, and to the snapshots' tables; the active tree's own tables come later.
    private mutating func countReferences(of plan: Plan) throws -> [UInt32] {
        let size = Int((try file.byteCount() &+ clusterMask) >> clusterBits)
        var counts = [UInt32](repeating: 0, count: max(1, size))
        func add(_ clusters: Range<Int>) throws {
            guard clusters.upperBound <= counts.count else { throw file.damaged("has references beyond its end") }
            for cluster in clusters { counts[cluster] += 1 }
        }
        try add(0..<1)
        for snapshot in plan.snapshots {
            try add(try clusters(of: snapshot.l1Offset, snapshot.l1Entries * 8))
            let bytes = try file.read(at: snapshot.l1Offset, exactly: snapshot.l1Entries * 8, "snapshot's L1 table")
            for entry in [UInt64](big: bytes) where entry & Qcow2Entry.offset != 0 {
                try add(try clusters(of: entry & Qcow2Entry.offset, clusterSize))
                for range in try content(ofTable: entry & Qcow2Entry.offset) { try add(range) }
            }
        }
        for entry in plan.l1 where entry & Qcow2Entry.offset != 0 {
            for range in try content(ofTable: entry & Qcow2Entry.offset) { try add(range) }
        }
        return counts
    }

    private func table(_ offset: UInt64) throws -> [UInt64] {
        [UInt64](big: try file.read(at: offset, exactly: clusterSize, "L2 table"))
    }

    /// The clusters that an L2 table refers to.
    private func content(ofTable offset: UInt64) throws -> [Range<Int>] {
        try table(offset).compactMap { entry in
            if entry == 0 { return nil }
            switch try cluster(entry) {
            case .data(let host), .zero(let host?): return try clusters(of: host, clusterSize)
            case .compressed(let at, let count):
                return try clusters(of: at & ~511, Int(at & 511) + count)
            case .unallocated, .zero(nil): return nil
            }
        }
    }

    /// Gives the active tree L2 tables of its own whose marks say what is used once; those that are right already stay.
    private mutating func writeTables(_ l1: inout [UInt64], _ counts: inout NewCounts, ownsThem: Bool) throws {
        for index in l1.indices {
            let offset = l1[index] & Qcow2Entry.offset
            if offset == 0 { continue }
            let entries = try table(offset)
            let marked = try entries.map { entry -> UInt64 in
                if entry == 0 { return entry }
                switch try cluster(entry) {
                case .data(let host), .zero(let host?):
                    let isOnce = counts.counts[Int(host >> clusterBits)] == 1
                    return isOnce ? entry | Qcow2Entry.copied : entry & ~Qcow2Entry.copied
                default: return entry
                }
            }
            if ownsThem, marked == entries, l1[index] & Qcow2Entry.copied != 0 {
                counts.counts[Int(offset >> clusterBits)] += 1
            } else {
                l1[index] = try put(marked.big(0..<marked.count), &counts) | Qcow2Entry.copied
            }
        }
    }

    /// Writes bytes to free clusters, the last one filled with zeroes; returns where.
    private func put(_ bytes: [UInt8], _ counts: inout NewCounts) throws -> UInt64 {
        let clusters = max(1, (bytes.count + clusterSize - 1) >> header.clusterBits)
        let offset = counts.take(clusters)
        try file.write(
            bytes + [UInt8](repeating: 0, count: (clusters << header.clusterBits) - bytes.count), at: offset)
        return offset
    }

    /// Writes the counts, those of their own clusters included, and says in the header where.
    private func writeCounts(_ counts: inout NewCounts, _ new: inout Qcow2Header) throws {
        let perBlock = header.refcountsPerBlock
        var blocks: [UInt64] = []
        var (tableOffset, tableClusters) = (UInt64(0), 0)
        // Each round may need more blocks for what the one before took.
        while true {
            let needed = (counts.used + perBlock - 1) / perBlock
            let wanted = max(header.refcountTableClusters, (needed * 8 + clusterSize - 1) >> header.clusterBits)
            if wanted > tableClusters {
                for index in 0..<tableClusters { counts.counts[Int(tableOffset >> clusterBits) + index] = 0 }
                (tableOffset, tableClusters) = (counts.take(wanted), wanted)
            } else if blocks.count < needed {
                blocks.append(counts.take(1))
            } else {
                break
            }
        }
        guard tableClusters << header.clusterBits <= Qcow2Header.largestRefcountTable else {
            throw file.unsupported("is as large as its refcount table can count")
        }
        for (index, offset) in blocks.enumerated() {
            var bytes = [UInt8](repeating: 0, count: clusterSize)
            for step in 0..<perBlock where index * perBlock + step < counts.counts.count {
                Qcow2Volume.set(
                    &bytes, step, UInt64(counts.counts[index * perBlock + step]), order: header.refcountOrder)
            }
            try file.write(bytes, at: offset)
        }
        var table = blocks.big(0..<blocks.count)
        table += [UInt8](repeating: 0, count: (tableClusters << header.clusterBits) - table.count)
        try file.write(table, at: tableOffset)
        (new.refcountTableOffset, new.refcountTableClusters) = (tableOffset, tableClusters)
    }

    /// Makes holes of what was used and isn't any more.
    private func giveBack(_ old: [UInt32], _ counts: NewCounts) {
        if file.isBlockDevice { return }
        var start: Int?
        for index in 0...old.count {
            let isGone =
                index < old.count && old[index] != 0 && (index >= counts.counts.count || counts.counts[index] == 0)
            if isGone, start == nil { start = index }
            if !isGone, let first = start {
                // A hole that can't be made is only room lost.
                _ = try? file.discard(
                    at: UInt64(first) << clusterBits, length: UInt64(index - first) << clusterBits)
                start = nil
            }
        }
    }
}
