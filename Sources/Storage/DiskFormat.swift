// The formats of disk images, and how to tell them apart.

/// A format that disk images are stored in.
public enum DiskFormat: String, Sendable, CaseIterable, Codable, CustomStringConvertible {
    /// Byte for byte.
    case raw
    /// QEMU's, versions 2 and 3.
    case qcow2
    /// VMware's.
    case vmdk
    /// VirtualBox's.
    case vdi
    /// Virtual PC's and Hyper-V's first.
    case vhd
    /// Hyper-V's second.
    case vhdx

    /// Its name.
    public var description: String { rawValue }

    /// A format by its name, or by the name that QEMU has for it.
    public init?(name: String) {
        if name == "vpc" { self = .vhd } else { self.init(rawValue: name) }
    }

    /// The format that the first sector of a file announces; raw if none.
    ///
    /// VHD images of fixed size are known by their last sector, which is the guest's in a raw image: they must be named.
    static func detect(_ start: [UInt8]) -> DiskFormat {
        func begins(_ bytes: [UInt8], at offset: Int = 0) -> Bool {
            start.count >= offset + bytes.count && Array(start[offset..<offset + bytes.count]) == bytes
        }
        if begins([0x51, 0x46, 0x49, 0xFB]) { return .qcow2 }
        if begins(Array("KDMV".utf8)) || begins(Array("COWD".utf8)) || begins(Array("# Disk DescriptorFile".utf8)) {
            return .vmdk
        }
        if begins([0x7F, 0x10, 0xDA, 0xBE], at: 64) { return .vdi }
        if begins(Array("vhdxfile".utf8)) { return .vhdx }
        if begins(Array("conectix".utf8)) { return .vhd }
        return .raw
    }
}

/// What of a new image's room is taken from the host at once.
public enum Preallocation: String, Sendable, CaseIterable {
    /// Nothing.
    case off
    /// The tables are complete, the data are holes.
    case metadata
    /// All room is reserved.
    case falloc
    /// As falloc, and written with zeroes.
    case full
}

/// What the host's cache does for a disk, and what the guest's flushes are worth.
public enum CacheMode: String, Sendable, CaseIterable {
    /// Writes are in the host's cache, and durable after the guest's next flush.
    case writeback
    /// Every write is durable when it is done.
    case writethrough
    /// As writeback, past the host's cache.
    case none
    /// Flushes are ignored: what the guest wrote may be lost, in any order, if the host fails.
    case unsafe
}

/// How an image is to be opened.
public struct DiskOptions: Sendable, Equatable {
    /// Writes fail.
    public var isReadOnly: Bool
    /// The format; nil asks the image's content.
    public var format: DiskFormat?
    /// Writes go to a temporary overlay and are lost at the end.
    public var isTemporary: Bool
    /// An internal snapshot to open instead of the current content, by name or number; read-only.
    public var snapshot: String?
    /// How the host's cache is used; for the image itself, not for its bases.
    public var cache = CacheMode.writeback

    /// Options.
    public init(
        isReadOnly: Bool = false, format: DiskFormat? = nil, isTemporary: Bool = false, snapshot: String? = nil
    ) {
        self.isReadOnly = isReadOnly
        self.format = format
        self.isTemporary = isTemporary
        self.snapshot = snapshot
    }
}

/// Opens disk images.
public enum Disk {
    /// More images behind one another than this are taken for a circle.
    static let longestChain = 64

    /// Opens and locks an image, with all that it is based on.
    public static func open(_ path: String, _ options: DiskOptions = DiskOptions()) throws(StorageError)
        -> any DiskImage
    {
        try explaining(path) {
            guard options.isTemporary else { return try openFirst(path, options, isBase: false) }
            var base = options
            base.isTemporary = false
            base.isReadOnly = true
            return try Qcow2Image.temporaryOverlay(of: try openFirst(path, base, isBase: true))
        }
    }

    /// Whether a path is a server's export and not a file.
    public static func isOnServer(_ path: String) -> Bool { NBDImage.isURI(path) }

    /// Opens what the user has named: a file, or an export of a server. What an image names is always a file.
    private static func openFirst(_ path: String, _ options: DiskOptions, isBase: Bool) throws -> any DiskImage {
        guard NBDImage.isURI(path) else { return try open(path, options, depth: 0, isBase: isBase) }
        guard options.format ?? .raw == .raw, options.snapshot == nil else {
            throw StorageError(.unsupported, "disk \(path): what a server exports is taken for a raw disk")
        }
        return try NBDImage(path, readOnly: options.isReadOnly, cache: options.cache)
    }

    /// Runs something that may fail in any way, so that it fails in one.
    static func explaining<Result>(
        _ path: String, _ body: () throws -> Result
    ) throws(StorageError) -> Result {
        do { return try body() } catch let error as StorageError { throw error } catch {
            throw StorageError(.host, "disk \(path): \(error)")
        }
    }

    static func open(_ path: String, _ options: DiskOptions, depth: Int, isBase: Bool) throws -> any DiskImage {
        guard depth < longestChain else {
            throw StorageError(.damaged, "disk \(path): more than \(longestChain) images are based on one another")
        }
        let file = try ImageFile(
            path: path, readOnly: options.isReadOnly || options.snapshot != nil, cache: options.cache)
        var start = [UInt8](repeating: 0, count: 512)
        let got = try file.read(at: 0, into: &start)
        let format = options.format ?? DiskFormat.detect(Array(start[..<got]))
        if options.snapshot != nil && format != .qcow2 {
            throw StorageError(.unsupported, "disk \(path): \(format) images have no internal snapshots")
        }
        switch format {
        case .raw: return try RawImage(file: file, isGuessed: options.format == nil, roundsUp: isBase)
        case .qcow2: return try Qcow2Image(file: file, snapshot: options.snapshot, depth: depth)
        case .vmdk, .vdi, .vhd, .vhdx:
            guard options.isReadOnly else {
                throw StorageError(
                    .notWritable,
                    "disk \(path): \(format) images can only be read; add ,readonly, or ,snapshot to keep writes apart")
            }
            switch format {
            case .vmdk: return try VMDKImage.open(file)
            case .vdi: return try MappedImage(file: file, VDILayout(file))
            case .vhd: return try MappedImage(file: file, VHDLayout(file))
            default: return try MappedImage(file: file, VHDXLayout(file))
            }
        }
    }
}
