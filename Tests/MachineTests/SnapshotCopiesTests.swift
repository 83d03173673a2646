// What machines that go on from the same snapshot have of their own, and what they must not: random numbers, time.
import Foundation
import Machine
import MachineTesting
import Testing

/// Prints characters that RDRAND gives, or that bits 20 to 25 of RDTSC do, for ever.
private enum PrintingGuest {
    /// loop: rdrand eax; and al, 0x3f; add al, 0x30; out 0xe9, al; mov ecx, 2000; wait: loop wait; jmp loop
    static let random: [UInt8] = [
        0x0F, 0xC7, 0xF0, 0x24, 0x3F, 0x04, 0x30, 0xE6, 0xE9, 0xB9, 0xD0, 0x07, 0x00, 0x00, 0xE2, 0xFE, 0xEB, 0xEE,
    ]
    /// loop: rdtsc; shr eax, 20; then the same
    static let time: [UInt8] = [
        0x0F, 0x31, 0xC1, 0xE8, 0x14, 0x24, 0x3F, 0x04, 0x30, 0xE6, 0xE9, 0xB9, 0xD0, 0x07, 0x00, 0x00, 0xE2, 0xFE,
        0xEB, 0xEC,
    ]
}

@Suite("Copies of a snapshot", .serialized)
final class SnapshotCopiesTests {
    private let folder = FileManager.default.temporaryDirectory.appendingPathComponent("roost-copies-\(UUID())").path

    init() throws { try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: true) }

    deinit { try? FileManager.default.removeItem(atPath: folder) }

    private func machine(_ code: [UInt8], _ clock: ClockKind, from snapshot: String? = nil) throws -> CountingMachine {
        try Data(MultibootImage.make(code)).write(to: URL(fileURLWithPath: folder + "/kernel"))
        var configuration = MachineConfiguration(boot: BootSource(kernel: folder + "/kernel"))
        configuration.engine = .translator
        configuration.clock = clock
        configuration.memory = 32 << 20
        configuration.networks = []
        configuration.sockets = nil
        configuration.showsNotes = false
        configuration.snapshot = try snapshot.map { try Snapshot($0) }
        return try CountingMachine(configuration, folder: folder)
    }

    private func output(_ code: [UInt8], _ clock: ClockKind, from snapshot: String) throws -> Substring {
        let copy = try machine(code, clock, from: snapshot)
        copy.start()
        #expect(copy.wait { $0.utf8.count > 100 })
        #expect(copy.end() == .ended)
        return copy.output.prefix(100)
    }

    @Test("Random numbers of machines that go on from the same snapshot differ")
    func random() throws {
        let first = try machine(PrintingGuest.random, .host)
        first.start()
        #expect(first.wait { $0.utf8.count > 10 })
        _ = try first.machine.saveSnapshot(to: folder + "/snapshot")
        #expect(first.end() == .ended)
        let outputs = try (0..<2).map { _ in try output(PrintingGuest.random, .host, from: folder + "/snapshot") }
        #expect(outputs[0] != outputs[1])
    }

    @Test("Virtual time goes on from where it was saved, the same in each copy")
    func time() throws {
        let first = try machine(PrintingGuest.time, .virtual)
        first.start()
        #expect(first.wait { $0.utf8.count > 2000 })
        try first.machine.pause()
        let before = first.machine.time
        _ = try first.machine.saveSnapshot(to: folder + "/snapshot")
        #expect(first.end() == .ended)
        #expect(before > 1_000_000)
        let copy = try machine(PrintingGuest.time, .virtual, from: folder + "/snapshot")
        #expect(copy.machine.time == before)
        let outputs = try (0..<2).map { _ in try output(PrintingGuest.time, .virtual, from: folder + "/snapshot") }
        #expect(outputs[0] == outputs[1])
    }
}
