// The options that say what a machine is made of: those of `roost run`, kept in the manifest of a machine with a name.
internal import ArgumentParser
internal import Foundation
internal import Images
internal import Machine

/// What a machine is made of.
struct MachineOptions: ParsableArguments {
    @Argument(help: "An image by name or folder; see 'roost image list'.")
    var image: String?

    @Option(help: "What runs the processor; auto takes KVM where it is there and good, else the translator.")
    var engine: EngineKind = .auto

    @Option(help: "Memory for translated code, at least 1M.")
    var codeCache: MemorySize = MemorySize(bytes: 128 << 20)

    @Option(help: "How user code runs under the translator: natively where that pays (auto), or translated.")
    var userMode: UserMode = .auto

    @Option(help: "Guest time: the host's, or the count of instructions (virtual), so that a run can be repeated.")
    var clock: ClockKind = .host

    @Option(help: "The processor's model (default: what the host has, without AVX-512).")
    var cpu: String?

    @Option(
        help: """
            Number of processors: N[,max=M]; up to M can be added while the machine runs ('roost set'). (default: 1)
            """,
        transform: ProcessorsOption.init(parsing:))
    var cpus: ProcessorsOption = ProcessorsOption(count: 1)

    @Option(
        help: """
            Memory as SIZE[,max=SIZE]: bytes, or a number with K, M or G; up to max while the machine runs ('roost set'). \
            (default: 512M)
            """, transform: MemoryOption.init(parsing:))
    var memory: MemoryOption = MemoryOption(bytes: 512 << 20)

    @Option(
        help: "Memory that the guest is asked to give back (its virtio balloon): bytes, or a number with K, M or G.")
    var balloon: MemorySize = MemorySize(bytes: 0)

    @Option(help: "A kernel: Linux bzImage, PVH ELF or Multiboot.")
    var kernel: String?

    @Option(help: "An initrd; for Multiboot, modules as 'FILE[ ARGUMENTS],…'.")
    var initrd: String?

    @Option(help: "The kernel's command line (default for Linux: console=ttyS0).")
    var append: String?

    @Option(
        help: """
            A disk image or NBD URI as FILE[,readonly][,snapshot][,internal=NAME][,bus=virtio|scsi]\
            [,cache=writeback|writethrough|none|unsafe][,on-error=report|pause][,aio=threads|io_uring][,queues=NUMBER][,format=FORMAT]\
            [,iops=NUMBER][,bps=SIZE]; repeatable.
            """, transform: DiskOption.init(parsing:))
    var disk: [DiskOption] = []

    @Option(help: "A CD-ROM drive with an image in it, or 'empty'; repeatable.")
    var cdrom: [String] = []

    @Option(
        help: """
            A network card: user[,forward=tcp:HOSTPORT:GUESTPORT]…, passt (the same by a program of that name), \
            tap[,ifname=NAME][,bridge=NAME][,queues=N], switch=NAME (between machines of this host) or \
            vhost-user=SOCKET[,server] (a switch that speaks it; server waits for it to connect); each also takes \
            ,mac=ADDRESS ,pcap=FILE (a capture) ,rate=BITS (a second) ,burst=BYTES. none: no card. Repeatable. (default: user)
            """, transform: NetworkOption.init(parsing:))
    var net: [NetworkOption] = []

    @Option(
        help: ArgumentHelp(
            "A folder of the host's that the guest mounts: PATH[,tag=NAME][,readonly]; repeatable.",
            valueName: "folder"), transform: ShareOption.init(parsing:))
    var share: [ShareOption] = []

    @Option(
        help: ArgumentHelp(
            "Sockets to the guest (AF_VSOCK) through Unix sockets: PATH[,cid=N].", valueName: "path"),
        transform: VsockOption.init(parsing:))
    var vsock: VsockOption?

    @Option(help: "User data for cloud-init in the guest, on a disk of its own (NoCloud).", completion: .file())
    var cloudInit: String?

    @Option(help: "What a panic of the guest's kernel does, beside being told.")
    var onPanic: PanicAction = .none

    @Option(help: "A watchdog (i6300ESB), and what it does if the guest doesn't feed it, beside telling.")
    var watchdog: WatchdogAction?

    @Flag(help: "Put the guest's memory into huge pages, where the host has them for shared memory.")
    var hugePages = false

    @Option(help: "A port whose writes of v end Roost with status (v << 1) | 1.")
    var debugExit: PortNumber?

    @Option(help: ArgumentHelp("Move between KVM and the translator every so many milliseconds.", visibility: .hidden))
    var moveEvery: Int?

    @Flag(help: "Add QEMU's pc-testdev.")
    var testDevice = false

    @Flag(help: "End when the guest resets instead of starting it again.")
    var noReboot = false

    /// The image that was named, if one was.
    func guestImage() throws -> GuestImage? { try image.map { try ImageStore.standard.locate($0) } }

    /// What the options say; the image's disk is not among the disks.
    func configuration(_ image: GuestImage?) throws -> MachineConfiguration {
        if codeCache.bytes < 1 << 20 || codeCache.bytes > 512 << 20 {
            throw ValidationError("--code-cache must be between 1M and 512M")
        }
        guard let path = kernel ?? image?.kernel else {
            throw ValidationError("nothing to run: name an image ('roost image list') or give --kernel")
        }
        var configuration = MachineConfiguration(
            boot: BootSource(
                kernel: path, initrd: initrd ?? image?.initrd, commandLine: append ?? image?.commandLine))
        configuration.cpuModel = cpu
        configuration.engine = engine
        configuration.movesEveryMilliseconds = moveEvery
        configuration.codeCache = codeCache.bytes
        configuration.userMode = userMode
        cpus.apply(to: &configuration)
        configuration.balloon = balloon.bytes
        memory.apply(to: &configuration)
        configuration.disks = disk.map(\.value)
        configuration.drives = cdrom.map { $0 == "empty" ? nil : $0 }
        configuration.clock = clock
        configuration.networks = try networks()
        configuration.sockets = vsock?.value ?? (clock == .host ? VsockConfiguration() : nil)
        configuration.folders = share.map(\.value)
        configuration.onPanic = onPanic
        configuration.watchdog = watchdog
        configuration.usesHugePages = hugePages
        configuration.debugExitPort = debugExit?.value
        configuration.hasTestDevice = testDevice
        configuration.rebootsOnReset = !noReboot
        return configuration
    }

    /// The network cards; without a word of them one, where packets can come.
    private func networks() throws -> [NetworkConfiguration] {
        let cards = net.compactMap(\.value)
        if net.count > cards.count, net.count > 1 { throw ValidationError("--net none stands alone") }
        return net.isEmpty && clock == .host ? [NetworkConfiguration(.user(forwards: []))] : cards
    }
}
