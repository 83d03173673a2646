// Random programs on the interpreter and on the translator: every exception, the registers there, and memory at the end.
import CHost
import CPU
import Foundation
import GuestMemory
import Synchronization
import Testing

/// What a run left.
struct ProgramResult {
    var events: [ProgramEvent] = []
    var memory: [UInt8] = []
    var problem: String?
}

/// Runs a program to its end on one engine.
final class ProgramRunner {
    private let machine: ProgramMachine
    private let program: Program
    private let engine: any ProgramEngine
    private var random: SeededGenerator
    private let limit: UInt32
    private var steps = 0
    private var swapped = [Bool](repeating: false, count: 8)
    private static let maximumEvents = 20_000

    init(
        seed: UInt64, program: Program, machine: ProgramMachine, engine: any ProgramEngine
    ) {
        self.machine = machine
        self.program = program
        self.engine = engine
        random = SeededGenerator(state: seed ^ 0xABCD)
        machine.load(program.code, copy: program.copy)
        let isLimited = !machine.mode.is64 && seed % 4 == 3
        limit = isLimited ? UInt32(truncatingIfNeeded: machine.mode.code) + UInt32(random.below(0x6000)) : ~0
        for n in 0..<16 where n != 4 {
            machine.cpu.vcpu.gpr[n] = machine.mode.is64 ? random.next() : n < 8 ? random.next() & 0xFFFF_FFFF : 0
        }
        machine.touch(offset: random.below(0x5000))
        machine.start(limit: limit)
    }

    /// `interrupts`: they come at any time, from another thread.
    func run(interrupts: Bool = false) -> ProgramResult {
        let stops = Flag()
        if interrupts { bother(stops) }
        defer { stops.value.store(true, ordering: .relaxed) }
        var result = ProgramResult()
        while result.events.count < Self.maximumEvents {
            let exit = engine.run()
            switch exit {
            case .interrupted:
                if interrupts && engine.canTakeInterrupt { _ = engine.inject(vector: ProgramMachine.interruptVector) }
            case .halt:
                let event = machine.event()
                result.events.append(event)
                if !goOn(after: event) { return finish(&result) }
            default:
                let rip = machine.cpu.state.pointee.rip
                let offset = Int(truncatingIfNeeded: rip &- machine.mode.code)
                let start = max(offset - 32, 0)
                let bytes =
                    start + 48 < program.code.count
                    ? program.code[start..<start + 48].map { String($0, radix: 16) } : []
                result.problem = "exit \(exit) at \(String(rip, radix: 16)): \(bytes.joined(separator: " "))"
                if let difference = (engine as? LockstepEngine)?.difference {
                    result.problem? += "\n\(difference.words)\n\(difference.bytes)\n\(difference.guestCode)"
                }
                if let path = ProcessInfo.processInfo.environment["ROOST_FUZZ_DUMP"] {
                    try? Data(program.code).write(to: URL(fileURLWithPath: path))
                }
                return finish(&result)
            }
        }
        result.problem = "no end"
        return finish(&result)
    }

    private func finish(_ result: inout ProgramResult) -> ProgramResult {
        result.memory = Array(
            UnsafeBufferPointer(start: machine.memory.base, count: Int(machine.memory.ramSize)))
        // The stack of handlers, where interrupts leave their frames.
        for n in Int(ProgramMachine.kernelStack)..<Int(ProgramMachine.kernelStack) + 0x1000 { result.memory[n] = 0 }
        return result
    }

    /// After an exception: the next fragment; after a trap: where it was. False: the end.
    private func goOn(after event: ProgramEvent) -> Bool {
        let code = machine.mode.code
        guard event.rip >= code, event.rip < code + ProgramMachine.codePages * 4096 else { return false }
        let offset = Int(event.rip - code)
        if event.vector == 3 && offset == program.end + 1 { return false }
        if event.rip > UInt64(limit) && limit != ~0 { return false }
        var rip = event.rip
        // Flags that nothing reads before they are written again may be anything at a fault.
        var rflags = event.rflags & ~(isFault(event) ? 0x8D5 : 0) | 0x200
        switch event.vector {
        case 1:
            steps += 1
            if steps % 7 == 0 { rflags &= ~0x100 }
        case 3: work()
        default:
            guard let next = program.boundary(after: offset) else { return false }
            rip = code + UInt64(next)
        }
        machine.resume(at: rip, stack: event.gpr[4], rflags: rflags, limit: limit)
        return true
    }

    private func isFault(_ event: ProgramEvent) -> Bool { event.vector != 1 && event.vector != 3 }

    /// What a kernel or a device may do at a breakpoint.
    private func work() {
        let page = random.below(5)
        switch random.below(6) {
        case 0:
            // A device writes into code.
            let site = program.sites[Int(random.below(UInt64(program.sites.count)))]
            for n in 2..<6 {
                let offset = UInt64(site + n)
                let address = ProgramMachine.codePhysical(offset >> 12) + offset & 4095
                try? machine.memory.write([UInt8(truncatingIfNeeded: random.next())], at: GuestPhysicalAddress(address))
            }
        case 1 where !machine.mode.isKernel:
            swapped[Int(page)].toggle()
            let entry = ProgramMachine.entry(of: page, machine.mode) - Place.kernel
            machine.put(entry, ProgramMachine.codePhysical(page, copy: swapped[Int(page)]) | 0x27)
            machine.cpu.vcpu.flushPage(machine.mode.code + page << 12)
        case 2: machine.cpu.vcpu.newAddressSpace()
        default: break
        }
    }

    private final class Flag: Sendable { let value = Atomic(false) }

    private func bother(_ stops: Flag) {
        let cpu = machine.cpu
        Thread.detachNewThread {
            while !stops.value.load(ordering: .relaxed) {
                roost_attention_set(cpu.state, ROOST_ATTENTION_INTERRUPT)
                usleep(30)
            }
        }
    }
}

@Suite(.serialized) struct ProgramFuzzTests {
    static var environment: [String: String] { ProcessInfo.processInfo.environment }
    static var seed: UInt64 { environment["ROOST_FUZZ_SEED"].flatMap(UInt64.init) ?? 1 }
    static var count: UInt64 {
        environment["ROOST_FUZZ_PROGRAMS"].flatMap(UInt64.init) ?? (environment["ROOST_FUZZ"] != nil ? 400 : 6)
    }

    enum Variant: CaseIterable {
        case plain, early, exact, interrupted, lockstep
        /// Whether dead flags are as the interpreter has them.
        var isExact: Bool { self == .exact || self == .lockstep }
    }

    private func engine(_ variant: Variant?, _ machine: ProgramMachine) throws -> any ProgramEngine {
        guard let variant else { return Interpreter(cpu: machine.cpu, memory: machine.memory) }
        if variant == .lockstep {
            return try LockstepEngine(cpu: machine.cpu, memory: machine.memory, codeCache: 1 << 20)
        }
        var settings = Translator.Settings()
        settings.codeCache = 1 << 20
        if variant != .plain { settings.heat = 0 }
        settings.exactFlags = variant == .exact
        return try Translator(cpu: machine.cpu, memory: machine.memory, settings: settings)
    }

    private func run(_ seed: UInt64, _ mode: ProgramMode, _ variant: Variant?) throws -> ProgramResult {
        var writer = ProgramWriter(seed: seed, mode: mode)
        let program = writer.write()
        let machine = try ProgramMachine(mode: mode)
        let runner = ProgramRunner(
            seed: seed, program: program, machine: machine, engine: try engine(variant, machine))
        return runner.run(interrupts: variant == .interrupted)
    }

    @Test(arguments: ProgramMode.allCases)
    func `Random programs do the same on every engine`(mode: ProgramMode) throws {
        var events = 0
        for seed in Self.seed..<Self.seed + Self.count {
            let expected = try run(seed, mode, nil)
            events += expected.events.count
            #expect(expected.problem == nil, "seed \(seed): \(expected.problem ?? "")")
            // An interrupt's return takes CS anew from the descriptor, which has no such limit.
            let isLimited = mode == .user32 && seed % 4 == 3
            for variant in Variant.allCases where !isLimited || variant != .interrupted {
                let got = try run(seed, mode, variant)
                if let difference = difference(expected, got, exact: variant.isExact) {
                    Issue.record("\(mode) seed \(seed) \(variant): \(difference)")
                    return
                }
            }
        }
        print("programs: \(mode), \(Self.count) programs, \(events) events")
        #expect(events > 100)
    }

    private func difference(_ expected: ProgramResult, _ got: ProgramResult, exact: Bool) -> String? {
        for n in 0..<max(expected.events.count, got.events.count) {
            let a = n < expected.events.count ? expected.events[n] : nil
            let b = n < got.events.count ? got.events[n] : nil
            if a == b || (!exact && a?.withoutFaultFlags == b?.withoutFaultFlags) { continue }
            let before = n > 0 ? expected.events[n - 1].description : "none"
            return
                "event \(n):\n\(a?.description ?? "none")\ngot\n\(b?.description ?? "none"), \(got.problem ?? "")\nafter\n\(before)"
        }
        if expected.problem != got.problem { return "\(got.problem ?? "none"), expected \(expected.problem ?? "none")" }
        for n in 0..<expected.memory.count where expected.memory[n] != got.memory[n] {
            return "memory \(String(n, radix: 16)): \(expected.memory[n]), got \(got.memory[n])"
        }
        return nil
    }
}
