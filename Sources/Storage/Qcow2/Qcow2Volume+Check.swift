// Comparing refcounts with the references that there are, and setting them right.

/// What a check of an image found.
public struct DiskCheck: Sendable, Codable, Equatable {
    /// Clusters that are counted and not used.
    public var leaks = 0
    /// What contradicts itself, and puts data at risk.
    public var corruptions = 0
    /// Errors that were set right.
    public var repaired = 0
    /// Clusters of the guest's disk that have room in the file.
    public var allocated = 0
    /// Clusters of the guest's disk.
    public var total = 0
    /// The first findings, a line each.
    public var findings: [String] = []

    mutating func find(_ text: String) {
        if findings.count < 20 { findings.append(text) }
    }
}

/// References to the clusters of a file.
private struct References {
    var counts: [UInt32]
    let clusterBits: UInt64
    /// Entries of tables that may still be looked at: tables that are named again and again don't take for ever.
    private var budget: Int
    var report = DiskCheck()

    /// No image gets more.
    private static let largestBudget = 1 << 31

    /// None yet, to a file of `clusters` clusters, each of which may be a table of `entries` entries.
    init(clusters: Int, clusterBits: UInt64, entries: Int) {
        counts = [UInt32](repeating: 0, count: clusters)
        self.clusterBits = clusterBits
        budget = min(Self.largestBudget, max(1 << 28, 4 * clusters * entries))
    }

    /// Notes that entries are about to be looked at.
    mutating func spend(_ entries: Int, _ file: ImageFile) throws {
        budget -= entries
        guard budget >= 0 else { throw file.unsupported("names its tables too often to be checked") }
    }

    /// Counts a reference to each cluster that a range touches.
    mutating func add(_ offset: UInt64, _ length: UInt64, _ what: @autoclosure () -> String) {
        if length == 0 { return }
        let first = offset >> clusterBits
        let last = (offset &+ length &- 1) >> clusterBits
        guard last >= first, last < UInt64(counts.count) else {
            report.corruptions += 1
            report.find("\(what()) at \(offset) lies beyond the file's end")
            return
        }
        for cluster in Int(first)...Int(last) { counts[cluster] &+= 1 }
    }
}

extension Qcow2Volume {
    /// More clusters in a file than this aren't checked: 4 bytes each are needed.
    static let mostCheckedClusters: UInt64 = 1 << 26

    /// Compares without changing anything.
    mutating func check() throws -> DiskCheck {
        var references = try collect()
        try compare(&references, repairing: false)
        return references.report
    }

    /// Sets refcounts and the marks in the tables right, and says that they are.
    mutating func repair() throws -> DiskCheck {
        try writeTables()
        if header.hasBitmaps { throw file.unsupported("has dirty bitmaps; use 'qemu-img check -r all'") }
        var references = try collect()
        guard references.report.corruptions == 0 else {
            throw file.damaged("can't be repaired: \(references.report.findings.first ?? "its tables are wrong")")
        }
        // Free clusters are searched behind everything while the counts are wrong.
        firstFree = UInt64(references.counts.count)
        try compare(&references, repairing: true)
        try markCopied(&references)
        try flush()
        if header.features.contains(.dirty) {
            header.features.remove(.dirty)
            var bits: [UInt8] = []
            bits.appendBig(header.features.rawValue)
            try write(bits, at: 0x48)
            try synchronize()
        }
        firstFree = 0
        return references.report
    }

    // MARK: Collecting

    private mutating func collect() throws -> References {
        let clusters = (try file.byteCount() &+ clusterMask) >> clusterBits
        guard clusters <= Self.mostCheckedClusters else { throw file.unsupported("is too large to be checked") }
        // The last tables may be in clusters that the file doesn't reach yet.
        let room = Int(clusters) + 1
        var references = References(clusters: room, clusterBits: clusterBits, entries: header.l2Entries)
        references.add(0, UInt64(clusterSize), "the header")
        references.add(
            header.refcountTableOffset, UInt64(header.refcountTableClusters) << clusterBits, "the refcount table")
        for entry in refcountTable where entry & ~511 != 0 {
            references.add(entry & ~511, UInt64(clusterSize), "a refcount block")
        }
        references.report.total = Int((byteCount + clusterMask) >> clusterBits)
        references.add(header.l1Offset, UInt64(header.l1Entries) * 8, "the L1 table")
        try collect(l1, &references, isActive: true)
        if header.snapshotCount > 0 {
            let (snapshots, bytes) = try Qcow2Snapshot.table(file, header)
            references.add(header.snapshotsOffset, bytes, "the table of snapshots")
            try references.spend(snapshots.reduce(0) { $0 + $1.l1Entries }, file)
            for snapshot in snapshots {
                references.add(snapshot.l1Offset, UInt64(snapshot.l1Entries) * 8, "a snapshot's L1 table")
                let table = try file.read(at: snapshot.l1Offset, exactly: snapshot.l1Entries * 8, "snapshot's L1 table")
                try collect([UInt64](big: table), &references, isActive: false)
            }
        }
        return references
    }

    private mutating func collect(_ l1: [UInt64], _ references: inout References, isActive: Bool) throws {
        for (index, entry) in l1.enumerated() where entry & Qcow2Entry.offset != 0 {
            let offset = entry & Qcow2Entry.offset
            try references.spend(header.l2Entries, file)
            guard offset & clusterMask == 0 else {
                references.report.corruptions += 1
                references.report.find("L1 entry \(index) can't be (\(String(entry, radix: 16)))")
                continue
            }
            references.add(offset, UInt64(clusterSize), "an L2 table")
            for (place, entry) in try table(at: offset).enumerated() where entry != 0 {
                guard let cluster = Qcow2Entry.cluster(entry, header) else {
                    references.report.corruptions += 1
                    references.report.find("L2 entry \(place) at \(offset) can't be (\(String(entry, radix: 16)))")
                    continue
                }
                switch cluster {
                case .data(let host), .zero(let host?): references.add(host, UInt64(clusterSize), "a cluster")
                case .compressed(let at, let count):
                    references.add(at & ~511, at + UInt64(count) - (at & ~511), "a compressed cluster")
                case .unallocated, .zero(nil): continue
                }
                if isActive { references.report.allocated += 1 }
            }
        }
    }

    /// A table as it is now, from the cache if it is there.
    private mutating func table(at offset: UInt64) throws -> [UInt64] {
        if let place = l2.place(of: offset) { return l2.slots[place].entries }
        var bytes = [UInt8](repeating: 0, count: clusterSize)
        try file.read(at: offset, into: &bytes)
        return [UInt64](big: bytes)
    }

    // MARK: Comparing

    private mutating func compare(_ references: inout References, repairing: Bool) throws {
        // What is counted too little comes first, so that nothing in use is taken for free.
        for pass in repairing ? [true, false] : [true] {
            for cluster in references.counts.indices {
                let wanted = UInt64(references.counts[cluster])
                let counted = try refcount(UInt64(cluster))
                if counted == wanted { continue }
                if !repairing {
                    if counted < wanted { references.report.corruptions += 1 } else { references.report.leaks += 1 }
                    references.report.find("cluster \(cluster) has \(wanted) references, \(counted) are counted")
                } else if pass == (counted < wanted) {
                    try setRefcountMakingRoom(UInt64(cluster), wanted)
                    references.report.repaired += 1
                }
            }
        }
        if !repairing { try compareCopied(&references) }
    }

    /// Sets a count whose block may be missing: a new one is taken from the end of the file.
    private mutating func setRefcountMakingRoom(_ cluster: UInt64, _ value: UInt64) throws {
        let perBlock = UInt64(header.refcountsPerBlock)
        guard cluster / perBlock < UInt64(refcountTable.count) else {
            throw file.damaged("has clusters that its refcount table can't count")
        }
        if refcountTable[Int(cluster / perBlock)] & ~511 == 0 {
            let (offset, _) = try allocate(upTo: 1)
            if refcountTable[Int(cluster / perBlock)] & ~511 == 0 {
                _ = refcounts.mustWriteFirst() ? try writeRefcounts() : ()
                let place = refcounts.insert(offset, [UInt8](repeating: 0, count: clusterSize))
                refcounts.markDirty(place)
                try writeRefcounts()
                refcountTable[Int(cluster / perBlock)] = offset
                try write(offset.bigEndianBytes, at: header.refcountTableOffset + cluster / perBlock * 8)
            } else {
                giveBack(offset, 1)
            }
        }
        try setRefcount(cluster, value)
    }

    private mutating func compareCopied(_ references: inout References) throws {
        for (index, entry) in l1.enumerated() where entry & Qcow2Entry.offset != 0 {
            let offset = entry & Qcow2Entry.offset
            guard offset & clusterMask == 0, index < references.counts.count else { continue }
            try references.spend(header.l2Entries, file)
            try compareMark(entry, offset, "L1 entry \(index)", &references)
            for (place, entry) in try table(at: offset).enumerated() {
                switch Qcow2Entry.cluster(entry, header) {
                case .data(let host), .zero(let host?):
                    try compareMark(entry, host, "L2 entry \(place) at \(offset)", &references)
                default: break
                }
            }
        }
    }

    private mutating func compareMark(
        _ entry: UInt64, _ host: UInt64, _ what: String, _ references: inout References
    ) throws {
        if try refcount(host >> clusterBits) == 1 && entry & Qcow2Entry.copied == 0
            || refcount(host >> clusterBits) != 1 && entry & Qcow2Entry.copied != 0
        {
            references.report.corruptions += 1
            references.report.find("\(what) is marked wrongly as used once or more often")
        }
    }

    /// Sets the marks of entries to what their counts say.
    private mutating func markCopied(_ references: inout References) throws {
        func marked(_ entry: UInt64, _ count: UInt64) -> UInt64 {
            count == 1 ? entry | Qcow2Entry.copied : entry & ~Qcow2Entry.copied
        }
        for index in l1.indices where l1[index] & Qcow2Entry.offset != 0 {
            let right = marked(l1[index], try refcount((l1[index] & Qcow2Entry.offset) >> clusterBits))
            if right != l1[index] {
                l1[index] = right
                dirtyL1.insert(index)
                references.report.repaired += 1
            }
            guard let place = try l2Place(index) else { continue }
            for step in 0..<header.l2Entries {
                let entry = l2.slots[place].entries[step]
                switch try cluster(entry) {
                case .data(let host), .zero(let host?):
                    let right = marked(entry, try refcount(host >> clusterBits))
                    guard right != entry else { continue }
                    l2[place, step] = right
                    references.report.repaired += 1
                default: break
                }
            }
        }
    }
}

extension UInt64 {
    /// Its bytes, most significant first.
    var bigEndianBytes: [UInt8] {
        var bytes: [UInt8] = []
        bytes.appendBig(self)
        return bytes
    }
}
