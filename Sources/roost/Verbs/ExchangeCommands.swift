// `roost export` and `roost import`: machines as one file.
public import ArgumentParser
internal import HostOS
internal import Machine
internal import Machines

extension ExportFormat: ExpressibleByArgument {}

/// `roost export`.
struct ExportCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "export", abstract: "Write a machine that doesn't run, or a snapshot, to one file.",
        discussion: """
            The archive (tar) holds the manifest, what the machine boots, and its disks, whole and compressed. An OVA \
            package holds stream-optimized VMDK images and a descriptor for other programs; their firmware finds no boot \
            loader on a disk that Roost boots by a kernel beside it. With --snapshot the archive holds the machine as it was \
            then, memory included, and the machine may run meanwhile; 'roost import' makes one that goes on from there.
            """)

    @OptionGroup var machine: MachineArgument

    @Argument(help: "The file to write; one that ends in .ova becomes an OVA package.", completion: .file())
    var path: String

    @Option(help: "tar or ova.")
    var format: ExportFormat?

    @Option(help: "The snapshot to write; see 'roost snapshot list'.")
    var snapshot: String?

    @Flag(help: "Replace a file that is there.")
    var replace = false

    func run() throws {
        var progress = ProgressLine()
        defer { progress.finish() }
        let format = format ?? (path.lowercased().hasSuffix(".ova") ? .ova : .tar)
        if let snapshot {
            guard format == .tar else {
                throw ValidationError("an OVA package can't hold a snapshot; give --format tar")
            }
            return try machine.find().export(snapshot: snapshot, to: path, replacing: replace) {
                progress.show($0, $1, $2)
            }
        }
        try machine.find().export(to: path, format, replacing: replace) { progress.show($0, $1, $2) }
    }
}

/// `roost import`.
struct ImportCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "import", abstract: "Make a machine of an exported one or of an OVA package.",
        discussion: """
            It is a new machine, with a number and network addresses of its own; its name is printed. One of a snapshot goes \
            on from there when it is started, and is told that it is a copy. Its network cards have user-mode networks, \
            without ports of the host.
            """)

    @Argument(help: "The file.", completion: .file(extensions: ["tar", "ova"]))
    var path: String

    @Option(help: "The machine's name (default: the package's).")
    var name: String?

    @Option(help: "A kernel, where the package has none.", completion: .file())
    var kernel: String?

    @Option(help: "Its initrd.", completion: .file())
    var initrd: String?

    @Option(help: "Its command line.")
    var append: String?

    func validate() throws {
        if kernel == nil, initrd != nil || append != nil {
            throw ValidationError("--initrd and --append belong to --kernel")
        }
    }

    func run() throws {
        let boot = kernel.map {
            BootSource(
                kernel: PrivateFolder.absolute($0), initrd: initrd.map(PrivateFolder.absolute), commandLine: append)
        }
        var progress = ProgressLine()
        var notes: [String] = []
        let machine = try MachineStore.standard.importMachine(path, as: name, boot: boot, notes: { notes.append($0) }) {
            progress.show($0, $1, $2)
        }
        progress.finish()
        for note in notes { Terminal.note("roost: " + note) }
        print(machine.name)
    }
}
