// Suites of short programs in machine code, each run on every engine.
import CHost
import CPU
import GuestMemory

/// What runs a program.
enum TestedEngine: CaseIterable {
    case interpreter, translator, translatorAtOnce, lockstep
}

/// What suites of programs have in common.
protocol ProgramSuite {}

extension ProgramSuite {
    typealias Engine = TestedEngine

    static var all: [(TestedEngine, ProgramMode)] {
        TestedEngine.allCases.flatMap { engine in
            [ProgramMode.user64, .absolute64].map { (engine, $0) }
        }
    }

    /// A machine with code at some offsets, and its engine.
    func make(
        _ engine: Engine, _ mode: ProgramMode, _ code: [Int: [UInt8]]
    ) throws -> (machine: ProgramMachine, engine: any ProgramEngine) {
        let machine = try ProgramMachine(mode: mode)
        var bytes = [UInt8](repeating: 0xCC, count: 0x8000)
        for (offset, part) in code { bytes.replaceSubrange(offset..<offset + part.count, with: part) }
        machine.load(bytes, copy: bytes)
        machine.start(limit: ~0)
        var settings = Translator.Settings()
        settings.codeCache = 1 << 20
        if engine == .translatorAtOnce { settings.heat = 0 }
        let made: any ProgramEngine =
            switch engine {
            case .interpreter: Interpreter(cpu: machine.cpu, memory: machine.memory)
            case .lockstep: try LockstepEngine(cpu: machine.cpu, memory: machine.memory, codeCache: 1 << 20)
            default: try Translator(cpu: machine.cpu, memory: machine.memory, settings: settings)
            }
        return (machine, made)
    }

    /// Runs to the next INT3; RAX there.
    func run(_ made: (machine: ProgramMachine, engine: any ProgramEngine)) -> UInt64? {
        while true {
            switch made.engine.run() {
            case .interrupted: continue
            case .halt:
                let event = made.machine.event()
                if event.vector != 3 { return nil }
                made.machine.resume(at: event.rip, stack: event.gpr[4], rflags: event.rflags)
                return event.gpr[0]
            default: return nil
            }
        }
    }

    func immediate(_ value: UInt64, _ width: Int = 8) -> [UInt8] {
        (0..<width).map { UInt8(truncatingIfNeeded: value >> ($0 * 8)) }
    }

    /// MOV RDI, address.
    func pointer(_ address: UInt64) -> [UInt8] { [0x48, 0xBF] + immediate(address) }

    /// Runs to the next exception or trap.
    func event(_ made: (machine: ProgramMachine, engine: any ProgramEngine)) -> ProgramEvent? {
        while true {
            switch made.engine.run() {
            case .interrupted: continue
            case .halt: return made.machine.event()
            default: return nil
            }
        }
    }
}
