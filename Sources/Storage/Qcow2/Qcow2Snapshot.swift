// Internal snapshots of qcow2 images.
//
// QEMU's docs/interop/qcow2.txt, "Snapshots"; an entry, padded to 8:
//
//   00 L1 offset 64   08 L1 entries 32   0C id length 16   0E name length 16   10 seconds 32   14 nanoseconds 32
//   18 guest's nanoseconds 64   20 state's bytes 32   24 extra data's length 32
//   extra data: 00 state's bytes 64   08 disk size 64; then id, name

/// An internal snapshot.
public struct Qcow2Snapshot: Sendable, Codable, Equatable {
    /// Its number, as text.
    public var id: String
    /// Its name.
    public var name: String
    /// When it was made, in seconds since 1970.
    public var seconds: UInt32
    /// Bytes of the machine's state that were saved with it.
    public var stateBytes: UInt64
    /// The disk's size then, if it is told.
    public var diskSize: UInt64?

    var l1Offset: UInt64
    var l1Entries: Int
    /// The entry as it stands in the table; empty in one that isn't there yet.
    private var entry: [UInt8] = []
    private var nanoseconds: UInt32 = 0

    private enum CodingKeys: String, CodingKey { case id, name, seconds, stateBytes, diskSize, l1Offset, l1Entries }

    /// One as the table has it.
    private init(
        id: String, name: String, seconds: UInt32, stateBytes: UInt64, diskSize: UInt64?, l1Offset: UInt64,
        l1Entries: Int, entry: [UInt8]
    ) {
        self.id = id
        self.name = name
        self.seconds = seconds
        self.stateBytes = stateBytes
        self.diskSize = diskSize
        self.l1Offset = l1Offset
        self.l1Entries = l1Entries
        self.entry = entry
    }

    /// One that is to be made, of a disk only.
    init(
        id: String, name: String, seconds: UInt32, nanoseconds: UInt32, diskSize: UInt64, l1Offset: UInt64,
        l1Entries: Int
    ) {
        self.init(
            id: id, name: name, seconds: seconds, stateBytes: 0, diskSize: diskSize, l1Offset: l1Offset,
            l1Entries: l1Entries, entry: [])
        self.nanoseconds = nanoseconds
    }

    /// The entry of the table, padded.
    var encoded: [UInt8] {
        var bytes = entry
        if bytes.isEmpty {
            bytes.appendBig(l1Offset)
            bytes.appendBig(UInt32(l1Entries))
            bytes.appendBig(UInt16(id.utf8.count))
            bytes.appendBig(UInt16(name.utf8.count))
            bytes.appendBig(seconds)
            bytes.appendBig(nanoseconds)
            bytes.appendBig(UInt64(0))
            bytes.appendBig(UInt32(0))
            bytes.appendBig(UInt32(16))
            bytes.appendBig(stateBytes)
            bytes.appendBig(diskSize ?? 0)
            bytes += Array(id.utf8) + Array(name.utf8)
        }
        return bytes + [UInt8](repeating: 0, count: (8 - bytes.count % 8) % 8)
    }

    /// Reads the table of snapshots.
    static func list(_ file: ImageFile, _ header: Qcow2Header) throws -> [Qcow2Snapshot] {
        try table(file, header).snapshots
    }

    /// The snapshots, and how many bytes their table has.
    static func table(_ file: ImageFile, _ header: Qcow2Header) throws -> (snapshots: [Qcow2Snapshot], bytes: UInt64) {
        var place = header.snapshotsOffset
        var found: [Qcow2Snapshot] = []
        for _ in 0..<header.snapshotCount {
            let fixed = try file.read(at: place, exactly: 40, "table of snapshots")
            let idCount = Int(try fixed.big(UInt16.self, 0x0C))
            let nameCount = Int(try fixed.big(UInt16.self, 0x0E))
            let extraCount = Int(try fixed.big(UInt32.self, 0x24))
            guard extraCount <= 1024 else {
                throw file.damaged("has a snapshot with \(extraCount) bytes of extra data")
            }
            let rest = try file.read(at: place + 40, exactly: extraCount + idCount + nameCount, "table of snapshots")
            let entries = try fixed.big(UInt32.self, 8)
            let offset = try fixed.big(UInt64.self, 0)
            guard entries <= UInt32(Qcow2Header.largestL1 / 8), offset & UInt64(header.clusterSize - 1) == 0,
                offset <= 1 << 56
            else { throw file.damaged("has a snapshot with an L1 table that can't be") }
            found.append(
                Qcow2Snapshot(
                    id: try rest.text(extraCount, idCount), name: try rest.text(extraCount + idCount, nameCount),
                    seconds: try fixed.big(UInt32.self, 0x10),
                    stateBytes: extraCount >= 8
                        ? try rest.big(UInt64.self, 0) : UInt64(try fixed.big(UInt32.self, 0x20)),
                    diskSize: extraCount >= 16 ? try rest.big(UInt64.self, 8) : nil,
                    l1Offset: offset, l1Entries: Int(entries), entry: fixed + rest))
            place += UInt64((40 + extraCount + idCount + nameCount + 7) & ~7)
            guard place - header.snapshotsOffset <= 16 << 20 else {
                throw file.damaged("has a table of snapshots without end")
            }
        }
        return (found, place - header.snapshotsOffset)
    }

    /// The snapshot of a name or number.
    static func find(_ text: String, _ all: [Qcow2Snapshot], _ file: ImageFile) throws -> Qcow2Snapshot {
        if let found = all.first(where: { $0.name == text }) ?? all.first(where: { $0.id == text }) {
            guard found.diskSize ?? 512 <= 1 << 62 else { throw file.damaged("has a snapshot of a size that can't be") }
            return found
        }
        let names = all.map(\.name).joined(separator: ", ")
        throw StorageError(
            .missing,
            "disk \(file.path): has no snapshot '\(text)'" + (all.isEmpty ? "" : "; there are: \(names)"))
    }
}
