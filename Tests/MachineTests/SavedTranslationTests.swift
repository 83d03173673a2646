// Translated code that comes with a snapshot: used where it fits, forgotten when the guest changes its code, and left alone
// where its file is anything but what was written. ROOST_FUZZ_SEED alters it elsewhere.
import Foundation
import Machine
import MachineTesting
import Testing

/// A guest that writes 4096 dots, changes the function that gives the character, writes 4096 pluses, and so on for ever.
private enum ChangingGuest {
    static let code: [UInt8] =
        [
            0xBC, 0x00, 0x00, 0x20, 0x00,  // mov esp, 0x200000
            0xBE, 0x00, 0x30, 0x10, 0x00,  // mov esi, 0x103000
            0x31, 0xDB,  // xor ebx, ebx
            0xC6, 0x06, 0xB0,  // function: mov al, '.'; ret
            0xC6, 0x46, 0x01, 0x2E,
            0xC6, 0x46, 0x02, 0xC3,
        ] + [
            0xFF, 0xD6,  // next: call esi
            0xE6, 0xE9,  // out 0xe9, al
            0x43,  // inc ebx
            0xF7, 0xC3, 0xFF, 0x0F, 0x00, 0x00,  // test ebx, 4095
            0x75, 0xF3,  // jnz next
            0x80, 0x76, 0x01, 0x05,  // xor byte [esi+1], '.' ^ '+'
            0xEB, 0xED,  // jmp next
        ]

    /// Whether what it wrote is right: runs of 4096, but for the first and the last.
    static func isRight(_ output: String) -> Bool {
        var runs: [(character: UInt8, count: Int)] = []
        for byte in output.utf8 {
            if runs.last?.character == byte { runs[runs.count - 1].count += 1 } else { runs.append((byte, 1)) }
        }
        return runs.allSatisfy { $0.character == 0x2E || $0.character == 0x2B }
            && runs.dropFirst().dropLast().allSatisfy { $0.count == 4096 } && (runs.first?.count ?? 0) <= 4096
    }
}

@Suite("Translated code in snapshots", .serialized)
final class SavedTranslationTests {
    private let folder = FileManager.default.temporaryDirectory.appendingPathComponent("roost-code-\(UUID())").path
    private var snapshot: String { folder + "/snapshot" }
    private var code: String { snapshot + "/translations-0" }
    private var configuration = MachineConfiguration(boot: BootSource(kernel: ""))

    /// Saves a machine with the guest in it.
    init() throws {
        try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: true)
        try Data(MultibootImage.make(ChangingGuest.code)).write(to: URL(fileURLWithPath: folder + "/kernel"))
        configuration = MachineConfiguration(boot: BootSource(kernel: folder + "/kernel"))
        configuration.engine = .translator
        configuration.memory = 16 << 20
        configuration.networks = []
        configuration.showsNotes = false
        let first = try CountingMachine(configuration, folder: folder)
        first.start()
        #expect(first.wait { $0.utf8.count > 5 * 4096 })
        try first.machine.saveSnapshot(to: snapshot)
        #expect(first.end() == .ended)
        #expect(ChangingGuest.isRight(first.output))
    }

    deinit { try? FileManager.default.removeItem(atPath: folder) }

    /// Lets the machine go on from the snapshot for a while; how much saved code it used.
    @discardableResult
    private func goOn() throws -> UInt64 {
        configuration.snapshot = try Snapshot(snapshot)
        let machine = try CountingMachine(configuration, folder: folder)
        machine.start()
        #expect(machine.wait { $0.utf8.count > 5 * 4096 })
        #expect(machine.end() == .ended)
        #expect(ChangingGuest.isRight(machine.output), "\(machine.output.prefix(100))")
        machine.removeConsole()
        return machine.machine.statistics.savedCodeBytes
    }

    @Test("It runs, and a function that the guest changes is what the guest made of it")
    func used() throws {
        #expect(try goOn() > 0)
        try FileManager.default.removeItem(atPath: code)
        #expect(try goOn() == 0)
    }

    @Test("A machine that began with saved code can be saved itself")
    func again() throws {
        configuration.snapshot = try Snapshot(snapshot)
        let second = try CountingMachine(configuration, folder: folder)
        second.start()
        #expect(second.wait { $0.utf8.count > 5 * 4096 })
        let bytes = second.machine.statistics.savedCodeBytes
        try FileManager.default.removeItem(atPath: snapshot)
        try second.machine.saveSnapshot(to: snapshot)
        #expect(second.end() == .ended)
        #expect(try goOn() > bytes)
    }

    @Test("A file that was altered, cut short or of other memory is not used")
    func altered() throws {
        let whole = try Data(contentsOf: URL(fileURLWithPath: code))
        let seed = ProcessInfo.processInfo.environment["ROOST_FUZZ_SEED"].flatMap { UInt64($0) } ?? 1
        var random = HostileNumbers(state: seed)
        for _ in 0..<40 {
            var bytes = whole
            // Half of the places are in the header.
            let limit = random.below(2) == 0 ? 104 : UInt64(bytes.count)
            bytes[Int(random.below(limit))] ^= 1 << UInt8(random.below(8))
            try bytes.write(to: URL(fileURLWithPath: code))
            #expect(try goOn() == 0)
        }
        for count in [0, 1, 103, 4095, 4096, whole.count / 2, whole.count - 1] {
            try whole.prefix(count).write(to: URL(fileURLWithPath: code))
            #expect(try goOn() == 0)
        }
        try (whole + Data(count: 4096)).write(to: URL(fileURLWithPath: code))
        #expect(try goOn() == 0)
        try whole.write(to: URL(fileURLWithPath: code))
        #expect(try goOn() > 0)
    }
}
