// Engines that stop at an exact count of instructions: the same stops, the same state, whichever engine runs.
import CHost
import CPU
import GuestMemory
import Testing

/// A guest in 64-bit mode at CPL 0, and the engine that runs it.
private struct CountedGuest {
    let system: SystemRig
    let run: () -> VMExit
    let complete: (UInt64) -> Void

    static let code: UInt64 = 0x5000
    static let data: UInt64 = 0x40000

    init(_ program: [UInt8], translates: Bool) throws {
        system = try SystemRig()
        system.enterLong(0)
        if translates {
            var settings = Translator.Settings()
            settings.codeCache = 2 << 20
            settings.heat = 0
            settings.stopsExactly = true
            let engine = try Translator(cpu: system.cpu, memory: system.memory, settings: settings)
            run = { engine.run() }
            complete = { engine.complete($0) }
        } else {
            let engine = Interpreter(cpu: system.cpu, memory: system.memory)
            run = { engine.run() }
            complete = { engine.complete($0) }
        }
        for n in 0..<32 as Range<UInt8> { system.longVector(n, SystemRig.longCode0, 0x8000 + UInt64(n) * 16) }
        system.v.updateMode()
        try system.memory.write(program, at: .init(Self.code))
        self[\.rip] = Self.code
        self[\.instructions] = 0
    }

    /// A field of the state block.
    subscript<T>(path: WritableKeyPath<roost_vcpu, T>) -> T {
        get { withExtendedLifetime(system.cpu) { system.s.pointee[keyPath: path] } }
        nonmutating set { withExtendedLifetime(system.cpu) { system.s.pointee[keyPath: path] = newValue } }
    }

    /// A general register.
    func register(_ n: Int) -> UInt64 { withExtendedLifetime(system.cpu) { system.v.gpr[n] } }

    /// What must be the same on each engine.
    var state: [UInt64] {
        let flags = withExtendedLifetime(system.cpu) { system.v.rflags }
        return (0..<16).map { register($0) } + [self[\.rip], flags, self[\.instructions]]
    }
}

@Suite("Counting instructions")
struct CountingTests {
    /// A loop with calls, stack, memory and flags; 301 rounds.
    private static let loop: [UInt8] = [
        0xB9, 0x2D, 0x01, 0x00, 0x00,  // mov ecx, 301
        0xBF, 0x00, 0x00, 0x04, 0x00,  // mov edi, data
        0x48, 0x01, 0xC8,  // again: add rax, rcx
        0x50,  // push rax
        0x89, 0x04, 0x8F,  // mov [rdi + rcx * 4], eax
        0xE8, 0x06, 0x00, 0x00, 0x00,  // call routine
        0x5A,  // pop rdx
        0xFF, 0xC9,  // dec ecx
        0x75, 0xEF,  // jnz again
        0xF4,  // hlt
        0xD3, 0xC2,  // routine: rol edx, cl
        0x11, 0xD3,  // adc ebx, edx
        0x9C, 0x5E,  // pushf; pop rsi
        0xC3,  // ret
    ]

    @Test("Both engines stop at every count that they are told, in the same state")
    func stops() throws {
        let guests = try [false, true].map { try CountedGuest(Self.loop, translates: $0) }
        var random: UInt64 = 1
        var limit: UInt64 = 0
        var exits: [VMExit] = []
        for _ in 0..<2000 {
            random = random &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
            limit += 1 + (random >> 60)
            exits = guests.map { guest in
                guest[\.instruction_limit] = limit
                return guest.run()
            }
            #expect(exits[0] == exits[1])
            #expect(guests[0].state == guests[1].state)
            if exits[0] != .interrupted { break }
            #expect(guests[0][\.instructions] == limit)
        }
        #expect(exits == [.halt, .halt])
        // Two before, twelve a round; HLT isn't counted.
        #expect(guests[0][\.instructions] == 2 + 301 * 12)
    }

    @Test("A repeated string instruction counts once, however it is cut into pieces; one that faults doesn't count")
    func strings() throws {
        let program: [UInt8] = [
            0xBF, 0x00, 0x00, 0x04, 0x00,  // mov edi, data
            0xB9, 0x45, 0x23, 0x01, 0x00,  // mov ecx, 0x12345
            0xF3, 0xAA,  // rep stosb
            0xBF, 0x00, 0x00, 0x04, 0x00,  // mov edi, data
            0xB9, 0x00, 0x20, 0x00, 0x00,  // mov ecx, 0x2000
            0xF3, 0xAE,  // repe scasb
            0x0F, 0x0B,  // ud2
        ]
        for translates in [false, true] {
            let guest = try CountedGuest(program, translates: translates)
            guest.system.put(0xF4, at: 0x8060, as: UInt8.self)
            #expect(guest.run() == .halt)
            #expect(guest[\.instructions] == 6)
            #expect(guest.register(1) == 0)
        }
    }

    @Test("With a virtual clock RDTSC asks the machine, at the exact count of instructions")
    func timeStamp() throws {
        // mov ecx, 5; again: nop; nop; rdtsc; nop; dec ecx; jnz again; hlt
        let program: [UInt8] = [
            0xB9, 0x05, 0x00, 0x00, 0x00, 0x90, 0x90, 0x0F, 0x31, 0x90, 0xFF, 0xC9, 0x75, 0xF7, 0xF4,
        ]
        for translates in [false, true] {
            let guest = try CountedGuest(program, translates: translates)
            guest[\.virtual_clock] = 1
            var counts: [UInt64] = []
            for _ in 0..<5 {
                #expect(guest.run() == .readMSR(0x10))
                counts.append(guest[\.instructions])
                guest.complete(0x1_0000_0002)
            }
            #expect(guest.run() == .halt)
            #expect(counts == [3, 9, 15, 21, 27])
            #expect(guest.register(0) == 2 && guest.register(2) == 1)
        }
    }

    @Test("No interrupt comes between STI and the instruction that follows, whichever engine runs")
    func shadow() throws {
        // cli; sti; nop; nop; jmp to the start
        let program: [UInt8] = [0xFA, 0xFB, 0x90, 0x90, 0xEB, 0xFA]
        for translates in [false, true] {
            let guest = try CountedGuest(program, translates: translates)
            for limit in 1...200 as ClosedRange<UInt64> {
                guest[\.instruction_limit] = limit
                #expect(guest.run() == .interrupted)
                #expect(guest[\.instructions] == limit)
                #expect((guest[\.interrupt_shadow] != 0) == (limit % 5 == 2), "at \(limit)")
            }
        }
    }
}
