// What an entry of an L2 table says of a cluster.
//
// QEMU's docs/interop/qcow2.txt, "Cluster mapping".
//
//   standard     0 reads as zeroes (version 3)   9…55 host offset   62 = 0   63 refcount is exactly 1
//   compressed   0…x-1 host offset   x…61 further sectors of 512 bytes   62 = 1    (x = 62 - (cluster bits - 8))

/// Where a cluster's content is.
enum Qcow2Cluster: Equatable {
    /// In the base, or zeroes without one.
    case unallocated
    /// Zeroes; `host` is a cluster kept for it, or nil.
    case zero(host: UInt64?)
    /// In a cluster of the file.
    case data(host: UInt64)
    /// Compressed, in bytes of the file.
    case compressed(offset: UInt64, count: Int)
}

/// The parts of entries.
enum Qcow2Entry {
    /// The refcount is exactly 1, so that the cluster may be written in place.
    static let copied: UInt64 = 1 << 63
    /// Compressed.
    static let compressed: UInt64 = 1 << 62
    /// Reads as zeroes.
    static let zero: UInt64 = 1
    /// The host offset.
    static let offset: UInt64 = 0x00FF_FFFF_FFFF_FE00

    /// What an entry says; nil if it can't be.
    static func cluster(_ entry: UInt64, _ header: Qcow2Header) -> Qcow2Cluster? {
        if entry & compressed != 0 {
            let bits = UInt64(62 - (header.clusterBits - 8))
            let offset = entry & ((1 << bits) - 1) & 0x00FF_FFFF_FFFF_FFFF
            let sectors = (entry & (compressed - 1)) >> bits
            return .compressed(offset: offset, count: Int(sectors + 1) * 512 - Int(offset & 511))
        }
        let host = entry & offset
        guard host & UInt64(header.clusterSize - 1) == 0 else { return nil }
        if entry & zero != 0 { return header.version < 3 ? nil : .zero(host: host == 0 ? nil : host) }
        return host == 0 ? .unallocated : .data(host: host)
    }
}
