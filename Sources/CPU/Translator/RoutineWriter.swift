// The routines that all translated code shares: in, out, calls of the interpreter, the jump table, vector registers.
internal import CHost

/// Where common routines are in the code memory. Scratch 0 has RIP, where not said otherwise.
struct CommonRoutines {
    /// Carries out an instruction by the interpreter, then returns. Scratch 0 its number, 1 what remains of the block
    /// (when counting), 2 the block's RIP.
    var step = 0
    /// The same for an instruction that ends its block; doesn't return.
    var stepAndEnd = 0
    /// Goes to the block at RIP if the jump table has it, else leaves.
    var lookup = 0
    /// The same when the first entry that it may be in isn't it; scratch 1 where that is.
    var lookupOther = 0
    /// The same for a return whose address isn't on top of the return stack: that entry goes.
    var mismatch = 0
    /// Leaves to the dispatcher.
    var leave = 0
    /// Leaves by a jump that may be patched; scratch 1 the site.
    var leaveChain = 0
    /// Leaves for the interpreter to run the rest of a block, from RIP on; scratch 1 where the block's code is.
    var leaveInterpret = 0
    /// Where blocks lead whose code has changed; scratch 0 the number of their record.
    var leaveStale = 0
    /// Loads the guest's vector registers; not zero: they can't be used in line now.
    var loadVectors = 0
    /// The same for x87.
    var loadX87 = 0
}

/// Why translated code was left.
enum LeaveReason: Int {
    case normal, interpret, exit, stale
}

/// Writes the common routines.
struct RoutineWriter {
    var code: HostAssembler
    let origin: Int
    /// A jump to `lookup` that is to be patched.
    private var toLookup = 0

    init(code: HostAssembler, origin: Int) {
        self.code = code
        self.origin = origin
    }

    private static let guestRegisters: [UInt8] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 13]
    /// Bytes of the host's stack for the return stack.
    private static let returnStack: Int32 = 128 << 10

    private mutating func loadRegisters() {
        for n in Self.guestRegisters { code.load(BlockTranslator.host(n) ?? 0, StateOffset.register(n)) }
    }

    private mutating func saveRegisters() {
        for n in Self.guestRegisters { code.store(StateOffset.register(n), BlockTranslator.host(n) ?? 0) }
    }

    private mutating func jump(if condition: UInt8, to target: Int) { code.patch(code.jump(if: condition), to: target) }

    /// The way in, a C function of the state block and the code; returns its position.
    mutating func writeEnter() -> Int {
        let start = code.count
        code.bytes(0x53, 0x55)  // push rbx, rbp
        for n in 0x54...0x57 as ClosedRange<UInt8> { code.bytes(0x41, n) }  // push r12 ... r15
        code.lea(4, .base(4, -8))
        code.bytes(0xF3, 0x48, 0x0F, 0xAE, 0xDF)  // wrgsbase rdi
        code.store(StateOffset.entry, 6)
        // The end of the return stack: whoever does return to that address, 0, is looked up, and the entry stays.
        code.bytes(0x6A, 0)
        let entered = code.call()
        code.lea(4, .base(4, -8))
        toLookup = code.jump()
        code.patch(entered, to: code.count)
        code.store(StateOffset.stackBase, 4)
        code.lea(scratch0, .base(4, -Self.returnStack))
        code.store(StateOffset.stackFloor, scratch0)
        loadRegisters()
        code.memory(0xFF, reg: 4, StateOffset.entry)
        return start
    }

    /// Back to the caller of the way in, with the reason in scratch 1.
    private mutating func writeEpilogue() {
        code.load(4, StateOffset.stackBase)
        code.lea(4, .base(4, 24))
        for n in (0x5C...0x5F as ClosedRange<UInt8>).reversed() { code.bytes(0x41, n) }
        code.bytes(0x5D, 0x5B)
        code.move(0, scratch1)
        code.byte(0xC3)
    }

    /// Calls a function with the state block, scratch 0 and scratch 1; its answer is tested.
    private mutating func callFunction(_ address: UInt64) {
        code.load(7, StateOffset.own)
        code.move(6, scratch0)
        code.move(2, scratch1)
        code.constant(0, address)
        code.registers(0xFF, reg: 2, rm: 0)
        code.registers(0x85, wide: true, reg: 0, rm: 0)
    }

    private typealias StepFunction =
        @convention(c) (UnsafeMutablePointer<roost_vcpu>, Int, Int) -> Int

    private static func address(_ function: StepFunction) -> UInt64 {
        UInt64(UInt(bitPattern: unsafeBitCast(function, to: UnsafeRawPointer.self)))
    }

    /// The other routines.
    mutating func writeCommon() -> CommonRoutines {
        var common = CommonRoutines()
        let (load, save) = writeLive(&common)

        common.leaveStale = origin + code.count
        code.store(StateOffset.entry, scratch0)
        code.constant(scratch1, UInt64(LeaveReason.stale.rawValue))
        let fromStale = code.jump()
        common.leaveInterpret = origin + code.count
        code.store(StateOffset.entry, scratch1)
        code.constant(scratch1, UInt64(LeaveReason.interpret.rawValue))
        let fromInterpret = code.jump()
        common.leaveChain = origin + code.count
        code.store(StateOffset.chainSite, scratch1)
        let leave = code.count
        common.leave = origin + leave
        code.constant(scratch1, UInt64(LeaveReason.normal.rawValue))
        code.patch(fromInterpret, to: code.count)
        code.store(StateOffset.rip, scratch0)
        code.patch(fromStale, to: code.count)
        saveRegisters()
        let dead = jumpIfNoneLive()
        code.patch(code.call(), to: save)
        setNoneLive()
        code.patch(dead, to: code.count)
        writeEpilogue()

        common.lookupOther = origin + code.count
        code.lookupOther(leave: leave)

        let leaveStep = writeLeaveStep()
        common.step = origin + code.count
        writeStep(load: load, save: save, leave: leaveStep)
        common.stepAndEnd = origin + code.count
        writeStepAndEnd(save: save, leave: leaveStep)
        // It goes on here.
        let toLookup = code.jump()
        common.mismatch = origin + code.count
        code.memory(0x3B, wide: true, reg: 4, StateOffset.stackBase)
        let atBase = code.jump(if: 4)
        code.lea(4, .base(4, 16))
        code.patch(atBase, to: code.count)
        code.patch(toLookup, to: code.count)
        common.lookup = origin + code.count
        code.patch(self.toLookup, to: code.count)
        code.lookup(leave: leave, other: common.lookupOther - origin)
        return common
    }

    /// Vector and x87 registers are not the guest's; the two bytes are set as one.
    private mutating func setNoneLive() {
        code.memory(0xC7, prefix: 0x66, reg: 0, StateOffset.vectorsLive)
        code.immediate(0, 2)
    }

    /// Whether neither vector nor x87 registers are the guest's.
    private mutating func jumpIfNoneLive() -> Int {
        code.memory(0x83, prefix: 0x66, reg: 7, StateOffset.vectorsLive)
        code.byte(0)
        return code.jump(if: 4)
    }

    /// RAX is the interpreter's answer: 1 look for events, 2 an exit waits. Registers are saved, vectors too.
    private mutating func writeLeaveStep() -> Int {
        let start = code.count
        setNoneLive()
        code.registers(0x31, reg: scratch1, rm: scratch1)
        code.arithmetic(7, 0, 2)
        let events = code.jump(if: 5)
        code.constant(scratch1, UInt64(LeaveReason.exit.rawValue))
        code.patch(events, to: code.count)
        writeEpilogue()
        return start
    }

    private mutating func writeStep(load: Int, save: Int, leave: Int) {
        let step: StepFunction = { translatedStep($0, $1, $2) }
        code.store(StateOffset.rip, scratch2)
        saveRegisters()
        code.lea(4, .base(4, -8))
        let dead = jumpIfNoneLive()
        code.patch(code.call(), to: save)
        code.patch(dead, to: code.count)
        callFunction(Self.address(step))
        jump(if: 5, to: leave)
        let stillDead = jumpIfNoneLive()
        code.patch(code.call(), to: load)
        code.patch(stillDead, to: code.count)
        code.lea(4, .base(4, 8))
        loadRegisters()
        code.byte(0xC3)
    }

    private mutating func writeStepAndEnd(save: Int, leave: Int) {
        let stepAndEnd: StepFunction = { translatedStepAndEnd($0, $1, $2) }
        code.store(StateOffset.rip, scratch2)
        saveRegisters()
        let dead = jumpIfNoneLive()
        code.patch(code.call(), to: save)
        setNoneLive()
        code.patch(dead, to: code.count)
        callFunction(Self.address(stepAndEnd))
        let goesOn = code.jump(if: 4)
        // 3: code is somewhere else now, and what was called from where it was can't be returned to.
        code.arithmetic(7, 0, 3)
        jump(if: 5, to: leave)
        code.load(4, StateOffset.stackBase)
        code.patch(goesOn, to: code.count)
        loadRegisters()
        code.load(scratch0, StateOffset.rip)
    }
}

extension HostAssembler {
    /// Jumps to the block at scratch 0 if the jump table has it in the first entry that it may be in, else to `other`; to
    /// `leave` if there are events.
    mutating func lookup(leave: Int, other: Int) {
        arithmetic(7, StateOffset.attention, 0, wide: false)
        patch(jump(if: 5), to: leave)
        registers(0x69, wide: true, reg: scratch1, rm: scratch0)
        word32(TranslationCache.jumpMultiplier)
        shift(5, scratch1, TranslationCache.jumpShift)
        registers(0x81, reg: 4, rm: scratch1)
        word32(Int32(TranslationCache.jumpEntries - 2))
        shift(4, scratch1, 5)
        memory(0x03, wide: true, reg: scratch1, StateOffset.jumpTable)
        jumpByEntry(else: other)
    }

    /// The same with the second entry.
    mutating func lookupOther(leave: Int) {
        lea(scratch1, .base(scratch1, Int32(MemoryLayout<JumpEntry>.stride)))
        jumpByEntry(else: leave)
    }

    private mutating func jumpByEntry(else other: Int) {
        memory(0x39, wide: true, reg: scratch0, .base(scratch1, 0))
        patch(jump(if: 5), to: other)
        load(scratch2, StateOffset.jumpKey)
        memory(0x39, wide: true, reg: scratch2, .base(scratch1, 8))
        patch(jump(if: 5), to: other)
        load(scratch2, .base(scratch1, 24))
        store(StateOffset.codePage, scratch2)
        memory(0xFF, reg: 4, .base(scratch1, 16))
    }
}
