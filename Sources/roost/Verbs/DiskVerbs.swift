// `roost attach`, `roost detach`, `roost insert`, `roost eject`: disks and media of machines that are kept.
internal import ArgumentParser
internal import Machine
internal import Machines

/// `roost attach`.
struct AttachCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "attach", abstract: "Give a machine disks, at once if it runs.",
        discussion: "They are SCSI disks, and stay the machine's until they are detached; their names are printed.")

    @OptionGroup var machine: MachineArgument

    @Argument(
        help: "Disk images, with the same options as those of 'roost run --disk' after a comma, but bus=virtio.",
        transform: DiskOption.init(parsing:))
    var disks: [DiskOption]

    func validate() throws {
        if let disk = disks.first(where: { $0.bus == .virtio }) {
            throw ValidationError("\(disk.value.path): bus=virtio: only SCSI disks can come and go")
        }
    }

    func run() throws {
        let stored = try machine.find()
        for disk in disks { print(try stored.attach(disk.value)) }
    }
}

/// `roost detach`.
struct DetachCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "detach", abstract: "Take disks or drives away from a machine, at once if it runs.",
        discussion: "The guest is told and not asked: have it unmount what is on them first.")

    @OptionGroup var machine: MachineArgument

    @Argument(help: "Their names (see 'roost info') or images.")
    var disks: [String]

    func run() throws {
        let stored = try machine.find()
        for disk in disks { try stored.detach(disk) }
    }
}

/// `roost insert`.
struct InsertCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "insert", abstract: "Put an image into a machine's empty CD-ROM drive.")

    @OptionGroup var machine: MachineArgument

    @Argument(help: "The image.", completion: .file())
    var image: String

    @Option(help: "The drive (default: the only one).")
    var drive: String?

    func run() throws { try machine.find().insert(image, into: drive) }
}

/// `roost eject`.
struct EjectCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "eject", abstract: "Take the image out of a machine's CD-ROM drive.")

    @OptionGroup var machine: MachineArgument

    @Argument(help: "The drive (default: the only one).")
    var drive: String?

    @Flag(help: "Whether or not the guest uses it.")
    var force = false

    func run() throws { try machine.find().eject(drive, forced: force) }
}
