// Lockstep: every block by the interpreter, then by its translation, from the same state; the results compared.
//
// The interpreter goes first. Its stores take the slow path, because `tlb` points at the table that never matches, and
// are logged there; afterwards memory and registers are put back, and the translation runs for good. The engines have
// TLBs of their own, so that a translation that forgets to set a dirty bit shows. Time stamps that the first run read
// are handed out again in the second. What both leave to `runOne` (answers of devices, single steps) is run once.
//
// Other threads write to guest memory meanwhile (devices), and raise attention, at which string instructions pause: a
// difference counts only if it is still there after both have run again with empty TLBs.
internal import CHost
internal import Glibc
internal import HostOS

/// What the comparison keeps of one vCPU.
struct Lockstep {
    /// Times that a block is run again before a difference counts.
    private static let attempts = 3

    var log = StoreLog()
    /// Registers before the block, and after the interpreter's run.
    let before: UnsafeMutablePointer<roost_vcpu>
    let interpreted: UnsafeMutablePointer<roost_vcpu>
    let tables: UnsafeMutablePointer<roost_tlb_entry>
    /// Time stamps read by the interpreter, and how many of them the translation has read.
    var timeStamps: [UInt64] = []
    var timeStampsRead = 0
    var phase = Phase.alone
    /// Blocks compared, blocks that one engine alone could run, and blocks that had to be run again.
    var compared: UInt64 = 0
    var single: UInt64 = 0
    var repeated: UInt64 = 0
    var difference: LockstepDifference?

    /// Who runs.
    enum Phase {
        case alone, interpreter, translator
    }

    static var tableEntries: Int { Int(ROOST_TLB_ENTRIES) * Int(ROOST_TLB_CONTEXTS) }
    static var tableBytes: Int { tableEntries * MemoryLayout<roost_tlb_entry>.stride }
    static var maximumAttempts: Int { attempts }

    init() {
        before = .allocate(capacity: 1)
        interpreted = .allocate(capacity: 1)
        memset(before, 0, MemoryLayout<roost_vcpu>.size)
        memset(interpreted, 0, MemoryLayout<roost_vcpu>.size)
        tables = .allocate(capacity: Self.tableEntries)
        memset(tables, 0xFF, Self.tableBytes)
    }

    func deallocate() {
        log.deallocate()
        before.deallocate()
        interpreted.deallocate()
        tables.deallocate()
    }
}

extension VCPU {
    /// The comparison; only when `s.lockstep` is there.
    @inline(__always)
    var lockstep: UnsafeMutablePointer<Lockstep> {
        s.pointee.lockstep.unsafelyUnwrapped.assumingMemoryBound(to: Lockstep.self)
    }

    /// A store is about to change bytes of one page.
    @inline(never)
    func logStore(_ physical: UInt64, _ size: Int) { lockstep.pointee.log.add(s.pointee.ram, physical, size) }

    /// A string instruction is about to change bytes of one page.
    @inline(__always)
    func logRun(_ target: UnsafeMutablePointer<UInt8>, _ length: UInt64) {
        if s.pointee.logs_stores == 0 { return }
        logStore(UInt64(target - s.pointee.ram), Int(truncatingIfNeeded: length))
    }

    /// A store changed decoded code of a page.
    @inline(never)
    func logCodeWritten(_ page: UInt64, _ chunks: UInt64) {
        lockstep.pointee.log.code.append(CodeRecord(page: page, chunks: chunks))
    }

    /// The host's time-stamp counter; what the interpreter read in its run of a block, the translation reads again.
    @inline(never)
    func lockstepCounter() -> UInt64 {
        switch lockstep.pointee.phase {
        case .alone: return roost_rdtsc()
        case .interpreter:
            let now = roost_rdtsc()
            lockstep.pointee.timeStamps.append(now)
            return now
        case .translator:
            let n = lockstep.pointee.timeStampsRead
            lockstep.pointee.timeStampsRead = n + 1
            return n < lockstep.pointee.timeStamps.count ? lockstep.pointee.timeStamps[n] : roost_rdtsc()
        }
    }

    /// Runs the block at RIP by both engines. False: an exit waits.
    @inline(never)
    func runLockstep() -> Bool {
        let block: UnsafeMutablePointer<Block>
        do throws(CPUException) {
            block = UnsafeMutablePointer(mutating: try findBlock())
        } catch {
            return raise(error)
        }
        if exceedsLimit(block.pointee.count) { return runOne() }
        let codePage = s.pointee.rip &- (block.pointee.physical & 4095)
        if block.pointee.host == 0 {
            if !canTranslate(block, codePage) {
                lockstep.pointee.single &+= 1
                return runBlock()
            }
            translate(block)
            block.pointee.heat = touchesVectors(block) ? 1 : 0
        } else if s.pointee.code_size != 8 && !isInsideLimit(codePage) {
            lockstep.pointee.single &+= 1
            return runBlock()
        }
        lockstep.pointee.compared &+= 1
        let vectors = Int32(block.pointee.heat)
        roost_copy_state(lockstep.pointee.before, s, vectors)
        var attempt = 0
        while true {
            let first = runFirst(block, vectors)
            let second = runSecond(block, codePage, expecting: first)
            if first == second && statesMatch(vectors) && lockstep.pointee.log.matches(s.pointee.ram) { return second }
            attempt += 1
            if attempt == Lockstep.maximumAttempts || !lockstep.pointee.log.code.isEmpty { break }
            startAgain(vectors)
        }
        return differs(block)
    }

    /// Whether a block may read or write the vector and x87 state; kept in the block's heat, which has no use here.
    private func touchesVectors(_ block: UnsafeMutablePointer<Block>) -> Bool {
        let first = blocks.pointee.instructions + Int(block.pointee.first)
        for n in 0..<Int(block.pointee.count) {
            switch first[n].operation {
            case .x87, .mmx, .sse, .avx, .fxsave, .fxrstor, .xsave, .xrstor, .xsaveopt, .xsavec, .xsaves, .xrstors,
                .ldmxcsr, .stmxcsr:
                return true
            default: break
            }
        }
        return false
    }

    /// The interpreter's run, undone afterwards; generated code for vectors, made on first use, stays.
    private func runFirst(_ block: UnsafeMutablePointer<Block>, _ vectors: Int32) -> Bool {
        let state = lockstep
        state.pointee.log.clear()
        state.pointee.timeStamps.removeAll(keepingCapacity: true)
        state.pointee.timeStampsRead = 0
        state.pointee.phase = .interpreter
        let perTable = Int(ROOST_TLB_ENTRIES)
        let tables = state.pointee.tables
        s.pointee.other_tlb = s.pointee.tlb_contexts.0
        s.pointee.tlb_contexts = (tables, tables + perTable, tables + 2 * perTable)
        s.pointee.tlb = s.pointee.tlb_never_matching
        s.pointee.logs_stores = 1
        let goesOn = runInstructions(of: block, from: 0)
        roost_copy_state(state.pointee.interpreted, s, vectors)
        let thunks = s.pointee.vector_thunks
        state.pointee.log.undo(s.pointee.ram)
        roost_copy_state(s, state.pointee.before, vectors)
        s.pointee.vector_thunks = thunks
        undoCodeWritten()
        return goesOn
    }

    /// Makes pages code again that the interpreter's run had written to.
    private func undoCodeWritten() {
        for record in lockstep.pointee.log.code.reversed() {
            blocks.pointee.chunks[Int(record.page)] = record.chunks
            s.pointee.page_flags[Int(record.page)] |= 1
            roost_decrement(s.pointee.code_versions + Int(record.page))
            protectCodePage(record.page)
        }
    }

    /// The translation's run, for good; what it leaves of the block the interpreter finishes.
    private func runSecond(_ block: UnsafeMutablePointer<Block>, _ codePage: UInt64, expecting first: Bool) -> Bool {
        let state = lockstep
        let cache = translations
        state.pointee.phase = .translator
        defer { state.pointee.phase = .alone }
        let start = s.pointee.rip
        let code = UInt64(UInt(bitPattern: cache.pointee.memory.executable)) &+ UInt64(block.pointee.host)
        s.pointee.code_page = codePage
        s.pointee.chain_site = 0
        cache.pointee.entries &+= 1
        let left = cache.pointee.enter(
            UnsafeMutableRawPointer(s), UnsafeRawPointer(bitPattern: UInt(truncatingIfNeeded: code)).unsafelyUnwrapped)
        if left == LeaveReason.exit.rawValue { return false }
        let executed = s.pointee.instructions &- state.pointee.before.pointee.instructions
        if left != LeaveReason.interpret.rawValue
            && s.pointee.instructions == state.pointee.interpreted.pointee.instructions
            && s.pointee.rip == state.pointee.interpreted.pointee.rip
        {
            return true
        }
        // It may leave between any two instructions of the block.
        guard executed < UInt64(block.pointee.count), s.pointee.rip == place(in: block, Int(executed), start) else {
            return true
        }
        s.pointee.rip = start
        return runInstructions(of: block, from: Int(executed))
    }

    /// Address of a block's instruction `n`.
    private func place(in block: UnsafeMutablePointer<Block>, _ n: Int, _ start: UInt64) -> UInt64 {
        if n == 0 { return start }
        let instruction = blocks.pointee.instructions[Int(block.pointee.first) + n - 1]
        return truncatedRIP(start &+ UInt64(instruction.endOffset))
    }

    /// Puts everything back as it was before the block, with no translations held.
    private func startAgain(_ vectors: Int32) {
        let state = lockstep
        state.pointee.repeated &+= 1
        state.pointee.log.restore(s.pointee.ram)
        roost_copy_state(s, state.pointee.before, vectors)
        memset(state.pointee.tables, 0xFF, Lockstep.tableBytes)
        memset(s.pointee.tlb_contexts.0.unsafelyUnwrapped, 0xFF, Lockstep.tableBytes)
    }

    /// Whether the registers are as the interpreter left them.
    private func statesMatch(_ vectors: Int32) -> Bool {
        let other = lockstep.pointee.interpreted
        // Not architectural: tables, caches, statistics, what the engines note for themselves.
        // LAHF gives RFLAGS' bit 1 as well.
        if (other.pointee.arithmetic_flags ^ s.pointee.arithmetic_flags) & 0xD501 == 0 {
            other.pointee.arithmetic_flags = s.pointee.arithmetic_flags
        }
        other.pointee.tlb = s.pointee.tlb
        other.pointee.tlb_contexts = s.pointee.tlb_contexts
        other.pointee.other_tlb = s.pointee.other_tlb
        other.pointee.logs_stores = s.pointee.logs_stores
        other.pointee.block_end = s.pointee.block_end
        other.pointee.entry = s.pointee.entry
        other.pointee.stack_base = s.pointee.stack_base
        other.pointee.stack_floor = s.pointee.stack_floor
        other.pointee.code_page = s.pointee.code_page
        other.pointee.chain_site = s.pointee.chain_site
        other.pointee.jump_key = s.pointee.jump_key
        other.pointee.jump_generation = s.pointee.jump_generation
        other.pointee.code_bases = s.pointee.code_bases
        other.pointee.code_base_number = s.pointee.code_base_number
        other.pointee.next_code_base = s.pointee.next_code_base
        other.pointee.local_code = s.pointee.local_code
        other.pointee.vectors_live = s.pointee.vectors_live
        other.pointee.x87_live = s.pointee.x87_live
        other.pointee.group_addends = s.pointee.group_addends
        other.pointee.saved_mxcsr = s.pointee.saved_mxcsr
        other.pointee.tlb_misses = s.pointee.tlb_misses
        other.pointee.page_walks = s.pointee.page_walks
        return roost_equal_state(other, s, vectors) != 0
    }

    /// Takes up a difference; it is the exit that waits.
    private func differs(_ block: UnsafeMutablePointer<Block>) -> Bool {
        lockstep.pointee.difference = LockstepDifference(vcpu: self, block: block)
        s.pointee.exit_kind = ExitKind.difference.rawValue
        return false
    }
}
