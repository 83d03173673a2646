// Folders of the host that the guest mounts.
internal import DeviceModel
public import Devices
internal import HostOS
public import Storage

/// A folder of the host's that the guest mounts.
public struct FolderConfiguration: Sendable, Equatable, Codable {
    /// Where it is.
    public var path: String
    /// The name that the guest mounts it by.
    public var tag: String
    /// Whether the guest may only read.
    public var isReadOnly: Bool

    /// Names a folder.
    public init(path: String, tag: String = "share", isReadOnly: Bool = false) {
        self.path = path
        self.tag = tag
        self.isReadOnly = isReadOnly
    }
}

extension SharedFolder: FileServer {}

extension Board {
    /// Makes the devices of a configuration's shared folders.
    func connectFolders(_ configuration: MachineConfiguration, door: any Door) throws(MachineError) {
        guard Set(configuration.folders.map(\.tag)).count == configuration.folders.count else {
            throw MachineError(.disk, "two shared folders have the same tag; give each one tag=NAME")
        }
        for folder in configuration.folders {
            let server: SharedFolder
            do {
                server = try SharedFolder(path: folder.path, isReadOnly: folder.isReadOnly)
            } catch { throw MachineError(.disk, "shared folder \(folder.path): \(error.reason)") }
            let worker: any Worker =
                configuration.clock == .virtual ? InlineWorker() : WorkerThreads(name: "roost-folder")
            try add(VirtioFileSystem(tag: folder.tag, door: door, server: server, worker: worker))
        }
    }
}
