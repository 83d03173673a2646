// VirtualBox's disk images.
//
// The layout of VirtualBox's VDICore.h, version 1.1; all numbers little-endian.
//
//   000 text (64)   040 signature 32 (BEDA107F)   044 version 32 (1.1)   048 header length 32   04C type 32 (1 dynamic,
//   2 fixed, 3 undo, 4 differencing)   050 flags 32   054 description (256)   154 block map's offset 32
//   158 data offset 32   15C geometry   168 sector size 32   170 disk size 64   178 block size 32
//   17C extra bytes a block 32   180 blocks 32   184 allocated 32   188 identifier (16)   198 last snapshot (16)
//   1A8 linked image (16)   1B8 parent (16)
//   the block map has 32 bits a block: its number in the file, FFFFFFFF not allocated, FFFFFFFE zeroes

/// Where the blocks of a VDI image are.
struct VDILayout: BlockLayout {
    let format = DiskFormat.vdi
    let byteCount: UInt64
    let blockSize: UInt64
    private let mapOffset: UInt64
    private let dataOffset: UInt64
    private let stride: UInt64
    private let blocks: UInt64

    init(_ file: ImageFile) throws {
        let header = try file.read(at: 0, exactly: 512, "header")
        guard try header.little(UInt32.self, 0x40) == 0xBEDA_107F else { throw file.damaged("is no VDI image") }
        let version = try header.little(UInt32.self, 0x44)
        guard version == 0x0001_0001 else {
            throw file.unsupported("is of VDI's version \(version >> 16).\(version & 0xFFFF); Roost reads 1.1")
        }
        let type = try header.little(UInt32.self, 0x4C)
        guard type == 1 || type == 2 else { throw file.unsupported("is a VDI image that needs another (type \(type))") }
        guard try header.part(0x1A8, 16).allSatisfy({ $0 == 0 }) else {
            throw file.unsupported("is a VDI image that needs another, which it is linked to")
        }
        guard try header.little(UInt32.self, 0x168) == 512 else {
            throw file.unsupported("has sectors of other than 512 bytes")
        }
        byteCount = try header.little(UInt64.self, 0x170)
        blockSize = UInt64(try header.little(UInt32.self, 0x178))
        blocks = UInt64(try header.little(UInt32.self, 0x180))
        mapOffset = UInt64(try header.little(UInt32.self, 0x154))
        dataOffset = UInt64(try header.little(UInt32.self, 0x158))
        stride = blockSize + UInt64(try header.little(UInt32.self, 0x17C))
        guard blockSize >= 512, blockSize & (blockSize - 1) == 0, mapOffset & 3 == 0, byteCount <= 1 << 60,
            (byteCount + blockSize - 1) / blockSize <= blocks
        else { throw file.damaged("has a VDI header that contradicts itself") }
    }

    func place(of block: UInt64, in table: inout TableReader) throws -> BlockPlace {
        guard block < blocks else { throw table.file.damaged("has no block \(block)") }
        let entry = try table.little32(at: mapOffset + block * 4)
        if entry >= 0xFFFF_FFFE { return .zero }
        guard UInt64(entry) < blocks else {
            throw table.file.damaged("has a block map with a block \(entry) that isn't")
        }
        let (start, isTooFar) = UInt64(entry).multipliedReportingOverflow(by: stride)
        guard !isTooFar, start <= 1 << 62 else { throw table.file.damaged("has a block that lies beyond its end") }
        return .file(dataOffset + start + (stride - blockSize))
    }
}
