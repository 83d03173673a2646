// The interpreter: the reference engine, and the fallback for what the translator leaves.
internal import CHost
public import GuestMemory

/// Runs one vCPU by interpreting decoded blocks.
public final class Interpreter {
    /// The vCPU that it runs.
    public let cpu: VirtualCPU
    private let v: VCPU
    private let cache: UnsafeMutablePointer<BlockCache>

    /// Makes an interpreter for a vCPU attached to its machine's memory; it has room for the blocks of so many bytes of
    /// translated code.
    public init(cpu: VirtualCPU, memory: GuestMemory, codeCache: Int = 32 << 20) {
        self.cpu = cpu
        cpu.prepareTables()
        v = cpu.vcpu
        cache = .allocate(capacity: 1)
        cache.initialize(to: BlockCache(pages: Int(memory.limit / GuestMemory.pageSize), codeCache: codeCache))
        v.s.pointee.blocks = UnsafeMutableRawPointer(cache)
        v.s.pointee.code_versions = memory.codeVersions
    }

    deinit {
        // Another engine may have taken its place.
        if v.s.pointee.blocks == UnsafeMutableRawPointer(cache) { v.s.pointee.blocks = nil }
        cache.pointee.deallocate()
        cache.deallocate()
    }

    /// Runs until something outside the CPU is needed.
    public func run() -> VMExit {
        guard let group = cpu.group else { return v.run() }
        group.enter(cpu.id)
        defer { group.leave(cpu.id) }
        return v.run()
    }

    /// Answers the access that the last exit asked for; the instruction goes on with the next `run`.
    public func complete(_ value: UInt64) {
        let count = v.s.pointee.completed_count
        roost_completed_at(v.s, Int(count)).pointee = value
        v.s.pointee.completed_count = min(count &+ 1, 16)
    }

    /// Refuses the MSR access that the last exit asked for: #GP(0).
    public func completeWithGeneralProtection() {
        v.s.pointee.completed_count = 0
        v.s.pointee.pending_fault = 1
    }

    /// Whether an external interrupt can be injected now.
    public var canTakeInterrupt: Bool {
        v.s.pointee.rflags & 0x200 != 0 && v.s.pointee.interrupt_shadow == 0 && v.s.pointee.completed_count == 0
            && v.s.pointee.pending_fault == 0
    }

    /// Delivers an external interrupt; only when `canTakeInterrupt`. False when delivery itself shut the vCPU down.
    public func inject(vector: UInt8) -> Bool {
        guard let group = cpu.group else { return v.deliverExternal(vector) }
        group.enter(cpu.id)
        defer { group.leave(cpu.id) }
        return v.deliverExternal(vector)
    }
}

extension VCPU {
    /// The loop: events, then a block.
    func run() -> VMExit {
        while true {
            if s.pointee.pending_fault != 0 {
                s.pointee.pending_fault = 0
                if !raise(.generalProtection(0)) { return takeExit() }
            }
            var careful = s.pointee.completed_count != 0
            var direct = false
            if careful {
                s.pointee.completed_next = 0
            } else {
                if s.pointee.instructions >= s.pointee.instruction_limit { return .interrupted }
                if roost_attention(s) != 0 {
                    if roost_attention_take(s, ROOST_ATTENTION_KICK | ROOST_ATTENTION_INTERRUPT) != 0 {
                        if s.pointee.direct != nil { directTick() }
                        return .interrupted
                    }
                    direct = roost_attention_take(s, ROOST_ATTENTION_DIRECT) != 0
                }
                if s.pointee.interrupt_shadow == 0 {
                    if s.pointee.pending_nmi != 0 && s.pointee.nmi_blocked == 0 {
                        s.pointee.pending_nmi = 0
                        do throws(CPUException) { try inject(2, external: true) } catch { return takeExit() }
                    }
                    if s.pointee.interrupt_window != 0 && s.pointee.rflags & 0x200 != 0 {
                        s.pointee.interrupt_window = 0
                        return .interruptWindow
                    }
                } else if s.pointee.interrupt_shadow == 1 && s.pointee.interrupt_window == 0
                    && s.pointee.pending_nmi == 0 && s.pointee.translation != nil
                {
                    // Nothing waits; what comes from now on is looked for after one instruction at least.
                    s.pointee.interrupt_shadow = 0
                } else {
                    careful = true
                }
            }
            let flags = s.pointee.rflags
            careful = careful || flags & 0x100 != 0 || s.pointee.slow_memory != 0 || s.pointee.dr.7 & 0xFF != 0
            // The next instruction clears RF as it begins; `runOne` looks at it first.
            if flags & 0x1_0000 != 0 && !careful { s.pointee.rflags = flags & ~0x1_0000 }
            if direct && !careful {
                switch runDirectly() {
                case .goOn: continue
                case .exit: return takeExit()
                case .failed: return .internalError("the process that ran the guest's user code has ended")
                }
            }
            let goesOn = careful ? runOne() : s.pointee.translation != nil ? runTranslations() : runBlock()
            if !goesOn { return takeExit() }
        }
    }

    /// Runs one block. False: an exit waits.
    @inline(__always)
    func runBlock() -> Bool {
        do throws(CPUException) {
            let block = try findBlock()
            if exceedsLimit(block.pointee.count) { return runOne() }
            if s.pointee.code_size != 8
                && s.pointee.rip &+ UInt64(block.pointee.byteLength) &- 1 > UInt64(segment(Int(ROOST_CS)).pointee.limit)
            {
                return runOne()
            }
            return runInstructions(of: block, from: 0)
        } catch {
            return raise(error)
        }
    }

    /// Runs a block from its instruction `index` on; RIP is the block's. False: an exit waits.
    @inline(__always)
    func runInstructions(of block: UnsafePointer<Block>, from index: Int) -> Bool {
        let first = UnsafePointer(blocks.pointee.instructions + Int(block.pointee.first))
        let end = first + Int(block.pointee.count)
        let start = first + index
        s.pointee.block_end = UnsafeRawPointer(end)
        var p = start
        do throws(CPUException) {
            repeat {
                try execute(p)
                p += 1
            } while UnsafeRawPointer(p) < (s.pointee.block_end ?? UnsafeRawPointer(start))
            s.pointee.instructions &+= UInt64(p - start)
            if !(block.pointee.endsInBranch && p == end) {
                s.pointee.rip = truncatedRIP(nextRIP(p - 1))
            }
            return true
        } catch {
            s.pointee.instructions &+= UInt64(p - start)
            return settle(error, p)
        }
    }

    /// Runs one instruction with everything looked at: answers, shadows, single step, breakpoints.
    @inline(never)
    func runOne() -> Bool {
        let shadow = s.pointee.interrupt_shadow
        var steps = s.pointee.rflags & 0x100 != 0
        var operation = Operation.nop
        let answered = s.pointee.completed_count != 0
        do throws(CPUException) {
            if s.pointee.code_size != 8, s.pointee.rip > UInt64(segment(Int(ROOST_CS)).pointee.limit) {
                throw .generalProtection(0)
            }
            if !answered && s.pointee.dr.7 & 0xFF != 0 && s.pointee.rflags & 0x10000 == 0 {
                let linear =
                    (s.pointee.rip &+ roost_effective_base_at(s, Int(ROOST_CS)).pointee) & s.pointee.linear_mask
                if instructionBreakpoint(at: linear) { throw .debug }
            }
            let block = try findBlock()
            let p = UnsafePointer(blocks.pointee.instructions + Int(block.pointee.first))
            s.pointee.block_end = nil
            if s.pointee.code_size != 8
                && s.pointee.rip &+ UInt64(p.pointee.length) &- 1 > UInt64(segment(Int(ROOST_CS)).pointee.limit)
            {
                throw .generalProtection(0)
            }
            let branches = block.pointee.endsInBranch && block.pointee.count == 1
            operation = p.pointee.operation
            // RF is cleared as an instruction begins: IRET and a task switch may load it anew (SDM 3B 18.3.1.1).
            s.pointee.rflags &= ~0x1_0000
            do throws(CPUException) {
                try execute(p)
            } catch {
                if error.isArchitectural && s.pointee.interrupt_shadow == shadow { s.pointee.interrupt_shadow = 0 }
                return settle(error, p)
            }
            if !branches { s.pointee.rip = truncatedRIP(nextRIP(p)) }
            s.pointee.instructions &+= 1
        } catch {
            return raise(error)
        }
        s.pointee.completed_count = 0
        s.pointee.completed_next = 0
        if s.pointee.interrupt_shadow == shadow { s.pointee.interrupt_shadow = 0 }
        switch operation {
        // INT n clears TF, and no trap follows (SDM 3B 18.3.1.4); INT3 and INTO don't come here.
        case .int, .int1: steps = false
        // Nor after a SYSCALL that clears it (SDM 2B SYSCALL).
        case .syscall: steps = steps && s.pointee.rflags & 0x100 != 0
        default: break
        }
        if steps { s.pointee.dr.6 |= 0x4000 }
        if (steps || s.pointee.pending_debug != 0) && s.pointee.interrupt_shadow != 2 {
            s.pointee.dr.6 |= UInt64(s.pointee.pending_debug & 15)
            s.pointee.pending_debug = 0
            return raise(.debug)
        }
        return true
    }

    /// An instruction did not complete: RIP is put where the exception or the exit wants it.
    @inline(never)
    func settle(_ error: CPUException, _ p: UnsafePointer<Instruction>) -> Bool {
        if error == .exit {
            switch ExitKind(rawValue: s.pointee.exit_kind) {
            case .halt, .taskPriority, .hypercall:
                s.pointee.rip = truncatedRIP(nextRIP(p))
                s.pointee.completed_count = 0
                s.pointee.completed_next = 0
                s.pointee.interrupt_shadow = 0
            case .shutdown: break
            default: s.pointee.rip = currentRIP(p)
            }
            return false
        }
        s.pointee.completed_count = 0
        s.pointee.completed_next = 0
        // Breakpoint and overflow are traps: the saved RIP is the next instruction's.
        s.pointee.rip = error.vector == 3 || error.vector == 4 ? truncatedRIP(nextRIP(p)) : currentRIP(p)
        if error == .restart { return true }
        return raise(error)
    }

    /// Delivers an exception with RIP already in place. False: an exit waits (triple fault).
    func raise(_ error: CPUException) -> Bool {
        if error == .exit { return false }
        s.pointee.completed_count = 0
        s.pointee.completed_next = 0
        do throws(CPUException) {
            try deliver(error)
            return true
        } catch {
            return false
        }
    }

    /// Delivers an external interrupt. False: triple fault; the exit comes with the next run.
    func deliverExternal(_ vector: UInt8) -> Bool {
        do throws(CPUException) {
            try inject(vector, external: true)
            return true
        } catch {
            return false
        }
    }

    /// RIP as wide as the code's mode has it.
    @inline(__always)
    func truncatedRIP(_ rip: UInt64) -> UInt64 {
        s.pointee.code_size == 8 ? rip : rip & 0xFFFF_FFFF
    }

    /// The exit described in the state block.
    private func takeExit() -> VMExit {
        let size = Int(s.pointee.exit_size)
        let address = s.pointee.exit_address
        let value = s.pointee.exit_value
        switch ExitKind(rawValue: s.pointee.exit_kind) {
        case .portRead: return .portRead(port: UInt16(truncatingIfNeeded: address), size: size)
        case .portWrite:
            return .portWrite(
                port: UInt16(truncatingIfNeeded: address), size: size, value: UInt32(truncatingIfNeeded: value))
        case .mmioRead: return .mmioRead(address: address, size: size)
        case .mmioWrite: return .mmioWrite(address: address, size: size, value: value)
        case .readMSR: return .readMSR(UInt32(truncatingIfNeeded: address))
        case .writeMSR: return .writeMSR(UInt32(truncatingIfNeeded: address), value: value)
        case .taskPriority: return .taskPriorityWrite(UInt8(truncatingIfNeeded: value))
        case .halt: return .halt
        case .shutdown: return .shutdown
        case .hypercall: return .hypercall
        case .difference: return .difference
        default: return .internalError("the engine stopped without a reason")
        }
    }
}
