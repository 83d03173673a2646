// Folders of the host that a machine gets and loses while it runs.
internal import DeviceModel
public import Devices
internal import HostOS
public import Storage

/// A folder of the host's that a guest's agent mounts.
public struct MountConfiguration: Sendable, Equatable, Codable {
    /// Where it is on the host.
    public var folder: String
    /// Where the guest has it.
    public var path: String
    /// Whether the guest may only read.
    public var isReadOnly: Bool

    /// Folders that one machine can have.
    public static var most: Int { MountedFolders.most }

    /// Names both places.
    public init(folder: String, path: String, isReadOnly: Bool = false) {
        self.folder = folder
        self.path = path
        self.isReadOnly = isReadOnly
    }

    /// Whether a guest can have a folder there: an absolute path in its plainest form, not its root.
    public static func isPath(_ path: String) -> Bool {
        guard path.hasPrefix("/"), 2...1024 ~= path.utf8.count, path.utf8.allSatisfy({ $0 >= 0x20 && $0 != 0x7F })
        else { return false }
        let names = path.dropFirst().split(separator: "/", omittingEmptySubsequences: false)
        return names.allSatisfy { $0 != "" && $0 != "." && $0 != ".." && $0.utf8.count <= 255 }
    }
}

extension MountedFolders: FileServer {}

extension Board {
    /// Makes the device behind which mounted folders come and go, if the machine has one.
    func connectMounts(_ configuration: MachineConfiguration, door: any Door) throws(MachineError) -> MountedFolders? {
        guard let mounts = configuration.mounts else { return nil }
        guard !configuration.folders.contains(where: { $0.tag == Self.mountsTag }) else {
            throw MachineError(.disk, "no shared folder can have the tag '\(Self.mountsTag)'; give it another tag=NAME")
        }
        let server = MountedFolders()
        for mount in mounts { try server.add(mount) }
        let worker: any Worker =
            configuration.clock == .virtual ? InlineWorker() : WorkerThreads(name: "roost-mounts")
        try add(VirtioFileSystem(tag: Self.mountsTag, door: door, server: server, worker: worker))
        return server
    }

    private static var mountsTag: String { "roost" }
}

extension MountedFolders {
    fileprivate func add(_ mount: MountConfiguration) throws(MachineError) {
        guard MountConfiguration.isPath(mount.path) else {
            throw MachineError(.disk, "'\(mount.path)' can't be a folder's place in a guest")
        }
        do throws(HostError) {
            try add(mount.folder, at: mount.path, isReadOnly: mount.isReadOnly)
        } catch {
            throw MachineError(
                .disk,
                "folder \(mount.folder), mounted at \(mount.path): \(error.reason); `roost unmount` takes it away")
        }
    }
}

extension Machine {
    /// Gives the guest one more folder of the host's; its agent has to be told.
    public func mount(_ mount: MountConfiguration) throws(MachineError) { try mounts().add(mount) }

    /// Whether the guest is to have what is mounted at a path; its agent has to be told.
    public func setMountListed(_ isListed: Bool, at path: String) throws(MachineError) {
        try mounts().setListed(isListed, at: path)
    }

    /// Takes away what is mounted at a path; what the guest has open of it is stale.
    public func unmount(_ path: String) throws(MachineError) { try mounts().remove(at: path) }

    private func mounts() throws(MachineError) -> MountedFolders {
        guard let mounts = backends.mounts else {
            throw MachineError(.disk, "this machine was started without what folders are mounted by")
        }
        return mounts
    }
}
