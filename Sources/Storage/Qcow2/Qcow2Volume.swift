// The state of an open qcow2 image: its tables, in bounded caches, and what has to be written to the file.
//
// Order of writes. Data are written at once, into clusters that nothing in the file refers to yet or that are the
// guest's alone. Tables change in memory, and `writeTables` brings them to the file in an order in which the file is
// valid after each step:
//
//   1. refcounts, which by then only count too much
//   2. L2 tables, once refcounts and data are durable
//   3. L1 entries, once new L2 tables are durable
//   4. refcounts of what is no longer referred to, once that is durable: with the next round
//
// A process that is killed, or a host that loses power, leaves at worst clusters that are counted and unused.
internal import HostOS

/// What an open qcow2 image consists of; `Qcow2Image` locks it.
struct Qcow2Volume: Sendable {
    /// Clusters, from a first one, that lose a reference.
    struct Release: Sendable {
        var first: UInt64
        var count: UInt64
    }

    let file: ImageFile
    var header: Qcow2Header
    /// What unallocated clusters read as.
    let base: (any DiskImage)?
    /// The guest's bytes, whole sectors.
    var byteCount: UInt64
    /// The file goes away with the process: nothing needs to be durable.
    var isTemporary = false

    var l1: [UInt64]
    var dirtyL1: Set<Int> = []
    var l2: TableCache<UInt64>
    var refcountTable: [UInt64]
    var refcounts: TableCache<UInt8>
    var releases: [Release] = []
    /// No cluster before it is free.
    var firstFree: UInt64 = 0
    /// Bytes of the file that may hold something; beyond it all is zero.
    var highWater: UInt64 = 0
    /// The cluster into which compressed data go next, and the first free byte.
    var compressedCursor: UInt64 = 0
    /// The compressed cluster that was expanded last.
    var expanded: (offset: UInt64, bytes: [UInt8])?
    /// The host couldn't make something durable: what is in the file isn't known any more.
    var isLost = false

    static let l2CacheBytes = 4 << 20
    static let refcountCacheBytes = 1 << 20
    static let mostReleases = 8192

    /// Reads an image's tables; those of a snapshot if one is named.
    init(file: ImageFile, header: Qcow2Header, base: (any DiskImage)?, snapshot: String? = nil) throws {
        self.file = file
        self.header = header
        self.base = base
        byteCount = header.size & ~511
        var (offset, entries) = (header.l1Offset, header.l1Entries)
        if let snapshot {
            let found = try Qcow2Snapshot.find(snapshot, try Qcow2Snapshot.list(file, header), file)
            (offset, entries) = (found.l1Offset, found.l1Entries)
            byteCount = (found.diskSize ?? header.size) & ~511
            guard header.l1EntriesNeeded(for: byteCount) <= entries else {
                throw file.damaged("has a snapshot whose L1 table is too small")
            }
        }
        l1 = [UInt64](big: try file.read(at: offset, exactly: entries * 8, "L1 table"))
        refcountTable = [UInt64](
            big: try file.read(
                at: header.refcountTableOffset, exactly: header.refcountTableClusters << header.clusterBits,
                "refcount table"))
        l2 = TableCache(capacity: Self.l2CacheBytes >> header.clusterBits)
        refcounts = TableCache(capacity: Self.refcountCacheBytes >> header.clusterBits)
        highWater = try file.byteCount()
    }

    var clusterSize: Int { header.clusterSize }
    var clusterBits: UInt64 { UInt64(header.clusterBits) }
    var clusterMask: UInt64 { UInt64(header.clusterSize - 1) }

    /// Whether a range of the file holds the header, the L1 table, the refcount table or the table of snapshots: an
    /// image that has a guest's data there must not get them written.
    func isVital(_ offset: UInt64, _ length: UInt64) -> Bool {
        func touches(_ start: UInt64, _ count: UInt64) -> Bool {
            count > 0 && offset < start &+ count && start < offset &+ length
        }
        return touches(0, UInt64(clusterSize)) || touches(header.l1Offset, UInt64(header.l1Entries) * 8)
            || touches(header.refcountTableOffset, UInt64(header.refcountTableClusters) << clusterBits)
            || (header.snapshotCount > 0 && touches(header.snapshotsOffset, UInt64(clusterSize)))
    }

    // MARK: L2 tables

    /// Where an L2 table is that an entry of the L1 table names; nil if there is none.
    func l2Offset(_ index: Int) throws -> UInt64? {
        guard l1.indices.contains(index) else { throw file.damaged("has no L1 entry \(index)") }
        let offset = l1[index] & Qcow2Entry.offset
        if offset == 0 { return nil }
        guard offset & clusterMask == 0 else { throw file.damaged("has an L2 table at \(offset), inside a cluster") }
        return offset
    }

    /// The place in the cache of the L2 table behind an L1 entry; nil if there is none.
    mutating func l2Place(_ index: Int) throws -> Int? {
        guard let offset = try l2Offset(index) else { return nil }
        if let place = l2.place(of: offset) { return place }
        let entries = [UInt64](big: try file.read(at: offset, exactly: clusterSize, "L2 table"))
        try makeRoomForL2()
        return l2.insert(offset, entries)
    }

    /// The same, made or copied so that it may be changed.
    mutating func l2PlaceForWriting(_ index: Int) throws -> Int {
        let old = try l2Place(index)
        if let old, l1[index] & Qcow2Entry.copied != 0 {
            guard !isVital(l1[index] & Qcow2Entry.offset, UInt64(clusterSize)) else {
                throw file.damaged("has an L2 table where other tables are")
            }
            return old
        }
        let entries = old.map { l2.slots[$0].entries } ?? [UInt64](repeating: 0, count: header.l2Entries)
        try makeRoomForL2()
        let (offset, _) = try allocate(upTo: 1)
        let place = l2.insert(offset, entries)
        l2.markDirty(place)
        if let shared = try l2Offset(index) { release(shared, UInt64(clusterSize)) }
        l1[index] = offset | Qcow2Entry.copied
        dirtyL1.insert(index)
        return place
    }

    private mutating func makeRoomForL2() throws {
        if l2.mustWriteFirst() { try writeTables() }
    }

    /// What the entry of an L2 table says.
    func cluster(_ entry: UInt64) throws -> Qcow2Cluster {
        guard let cluster = Qcow2Entry.cluster(entry, header) else {
            throw file.damaged("has an L2 entry that can't be (\(String(entry, radix: 16)))")
        }
        return cluster
    }

    // MARK: Writing tables

    /// Writes tables in the order that keeps the file valid; see above.
    mutating func writeTables() throws {
        if isLost { throw file.damaged("couldn't be made durable; what it holds is not known") }
        try writeRefcounts()
        let tables = l2.dirtyPlaces
        if !tables.isEmpty || !dirtyL1.isEmpty {
            try synchronize()
            for place in tables {
                guard let dirty = l2.slots[place].dirty else { continue }
                let slot = l2.slots[place]
                try write(slot.entries.big(dirty), at: slot.offset + UInt64(dirty.lowerBound * 8))
                l2.markClean(place)
            }
            if !dirtyL1.isEmpty { try synchronize() }
            for index in dirtyL1.sorted() {
                try write(l1.big(index..<index + 1), at: header.l1Offset + UInt64(index * 8))
            }
            dirtyL1 = []
        }
        if releases.isEmpty { return }
        try synchronize()
        let released = releases
        releases = []
        for release in released { try drop(release) }
        try writeRefcounts()
    }

    /// Makes what is written durable.
    mutating func synchronize() throws {
        if isTemporary { return }
        do { try file.synchronize() } catch {
            isLost = true
            throw error
        }
    }

    /// Makes everything durable.
    mutating func flush() throws {
        try writeTables()
        try synchronize()
    }

    /// Writes to the file, and notes how far it reaches.
    mutating func write(_ list: ScatterList, at offset: UInt64) throws {
        highWater = max(highWater, offset &+ UInt64(list.count))
        try file.write(list, at: offset)
    }

    mutating func write(_ bytes: [UInt8], at offset: UInt64) throws {
        highWater = max(highWater, offset &+ UInt64(bytes.count))
        try file.write(bytes, at: offset)
    }

    /// Notes that clusters lose a reference, once the tables that say so are durable.
    mutating func release(_ offset: UInt64, _ length: UInt64) {
        let first = offset >> clusterBits
        let count = ((offset &+ length &- 1) >> clusterBits) &- first &+ 1
        if var last = releases.last, last.first &+ last.count == first {
            last.count &+= count
            releases[releases.count - 1] = last
        } else {
            releases.append(Release(first: first, count: count))
        }
    }
}
