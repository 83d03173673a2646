// A random program: fragments of code one after the other, with what is needed to go on after a fault in any of them.
//
// It ends for certain: jumps lead forward, but for loops with a counter in memory that nothing else reaches, and patches
// change operations and immediates, never lengths.
import CPU

/// A program and its layout.
struct Program {
    var code: [UInt8] = []
    /// The same with other immediates, for the pages that take the place of these.
    var copy: [UInt8] = []
    /// Offsets where fragments start, ascending.
    var boundaries: [Int] = []
    /// Offsets of instructions that may be patched: ALU EAX...EDI, imm32 (81 /n).
    var sites: [Int] = []
    /// Where it ends, at an INT3.
    var end = 0

    /// The first fragment after an offset.
    func boundary(after offset: Int) -> Int? {
        var (low, high) = (0, boundaries.count)
        while low < high {
            let middle = (low + high) / 2
            if boundaries[middle] <= offset { low = middle + 1 } else { high = middle }
        }
        return low < boundaries.count ? boundaries[low] : nil
    }
}

/// Writes random programs.
struct ProgramWriter {
    private var random: SeededGenerator
    private var cases: CaseGenerator
    private let mode: ProgramMode
    private var program = Program()
    private var patches: [Patch] = []
    private var subroutines: [Int] = []
    private var calls: [(place: Int, routine: Int)] = []
    private var counters: UInt64 = 0
    private var depth = 0
    private static let rows: [UInt16] = (0..<UInt16(InstructionTable.count)).filter { usable($0) }
    private static let kernelRows: [UInt16] = rows.filter {
        !InstructionTable.row($0).attributes.contains(.endsBlock)
    }

    /// An address of a site to be filled in: an imm64 or imm32 at `place`.
    private struct Patch {
        var place: Int
        var width: Int
        /// Bytes into the instruction.
        var into: Int
        /// Through which mapping: 0 the code's own, 1 the alias, 2 the copy's.
        var mapping: Int
        /// Sites near it, else anywhere.
        var near: Bool
    }

    init(seed: UInt64, mode: ProgramMode) {
        random = SeededGenerator(state: seed &* 0x9E37_79B9 &+ 17)
        cases = CaseGenerator(seed: seed &* 31 &+ 5, compatibility: !mode.is64)
        self.mode = mode
    }

    /// Rows whose instructions can stand anywhere: no branches, no stack, nothing of the host's own.
    private static func usable(_ n: UInt16) -> Bool {
        let row = InstructionTable.row(n)
        guard row.canRunInUserMode, CPUModel.host.isAvailable(row.feature), !row.attributes.contains(.branch) else {
            return false
        }
        switch row.operation {
        case .push, .pop, .pusha, .popa, .pushf, .popf, .enter, .leave, .int3, .into, .bound, .in, .out, .ins, .outs,
            .hlt, .movToCR, .movToDR, .movFromDR, .movFromCR, .lgdt, .lidt, .lldt, .ltr, .xsetbv, .wrmsr, .rdmsr, .sti:
            return false
        default: return true
        }
    }

    /// The program.
    mutating func write() -> Program {
        while program.code.count < 5 * 4096 { fragment() }
        while depth > 0 { closeLoop() }
        boundary()
        program.end = program.code.count
        emit(0xCC)
        for _ in 0..<6 {
            subroutines.append(program.code.count)
            for _ in 0..<(2 + random.below(5)) { straight() }
            boundary()
            emit(0xC3)
            emit(0xCC)
        }
        fillIn()
        return program
    }

    // MARK: Fragments

    private var loops: [(start: Int, counter: UInt64)] = []

    private mutating func fragment() {
        switch random.below(24) {
        case 0 where depth < 2: openLoop()
        case 1 where depth > 0: closeLoop()
        case 2, 3: jumpForward()
        case 4, 5: call()
        case 6: jumpIndirect()
        case 7: singleStep()
        case 8 where mode.isKernel: kernelWork()
        default: straight()
        }
    }

    private mutating func straight() {
        boundary()
        switch random.below(16) {
        case 0, 1: patch()
        case 2, 3, 4: site()
        case 5: emit(0xCC)
        case 6: pushAndPop()
        case 7: flags()
        case 8: fault()
        default: anyInstruction()
        }
    }

    private mutating func boundary() { program.boundaries.append(program.code.count) }

    private mutating func emit(_ bytes: UInt8...) { program.code += bytes }

    private mutating func word(_ value: UInt64, _ width: Int) {
        for n in 0..<width { program.code.append(UInt8(truncatingIfNeeded: value >> (n * 8))) }
    }

    private var width: Int { mode.is64 ? 8 : 4 }

    /// MOV register, immediate, as wide as the mode.
    private mutating func load(_ n: UInt8, _ value: UInt64) {
        if mode.is64 { emit(0x48 | n >> 3) }
        emit(0xB8 | n & 7)
        word(value, width)
    }

    /// Any instruction, its memory operand's registers set before.
    private mutating func anyInstruction() {
        let rows = mode.isKernel ? Self.kernelRows : Self.rows
        let number = rows[Int(random.below(UInt64(rows.count)))]
        let row = InstructionTable.row(number)
        guard let encoding = cases.encode(row, number: number) else { return site() }
        let i = encoding.instruction
        if i.reg == 4 || i.rm == 4 || i.base == 4 || i.extra == 4 || i.index == 4 { return site() }
        let state = cases.state(for: i)
        var needed: [UInt8] = []
        if i.isStringOperation { needed = [1, 6, 7] }
        if i.operation == .xlat { needed = [0, 3] }
        if i.usesImplicitRDI { needed = [7] }
        if i.isMemory {
            if i.base < 16 { needed.append(i.base) }
            if i.index < 16 && !needed.contains(i.index) { needed.append(i.index) }
            if case .bt = i.operation { needed.append(i.reg & 15) }
            if [.bts, .btr, .btc].contains(i.operation) && i.form == .rmReg && i.reg != i.base {
                needed.append(i.reg & 15)
            }
        }
        for n in needed where n != 4 { load(n, state.gpr[Int(n)]) }
        program.code += encoding.bytes
    }

    /// An instruction that may be patched.
    private mutating func site() {
        program.sites.append(program.code.count)
        var register = UInt8(random.below(8))
        if register == 4 { register = 0 }
        emit(0x81, 0xC0 | UInt8(random.below(8)) << 3 | register)
        word(random.next(), 4)
    }

    /// A store into an instruction: its immediate, or which operation it is.
    private mutating func patch() {
        let mapping = random.chance(1, in: 3) ? 1 : mode.isKernel && random.chance(1, in: 6) ? 2 : 0
        let near = random.chance(2, in: 3)
        switch random.below(4) {
        case 0:
            // The operation: the register is kept by OR and AND of its place.
            address(7, into: 1, mapping, near)
            // and byte [rdi], 0xC7; or byte [rdi], n << 3
            emit(0x80, 0x27, 0xC7, 0x80, 0x0F, UInt8(random.below(8)) << 3)
        case 1:
            address(7, into: 2, mapping, near)
            load(1, 1 + random.below(4))
            emit(0xFC, 0xF3, 0xAA)  // cld; rep stosb
        case 2:
            address(3, into: 2, mapping, near)
            emit(0xC7, 0x03)  // mov dword [rbx], imm32
            word(random.next(), 4)
        default:
            address(3, into: 2 + Int(random.below(4)), mapping, near)
            emit(random.chance(1, in: 2) ? 0xF0 : 0x90, 0xFE, 0x03)  // [lock] inc byte [rbx]
        }
    }

    private mutating func address(_ register: UInt8, into: Int, _ mapping: Int, _ near: Bool) {
        load(register, 0)
        patches.append(
            Patch(place: program.code.count - width, width: width, into: into, mapping: mapping, near: near))
    }

    private mutating func pushAndPop() {
        let registers = (0..<(1 + random.below(4))).map { _ in UInt8([0, 1, 2, 3, 5, 6, 7][Int(random.below(7))]) }
        for n in registers { emit(0x50 | n) }
        for _ in registers { emit(0x58 | [0, 1, 2, 3, 5, 6, 7][Int(random.below(7))]) }
    }

    /// Flags to memory, to registers, to a choice.
    private mutating func flags() {
        switch random.below(4) {
        case 0: emit(0x9C, 0x58)  // pushf; pop rax
        case 1: emit(0x9F)  // lahf
        case 2: emit(0x0F, 0x90 | UInt8(random.below(16)), 0xC0 | UInt8(random.below(4)))
        default: emit(0x0F, 0x40 | UInt8(random.below(16)), 0xC0 | UInt8(random.below(4)) << 3 | UInt8(random.below(8)))
        }
    }

    private mutating func fault() {
        switch random.below(4) {
        case 0: emit(0x0F, 0x0B)
        case 1:
            emit(0x31, 0xC9, 0xF7, 0xF1)  // xor ecx, ecx; div ecx
        case 2:
            load(6, Place.data + Place.dataLength - random.below(8))
            emit(0x01, 0x06)  // add [rsi], eax
        default:
            load(6, 0x4000_0000)
            emit(0x8B, 0x46, 0x08)
        }
    }

    private mutating func jumpForward() {
        boundary()
        emit(0x0F, 0x80 | UInt8(random.below(16)))
        let place = program.code.count
        word(0, 4)
        for _ in 0..<(1 + random.below(4)) { straight() }
        boundary()
        fix(place, to: program.code.count)
    }

    private mutating func jumpIndirect() {
        boundary()
        load(0, 0)
        let place = program.code.count - width
        emit(0xFF, 0xE0)  // jmp rax
        for _ in 0..<random.below(3) { straight() }
        boundary()
        set(place, mode.code + UInt64(program.code.count), width)
    }

    private mutating func call() {
        boundary()
        let routine = Int(random.below(6))
        if random.chance(1, in: 3) {
            load(3, 0)
            calls.append((program.code.count - width, routine))
            emit(0xFF, 0xD3)  // call rbx
        } else {
            emit(0xE8)
            calls.append((-program.code.count, routine))
            word(0, 4)
        }
    }

    private mutating func openLoop() {
        boundary()
        counters += 8
        // mov dword [counter], n
        counter(0xC7, 0)
        word(2 + random.below(3), 4)
        loops.append((program.code.count, counters))
        depth += 1
    }

    private mutating func closeLoop() {
        guard let loop = loops.popLast() else { return }
        depth -= 1
        boundary()
        counter(0x83, 5, loop.counter)  // sub dword [counter], 1
        emit(1)
        emit(0x0F, 0x8F)  // jg
        word(0, 4)
        fix(program.code.count - 4, to: loop.start)
    }

    private mutating func counter(_ opcode: UInt8, _ digit: UInt8, _ number: UInt64? = nil) {
        let address = ProgramMachine.control + (number ?? counters)
        if mode.is64 { emit(opcode, digit << 3 | 4, 0x25) } else { emit(opcode, digit << 3 | 5) }
        word(address, 4)
    }

    /// The trap flag on; the test takes it off after some traps.
    private mutating func singleStep() {
        boundary()
        emit(0x9C)
        if mode.is64 { emit(0x48) }
        emit(0x81, 0x0C, 0x24)  // or [rsp], 0x100
        word(0x100, 4)
        emit(0x9D)
    }

    /// Pages remapped, translations forgotten, interrupts off and on.
    private mutating func kernelWork() {
        boundary()
        let page = random.below(ProgramMachine.codePages - 3)
        switch random.below(4) {
        case 0: emit(0x0F, 0x20, 0xD8, 0x0F, 0x22, 0xD8)  // mov rax, cr3; mov cr3, rax
        case 1: emit(0xFA, 0x90, 0xFB, 0x90)  // cli; nop; sti; nop
        case 2:
            load(0, mode.code + page << 12)
            emit(0x0F, 0x01, 0x38)  // invlpg [rax]
        default:
            load(0, ProgramMachine.entry(of: page, mode))
            load(
                2,
                ProgramMachine.codePhysical(page, copy: random.chance(1, in: 2)) | (mode == .absolute64 ? 0x123 : 0x23))
            emit(0x48, 0x89, 0x10)  // mov [rax], rdx
            load(0, mode.code + page << 12)
            emit(0x0F, 0x01, 0x38)
        }
    }

    // MARK: Filling in

    private mutating func set(_ place: Int, _ value: UInt64, _ width: Int) {
        for n in 0..<width { program.code[place + n] = UInt8(truncatingIfNeeded: value >> (n * 8)) }
    }

    private mutating func fix(_ place: Int, to target: Int) {
        set(place, UInt64(bitPattern: Int64(target - place - 4)), 4)
    }

    private mutating func fillIn() {
        for (place, routine) in calls {
            if place < 0 {
                fix(-place, to: subroutines[routine])
            } else {
                set(place, mode.code + UInt64(subroutines[routine]), width)
            }
        }
        for patch in patches {
            let after = program.sites.firstIndex { $0 > patch.place } ?? 0
            let n = patch.near ? min(after + Int(random.below(3)), program.sites.count - 1) : anySite()
            let base = [mode.code, ProgramMachine.alias, ProgramMachine.copyAlias][patch.mapping]
            set(patch.place, base + UInt64(program.sites[n] + patch.into), patch.width)
        }
        program.copy = program.code
        for site in program.sites where random.chance(1, in: 2) {
            for n in 2..<6 { program.copy[site + n] = UInt8(truncatingIfNeeded: random.next()) }
        }
    }

    private mutating func anySite() -> Int { Int(random.below(UInt64(program.sites.count))) }
}
