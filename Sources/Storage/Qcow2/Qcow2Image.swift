// A qcow2 image as a disk.
public import HostOS
internal import Synchronization

/// An open qcow2 image, versions 2 and 3.
///
/// What is written is in the file at once, the tables that lead to it after the next flush; see `Qcow2Volume`.
public final class Qcow2Image: DiskImage {
    /// Where it was opened.
    public let path: String
    /// Whether writes fail.
    public let isReadOnly: Bool
    /// Something the user should know, in one line.
    public let note: String?
    /// Qcow2.
    public var format: DiskFormat { .qcow2 }
    /// What it is based on.
    public let base: (any DiskImage)?

    private let size: Atomic<UInt64>
    let volume: Mutex<Qcow2Volume>

    /// An open file as an image, with its bases.
    init(file: ImageFile, snapshot: String?, depth: Int) throws {
        var header = try Qcow2Header(file)
        path = file.path
        base = try Self.openBase(header, file, depth)
        isReadOnly = file.isReadOnly
        if !file.isReadOnly, header.features.contains(.corrupt) {
            throw file.damaged("is marked as corrupt; add ,readonly, or repair it with 'qemu-img check -r all'")
        }
        var notes: [String] = []
        if header.size & 511 != 0 {
            notes.append("its last \(header.size & 511) bytes don't fill a sector and are left out")
        }
        if !file.isReadOnly, header.autoclear != 0 {
            if header.hasBitmaps { notes.append("its dirty bitmaps are no longer valid") }
            header.autoclear = 0
            try file.write([UInt8](repeating: 0, count: 8), at: 0x58)
        }
        var volume = try Qcow2Volume(file: file, header: header, base: base, snapshot: snapshot)
        if header.features.contains(.dirty), !file.isReadOnly {
            let report = try volume.repair()
            notes.append("it was not closed properly; \(report.repaired) refcounts were repaired")
        }
        note = notes.isEmpty ? nil : "disk \(file.path): " + notes.joined(separator: "; ")
        size = Atomic(volume.byteCount)
        self.volume = Mutex(volume)
    }

    /// A new image that is based on one that is open.
    private init(volume: Qcow2Volume, path: String) {
        self.path = path
        isReadOnly = false
        note = nil
        base = volume.base
        size = Atomic(volume.byteCount)
        self.volume = Mutex(volume)
    }

    deinit { if !isReadOnly { try? flush() } }

    /// Opens the base that a header names; relative names begin at the image's folder.
    private static func openBase(_ header: Qcow2Header, _ file: ImageFile, _ depth: Int) throws -> (any DiskImage)? {
        guard let name = header.backingName else { return nil }
        var format: DiskFormat?
        if let given = header.backingFormat {
            format = DiskFormat(name: given)
            if format == nil { throw file.unsupported("has a base of format '\(given)', which Roost doesn't know") }
        }
        let options = DiskOptions(isReadOnly: true, format: format)
        do { return try Disk.open(try basePath(name, file), options, depth: depth + 1, isBase: true) } catch {
            throw StorageError(
                (error as? StorageError)?.code ?? .host, "disk \(file.path): its base can't be used: \(error)")
        }
    }

    /// Where a base is that an image names.
    private static func basePath(_ name: String, _ file: ImageFile) throws -> String {
        var name = name
        if name.hasPrefix("file:") {
            name.removeFirst(5)
        } else if let colon = name.firstIndex(of: ":"), !name[..<colon].contains("/") {
            throw file.unsupported("has a base '\(name)' that isn't a file")
        }
        if name.hasPrefix("/") { return name }
        guard let slash = file.path.lastIndex(of: "/") else { return name }
        return String(file.path[...slash]) + name
    }

    // MARK: Transfers

    /// Bytes, a multiple of 512.
    public var byteCount: UInt64 { size.load(ordering: .acquiring) }

    /// Fills memory from `offset`.
    public func read(at offset: UInt64, into list: ScatterList) throws {
        try checkRange(offset, UInt64(list.count))
        try volume.withLock { try $0.read(at: offset, into: list) }
    }

    /// Where what is to be read lies, if that is in one piece in one file. What is written may have to go elsewhere.
    ///
    /// A guest that gives the range back meanwhile may read there what else it has on this disk.
    public func place(of list: ScatterList, at offset: UInt64, forWriting: Bool) throws -> FilePlace? {
        if forWriting { return nil }
        let count = UInt64(list.count)
        try checkRange(offset, count)
        let (source, file) = try volume.withLock { volume -> (Qcow2Volume.Source, ImageFile) in
            let (source, length) = try volume.locate(offset, count)
            return (length == count ? source : .zero, volume.file)
        }
        switch source {
        case .file(let host): return file.place(of: list, at: host)
        case .base:
            guard let base, offset <= base.byteCount, count <= base.byteCount - offset else { return nil }
            return try base.place(of: list, at: offset, forWriting: false)
        case .zero, .compressed: return nil
        }
    }

    /// Writes memory at `offset`.
    public func write(_ list: ScatterList, at offset: UInt64) throws {
        try checkWritable(offset, UInt64(list.count))
        try volume.withLock { try $0.write(guest: list, at: offset) }
    }

    /// Makes everything written durable.
    public func flush() throws {
        if isReadOnly { return }
        try volume.withLock { try $0.flush() }
    }

    /// Gives whole clusters back to the host.
    public func discard(at offset: UInt64, length: UInt64) throws {
        try checkWritable(offset, length)
        try volume.withLock { try $0.discard(at: offset, length: length) }
    }

    /// Makes a range read as zeroes; `mayUnmap` allows to give its clusters back.
    public func writeZeroes(at offset: UInt64, length: UInt64, mayUnmap: Bool) throws {
        try checkWritable(offset, length)
        try volume.withLock { try $0.writeZeroes(at: offset, length: length, mayUnmap: mayUnmap) }
    }

    /// What the tables say about `offset`.
    public func extent(at offset: UInt64, limit: UInt64) throws -> DiskExtent {
        try checkRange(offset, limit)
        return try volume.withLock { try $0.extent(at: offset, limit: limit) }
    }

    // MARK: The image itself

    /// Writes a cluster compressed; false if it has to be written as it is.
    func writeCompressed(_ bytes: [UInt8], at offset: UInt64) throws -> Bool {
        try checkWritable(offset, 1)
        return try volume.withLock { try $0.writeCompressed(bytes, at: offset) }
    }

    /// The header as it is now.
    var header: Qcow2Header { volume.withLock { $0.header } }

    /// Its internal snapshots.
    public func snapshots() throws -> [Qcow2Snapshot] {
        try volume.withLock { try Qcow2Snapshot.list($0.file, $0.header) }
    }

    /// Keeps the disk as it is now under a name.
    public func createSnapshot(_ name: String) throws { try volume.withLock { try $0.createSnapshot(name) } }

    /// Makes the disk what it was when a snapshot was made; what it is now is lost.
    public func applySnapshot(_ name: String) throws {
        try volume.withLock { volume in
            try volume.applySnapshot(name)
            size.store(volume.byteCount, ordering: .releasing)
        }
    }

    /// Forgets a snapshot.
    public func deleteSnapshot(_ name: String) throws { try volume.withLock { try $0.deleteSnapshot(name) } }

    /// Compares all references with their counts; repairs them if asked.
    public func check(repairing: Bool = false) throws -> DiskCheck {
        try volume.withLock { repairing ? try $0.repair() : try $0.check() }
    }

    /// Changes the size; the tables grow, or what is cut off is given back.
    public func resize(to newSize: UInt64) throws {
        try volume.withLock { volume in
            try volume.resize(to: newSize)
            size.store(volume.byteCount, ordering: .releasing)
        }
    }

    /// Maps all clusters to room that follows one another.
    func preallocate(_ kind: Preallocation) throws { try volume.withLock { try $0.preallocate(kind) } }

    /// Makes an image file; its tables are empty. It is on the disk after its next flush, or when it goes; not
    /// synchronized, whenever the host likes.
    @discardableResult
    public static func create(
        _ path: String, _ options: Qcow2Options, replacing: Bool = false, isSynchronized: Bool = true
    ) throws -> Qcow2Image {
        var options = options
        if let name = options.base {
            let folder = path.lastIndex(of: "/").map { String(path[...$0]) } ?? ""
            let place = name.hasPrefix("/") ? name : folder + name
            let base = try Disk.open(
                place, DiskOptions(isReadOnly: true, format: options.baseFormat), depth: 0, isBase: true)
            options.baseFormat = base.format
            if options.size == 0 { options.size = base.byteCount }
        }
        let header = try options.header()
        let file = try ImageFile(creating: path, replacing: replacing)
        do {
            try header.create(in: file)
            let image = try Qcow2Image(file: file, snapshot: nil, depth: 0)
            if !isSynchronized { image.volume.withLock { $0.isTemporary = true } }
            if options.preallocation != .off {
                if image.base != nil {
                    throw StorageError(.badRequest, "disk \(path): room can't be taken beforehand with a base")
                }
                try image.preallocate(options.preallocation)
            }
            return image
        } catch {
            file.unlink()
            throw error
        }
    }

    /// An image over another that takes writes, and goes when it is closed: its file has no name.
    static func temporaryOverlay(of base: any DiskImage) throws -> Qcow2Image {
        var options = Qcow2Options()
        options.size = base.byteCount
        let header = try options.header()
        let file = try ImageFile.temporary()
        try header.create(in: file)
        var volume = try Qcow2Volume(file: file, header: header, base: base)
        volume.isTemporary = true
        return Qcow2Image(volume: volume, path: base.path)
    }
}
