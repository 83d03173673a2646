// The run loop with an engine that plays a script: exits are answered, interrupts injected, halts waited for.
import CHost
import CPU
import DeviceModel
import Foundation
import GuestMemory
import Machine
import MachineTesting
import Testing

/// Returns exits from a list, then asks the power-management block to switch off.
final class ScriptedEngine: Engine {
    var script: [VMExit]
    var answers: [UInt64] = []
    var refusals = 0
    var injected: [UInt8] = []
    var interruptible = true
    var onRun: ((Int) -> Void)?
    private var step = 0

    init(_ script: [VMExit]) { self.script = script }

    func run() -> VMExit {
        onRun?(step)
        defer { step += 1 }
        return step < script.count ? script[step] : .portWrite(port: 0x604, size: 2, value: 0x3400)
    }
    func complete(_ value: UInt64) { answers.append(value) }
    func completeWithGeneralProtection() { refusals += 1 }
    var canTakeInterrupt: Bool { interruptible }
    func report(to statistics: inout RunStatistics) {}
    func inject(vector: UInt8) -> Bool {
        injected.append(vector)
        return true
    }
}

@Suite("Run loop")
struct ProcessorTests {
    let memory: GuestMemory
    let processor: Processor
    let board: Board

    init() throws {
        memory = try GuestMemory(size: 1 << 20)
        let door = try HostDoor()
        processor = Processor(memory: memory, door: door, trace: [])
        var configuration = MachineConfiguration(boot: BootSource(kernel: ""))
        configuration.networks = []
        configuration.debugExitPort = 0xF4
        board = Board(
            configuration, memory: memory, door: door, power: processor, tscFrequency: processor.tscFrequency,
            output: { _ in })
        processor.vcpu.rflags = 0x202
    }

    func run(_ engine: ScriptedEngine) -> MachineOutcome {
        processor.connect(engine: engine, board: board)
        return processor.run()
    }

    @Test("Reads are answered from the bus, absent devices with ones; S5 ends the run")
    func reads() {
        let engine = ScriptedEngine([
            .portRead(port: 0xE9, size: 1), .portRead(port: 0x1234, size: 2), .mmioRead(address: 0xFEE0_0030, size: 4),
            .mmioRead(address: 0xD000_0000, size: 8),
        ])
        #expect(run(engine) == .poweredOff)
        #expect(engine.answers.prefix(2) == [0xE9, 0xFFFF])
        #expect(engine.answers[2] & 0xFF == 0x14)
        #expect(engine.answers[3] == .max)
        #expect(processor.statistics.exits["port read"] == 2)
    }

    @Test("Accesses are counted by place, however many places there are by no more than some thousand")
    func accesses() {
        let pages = (0..<5000).map { VMExit.mmioRead(address: 0xD000_0000 + UInt64($0) << 12, size: 4) }
        #expect(run(ScriptedEngine(pages + pages.prefix(2))) == .poweredOff)
        let accesses = processor.statistics.accesses
        #expect(accesses.count == 4097)
        #expect(accesses["memory 0xd0001000"] == 2)
        // The write that switches off is one more.
        #expect(accesses["elsewhere"] == 5000 - 4096 + 1)
    }

    @Test("MSRs: local APIC and clock answered, unknown ones refused")
    func modelSpecific() {
        let engine = ScriptedEngine([
            .readMSR(0x1B), .readMSR(0x800), .writeMSR(0x4B56_4D01, value: 0x1001), .readMSR(0x4B56_4D01),
            .readMSR(0xDEAD),
        ])
        #expect(run(engine) == .poweredOff)
        #expect(engine.answers[0] & 0xFFFF_F900 == 0xFEE0_0900)
        #expect(engine.answers[2] == 0x1001)
        #expect(engine.refusals == 2)
    }

    @Test("The debug-exit port ends the run with its status, 0xCF9 with a reset")
    func ends() {
        #expect(run(ScriptedEngine([.portWrite(port: 0xF4, size: 1, value: 0x10)])) == .debugExit(status: 0x21))
        #expect(
            run(
                ScriptedEngine([.portWrite(port: 0xCF9, size: 1, value: 2), .portWrite(port: 0xCF9, size: 1, value: 6)])
            )
                == .reset)
    }

    @Test("A halt ends when the local APIC's timer fires, and its vector is injected")
    func halt() {
        let engine = ScriptedEngine([
            .mmioWrite(address: 0xFEE0_00F0, size: 4, value: 0x1FF),
            .mmioWrite(address: 0xFEE0_03E0, size: 4, value: 0xB),
            .mmioWrite(address: 0xFEE0_0320, size: 4, value: 0x40),
            .mmioWrite(address: 0xFEE0_0380, size: 4, value: 5_000_000), .halt, .interrupted,
        ])
        #expect(run(engine) == .poweredOff)
        #expect(engine.injected == [0x40])
        #expect(processor.statistics.halted > 1_000_000)
    }

    @Test("While interrupts are off the engine is asked for a window")
    func window() {
        let engine = ScriptedEngine([
            .mmioWrite(address: 0xFEE0_00F0, size: 4, value: 0x1FF),
            .mmioWrite(address: 0xFEE0_0300, size: 4, value: 0x4_0051), .interrupted, .interruptWindow, .interrupted,
        ])
        engine.interruptible = false
        var windows: [UInt8] = []
        let state = processor.vcpu
        engine.onRun = { step in
            windows.append(state.s.pointee.interrupt_window)
            if step == 3 { engine.interruptible = true }
        }
        #expect(run(engine) == .poweredOff)
        #expect(engine.injected == [0x51])
        #expect(windows[2] == 1)
        #expect(windows[4] == 0)
    }

    @Test("A write of CR8 reaches the local APIC, one of its task priority reaches CR8")
    func taskPriority() {
        let engine = ScriptedEngine([
            .taskPriorityWrite(0x90), .mmioRead(address: 0xFEE0_0080, size: 4),
            .mmioWrite(address: 0xFEE0_0080, size: 4, value: 0x50),
        ])
        processor.vcpu.s.pointee.cr8 = 9
        #expect(run(engine) == .poweredOff)
        #expect(engine.answers[0] == 0x90)
        #expect(processor.vcpu.s.pointee.cr8 == 5)
    }

    @Test("A triple fault is reported with registers, disassembly and the last events")
    func tripleFault() throws {
        try memory.write([0x0F, 0x0B, 0xF4], at: GuestPhysicalAddress(0x8000))
        let state = processor.vcpu.s
        state.pointee.code_size = 8
        state.pointee.rip = 0x8000
        state.pointee.cr0 = 1
        let outcome = run(ScriptedEngine([.portRead(port: 0xE9, size: 1), .shutdown]))
        guard case .tripleFault(let report) = outcome else {
            Issue.record("\(outcome)")
            return
        }
        #expect(report.contains("ud2"))
        #expect(report.contains("rip 0000000000008000"))
        #expect(report.contains("in port 0xe9"))
        #expect(report.contains("shutdown"))
    }

    @Test("The end asked for from another thread comes even while the guest is halted for good")
    func ended() {
        processor.vcpu.rflags = 2
        let processor = processor
        Thread.detachNewThread {
            Thread.sleep(forTimeInterval: 0.05)
            processor.end()
        }
        #expect(run(ScriptedEngine([.halt])) == .ended)
    }
}
