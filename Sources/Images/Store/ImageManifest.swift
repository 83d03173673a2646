// What an image's folder says of itself: `image.json`.
internal import Foundation

/// The manifest of a guest image.
public struct ImageManifest: Codable, Sendable, Equatable {
    /// The version of this layout.
    public var version = 1
    /// The image's name.
    public var name: String
    /// Which init and packages: minimal or systemd.
    public var variant: String
    /// The distribution's release.
    public var suite: String
    /// File name of the kernel, in the image's folder.
    public var kernel = "kernel"
    /// File name of the initramfs.
    public var initrd = "initrd"
    /// File name of the root disk, raw.
    public var disk = "disk.raw"
    /// The kernel's command line.
    public var commandLine: String
    /// The kernel's release, as `uname -r` says it.
    public var kernelRelease: String
    /// When the image was built, in ISO 8601.
    public var created: String
    /// The disk's size as the guest sees it, in bytes.
    public var diskSize: Int64
    /// Packages that were asked for beyond the variant's own.
    public var included: [String]?

    /// Version of the agent in the guest; nil: it has none.
    public var agent: Int?
    /// Whether its agent is what this version builds.
    public var isCurrent: Bool { agent == AgentProgram.version }

    /// Makes a manifest with the usual file names.
    public init(
        name: String, variant: String, suite: String, commandLine: String, kernelRelease: String, created: String,
        diskSize: Int64, included: [String] = []
    ) {
        self.name = name
        self.variant = variant
        self.suite = suite
        self.commandLine = commandLine
        self.kernelRelease = kernelRelease
        self.created = created
        self.diskSize = diskSize
        self.included = included.isEmpty ? nil : included
    }

    static let fileName = "image.json"
    static let largest = 64 << 10

    /// What tells a manifest, of whatever version, from another program's file.
    private struct Head: Decodable {
        var version: Int
        var name: String
        var kernel: String
        var disk: String
    }

    /// Whether a folder is an image, damaged or of another version perhaps.
    static func isThere(in folder: String) -> Bool {
        guard let data = FileManager.default.contents(atPath: folder + "/" + fileName), data.count <= largest else {
            return false
        }
        return (try? JSONDecoder().decode(Head.self, from: data)) != nil
    }

    /// Reads the manifest in a folder; checks that its files lie there.
    static func read(in folder: String) throws(ImageError) -> ImageManifest {
        let path = folder + "/" + fileName
        guard let data = FileManager.default.contents(atPath: path), data.count <= largest else {
            throw ImageError(.damaged, "\(path) is missing or not a manifest; build the image again")
        }
        let manifest: ImageManifest
        do {
            manifest = try JSONDecoder().decode(ImageManifest.self, from: data)
        } catch {
            throw ImageError(.damaged, "\(path) is not a manifest that this version reads; build the image again")
        }
        guard manifest.version == 1 else {
            throw ImageError(
                .damaged, "\(path) is of version \(manifest.version), this Roost reads 1; build the image again")
        }
        for file in [manifest.kernel, manifest.initrd, manifest.disk] {
            guard !file.isEmpty, !file.contains("/"), !file.hasPrefix(".") else {
                throw ImageError(.damaged, "\(path) names a file outside its folder: '\(file)'")
            }
            guard FileManager.default.fileExists(atPath: folder + "/" + file) else {
                throw ImageError(.damaged, "\(folder)/\(file) is missing; build the image again")
            }
        }
        return manifest
    }

    /// The manifest as it is written.
    package func serialized() throws(ImageError) -> [UInt8] {
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.prettyPrinted, .sortedKeys, .withoutEscapingSlashes]
        do {
            return Array(try encoder.encode(self)) + [10]
        } catch {
            throw ImageError(.fileSystem, "cannot write the manifest: \(error)")
        }
    }
}
