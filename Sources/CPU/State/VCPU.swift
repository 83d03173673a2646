// The handle through which all of the CPU's code reaches one vCPU's state block.
//
// Invariants: `s` points at a block allocated by `VirtualCPU` that outlives every handle; only the thread that runs the
// vCPU touches it, except `attention` (atomic).
public import CHost
public import GuestMemory
internal import Glibc

/// A vCPU's state block, passed by value: one pointer.
public struct VCPU: BitwiseCopyable {
    /// The state block.
    public let s: UnsafeMutablePointer<roost_vcpu>

    /// Wraps a state block.
    @inline(__always) public init(_ state: UnsafeMutablePointer<roost_vcpu>) { s = state }

    /// The sixteen general registers, RAX RCX RDX RBX RSP RBP RSI RDI R8...R15.
    @inline(__always) public var gpr: UnsafeMutablePointer<UInt64> {
        UnsafeMutableRawPointer(s).assumingMemoryBound(to: UInt64.self)
    }

    /// A segment register by number (`ROOST_ES`...).
    @inline(__always) public func segment(_ n: Int) -> UnsafeMutablePointer<roost_segment> { roost_segment_at(s, n) }

    /// RFLAGS whole, arithmetic flags included.
    public var rflags: UInt64 {
        get { s.pointee.rflags | VCPU.rflags(fromArithmetic: s.pointee.arithmetic_flags) }
        nonmutating set {
            s.pointee.rflags = (newValue & ~Self.arithmeticMask) | 2
            s.pointee.arithmetic_flags = VCPU.arithmetic(fromRFLAGS: newValue)
        }
    }

    /// CF PF AF ZF SF OF.
    public static var arithmeticMask: UInt64 { 0x8D5 }

    /// LAHF/SETO form to RFLAGS bits.
    @inline(__always) public static func rflags(fromArithmetic flags: UInt32) -> UInt64 {
        UInt64((flags >> 8) & 0xD5) | UInt64(flags & 1) << 11
    }

    /// RFLAGS bits to LAHF/SETO form.
    @inline(__always) public static func arithmetic(fromRFLAGS value: UInt64) -> UInt32 {
        UInt32(truncatingIfNeeded: value & 0xD5) << 8 | UInt32(truncatingIfNeeded: value >> 11) & 1
    }

    /// Address of the instruction being executed: the block's start plus its offset.
    @inline(__always) func currentRIP(_ i: UnsafePointer<Instruction>) -> UInt64 {
        s.pointee.rip &+ UInt64(i.pointee.endOffset) &- UInt64(i.pointee.length)
    }

    /// Address of the instruction after the one being executed, not yet truncated to the code size.
    @inline(__always) func nextRIP(_ i: UnsafePointer<Instruction>) -> UInt64 {
        s.pointee.rip &+ UInt64(i.pointee.endOffset)
    }
}

extension VCPU {
    /// What the guest's counter counts from: the host's counter or virtual time.
    package var rawCounter: UInt64 {
        if s.pointee.virtual_clock != 0 { return s.pointee.instructions &+ s.pointee.skipped_time }
        return s.pointee.lockstep == nil ? roost_rdtsc() : lockstepCounter()
    }

    /// Whether so many instructions more would go beyond `instruction_limit`.
    @inline(__always)
    func exceedsLimit(_ count: UInt16) -> Bool {
        s.pointee.instructions &+ UInt64(count) > s.pointee.instruction_limit
    }
}

/// Owns a vCPU's state block and its TLBs.
public final class VirtualCPU: @unchecked Sendable {
    /// The state block.
    public let state: UnsafeMutablePointer<roost_vcpu>
    /// The handle on it.
    public var vcpu: VCPU { VCPU(state) }
    /// Local APIC identifier, 0 for the first.
    public let id: Int
    /// How many vCPUs its machine has.
    public let count: Int
    /// The machine's vCPUs, where there are several.
    public internal(set) var group: VCPUGroup? {
        didSet { state.pointee.group = group.map { Unmanaged.passUnretained($0).toOpaque() } }
    }
    private let fetchTable: UnsafeMutablePointer<roost_tlb_entry>
    private let storeFilter: UnsafeMutablePointer<UInt64>
    private let tableBytes: Int
    private var cpuidTable: UnsafeMutablePointer<UInt32>?

    /// Allocates a zeroed state block whose TLBs match nothing; call `reset()` before running.
    ///
    /// It is one of `count` in its machine. With `defersTables` the TLBs' memory stays untouched until a software engine is made.
    public init(id: Int, defersTables: Bool = false, count: Int = 1) {
        self.id = id
        self.count = max(count, 1)
        // One table more than there are contexts: the last one never matches (armed watchpoints, #AC).
        let perTable = Int(ROOST_TLB_ENTRIES)
        let entries = perTable * (Int(ROOST_TLB_CONTEXTS) + 1)
        tableBytes = entries * MemoryLayout<roost_tlb_entry>.stride
        let raw = UnsafeMutableRawPointer.allocate(byteCount: roost_tlb_offset() + tableBytes, alignment: 4096)
        memset(raw, 0, roost_tlb_offset())
        state = raw.bindMemory(to: roost_vcpu.self, capacity: 1)
        let tables = (raw + roost_tlb_offset()).bindMemory(to: roost_tlb_entry.self, capacity: entries)
        state.pointee.tlb_contexts = (tables, tables + perTable, tables + 2 * perTable)
        state.pointee.tlb_never_matching = tables + 3 * perTable
        state.pointee.tlb = tables
        fetchTable = .allocate(capacity: 1024)
        state.pointee.fetch_tlb = fetchTable
        storeFilter = .allocate(capacity: VCPU.storeFilterWords)
        storeFilter.initialize(repeating: 0, count: VCPU.storeFilterWords)
        state.pointee.store_filter = storeFilter
        state.pointee.instruction_limit = ~0
        state.pointee.apic_id = UInt32(id)
        model = CPUModel.host
        modelChanged()
        if !defersTables { prepareTables() }
    }

    /// Makes the TLBs match nothing, before a software engine's first use of them.
    func prepareTables() {
        if state.pointee.tables_ready != 0 { return }
        state.pointee.tables_ready = 1
        memset(state.pointee.tlb_contexts.0.unsafelyUnwrapped, 0xFF, tableBytes)
        memset(fetchTable, 0xFF, 1024 * MemoryLayout<roost_tlb_entry>.stride)
    }

    /// Connects the vCPU to its machine's memory; once, before it runs.
    public func attach(memory: GuestMemory) {
        state.pointee.memory = Unmanaged.passUnretained(memory).toOpaque()
        state.pointee.ram = memory.base
        state.pointee.page_flags = memory.pageFlags
        state.pointee.code_versions = memory.codeVersions
        state.pointee.ram_limit = memory.limit
        state.pointee.ram_low_end = memory.lowSize
        state.pointee.ram_high_end = memory.limit
    }

    /// The processor model; to be changed only before the vCPU runs.
    public var model: CPUModel { didSet { modelChanged() } }

    private func modelChanged() {
        cpuidTable?.deallocate()
        let rows = model.cpuid(processor: id, of: count)
        let table = UnsafeMutablePointer<UInt32>.allocate(capacity: max(rows.count, 1))
        table.initialize(from: rows, count: rows.count)
        cpuidTable = table
        state.pointee.cpuid_table = UnsafePointer(table)
        state.pointee.cpuid_count = UInt32(rows.count / 6)
        state.pointee.features = model.features
        state.pointee.cr4_allowed = model.cr4
        state.pointee.efer_allowed = model.efer
        state.pointee.xcr0_allowed = model.xcr0
        state.pointee.signature = model.signature
    }

    /// Seeds RDRAND and RDSEED; sixteen bytes are used.
    public func seedRandom(_ bytes: [UInt8]) {
        var words: (UInt64, UInt64) = (0, 0)
        withUnsafeMutableBytes(of: &words) { target in for n in 0..<min(16, bytes.count) { target[n] = bytes[n] } }
        state.pointee.random_state = words.0
        state.pointee.random_key = words.1
    }

    deinit {
        vcpu.releaseThunks()
        fetchTable.deallocate()
        storeFilter.deallocate()
        cpuidTable?.deallocate()
        UnsafeMutableRawPointer(state).deallocate()
    }
}
