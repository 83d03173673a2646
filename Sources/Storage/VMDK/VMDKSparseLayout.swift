// Sparse extents of VMDK images, stream-optimized ones too.
//
// VMware, Virtual Disk Format 5.0, "Hosted Sparse Extents" and "Stream-Optimized Compressed Sparse Extents"; all numbers
// little-endian, places in sectors of 512 bytes.
//
//   00 "KDMV"   04 version 32   08 flags 32 (1 redundant tables, 2 zero grains, 16 compressed, 17 markers)
//   0C capacity 64   14 grain size 64   1C descriptor 64   24 its size 64   2C entries of a grain table 32
//   30 redundant directory 64   38 directory 64 (all ones: in the footer)   40 overhead 64   48 unclean 8
//   49 "\n \r\n"   4D compression 16 (1 deflate)
//   directory: 32 bits a grain table; grain table: 32 bits a grain, 0 not allocated, 1 zeroes
//   a compressed grain: first sector 64, length 32, zlib's data

/// Where the grains of a sparse extent are.
struct VMDKSparseLayout: BlockLayout {
    let format = DiskFormat.vmdk
    let byteCount: UInt64
    let blockSize: UInt64
    /// Where the embedded descriptor is.
    let descriptor: (offset: UInt64, count: Int)?
    private let directory: UInt64
    private let grainsPerTable: UInt64
    private let isCompressed: Bool
    private let hasZeroGrains: Bool

    init(_ file: ImageFile) throws {
        var header = try file.read(at: 0, exactly: 512, "header")
        var place = try header.little(UInt64.self, 0x38)
        if place == .max {
            // The footer: the last sector but one, before the end-of-stream marker.
            let end = try file.byteCount()
            guard end >= 2048 else { throw file.damaged("has no footer") }
            header = try file.read(at: (end & ~511) - 1024, exactly: 512, "footer")
            place = try header.little(UInt64.self, 0x38)
        }
        guard header.starts(with: Array("KDMV".utf8)) else { throw file.damaged("has no footer") }
        let version = try header.little(UInt32.self, 4)
        guard (1...3).contains(version) else { throw file.unsupported("is of VMDK's version \(version)") }
        let flags = try header.little(UInt32.self, 8)
        isCompressed = flags & 1 << 16 != 0
        hasZeroGrains = flags & 4 != 0
        let compression = try header.little(UInt16.self, 0x4D)
        guard compression <= 1, isCompressed == (compression == 1) else {
            throw file.unsupported("is compressed in a way (\(compression)) that Roost doesn't know")
        }
        guard Array(header[0x49..<0x4D]) == [10, 32, 13, 10] else {
            throw file.damaged("went through a transfer that changed its line ends")
        }
        let capacity = try header.little(UInt64.self, 0x0C)
        let grain = try header.little(UInt64.self, 0x14)
        grainsPerTable = UInt64(try header.little(UInt32.self, 0x2C))
        guard capacity <= 1 << 53, (1...65536).contains(grain), grain & (grain - 1) == 0,
            (1...1 << 20).contains(grainsPerTable), place <= 1 << 53
        else { throw file.damaged("has a VMDK header that can't be") }
        byteCount = capacity * 512
        blockSize = grain * 512
        directory = place * 512
        let (text, size) = (try header.little(UInt64.self, 0x1C), try header.little(UInt64.self, 0x24))
        guard text <= 1 << 53, size <= UInt64(VMDKDescriptor.largest / 512) else {
            throw file.damaged("has a descriptor that can't be")
        }
        descriptor = text == 0 || size == 0 ? nil : (text * 512, Int(size) * 512)
    }

    func place(of block: UInt64, in table: inout TableReader) throws -> BlockPlace {
        let grains = try table.little32(at: directory + block / grainsPerTable * 4)
        if grains == 0 { return .zero }
        let sector = try table.little32(at: UInt64(grains) * 512 + block % grainsPerTable * 4)
        if sector == 0 || (sector == 1 && hasZeroGrains) { return .zero }
        let offset = UInt64(sector) * 512
        guard isCompressed else { return .file(offset) }
        let marker = try table.file.read(at: offset, exactly: 12, "grain")
        let count = try marker.little(UInt32.self, 8)
        guard count > 0, UInt64(count) <= 2 * blockSize + 1024 else {
            throw table.file.damaged("has a compressed grain of \(count) bytes")
        }
        return .zlib(offset + 12, Int(count))
    }
}
