// Hostile descriptors, tables, task states and registers: every handler of the system group must come back.
import CHost
import CPU
import GuestMemory
import Testing

@Suite struct SystemFuzzTests {
    /// SplitMix64: the same cases on every run.
    struct Random: RandomNumberGenerator {
        var state: UInt64

        mutating func next() -> UInt64 {
            state &+= 0x9E37_79B9_7F4A_7C15
            var z = state
            z = (z ^ (z >> 30)) &* 0xBF58_476D_1CE4_E5B9
            z = (z ^ (z >> 27)) &* 0x94D0_49BB_1331_11EB
            return z ^ (z >> 31)
        }
    }

    static let operations: [CPU.Operation] = [
        .pushSegment, .popSegment, .jmpFar, .jmpFarIndirect, .callFar, .callFarIndirect, .retFar, .retFarImmediate,
        .iret,
        .int, .int3, .int1, .syscall, .sysret, .sysenter, .sysexit, .swapgs, .cli, .sti, .hlt, .movToDR, .movFromDR,
        .lgdt,
        .lidt, .sgdt, .sidt, .lldt, .ltr, .sldt, .str, .lar, .lsl, .verr, .verw, .arpl, .movToSegment, .movFromSegment,
        .les, .lds, .lss, .lfs, .lgs, .clac, .stac, .rdfsbase, .rdgsbase, .wrfsbase, .wrgsbase, .vmcall, .vmmcall,
    ]

    /// A descriptor that is often almost right.
    func descriptor(_ random: inout Random) -> UInt64 {
        let base = random.next() % 4 == 0 ? random.next() & 0xFFFF_FFFF : random.next() & 0xFFFF
        let limit = random.next() % 2 == 0 ? 0xFFFFF : random.next() & 0xFFFFF
        let access = random.next() % 4 == 0 ? random.next() & 0xFF : 0x80 | random.next() & 0x7F
        return SystemRig.descriptor(base: base, limit: limit, access: access, flags: random.next() & 15)
    }

    func edge(_ random: inout Random) -> UInt64 {
        switch random.next() % 8 {
        case 0: return 0
        case 1: return ~0
        case 2: return 0xFFFF_FFFF
        case 3: return 0x8000_0000_0000
        case 4: return random.next()
        default: return random.next() & 0x3FFFF
        }
    }

    func scramble(_ rig: SystemRig, _ random: inout Random) {
        for n in 1..<32 as Range<UInt64> where random.next() % 3 == 0 {
            rig.put64(descriptor(&random), at: SystemRig.gdt + n * 8)
        }
        for n in 0..<64 as Range<UInt64> { rig.put64(descriptor(&random), at: SystemRig.idt + n * 8) }
        for n in 0..<32 as Range<UInt64> where random.next() % 2 == 0 {
            rig.put32(random.next() & 0xFFFF_FFFF, at: SystemRig.otherBase + n * 4)
            rig.put32(edge(&random) & 0xFFFF_FFFF, at: SystemRig.tssBase + n * 4)
        }
        for n in 0..<16 { rig.v.gpr[n] = edge(&random) }
        rig.v.gpr[4] = random.next() % 2 == 0 ? 0x2FF00 : edge(&random)
        for n in 0..<16 as Range<UInt64> {
            rig.put32(random.next() % 2 == 0 ? random.next() & 0xFF : edge(&random), at: 0x2FF00 + n * 4)
        }
        rig.s.pointee.star = random.next()
        rig.s.pointee.lstar = edge(&random)
        rig.s.pointee.sysenter_cs = random.next()
        rig.s.pointee.rip = edge(&random)
        rig.v.rflags = (rig.v.rflags & 0x20000) | (random.next() & 0x3D_7FD5)
        rig.s.pointee.dr.7 = random.next() & 0xFFFF_27FF
        if random.next() % 4 == 0 { rig.s.pointee.gdtr_limit = UInt32(random.next() & 0xFFFF) }
        if random.next() % 4 == 0 { rig.s.pointee.idtr_limit = UInt32(random.next() & 0xFFFF) }
    }

    @Test func `Nothing a guest builds out of descriptors stops the engine`() throws {
        let rig = try SystemRig()
        let fresh = rig.s.pointee
        let tables = try rig.memory.read(.init(SystemRig.gdt), length: 0x3000)
        var random = Random(state: DecoderTests.seed)
        var delivered = 0
        for _ in 0..<30_000 {
            rig.s.pointee = fresh
            try rig.memory.write(tables, at: .init(SystemRig.gdt))
            switch random.next() % 6 {
            case 0: rig.enterReal()
            case 1: rig.enterVirtual8086(iopl: random.next() % 2 * 3)
            case 2: rig.enterLong(random.next() % 2 == 0 ? 0 : 3)
            case 3: rig.enterLevel(3)
            case 4: rig.enterLevel(1)
            default: break
            }
            scramble(rig, &random)
            let error: CPUException?
            if random.next() % 3 == 0 {
                error = rig.inject(UInt8(truncatingIfNeeded: random.next() & 63))
            } else {
                let operation = Self.operations[Int(random.next() % UInt64(Self.operations.count))]
                error = rig.run(operation, size: [2, 4, 8][Int(random.next() % 3)]) {
                    $0.form = operation == .jmpFar || operation == .callFar ? .farPointer : .rm
                    $0.immediate = Int64(bitPattern: random.next() & 0xFF_FFFF_FFFF)
                    $0.reg = UInt8(random.next() & 7)
                    $0.rm = random.next() % 2 == 0 ? UInt8(random.next() & 15) : Instruction.none
                    $0.base = random.next() % 2 == 0 ? UInt8(random.next() & 15) : Instruction.none
                    $0.displacement = Int32(truncatingIfNeeded: edge(&random))
                }
            }
            if let error, error.isArchitectural { rig.deliver(error) }
            if error == nil { delivered += 1 }
            #expect(rig.s.pointee.cpl <= 3)
            #expect(rig.s.pointee.rflags & ~0x3F_772A | 2 == 2)
        }
        #expect(delivered > 3_000)
    }
}
