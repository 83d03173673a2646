// Writing stream-optimized VMDK images, as OVA packages hold them: from front to back, each grain compressed.
//
// VMware, Virtual Disk Format 5.0, "Stream-Optimized Compressed Sparse Extents"; fields as in VMDKSparseLayout.swift.
//
//   sector 0      header, directory at all ones: it is in the footer
//   1…20          descriptor
//   128…          grains: first sector 64, length 32, zlib's data; each begins at a sector
//   after each table's grains    marker (sectors 64, 0 32, type 32), grain table
//   end           marker, directory; marker, footer (the header again, with the directory's place); end of stream

/// Writes one image.
struct VMDKStreamWriter {
    private static let grainSize = 65536
    private static let grainsPerTable = 512
    private static let overhead: UInt64 = 128

    private enum Marker: UInt32 {
        case endOfStream, table, directory, footer
    }

    private let file: ImageFile
    private var end = overhead * 512
    private var directory: [UInt32] = []
    private var table = [UInt32](repeating: 0, count: grainsPerTable)

    private init(_ file: ImageFile) { self.file = file }

    /// Copies a disk into a new image; returns the bytes of the disk that were not zero.
    static func write(
        _ source: any DiskImage, to path: String, replacing: Bool, progress: (UInt64, UInt64) -> Void
    ) throws -> UInt64 {
        // Places are sectors in 32 bits; a grain may grow a little when it doesn't compress.
        guard source.byteCount <= 1 << 40 else {
            throw StorageError(.unsupported, "disk \(source.path): is too large for a stream-optimized VMDK image")
        }
        let file = try ImageFile(creating: path, replacing: replacing)
        do {
            var writer = VMDKStreamWriter(file)
            return try writer.write(source, progress)
        } catch {
            file.unlink()
            throw error
        }
    }

    private mutating func write(_ source: any DiskImage, _ progress: (UInt64, UInt64) -> Void) throws -> UInt64 {
        let size = source.byteCount
        let name = file.path.split(separator: "/").last.map(String.init) ?? "disk.vmdk"
        try file.write(Self.header(size, directory: .max), at: 0)
        try file.write(Self.descriptor(size, name), at: 512)
        let span = UInt64(Self.grainSize * Self.grainsPerTable)
        var written: UInt64 = 0
        var offset: UInt64 = 0
        while offset < size {
            written += try writeTable(source, offset, min(size, offset + span)) { progress($0, size) }
            offset += span
        }
        let place = try append(.directory, directory)
        try append(Self.marker(1, .footer))
        try append(Self.header(size, directory: place))
        try append([UInt8](repeating: 0, count: 512))
        try file.synchronize()
        progress(size, size)
        return written
    }

    /// Writes the grains of one table, and the table if there are any.
    private mutating func writeTable(
        _ source: any DiskImage, _ start: UInt64, _ end: UInt64, _ progress: (UInt64) -> Void
    ) throws -> UInt64 {
        var grain = [UInt8](repeating: 0, count: Self.grainSize)
        var written: UInt64 = 0
        for index in table.indices { table[index] = 0 }
        var offset = start
        while offset < end {
            progress(offset)
            let count = Int(min(UInt64(Self.grainSize), end - offset))
            let extent = try source.extent(at: offset, limit: UInt64(count))
            if !(extent.isZero && extent.length >= UInt64(count)) {
                for index in count..<Self.grainSize { grain[index] = 0 }
                try source.read(at: offset, into: &grain, 0..<count)
                if !grain.isZero(0..<count) {
                    table[Int((offset - start) / UInt64(Self.grainSize))] = try append(grain, at: offset / 512)
                    written += UInt64(count)
                }
            }
            offset += UInt64(count)
        }
        directory.append(table.contains { $0 != 0 } ? UInt32(truncatingIfNeeded: try append(.table, table)) : 0)
        return written
    }

    /// Adds a grain; returns its sector.
    private mutating func append(_ grain: [UInt8], at sector: UInt64) throws -> UInt32 {
        guard let data = Compression.zlib.compress(grain, limit: grain.count + 1024) else {
            throw StorageError(.host, "disk \(file.path): a grain could not be compressed")
        }
        let place = UInt32(truncatingIfNeeded: end / 512)
        try append(sector.littleEndianBytes + UInt32(data.count).littleEndianBytes + data)
        return place
    }

    /// Adds a marker and a table; returns the table's sector.
    private mutating func append(_ marker: Marker, _ entries: [UInt32]) throws -> UInt64 {
        let bytes = entries.flatMap(\.littleEndianBytes)
        try append(Self.marker(UInt64((bytes.count + 511) / 512), marker))
        let place = end / 512
        try append(bytes)
        return place
    }

    /// Adds bytes and fills their last sector with zeroes.
    private mutating func append(_ bytes: [UInt8]) throws {
        let padding = (512 - bytes.count % 512) % 512
        try file.write(bytes + [UInt8](repeating: 0, count: padding), at: end)
        end += UInt64(bytes.count + padding)
    }

    private static func marker(_ sectors: UInt64, _ kind: Marker) -> [UInt8] {
        sectors.littleEndianBytes + UInt32(0).littleEndianBytes + kind.rawValue.littleEndianBytes
    }

    private static func header(_ size: UInt64, directory: UInt64) -> [UInt8] {
        var bytes = Array("KDMV".utf8)
        bytes += UInt32(3).littleEndianBytes
        // Line ends can be checked, compressed, markers.
        bytes += UInt32(0x3_0001).littleEndianBytes
        for number in [(size + 511) / 512, UInt64(grainSize / 512), 1, 20] { bytes += number.littleEndianBytes }
        bytes += UInt32(grainsPerTable).littleEndianBytes
        for number in [0, directory, overhead] { bytes += number.littleEndianBytes }
        bytes += [0, 10, 32, 13, 10, 1, 0]
        return bytes + [UInt8](repeating: 0, count: 512 - bytes.count)
    }

    private static func descriptor(_ size: UInt64, _ name: String) -> [UInt8] {
        let cylinders = min(size / (63 * 255 * 512), 65535)
        let text = """
            # Disk DescriptorFile
            version=1
            CID=\(String(UInt32.random(in: 1...0xFFFF_FFFE), radix: 16))
            parentCID=ffffffff
            createType="streamOptimized"

            # Extent description
            RW \((size + 511) / 512) SPARSE "\(name.filter { $0 != "\"" && !$0.isNewline })"

            # The Disk Data Base
            #DDB

            ddb.virtualHWVersion = "4"
            ddb.geometry.cylinders = "\(cylinders)"
            ddb.geometry.heads = "255"
            ddb.geometry.sectors = "63"
            ddb.adapterType = "lsilogic"

            """
        let bytes = Array(text.utf8.prefix(20 * 512))
        return bytes + [UInt8](repeating: 0, count: 20 * 512 - bytes.count)
    }
}

extension FixedWidthInteger {
    fileprivate var littleEndianBytes: [UInt8] {
        (0..<Self.bitWidth / 8).map { UInt8(truncatingIfNeeded: self &>> Self(truncatingIfNeeded: $0 * 8)) }
    }
}
