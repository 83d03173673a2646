// The way into a stub and out of it.
//
// A leave carries no meaning of its own: the state block is as if the guest stood before the instruction at RIP, and that
// instruction is executed by the interpreter, which raises what is to be raised. So no error code of the host's is needed.
internal import CHost
internal import Glibc
internal import HostOS

/// How direct execution ended.
enum DirectOutcome {
    /// The loop goes on with its other means.
    case goOn
    /// An exit waits.
    case exit
    /// A stub that held the guest's registers is gone.
    case failed
}

/// Selectors that 64-bit user code of Linux has: the stub, being a process of Linux, has them too.
private enum UserSelector {
    static let code: UInt16 = 0x33
    static let data: UInt16 = 0x2B
}

extension VCPU {
    /// Whether user code may run directly from here.
    var mayRunDirectly: Bool {
        guard s.pointee.code_size == 8, s.pointee.cpl == 3, s.pointee.completed_count == 0,
            s.pointee.slow_memory == 0, s.pointee.dr.7 & 0xFF == 0, s.pointee.interrupt_shadow == 0,
            s.pointee.pending_debug == 0, s.pointee.pending_fault == 0
        else { return false }
        // IF set; IOPL, TF, VM, VIF, VIP clear.
        if s.pointee.rflags & 0x1A_3300 != 0x200 { return false }
        // PE NE PG set; EM TS clear.
        if s.pointee.cr0 & 0x8000_002D != 0x8000_0021 { return false }
        // PAE OSFXSR OSXSAVE set; LA57 clear. SCE. x87, SSE and AVX enabled.
        if s.pointee.cr4 & 0x4_1220 != 0x4_0220 || s.pointee.efer & 1 == 0 || s.pointee.xcr0 & 7 != 7 { return false }
        // Pages of other protection keys aren't mapped; key 0 must allow everything.
        if s.pointee.cr4 & 0x40_0000 != 0 && s.pointee.pkru & 3 != 0 { return false }
        if segment(Int(ROOST_CS)).pointee.selector != UserSelector.code
            || segment(Int(ROOST_SS)).pointee.selector != UserSelector.data
        {
            return false
        }
        for n in [Int(ROOST_DS), Int(ROOST_ES), Int(ROOST_FS), Int(ROOST_GS)] {
            let selector = segment(n).pointee.selector
            if selector != 0 && selector != UserSelector.data { return false }
        }
        return true
    }
}

extension DirectExecution {
    /// Runs user code until the loop must go on: an event, a system call, code for the translator.
    func run() -> DirectOutcome {
        guard v.mayRunDirectly, wants(), let space = spaceToRun(), let stub = space.stub else { return .goOn }
        let s = v.s
        // Pages may have been marked as code on any way out.
        stub.join()
        defer {
            stub.separate()
            v.protectMarkedPages()
        }
        var spent = roost_read_tsc()
        while true {
            let tables = GuestTables(v)
            guard !tables.isPresent(StubProcess.address, pages: Int(StubProcess.size >> 12)),
                space.update(tables, states, lastFault: s.pointee.cr2)
            else {
                abandon(space)
                return .goOn
            }
            v.protectMarkedPages()
            guard load(space, stub) else {
                abandon(space)
                return .goOn
            }
            roost_direct_publish(s, stub.descriptor + 1)
            if roost_attention(s) & (ROOST_ATTENTION_KICK | ROOST_ATTENTION_INTERRUPT) != 0 {
                roost_direct_publish(s, 0)
                return again()
            }
            let entered = roost_read_tsc()
            guard stub.resume() else { return .failed }
            let stop = stub.wait()
            let left = roost_read_tsc()
            roost_direct_publish(s, 0)
            guard stop != .ended, stub.fetch() else { return .failed }
            store(stub)
            counts.entries &+= 1
            let run = left &- entered > counts.wayCost ? left &- entered &- counts.wayCost : 0
            counts.ticks &+= run
            let isFault = stop == .signal(SIGSEGV)
            space.policy.charge(run: run, overhead: entered &- spent, isFault: isFault)
            spent = left
            let outcome = handle(stop, space, stub)
            if !space.policy.mayRun && mode != .always {
                counts.suspensions += 1
                updateArmed()
                return outcome ?? .goOn
            }
            if space.isFull {
                space.dropStub()
                return outcome ?? again()
            }
            if let outcome {
                space.policy.entered(kernelAfter: run, isFault: isFault)
                return outcome
            }
            if !v.mayRunDirectly { return .goOn }
            if roost_attention(s) & (ROOST_ATTENTION_KICK | ROOST_ATTENTION_INTERRUPT) != 0 { return again() }
        }
    }

    /// Back to the loop, which is to come here again if nothing else happens.
    private func again() -> DirectOutcome {
        roost_attention_set(v.s, ROOST_ATTENTION_DIRECT)
        return .goOn
    }

    private func count(_ cause: DirectCause) { counts.leaves[cause.rawValue] &+= 1 }

    // MARK: Registers

    private func load(_ space: UserSpace, _ stub: StubProcess) -> Bool {
        let s = v.s
        let area = UnsafeMutableRawPointer(roost_xsave_area(s).unsafelyUnwrapped)
        if space.mustLoadExtended || memcmp(area, stub.extended, 464) != 0
            || memcmp(area + 576, stub.extended + 576, 256) != 0
        {
            stub.extended.copyMemory(from: area, byteCount: 464)
            memset(stub.extended + 512, 0, 64)
            stub.extended.storeBytes(of: 7, toByteOffset: 512, as: UInt64.self)
            (stub.extended + 576).copyMemory(from: area + 576, byteCount: 256)
            if !stub.loadExtended() { return false }
            space.mustLoadExtended = false
        }
        let g = v.gpr
        stub.registers.rax = g[0]
        stub.registers.rcx = g[1]
        stub.registers.rdx = g[2]
        stub.registers.rbx = g[3]
        stub.registers.rsp = g[4]
        stub.registers.rbp = g[5]
        stub.registers.rsi = g[6]
        stub.registers.rdi = g[7]
        stub.registers.r8 = g[8]
        stub.registers.r9 = g[9]
        stub.registers.r10 = g[10]
        stub.registers.r11 = g[11]
        stub.registers.r12 = g[12]
        stub.registers.r13 = g[13]
        stub.registers.r14 = g[14]
        stub.registers.r15 = g[15]
        stub.registers.orig_rax = ~0
        stub.registers.rip = s.pointee.rip
        stub.registers.eflags = v.rflags & ~0x10000
        stub.registers.cs = UInt64(UserSelector.code)
        stub.registers.ss = UInt64(UserSelector.data)
        stub.registers.ds = UInt64(v.segment(Int(ROOST_DS)).pointee.selector)
        stub.registers.es = UInt64(v.segment(Int(ROOST_ES)).pointee.selector)
        stub.registers.fs = UInt64(v.segment(Int(ROOST_FS)).pointee.selector)
        stub.registers.gs = UInt64(v.segment(Int(ROOST_GS)).pointee.selector)
        stub.registers.fs_base = v.segment(Int(ROOST_FS)).pointee.base
        stub.registers.gs_base = v.segment(Int(ROOST_GS)).pointee.base
        return stub.loadRegisters()
    }

    /// What user code may have changed.
    private func store(_ stub: StubProcess) {
        let s = v.s
        let area = UnsafeMutableRawPointer(roost_xsave_area(s).unsafelyUnwrapped)
        area.copyMemory(from: stub.extended, byteCount: 464)
        (area + 576).copyMemory(from: stub.extended + 576, byteCount: 256)
        let r = stub.registers
        let g = v.gpr
        g[0] = r.rax
        g[1] = r.rcx
        g[2] = r.rdx
        g[3] = r.rbx
        g[4] = r.rsp
        g[5] = r.rbp
        g[6] = r.rsi
        g[7] = r.rdi
        g[8] = r.r8
        g[9] = r.r9
        g[10] = r.r10
        g[11] = r.r11
        g[12] = r.r12
        g[13] = r.r13
        g[14] = r.r14
        g[15] = r.r15
        s.pointee.rip = r.rip
        // ID AC NT OF DF TF SF ZF AF PF CF.
        let mask: UInt64 = 0x24_4DD5
        let before = s.pointee.rflags
        v.rflags = (v.rflags & ~(mask | 0x10000)) | (r.eflags & mask)
        var changed = (before ^ s.pointee.rflags) & 0x4_0000 != 0
        changed = storeBase(Int(ROOST_FS), r.fs_base) || changed
        changed = storeBase(Int(ROOST_GS), r.gs_base) || changed
        changed = storeSegments(r) || changed
        if changed { v.updateMode() }
        // A SYSCALL of 32-bit code leaves the place of the host's vDSO here: see `move_vdso` in stub.c.
        if s.pointee.code_size != 8 { s.pointee.rip &= 0xFFFF_FFFF }
    }

    private func storeBase(_ n: Int, _ base: UInt64) -> Bool {
        if v.segment(n).pointee.base == base { return false }
        v.segment(n).pointee.base = base
        return true
    }

    /// Segments that user code has loaded by itself: the host's tables let only those through that Linux has too.
    private func storeSegments(_ r: user_regs_struct) -> Bool {
        var changed = false
        let wanted = [
            (Int(ROOST_DS), r.ds), (Int(ROOST_ES), r.es), (Int(ROOST_FS), r.fs), (Int(ROOST_GS), r.gs),
            (Int(ROOST_SS), r.ss), (Int(ROOST_CS), r.cs),
        ]
        for (n, value) in wanted {
            let selector = UInt16(truncatingIfNeeded: value)
            let old = v.segment(n).pointee
            if old.selector == selector { continue }
            changed = true
            if n == Int(ROOST_CS) {
                let code = try? v.readDescriptor(selector)
                v.segment(n).pointee =
                    code?.segment(selector)
                    ?? roost_segment(base: 0, limit: ~0, selector: selector, attributes: 0xC0FB)
                continue
            }
            var new = (try? v.dataSegment(n, selector, cpl: 3)) ?? old
            new.selector = selector
            if n == Int(ROOST_FS) || n == Int(ROOST_GS) { new.base = old.base }
            v.segment(n).pointee = new
        }
        return changed
    }

    // MARK: Stops

    /// Nil: go on directly.
    private func handle(_ stop: StubProcess.Stop, _ space: UserSpace, _ stub: StubProcess) -> DirectOutcome? {
        let s = v.s
        switch stop {
        case .systemCall:
            // SYSCALL or INT 80h, two bytes each; what it did to RCX and R11 it does again. RAX is -ENOSYS by now.
            v.gpr[0] = stub.registers.orig_rax
            s.pointee.rip = v.truncatedRIP(s.pointee.rip &- 2)
            count(.systemCall)
            return .goOn
        case .signal(StubProcess.kickSignal):
            count(.kick)
            return nil
        case .signal(SIGSEGV): return handleFault(space, stub)
        case .signal(SIGTRAP): return handleTrap(stub)
        case .signal(SIGBUS), .signal(SIGFPE), .signal(SIGILL), .signal(SIGSYS):
            if stop == .signal(SIGSYS) { undoVsyscall(stub) }
            count(.trap)
            return v.runOne() ? nil : .exit
        default: return nil
        }
    }

    /// The host has refused a call of its vsyscall page and has returned from it all the same: back to that page.
    private func undoVsyscall(_ stub: StubProcess) {
        let address = stub.signalDetails().address
        if address & ~4095 != 0xFFFF_FFFF_FF60_0000 { return }
        v.s.pointee.rip = address
        v.gpr[4] &-= 8
    }

    private func handleTrap(_ stub: StubProcess) -> DirectOutcome? {
        count(.trap)
        let s = v.s
        let code = stub.signalDetails().code
        if code == 2 || code == 4 {
            // TRAP_TRACE, TRAP_HWBKPT: user code has set TF itself.
            s.pointee.pending_debug |= DebugStatus.singleStep
            return v.raise(.debug) ? nil : .exit
        }
        // INT3 (SI_KERNEL), which may be INT 3 with its two bytes, has happened: back to it. INT1 has or hasn't: hypervisors
        // differ.
        let rip = s.pointee.rip
        if code == 0x80 {
            s.pointee.rip = byte(rip &- 1) == 0xCC ? rip &- 1 : byte(rip &- 2) == 0xCD ? rip &- 2 : rip
        } else if byte(rip) != 0xF1 && byte(rip &- 1) == 0xF1 {
            s.pointee.rip = rip &- 1
        }
        return v.runOne() ? nil : .exit
    }

    /// A byte of the guest's code; CR2 stays.
    private func byte(_ linear: UInt64) -> UInt8? {
        let kept = v.s.pointee.cr2
        defer { v.s.pointee.cr2 = kept }
        return try? v.load(Int(ROOST_CS), linear)
    }

    private func handleFault(_ space: UserSpace, _ stub: StubProcess) -> DirectOutcome? {
        let s = v.s
        let (code, address) = stub.signalDetails()
        let rip = s.pointee.rip
        // SEGV_MAPERR, SEGV_ACCERR; else a general protection fault.
        guard code == 1 || code == 2, address >> 47 == 0 else {
            // INT 4 has happened; it is SI_KERNEL as a general protection fault is, but a patched instruction is that for sure.
            if code == 0x80 && byte(rip &- 1) == 4 && byte(rip &- 2) == 0xCD && !space.isPatched(rip) {
                s.pointee.rip = rip &- 2
            }
            count(space.isGuarded(s.pointee.rip >> 12) ? .guarded : .trap)
            return v.runOne() ? nil : .exit
        }
        let record = space.record(of: address)
        let isFetch = address &- rip < 15 && record & UserSpace.executable == 0
        let demand: PageDemand = isFetch ? .execute : record != 0 ? .write : .read
        let needed = isFetch ? UserSpace.executable : record != 0 ? UserSpace.writable : UserSpace.mapped
        // A store to the page that its own instruction is on: were that made data, the instruction couldn't be fetched.
        let isOwnPage =
            record & UserSpace.executable != 0 && (address >> 12 == rip >> 12 || address >> 12 == (rip &+ 14) >> 12)
        if !isOwnPage {
            space.map(address, GuestTables(v), states, demand)
            // Before any engine decodes from a page that was marked, or stores to it.
            v.protectMarkedPages()
            if space.record(of: address) & needed != 0 {
                count(.fill)
                return nil
            }
        }
        // Not as the tables stand: the interpreter sets their bits, or raises the fault.
        if !v.runOne() { return .exit }
        if s.pointee.cpl != 3 {
            count(.fault)
            space.faultAddress = address
            return .goOn
        }
        if isOwnPage {
            count(.code)
            return nil
        }
        space.map(address, GuestTables(v), states, demand)
        v.protectMarkedPages()
        if isFetch && space.record(of: address) & UserSpace.executable == 0 {
            count(.code)
            return runAway(from: address >> 12, space)
        }
        count(.fill)
        return nil
    }

    // MARK: Code for the translator

    /// Code that must not run natively: a short way through it by the interpreter, else all of it by the translator.
    private func runAway(from page: UInt64, _ space: UserSpace) -> DirectOutcome? {
        let s = v.s
        for _ in 0..<24 {
            if s.pointee.cpl != 3 || s.pointee.code_size != 8 || roost_attention(s) & 3 != 0 { return .goOn }
            if s.pointee.rip >> 12 != page { return nil }
            if s.pointee.interrupt_shadow != 0 || s.pointee.rflags & 0x100 != 0 { return .goOn }
            if !v.runBlock() { return .exit }
        }
        space.noteForeign(page)
        return .goOn
    }
}
