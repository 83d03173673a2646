// `roost run`: makes a machine of the options and runs it.
public import ArgumentParser
internal import Foundation
internal import HostOS
internal import Images
internal import Machine

/// `roost run`.
struct RunCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "run", abstract: "Run a virtual machine until it powers off.",
        discussion: """
            The terminal belongs to the guest while it runs. Ctrl-A x ends the machine, Ctrl-A h lists the keys, \
            Ctrl-A Ctrl-A sends Ctrl-A.
            """)

    @Argument(help: "An image by name or folder; see 'roost image list'.")
    var image: String?

    @Option(help: "What runs the processor; auto takes KVM where it is there and good, else the translator.")
    var engine: EngineKind = .auto

    @Option(help: "Memory for translated code, at least 1M.")
    var codeCache: MemorySize = MemorySize(bytes: 32 << 20)

    @Option(help: "How user code runs under the translator: natively where that pays (auto), or translated.")
    var userMode: UserMode = .auto

    @Option(help: "Guest time: the host's, or the count of instructions (virtual), so that a run can be repeated.")
    var clock: ClockKind = .host

    @Option(help: "The processor's model (default: what the host has, without AVX-512).")
    var cpu: String?

    @Option(help: "Number of processors.")
    var cpus: Int = 1

    @Option(help: "Memory: bytes, or a number with K, M or G.")
    var memory: MemorySize = MemorySize(bytes: 512 << 20)

    @Option(
        help: "Memory that the guest is asked to give back (its virtio balloon): bytes, or a number with K, M or G.")
    var balloon: MemorySize = MemorySize(bytes: 0)

    @Option(help: "A kernel: Linux bzImage, PVH ELF or Multiboot.")
    var kernel: String?

    @Option(help: "An initrd; for Multiboot, modules as 'FILE[ ARGUMENTS],…'.")
    var initrd: String?

    @Option(help: "The kernel's command line (default for Linux: console=ttyS0).")
    var append: String?

    @Option(help: "A disk image as FILE[,readonly][,snapshot][,format=FORMAT][,iops=NUMBER][,bps=SIZE]; repeatable.")
    var disk: [DiskOption] = []

    @Option(
        help: """
            A network card: user[,forward=tcp:HOSTPORT:GUESTPORT]…, tap[,ifname=NAME][,bridge=NAME] or switch=NAME \
            (between machines of this host); each also takes ,mac=ADDRESS ,pcap=FILE (a capture) ,rate=BITS (a second) \
            ,burst=BYTES. none: no card. Repeatable. (default: user)
            """)
    var net: [NetworkOption] = []

    @Option(
        help: ArgumentHelp(
            "Sockets to the guest (AF_VSOCK) through Unix sockets: PATH[,cid=N].", valueName: "path"))
    var vsock: VsockOption?

    @Option(help: "Where the console is: stdio, file:PATH or pty.")
    var console: ConsoleOption = ConsoleOption(value: .standard)

    @Option(help: "A port whose writes of v end Roost with status (v << 1) | 1.")
    var debugExit: PortNumber?

    @Option(help: ArgumentHelp("Move between KVM and the translator every so many milliseconds.", visibility: .hidden))
    var moveEvery: Int?

    @Flag(help: "Add QEMU's pc-testdev.")
    var testDevice = false

    @Flag(help: "End when the guest resets instead of starting it again.")
    var noReboot = false

    @Option(help: "Print to standard error: exits, interrupts, instructions, blocks; comma-separated.")
    var trace: TraceOption = TraceOption(value: [])

    @Flag(help: "Name translated code for perf, in /tmp/perf-PID.map.")
    var perf = false

    @Flag(help: "Print statistics to standard error at the end.")
    var stats = false

    @Flag(help: "Print them as JSON.")
    var json = false

    func run() throws {
        let machine = try Machine(try configuration())
        let outcome = machine.run()
        OpenDisks.flush()
        if stats || json { try printStatistics(machine.statistics) }
        switch outcome {
        case .poweredOff, .reset, .ended: Foundation.exit(0)
        case .debugExit(let status): Foundation.exit(status)
        case .tripleFault(let report):
            FileHandle.standardError.write(Data("roost: \(report)\n".utf8))
            Foundation.exit(ExitStatus.tripleFault)
        case .difference(let report):
            FileHandle.standardError.write(Data("roost: \(report)\n".utf8))
            Foundation.exit(ExitStatus.difference)
        case .engineFailed(let report):
            FileHandle.standardError.write(Data("roost: \(report)\n".utf8))
            Foundation.exit(ExitStatus.engine)
        case .failed(let text): throw ExitStatus(code: ExitStatus.failure, message: text)
        }
    }

    private func configuration() throws -> MachineConfiguration {
        if codeCache.bytes < 1 << 20 || codeCache.bytes > 512 << 20 {
            throw ValidationError("--code-cache must be between 1M and 512M")
        }
        var disks = disk.map(\.value)
        let boot: BootSource
        if let image {
            let found = try ImageStore.standard.locate(image)
            boot = BootSource(
                kernel: kernel ?? found.kernel, initrd: initrd ?? found.initrd,
                commandLine: append ?? commandLine(of: found))
            disks.insert(DiskConfiguration(path: found.disk), at: 0)
        } else if let kernel {
            boot = BootSource(kernel: kernel, initrd: initrd, commandLine: append)
        } else {
            throw ValidationError("nothing to run: name an image ('roost image list') or give --kernel")
        }
        var configuration = MachineConfiguration(boot: boot)
        configuration.cpuModel = cpu
        configuration.engine = engine
        configuration.movesEveryMilliseconds = moveEvery
        configuration.codeCache = codeCache.bytes
        configuration.countsInstructions = stats || json
        configuration.userMode = userMode
        configuration.processors = cpus
        configuration.balloon = balloon.bytes
        configuration.memory = memory.bytes
        configuration.disks = disks
        configuration.clock = clock
        configuration.networks = try networks()
        configuration.sockets = vsock?.value
        configuration.console = console.value
        configuration.debugExitPort = debugExit?.value
        configuration.hasTestDevice = testDevice
        configuration.rebootsOnReset = !noReboot
        configuration.namesForPerf = perf
        configuration.trace = trace.value
        return configuration
    }

    /// The network cards; without a word of them one, where packets can come.
    private func networks() throws -> [NetworkConfiguration] {
        let cards = net.compactMap(\.value)
        if net.count > cards.count, net.count > 1 { throw ValidationError("--net none stands alone") }
        return net.isEmpty && clock == .host ? [NetworkConfiguration(.user(forwards: []))] : cards
    }

    /// The image's command line; a console on a terminal says which.
    private func commandLine(of image: GuestImage) -> String {
        guard case .standard = console.value, let size = Terminal.size(STDIN_FILENO) else { return image.commandLine }
        let kind = ProcessInfo.processInfo.environment["TERM"]
        return image.commandLine(terminal: kind, columns: size.columns, rows: size.rows)
    }

    private func printStatistics(_ statistics: RunStatistics) throws {
        var text = statistics.report
        if json {
            let encoder = JSONEncoder()
            encoder.outputFormatting = [.prettyPrinted, .sortedKeys, .withoutEscapingSlashes]
            text = String(decoding: try encoder.encode(statistics), as: UTF8.self)
        }
        FileHandle.standardError.write(Data((text + "\n").utf8))
    }
}

extension EngineKind: ExpressibleByArgument {}
extension ClockKind: ExpressibleByArgument {}
extension UserMode: ExpressibleByArgument {
    /// `always` is for tests.
    static var allValueStrings: [String] { ["auto", "translate"] }
}

/// A size such as 512M.
struct MemorySize: ExpressibleByArgument, Equatable {
    var bytes: UInt64

    init(bytes: UInt64) { self.bytes = bytes }

    init?(argument: String) {
        var digits = argument[...]
        for suffix in ["iB", "ib", "B", "b"] where digits.hasSuffix(suffix) {
            digits = digits.dropLast(suffix.count)
            break
        }
        var shift: UInt64 = 0
        if let last = digits.last, let place = "KMGT".firstIndex(of: Character(last.uppercased())) {
            shift = 10 * UInt64("KMGT".distance(from: "KMGT".startIndex, to: place) + 1)
            digits = digits.dropLast()
        }
        guard let number = UInt64(digits), number <= UInt64.max >> shift else { return nil }
        bytes = number << shift
    }

    var defaultValueDescription: String { "\(bytes >> 20)M" }
}

/// stdio, file:PATH or pty.
struct ConsoleOption: ExpressibleByArgument {
    var value: ConsoleChoice

    init(value: ConsoleChoice) { self.value = value }

    init?(argument: String) {
        switch argument {
        case "stdio": value = .standard
        case "pty": value = .pseudoTerminal
        default:
            guard argument.hasPrefix("file:"), argument.count > 5 else { return nil }
            value = .file(String(argument.dropFirst(5)))
        }
    }

    var defaultValueDescription: String { "stdio" }
}

/// A port, decimal or 0x hexadecimal.
struct PortNumber: ExpressibleByArgument {
    var value: UInt16

    init?(argument: String) {
        let number = argument.hasPrefix("0x") ? UInt16(argument.dropFirst(2), radix: 16) : UInt16(argument)
        guard let number else { return nil }
        value = number
    }
}

/// Comma-separated kinds of events.
struct TraceOption: ExpressibleByArgument {
    var value: TraceOptions

    init(value: TraceOptions) { self.value = value }

    init?(argument: String) {
        value = []
        for name in argument.split(separator: ",") {
            guard let option = TraceOptions.names.first(where: { $0.name == name }) else { return nil }
            value.formUnion(option.option)
        }
    }

    var defaultValueDescription: String { "nothing" }
}
