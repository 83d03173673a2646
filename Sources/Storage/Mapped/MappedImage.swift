// Images that map blocks of one size through a table, read only: VDI, VHD, VHDX, VMDK.
internal import HostOS
internal import Synchronization

/// Where a block's content is.
enum BlockPlace: Equatable {
    /// Nowhere: zeroes.
    case zero
    /// At an offset of the file.
    case file(UInt64)
    /// At an offset of the file, compressed: so many bytes.
    case zlib(UInt64, Int)
}

/// How a format finds blocks.
protocol BlockLayout: Sendable {
    /// The format.
    var format: DiskFormat { get }
    /// Bytes of the disk.
    var byteCount: UInt64 { get }
    /// Bytes of a block, 512 to 256 MiB.
    var blockSize: UInt64 { get }
    /// Where a block is; `block * blockSize` is below `byteCount`.
    func place(of block: UInt64, in table: inout TableReader) throws -> BlockPlace
}

/// Entries of tables, read from the file a page at a time and kept, a bounded number of pages.
struct TableReader: Sendable {
    private static let pageBytes = 16384
    let file: ImageFile
    private var pages = TableCache<UInt8>(capacity: 256)

    init(_ file: ImageFile) { self.file = file }

    /// `count` bytes of a table; they don't cross a page if entries are aligned.
    private mutating func bytes(at offset: UInt64, count: Int) throws -> [UInt8] {
        let start = offset & ~UInt64(Self.pageBytes - 1)
        let index = Int(offset - start)
        guard index + count <= Self.pageBytes else { return try file.read(at: offset, exactly: count, "table") }
        if let place = pages.place(of: start) { return try pages.slots[place].entries.part(index, count) }
        var page = [UInt8](repeating: 0, count: Self.pageBytes)
        let got = try file.read(at: start, into: &page)
        guard got >= index + count else { throw file.damaged("its table lies beyond its end") }
        // What the file doesn't have isn't kept.
        if got == page.count { _ = pages.insert(start, page) }
        return try page.part(index, count)
    }

    mutating func little32(at offset: UInt64) throws -> UInt32 {
        try bytes(at: offset, count: 4).little(UInt32.self, 0)
    }

    mutating func big32(at offset: UInt64) throws -> UInt32 { try bytes(at: offset, count: 4).big(UInt32.self, 0) }

    mutating func little64(at offset: UInt64) throws -> UInt64 {
        try bytes(at: offset, count: 8).little(UInt64.self, 0)
    }
}

/// An image of blocks that can be read.
final class MappedImage: ReadOnlyDiskImage {
    private struct Contents: Sendable {
        var table: TableReader
        /// The block that was expanded last.
        var expanded: (offset: UInt64, bytes: [UInt8])?
    }

    let path: String
    let format: DiskFormat
    let byteCount: UInt64
    let note: String?
    private let file: ImageFile
    private let layout: any BlockLayout
    private let contents: Mutex<Contents>

    init(file: ImageFile, _ layout: any BlockLayout) throws {
        guard layout.byteCount >= 512, layout.byteCount <= 1 << 62, (512...256 << 20).contains(layout.blockSize) else {
            throw file.damaged("has a size of \(layout.byteCount) bytes in blocks of \(layout.blockSize)")
        }
        path = file.path
        format = layout.format
        byteCount = layout.byteCount & ~511
        note = nil
        self.file = file
        self.layout = layout
        contents = Mutex(Contents(table: TableReader(file)))
    }

    /// Fills memory from `offset`.
    func read(at offset: UInt64, into list: ScatterList) throws {
        try checkRange(offset, UInt64(list.count))
        try contents.withLock { contents in
            var (offset, rest) = (offset, list)
            while rest.count > 0 {
                let inBlock = offset % layout.blockSize
                let part = rest.prefix(Int(min(UInt64(rest.count), layout.blockSize - inBlock)))
                switch try layout.place(of: offset / layout.blockSize, in: &contents.table) {
                case .zero: part.zero()
                case .file(let host):
                    let (place, overflow) = host.addingReportingOverflow(inBlock)
                    guard !overflow, place <= 1 << 62, try file.read(at: place, into: part) == part.count else {
                        throw file.damaged("has a block that lies beyond its end")
                    }
                case .zlib(let host, let packed):
                    let block = try expand(host, packed, &contents)
                    part.store(block[Int(inBlock)..<Int(inBlock) + part.count])
                }
                offset += UInt64(part.count)
                rest = rest.dropFirst(part.count)
            }
        }
    }

    private func expand(_ offset: UInt64, _ packed: Int, _ contents: inout Contents) throws -> [UInt8] {
        if let expanded = contents.expanded, expanded.offset == offset { return expanded.bytes }
        let input = try file.read(at: offset, exactly: packed, "compressed block")
        guard let bytes = Compression.zlib.expand(input, count: Int(layout.blockSize)) else {
            throw file.damaged("has a compressed block at \(offset) that can't be expanded")
        }
        contents.expanded = (offset, bytes)
        return bytes
    }

    /// What the table says about `offset`.
    func extent(at offset: UInt64, limit: UInt64) throws -> DiskExtent {
        try checkRange(offset, limit)
        return try contents.withLock { contents in
            var length: UInt64 = 0
            var isZero: Bool?
            while length < limit {
                let place = try layout.place(of: (offset + length) / layout.blockSize, in: &contents.table)
                guard isZero == nil || isZero == (place == .zero) else { break }
                isZero = place == .zero
                length += layout.blockSize - (offset + length) % layout.blockSize
                if length >= 1 << 30 { break }
            }
            return DiskExtent(length: min(length, limit), isZero: isZero ?? false)
        }
    }
}
