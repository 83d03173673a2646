// Reading and writing the guest's bytes.
internal import HostOS

extension Qcow2Volume {
    /// A run of the guest's bytes that come from one place.
    enum Source {
        case base
        case zero
        case file(UInt64)
        case compressed(UInt64, Int)
    }

    // MARK: Reading

    /// Where the bytes from `offset` are, and how many of at most `limit` come from there.
    mutating func locate(_ offset: UInt64, _ limit: UInt64) throws -> (Source, UInt64) {
        let within = offset % header.bytesPerL2
        let most = min(limit, header.bytesPerL2 - within)
        guard let place = try l2Place(Int(offset / header.bytesPerL2)) else { return (.base, most) }
        var index = Int(within >> clusterBits)
        let inCluster = offset & clusterMask
        let first = try cluster(l2.slots[place].entries[index])
        var length = UInt64(clusterSize) - inCluster
        if case .compressed(let at, let count) = first { return (.compressed(at, count), min(most, length)) }
        while length < most {
            index += 1
            let next = try cluster(l2.slots[place].entries[index])
            switch (first, next) {
            case (.unallocated, .unallocated), (.zero, .zero): break
            case (.data(let host), .data(let other)) where other == host &+ inCluster &+ length: break
            default: return (source(first, inCluster), min(most, length))
            }
            length += UInt64(clusterSize)
        }
        return (source(first, inCluster), min(most, length))
    }

    private func source(_ cluster: Qcow2Cluster, _ inCluster: UInt64) -> Source {
        switch cluster {
        case .unallocated: .base
        case .zero: .zero
        case .data(let host): .file(host + inCluster)
        case .compressed(let offset, let count): .compressed(offset, count)
        }
    }

    /// Fills memory with the guest's bytes from `offset`.
    mutating func read(at offset: UInt64, into list: ScatterList) throws {
        var (offset, rest) = (offset, list)
        while rest.count > 0 {
            let (source, length) = try locate(offset, UInt64(rest.count))
            let part = rest.prefix(Int(length))
            switch source {
            case .base: try readBase(at: offset, into: part)
            case .zero: part.zero()
            case .file(let host): try file.read(at: host, into: part)
            case .compressed(let host, let count):
                let cluster = try expand(host, count)
                let start = Int(offset & clusterMask)
                part.store(cluster[start..<start + part.count])
            }
            offset += length
            rest = rest.dropFirst(part.count)
        }
    }

    /// What lies beyond the base's end is zeroes.
    private func readBase(at offset: UInt64, into list: ScatterList) throws {
        let end = base?.byteCount ?? 0
        let count = offset < end ? Int(min(UInt64(list.count), end - offset)) : 0
        if count > 0 { try base?.read(at: offset, into: list.prefix(count)) }
        list.dropFirst(count).zero()
    }

    /// A compressed cluster's content.
    mutating func expand(_ offset: UInt64, _ count: Int) throws -> [UInt8] {
        if let expanded, expanded.offset == offset { return expanded.bytes }
        var input = [UInt8](repeating: 0, count: count)
        try file.read(at: offset, into: &input)
        let method: Compression = header.isZstd ? .zstd : .deflate
        guard let bytes = method.expand(input, count: clusterSize) else {
            throw file.damaged("has a compressed cluster at \(offset) that can't be expanded")
        }
        expanded = (offset, bytes)
        return bytes
    }

    /// What is at `offset`.
    mutating func extent(at offset: UInt64, limit: UInt64) throws -> DiskExtent {
        let (source, length) = try locate(offset, limit)
        switch source {
        case .zero: return DiskExtent(length: length, isZero: true)
        case .file, .compressed: return DiskExtent(length: length, isZero: false)
        case .base:
            guard let base, offset < base.byteCount else { return DiskExtent(length: length, isZero: true) }
            return try base.extent(at: offset, limit: min(length, base.byteCount - offset))
        }
    }

    // MARK: Writing

    /// Writes the guest's bytes at `offset`.
    mutating func write(guest list: ScatterList, at offset: UInt64) throws {
        if releases.count > Self.mostReleases { try writeTables() }
        var (offset, rest) = (offset, list)
        while rest.count > 0 {
            let index = Int(offset / header.bytesPerL2)
            let place = try l2PlaceForWriting(index)
            let within = offset % header.bytesPerL2
            let part = rest.prefix(Int(min(UInt64(rest.count), header.bytesPerL2 - within)))
            let done = try write(part, at: offset, place, Int(within >> clusterBits))
            offset += UInt64(done)
            rest = rest.dropFirst(done)
        }
    }

    /// Writes as much as can be written in one piece; returns how much that was.
    private mutating func write(
        _ bytes: ScatterList, at offset: UInt64, _ place: Int, _ index: Int
    ) throws -> Int {
        let inCluster = Int(offset & clusterMask)
        let clusters = (inCluster + bytes.count + clusterSize - 1) >> header.clusterBits
        let entry = l2.slots[place].entries[index]
        if entry & Qcow2Entry.copied != 0 {
            switch try cluster(entry) {
            case .data(let host):
                var run = 1
                while run < clusters, l2.slots[place].entries[index + run] == entry &+ UInt64(run << header.clusterBits)
                {
                    run += 1
                }
                let part = bytes.prefix((run << header.clusterBits) - inCluster)
                try overwrite(part, at: host + UInt64(inCluster))
                return part.count
            case .zero(let host?):
                let part = bytes.prefix(clusterSize - inCluster)
                try overwrite(try whole(part, at: offset, 1), at: host)
                l2[place, index] = host | Qcow2Entry.copied
                return part.count
            default: break
            }
        }
        var run = 1
        while run < clusters, try mustMove(l2.slots[place].entries[index + run]) { run += 1 }
        return try writeMoved(bytes, at: offset, place, index, run)
    }

    /// Whether a write to a cluster needs a new one.
    private func mustMove(_ entry: UInt64) throws -> Bool {
        if entry & Qcow2Entry.copied == 0 { return true }
        switch try cluster(entry) {
        case .data, .zero(host: _?): return false
        default: return true
        }
    }

    private mutating func overwrite(_ bytes: ScatterList, at host: UInt64) throws {
        guard !isVital(host, UInt64(bytes.count)) else { throw file.damaged("has data where its tables are") }
        try write(bytes, at: host)
    }

    /// Writes to up to `run` new clusters that follow one another.
    private mutating func writeMoved(
        _ bytes: ScatterList, at offset: UInt64, _ place: Int, _ index: Int, _ run: Int
    ) throws -> Int {
        let (host, count) = try allocate(upTo: run)
        let inCluster = Int(offset & clusterMask)
        let part = bytes.prefix((count << header.clusterBits) - inCluster)
        do {
            if isFresh(host), try leavesZeroes(around: part.count, at: offset, place, index, count) {
                try write(part, at: host + UInt64(inCluster))
            } else {
                try write(try whole(part, at: offset, count), at: host)
            }
        } catch {
            giveBack(host, count)
            throw error
        }
        for step in 0..<count {
            let old = l2.slots[place].entries[index + step]
            l2[place, index + step] = (host + UInt64(step << header.clusterBits)) | Qcow2Entry.copied
            try releaseContent(of: old)
        }
        return part.count
    }

    /// Lets go of what an entry referred to.
    mutating func releaseContent(of entry: UInt64) throws {
        switch try cluster(entry) {
        case .data(let host), .zero(let host?): release(host, UInt64(clusterSize))
        case .compressed(let offset, let count):
            let start = offset & ~511
            release(start, offset + UInt64(count) - start)
        case .unallocated, .zero(nil): break
        }
    }

    /// Whether what `count` clusters hold beside the bytes to write reads as zeroes now.
    private func leavesZeroes(
        around bytes: Int, at offset: UInt64, _ place: Int, _ index: Int, _ count: Int
    ) throws -> Bool {
        func isZero(_ step: Int) throws -> Bool {
            switch try cluster(l2.slots[place].entries[index + step]) {
            case .zero: return true
            case .unallocated:
                let start = (offset & ~clusterMask) + UInt64(step << header.clusterBits)
                return base.map { start >= $0.byteCount } ?? true
            default: return false
            }
        }
        let inCluster = Int(offset & clusterMask)
        if inCluster != 0, try !isZero(0) { return false }
        return try (inCluster + bytes) & Int(clusterMask) == 0 || isZero(count - 1)
    }

    /// The bytes with what stands beside them in the guest's clusters.
    private mutating func whole(_ bytes: ScatterList, at offset: UInt64, _ count: Int) throws -> ScatterList {
        let start = offset & ~clusterMask
        let head = Int(offset - start)
        let total = count << header.clusterBits
        if head == 0 && bytes.count == total { return bytes }
        let buffer = ScatterList(count: total)
        let end = head + bytes.count
        if head > 0 { try read(at: start, into: buffer.prefix(head)) }
        let known = Int(min(UInt64(total), byteCount - start))
        if end < known { try read(at: start + UInt64(end), into: buffer[end..<known]) }
        buffer[head..<end].store(bytes.load())
        return buffer
    }

    /// Writes a whole cluster compressed, if it isn't allocated yet and gets smaller; false if not.
    mutating func writeCompressed(_ bytes: [UInt8], at offset: UInt64) throws -> Bool {
        let method: Compression = header.isZstd ? .zstd : .deflate
        guard bytes.count == clusterSize, let packed = method.compress(bytes, limit: clusterSize - 512) else {
            return false
        }
        let place = try l2PlaceForWriting(Int(offset / header.bytesPerL2))
        let index = Int((offset % header.bytesPerL2) >> clusterBits)
        guard try cluster(l2.slots[place].entries[index]) == .unallocated else { return false }
        let host = try allocateBytes(packed.count)
        try write(packed, at: host)
        let bits = UInt64(62 - (header.clusterBits - 8))
        let sectors = (UInt64(packed.count) + (host & 511) - 1) / 512
        l2[place, index] = host | sectors << bits | Qcow2Entry.compressed
        return true
    }

    /// Room for compressed data: behind the last, in the same cluster if it fits.
    private mutating func allocateBytes(_ count: Int) throws -> UInt64 {
        let start = compressedCursor
        let left = start & clusterMask == 0 ? 0 : clusterSize - Int(start & clusterMask)
        if left > 0, try refcount(start >> clusterBits) < mostReferences {
            let shared = start >> clusterBits
            if count <= left {
                try setRefcount(shared, try refcount(shared) + 1)
                compressedCursor = start + UInt64(count)
                return start
            }
            let (next, _) = try allocate(upTo: 1)
            guard next >> clusterBits == shared + 1 else {
                compressedCursor = next + UInt64(count)
                return next
            }
            try setRefcount(shared, try refcount(shared) + 1)
            compressedCursor = start + UInt64(count)
            return start
        }
        let (next, _) = try allocate(upTo: 1)
        compressedCursor = next + UInt64(count)
        return next
    }
}
