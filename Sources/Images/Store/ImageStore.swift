// Where guest images are kept: a folder each below ${XDG_DATA_HOME:-~/.local/share}/roost/images, or $ROOST_HOME/images.
internal import Foundation
internal import HostOS
internal import Storage

/// A guest image: a folder with a kernel, an initramfs, a disk and a manifest.
public struct GuestImage: Sendable {
    /// The folder.
    public let folder: String
    /// What the image says of itself.
    public let manifest: ImageManifest

    /// Opens the image in a folder.
    public init(folder: String) throws(ImageError) {
        self.folder = folder
        self.manifest = try ImageManifest.read(in: folder)
    }

    /// The kernel's path.
    public var kernel: String { folder + "/" + manifest.kernel }
    /// The initramfs' path.
    public var initrd: String { folder + "/" + manifest.initrd }
    /// The disk's path.
    public var disk: String { folder + "/" + manifest.disk }
    /// The kernel's command line.
    public var commandLine: String { manifest.commandLine }

    /// The kernel's command line, which tells a minimal guest the kind and size of the person's terminal too.
    public func commandLine(terminal: String?, columns: Int, rows: Int) -> String {
        guard manifest.variant == DebianImageBuilder.Variant.minimal.rawValue else { return commandLine }
        var line = commandLine + " roost.terminal=\(columns)x\(rows)"
        if let terminal, ImageStore.isName(terminal) { line += " TERM=" + terminal }
        return line
    }

    /// Gives the image a disk file of its own if machines stand on it: it is about to be written to.
    public func separateDisk(progress: (_ stage: String, _ done: UInt64, _ total: UInt64) -> Void) throws {
        guard DurableFile.names(of: disk) > 1 else { return }
        let copy = disk + ".new"
        let source = try Disk.open(disk, DiskOptions(isReadOnly: true, format: .raw))
        do {
            _ = try DiskConverter.convert(source, to: copy, .raw(.off), replacing: true) {
                progress("copying the image's disk, which machines stand on", $0, $1)
            }
            try DurableFile.move(copy, to: disk)
        } catch {
            try? FileManager.default.removeItem(atPath: copy)
            throw error
        }
    }

    /// Bytes the image takes on the host's disk.
    public var bytesOnDisk: Int64 {
        [kernel, initrd, disk].reduce(0) { $0 + FileUsage.allocatedBytes($1) }
    }
}

/// The images of one person on this host.
public struct ImageStore: Sendable {
    /// The folder that holds them.
    public let root: String

    /// A store in a folder, which need not exist.
    public init(root: String) { self.root = root }

    /// The person's own store.
    public static var standard: ImageStore { ImageStore(root: PrivateFolder.data + "/images") }

    /// The folder of an image by name.
    public func folder(of name: String) -> String { root + "/" + name }

    /// Whether a name may stand for an image: letters, digits, `.`, `_`, `-`, not starting with a dot.
    public static func isName(_ name: String) -> Bool {
        !name.isEmpty && name.utf8.count <= 64 && !name.hasPrefix(".")
            && name.utf8.allSatisfy {
                (0x30...0x39).contains($0) || (0x41...0x5A).contains($0) || (0x61...0x7A).contains($0)
                    || $0 == 0x2D || $0 == 0x2E || $0 == 0x5F
            }
    }

    /// The image of a name, or the image in a folder when the name has a slash.
    public func locate(_ name: String) throws(ImageError) -> GuestImage {
        let manager = FileManager.default
        if name.contains("/") {
            guard manager.fileExists(atPath: name + "/" + ImageManifest.fileName) else {
                throw ImageError(.notFound, "there is no guest image in \(name)")
            }
            return try GuestImage(folder: name)
        }
        guard Self.isName(name) else {
            throw ImageError(.badRequest, "'\(name)' cannot be an image's name: letters, digits, '.', '_', '-'")
        }
        guard manager.fileExists(atPath: folder(of: name)) else {
            if manager.fileExists(atPath: name + "/" + ImageManifest.fileName) {
                throw ImageError(
                    .notFound, "there is no image '\(name)' in the store; for the folder here, say ./\(name)")
            }
            if name == "debian" {
                throw ImageError(.notFound, "there is no image 'debian' yet; run `roost image build debian`")
            }
            let known = list().map(\.manifest.name)
            throw ImageError(
                .notFound,
                known.isEmpty
                    ? "there is no image '\(name)'; run `roost image build debian` to make the first"
                    : "there is no image '\(name)'; there is \(known.joined(separator: ", "))")
        }
        return try GuestImage(folder: folder(of: name))
    }

    /// All images that can be read, by name.
    public func list() -> [GuestImage] {
        let names = (try? FileManager.default.contentsOfDirectory(atPath: root)) ?? []
        return names.filter(Self.isName).sorted().compactMap { try? GuestImage(folder: folder(of: $0)) }
    }
}
