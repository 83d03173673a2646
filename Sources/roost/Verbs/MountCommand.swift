// `roost mount` and `roost unmount`: folders of the host in a machine's guest.
internal import ArgumentParser
internal import HostOS
internal import Machine
internal import Machines

/// `roost mount`.
struct MountCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "mount", abstract: "Give a machine's guest a folder of the host's, while it runs or not.",
        discussion: """
            The agent in the guest mounts it (virtio-fs), at each start too, until 'roost unmount'. Files are accessed with \
            the rights of whoever runs the machine. Snapshots remember which folders were mounted, not what was in them; \
            clones have none. Without a folder: lists what is mounted.
            """)

    @OptionGroup var machine: MachineArgument

    @Argument(help: "The host's folder.", completion: .directory)
    var folder: String?

    @Argument(help: "Where the guest has it (default: /mnt and the folder's name).")
    var guestPath: String?

    @Flag(help: "The guest may only read it.")
    var readOnly = false

    @OptionGroup var list: ListOptions

    func run() throws {
        let machine = try machine.find()
        guard let folder else { return try show(machine) }
        let path = PrivateFolder.canonical(PrivateFolder.absolute(folder))
        let name = path.split(separator: "/").last.map(String.init)
        guard let target = guestPath ?? name.map({ "/mnt/" + $0 }) else {
            throw ValidationError("say where the guest is to have \(folder)")
        }
        let isThere = try machine.mount(MountConfiguration(folder: path, path: target, isReadOnly: readOnly))
        if !isThere, machine.isRunning {
            Terminal.note("roost: no agent answers in the guest: it has \(target) as soon as one does")
        }
        print(target)
    }

    private func show(_ machine: StoredMachine) throws {
        var listing = Listing(columns: ["path", "folder", "readOnly"])
        for mount in try machine.manifest().machine.mounts ?? [] {
            listing.rows.append([.text(mount.path), .text(mount.folder), .text(mount.isReadOnly ? "yes" : "no")])
        }
        list.show(listing, ifEmpty: "Nothing is mounted.")
    }
}

/// `roost unmount`.
struct UnmountCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "unmount", abstract: "Take a folder of the host's from a machine's guest.", aliases: ["umount"])

    @OptionGroup var machine: MachineArgument

    @Argument(help: "Where the guest has it, or the host's folder (default: all that are mounted).")
    var path: String?

    @Flag(help: "Also if the guest uses it: what it has open is lost.")
    var force = false

    func run() throws {
        let machine = try machine.find()
        let mounts = try machine.manifest().machine.mounts ?? []
        var paths = mounts.map(\.path)
        if let path {
            let folder = PrivateFolder.canonical(PrivateFolder.absolute(path))
            paths = mounts.filter { $0.path == path }.map(\.path)
            if paths.isEmpty { paths = mounts.filter { $0.folder == folder || $0.folder == path }.map(\.path) }
            if paths.isEmpty { paths = [path] }
        }
        for path in paths.reversed() { try machine.unmount(UnmountParameters(path: path, isForced: force)) }
    }
}
