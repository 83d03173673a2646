// Machines of an image that have booted and wait, saved: commands in throw-away machines go on from there.
//
//   ROOST_HOME/warm/KEY/key        what it is of, in words; KEY is a checksum of it
//                       base.raw   the image's disk, a further name of it
//                       disk.qcow2 what the guest has written to it
//                       snapshot   the machine
//   ROOST_HOME/warm/.lock          locked by those who put one there
internal import AgentClient
internal import AgentProtocol
internal import Foundation
internal import HostOS
public import Images
public import Machine
internal import Storage

/// A machine that has booted, on disk.
public struct WarmImage: Sendable {
    private let folder: String
    private let configuration: MachineConfiguration

    /// How many are kept, one for each combination of image and options.
    private static let most = 8
    /// How long a guest may take to boot.
    private static let patience: UInt64 = 180_000_000_000

    /// The one of an image with this configuration; boots it now if there is none yet.
    public init(_ image: GuestImage, _ configuration: MachineConfiguration, progress: ProgressReport) throws {
        guard image.manifest.agent != nil else {
            throw MachinesError(
                .badRequest,
                "image '\(image.manifest.name)' has no agent to run commands; `roost image build \(image.manifest.name) --replace` makes it anew"
            )
        }
        let key = try Self.key(image, configuration)
        folder = PrivateFolder.data + "/warm/" + Self.name(key)
        self.configuration = configuration
        if Self.readKey(folder) == key {
            // The least recently used one goes when there are many.
            try? FileManager.default.setAttributes([.modificationDate: Date()], ofItemAtPath: folder)
            return
        }
        try build(image, key, progress)
    }

    /// A machine that goes on from there, and writes to its disk what nobody keeps.
    public func machine() throws -> Machine {
        var configuration = Self.quiet(configuration, folder)
        configuration.disks[0].options.isTemporary = true
        configuration.snapshot = try Snapshot(folder + "/snapshot")
        return try Machine(configuration)
    }

    /// Forgets it: its snapshot doesn't fit this Roost.
    public func remove() { try? FileManager.default.removeItem(atPath: folder) }

    /// All that a saved machine depends on: the image first, then what it boots and is made of.
    private static func key(_ image: GuestImage, _ configuration: MachineConfiguration) throws -> String {
        var kept = configuration
        (kept.engine, kept.codeCache, kept.userMode) = (.auto, 0, .auto)
        let boot = [configuration.boot.kernel] + (configuration.boot.initrd.map { [$0] } ?? [])
        return """
            \(imageLine(image))
            \(boot.map(identity).joined(separator: " "))
            \(String(decoding: try JSONText.line(kept), as: UTF8.self))
            """
    }

    private static func imageLine(_ image: GuestImage) -> String { "image \(identity(image.disk))" }

    /// Which file it is, and since when it is as it is.
    private static func identity(_ path: String) -> String {
        let attributes = (try? FileManager.default.attributesOfItem(atPath: path)) ?? [:]
        let changed = (attributes[.modificationDate] as? Date)?.timeIntervalSince1970 ?? 0
        return "\(path) \(attributes[.systemFileNumber] ?? 0) \(changed) \(attributes[.size] ?? 0)"
    }

    private static func name(_ key: String) -> String {
        String(
            key.utf8.reduce(14_695_981_039_346_656_037 as UInt64) { ($0 ^ UInt64($1)) &* 1_099_511_628_211 }, radix: 16)
    }

    private static func quiet(_ configuration: MachineConfiguration, _ folder: String) -> MachineConfiguration {
        var quiet = configuration
        quiet.console = .detached
        quiet.showsNotes = false
        quiet.disks.insert(
            DiskConfiguration(path: folder + "/disk.qcow2", options: DiskOptions(format: .qcow2)), at: 0)
        return quiet
    }

    private func build(_ image: GuestImage, _ key: String, _ progress: ProgressReport) throws {
        let root = PrivateFolder.data + "/warm"
        try explaining { () throws(HostError) in try PrivateFolder.make(root) }
        Self.sweep(root, image)
        let work = root + "/.making-\(DetachedProcess.ownNumber)"
        try? FileManager.default.removeItem(atPath: work)
        try explaining { () throws(HostError) in try PrivateFolder.make(work) }
        defer { try? FileManager.default.removeItem(atPath: work) }
        let base = try Disk.open(image.disk, DiskOptions(isReadOnly: true, format: .raw))
        if try !DurableFile.link(image.disk, as: work + "/base.raw") {
            _ = try DiskConverter.convert(base, to: work + "/base.raw", .raw(.off)) {
                progress("copying the image", $0, $1)
            }
        }
        var options = Qcow2Options()
        options.base = "base.raw"
        options.baseFormat = .raw
        _ = try Qcow2Image.create(work + "/disk.qcow2", options)
        try boot(work, progress)
        try Data(key.utf8).write(to: URL(fileURLWithPath: work + "/key"))
        try Self.publish(work, as: folder, key)
    }

    /// Gives a finished folder its name, unless somebody else was faster: from theirs, machines go on already.
    package static func publish(_ work: String, as folder: String, _ key: String) throws {
        let root = (folder as NSString).deletingLastPathComponent
        try explaining { () throws(HostError) in
            try PrivateFolder.alone(in: root) { () throws(HostError) in
                if readKey(folder) == key { return }
                try? FileManager.default.removeItem(atPath: folder)
                try HostFile.rename(work, to: folder)
            }
        }
    }

    /// Boots a machine and saves it as soon as its agent answers.
    private func boot(_ work: String, _ progress: ProgressReport) throws {
        let machine = try Machine(Self.quiet(configuration, work))
        let run = try BackgroundRun(machine)
        defer { run.end() }
        let started = HostClock.monotonic
        while true {
            if let outcome = run.outcome {
                throw MachinesError(.startFailed, "the guest ended while it booted: \(outcome.inWords.text)")
            }
            let passed = HostClock.monotonic &- started
            guard passed < Self.patience else {
                throw MachinesError(
                    .startFailed, "no agent answers in the guest after \(Self.patience / 1_000_000_000) s")
            }
            progress("first start of this image: booting", passed / 1_000_000, 0)
            if let agent = try? AgentConnection(try machine.connectAgent(milliseconds: 250)) {
                // Programs and libraries that every command needs are in memory then.
                var request = ProgramRequest(command: ["/bin/sh", "-c", "sync; sleep 1; ls / >/dev/null"])
                request.folder = "/"
                _ = try agent.run(request, ProgramStreams(input: nil, output: 2, errors: 2))
                break
            }
            HostClock.sleep(nanoseconds: 50_000_000)
        }
        // It never runs again after this moment: what it would write is not for its copies.
        try machine.pause()
        try machine.saveSnapshot(
            to: work + "/snapshot",
            progress: { progress("first start of this image: saving", UInt64($0.done) << 12, UInt64($0.total) << 12) })
    }

    private static func readKey(_ folder: String) -> String? {
        (try? HostFile.contents(of: folder + "/key", limit: 1 << 20)).map { String(decoding: $0, as: UTF8.self) }
    }

    /// Removes what processes that were killed have left, what is of the image as it was before, and the least recently
    /// used where there are many; who uses one has its files open.
    private static func sweep(_ root: String, _ image: GuestImage) {
        var kept: [(folder: String, used: Int)] = []
        for name in (try? FileManager.default.contentsOfDirectory(atPath: root)) ?? [] {
            let folder = root + "/" + name
            if name.hasPrefix(".making-") {
                guard let process = Int32(name.dropFirst(8)), !FileDescriptor.exists("/proc/\(process)") else {
                    continue
                }
                try? FileManager.default.removeItem(atPath: folder)
            } else if name.hasPrefix(".") {
                continue
            } else if let line = readKey(folder)?.split(separator: "\n").first,
                line.hasPrefix("image \(image.disk) "), line != imageLine(image)
            {
                try? FileManager.default.removeItem(atPath: folder)
            } else {
                kept.append((folder, PrivateFolder.changed(folder)))
            }
        }
        kept.sort { $0.used > $1.used }
        for old in kept.dropFirst(most - 1) { try? FileManager.default.removeItem(atPath: old.folder) }
    }
}
