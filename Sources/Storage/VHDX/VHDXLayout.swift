// Hyper-V's disk images.
//
// Microsoft, [MS-VHDX]; all numbers little-endian.
//
//   00000 "vhdxfile"   10000, 20000 headers, the valid one with the larger sequence number counts: 00 "head"
//   04 CRC-32C 32   08 sequence 64   30 log's identifier (16), zero if nothing is to be replayed   40 log version 16
//   42 version 16   30000, 40000 region tables: 00 "regi"   04 CRC-32C 32   08 entries 32   10 entries of 32 bytes:
//   identifier (16), offset 64, length 32, required 32
//   metadata: 00 "metadata"   0A entries 16   20 entries of 32 bytes: identifier (16), offset 32, length 32, flags 32
//   block table: 64 bits a block, state 0…2, MiB 20…63; after each `chunk` blocks one entry for a bitmap

/// Where the blocks of a VHDX image are.
struct VHDXLayout: BlockLayout {
    let format = DiskFormat.vhdx
    let byteCount: UInt64
    let blockSize: UInt64
    private let tableOffset: UInt64
    private let entries: UInt64
    /// Blocks between two entries for bitmaps.
    private let chunk: UInt64

    init(_ file: ImageFile) throws {
        guard try file.read(at: 0, exactly: 8, "header").text(0, 8) == "vhdxfile" else {
            throw file.damaged("is no VHDX image")
        }
        try Self.checkHeaders(file)
        let regions = try Self.regions(file)
        guard let table = regions[Self.tableRegion], let metadata = regions[Self.metadataRegion] else {
            throw file.damaged("has no block table or no metadata")
        }
        let items = try Self.items(file, metadata)
        let parameters = try Self.item(file, items, "37 67 A1 CA 36 FA 43 4D B3 B6 33 F0 AA 44 E7 6B", 8)
        blockSize = UInt64(try parameters.little(UInt32.self, 0))
        guard try parameters.little(UInt32.self, 4) & 2 == 0 else {
            throw file.unsupported("is a VHDX image that needs another")
        }
        byteCount = try Self.item(file, items, "24 42 A5 2F 1B CD 76 48 B2 11 5D BE D8 3B F4 B8", 8).little(
            UInt64.self, 0)
        let sector = UInt64(
            try Self.item(file, items, "1D BF 41 81 6F A9 09 47 BA 47 F2 33 A8 FA AB 5F", 4).little(UInt32.self, 0))
        guard sector == 512 || sector == 4096, (1 << 20...256 << 20).contains(blockSize),
            blockSize & (blockSize - 1) == 0,
            byteCount <= 64 << 40
        else { throw file.damaged("has metadata that can't be") }
        chunk = (1 << 23) * sector / blockSize
        tableOffset = table.offset
        entries = UInt64(table.length) / 8
    }

    private static let tableRegion = bytes("66 77 C2 2D 23 F6 00 42 9D 64 11 5E 9B FD 4A 08")
    private static let metadataRegion = bytes("06 A2 7C 8B 90 47 9A 4B B8 FE 57 5F 05 0F 88 6E")

    private static func bytes(_ text: String) -> [UInt8] {
        text.split(separator: " ").map { UInt8($0, radix: 16) ?? 0 }
    }

    // MARK: Headers

    private static func checkHeaders(_ file: ImageFile) throws {
        var current: (sequence: UInt64, header: [UInt8])?
        for offset: UInt64 in [0x10000, 0x20000] {
            let header = try file.read(at: offset, exactly: 4096, "header")
            guard try header.text(0, 4) == "head", try isIntact(header) else { continue }
            let sequence = try header.little(UInt64.self, 8)
            if current.map({ sequence > $0.sequence }) ?? true { current = (sequence, header) }
        }
        guard let header = current?.header else { throw file.damaged("has no valid header") }
        let version = try header.little(UInt16.self, 0x42)
        guard version == 1 else { throw file.unsupported("is of VHDX's version \(version); Roost reads 1") }
        guard try header.part(0x30, 16).allSatisfy({ $0 == 0 }) else {
            throw file.unsupported("was not closed properly, and its log must be replayed by what wrote it")
        }
    }

    /// Whether the CRC-32C at byte 4 is that of the rest.
    private static func isIntact(_ bytes: [UInt8]) throws -> Bool {
        let expected = try bytes.little(UInt32.self, 4)
        let table = (0..<256).map { byte in
            (0..<8).reduce(UInt32(byte)) { crc, _ in crc >> 1 ^ (crc & 1 == 0 ? 0 : 0x82F6_3B78) }
        }
        var crc: UInt32 = .max
        for (index, byte) in bytes.enumerated() {
            let byte = (4..<8).contains(index) ? 0 : byte
            crc = crc >> 8 ^ table[Int(UInt8(truncatingIfNeeded: crc) ^ byte)]
        }
        return ~crc == expected
    }

    private static func regions(_ file: ImageFile) throws -> [[UInt8]: (offset: UInt64, length: UInt32)] {
        for offset: UInt64 in [0x30000, 0x40000] {
            let table = try file.read(at: offset, exactly: 65536, "region table")
            guard try table.text(0, 4) == "regi", try isIntact(table) else { continue }
            let count = Int(try table.little(UInt32.self, 8))
            guard count <= 2047 else { continue }
            var found: [[UInt8]: (offset: UInt64, length: UInt32)] = [:]
            for entry in 0..<count {
                let place = 16 + entry * 32
                let name = try table.part(place, 16)
                let offset = try table.little(UInt64.self, place + 16)
                guard offset <= 1 << 60, offset & 0xFFFFF == 0 else { throw file.damaged("has a region that can't be") }
                if name != tableRegion, name != metadataRegion, try table.little(UInt32.self, place + 28) & 1 != 0 {
                    throw file.unsupported("needs a region that Roost doesn't know")
                }
                found[name] = (offset, try table.little(UInt32.self, place + 24))
            }
            return found
        }
        throw file.damaged("has no valid region table")
    }

    // MARK: Metadata

    private static func items(
        _ file: ImageFile, _ region: (offset: UInt64, length: UInt32)
    ) throws -> [[UInt8]: UInt64] {
        let table = try file.read(at: region.offset, exactly: 65536, "metadata")
        let count = Int(try table.little(UInt16.self, 10))
        guard try table.text(0, 8) == "metadata", count <= 2047 else { throw file.damaged("has no metadata") }
        var found: [[UInt8]: UInt64] = [:]
        for entry in 0..<count {
            let place = 32 + entry * 32
            found[try table.part(place, 16)] = region.offset + UInt64(try table.little(UInt32.self, place + 16))
        }
        return found
    }

    private static func item(
        _ file: ImageFile, _ items: [[UInt8]: UInt64], _ name: String, _ count: Int
    ) throws -> [UInt8] {
        guard let offset = items[bytes(name)] else { throw file.damaged("lacks metadata that every VHDX image has") }
        return try file.read(at: offset, exactly: count, "metadata")
    }

    // MARK: Blocks

    func place(of block: UInt64, in table: inout TableReader) throws -> BlockPlace {
        let index = block + block / chunk
        guard index < entries else { throw table.file.damaged("has no block \(block)") }
        let entry = try table.little64(at: tableOffset + index * 8)
        switch entry & 7 {
        case 0, 1, 2, 3: return .zero
        case 6: return .file(entry & ~0xFFFFF)
        default: throw table.file.damaged("has a block in state \(entry & 7)")
        }
    }
}
