// A guest that does its worst to the board: ports, memory-mapped registers and MSRs at random, storms of interrupts.
import DeviceModel
import Devices
import Foundation
import GuestMemory
import Machine
import MachineTesting
import Testing

/// A reproducible source of numbers, half of them near the edges.
struct HostileNumbers {
    var state: UInt64

    mutating func next() -> UInt64 {
        state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
        return state ^ (state >> 29)
    }

    mutating func below(_ bound: UInt64) -> UInt64 { (next() >> 11) % bound }

    mutating func value() -> UInt64 {
        switch below(6) {
        case 0: 0
        case 1: .max
        case 2: 1 << below(64)
        case 3: below(256)
        default: next()
        }
    }

    mutating func size() -> Int { 1 << Int(below(3)) }
}

@Suite("A hostile guest")
struct HostileGuestTests {
    func makeBoard(disk: String) throws -> (Board, GuestMemory, ManualDoor, RecordingPower) {
        let memory = try GuestMemory(size: 4 << 20)
        let door = ManualDoor()
        let power = RecordingPower()
        var configuration = MachineConfiguration(boot: BootSource(kernel: ""))
        configuration.memory = 4 << 20
        configuration.hasTestDevice = true
        configuration.debugExitPort = 0xF4
        configuration.networks = []
        configuration.disks = [DiskConfiguration(path: disk)]
        let board = Board(
            configuration, memory: memory, door: door, power: power, tscFrequency: 2_000_000_000, output: { _ in })
        _ = try board.connect(configuration, door: door)
        try board.prepare()
        return (board, memory, door, power)
    }

    /// `ROOST_FUZZ_SEED`, or 0: where the seeds of a run begin.
    private static let firstSeed = UInt64(ProcessInfo.processInfo.environment["ROOST_FUZZ_SEED"] ?? "") ?? 0

    @Test("Ports, registers, configuration space and MSRs at random", arguments: (1...6).map { firstSeed &+ $0 })
    func everything(seed: UInt64) throws {
        let disk = try TemporaryFile([UInt8](repeating: 7, count: 65536))
        let (board, memory, door, power) = try makeBoard(disk: disk.path)
        _ = power
        var clock = KVMClock(memory: memory)
        var random = HostileNumbers(state: seed)
        let ports: [UInt64] = [
            0x20, 0xA0, 0x40, 0x43, 0x60, 0x64, 0x70, 0x71, 0x80, 0x92, 0xE9, 0xF4, 0x3F8, 0x4D0, 0x510, 0x514, 0x600,
            0xCF8, 0xCFC, 0xCF9, 0x2000, 0xE0, 0xE4, 0xC000,
        ]
        let regions: [UInt64] = [
            0xFEE0_0000, 0xFEC0_0000, 0xE000_0000, 0xE000_8000, 0xC000_0000, 0xC000_4000, 0xFF00_0000, 0xFFFF_FFF0,
        ]
        for step in 0..<20_000 {
            switch random.below(8) {
            case 0: _ = board.ports.read(random.below(0x1_0000), size: random.size())
            case 1: board.ports.write(random.below(0x1_0000), size: random.size(), value: random.value())
            case 2: _ = board.ports.read(ports[Int(random.below(24))] + random.below(8), size: random.size())
            case 3:
                board.ports.write(
                    ports[Int(random.below(24))] + random.below(8), size: random.size(), value: random.value())
            case 4:
                let address = regions[Int(random.below(8))] + random.below(0x1000)
                _ = board.mmio.read(address, size: random.size() * Int(1 + random.below(2)))
            case 5:
                let address = regions[Int(random.below(8))] + (random.below(0x1000) & ~3)
                board.mmio.write(address, size: 4, value: random.value())
            case 6:
                let number = UInt32(truncatingIfNeeded: random.below(4) == 0 ? 0x1B : 0x800 + random.below(0x40))
                _ = board.localAPIC.writeMSR(number, random.value())
                _ = board.localAPIC.readMSR(number)
                _ = clock.write(0x4B56_4D00 + UInt32(random.below(2)), random.value(), now: 1, wallTime: 2)
                clock.update(tsc: random.value(), now: random.value(), scale: ClockScale(frequency: 1_000_000))
            default:
                door.advance(by: random.below(200_000))
                for _ in 0..<random.below(4) { _ = board.localAPIC.acknowledge() }
            }
            if step % 5000 == 4999 {
                board.reset()
                try board.prepare()
            }
        }
    }

    @Test("Timers at their shortest period don't hang the board")
    func timerStorm() throws {
        let disk = try TemporaryFile([UInt8](repeating: 0, count: 4096))
        let (board, _, door, _) = try makeBoard(disk: disk.path)
        // 8254 channel 0, rate generator, divisor 1; RTC at 8192 Hz; local APIC periodic, count 1.
        board.ports.write(0x43, size: 1, value: 0x34)
        board.ports.write(0x40, size: 1, value: 1)
        board.ports.write(0x40, size: 1, value: 0)
        board.ports.write(0x70, size: 1, value: 0x0A)
        board.ports.write(0x71, size: 1, value: 0x23)
        board.ports.write(0x70, size: 1, value: 0x0B)
        board.ports.write(0x71, size: 1, value: 0x72)
        board.localAPIC.write(offset: 0x0F0, size: 4, value: 0x1FF)
        board.localAPIC.write(offset: 0x3E0, size: 4, value: 0xB)
        board.localAPIC.write(offset: 0x320, size: 4, value: 0x2_0040)
        board.localAPIC.write(offset: 0x380, size: 4, value: 1)
        let start = Date()
        door.advance(by: 100_000_000)
        #expect(Date().timeIntervalSince(start) < 5)
        #expect(board.localAPIC.hasDeliverableInterrupt)
    }
}
