// `roost disk`: making, describing, converting and checking disk images.
internal import ArgumentParser
internal import Foundation
internal import HostOS
internal import Storage

/// `roost disk`.
struct DiskCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "disk", abstract: "Make, describe, convert and check disk images.",
        subcommands: [Create.self, Info.self, Convert.self, Check.self, Resize.self, Snapshot.self])

    /// Prints a value as JSON.
    static func printJSON(_ value: some Encodable) throws {
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.prettyPrinted, .sortedKeys, .withoutEscapingSlashes]
        print(String(decoding: try encoder.encode(value), as: UTF8.self))
    }

    static func format(_ name: String?) throws -> DiskFormat? {
        guard let name else { return nil }
        guard let format = DiskFormat(name: name) else {
            let known = DiskFormat.allCases.map(\.rawValue).joined(separator: ", ")
            throw ValidationError("there is no format '\(name)'; there are \(known)")
        }
        return format
    }

    /// What a new qcow2 image is to be.
    struct Qcow2Arguments: ParsableArguments {
        @Option(help: "Bytes of a qcow2 cluster: 512 to 2M.")
        var clusterSize = MemorySize(bytes: 65536)

        @Option(help: "qcow2's version: 2 or 3.")
        var version = 3

        @Option(help: "How qcow2 clusters are compressed: zlib or zstd.")
        var compression = "zlib"

        @Option(help: "Room to take at once: off, metadata, falloc or full.")
        var preallocation = "off"

        @Flag(help: "Replace a file that is there.")
        var force = false

        func options() throws -> Qcow2Options {
            guard ["zlib", "zstd"].contains(compression) else { throw ValidationError("--compression is zlib or zstd") }
            guard let preallocation = Preallocation(rawValue: preallocation) else {
                throw ValidationError("--preallocation is off, metadata, falloc or full")
            }
            var options = Qcow2Options()
            options.clusterSize = Int(clamping: clusterSize.bytes)
            options.version = version
            options.isZstd = compression == "zstd"
            options.preallocation = preallocation
            return options
        }
    }

    /// `roost disk create`.
    struct Create: ParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Make an empty image, or one over a base that is never written.")

        @Argument(help: "The file to make.")
        var path: String

        @Argument(help: "The disk's size: bytes, or a number with K, M, G or T (default: the base's).")
        var size: MemorySize?

        @Option(name: .shortAndLong, help: "qcow2 or raw.")
        var format = "qcow2"

        @Option(name: .shortAndLong, help: "The image to keep writes apart from; relative to the new image's folder.")
        var base: String?

        @Option(help: "The base's format (default: what its content says).")
        var baseFormat: String?

        @Flag(help: "Allow other programs to leave refcounts for later.")
        var lazyRefcounts = false

        @OptionGroup var qcow2: Qcow2Arguments

        func run() throws {
            var options = try qcow2.options()
            guard size != nil || base != nil else {
                throw ValidationError("give the disk's size, or a base with --base")
            }
            options.size = size?.bytes ?? 0
            switch try DiskCommand.format(format) {
            case .raw:
                guard base == nil else { throw ValidationError("raw images have no base; use -f qcow2") }
                try Disk.createRaw(
                    path, size: options.size, preallocation: options.preallocation, replacing: qcow2.force)
            case .qcow2:
                options.base = base
                options.baseFormat = try DiskCommand.format(baseFormat)
                options.hasLazyRefcounts = lazyRefcounts
                try Qcow2Image.create(path, options, replacing: qcow2.force)
            default: throw ValidationError("only qcow2 and raw images can be made")
            }
        }
    }

    /// `roost disk info`.
    struct Info: ParsableCommand {
        static let configuration = CommandConfiguration(abstract: "Tell what an image is.")

        @Argument(help: "The image.")
        var path: String

        @Option(name: .shortAndLong, help: "Its format (default: what its content says).")
        var format: String?

        @Flag(help: "Print JSON.")
        var json = false

        func run() throws {
            let report = try DiskReport(path, format: try DiskCommand.format(format))
            if json { return try DiskCommand.printJSON(report) }
            print("\(report.path): \(report.format)" + (report.version.map { " version \($0)" } ?? ""))
            print("  size: \(report.size) bytes; on the host: \(report.sizeOnHost)")
            if let cluster = report.clusterSize, let bits = report.refcountBits, let compression = report.compression {
                print("  clusters: \(cluster) bytes, \(compression), \(bits)-bit refcounts")
            }
            if let base = report.base { print("  base: \(base) (\(report.baseFormat ?? "format not told"))") }
            if report.isDirty == true { print("  was not closed properly") }
            if report.isCorrupt == true { print("  is marked as corrupt") }
            for snapshot in report.snapshots ?? [] { print("  snapshot \(snapshot.id): \(snapshot.name)") }
        }
    }

    /// `roost disk convert`.
    struct Convert: ParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Copy an image into another format; zeroes take no room.")

        @Argument(help: "The image to read.")
        var source: String

        @Argument(help: "The file to make.")
        var target: String

        @Option(help: "The source's format (default: what its content says).")
        var sourceFormat: String?

        @Option(help: "An internal snapshot of the source, instead of its current content.")
        var snapshot: String?

        @Option(name: .shortAndLong, help: "qcow2, raw or vmdk (stream-optimized, always compressed).")
        var format = "qcow2"

        @Flag(name: .shortAndLong, help: "Compress clusters.")
        var compress = false

        @OptionGroup var qcow2: Qcow2Arguments

        func run() throws {
            let options = try qcow2.options()
            let target: DiskConverter.Target
            switch try DiskCommand.format(format) {
            case .raw: target = .raw(options.preallocation)
            case .qcow2: target = .qcow2(options, isCompressed: compress)
            case .vmdk: target = .vmdk
            default: throw ValidationError("only qcow2, raw and (stream-optimized) vmdk images can be written")
            }
            let image = try Disk.open(
                source,
                DiskOptions(isReadOnly: true, format: try DiskCommand.format(sourceFormat), snapshot: snapshot))
            var progress = ProgressLine()
            defer { progress.finish() }
            try DiskConverter.convert(image, to: self.target, target, replacing: qcow2.force) {
                progress.show("copying", $0, $1)
            }
        }
    }

    /// `roost disk check`.
    struct Check: ParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Compare a qcow2 image's tables with one another.",
            discussion: "Ends with 0 if all is well, with 3 if room is lost, with 2 if data are at risk.")

        @Argument(help: "The image.")
        var path: String

        @Flag(help: "Set refcounts right.")
        var repair = false

        @Flag(help: "Print JSON.")
        var json = false

        func run() throws {
            let image = try Disk.open(path, DiskOptions(isReadOnly: !repair))
            guard let qcow2 = image as? Qcow2Image else {
                throw StorageError(.unsupported, "disk \(path): \(image.format) images have nothing to check")
            }
            let report = try qcow2.check(repairing: repair)
            if json {
                try DiskCommand.printJSON(report)
            } else {
                for finding in report.findings where !repair { print(finding) }
                print(
                    "\(report.corruptions) errors, \(report.leaks) clusters lost, \(report.repaired) repaired; "
                        + "\(report.allocated) of \(report.total) clusters in use")
            }
            if report.corruptions > 0 { throw ExitStatus(code: 2) }
            if report.leaks > 0 { throw ExitStatus(code: 3) }
        }
    }

    /// `roost disk resize`.
    struct Resize: ParsableCommand {
        static let configuration = CommandConfiguration(abstract: "Change the size of a raw or qcow2 image.")

        @Argument(help: "The image.")
        var path: String

        @Argument(help: "The new size: bytes, or a number with K, M, G or T.")
        var size: MemorySize

        @Option(name: .shortAndLong, help: "Its format (default: what its content says).")
        var format: String?

        @Flag(help: "Allow to cut off what is behind the new size.")
        var shrink = false

        func run() throws {
            try Disk.resize(path, to: size.bytes, format: try DiskCommand.format(format), shrinks: shrink)
        }
    }

    /// `roost disk snapshot`.
    struct Snapshot: ParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "List, make, apply and delete the internal snapshots of a qcow2 image.",
            discussion: "One is read with 'roost disk convert --snapshot NAME' or '--disk FILE,internal=NAME'.")

        @Argument(help: "The image.")
        var path: String

        @Option(help: ArgumentHelp("Keep the disk as it is now under a name.", valueName: "name"))
        var create: String?

        @Option(help: ArgumentHelp("Make the disk what it was; what it is now is lost.", valueName: "name"))
        var apply: String?

        @Option(help: ArgumentHelp("Forget a snapshot.", valueName: "name"))
        var delete: String?

        @OptionGroup var list: ListOptions

        func run() throws {
            guard [create, apply, delete].compactMap({ $0 }).count <= 1 else {
                throw ValidationError("--create, --apply and --delete stand alone")
            }
            if create == nil && apply == nil && delete == nil { return try show() }
            guard let image = try Disk.open(path) as? Qcow2Image else {
                throw StorageError(.unsupported, "disk \(path): only qcow2 images have internal snapshots")
            }
            if let create { try image.createSnapshot(create) }
            if let apply { try image.applySnapshot(apply) }
            if let delete { try image.deleteSnapshot(delete) }
        }

        private func show() throws {
            var listing = Listing(columns: ["name", "id", "taken"])
            for snapshot in try DiskReport(path).snapshots ?? [] {
                let date = Date(timeIntervalSince1970: TimeInterval(snapshot.seconds)).formatted(.iso8601)
                listing.rows.append([.text(snapshot.name), .text(snapshot.id), .text(date)])
            }
            list.show(listing, ifEmpty: "No snapshots in \(path).")
        }
    }
}
