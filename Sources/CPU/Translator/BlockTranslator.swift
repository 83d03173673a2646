// One block of guest code to host code.
//
// Conventions of translated code (docs/architecture.md, "The translator"):
// - `gs` points at the vCPU's state block; twelve guest registers live in host registers, R10 R11 R14 R15 stay in the state
//   block (the host's R10 R11 R15 are scratch, R14 holds the guest's RSP); RSP is the host's stack, a return stack on it;
// - between blocks the arithmetic flags are in the state block, unless every way on overwrites them unread;
// - inside a block flags live in the host's flags as long as nothing destroys them;
// - `rip` is written only where translated code is left: a block knows its address (absolute code, the kernel's) or its
//   place in the page whose address `code_page` holds (all other code, so that processes share it);
// - an instruction that misses the TLB, or that isn't emitted here, is carried out by the interpreter through one call.
internal import CHost

/// Scratch registers.
let scratch0: HostRegister = 10
let scratch1: HostRegister = 11
let scratch2: HostRegister = 15
/// Where the guest's RSP is.
let guestStack: HostRegister = 14

/// How code is translated.
struct TranslationOptions {
    /// Count every instruction in `instructions`, exactly.
    var counts = false
    /// Stop before the first instruction of a block that goes beyond `instruction_limit`, and leave what depends on the
    /// instruction it happens at to the interpreter; with `counts`.
    var stopsExactly = false
    /// Keep dead flags as the interpreter does, so that states can be compared.
    var exactFlags = false
    /// Jump from block to block without the dispatcher.
    var chains = true
}

/// Translates one block.
struct BlockTranslator {
    /// Code from here on is translated for its own address: Linux's kernel and modules, there only once.
    static var absoluteStart: UInt64 { 0xFFFF_FFFF_8000_0000 }

    var code: HostAssembler
    let common: CommonRoutines
    let options: TranslationOptions
    /// Position of `code`'s first byte in the code memory.
    let origin: Int
    let first: UnsafePointer<Instruction>
    /// Number of the first instruction in the block cache.
    let firstNumber: Int
    let count: Int
    /// Offset in its page of the block's first instruction.
    let pageOffset: Int
    /// The block's own address if it is absolute, else 0.
    let absolute: UInt64
    let modeKey: UInt32
    let vcpu: VCPU
    /// The guest-physical page that it begins in.
    let page: UInt64
    let usesRORX: Bool
    /// Flags wanted before each instruction, and after the last.
    var wanted: [33 of FlagSet]
    var flagsInHost = false
    var flagsInMemory = true
    /// Vector instructions may run: 0 not asked yet, 1 SSE, 2 AVX.
    var vectorLevel: UInt8 = 0
    /// The host's x87 registers are the guest's.
    var hasX87 = false
    /// Accesses reached by one probe; nil: none.
    var groups: AccessGroups?
    /// Groups whose probe has been made, a bit each.
    var reached: UInt32 = 0
    var stubs: [Stub] = []
    var exits: [Exit] = []
    /// The place in the page whose block's code comes right after this one's, if any does.
    var successor: Int?
    /// Where each instruction's code begins, and where the last one's ends, if anyone wants to know.
    var marks: [Int]?

    /// A slow path to be written after the block: instruction `index` by the interpreter.
    struct Stub {
        var jump: Int
        var index: Int
        var resume: Int
        var kind: StepKind
        var restoresFlags: Bool
    }

    /// What follows an instruction that the interpreter carried out.
    enum StepKind {
        /// The rest of the block.
        case goesOn
        /// Whatever is at RIP.
        case ends
    }

    /// A jump out of the block, to be written after it.
    struct Exit {
        var jump: Int
        /// Offset of the target from the start of the code page.
        var target: Int
        var kind: ExitPath
    }

    enum ExitPath {
        /// To the dispatcher, which may make the jump lead to its block.
        case chain
        /// The same after STI: interrupts are held off for one instruction more.
        case chainShadow
        /// To the dispatcher for events.
        case attention
        /// To the interpreter for the block's rest: vectors can't run inline now.
        case interpret(index: Int)
        /// To the dispatcher, interrupts held off for one instruction more.
        case shadow
        /// Back to where it came from with an empty return stack.
        case dropReturns(resume: Int)
        /// A return to where the return stack doesn't say.
        case mismatch(index: Int, extra: Int32)
        /// To the block at scratch 0: by CALL, which has been pushed, or by JMP.
        case lookup
        /// The same past an inline cache: its jump or call is at `site`, a call's landing at `landing`.
        case uncached(site: Int, landing: Int?)
        /// Loads vector registers, then goes back.
        case vectors(resume: Int, level: UInt8, index: Int)
        /// Loads x87 registers, then goes back.
        case x87(resume: Int, index: Int)
    }

    var size64: Bool { modeKey & 15 == 8 }
    var codeSize: UInt8 { UInt8(modeKey & 15) }
    var stackSize: UInt8 { UInt8(modeKey >> 4 & 15) }
    var tlbContext: UInt32 { modeKey >> 8 & 3 }
    var isUser: Bool { modeKey & ModeKey.user != 0 }

    init(
        code: HostAssembler, origin: Int, common: CommonRoutines, options: TranslationOptions, usesRORX: Bool,
        page: UInt64, first: UnsafePointer<Instruction>, firstNumber: Int, count: Int, pageOffset: Int,
        absolute: UInt64, vcpu: VCPU, liveOut: FlagSet
    ) {
        self.page = page
        self.code = code
        self.origin = origin
        self.common = common
        self.options = options
        self.usesRORX = usesRORX
        self.first = first
        self.firstNumber = firstNumber
        self.count = count
        self.pageOffset = pageOffset
        self.absolute = absolute
        self.vcpu = vcpu
        modeKey = vcpu.s.pointee.mode_key
        wanted = .init(repeating: liveOut)
        for n in stride(from: count - 1, through: 0, by: -1) {
            let use = emits(n) ? FlagUse.of(first + n) : replacesFlags(n) ? FlagUse(writes: .all) : FlagUse(reads: .all)
            wanted[n] = use.reads.union(wanted[n + 1].subtracting(use.writes))
            if options.exactFlags && canFault(n) { wanted[n] = .all }
        }
    }

    /// Whether an instruction that the interpreter carries out loads all flags anew.
    private func replacesFlags(_ n: Int) -> Bool {
        if options.exactFlags { return false }
        switch (first + n).pointee.operation {
        case .sysret, .iret: return true
        default: return false
        }
    }

    /// Whether an instruction may leave the block in its middle.
    private func canFault(_ n: Int) -> Bool {
        let p = (first + n).pointee
        if p.isMemory && p.operation != .lea { return true }
        switch p.operation {
        case .push, .pop, .leave, .ret, .retImmediate, .call, .callIndirect, .div, .idiv, .sse, .avx, .mmx, .x87:
            return true
        default: return !emits(n)
        }
    }

    // MARK: The block

    /// Writes the block but for its slow paths; it isn't shorter than what overwrites its entry.
    mutating func translate(endsInBranch: Bool, usesGroups: Bool) {
        if usesGroups { findGroups() }
        if options.stopsExactly {
            emitLimit()
        } else if options.counts {
            code.arithmetic(0, StateOffset.instructions, Int32(count), wide: true)
        }
        if !options.chains { code.bytes(0x0F, 0x1F, 0x80, 0, 0, 0, 0, 0x66, 0x0F, 0x1F, 0x44, 0, 0) }
        for n in 0..<count - 1 {
            marks?.append(code.count)
            emit(n)
        }
        marks?.append(code.count)
        emitLast(endsInBranch)
        marks?.append(code.count)
        while code.count < TranslationCache.entryBytes { code.byte(0x90) }
    }

    /// Writes the slow paths, from `place` on.
    mutating func writeSlowPaths(at place: Int) {
        code.skip(to: place)
        var n = 0
        while n < stubs.count {
            write(stubs[n])
            n += 1
        }
        n = 0
        while n < exits.count {
            write(exits[n])
            n += 1
        }
        // Exits of mismatched returns add stubs.
        n = 0
        while n < lateStubs.count {
            write(lateStubs[n])
            n += 1
        }
    }
    var lateStubs: [Stub] = []

    /// Counts the block's instructions, or leaves to the dispatcher if they are too many.
    private mutating func emitLimit() {
        code.load(scratch0, StateOffset.instructions)
        code.arithmetic(0, scratch0, Int32(count))
        code.memory(0x3B, wide: true, reg: scratch0, StateOffset.instructionLimit)
        exits.append(Exit(jump: code.jump(if: 7), target: pageOffset, kind: .attention))
        code.store(StateOffset.instructions, scratch0)
    }

    /// The last instruction and the way on.
    private mutating func emitLast(_ endsInBranch: Bool) {
        let n = count - 1
        let i = first + n
        let ends = InstructionTable.row(i.pointee.row).attributes.contains(.endsBlock)
        if emitsRepeated(i.pointee) {
            emitRepeated(n)
        } else if emits(n) {
            if endsInBranch { return emitBranch(n) }
            emit(n)
        } else if endsInBranch && !isString(i) {
            saveFlags()
            return emitStep(n, .ends)
        } else if ends || endsInBranch {
            saveFlags()
            emitStep(n, .goesOn)
            flagsInHost = false
        } else {
            emit(n)
        }
        saveFlagsIfWanted(wanted[count])
        goOn(to: pageOffset + Int(i.pointee.endOffset))
    }

    func isString(_ i: UnsafePointer<Instruction>) -> Bool {
        switch i.pointee.operation {
        case .movs, .cmps, .stos, .lods, .scas, .ins, .outs: true
        default: false
        }
    }

    // MARK: Jumps within the code memory

    mutating func emitJump(to target: Int) {
        let place = code.jump()
        code.patch(place, to: target - origin)
    }

    mutating func emitJump(if condition: UInt8, to target: Int) {
        let place = code.jump(if: condition)
        code.patch(place, to: target - origin)
    }

    mutating func emitCall(to target: Int) {
        let place = code.call()
        code.patch(place, to: target - origin)
    }

    /// RIP of a place in the code page into a register.
    mutating func loadRIP(_ register: HostRegister, _ place: Int) {
        if absolute != 0 {
            code.constant(register, absolute &+ UInt64(bitPattern: Int64(place - pageOffset)))
        } else {
            code.load(register, StateOffset.codePage)
            let near = size64 ? Int32(clamping: place) : Int32(truncatingIfNeeded: place)
            code.lea(register, .base(register, near), narrow: !size64)
            // A branch by up to 2 GiB from the end of a page goes further than one displacement does.
            if size64 && Int(near) != place { code.lea(register, .base(register, Int32(place - Int(near)))) }
            if codeSize == 2 && (place < 0 || place >= 4096) {
                code.registers(0xB7, map: 1, reg: register, rm: register)
            }
        }
    }

    // MARK: Slow paths

    private mutating func write(_ stub: Stub) {
        code.patch(stub.jump, to: code.count)
        emitStep(stub.index, stub.kind)
        if stub.kind == .ends { return }
        if stub.restoresFlags { restoreFlags() }
        let back = code.jump()
        code.patch(back, to: stub.resume)
    }

    /// Calls the interpreter for instruction `n`.
    mutating func emitStep(_ n: Int, _ kind: StepKind) {
        code.constant(scratch0, UInt64(firstNumber + n) | (n == count - 1 ? StepArgument.last : 0))
        if options.counts { code.constant(scratch1, UInt64(count - n)) }
        loadRIP(scratch2, pageOffset)
        if kind == .ends { emitJump(to: common.stepAndEnd) } else { emitCall(to: common.step) }
    }

    /// A stub for instruction `n`, reached by a conditional jump at `jump`.
    mutating func addStub(_ jump: Int, _ n: Int, _ kind: StepKind = .goesOn) {
        stubs.append(Stub(jump: jump, index: n, resume: 0, kind: kind, restoresFlags: false))
    }

    private mutating func write(_ exit: Exit) {
        code.patch(exit.jump, to: code.count)
        switch exit.kind {
        case .chain, .chainShadow:
            if case .chainShadow = exit.kind { emitShadow() }
            loadRIP(scratch0, exit.target)
            let isCross = exit.target < 0 || exit.target >= 4096
            code.constant(scratch1, UInt64(origin + exit.jump) | (isCross ? ChainSite.crossesPage : 0))
            emitJump(to: common.leaveChain)
        case .attention:
            loadRIP(scratch0, exit.target)
            emitJump(to: common.leave)
        case .shadow:
            emitShadow()
            loadRIP(scratch0, exit.target)
            emitJump(to: common.leave)
        case .interpret(let index):
            if options.counts { code.arithmetic(5, StateOffset.instructions, Int32(count - index), wide: true) }
            loadRIP(scratch0, exit.target)
            code.constant(scratch1, UInt64(origin))
            emitJump(to: common.leaveInterpret)
        case .dropReturns(let resume):
            code.load(4, StateOffset.stackBase)
            code.patch(code.jump(), to: resume)
        case .mismatch(let index, let extra): writeMismatch(index, extra)
        case .lookup: code.lookup(leave: common.leave - origin, other: common.lookupOther - origin)
        case .uncached(let site, let landing): writeUncached(site, landing)
        case .vectors(let resume, let level, let index):
            code.compareByte(StateOffset.vectorsUsable, level)
            exits.append(Exit(jump: code.jump(if: 2), target: exit.target, kind: .interpret(index: index)))
            writeLoad(common.loadVectors, exit.target, index, resume)
        case .x87(let resume, let index):
            code.compareByte(StateOffset.x87Usable, 0)
            exits.append(Exit(jump: code.jump(if: 4), target: exit.target, kind: .interpret(index: index)))
            writeLoad(common.loadX87, exit.target, index, resume)
        }
    }

    /// Loads registers for instruction `index`, at `place`, and the rest of the block.
    private mutating func writeLoad(_ routine: Int, _ place: Int, _ index: Int, _ resume: Int) {
        emitCall(to: routine)
        exits.append(Exit(jump: code.jump(if: 5), target: place, kind: .interpret(index: index)))
        code.patch(code.jump(), to: resume)
    }

    private mutating func emitShadow() {
        code.memory(0xC6, reg: 0, StateOffset.interruptShadow)
        code.byte(1)
    }

    /// Goes on after STI has set IF: wherever the dispatcher comes next, it must not take an interrupt at once.
    mutating func goOnInShadow(to target: Int) {
        if isChainable(target) {
            exits.append(Exit(jump: code.jump(), target: target, kind: .chainShadow))
        } else {
            emitShadow()
            loadRIP(scratch0, target)
            emitJump(to: options.chains ? common.lookup : common.leave)
        }
    }

    /// A return address (scratch 0) that the return stack doesn't know.
    private mutating func writeMismatch(_ index: Int, _ extra: Int32) {
        if size64 {
            lateStubs.append(
                Stub(jump: jumpUnlessCanonical(scratch0), index: index, resume: 0, kind: .ends, restoresFlags: false))
        }
        moveStack(by: extra)
        emitJump(to: options.chains ? common.mismatch : common.leave)
    }

    /// Jumps somewhere if a register isn't a canonical address of 48 bits; clobbers scratch 1.
    mutating func jumpUnlessCanonical(_ target: HostRegister) -> Int {
        code.move(scratch1, target)
        code.shift(7, scratch1, 47)
        code.arithmetic(0, scratch1, 1)
        code.arithmetic(7, scratch1, 1)
        return code.jump(if: 7)
    }

    // MARK: Flags

    /// MOV scratch, RAX; LAHF; SETO AL; MOV to the state block; RAX back: the host's flags stay.
    mutating func saveFlags() {
        if flagsInMemory || !flagsInHost { return }
        code.move(scratch2, 0)
        code.bytes(0x9F, 0x0F, 0x90, 0xC0)
        code.memory(0x89, prefix: 0x66, reg: 0, StateOffset.flags)
        code.move(0, scratch2)
        flagsInMemory = true
    }

    mutating func saveFlagsIfWanted(_ set: FlagSet) { if !set.isEmpty { saveFlags() } }

    private mutating func restoreFlags(by scratch: HostRegister = scratch0) {
        code.move(scratch, 0)
        code.memory(0x8B, reg: 0, StateOffset.flags)
        code.bytes(0x04, 0x7F, 0x9E)
        code.move(0, scratch)
    }

    /// Brings flags into the host's if any of `set` is to be read there.
    mutating func needFlags(_ set: FlagSet, by scratch: HostRegister = scratch0) {
        if set.isEmpty || flagsInHost { return }
        restoreFlags(by: scratch)
        flagsInHost = true
    }

    /// What comes next destroys the host's flags.
    mutating func losesFlags(before n: Int) {
        saveFlagsIfWanted(wanted[n])
        flagsInHost = false
    }

    /// Instruction `n` is about to write flags in the host.
    mutating func writesFlags(_ n: Int, _ use: FlagUse, by scratch: HostRegister = scratch0) {
        if use.writes.isEmpty && use.reads.isEmpty { return }
        let passing = wanted[n + 1].subtracting(use.writes)
        needFlags(use.reads.union(passing), by: scratch)
    }

    /// Instruction `n` has written flags in the host.
    mutating func wroteFlags(_ use: FlagUse) {
        if use.writes.isEmpty { return }
        flagsInHost = true
        flagsInMemory = false
    }

    // MARK: Registers

    /// The host register of a guest register, or nil when it lives in the state block.
    static func host(_ n: UInt8) -> HostRegister? {
        switch n {
        case 4: guestStack
        case 10, 11, 14, 15: nil
        default: n
        }
    }

    /// The host register that has a guest register's value: its own, or `scratch`, loaded now.
    mutating func source(_ n: UInt8, _ scratch: HostRegister) -> HostRegister {
        if let own = Self.host(n) { return own }
        code.load(scratch, StateOffset.register(n))
        return scratch
    }

    /// Instruction `n`, begun when `mark` stubs were there, is complete: its slow paths come back here.
    mutating func complete(from mark: Int) {
        for k in mark..<stubs.count where stubs[k].resume == 0 {
            stubs[k].resume = code.count
            stubs[k].restoresFlags = flagsInHost
        }
    }

    func instruction(_ n: Int) -> UnsafePointer<Instruction> { first + n }

    func wantedAfter(_ n: Int) -> FlagSet { wanted[n + 1] }

    /// Instruction `n` by the interpreter, in line.
    mutating func callInterpreter(_ n: Int) {
        saveFlags()
        emitStep(n, .goesOn)
        flagsInHost = false
        flagsInMemory = true
    }
}

/// What a call of the interpreter says besides the instruction's number.
enum StepArgument {
    static let last: UInt64 = 0x4000_0000
    static let mask: UInt64 = 0x3FFF_FFFF
}

/// What `chain_site` says besides the site.
enum ChainSite {
    static let crossesPage: UInt64 = 0x4000_0000
    /// An inline cache: see `BlockTranslator.emitCached`.
    static let cache: UInt64 = 0x8000_0000
    static let mask: UInt64 = 0x3FFF_FFFF
}
