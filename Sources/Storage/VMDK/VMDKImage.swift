// VMware's disk images: one or several extents that a descriptor names.
//
// VMware, Virtual Disk Format 5.0. A descriptor is text, in a file of its own or inside the only sparse extent:
//
//   parentCID=ffffffff            no image before this one
//   createType="monolithicSparse"
//   RW 8192 SPARSE "name.vmdk"    access, sectors, type (SPARSE, FLAT, ZERO), file, sector in it
internal import HostOS

/// A VMDK image's descriptor.
struct VMDKDescriptor: Equatable {
    /// An extent.
    struct Extent: Equatable {
        var sectors: UInt64
        var type: String
        var file: String
        var offset: UInt64
    }

    static let largest = 1 << 20
    static let mostExtents = 1024

    var createType = ""
    var extents: [Extent] = []

    init(_ bytes: [UInt8], _ file: ImageFile) throws {
        let text = String(decoding: bytes.prefix { $0 != 0 }, as: UTF8.self)
        for line in text.split(whereSeparator: \.isNewline) {
            let line = String(line)
            let words = line.split(separator: " ", omittingEmptySubsequences: true)
            if ["RW", "RDONLY", "NOACCESS"].contains(words.first ?? "") {
                guard words.count >= 3, let sectors = UInt64(words[1]), sectors <= 1 << 53,
                    extents.count < Self.mostExtents, words[0] != "NOACCESS"
                else { throw file.damaged("has a descriptor with the line '\(line.prefix(80))'") }
                let quoted = line.split(separator: "\"", omittingEmptySubsequences: false)
                let offset = quoted.count > 2 ? UInt64(quoted[2].split(separator: " ").first ?? "0") : 0
                guard let offset, offset <= 1 << 53 else {
                    throw file.damaged("has an extent at a place that can't be")
                }
                extents.append(
                    Extent(
                        sectors: sectors, type: String(words[2]), file: quoted.count > 1 ? String(quoted[1]) : "",
                        offset: offset))
                continue
            }
            guard let equals = line.firstIndex(of: "=") else { continue }
            let key = line[..<equals].filter { $0 != " " }.lowercased()
            let value = line[line.index(after: equals)...].filter { $0 != "\"" && $0 != " " }
            if key == "createtype" { createType = value }
            if key == "parentcid", value.lowercased() != "ffffffff" {
                throw file.unsupported("is a VMDK image that needs another")
            }
        }
    }
}

/// An open VMDK image of one or several extents.
final class VMDKImage: ReadOnlyDiskImage {
    private enum Content: Sendable {
        case zero
        case image(any DiskImage, UInt64)
    }

    private struct Extent: Sendable {
        var start: UInt64
        var end: UInt64
        var content: Content
    }

    let path: String
    let byteCount: UInt64
    var format: DiskFormat { .vmdk }
    var note: String? { nil }
    private let extents: [Extent]

    /// Opens an image: a sparse extent, or a descriptor and what it names.
    static func open(_ file: ImageFile) throws -> any DiskImage {
        let start = try file.read(at: 0, exactly: Int(min(512, try file.byteCount())), "header")
        if start.starts(with: Array("COWD".utf8)) {
            throw file.unsupported("is a sparse VMDK extent of ESX, which Roost can't read")
        }
        guard start.starts(with: Array("KDMV".utf8)) else { return try VMDKImage(descriptor: file) }
        let layout = try VMDKSparseLayout(file)
        if let place = layout.descriptor {
            _ = try VMDKDescriptor(try file.read(at: place.offset, exactly: place.count, "descriptor"), file)
        }
        return try MappedImage(file: file, layout)
    }

    private init(descriptor file: ImageFile) throws {
        let size = try file.byteCount()
        guard size <= UInt64(VMDKDescriptor.largest) else { throw file.damaged("is no VMDK image") }
        let descriptor = try VMDKDescriptor(try file.read(at: 0, exactly: Int(size), "descriptor"), file)
        var extents: [Extent] = []
        var end: UInt64 = 0
        for extent in descriptor.extents {
            let start = end
            end += extent.sectors * 512
            guard end <= 1 << 62 else { throw file.damaged("has extents that are too large") }
            extents.append(Extent(start: start, end: end, content: try Self.open(extent, file)))
        }
        guard end >= 512 else { throw file.damaged("has a descriptor without extents") }
        path = file.path
        byteCount = end
        self.extents = extents
    }

    private static func open(_ extent: VMDKDescriptor.Extent, _ file: ImageFile) throws -> Content {
        if extent.type == "ZERO" { return .zero }
        // A file beside the descriptor, never one that the descriptor could choose freely.
        guard !extent.file.isEmpty, !extent.file.contains("/") else {
            throw file.unsupported("has an extent '\(extent.file)' that isn't in its own folder")
        }
        let folder = file.path.lastIndex(of: "/").map { String(file.path[...$0]) } ?? ""
        let part = try ImageFile(path: folder + extent.file, readOnly: true)
        let image: any DiskImage
        switch extent.type {
        case "FLAT": image = try RawImage(file: part)
        case "SPARSE": image = try MappedImage(file: part, VMDKSparseLayout(part))
        default: throw file.unsupported("has an extent of type \(extent.type), which Roost can't read")
        }
        let start = extent.type == "FLAT" ? extent.offset * 512 : 0
        guard start <= image.byteCount, extent.sectors * 512 <= image.byteCount - start else {
            throw part.damaged("is shorter than its descriptor says")
        }
        return .image(image, start)
    }

    /// Fills memory from `offset`.
    func read(at offset: UInt64, into list: ScatterList) throws {
        try checkRange(offset, UInt64(list.count))
        for extent in extents where extent.start < offset + UInt64(list.count) && offset < extent.end {
            let start = max(extent.start, offset)
            let count = Int(min(extent.end, offset + UInt64(list.count)) - start)
            let part = list.dropFirst(Int(start - offset)).prefix(count)
            switch extent.content {
            case .zero: part.zero()
            case .image(let image, let place): try image.read(at: start - extent.start + place, into: part)
            }
        }
    }

    /// What the extent at `offset` says.
    func extent(at offset: UInt64, limit: UInt64) throws -> DiskExtent {
        try checkRange(offset, limit)
        for extent in extents where extent.start <= offset && offset < extent.end {
            let limit = min(limit, extent.end - offset)
            guard case .image(let image, let place) = extent.content else {
                return DiskExtent(length: limit, isZero: true)
            }
            return try image.extent(at: offset - extent.start + place, limit: limit)
        }
        return DiskExtent(length: limit, isZero: true)
    }
}
