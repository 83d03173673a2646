// A small ISO 9660 file system with files in its root: what cloud-init reads as its NoCloud data source.
//
// ECMA-119; names that Linux shows are Rock Ridge's (SUSP 1.12, RRIP 1.12). Numbers stand in both byte orders.
//
//   block 16  primary volume descriptor     17  terminator     18, 19  path tables     20  root directory     21…  files

/// Writes file systems.
public enum ISOImage {
    private static let block = 2048

    /// The bytes of a volume with these files. Names have at most 100 bytes, and all fit one block of directory.
    public static func volume(label: String, files: [(name: String, contents: [UInt8])]) throws(StorageError) -> [UInt8]
    {
        var extent = 21
        var records: [UInt8] = []
        var data: [UInt8] = []
        for (index, file) in files.enumerated() {
            guard file.name.utf8.count <= 100, !file.name.contains("/"), file.contents.count <= 64 << 20 else {
                throw StorageError(.badRequest, "'\(file.name)' doesn't fit a small ISO 9660 volume")
            }
            // The name for those who know no Rock Ridge.
            let plain = Array("FILE\(index).;1".utf8)
            var name = Array("NM".utf8)
            name += [UInt8(5 + file.name.utf8.count), 1, 0]
            name += Array(file.name.utf8)
            records += record(extent, file.contents.count, isFolder: false, plain, mode(0o100444) + name)
            let blocks = max(1, (file.contents.count + block - 1) / block)
            data += padded(file.contents, to: blocks * block)
            extent += blocks
        }
        // SP says that Rock Ridge is used (SUSP, 5.3), ER which one (SUSP, 5.5).
        var system = Array("SP".utf8)
        system += [7, 1, 0xBE, 0xEF, 0]
        system += mode(0o40555)
        system += Array("ER".utf8)
        system += [18, 1, 10, 0, 0, 1]
        system += Array("RRIP_1991A".utf8)
        let root = record(20, block, isFolder: true, [0], system)
        let parent = record(20, block, isFolder: true, [1], mode(0o40555))
        let directory = root + parent + records
        guard directory.count <= block else { throw StorageError(.badRequest, "too many files for a small volume") }
        var volume = [UInt8](repeating: 0, count: 16 * block)
        volume += padded(descriptor(label, blocks: extent), to: block)
        volume += padded([255] + Array("CD001".utf8) + [1], to: block)
        volume += padded(pathTable(little(20, 4), little(1, 2)), to: block)
        volume += padded(pathTable(little(20, 4).reversed(), [0, 1]), to: block)
        volume += padded(directory, to: block)
        return volume + data
    }

    /// The path table: the root alone (ECMA-119, 9.4).
    private static func pathTable(_ extent: [UInt8], _ parent: [UInt8]) -> [UInt8] {
        var bytes: [UInt8] = [1, 0]
        bytes += extent
        bytes += parent
        return bytes + [0, 0]
    }

    private static func little(_ number: Int, _ count: Int) -> [UInt8] {
        (0..<count).map { UInt8(truncatingIfNeeded: number >> ($0 * 8)) }
    }

    /// A number in both byte orders (ECMA-119, 7.2.3 and 7.3.3).
    private static func both(_ number: Int, _ count: Int) -> [UInt8] {
        little(number, count) + little(number, count).reversed()
    }

    private static func padded(_ bytes: [UInt8], to count: Int) -> [UInt8] {
        bytes + [UInt8](repeating: 0, count: max(0, count - bytes.count))
    }

    private static func text(_ text: String, _ count: Int) -> [UInt8] {
        let bytes = Array(text.utf8.prefix(count))
        return bytes + [UInt8](repeating: 32, count: count - bytes.count)
    }

    /// POSIX attributes (RRIP, 4.1.1): mode, links, user, group, serial number.
    private static func mode(_ mode: Int) -> [UInt8] {
        var bytes = Array("PX".utf8)
        bytes += [44, 1]
        for number in [mode, 1, 0, 0, 0] { bytes += both(number, 4) }
        return bytes
    }

    /// A directory record (ECMA-119, 9.1), dated 1 January 2000.
    private static func record(
        _ extent: Int, _ size: Int, isFolder: Bool, _ name: [UInt8], _ system: [UInt8]
    ) -> [UInt8] {
        var bytes: [UInt8] = [0, 0]
        bytes += both(extent, 4)
        bytes += both(size, 4)
        bytes += [100, 1, 1, 0, 0, 0, 0]
        bytes += [isFolder ? 2 : 0, 0, 0]
        bytes += both(1, 2)
        bytes.append(UInt8(name.count))
        bytes += name
        if name.count % 2 == 0 { bytes.append(0) }
        bytes += system
        if bytes.count % 2 == 1 { bytes.append(0) }
        bytes[0] = UInt8(bytes.count)
        return bytes
    }

    /// The primary volume descriptor (ECMA-119, 8.4).
    private static func descriptor(_ label: String, blocks: Int) -> [UInt8] {
        var bytes: [UInt8] = [1]
        bytes += Array("CD001".utf8)
        bytes += [1, 0]
        bytes += text("LINUX", 32)
        bytes += text(label, 32)
        bytes += [UInt8](repeating: 0, count: 8)
        bytes += both(blocks, 4)
        bytes += [UInt8](repeating: 0, count: 32)
        for number in [1, 1, block] { bytes += both(number, 2) }
        bytes += both(10, 4)
        bytes += little(18, 4)
        bytes += little(0, 4)
        bytes += little(19, 4).reversed()
        bytes += little(0, 4)
        bytes += record(20, block, isFolder: true, [0], [])
        bytes += text("", 128 * 4 + 37 * 3)
        for date in ["2000010100000000", "2000010100000000", "0000000000000000", "0000000000000000"] {
            bytes += Array(date.utf8)
            bytes.append(0)
        }
        return bytes + [1, 0]
    }
}
