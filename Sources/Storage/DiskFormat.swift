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
    /// How fast it may be used.
    public var limits = DiskLimits()

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
            let image = try openUnlimited(path, options)
            return options.limits == DiskLimits() ? image : LimitedImage(image, options.limits)
        }
    }

    private static func openUnlimited(_ path: String, _ options: DiskOptions) throws -> any DiskImage {
        guard options.isTemporary else { return try open(path, options, depth: 0, isBase: false) }
        var base = options
        base.isTemporary = false
        base.isReadOnly = true
        return try Qcow2Image.temporaryOverlay(of: try open(path, base, depth: 0, isBase: true))
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
        let file = try ImageFile(path: path, readOnly: options.isReadOnly || options.snapshot != nil)
        var start = [UInt8](repeating: 0, count: 512)
        let got = try file.read(at: 0, into: &start, 0..<512)
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
