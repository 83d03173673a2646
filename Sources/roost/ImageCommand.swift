// `roost image`: building and listing guest images.
internal import ArgumentParser
internal import Foundation
internal import HostOS
internal import Images

/// `roost image`.
struct ImageCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "image", abstract: "Build and list guest images.",
        subcommands: [Build.self, List.self, SelfCheck.self, Nested.self])

    /// `roost image build`.
    struct Build: ParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Build a Debian guest: root file system, kernel, initramfs.",
            discussion: """
                Packages come from Debian's mirror, through the host's own apt settings and proxies. Root is not needed. \
                The guest's root user has no password.
                """)

        @Argument(help: "What to build; debian is what there is.")
        var distribution: String

        @Option(name: .shortAndLong, help: "The folder to make, instead of one in the image store.")
        var output: String?

        @Option(help: "minimal (a small init, a prompt in seconds) or systemd (the whole system).")
        var variant: String = "minimal"

        @Option(help: "Debian's release.")
        var suite: String = "bookworm"

        @Option(help: "A mirror's address, instead of deb.debian.org.")
        var mirror: String?

        @Option(help: "More packages, comma-separated; repeatable.")
        var include: [String] = []

        @Option(help: "The disk's size as the guest sees it, in GiB (the file is sparse).")
        var diskSize: Int = 2

        @Flag(help: "Do nothing if the image is there.")
        var ifMissing = false

        @Flag(help: "Replace an image that is there, and lose what its disk holds; never anything else.")
        var replace = false

        @Flag(
            help: "Like --replace, but do nothing if the image is there, with these packages and this version's agent.")
        var ifOutdated = false

        func run() throws {
            guard distribution == "debian" else {
                throw ValidationError("there is no recipe for '\(distribution)'; there is one for debian")
            }
            guard let kind = DebianImageBuilder.Variant(rawValue: variant) else {
                throw ValidationError("there is no variant '\(variant)': minimal or systemd")
            }
            guard (1...16384).contains(diskSize) else { throw ValidationError("a disk has 1 to 16384 GiB") }
            let folder = output.map(PrivateFolder.absolute) ?? ImageStore.standard.folder(of: distribution)
            let packages = include.flatMap { $0.split(separator: ",").map(String.init) }
            if ifOutdated, let image = try? ImageStore.standard.locate(folder), image.manifest.isCurrent,
                packages.allSatisfy((image.manifest.included ?? []).contains)
            {
                return
            }
            if ifMissing, FileManager.default.fileExists(atPath: folder + "/image.json") {
                let present = try ImageStore.standard.locate(folder).manifest.included ?? []
                let lacking = packages.filter { !present.contains($0) }
                if lacking.isEmpty { return }
                throw ImageError(
                    .badRequest,
                    "\(folder) was built without \(lacking.joined(separator: ", ")); --replace builds it anew, "
                        + "and loses what its disk holds")
            }

            let builder = DebianImageBuilder(
                variant: kind, suite: suite, mirror: mirror, diskSize: Int64(diskSize) << 30,
                included: packages)
            var display = ProgressDisplay()
            do {
                let name = URL(fileURLWithPath: folder).standardizedFileURL.lastPathComponent
                let image = try builder.build(name: name, into: folder, replacing: replace || ifOutdated) {
                    display.show($0)
                }
                display.finish()
                print("\(image.folder): Debian \(suite) (\(variant)), kernel \(image.manifest.kernelRelease)")
            } catch {
                display.finish()
                throw error
            }
        }
    }

    /// `roost image list`.
    struct List: ParsableCommand {
        static let configuration = CommandConfiguration(abstract: "List the guest images in the store.")

        @OptionGroup var list: ListOptions

        func run() {
            var listing = Listing(columns: [
                "name", "variant", "suite", "kernel", "agent", "onDisk", "created", "folder",
            ])
            for image in ImageStore.standard.list() {
                let manifest = image.manifest
                listing.rows.append([
                    .text(manifest.name), .text(manifest.variant), .text(manifest.suite),
                    .text(manifest.kernelRelease),
                    .text(manifest.agent == nil ? "none" : manifest.isCurrent ? "current" : "old"),
                    .bytes(UInt64(max(0, image.bytesOnDisk))), .text(manifest.created), .text(image.folder),
                ])
            }
            list.show(listing, ifEmpty: "No images yet; `roost image build debian` makes one.")
        }
    }

    /// `roost image self-check`, for those who debug guests; not listed.
    struct SelfCheck: ParsableCommand {
        static let configuration = CommandConfiguration(
            commandName: "self-check", abstract: "Write the initramfs that checks its machine.", shouldDisplay: false)

        @Option(name: .shortAndLong, help: "The file to write.")
        var output: String

        @Option(help: "The kernel it is for: cloud or standard.")
        var kernel: String = "cloud"

        func run() throws {
            guard let flavor = DebianKernel.Flavor(rawValue: kernel) else {
                throw ValidationError("there is no kernel '\(kernel)': cloud or standard")
            }
            let found = try DebianKernel.fetched(flavor)
            try Data(SelfCheckImage.initramfs(for: found)).write(to: URL(fileURLWithPath: output))
            print("boot it with --kernel \(found.image) --initrd \(output) --append console=ttyS0")
        }
    }
}

extension ImageCommand {
    /// `roost image nested`, for tests of the hardware engine; not listed.
    struct Nested: ParsableCommand {
        static let configuration = CommandConfiguration(
            commandName: "nested", abstract: "Write the initramfs of a machine that runs Roost on KVM.",
            shouldDisplay: false)

        @Option(name: .shortAndLong, help: "The file to write.")
        var output: String

        @Option(help: "A program to take with its libraries; repeatable. Roost itself is always taken.")
        var program: [String] = []

        @Option(help: "A file or folder to take; repeatable.")
        var file: [String] = []

        func run() throws {
            let kernel = try DebianKernel.fetched(.cloud)
            let roost = try FileManager.default.destinationOfSymbolicLink(atPath: "/proc/self/exe")
            let archive = try NestedImage.initramfs(kernel: kernel, programs: [roost] + program, files: file)
            try Data(archive).write(to: URL(fileURLWithPath: output))
            print("boot it with \(kernel.image), nested.do=check")
        }
    }
}

/// A build's progress on standard error: one line redrawn on a terminal, a line a stage elsewhere.
private struct ProgressDisplay {
    private let terminal = isatty(STDERR_FILENO) == 1
    private var shown: BuildProgress?

    mutating func show(_ progress: BuildProgress) {
        if terminal {
            guard progress != shown else { return }
            let filled = progress.percent * 24 / 100
            let bar = String(repeating: "█", count: filled) + String(repeating: "░", count: 24 - filled)
            write("\r\u{1B}[K\(bar) \(progress.percent)% \(progress.stage.title), \(progress.seconds) s")
        } else if shown?.stage != progress.stage {
            write("\(progress.percent)% \(progress.stage.title), \(progress.seconds) s\n")
        }
        shown = progress
    }

    mutating func finish() {
        if terminal, shown != nil { write("\n") }
    }

    private func write(_ text: String) {
        FileHandle.standardError.write(Data(text.utf8))
    }
}
