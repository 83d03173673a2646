// What there is to know about an image file.
internal import HostOS

/// A description of an image, for people and as JSON.
public struct DiskReport: Sendable, Codable {
    /// The file.
    public var path: String
    /// How it is stored.
    public var format: DiskFormat
    /// Bytes that the guest sees.
    public var size: UInt64
    /// Bytes that the file takes on the host.
    public var sizeOnHost: UInt64
    /// Bytes of a cluster, where the format has them.
    public var clusterSize: Int?
    /// The format's version.
    public var version: Int?
    /// How clusters are compressed.
    public var compression: String?
    /// Bits of a refcount.
    public var refcountBits: Int?
    /// Refcounts may be left for later.
    public var hasLazyRefcounts: Bool?
    /// It was not closed properly.
    public var isDirty: Bool?
    /// It is marked as corrupt.
    public var isCorrupt: Bool?
    /// The name of what it is based on.
    public var base: String?
    /// The base's format, as the image tells it.
    public var baseFormat: String?
    /// Internal snapshots.
    public var snapshots: [Qcow2Snapshot]?

    /// Looks at an image.
    public init(_ path: String, format: DiskFormat? = nil) throws(StorageError) {
        let image = try Disk.open(path, DiskOptions(isReadOnly: true, format: format))
        self.path = path
        self.format = image.format
        size = image.byteCount
        sizeOnHost = UInt64(max(0, FileUsage.allocatedBytes(path)))
        guard let qcow2 = image as? Qcow2Image else { return }
        let header = qcow2.header
        clusterSize = header.clusterSize
        version = Int(header.version)
        compression = header.isZstd ? "zstd" : "zlib"
        refcountBits = 1 << header.refcountOrder
        hasLazyRefcounts = header.compatible & 1 != 0
        isDirty = header.features.contains(.dirty)
        isCorrupt = header.features.contains(.corrupt)
        base = header.backingName
        baseFormat = header.backingFormat
        snapshots = try Disk.explaining(path) { try qcow2.snapshots() }
    }
}

extension DiskReport {
    /// The base that a qcow2 image names, whoever has it open; nil if it has none or is of another format.
    public static func base(of path: String) throws -> String? {
        // O_RDONLY
        let file = try FileDescriptor.open(path, 0)
        let header = try file.read(at: 0, count: 20)
        func number(_ range: Range<Int>) -> UInt64 { header[range].reduce(0) { $0 << 8 | UInt64($1) } }
        guard header.count == 20, number(0..<4) == 0x5146_49FB else { return nil }
        let (offset, length) = (number(8..<16), number(16..<20))
        guard offset != 0, (1...1023).contains(length) else { return nil }
        return String(decoding: try file.read(at: offset, count: Int(length)), as: UTF8.self)
    }
}

extension Disk {
    /// Makes an empty raw image.
    public static func createRaw(
        _ path: String, size: UInt64, preallocation: Preallocation = .off, replacing: Bool = false
    ) throws(StorageError) {
        try explaining(path) {
            _ = try RawImage.create(path: path, size: size, preallocation: preallocation, replacing: replacing)
        }
    }

    /// Changes the size of a raw or qcow2 image; cutting something off must be allowed.
    public static func resize(
        _ path: String, to size: UInt64, format: DiskFormat? = nil, shrinks: Bool = false
    ) throws(StorageError) {
        try explaining(path) {
            let image = try open(path, DiskOptions(format: format))
            if size < image.byteCount, !shrinks {
                throw StorageError(
                    .badRequest, "disk \(path): \(size) bytes are less than it has; --shrink cuts off what is behind")
            }
            if let qcow2 = image as? Qcow2Image { return try qcow2.resize(to: size) }
            guard let raw = image as? RawImage else {
                throw StorageError(.unsupported, "disk \(path): \(image.format) images can't be resized")
            }
            try raw.resize(to: size)
        }
    }
}
