// The header of a qcow2 image, read and written.
//
// QEMU's docs/interop/qcow2.txt, "Header"; all numbers big-endian.
//
//   00 magic 32 ("QFI\xFB")   04 version 32   08 backing file's name, offset 64   10 its length 32   14 cluster bits 32
//   18 size 64   20 encryption 32   24 L1 entries 32   28 L1 offset 64   30 refcount table offset 64
//   38 refcount table clusters 32   3C snapshots 32   40 snapshots' offset 64
//   version 3: 48 incompatible features 64 (0 dirty, 1 corrupt, 2 external data file, 3 compression type, 4 extended L2)
//   50 compatible 64 (0 lazy refcounts)   58 autoclear 64 (0 bitmaps, 1 raw external data)   60 refcount order 32
//   64 header length 32   68 compression type 8 (0 zlib, 1 zstd)
//   extensions from the header's end: type 32, length 32, data padded to 8; type 0 ends them

/// A qcow2 header whose numbers are in bounds.
struct Qcow2Header: Sendable, Equatable {
    /// The incompatible feature bits that Roost knows.
    struct Features: OptionSet, Sendable {
        var rawValue: UInt64
        /// Refcounts may be wrong.
        static let dirty = Features(rawValue: 1)
        /// Something else is wrong: not to be written.
        static let corrupt = Features(rawValue: 2)
        /// Data are in another file.
        static let externalData = Features(rawValue: 4)
        /// The compression type isn't zlib.
        static let compressionType = Features(rawValue: 8)
        /// Entries of L2 tables are 16 bytes long.
        static let extendedL2 = Features(rawValue: 16)
    }

    static let largestL1 = 32 << 20
    static let largestRefcountTable = 8 << 20
    static let mostSnapshots = 65536

    var version: UInt32 = 3
    var clusterBits = 16
    var size: UInt64 = 0
    var l1Entries = 0
    var l1Offset: UInt64 = 0
    var refcountTableOffset: UInt64 = 0
    var refcountTableClusters = 0
    var snapshotCount = 0
    var snapshotsOffset: UInt64 = 0
    var features: Features = []
    var compatible: UInt64 = 0
    var autoclear: UInt64 = 0
    var refcountOrder = 4
    var length = 112
    var isZstd = false
    var backingName: String?
    var backingFormat: String?
    var hasBitmaps = false

    var clusterSize: Int { 1 << clusterBits }
    /// Entries of an L2 table.
    var l2Entries: Int { clusterSize / 8 }
    /// Counts of a refcount block.
    var refcountsPerBlock: Int { (clusterSize * 8) >> refcountOrder }
    /// Bytes of the guest's disk that an L2 table maps.
    var bytesPerL2: UInt64 { UInt64(l2Entries) << UInt64(clusterBits) }
    /// L1 entries that a disk of some size needs.
    func l1EntriesNeeded(for size: UInt64) -> Int {
        Int(size / bytesPerL2) + (size % bytesPerL2 == 0 ? 0 : 1)
    }

    init() {}

    /// Reads and checks the header of a file.
    init(_ file: ImageFile) throws {
        let fixed = try file.read(at: 0, exactly: 72, "header")
        guard try fixed.big(UInt32.self, 0) == 0x5146_49FB else { throw file.damaged("is no qcow2 image") }
        version = try fixed.big(UInt32.self, 4)
        guard version == 2 || version == 3 else {
            throw file.unsupported("is of qcow2's version \(version); there are 2 and 3")
        }
        let bits = try fixed.big(UInt32.self, 0x14)
        guard (9...21).contains(bits) else {
            throw file.damaged("has clusters of 2^\(bits) bytes; 2^9 to 2^21 are possible")
        }
        clusterBits = Int(bits)
        size = try fixed.big(UInt64.self, 0x18)
        guard try fixed.big(UInt32.self, 0x20) == 0 else {
            throw file.unsupported("is encrypted, which Roost can't read")
        }
        if version == 3 { try readVersion3(file) } else { length = 72 }
        try readTables(file, fixed)
        try readExtensions(file, fixed)
        try readBackingName(file, fixed)
    }

    private mutating func readVersion3(_ file: ImageFile) throws {
        let fixed = try file.read(at: 0, exactly: 104, "header")
        features = Features(rawValue: try fixed.big(UInt64.self, 0x48))
        compatible = try fixed.big(UInt64.self, 0x50)
        autoclear = try fixed.big(UInt64.self, 0x58)
        let order = try fixed.big(UInt32.self, 0x60)
        guard order <= 6 else { throw file.damaged("has refcounts of 2^\(order) bits; up to 2^6 are possible") }
        refcountOrder = Int(order)
        let length = try fixed.big(UInt32.self, 0x64)
        guard length >= 104, length % 8 == 0, length <= UInt32(clusterSize) else {
            throw file.damaged("has a header of \(length) bytes")
        }
        self.length = Int(length)
        try refuseUnknownFeatures(file)
        if length > 104 {
            let kind = try file.read(at: 104, exactly: 1, "header")[0]
            guard kind <= 1 else {
                throw file.unsupported("has clusters compressed in a way (\(kind)) that Roost doesn't know")
            }
            isZstd = kind == 1
        }
        guard isZstd == features.contains(.compressionType) else {
            throw file.damaged("has a compression type that its features contradict")
        }
    }

    private func refuseUnknownFeatures(_ file: ImageFile) throws {
        if features.contains(.externalData) {
            throw file.unsupported("keeps its data in another file, which Roost can't read")
        }
        if features.contains(.extendedL2) { throw file.unsupported("has subclusters, which Roost can't read") }
        let unknown = features.subtracting([.dirty, .corrupt, .compressionType])
        guard unknown.isEmpty else {
            throw file.unsupported(
                "needs features that Roost doesn't know (bits \(String(unknown.rawValue, radix: 16)))")
        }
    }

    private mutating func readTables(_ file: ImageFile, _ fixed: [UInt8]) throws {
        let mask = UInt64(clusterSize - 1)
        let entries = try fixed.big(UInt32.self, 0x24)
        l1Offset = try fixed.big(UInt64.self, 0x28)
        guard entries <= UInt32(Self.largestL1 / 8), l1Offset & mask == 0, l1Offset <= 1 << 56 else {
            throw file.damaged("has an L1 table that can't be (\(entries) entries at \(l1Offset))")
        }
        l1Entries = Int(entries)
        guard size <= 1 << 62, l1EntriesNeeded(for: size) <= l1Entries else {
            throw file.damaged("has an L1 table too small for its size of \(size) bytes")
        }
        refcountTableOffset = try fixed.big(UInt64.self, 0x30)
        let clusters = try fixed.big(UInt32.self, 0x38)
        guard clusters > 0, clusters <= UInt32(Self.largestRefcountTable / clusterSize),
            refcountTableOffset & mask == 0, refcountTableOffset <= 1 << 56
        else {
            throw file.damaged("has a refcount table that can't be (\(clusters) clusters at \(refcountTableOffset))")
        }
        refcountTableClusters = Int(clusters)
        let snapshots = try fixed.big(UInt32.self, 0x3C)
        snapshotsOffset = try fixed.big(UInt64.self, 0x40)
        guard snapshots <= UInt32(Self.mostSnapshots), snapshots == 0 || snapshotsOffset & mask == 0,
            snapshotsOffset <= 1 << 56
        else { throw file.damaged("has a table of snapshots that can't be (\(snapshots) at \(snapshotsOffset))") }
        snapshotCount = Int(snapshots)
    }

    private mutating func readExtensions(_ file: ImageFile, _ fixed: [UInt8]) throws {
        var end = min(UInt64(clusterSize), try file.byteCount())
        guard end >= UInt64(length) else { throw file.damaged("has a header that is cut off") }
        // The base's name follows them, and nothing need stand between.
        let name = try fixed.big(UInt64.self, 8)
        if name != 0 { end = min(end, name) }
        let bytes = try file.read(at: 0, exactly: Int(end), "header")
        var place = length
        while place + 8 <= bytes.count {
            let type = try bytes.big(UInt32.self, place)
            let count = Int(try bytes.big(UInt32.self, place + 4))
            if type == 0 { return }
            guard count <= bytes.count - place - 8 else { throw file.damaged("has a header extension that is cut off") }
            switch type {
            case 0xE279_2ACA: backingFormat = try bytes.text(place + 8, count)
            case 0x2385_2875: hasBitmaps = true
            case 0x0537_BE77: throw file.unsupported("is encrypted, which Roost can't read")
            default: break
            }
            place += 8 + (count + 7) & ~7
        }
    }

    private mutating func readBackingName(_ file: ImageFile, _ fixed: [UInt8]) throws {
        let offset = try fixed.big(UInt64.self, 8)
        let count = try fixed.big(UInt32.self, 0x10)
        if offset == 0 || count == 0 { return }
        guard count <= 1023, offset <= UInt64(clusterSize) - UInt64(min(count, UInt32(clusterSize))) else {
            throw file.damaged("has a base whose name lies outside the header")
        }
        backingName = String(decoding: try file.read(at: offset, exactly: Int(count), "base's name"), as: UTF8.self)
    }

    // MARK: Writing

    /// The first cluster's bytes, as many as are used.
    func encoded() throws(StorageError) -> [UInt8] {
        var extensions: [UInt8] = []
        if let backingFormat, backingName != nil {
            let name = Array(backingFormat.utf8)
            extensions.appendBig(UInt32(0xE279_2ACA))
            extensions.appendBig(UInt32(name.count))
            extensions += name + [UInt8](repeating: 0, count: (8 - name.count % 8) % 8)
        }
        extensions += [UInt8](repeating: 0, count: 8)
        let name = Array((backingName ?? "").utf8)
        let total = length + extensions.count + name.count
        guard name.count <= 1023, total <= clusterSize else {
            throw StorageError(.badRequest, "the base's name is too long")
        }
        var bytes: [UInt8] = []
        bytes.appendBig(UInt32(0x5146_49FB))
        bytes.appendBig(version)
        bytes.appendBig(UInt64(name.isEmpty ? 0 : length + extensions.count))
        bytes.appendBig(UInt32(name.count))
        bytes.appendBig(UInt32(clusterBits))
        bytes.appendBig(size)
        bytes.appendBig(UInt32(0))
        bytes.appendBig(UInt32(l1Entries))
        bytes.appendBig(l1Offset)
        bytes.appendBig(refcountTableOffset)
        bytes.appendBig(UInt32(refcountTableClusters))
        bytes.appendBig(UInt32(snapshotCount))
        bytes.appendBig(snapshotsOffset)
        if version == 3 {
            bytes.appendBig(features.rawValue)
            bytes.appendBig(compatible)
            bytes.appendBig(autoclear)
            bytes.appendBig(UInt32(refcountOrder))
            bytes.appendBig(UInt32(length))
            bytes += [isZstd ? 1 : 0] + [UInt8](repeating: 0, count: 7)
        }
        return bytes + extensions + name
    }
}
