// What `--stats` prints, and the last events for the report of a triple fault.
public import CPU

/// Counts of one run.
public struct RunStatistics: Sendable, Codable, Equatable {
    /// Instructions executed.
    public var instructions: UInt64 = 0
    /// Software TLB misses.
    public var tlbMisses: UInt64 = 0
    /// Page walks.
    public var pageWalks: UInt64 = 0
    /// Exceptions delivered.
    public var exceptions: UInt64 = 0
    /// Interrupts injected.
    public var interrupts: UInt64 = 0
    /// Exits by kind.
    public var exits: [String: UInt64] = [:]
    /// Accesses by port or page of memory-mapped I/O, the most frequent first when printed.
    public var accesses: [String: UInt64] = [:]
    /// Nanoseconds from the first instruction to the end.
    public var elapsed: UInt64 = 0
    /// Nanoseconds of them spent halted.
    public var halted: UInt64 = 0
    /// Blocks translated.
    public var translations: UInt64 = 0
    /// Times that translated code was entered from the dispatcher.
    public var codeEntries: UInt64 = 0
    /// Bytes of translated code.
    public var codeBytes: UInt64 = 0
    /// Bytes of it that came with a snapshot.
    public var savedCodeBytes: UInt64 = 0
    /// Times that the code cache was emptied.
    public var codeFlushes: UInt64 = 0
    /// Lockstep: blocks run by both engines, by the interpreter alone, and once more because devices came between.
    public var comparedBlocks: UInt64 = 0
    /// Blocks that only the interpreter ran.
    public var singleBlocks: UInt64 = 0
    /// Blocks compared more than once.
    public var repeatedBlocks: UInt64 = 0
    /// Instructions that translated code left to the interpreter, by mnemonic.
    public var callouts: [String: UInt64] = [:]
    /// Hardware engine: returns to this process; writes that came with others.
    public var hypervisorExits: UInt64 = 0
    /// Writes that the kernel collected until the next exit.
    public var collectedWrites: UInt64 = 0
    /// Bytes that the guest gave back to the host.
    public var returnedMemory: UInt64 = 0
    /// Times the machine went on with another engine.
    public var moves: UInt64 = 0
    /// Times the guest was started again.
    public var resets: UInt64 = 0

    /// With virtual time: a hash of the guest's memory at the end.
    public var memoryHash: UInt64?

    /// What ran directly; nil: nothing could.
    public var direct: DirectStatistics?
    /// Ticks a second of the time-stamp counter.
    public var tscFrequency: UInt64 = 0

    /// An empty count.
    public init() {}

    /// Adds what another processor counted.
    mutating func add(_ other: RunStatistics) {
        instructions &+= other.instructions
        tlbMisses &+= other.tlbMisses
        pageWalks &+= other.pageWalks
        exceptions &+= other.exceptions
        interrupts &+= other.interrupts
        halted &+= other.halted
        translations &+= other.translations
        codeEntries &+= other.codeEntries
        codeBytes &+= other.codeBytes
        savedCodeBytes &+= other.savedCodeBytes
        codeFlushes &+= other.codeFlushes
        hypervisorExits &+= other.hypervisorExits
        collectedWrites &+= other.collectedWrites
        exits.merge(other.exits, uniquingKeysWith: &+)
        accesses.merge(other.accesses, uniquingKeysWith: &+)
        callouts.merge(other.callouts, uniquingKeysWith: &+)
    }

    /// The lines for a person.
    public var report: String {
        func seconds(_ nanoseconds: UInt64) -> String {
            let milliseconds = nanoseconds / 1_000_000
            let rest = String(milliseconds % 1000)
            return "\(milliseconds / 1000)." + String(repeating: "0", count: 3 - rest.count) + rest + " s"
        }
        let busy = elapsed &- min(halted, elapsed)
        let rate = busy > 0 ? Double(instructions) * 1000 / Double(busy) : 0
        let tenths = Int(rate * 10)
        var lines = [
            "time          \(seconds(elapsed)), halted \(seconds(halted))",
            "instructions  \(instructions) (\(tenths / 10).\(tenths % 10) million/s while running)",
            "TLB misses    \(tlbMisses), page walks \(pageWalks)",
            "exceptions    \(exceptions), interrupts \(interrupts), resets \(resets)",
        ]
        if hypervisorExits > 0 {
            lines.append("hypervisor    exits \(hypervisorExits), writes collected \(collectedWrites)")
        }
        if returnedMemory > 0 { lines.append("memory        \(returnedMemory >> 20) MiB given back by the guest") }
        if moves > 0 { lines.append("moves         \(moves) between engines") }
        if let memoryHash {
            let digits = String(memoryHash, radix: 16)
            lines.append("memory hash   " + String(repeating: "0", count: 16 - digits.count) + digits)
        }
        if let direct {
            if let reason = direct.unavailable { lines.append("direct        off: \(reason)") }
            func nanoseconds(_ ticks: UInt64) -> UInt64 {
                let product = ticks.multipliedFullWidth(by: 1_000_000_000)
                return tscFrequency > product.high ? tscFrequency.dividingFullWidth(product).quotient : 0
            }
            lines.append(
                "direct        entries \(direct.entries), \(seconds(nanoseconds(direct.ticks))), pages \(direct.pagesMapped), "
                    + "stubs \(direct.stubs), flips \(direct.flips), suspensions \(direct.suspensions), "
                    + "\(nanoseconds(direct.wayTicks) / 1000) us a way in and out")
            for (name, count) in direct.leaves.sorted(by: { ($1.value, $0.key) < ($0.value, $1.key) }) {
                lines.append("direct leaves \(name) \(count)")
            }
        }
        for (name, count) in exits.sorted(by: { ($1.value, $0.key) < ($0.value, $1.key) }) {
            lines.append("exits         \(name) \(count)")
        }
        for (name, count) in accesses.sorted(by: { ($1.value, $0.key) < ($0.value, $1.key) }).prefix(12) {
            lines.append("accesses      \(name) \(count)")
        }
        if translations > 0 {
            lines.append(
                "translations  \(translations), \(codeBytes >> 10) KiB of code (\(savedCodeBytes >> 10) KiB saved), entered \(codeEntries) times, emptied \(codeFlushes) times"
            )
        }
        if comparedBlocks > 0 {
            lines.append(
                "lockstep      \(comparedBlocks) blocks compared, \(repeatedBlocks) again, \(singleBlocks) interpreted")
        }
        for (name, count) in callouts.sorted(by: { ($1.value, $0.key) < ($0.value, $1.key) }).prefix(24) {
            lines.append("interpreted   \(name) \(count)")
        }
        return lines.joined(separator: "\n")
    }
}

/// How often ports and pages of memory-mapped I/O were accessed. A guest can go on to ever new ones: after so many
/// places all others count as one.
struct AccessCounts {
    private static let mostPlaces = 4096
    /// By port, or page with bit 63 set.
    private var counts: [UInt64: UInt64] = [:]
    private var others: UInt64 = 0

    mutating func add(port: UInt16) { add(UInt64(port)) }

    mutating func add(memory address: UInt64) { add(1 << 63 | address >> 12) }

    private mutating func add(_ place: UInt64) {
        if let index = counts.index(forKey: place) {
            counts.values[index] &+= 1
        } else if counts.count < Self.mostPlaces {
            counts[place] = 1
        } else {
            others &+= 1
        }
    }

    /// The counts by names for a person.
    var named: [String: UInt64] {
        var named: [String: UInt64] = others > 0 ? ["elsewhere": others] : [:]
        for (place, count) in counts {
            let isMemory = place >> 63 != 0
            let name = String(isMemory ? (place & ~(1 << 63)) << 12 : place, radix: 16)
            named[(isMemory ? "memory 0x" : "port 0x") + name] = count
        }
        return named
    }
}

/// Something that happened, kept without formatting.
struct RunEvent {
    enum What {
        case exit(VMExit)
        case interrupt(UInt8)
        case answer(UInt64)
    }
    var rip: UInt64
    var what: What

    var line: String {
        func hex(_ value: UInt64) -> String { "0x" + String(value, radix: 16) }
        let place = "rip \(hex(rip))  "
        switch what {
        case .interrupt(let vector): return place + "interrupt \(vector)"
        case .answer(let value): return place + "  answered \(hex(value))"
        case .exit(let exit):
            switch exit {
            case .portRead(let port, let size): return place + "in port \(hex(UInt64(port))) size \(size)"
            case .portWrite(let port, let size, let value):
                return place + "out port \(hex(UInt64(port))) size \(size) value \(hex(UInt64(value)))"
            case .mmioRead(let address, let size): return place + "read \(hex(address)) size \(size)"
            case .mmioWrite(let address, let size, let value):
                return place + "write \(hex(address)) size \(size) value \(hex(value))"
            case .readMSR(let number): return place + "rdmsr \(hex(UInt64(number)))"
            case .writeMSR(let number, let value): return place + "wrmsr \(hex(UInt64(number))) value \(hex(value))"
            case .taskPriorityWrite(let value): return place + "cr8 = \(value)"
            case .endOfInterrupt(let vector): return place + "end of interrupt \(vector)"
            case .halt: return place + "halt"
            case .interrupted: return place + "interrupted"
            case .interruptWindow: return place + "interrupt window"
            case .difference: return place + "difference"
            case .shutdown: return place + "shutdown"
            case .hypercall: return place + "hypercall"
            case .internalError(let text): return place + "internal error: \(text)"
            }
        }
    }
}

/// The last events, without allocation while it runs.
struct EventRing {
    private var events: [RunEvent] = []
    private var next = 0
    private let capacity = 32

    mutating func append(_ event: RunEvent) {
        if events.count < capacity {
            events.append(event)
        } else {
            events[next] = event
            next = (next + 1) % capacity
        }
    }

    var lines: [String] { (events[next...] + events[..<next]).map(\.line) }
}

extension VMExit {
    /// The kind's name and number, for counting.
    var kind: Int {
        switch self {
        case .portRead: 0
        case .portWrite: 1
        case .mmioRead: 2
        case .mmioWrite: 3
        case .readMSR: 4
        case .writeMSR: 5
        case .taskPriorityWrite: 6
        case .halt: 7
        case .interrupted: 8
        case .interruptWindow: 9
        case .shutdown: 10
        case .hypercall: 11
        case .internalError: 12
        case .difference: 13
        case .endOfInterrupt: 14
        }
    }

    static let kindNames = [
        "port read", "port write", "memory-mapped read", "memory-mapped write", "MSR read", "MSR write",
        "task priority", "halt", "interrupted", "interrupt window", "shutdown", "hypercall", "internal error",
        "difference", "end of interrupt",
    ]
}
