// The machine's disks and drives by name, and those that come and go while it runs.
internal import DeviceModel
internal import Devices
internal import HostOS
internal import Storage
internal import Synchronization

/// What a disk is connected to.
public enum DiskBus: String, Sendable, CaseIterable, Codable {
    /// A controller of its own on the PCI bus.
    case virtio
    /// The machine's SCSI controller.
    case scsi
}

/// A disk or drive as it is now.
public struct DiskStatus: Sendable, Codable, Equatable {
    /// Its name: disk0, cdrom0 and so on; a disk's serial number in the guest.
    public var name: String
    /// What it is connected to.
    public var bus: DiskBus
    /// A drive, whose medium can be changed.
    public var isDrive: Bool
    /// The image; nil for an empty drive.
    public var path: String?
    /// Bytes of the image.
    public var byteCount: UInt64?
    /// Whether the guest can write it.
    public var isReadOnly: Bool
    /// The guest doesn't let go of the medium.
    public var isLocked = false
    /// The drive's tray is out.
    public var isTrayOpen = false

    /// Describes one that no machine has open.
    public init(name: String, bus: DiskBus, isDrive: Bool, path: String?, isReadOnly: Bool) {
        self.name = name
        self.bus = bus
        self.isDrive = isDrive
        self.path = path
        self.isReadOnly = isReadOnly
    }
}

extension Machine {
    /// The disks and drives, in the order in which they came.
    public var disks: [DiskStatus] { backends.disks.status }

    /// Connects a disk to the SCSI controller while the machine runs; the guest is told. Returns its name.
    public func attachDisk(_ disk: DiskConfiguration) throws(MachineError) -> String {
        try requireHostTime()
        guard disk.bus == .scsi else {
            throw MachineError(.disk, "disk \(disk.path): only SCSI disks can come and go (bus=scsi)")
        }
        return try backends.disks.attach(disk)
    }

    /// Takes a SCSI disk or drive away while the machine runs; the guest is told, and not asked. What it has written is in
    /// the image when this returns.
    public func detachDisk(_ name: String) throws(MachineError) {
        try requireHostTime()
        try backends.disks.detach(name)
    }

    /// Puts an image into an empty drive, read-only, and closes its tray.
    public func insertMedium(_ path: String, into name: String) throws(MachineError) {
        try requireHostTime()
        try backends.disks.insert(path, into: name)
    }

    /// Takes the image out of a drive. A guest that has locked the tray is asked for it, and this fails with
    /// `mediumLocked`, unless it is `forced`.
    public func ejectMedium(from name: String, forced: Bool = false) throws(MachineError) {
        try requireHostTime()
        try backends.disks.eject(name, forced: forced)
    }

    private func requireHostTime() throws(MachineError) {
        guard configuration.clock == .host else {
            throw MachineError(.disk, "with virtual time disks don't come and go: the run could not be repeated")
        }
    }
}

/// The disks and drives of a machine, open as long as they are connected.
final class MachineDisks: Sendable {
    private struct Entry: Sendable {
        var name: String
        var bus: DiskBus
        var backend: DiskBackend?
        var unit: SCSIUnit?
        var target: Int?
        var isDrive: Bool { unit?.kind == .cdrom }
    }

    /// The controller for disks that come and go, and for drives.
    let controller: VirtioSCSI
    private let door: any Door
    private let traffic: Traffic
    private let entries = Mutex<[Entry]>([])

    init(door: any Door, traffic: Traffic, makeWorker: @escaping @Sendable () -> any Worker) {
        self.door = door
        self.traffic = traffic
        controller = VirtioSCSI(door: door, makeWorker: makeWorker)
    }

    /// Keeps a disk's image under another name, and goes on over it.
    func lay(_ path: String, as layer: String) throws(MachineError) {
        let backends = entries.withLock { $0.compactMap(\.backend) }
        guard let backend = backends.first(where: { $0.image.path == path }) else {
            throw MachineError(.disk, "the machine has no disk \(path)")
        }
        do { try backend.lay(as: layer) } catch { throw MachineError(.disk, "disk \(path): \(error)") }
    }

    /// Opens a disk that has a controller of its own.
    func openVirtio(_ disk: DiskConfiguration) throws(MachineError) -> (name: String, backend: DiskBackend) {
        let backend = try DiskBackend.open(disk, traffic)
        return entries.withLock { entries in
            let name = Self.freeName("disk", entries)
            entries.append(Entry(name: name, bus: .virtio, backend: backend))
            return (name, backend)
        }
    }

    /// Opens a disk and connects it to the SCSI controller.
    func attach(_ disk: DiskConfiguration) throws(MachineError) -> String {
        let backend = try DiskBackend.open(disk, traffic)
        return try connect(.disk, "disk", backend)
    }

    /// Makes a drive, with an image in it or empty.
    func addDrive(_ path: String?) throws(MachineError) -> String {
        let backend = try path.map { path throws(MachineError) in try openMedium(path) }
        return try connect(.cdrom, "cdrom", backend)
    }

    private func openMedium(_ path: String) throws(MachineError) -> DiskBackend {
        try DiskBackend.open(DiskConfiguration(path: path, options: DiskOptions(isReadOnly: true)), traffic)
    }

    private func connect(_ kind: SCSIUnit.Kind, _ prefix: String, _ backend: DiskBackend?) throws(MachineError)
        -> String
    {
        // The name is taken before the unit is there, since the unit is called by it.
        let (name, target) = try entries.withLock { entries throws(MachineError) -> (String, Int) in
            let name = Self.freeName(prefix, entries)
            guard let target = (0..<VirtioSCSI.targets).first(where: { n in !entries.contains { $0.target == n } })
            else {
                throw MachineError(.disk, "the SCSI controller has room for \(VirtioSCSI.targets) disks and drives")
            }
            entries.append(Entry(name: name, bus: .scsi, backend: backend, target: target))
            return (name, target)
        }
        let unit = SCSIUnit(kind, medium: backend, identifier: name) { [weak self] in self?.letGo(of: name) }
        entries.withLock { entries in
            if let index = entries.firstIndex(where: { $0.name == name }) { entries[index].unit = unit }
        }
        tell { [controller] in _ = controller.plug(unit, target: target) }
        return name
    }

    private static func freeName(_ prefix: String, _ entries: [Entry]) -> String {
        var number = 0
        while entries.contains(where: { $0.name == "\(prefix)\(number)" }) { number += 1 }
        return "\(prefix)\(number)"
    }

    private func entry(_ name: String) throws(MachineError) -> Entry {
        let entries = entries.withLock { $0 }
        if let found = entries.first(where: { $0.name == name }) { return found }
        let names = entries.map(\.name).joined(separator: ", ")
        throw MachineError(.noSuchDisk, "there is no disk or drive '\(name)'; there are: \(names)")
    }

    private func drive(_ name: String) throws(MachineError) -> (unit: SCSIUnit, target: Int) {
        let found = try entry(name)
        guard found.isDrive, let unit = found.unit, let target = found.target else {
            throw MachineError(.disk, "\(name) is a disk: it has no medium to change")
        }
        return (unit, target)
    }

    /// Takes a unit from the controller, and waits until nothing uses it any more.
    func detach(_ name: String) throws(MachineError) {
        let found = try entry(name)
        guard let target = found.target else {
            throw MachineError(.disk, "\(name) has a controller of its own; only SCSI disks can come and go")
        }
        found.backend?.stopWaiting()
        let gone = WakeFlag()
        let wasThere = Mutex(true)
        // What the guest hears of, and what the unit is still at, wait while the machine is paused.
        tell { [controller] in
            if !controller.unplug(target: target, { gone.raise() }) {
                wasThere.withLock { $0 = false }
                gone.raise()
            }
        }
        gone.wait()
        guard wasThere.withLock({ $0 }) else {
            throw MachineError(.noSuchDisk, "\(name) is on its way out already")
        }
        found.backend?.close()
        entries.withLock { $0.removeAll { $0.name == name } }
    }

    /// Puts an image into a drive.
    func insert(_ path: String, into name: String) throws(MachineError) {
        let (unit, target) = try drive(name)
        guard !unit.hasMedium else { throw MachineError(.disk, "\(name) has a medium; eject it first") }
        let backend = try openMedium(path)
        let isIn = entries.withLock { entries in
            guard let index = entries.firstIndex(where: { $0.name == name }), unit.insert(backend) else { return false }
            entries[index].backend = backend
            return true
        }
        guard isIn else { throw MachineError(.disk, "\(name) has a medium; eject it first") }
        tell { [controller] in controller.mediumChanged(target: target) }
    }

    /// Takes the image out of a drive.
    func eject(_ name: String, forced: Bool) throws(MachineError) {
        let (unit, target) = try drive(name)
        guard unit.remove(forced: forced) else {
            tell { [controller] in controller.mediumChanged(target: target) }
            throw MachineError(.mediumLocked, "\(name) is in use by the guest, which has been asked to let go of it")
        }
        letGo(of: name)
        tell { [controller] in controller.mediumChanged(target: target) }
    }

    /// Reaches the guest through the door: it waits while the machine is paused.
    private func tell(_ body: @escaping @Sendable () -> Void) { door.admit(.connected(true)) { _ in body() } }

    /// Forgets what was in a drive.
    private func letGo(of name: String) {
        entries.withLock { entries in
            if let index = entries.firstIndex(where: { $0.name == name }) { entries[index].backend = nil }
        }
    }

    /// What there is.
    var status: [DiskStatus] {
        entries.withLock { entries in
            entries.map { entry in
                var status = DiskStatus(
                    name: entry.name, bus: entry.bus, isDrive: entry.isDrive, path: entry.backend?.image.path,
                    isReadOnly: entry.backend?.isReadOnly ?? true)
                status.byteCount = entry.backend?.byteCount
                status.isLocked = entry.unit?.isLocked ?? false
                status.isTrayOpen = entry.unit?.isTrayOpen ?? false
                return status
            }
        }
    }

    /// Changes how fast the guest may use each disk.
    func changeLimits(_ body: (inout DiskLimits) -> Void) {
        for entry in entries.withLock({ $0 }) where !entry.isDrive { entry.backend?.changeLimits(body) }
    }

    /// Brings everything written to the files: an orderly end.
    func close() { for entry in entries.withLock({ $0 }) { entry.backend?.close() } }
}
