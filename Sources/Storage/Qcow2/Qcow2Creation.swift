// Making qcow2 images.

/// What a new qcow2 image is to be.
public struct Qcow2Options: Sendable {
    /// Bytes; 0 takes the base's.
    public var size: UInt64 = 0
    /// Bytes of a cluster.
    public var clusterSize = 65536
    /// 2 or 3.
    public var version = 3
    /// Whether compressed clusters are zstd's instead of zlib's.
    public var isZstd = false
    /// Whether other programs may leave refcounts for later; Roost doesn't.
    public var hasLazyRefcounts = false
    /// Bits of a refcount.
    public var refcountBits = 16
    /// The image that it is based on; relative to the new image's folder.
    public var base: String?
    /// The base's format; nil asks its content.
    public var baseFormat: DiskFormat?
    /// What room is taken at once.
    public var preallocation = Preallocation.off

    /// The defaults.
    public init() {}

    /// The header that says so, with places for its tables.
    func header() throws(StorageError) -> Qcow2Header {
        func require(_ condition: Bool, _ what: String) throws(StorageError) {
            if !condition { throw StorageError(.badRequest, what) }
        }
        try require(
            size >= 512 && size % 512 == 0 && size <= 1 << 62, "the size must be a multiple of 512, and not zero")
        try require(
            clusterSize & (clusterSize - 1) == 0 && (512...2 << 20).contains(clusterSize),
            "the cluster size must be a power of two from 512 to 2M")
        try require(version == 2 || version == 3, "qcow2 has the versions 2 and 3")
        try require(
            (1...64).contains(refcountBits) && refcountBits & (refcountBits - 1) == 0,
            "refcounts have 1, 2, 4, 8, 16, 32 or 64 bits")
        try require(
            version == 3 || (refcountBits == 16 && !isZstd && !hasLazyRefcounts),
            "zstd, lazy refcounts and other than 16 bits for refcounts need version 3")
        var header = Qcow2Header()
        header.version = UInt32(version)
        header.clusterBits = clusterSize.trailingZeroBitCount
        header.refcountOrder = refcountBits.trailingZeroBitCount
        header.size = size
        header.length = version == 2 ? 72 : 112
        header.isZstd = isZstd
        header.features = isZstd ? .compressionType : []
        header.compatible = hasLazyRefcounts ? 1 : 0
        header.backingName = base
        header.backingFormat = baseFormat.map { $0 == .vhd ? "vpc" : $0.rawValue }
        try require(
            header.size / header.bytesPerL2 < UInt64(Qcow2Header.largestL1 / 8), "clusters are too small for this size")
        header.l1Entries = header.l1EntriesNeeded(for: size)
        header.layOut()
        return header
    }
}

extension Qcow2Header {
    /// Clusters of the L1 table.
    var l1Clusters: Int { (l1Entries * 8 + clusterSize - 1) >> clusterBits }

    /// Refcount blocks that count what a new image has.
    private var firstBlocks: Int {
        let perBlock = refcountsPerBlock
        var blocks = 1
        while blocks * perBlock < 1 + tableClusters(blocks) + blocks + l1Clusters { blocks += 1 }
        return blocks
    }

    private func tableClusters(_ blocks: Int) -> Int { (blocks * 8 + clusterSize - 1) >> clusterBits }

    /// Header, refcount table, refcount blocks, L1 table, in this order.
    fileprivate mutating func layOut() {
        let blocks = firstBlocks
        refcountTableClusters = tableClusters(blocks)
        refcountTableOffset = UInt64(clusterSize)
        l1Offset = UInt64(1 + refcountTableClusters + blocks) << UInt64(clusterBits)
    }

    /// Writes a new image's tables, the header last.
    func create(in file: ImageFile) throws {
        let first = try encoded()
        let blocks = firstBlocks
        let used = 1 + refcountTableClusters + blocks + l1Clusters
        try file.setByteCount(UInt64(used) << UInt64(clusterBits))
        let table = (0..<blocks).map { UInt64(1 + refcountTableClusters + $0) << UInt64(clusterBits) }
        try file.write(table.big(0..<blocks), at: refcountTableOffset)
        var counts = [UInt8](repeating: 0, count: blocks << clusterBits)
        let bits = 1 << refcountOrder
        for cluster in 0..<used {
            // The lowest bit of each count.
            let bit = bits < 8 ? cluster * bits : (cluster + 1) * bits - 8
            counts[bit / 8] |= 1 << UInt8(bit % 8)
        }
        try file.write(counts, at: table[0])
        try file.write(first, at: 0)
    }
}

extension Qcow2Volume {
    /// Maps all clusters to room that follows one another as far as that goes.
    mutating func preallocate(_ kind: Preallocation) throws {
        var offset: UInt64 = 0
        while offset < byteCount {
            let place = try l2PlaceForWriting(Int(offset / header.bytesPerL2))
            let end = min(byteCount, offset + header.bytesPerL2)
            while offset < end {
                let index = Int((offset % header.bytesPerL2) >> clusterBits)
                let wanted = Int((end - offset + clusterMask) >> clusterBits)
                let (host, count) = try allocate(upTo: wanted)
                for step in 0..<count {
                    l2[place, index + step] = (host + UInt64(step << header.clusterBits)) | Qcow2Entry.copied
                }
                try fill(host, UInt64(count) << clusterBits, kind)
                offset += UInt64(count) << clusterBits
            }
        }
        try flush()
    }

    private mutating func fill(_ host: UInt64, _ length: UInt64, _ kind: Preallocation) throws {
        let end = host + length
        highWater = max(highWater, end)
        if try file.byteCount() < end { try file.setByteCount(end) }
        if kind == .falloc || kind == .full { try file.allocate(at: host, length: length) }
        guard kind == .full else { return }
        let zeroes = [UInt8](repeating: 0, count: 1 << 20)
        var done: UInt64 = 0
        while done < length {
            let part = min(UInt64(zeroes.count), length - done)
            try file.write(zeroes[..<Int(part)], at: host + done)
            done += part
        }
    }
}
