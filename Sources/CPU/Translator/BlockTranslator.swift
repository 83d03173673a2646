// One block of guest code to host code.
//
// Conventions of translated code (docs/architecture.md, "The translator"):
// - `gs` points at the vCPU's state block, RSP is the host's stack; twelve guest registers live in host registers, R10 R11
//   R14 R15 stay in the state block (the host's R10 R11 R15 are scratch, R14 holds the guest's RSP);
// - between blocks the arithmetic flags are in the state block, and `rip` is the linear address of the block entered;
// - inside a block flags live in the host's flags as long as nothing destroys them, and are saved only where they are
//   still wanted;
// - an instruction that misses the TLB, or that isn't emitted here, is carried out by the interpreter through one call.
internal import CHost

/// Scratch registers.
let scratch0: HostRegister = 10
let scratch1: HostRegister = 11
let scratch2: HostRegister = 15

/// Offsets of the state block's fields.
enum StateOffset {
    static let rip = offset(\.rip)
    static let flags = offset(\.arithmetic_flags)
    static let attention = offset(\.attention)
    static let addressSpace = offset(\.address_space)
    static let tlb = offset(\.tlb)
    static let instructions = offset(\.instructions)
    static let chainSite = offset(\.chain_site)
    static let entry = offset(\.entry)
    static let bases = offset(\.effective_base)
    static func register(_ n: UInt8) -> HostAddress { .state(Int32(n) * 8) }

    private static func offset(_ path: PartialKeyPath<roost_vcpu>) -> Int32 {
        Int32(MemoryLayout<roost_vcpu>.offset(of: path) ?? 0)
    }
}

/// Where common routines are in the code memory.
struct CommonRoutines {
    /// Carries out one instruction by the interpreter, then returns.
    var step = 0
    /// The same for an instruction that ends its block; doesn't return.
    var stepAndEnd = 0
    /// Finds the block at `rip` in the jump table, or leaves.
    var lookup = 0
    /// Leaves to the dispatcher.
    var leave = 0
}

/// Translates one block.
struct BlockTranslator {
    var code: HostAssembler
    private let common: CommonRoutines
    /// Position of `code`'s first byte in the code memory.
    private let origin: Int
    private let first: UnsafePointer<Instruction>
    private let count: Int
    /// Offset in its page of the block's first instruction.
    private let pageOffset: Int
    /// Flags wanted before each instruction, and after the last.
    private var wanted: [FlagSet]
    private var flagsInHost = false
    private var flagsInMemory = true
    private var stubs: [Stub] = []
    private var chains: [Chain] = []

    /// A slow path to be written after the block.
    private struct Stub {
        var jump: Int
        var index: Int
        var resume: Int
        var ends: Bool
        var restoresFlags: Bool
    }

    /// A jump that the dispatcher may make lead to another block.
    private struct Chain { var jump: Int }

    init(
        code: HostAssembler, origin: Int, common: CommonRoutines, first: UnsafePointer<Instruction>, count: Int,
        pageOffset: Int,
        liveOut: FlagSet
    ) {
        self.code = code
        self.origin = origin
        self.common = common
        self.first = first
        self.count = count
        self.pageOffset = pageOffset
        wanted = [FlagSet](repeating: liveOut, count: count + 1)
        for n in stride(from: count - 1, through: 0, by: -1) {
            let use = Self.emits(first + n) ? FlagUse.of(first + n) : FlagUse(reads: .all)
            wanted[n] = use.reads.union(wanted[n + 1].subtracting(use.writes))
        }
    }

    // MARK: The block

    /// Writes the whole block. `version` is where its page's code version is, `current` what it must be.
    mutating func translate(version: UnsafePointer<UInt32>, current: UInt32, endsInBranch: Bool) {
        code.constant(scratch0, UInt64(UInt(bitPattern: version)))
        code.memory(0x81, reg: 7, .base(scratch0, 0))
        code.word32(Int32(bitPattern: current))
        emitJump(if: 5, to: common.leave)
        code.memory(0x83, reg: 7, .state(StateOffset.attention))
        code.byte(0)
        emitJump(if: 5, to: common.leave)
        code.memory(0x81, wide: true, reg: 0, .state(StateOffset.instructions))
        code.word32(Int32(count))
        for n in 0..<count - 1 { emit(n) }
        emitLast(endsInBranch)
        for stub in stubs { write(stub) }
        for chain in chains { write(chain) }
    }

    private mutating func emitJump(to target: Int) {
        let place = code.jump()
        code.patch(place, to: target - origin)
    }

    private mutating func emitJump(if condition: UInt8, to target: Int) {
        let place = code.jump(if: condition)
        code.patch(place, to: target - origin)
    }

    private mutating func emitCall(to target: Int) {
        let place = code.call()
        code.patch(place, to: target - origin)
    }

    /// The last instruction and the way on.
    private mutating func emitLast(_ endsInBranch: Bool) {
        let n = count - 1
        let i = first + n
        let use = Self.emits(i)
        if endsInBranch || InstructionTable.row(i.pointee.row).attributes.contains(.endsBlock) {
            if use {
                emitBranch(n)
            } else {
                saveFlags()
                emitStep(n, ends: true)
            }
            return
        }
        emit(n)
        saveFlagsIfWanted(wanted[count])
        goOn(to: Int(i.pointee.endOffset))
    }

    private mutating func write(_ stub: Stub) {
        code.patch(stub.jump, to: code.count)
        emitStep(stub.index, ends: stub.ends)
        if stub.ends { return }
        if stub.restoresFlags { restoreFlags() }
        let back = code.jump()
        code.patch(back, to: stub.resume)
    }

    /// Calls the interpreter for instruction `n`.
    private mutating func emitStep(_ n: Int, ends: Bool) {
        code.constant(scratch0, UInt64(UInt(bitPattern: first + n)))
        code.constant(scratch1, UInt64(count - n))
        if ends { emitJump(to: common.stepAndEnd) } else { emitCall(to: common.step) }
    }

    // MARK: Ways out

    /// Goes on at an offset from the block's start: chained within the page, by the jump table beyond it.
    private mutating func goOn(to offset: Int) {
        code.memory(0x81, wide: true, reg: 0, .state(StateOffset.rip))
        code.word32(Int32(truncatingIfNeeded: offset))
        let target = pageOffset + offset
        if target >= 0 && target < 4096 {
            chains.append(Chain(jump: code.jump()))
        } else {
            emitJump(to: common.lookup)
        }
    }

    /// Where an unpatched chain leads: tells the dispatcher which jump to patch.
    private mutating func write(_ chain: Chain) {
        code.patch(chain.jump, to: code.count)
        code.memory(0xC7, wide: true, reg: 0, .state(StateOffset.chainSite))
        code.word32(Int32(truncatingIfNeeded: origin + chain.jump))
        emitJump(to: common.leave)
    }

    private mutating func emitBranch(_ n: Int) {
        let i = first + n
        let end = Int(i.pointee.endOffset)
        switch i.pointee.operation {
        case .jcc:
            needFlags(FlagUse.condition(i.pointee.extra))
            saveFlagsIfWanted(wanted[count])
            let taken = code.jump(if: i.pointee.extra)
            goOn(to: end)
            code.patch(taken, to: code.count)
            goOn(to: end + Int(i.pointee.immediate))
        case .jmp:
            saveFlagsIfWanted(wanted[count])
            goOn(to: end + Int(i.pointee.immediate))
        case .call:
            saveFlagsIfWanted(wanted[count])
            probe(n, .base(14, -8), size: 8, write: true, ends: true)
            pushReturnAddress(end)
            goOn(to: end + Int(i.pointee.immediate))
        case .ret, .retImmediate:
            saveFlagsIfWanted(wanted[count])
            probe(n, .base(14, 0), size: 8, write: false, ends: true)
            code.load(scratch2, .base(scratch0, 0))
            checkCanonical(n, scratch2)
            let extra = i.pointee.operation == .ret ? 0 : Int32(truncatingIfNeeded: i.pointee.immediate & 0xFFFF)
            code.lea(14, .base(14, 8 + extra))
            code.store(.state(StateOffset.rip), scratch2)
            emitJump(to: common.lookup)
        default: emitIndirect(n, i.pointee.operation == .callIndirect, end)
        }
    }

    private mutating func emitIndirect(_ n: Int, _ isCall: Bool, _ end: Int) {
        let i = first + n
        saveFlagsIfWanted(wanted[count])
        if i.pointee.rm == Instruction.none {
            probe(n, address(i), size: 8, write: false, ends: true)
            code.load(scratch0, .base(scratch0, 0))
        } else {
            code.move(scratch0, source(i.pointee.rm, scratch0))
        }
        checkCanonical(n, scratch0)
        if isCall {
            // The target waits in the state block while the stack is reached.
            code.store(.state(StateOffset.entry), scratch0)
            probe(n, .base(14, -8), size: 8, write: true, ends: true)
            pushReturnAddress(end)
            code.load(scratch0, .state(StateOffset.entry))
        }
        code.store(.state(StateOffset.rip), scratch0)
        emitJump(to: common.lookup)
    }

    /// A branch to a non-canonical address faults itself: by the interpreter.
    private mutating func checkCanonical(_ n: Int, _ target: HostRegister) {
        code.move(scratch1, target)
        code.registers(0xC1, wide: true, reg: 7, rm: scratch1)
        code.byte(47)
        code.registers(0x83, wide: true, reg: 0, rm: scratch1)
        code.byte(1)
        code.registers(0x83, wide: true, reg: 7, rm: scratch1)
        code.byte(1)
        stubs.append(Stub(jump: code.jump(if: 7), index: n, resume: 0, ends: true, restoresFlags: false))
    }

    private mutating func pushReturnAddress(_ end: Int) {
        code.load(scratch2, .state(StateOffset.rip))
        code.lea(scratch2, .base(scratch2, Int32(end)))
        code.store(.base(scratch0, 0), scratch2)
        code.lea(14, .base(14, -8))
    }

    // MARK: Flags

    /// MOV scratch, RAX; LAHF; SETO AL; MOV to the state block; RAX back: the host's flags stay.
    mutating func saveFlags() {
        if flagsInMemory || !flagsInHost { return }
        code.move(scratch2, 0)
        code.byte(0x9F)
        code.byte(0x0F)
        code.byte(0x90)
        code.byte(0xC0)
        code.memory(0x89, prefix: 0x66, reg: 0, .state(StateOffset.flags))
        code.move(0, scratch2)
        flagsInMemory = true
    }

    mutating func saveFlagsIfWanted(_ set: FlagSet) { if !set.isEmpty { saveFlags() } }

    private mutating func restoreFlags(by scratch: HostRegister = scratch0) {
        code.move(scratch, 0)
        code.memory(0x8B, reg: 0, .state(StateOffset.flags))
        code.byte(0x04)
        code.byte(0x7F)
        code.byte(0x9E)
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

    // MARK: Registers and memory

    /// The host register of a guest register, or nil when it lives in the state block.
    static func host(_ n: UInt8) -> HostRegister? {
        switch n {
        case 4: 14
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

    /// The address of a memory operand in host terms; may load scratch 0 and 1.
    mutating func address(_ i: UnsafePointer<Instruction>) -> HostAddress {
        let displacement = i.pointee.displacement
        if i.pointee.base == Instruction.rip {
            code.load(scratch0, .state(StateOffset.rip))
            code.lea(scratch0, .base(scratch0, Int32(i.pointee.endOffset)))
            return .base(scratch0, displacement)
        }
        let base = i.pointee.base < 16 ? source(i.pointee.base, scratch0) : nil
        let index = i.pointee.index < 16 ? source(i.pointee.index, scratch1) : nil
        switch (base, index) {
        case (let base?, let index?): return .indexed(base, index, i.pointee.scale, displacement)
        case (let base?, nil): return .base(base, displacement)
        case (nil, let index?): return .scaled(index, i.pointee.scale, displacement)
        default:
            code.registers(0xC7, wide: true, reg: 0, rm: scratch0)
            code.word32(displacement)
            return .base(scratch0, 0)
        }
    }

    /// Reaches memory for instruction `n`: afterwards scratch 0 is the host's address; a miss goes to the interpreter.
    mutating func probe(_ n: Int, _ address: HostAddress, size: Int, write: Bool, ends: Bool = false) {
        losesFlags(before: n)
        let i = first + n
        code.lea(scratch0, address)
        if i.pointee.segment >= 4 && i.pointee.isMemory && !ends {
            code.memory(0x03, wide: true, reg: scratch0, .state(StateOffset.bases + Int32(i.pointee.segment & 7) * 8))
        }
        if size == 1 {
            code.move(scratch2, scratch0)
        } else {
            code.lea(scratch2, .base(scratch0, Int32(size - 1)))
        }
        // The entry: bits 24:12 of the address, 32 bytes each.
        code.move(scratch1, scratch0)
        code.registers(0xC1, wide: true, reg: 5, rm: scratch1)
        code.byte(7)
        code.registers(0x81, reg: 4, rm: scratch1)
        code.word32(0x3FFE0)
        code.memory(0x03, wide: true, reg: scratch1, .state(StateOffset.tlb))
        code.registers(0x81, wide: true, reg: 4, rm: scratch2)
        code.word32(-4096)
        code.memory(0x0B, wide: true, reg: scratch2, .state(StateOffset.addressSpace))
        code.memory(0x3B, wide: true, reg: scratch2, .base(scratch1, write ? 8 : 0))
        let miss = code.jump(if: 5)
        code.memory(0x03, wide: true, reg: scratch0, .base(scratch1, 16))
        stubs.append(Stub(jump: miss, index: n, resume: 0, ends: ends, restoresFlags: false))
    }

    /// Instruction `n`, begun when `mark` stubs were there, is complete: its slow paths come back here.
    mutating func complete(from mark: Int) {
        for k in mark..<stubs.count {
            stubs[k].resume = code.count
            stubs[k].restoresFlags = flagsInHost
        }
    }

    var stubCount: Int { stubs.count }

    func instruction(_ n: Int) -> UnsafePointer<Instruction> { first + n }

    func wantedAfter(_ n: Int) -> FlagSet { wanted[n + 1] }

    /// Instruction `n` by the interpreter, in line.
    mutating func callInterpreter(_ n: Int) {
        saveFlags()
        emitStep(n, ends: false)
        flagsInHost = false
        flagsInMemory = true
    }
}
