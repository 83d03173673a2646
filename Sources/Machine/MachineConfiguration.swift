// What a machine is made of, as the user says it.
internal import CPU
public import Storage

/// What to print about a running machine.
public struct TraceOptions: OptionSet, Sendable {
    /// The bits.
    public let rawValue: Int
    /// Wraps the bits.
    public init(rawValue: Int) { self.rawValue = rawValue }
    /// Every exit from the engine.
    public static let exits = TraceOptions(rawValue: 1)
    /// Every interrupt injected.
    public static let interrupts = TraceOptions(rawValue: 2)
    /// Every instruction, disassembled; slow.
    public static let instructions = TraceOptions(rawValue: 4)
    /// Every block that is translated, guest and host code side by side.
    public static let blocks = TraceOptions(rawValue: 8)
    /// The names, as the command line has them.
    public static let names: [(name: String, option: TraceOptions)] = [
        ("exits", .exits), ("interrupts", .interrupts), ("instructions", .instructions),
        ("blocks", .blocks),
    ]
}

/// How a disk's transfers reach the host's file.
public enum DiskTransfers: String, Sendable, Codable, CaseIterable {
    /// By calls of threads.
    case threads
    /// By io_uring.
    case ring = "io_uring"
}

/// A disk of the machine.
public struct DiskConfiguration: Sendable, Equatable {
    /// The image.
    public var path: String
    /// How it is opened.
    public var options: DiskOptions
    /// What it is connected to.
    public var bus: DiskBus
    /// How fast the guest may use it.
    public var limits = DiskLimits()
    /// What becomes of requests that the host can't carry out.
    public var errorPolicy = DiskErrorPolicy.report
    /// How transfers of a virtio disk reach the host's file; nil is what does best here.
    public var transfers: DiskTransfers?
    /// Queues of a virtio disk, 1 to 32; nil is one for each processor, eight at most.
    public var queues: Int?

    /// Names a disk.
    public init(path: String, options: DiskOptions = DiskOptions(), bus: DiskBus = .virtio) {
        self.path = path
        self.options = options
        self.bus = bus
    }
}

/// Everything a machine is made of.
public struct MachineConfiguration: Sendable {
    /// What to boot.
    public var boot: BootSource
    /// The CPU model's name; nil is what the host has.
    public var cpuModel: String?
    /// What runs the processor.
    public var engine: EngineKind = .auto
    /// Moves between the hypervisor and the translator this often, for tests.
    public var movesEveryMilliseconds: Int?
    /// Bytes for translated code.
    public var codeCache: UInt64 = 128 << 20
    /// Whether translated code counts its instructions (the interpreter always does).
    public var countsInstructions = false
    /// What the guest's time is.
    public var clock: ClockKind = .host
    /// How user code runs under the translator.
    public var userMode: UserMode = .auto
    /// Bytes of memory that the guest is asked to give back, for its driver of the balloon to reach.
    public var balloon: UInt64 = 0
    /// Number of processors, 1 to 64.
    public var processors = 1
    /// Number of processors that it can have while it runs; nil: those that it has.
    public var maximumProcessors: Int?
    /// The greater of the two.
    var mostProcessors: Int { max(processors, maximumProcessors ?? 1) }
    /// Bytes of RAM.
    public var memory: UInt64 = 512 << 20
    /// Bytes of memory that it can have while it runs; nil: those that it has.
    public var maximumMemory: UInt64?
    /// Bytes of memory that the guest is asked to have, where that can change; nil: `memory`.
    public var wantedMemory: UInt64?
    /// Bytes of the region for memory that comes and goes.
    var memoryGrowth: UInt64 { max(memory, maximumMemory ?? 0) - memory }
    /// Disks, in the order of their slots.
    public var disks: [DiskConfiguration] = []
    /// CD-ROM drives on the SCSI controller: the image in each, or nil for an empty one.
    public var drives: [String?] = []
    /// Network cards, in the order of their slots.
    public var networks = [NetworkConfiguration(.user(forwards: []))]
    /// What a panic of the guest's kernel does.
    public var onPanic: PanicAction = .none
    /// What the end of the guest's watchdog does; nil: there is no watchdog.
    public var watchdog: WatchdogAction?
    /// Whether memory is to be in huge pages of the host's.
    public var usesHugePages = false
    /// Folders of the host that the guest mounts.
    public var folders: [FolderConfiguration] = []
    /// Folders of the host that the guest's agent mounts, and that come and go while it runs; nil: there can be none.
    public var mounts: [MountConfiguration]?
    /// Sockets between guest and host; nil: none.
    public var sockets: VsockConfiguration?
    /// The console.
    public var console = ConsoleChoice.standard
    /// Whether what the user should know is said on the terminal.
    public var showsNotes = true
    /// Where the machine goes on from instead of booting.
    public var snapshot: Snapshot?
    /// The file that keeps what the console shows.
    public var consoleLog: ConsoleLog?
    /// Port that ends Roost when written.
    public var debugExitPort: UInt16?
    /// QEMU's `pc-testdev`.
    public var hasTestDevice = false
    /// A reset starts the machine again.
    public var rebootsOnReset = true
    /// Whether translated code has names for perf.
    public var namesForPerf = false
    /// What to print while it runs.
    public var trace: TraceOptions = []

    /// A machine with defaults that boots this.
    public init(boot: BootSource) { self.boot = boot }
}

/// A machine that can't be made, and why.
public struct MachineError: Error, CustomStringConvertible, Sendable, Equatable {
    /// The kind of failure.
    public struct Code: Hashable, Sendable {
        private let name: String
        private init(_ name: String) { self.name = name }

        /// The kernel or initrd.
        public static let boot = Code("boot")
        /// The size of the guest's memory.
        public static let memory = Code("memory")
        /// The CPU model, or the host's processor.
        public static let processor = Code("processor")
        /// The host's hypervisor.
        public static let hypervisor = Code("hypervisor")
        /// A disk image.
        public static let disk = Code("disk")
        /// A disk that another process uses.
        public static let diskInUse = Code("diskInUse")
        /// A name that no disk or drive has.
        public static let noSuchDisk = Code("noSuchDisk")
        /// A medium that the guest doesn't let go of.
        public static let mediumLocked = Code("mediumLocked")
        /// The network.
        public static let network = Code("network")
        /// A host port that is taken.
        public static let port = Code("port")
        /// The console.
        public static let console = Code("console")
        /// The agent in the guest.
        public static let agent = Code("agent")
        /// The machine has ended.
        public static let ended = Code("ended")
        /// A saved state that doesn't fit.
        public static let state = Code("state")
        /// Something else on the host.
        public static let host = Code("host")
    }

    /// The kind of failure.
    public var code: Code
    /// What is wrong, in one line.
    public var description: String

    /// Makes an error from its parts.
    public init(_ code: Code, _ description: String) {
        self.code = code
        self.description = description
    }
}

/// How a machine's run ended.
public enum MachineOutcome: Sendable, Equatable {
    /// The guest switched itself off.
    case poweredOff
    /// The guest asked for a reset and was not to be started again.
    case reset
    /// The guest wrote the debug-exit port.
    case debugExit(status: Int32)
    /// The user ended it from the console.
    case ended
    /// The guest's kernel panicked, which was to be the end.
    case panicked
    /// A triple fault, with the report.
    case tripleFault(report: String)
    /// The engine can't go on, with the report.
    case engineFailed(report: String)
    /// The engines that were compared did not agree, with the report.
    case difference(report: String)
    /// Roost itself failed.
    case failed(String)
}

/// The engines there are.
public enum EngineKind: String, Sendable, CaseIterable {
    /// Decodes and executes one instruction after the other: the reference.
    case interpreter
    /// Translates 64-bit code to host code; leaves the rest to the interpreter.
    case translator
    /// Runs each block by both, and stops at the first difference.
    case lockstep
    /// The host's hypervisor.
    case kvm
    /// The hypervisor where it is there and good, else the translator.
    case auto
}

/// What the guest's time is.
public enum ClockKind: String, Sendable, CaseIterable {
    /// The host's.
    case host
    /// The count of executed instructions, so that a run can be repeated.
    case virtual
}

/// How the guest's user code runs under the translator.
public enum UserMode: String, Sendable, CaseIterable {
    /// Natively in a process of its own where that pays, else translated.
    case auto
    /// Translated.
    case translate
    /// Natively from the first instruction on: for tests, slow.
    case always

    var direct: DirectMode? {
        switch self {
        case .auto: .automatic
        case .translate: nil
        case .always: .always
        }
    }
}
