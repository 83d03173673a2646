// Virtual PC's disk images.
//
// Microsoft, Virtual Hard Disk Image Format Specification 1.0; all numbers big-endian.
//
//   footer, the last 512 bytes, and a copy at the start unless the size is fixed:
//   00 "conectix"   08 features 32   0C version 32   10 dynamic header's offset 64   18 time 32   1C creator (4)
//   20 its version 32   24 its system (4)   28 original size 64   30 size 64   38 cylinders 16, heads 8, sectors 8
//   3C type 32 (2 fixed, 3 dynamic, 4 differencing)   40 checksum 32   44 identifier (16)   54 saved state 8
//   dynamic header: 00 "cxsparse"   10 table's offset 64   18 version 32   1C entries 32   20 block size 32
//   table: 32 bits a block, its sector in the file, FFFFFFFF not allocated; a block begins with a bitmap of its sectors

/// Where the blocks of a VHD image are.
struct VHDLayout: BlockLayout {
    let format = DiskFormat.vhd
    let byteCount: UInt64
    let blockSize: UInt64
    /// The table; nil if the size is fixed.
    private let table: (offset: UInt64, entries: UInt64)?
    private let bitmapSize: UInt64

    init(_ file: ImageFile) throws {
        let end = try file.byteCount()
        var footer = try file.read(at: 0, exactly: 512, "header")
        if try footer.text(0, 8) != "conectix" {
            guard end >= 1024 else { throw file.damaged("is no VHD image") }
            footer = try file.read(at: end - 512, exactly: 512, "footer")
        }
        guard try footer.text(0, 8) == "conectix" else { throw file.damaged("is no VHD image") }
        try Self.verify(footer, at: 0x40, file, "footer")
        let size = try Self.size(footer)
        let type = try footer.big(UInt32.self, 0x3C)
        if type == 2 {
            guard size <= end - 512 else { throw file.damaged("is shorter than its size of \(size) bytes") }
            byteCount = size
            blockSize = 2 << 20
            table = nil
            bitmapSize = 0
            return
        }
        guard type == 3 else { throw file.unsupported("is a VHD image that needs another (type \(type))") }
        let header = try file.read(at: try footer.big(UInt64.self, 0x10), exactly: 1024, "dynamic header")
        guard try header.text(0, 8) == "cxsparse" else { throw file.damaged("has no dynamic header") }
        try Self.verify(header, at: 0x24, file, "dynamic header")
        let block = UInt64(try header.big(UInt32.self, 0x20))
        let entries = UInt64(try header.big(UInt32.self, 0x1C))
        let offset = try header.big(UInt64.self, 0x10)
        guard block >= 512, block & (block - 1) == 0, offset <= 1 << 60, offset & 511 == 0,
            size / block + (size % block == 0 ? 0 : 1) <= entries
        else { throw file.damaged("has a dynamic header that contradicts itself") }
        byteCount = size
        blockSize = block
        table = (offset, entries)
        bitmapSize = (block / 512 / 8 + 511) & ~511
    }

    /// Ones' complement of the sum of all other bytes.
    private static func verify(_ bytes: [UInt8], at place: Int, _ file: ImageFile, _ what: String) throws {
        var sum: UInt32 = 0
        for (index, byte) in bytes.enumerated() where !(place..<place + 4).contains(index) { sum &+= UInt32(byte) }
        guard try bytes.big(UInt32.self, place) == ~sum else {
            throw file.damaged("has a \(what) with a wrong checksum")
        }
    }

    /// Virtual PC, and QEMU in its place, mean the geometry; everything else means the size.
    private static func size(_ footer: [UInt8]) throws -> UInt64 {
        let size = try footer.big(UInt64.self, 0x30)
        let cylinders = UInt64(try footer.big(UInt16.self, 0x38))
        let (heads, sectors) = (UInt64(footer[0x3A]), UInt64(footer[0x3B]))
        let geometry = cylinders * heads * sectors
        let largest: UInt64 = 65535 * 16 * 255
        guard ["vpc ", "vs  ", "qemu"].contains(try footer.text(0x1C, 4)), geometry != 0, geometry != largest else {
            return size
        }
        return geometry * 512
    }

    func place(of block: UInt64, in reader: inout TableReader) throws -> BlockPlace {
        guard let table else { return .file(block * blockSize) }
        guard block < table.entries else { throw reader.file.damaged("has no block \(block)") }
        let sector = try reader.big32(at: table.offset + block * 4)
        return sector == .max ? .zero : .file(UInt64(sector) * 512 + bitmapSize)
    }
}
