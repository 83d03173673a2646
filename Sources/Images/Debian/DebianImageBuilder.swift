// Builds a Debian guest without root: mmdebstrap makes the root file system, fakeroot keeps its owners, mke2fs puts
// it into a disk, and the kernel is taken out of it.
//
// All work happens in a folder `.building-PID` beside the target, renamed into place as the last step; an
// interrupted build removes it, and one that was killed is swept away by the next.
internal import Foundation
internal import HostOS

/// Makes Debian guest images.
public struct DebianImageBuilder: Sendable {
    /// Which init and packages the guest has.
    public enum Variant: String, Sendable, CaseIterable, Codable {
        /// A small init of Roost's own: a shell in seconds.
        case minimal
        /// systemd and what belongs to it.
        case systemd
    }

    /// Which init and packages the guest has.
    public var variant: Variant
    /// Debian's release: bookworm, trixie, …
    public var suite: String
    /// The mirror, if not mmdebstrap's own choice.
    public var mirror: String?
    /// The disk's size in bytes, as the guest sees it (the file is sparse).
    public var diskSize: Int64
    /// Packages beyond the variant's own.
    public var included: [String]

    /// Makes a builder.
    public init(
        variant: Variant = .minimal, suite: String = "bookworm", mirror: String? = nil, diskSize: Int64 = 2 << 30,
        included: [String] = []
    ) {
        self.variant = variant
        self.suite = suite
        self.mirror = mirror
        self.diskSize = diskSize
        self.included = included
    }

    /// Builds the image in a folder, which must not exist or, `replacing`, is an image or empty; `report` hears of progress.
    public func build(
        name: String, into folder: String, replacing: Bool = false, report: (BuildProgress) -> Void
    ) throws(ImageError) -> GuestImage {
        guard suite.first?.isLetter == true,
            suite.utf8.allSatisfy({ (0x61...0x7A).contains($0) || (0x30...0x39).contains($0) || $0 == 0x2D })
        else { throw ImageError(.badRequest, "'\(suite)' is not a Debian release; bookworm, say") }
        for package in included where !Self.isPackage(package) {
            throw ImageError(.badRequest, "'\(package)' is not a package's name; gcc, say")
        }
        guard diskSize >= 1 << 30 else { throw ImageError(.badRequest, "a disk under 1G does not hold Debian") }
        let target = URL(fileURLWithPath: folder).standardizedFileURL.path
        let place = ImagePlace(target, replacing: replacing)
        try place.check()
        _ = try AgentProgram.path()
        for (tool, package) in [
            ("mmdebstrap", nil), ("mke2fs", "e2fsprogs"), ("fakeroot", nil), ("busybox", "busybox-static"),
            ("tar", nil),
        ] as [(String, String?)] {
            _ = try Tool.require(tool, package: package)
        }
        let parent = (target as NSString).deletingLastPathComponent
        try makeFolder(parent)
        sweep(parent)
        let work = "\(parent)/.building-\(ProcessInfo.processInfo.processIdentifier)"
        try makeFolder(work)
        do {
            let image = try Interruption.hold { () throws(ImageError) -> GuestImage in
                try assemble(name: name, in: work, report: report)
                try place.take(work + "/image", aside: work + "/former-")
                return try GuestImage(folder: target)
            }
            Self.remove(work)
            return image
        } catch {
            Self.remove(work)
            throw error
        }
    }

    /// Whether Debian's policy allows the name, 5.6.1: lower case, digits, `+`, `-` and `.`, two at least.
    private static func isPackage(_ name: String) -> Bool {
        let bytes = Array(name.utf8)
        func plain(_ byte: UInt8) -> Bool { (0x61...0x7A).contains(byte) || (0x30...0x39).contains(byte) }
        return bytes.count >= 2 && plain(bytes[0]) && bytes.allSatisfy { plain($0) || [0x2B, 0x2D, 0x2E].contains($0) }
    }

    private func assemble(name: String, in work: String, report: (BuildProgress) -> Void) throws(ImageError) {
        let image = work + "/image"
        let root = work + "/root"
        try makeFolder(image)
        try makeFolder(root)
        var progress = BuildProgress()
        report(progress)

        try bootstrap(to: work + "/rootfs.tar", &progress, report)

        progress.enter(.disk)
        report(progress)
        let overlay = DebianOverlay(variant: variant, agent: try AgentProgram.contents())
        try overlay.write(to: work + "/overlay")
        try run(
            "fakeroot",
            ["--", "/bin/sh", "-ec", Self.diskScript, "disk", work, String(diskSize)], &progress, report)

        progress.enter(.kernel)
        report(progress)
        let modules = try KernelModules(root: root)
        try copy(kernelIn(root, release: modules.release), to: image + "/kernel")
        try write(try EarlyUserSpace.rootSwitching(kernelRoot: root), to: image + "/initrd")
        var manifest = ImageManifest(
            name: name, variant: variant.rawValue, suite: suite, commandLine: overlay.commandLine,
            kernelRelease: modules.release, created: ISO8601DateFormatter().string(from: Date()), diskSize: diskSize,
            included: included)
        manifest.agent = AgentProgram.version
        try write(try manifest.serialized(), to: image + "/" + ImageManifest.fileName)
        progress.enter(.done)
        report(progress)
    }

    /// Unpacks the tar, lays Roost's files over it and makes the disk, all under one fakeroot so that owners survive.
    ///
    /// The inode tables are initialized now rather than by the guest's kernel in the background. Device nodes are left
    /// out: the guest mounts devtmpfs.
    private static let diskScript = """
        cd "$1"
        tar -x -p --numeric-owner --exclude='./dev/*' --exclude='./proc/*' --exclude='./sys/*' -f rootfs.tar -C root
        rm -f rootfs.tar
        cp -R --no-dereference --preserve=mode --remove-destination overlay/. root/
        PATH="$PATH:/usr/sbin:/sbin"
        mke2fs -q -F -t ext4 -L roost-root -E lazy_itable_init=0,lazy_journal_init=0,root_owner=0:0 \
            -d root image/disk.raw "$(($2 / 1024))k"
        """

    private func bootstrap(
        to archive: String, _ progress: inout BuildProgress, _ report: (BuildProgress) -> Void
    ) throws(ImageError) {
        var arguments = ["--verbose", "--variant=minbase", "--format=tar"]
        arguments.append("--include=" + (DebianOverlay.packages(variant) + included).joined(separator: ","))
        for option in DebianOverlay.dpkgOptions(variant) { arguments.append("--dpkgopt=" + option) }
        // Root has no password: a guest is reached through its console.
        arguments.append("--customize-hook=chroot \"$1\" passwd --quiet --delete root")
        arguments += [suite, archive]
        if let mirror { arguments.append(mirror) }
        // The kernel's own initramfs is not used, and takes a while to make.
        try run("mmdebstrap", arguments, environment: ["INITRD": "No", "LC_ALL": "C.UTF-8"], &progress, report)
    }

    private func run(
        _ name: String, _ arguments: [String], environment: [String: String] = [:], _ progress: inout BuildProgress,
        _ report: (BuildProgress) -> Void
    ) throws(ImageError) {
        let path = try Tool.require(name)
        var variables = ProcessInfo.processInfo.environment
        variables.merge(environment) { $1 }
        var last: [String] = []
        var current = progress
        let ending: ChildProcess.Ending
        do {
            ending = try ChildProcess.run(
                path, arguments, environment: variables,
                line: { line in
                    if last.count == 200 { last.removeFirst() }
                    last.append(line)
                    if current.read(line) { report(current) }
                },
                proceed: {
                    current.tick()
                    report(current)
                    return !Interruption.requested
                })
        } catch {
            throw ImageError(.toolFailed, "\(error)")
        }
        progress = current
        if ending == .stopped || Interruption.requested {
            throw ImageError(.interrupted, "interrupted; nothing is left behind")
        }
        guard ending == .exited(0) else {
            throw ImageError(.toolFailed, "\(name) failed: \(Self.reason(last))")
        }
    }

    /// The lines of a failed tool's output that tell why.
    private static func reason(_ lines: [String]) -> String {
        let errors = lines.filter { $0.hasPrefix("E:") || $0.hasPrefix("mke2fs:") || $0.contains("No space left") }
        let chosen = errors.isEmpty ? lines.suffix(3) : errors.prefix(3)
        return chosen.map { $0.trimmingCharacters(in: .whitespaces) }.joined(separator: "; ")
    }

    private func kernelIn(_ root: String, release: String) throws(ImageError) -> String {
        let path = "\(root)/boot/vmlinuz-\(release)"
        guard FileManager.default.fileExists(atPath: path) else {
            throw ImageError(.damaged, "the root file system has no kernel \(release)")
        }
        return path
    }

    /// Removes what builds that were killed have left.
    private func sweep(_ parent: String) {
        for name in (try? FileManager.default.contentsOfDirectory(atPath: parent)) ?? [] {
            guard name.hasPrefix(".building-"), let process = Int32(name.dropFirst(10)),
                !FileManager.default.fileExists(atPath: "/proc/\(process)")
            else { continue }
            Self.remove(parent + "/" + name)
        }
    }

    /// Removes a folder with all below it, folders without write permission included.
    private static func remove(_ folder: String) {
        _ = try? Tool.output("chmod", ["-R", "u+rwX", folder])
        try? FileManager.default.removeItem(atPath: folder)
    }

    private func makeFolder(_ path: String) throws(ImageError) {
        do {
            try FileManager.default.createDirectory(atPath: path, withIntermediateDirectories: true)
        } catch {
            throw ImageError(.fileSystem, "cannot make the folder \(path): \(error.localizedDescription)")
        }
    }

    private func copy(_ source: String, to target: String) throws(ImageError) {
        do {
            try FileManager.default.copyItem(atPath: source, toPath: target)
        } catch {
            throw ImageError(.fileSystem, "cannot write \(target): \(error.localizedDescription)")
        }
    }

    private func write(_ bytes: [UInt8], to path: String) throws(ImageError) {
        do {
            try Data(bytes).write(to: URL(fileURLWithPath: path))
        } catch {
            throw ImageError(.fileSystem, "cannot write \(path): \(error.localizedDescription)")
        }
    }
}
