// Disks and media of a machine that is kept: in its manifest, and while it runs in the machine too.
internal import Foundation
internal import HostOS
public import Machine
internal import Storage
internal import Synchronization

/// A disk or drive, by its name or its image.
public struct DetachParameters: Codable, Sendable {
    /// What whoever asks has called it.
    public var name: String
    /// The same as a path, from the root: this process is in another folder than that one.
    public var path: String?
}

/// A drive, and what becomes of it.
public struct MediumParameters: Codable, Sendable {
    /// The drive's name; nil: the only one.
    public var drive: String?
    /// The image that goes into it.
    public var path: String?
    /// Whether the guest is asked.
    public var isForced: Bool?
}

extension StoredMachine {
    private static let mostDisks = 31

    /// Connects a disk to the SCSI controller, from now on and at each start; returns its name.
    public func attach(_ disk: DiskConfiguration) throws -> String {
        var disk = disk
        disk.bus = .scsi
        if !Disk.isOnServer(disk.path) { disk.path = PrivateFolder.absolute(disk.path) }
        return try withMachine {
            try $0.call(MachineRequest.attachDisk, disk, returning: NameParameters.self).name
        } else: {
            try attach(disk, to: nil)
        }
    }

    /// Takes a disk or drive away, by its name or its image.
    public func detach(_ name: String) throws {
        let parameters = DetachParameters(
            name: name, path: Disk.isOnServer(name) ? name : PrivateFolder.absolute(name))
        try withMachine {
            _ = try $0.call(MachineRequest.detachDisk, parameters) as NoParameters
        } else: {
            try detach(parameters, from: nil)
        }
    }

    /// Puts an image into a drive.
    public func insert(_ path: String, into drive: String?) throws {
        let parameters = MediumParameters(drive: drive, path: PrivateFolder.absolute(path))
        try withMachine {
            _ = try $0.call(MachineRequest.changeMedium, parameters) as NoParameters
        } else: {
            try changeMedium(parameters, of: nil)
        }
    }

    /// Takes the image out of a drive; a guest that uses it is asked first, unless it is forced.
    public func eject(_ drive: String?, forced: Bool) throws {
        let parameters = MediumParameters(drive: drive, isForced: forced)
        try withMachine {
            _ = try $0.call(MachineRequest.changeMedium, parameters) as NoParameters
        } else: {
            try changeMedium(parameters, of: nil)
        }
    }

    /// Asks the machine's process, or, where there is none, does it with the machine locked.
    private func withMachine<Result>(
        _ ask: (ControlClient) throws -> Result, else change: () throws -> Result
    ) throws -> Result {
        if isRunning { return try ask(try control()) }
        let lock = try lock()
        defer { withExtendedLifetime(lock) {} }
        return try change()
    }

    // MARK: In the process that has the machine

    func attach(_ disk: DiskConfiguration, to running: Machine?) throws -> String {
        try disksInTurn.withLock { _ in try attachAlone(disk, to: running) }
    }

    private func attachAlone(_ disk: DiskConfiguration, to running: Machine?) throws -> String {
        try requireRunning(running)
        let count = try manifest().machine.disks.count
        guard count < Self.mostDisks else {
            throw MachinesError(.badRequest, "a machine has at most \(Self.mostDisks) disks")
        }
        if running == nil, !Disk.isOnServer(disk.path), !FileDescriptor.exists(disk.path) {
            throw MachinesError(.fileSystem, "there is no disk image \(disk.path)")
        }
        let name = try running?.attachDisk(disk) ?? "disk\(count)"
        try edit { $0.machine.disks.append(disk) }
        return name
    }

    func detach(_ wanted: DetachParameters, from running: Machine?) throws {
        try disksInTurn.withLock { _ in try detachAlone(wanted, from: running) }
    }

    private func detachAlone(_ wanted: DetachParameters, from running: Machine?) throws {
        try requireRunning(running)
        let status = try find(wanted, in: running)
        if status.isDrive {
            let number = try number(of: status.name, in: running)
            try running?.detachDisk(status.name)
            return try edit { manifest in
                if manifest.machine.drives.indices.contains(number) { manifest.machine.drives.remove(at: number) }
            }
        }
        // While it runs, the machine knows which can go.
        if running == nil, status.path?.hasPrefix(folder + "/") ?? false {
            throw MachinesError(.badRequest, "\(status.name) is the machine's own")
        }
        try running?.detachDisk(status.name)
        try edit { manifest in
            let all = manifest.machine.resolved(in: folder).disks
            let index = all.firstIndex { $0.path == status.path && (running == nil || $0.bus == .scsi) }
            if let index { manifest.machine.disks.remove(at: index) }
        }
    }

    func changeMedium(_ parameters: MediumParameters, of running: Machine?) throws {
        try disksInTurn.withLock { _ in try changeMediumAlone(parameters, of: running) }
    }

    private func changeMediumAlone(_ parameters: MediumParameters, of running: Machine?) throws {
        try requireRunning(running)
        let drives = try disks(of: running).filter(\.isDrive)
        let name = try parameters.drive ?? only(drives)
        let number = try number(of: name, in: running)
        if let path = parameters.path {
            if running == nil {
                guard FileDescriptor.exists(path) else { throw MachinesError(.fileSystem, "there is no image \(path)") }
                if drives[number].path != nil {
                    throw MachinesError(.badRequest, "\(name) has a medium; eject it first")
                }
            }
            try running?.insertMedium(path, into: name)
        } else {
            try running?.ejectMedium(from: name, forced: parameters.isForced ?? false)
        }
        try edit { manifest in
            if manifest.machine.drives.indices.contains(number) { manifest.machine.drives[number] = parameters.path }
        }
    }

    /// What reaches the guest waits while the machine is paused, and whoever asked with it.
    private func requireRunning(_ machine: Machine?) throws(MachinesError) {
        if machine?.isPaused ?? false {
            throw MachinesError(.badRequest, "it is paused; `roost resume \(name)` lets it go on")
        }
    }

    private func only(_ drives: [DiskStatus]) throws(MachinesError) -> String {
        guard drives.count == 1 else {
            throw MachinesError(
                .badRequest,
                drives.isEmpty
                    ? "it has no drive (--cdrom empty)"
                    : "it has several drives: --drive \(drives.map(\.name).joined(separator: ", "))")
        }
        return drives[0].name
    }

    /// The disks and drives as they are, or will be at the next start.
    private func disks(of running: Machine?) throws -> [DiskStatus] {
        if let running { return running.disks }
        let machine = try manifest().machine.resolved(in: folder)
        let disks = machine.disks.enumerated().map { number, disk in
            DiskStatus(
                name: "disk\(number)", bus: disk.bus, isDrive: false, path: disk.path,
                isReadOnly: disk.options.isReadOnly)
        }
        return disks
            + machine.drives.enumerated().map { number, path in
                DiskStatus(name: "cdrom\(number)", bus: .scsi, isDrive: true, path: path, isReadOnly: true)
            }
    }

    private func find(_ wanted: DetachParameters, in running: Machine?) throws -> DiskStatus {
        let all = try disks(of: running)
        let path = PrivateFolder.canonical(wanted.path ?? wanted.name)
        if let found = all.first(where: { $0.name == wanted.name })
            ?? all.first(where: { $0.path.map(PrivateFolder.canonical) == path })
        {
            return found
        }
        throw MachinesError(
            .notFound,
            "there is no disk or drive '\(wanted.name)'; there are: \(all.map(\.name).joined(separator: ", "))")
    }

    /// Where a drive stands among the drives.
    private func number(of drive: String, in running: Machine?) throws -> Int {
        let drives = try disks(of: running).filter(\.isDrive)
        guard let number = drives.firstIndex(where: { $0.name == drive }),
            number < (try manifest().machine.drives.count)
        else {
            throw MachinesError(
                .notFound, "there is no drive '\(drive)'; there are: \(drives.map(\.name).joined(separator: ", "))")
        }
        return number
    }
}

/// One disk or medium at a time comes or goes: where it stands in the manifest is looked up before the machine lets go of
/// it.
private let disksInTurn = Mutex(())
