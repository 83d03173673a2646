// A snapshot holds memory as it was at one moment, however much the guest writes while it is taken, on every engine.
import Foundation
import Machine
import MachineTesting
import Testing

/// A guest that marks 64 MiB once, then counts for ever: each number goes into the first and the last word of 1024 pages, one
/// after the other, and is followed by a dot.
private enum CountingGuest {
    static let marked = 0x100_0000..<0x500_0000
    static let counted = 0x20_0000..<0x60_0000
    static let code: [UInt8] = [
        0xBF, 0x00, 0x00, 0x00, 0x01,  // mov edi, 0x1000000
        0x89, 0x3F,  // mark: mov [edi], edi
        0x81, 0xC7, 0x00, 0x10, 0x00, 0x00,  // add edi, 0x1000
        0x81, 0xFF, 0x00, 0x00, 0x00, 0x05,  // cmp edi, 0x5000000
        0x72, 0xF0,  // jb mark
        0x31, 0xC9,  // xor ecx, ecx
        0x41,  // next: inc ecx
        0xBF, 0x00, 0x00, 0x20, 0x00,  // mov edi, 0x200000
        0x89, 0x0F,  // page: mov [edi], ecx
        0x89, 0x8F, 0xFC, 0x0F, 0x00, 0x00,  // mov [edi+0xffc], ecx
        0x81, 0xC7, 0x00, 0x10, 0x00, 0x00,  // add edi, 0x1000
        0x81, 0xFF, 0x00, 0x00, 0x60, 0x00,  // cmp edi, 0x600000
        0x72, 0xEA,  // jb page
        0xB0, 0x2E, 0xE6, 0xE9,  // mov al, '.'; out 0xe9, al
        0xEB, 0xDE,  // jmp next
    ]
}

@Suite("The moment of a snapshot", .serialized)
final class SnapshotMomentTests {
    private let folder = FileManager.default.temporaryDirectory.appendingPathComponent("roost-moment-\(UUID())").path

    init() throws {
        try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: true)
        try Data(MultibootImage.make(CountingGuest.code)).write(to: URL(fileURLWithPath: folder + "/kernel"))
    }

    deinit { try? FileManager.default.removeItem(atPath: folder) }

    /// The machine, running; nil where the host has no hypervisor for it.
    private func start(_ engine: EngineKind, from snapshot: String? = nil) throws -> CountingMachine? {
        var configuration = MachineConfiguration(boot: BootSource(kernel: folder + "/kernel"))
        configuration.engine = engine
        configuration.memory = 96 << 20
        configuration.networks = []
        configuration.showsNotes = false
        configuration.snapshot = try snapshot.map { try Snapshot($0) }
        do {
            let machine = try CountingMachine(configuration, folder: folder)
            machine.start()
            return machine
        } catch let error as MachineError where error.code == .hypervisor && engine == .kvm {
            print("no snapshot under KVM here: \(error)")
            return nil
        }
    }

    @Test(
        "What it holds is of one moment; the guest goes on from there",
        arguments: [EngineKind.translator, .interpreter, .kvm])
    func moment(engine: EngineKind) throws {
        guard let first = try start(engine) else { return }
        #expect(first.wait(seconds: 60) { $0.utf8.count > 3 })
        let result = try first.machine.saveSnapshot(to: folder + "/snapshot")
        let dots = first.output.utf8.count
        #expect(first.wait { $0.utf8.count > dots + 3 })
        #expect(first.end() == .ended)

        let memory = try Data(contentsOf: URL(fileURLWithPath: folder + "/snapshot/memory"), options: .mappedIfSafe)
        func word(_ address: Int) -> Int {
            memory.withUnsafeBytes { Int($0.loadUnaligned(fromByteOffset: address, as: UInt32.self)) }
        }
        let numbers = stride(from: CountingGuest.counted.lowerBound, to: CountingGuest.counted.upperBound, by: 4096)
            .flatMap { [word($0), word($0 + 0xFFC)] }
        let steps = zip(numbers, numbers.dropFirst()).map { $0 - $1 }.filter { $0 != 0 }
        #expect(steps.isEmpty || steps == [1], "\(steps.prefix(20))")
        #expect((numbers.last ?? 0) > 0)
        #expect(
            stride(from: CountingGuest.marked.lowerBound, to: CountingGuest.marked.upperBound, by: 4096)
                .allSatisfy { word($0) == $0 })
        // 17 thousand pages hold something; those that are always being written are a thousand.
        #expect(result.bytes > 68 << 20)
        #expect(engine == .kvm ? result.pagesInPause < 4000 : result.pagesInPause == 0, "\(result.pagesInPause)")
        print("snapshot under \(engine): \(result.pagesInPause) pages in a pause of \(result.pause / 1000) us")

        for other in [EngineKind.translator, .kvm] {
            guard let second = try start(other, from: folder + "/snapshot") else { continue }
            #expect(second.wait { $0.utf8.count > 10 })
            #expect(second.end() == .ended)
        }
    }
}
