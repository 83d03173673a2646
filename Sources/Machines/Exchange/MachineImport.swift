// Making a machine of an archive; nothing that the archive says is believed.
internal import Foundation
internal import HostOS
public import Machine
internal import Storage

extension MachineStore {
    /// Makes a machine of an exported one or of an OVA package. `boot` is what it boots where the package doesn't say. `notes`
    /// gets a line for each thing that the package wanted of the host and didn't get.
    public func importMachine(
        _ path: String, as name: String?, boot: BootSource?, notes: (String) -> Void = { _ in },
        progress: ProgressReport
    ) throws -> StoredMachine {
        let archive = try TarReader(path: path)
        let descriptor = archive.entries.first { $0.name.hasSuffix(".ovf") }
        var manifest: MachineManifest
        var proposed: String?
        if let entry = archive.entry("machine.json") {
            let text = try archive.contents(entry, limit: UInt64(MachineManifest.largest))
            manifest = try MachineManifest(Data(text), "\(path): machine.json")
            proposed = descriptor?.name.split(separator: ".").first.map(String.init)
        } else if let descriptor {
            let text = try archive.contents(descriptor, limit: OVFDescriptor.largest)
            let package = try OVFDescriptor(String(decoding: text, as: UTF8.self))
            manifest = try Self.manifest(of: package, boot)
            proposed = package.name
        } else {
            throw MachinesError(.damaged, "\(path) holds neither machine.json nor an OVF descriptor")
        }
        if let boot { manifest.machine.boot = boot }
        let file = path.split(separator: "/").last?.split(separator: ".").first.map(String.init)
        let name = name ?? [proposed, file].compactMap { $0 }.first { (try? requireFree($0)) != nil } ?? freeName()
        for (index, network) in manifest.machine.networks.enumerated() {
            if let wish = network.kind.wishOfHost {
                notes("network card \(index) \(wish): it has a user-mode network now")
            }
        }
        return try build(name) { folder in
            var unpacked = try Self.unpack(archive, manifest, keepsBoot: boot != nil, into: folder, path, progress)
            if archive.entry("snapshot.json") != nil {
                guard boot == nil else {
                    throw MachinesError(.badRequest, "\(path) holds a machine that goes on: it doesn't boot")
                }
                try SnapshotImport(path, folder, manifest).unpack(archive, &unpacked, progress)
            }
            return unpacked
        }
    }

    private static func manifest(of package: OVFDescriptor, _ boot: BootSource?) throws(MachinesError)
        -> MachineManifest
    {
        guard let boot else {
            throw MachinesError(
                .badRequest, "the package boots by firmware, which Roost has none of: give --kernel and --initrd")
        }
        var machine = MachineConfiguration(boot: boot)
        machine.processors = package.processors
        machine.memory = package.memory
        machine.disks = package.disks.map { DiskConfiguration(path: $0) }
        machine.networks = (0..<package.networkCards).map { _ in NetworkConfiguration(.user(forwards: [])) }
        return MachineManifest(machine: machine)
    }

    /// Takes the files out, and makes of the manifest one of a new machine.
    private static func unpack(
        _ archive: borrowing TarReader, _ given: MachineManifest, keepsBoot: Bool, into folder: String, _ path: String,
        _ progress: ProgressReport
    ) throws -> MachineManifest {
        var manifest = MachineManifest(image: given.image, machine: given.machine)
        func find(_ name: String) throws(MachinesError) -> TarEntry {
            guard !name.contains("/"), let entry = archive.entry(name) else {
                throw MachinesError(.damaged, "\(path): the machine's file '\(name)' is not in the archive")
            }
            return entry
        }
        if !keepsBoot {
            try archive.extract(try find(given.machine.boot.kernel), to: folder + "/kernel") {
                progress("taking out the kernel", $0, $1)
            }
            manifest.machine.boot.kernel = "kernel"
            if let initrd = given.machine.boot.initrd {
                try archive.extract(try find(initrd), to: folder + "/initrd") {
                    progress("taking out the initrd", $0, $1)
                }
                manifest.machine.boot.initrd = "initrd"
            }
        }
        for (index, disk) in given.machine.disks.enumerated() {
            let raw = folder + "/disk\(index).taken"
            try archive.extract(try find(disk.path), to: raw) { progress("taking out disk \(index)", $0, $1) }
            let name = "disk\(index).qcow2"
            try settle(raw, as: folder + "/" + name) { progress("converting disk \(index)", $0, $1) }
            manifest.machine.disks[index].path = name
            manifest.machine.disks[index].options.format = .qcow2
            manifest.machine.disks[index].options.snapshot = nil
        }
        // Nothing outside its folder is the archive's to name.
        manifest.machine.leaveHost()
        if given.machine.mounts != nil { manifest.machine.mounts = [] }
        for index in manifest.machine.networks.indices {
            manifest.machine.networks[index].kind = .user(forwards: [])
            manifest.machine.networks[index].macAddress = MachineConfiguration.address(index, of: manifest.id)
        }
        return manifest
    }

    /// Makes a qcow2 image of what came out of the archive. One that needs other files could show the guest any of the
    /// host's, and is refused.
    private static func settle(_ path: String, as target: String, progress: (UInt64, UInt64) -> Void) throws {
        let report = try DiskReport(path)
        guard report.base == nil else {
            throw MachinesError(.damaged, "a disk of the archive is based on a file outside it: \(report.base ?? "")")
        }
        if report.format == .qcow2 { return try DurableFile.move(path, to: target) }
        guard report.format == .vmdk || report.format == .raw else {
            throw MachinesError(.damaged, "a disk of the archive is a \(report.format) image")
        }
        let image = try Disk.open(path, DiskOptions(isReadOnly: true, format: report.format))
        try DiskConverter.convert(image, to: target, .qcow2(Qcow2Options(), isCompressed: false), progress: progress)
        try FileManager.default.removeItem(atPath: path)
    }
}

extension NetworkKind {
    /// What a card wants of its host, if it does, in words that go on from its name.
    fileprivate var wishOfHost: String? {
        switch self {
        case .user(let forwards), .passt(let forwards):
            if forwards.isEmpty { return nil }
            let ports = forwards.map { String($0.hostPort) }.joined(separator: ", ")
            return "had the host's port\(forwards.count == 1 ? "" : "s") \(ports), which 'roost forward' can give it"
        case .tap: return "was an interface of the host's"
        case .vhostUser: return "was plugged into a vhost-user switch of the host's"
        case .virtualSwitch(let name):
            return "was plugged into the switch \(name.filter { $0.isASCII && !$0.isNewline })"
        }
    }
}
