// Snapshots whose files were cut short or altered, or that somebody made to do harm: refused with a reason, or found out
// when a page is used; never a trap. ROOST_FUZZ_SEED chooses others, ROOST_SNAPSHOT_DAMAGES how many.
import CHost
import Foundation
import GuestMemory
import HostOS
import Machine
import Storage
import MachineTesting
import Testing

/// A guest that fills 64 pages, and then looks for ever whether they are as it left them.
private enum WatchfulGuest {
    static let first: UInt64 = 0x20_0000
    static let end: UInt64 = 0x24_0000

    static let code: [UInt8] = [
        0xBF, 0x00, 0x00, 0x20, 0x00,  // mov edi, 0x200000
        0x89, 0x3F,  // fill: mov [edi], edi
        0x83, 0xC7, 0x04,  // add edi, 4
        0x81, 0xFF, 0x00, 0x00, 0x24, 0x00,  // cmp edi, 0x240000
        0x72, 0xF3,  // jb fill
        0xB0, 0x2E, 0xE6, 0xE9,  // pass: mov al, '.'; out 0xe9, al
        0xBF, 0x00, 0x00, 0x20, 0x00,  // mov edi, 0x200000
        0x39, 0x3F,  // check: cmp [edi], edi
        0x75, 0x0D,  // jne wrong
        0x83, 0xC7, 0x04,  // add edi, 4
        0x81, 0xFF, 0x00, 0x00, 0x24, 0x00,  // cmp edi, 0x240000
        0x72, 0xF1,  // jb check
        0xEB, 0xE6,  // jmp pass
        0xB0, 0x77, 0xE6, 0xF4, 0xF4, 0xEB, 0xFD,  // wrong: mov al, 0x77; out 0xf4, al; hlt
    ]

}

@Suite("Snapshots that are damaged, or made to do harm", .serialized)
final class DamagedSnapshotTests {
    private static let environment = ProcessInfo.processInfo.environment
    private static let firstSeed = environment["ROOST_FUZZ_SEED"].flatMap { UInt64($0) } ?? 1
    private static let count = environment["ROOST_SNAPSHOT_DAMAGES"].flatMap { Int($0) } ?? 200
    private static let small = ["snapshot.json", "state.json", "memory.sums", "checksums"]

    private let folder = FileManager.default.temporaryDirectory.appendingPathComponent("roost-damaged-\(UUID())").path
    private var snapshot: String { folder + "/snapshot" }
    private var configuration = MachineConfiguration(boot: BootSource(kernel: ""))

    /// Saves a machine with the guest in it.
    init() throws {
        try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: true)
        try Data(MultibootImage.make(WatchfulGuest.code)).write(to: URL(fileURLWithPath: folder + "/kernel"))
        try Data(count: 1 << 16).write(to: URL(fileURLWithPath: folder + "/disk"))
        configuration = MachineConfiguration(boot: BootSource(kernel: folder + "/kernel"))
        configuration.engine = .translator
        configuration.memory = 16 << 20
        configuration.networks = []
        configuration.showsNotes = false
        configuration.debugExitPort = 0xF4
        configuration.disks = [DiskConfiguration(path: folder + "/disk", options: DiskOptions(isReadOnly: true))]
        let first = try CountingMachine(configuration, folder: folder)
        first.start()
        #expect(first.wait { $0.contains("..") })
        try first.machine.saveSnapshot(to: snapshot)
        #expect(first.end() == .ended)
    }

    deinit { try? FileManager.default.removeItem(atPath: folder) }

    /// What came of a snapshot.
    private enum Verdict: Equatable {
        case refused(String)
        case ended(MachineOutcome)
        /// The guest has looked at all of its pages.
        case ran
        /// It went on, but not to the end of a pass.
        case wentOn
    }

    private func use(_ folder: String, seconds: Double = 20) -> Verdict {
        var configuration = configuration
        let machine: CountingMachine
        do {
            configuration.snapshot = try Snapshot(folder)
            machine = try CountingMachine(configuration, folder: self.folder)
        } catch {
            return .refused("\(error)")
        }
        machine.start()
        let isThrough = machine.wait(seconds: seconds) { $0.contains("..") }
        let outcome = machine.end()
        machine.removeConsole()
        if let outcome, outcome != .ended { return .ended(outcome) }
        return isThrough ? .ran : .wentOn
    }

    private func bytes(_ name: String) throws -> [UInt8] {
        [UInt8](try Data(contentsOf: URL(fileURLWithPath: snapshot + "/" + name)))
    }

    private func put(_ bytes: [UInt8], _ name: String) throws {
        try Data(bytes).write(to: URL(fileURLWithPath: snapshot + "/" + name))
    }

    /// Writes the file of checksums that belongs to the others as they are.
    private func putChecksums() throws {
        var text = "roost checksums 1\n"
        for name in Self.small.dropLast() {
            let sum = try bytes(name).withUnsafeBytes { roost_crc32c(0, $0.baseAddress!, $0.count) }
            text += String(format: "%08x %@\n", sum, name)
        }
        try put(Array(text.utf8), "checksums")
    }

    @Test("A snapshot goes on, and its guest finds its memory as it was")
    func whole() throws {
        #expect(use(snapshot) == .ran)
        try putChecksums()
        #expect(use(snapshot) == .ran)
    }

    @Test("Small files that are cut short, longer or altered are refused with a reason")
    func smallFiles() throws {
        for number in 0..<Self.count {
            var random = HostileNumbers(state: Self.firstSeed &+ UInt64(number) &* 977)
            let name = Self.small[Int(random.below(4))]
            let whole = try bytes(name)
            var changed = whole
            let place = Int(random.below(UInt64(changed.count)))
            switch random.below(4) {
            case 0: changed.removeSubrange(place...)
            case 1: changed.insert(UInt8(random.below(256)), at: place)
            default: changed[place] ^= UInt8(1 + random.below(255))
            }
            try put(changed, name)
            guard case .refused(let reason) = use(snapshot) else {
                Issue.record("\(name) altered at \(place), seed \(Self.firstSeed), number \(number): not refused")
                break
            }
            #expect(reason.contains("snapshot"), "\(reason)")
            try put(whole, name)
        }
    }

    @Test("Memory that is cut short is refused; a page that is altered is found out when it is used")
    func memory() throws {
        let whole = try bytes("memory")
        var found = 0
        for number in 0..<Self.count {
            var random = HostileNumbers(state: Self.firstSeed &+ UInt64(number) &* 1009)
            if random.below(8) == 0 {
                try put(Array(whole.prefix(Int(random.below(UInt64(whole.count))))), "memory")
                guard case .refused(let reason) = use(snapshot) else {
                    Issue.record("cut short, number \(number): not refused")
                    break
                }
                #expect(reason.contains("bytes"), "\(reason)")
                try put(whole, "memory")
                continue
            }
            let isWatched = random.below(2) == 0
            let place =
                isWatched
                ? Int(WatchfulGuest.first + random.below(WatchfulGuest.end - WatchfulGuest.first))
                : Int(random.below(UInt64(whole.count)))
            try alter(place, to: whole[place] ^ UInt8(1 + random.below(255)))
            switch use(snapshot) {
            case .ended(.failed(let reason)):
                #expect(reason.contains("damaged at offset 0x"), "\(reason)")
                found += 1
            case .ran where !isWatched: break
            case let other: Issue.record("memory altered at \(place), number \(number): \(other)")
            }
            try alter(place, to: whole[place])
        }
        #expect(found > Self.count / 4)
    }

    private func alter(_ place: Int, to byte: UInt8) throws {
        let handle = try FileHandle(forWritingTo: URL(fileURLWithPath: snapshot + "/memory"))
        try handle.seek(toOffset: UInt64(place))
        try handle.write(contentsOf: [byte])
        try handle.close()
    }

    @Test("Files of a newer version are refused by their version")
    func newer() throws {
        for (name, old, new) in [
            ("snapshot.json", "\"version\" : 1", "\"version\" : 2"), ("state.json", "\"version\":1", "\"version\":2"),
        ] {
            let whole = try bytes(name)
            let text = String(decoding: whole, as: UTF8.self).replacingOccurrences(of: old, with: new)
            try put(Array(text.utf8), name)
            try putChecksums()
            guard case .refused(let reason) = use(snapshot) else {
                Issue.record("\(name): not refused")
                return
            }
            #expect(reason.contains("version 2"), "\(reason)")
            try put(whole, name)
        }
    }

    @Test("A state that somebody made up is refused, or the machine runs on it, as a guest would that did its worst")
    func hostileState() throws {
        let whole = String(decoding: try bytes("state.json"), as: UTF8.self)
        let numbers = whole.ranges(of: /-?[0-9]+(\.[0-9]+)?/).filter { range in
            let before = range.lowerBound > whole.startIndex ? whole[whole.index(before: range.lowerBound)] : " "
            return ":,[".contains(before)
        }
        #expect(numbers.count > 100)
        var refused = 0
        for number in 0..<Self.count {
            var random = HostileNumbers(state: Self.firstSeed &+ UInt64(number) &* 1013)
            var text = whole
            // From the end, so that the other ranges stay.
            let chosen = (0...random.below(3)).map { _ in numbers[Int(random.below(UInt64(numbers.count)))] }
            for range in Set(chosen).sorted(by: { $0.lowerBound > $1.lowerBound }) {
                text.replaceSubrange(range, with: Self.madeUp(text[range], &random))
            }
            try put(Array(text.utf8), "state.json")
            try putChecksums()
            if Self.environment["ROOST_FUZZ"] != nil {
                print("hostile state \(number): \(chosen.map { context($0, whole) })")
            }
            if case .refused(let reason) = use(snapshot, seconds: 0.1) {
                #expect(reason.contains("state"), "\(reason)")
                refused += 1
            }
        }
        #expect(refused > 0 && refused < Self.count)
    }

    private static func madeUp(_ number: Substring, _ random: inout HostileNumbers) -> String {
        switch random.below(6) {
        case 0: "-1"
        case 1: "\(UInt32.max)"
        case 2: "\(UInt64.max)"
        case 3: "\(Int64.max)"
        case 4: "\((UInt64(number) ?? 0) ^ 1 << random.below(16))"
        default: "\(random.value())"
        }
    }

    private func context(_ range: Range<String.Index>, _ text: String) -> Substring {
        let start = text.index(range.lowerBound, offsetBy: -60, limitedBy: text.startIndex) ?? text.startIndex
        return text[start..<range.upperBound]
    }

    @Test("No snapshot is made of memory that is damaged")
    func saveDamaged() throws {
        // The boot information lies below 1 MiB, where the guest never looks.
        let whole = try bytes("memory")
        let place = try #require(whole[..<0xA0000].firstIndex { $0 != 0 })
        try alter(place, to: whole[place] ^ 0xFF)
        var configuration = configuration
        configuration.snapshot = try Snapshot(snapshot)
        let machine = try CountingMachine(configuration, folder: folder)
        machine.start()
        #expect(machine.wait { $0.contains("..") })
        #expect(throws: MachineError.self) { try machine.machine.saveSnapshot(to: folder + "/second") }
        #expect(!FileManager.default.fileExists(atPath: folder + "/second"))
        guard case .failed = machine.end() else {
            Issue.record("the machine ran on")
            return
        }
    }

    @Test("An engine that looks at memory by itself gets all of it, or the reason why not")
    func restoreWhole() throws {
        let memory = try GuestMemory(size: 4 << 20)
        for page in 0..<UInt64(100) {
            try memory.write([1, UInt8(page), 3], at: GuestPhysicalAddress(page << 12 | page))
        }
        let path = folder + "/pages"
        let file = try FileDescriptor.open(path, 0o2 | 0o100)
        try file.setByteCount(4 << 20)
        let capture = try memory.beginCapture(to: file)
        capture.saveRest(of: memory)
        memory.endCapture(capture)
        let copy = try GuestMemory(size: 4 << 20)
        try copy.restoreWhole(from: try SavedMemory(file: file, sums: capture.sums))
        #expect(try copy.read(GuestPhysicalAddress(99 << 12 | 99), length: 4) == [1, 99, 3, 0])
        try file.write([1], at: 50 << 12)
        #expect(throws: SavedMemoryError("the saved memory is damaged at offset 0x32000")) {
            try GuestMemory(size: 4 << 20).restoreWhole(from: try SavedMemory(file: file, sums: capture.sums))
        }
        #expect(throws: SavedMemoryError.self) {
            try GuestMemory(size: 8 << 20).restoreWhole(from: try SavedMemory(file: file, sums: capture.sums))
        }
        try file.setByteCount(3 << 20)
        #expect(throws: SavedMemoryError.self) { try SavedMemory(file: file, sums: capture.sums) }
    }
}

extension DamagedSnapshotTests {
    @Test("A machine that has ended, or that could not be made, is gone with its memory")
    func gone() throws {
        // Other suites have machines at the same time, but none of this size.
        let size = 19 << 20
        configuration.memory = UInt64(size)
        let other = folder + "/other"
        for round in 0..<3 {
            let machine = try CountingMachine(configuration, folder: folder)
            machine.start()
            #expect(machine.wait { $0.contains(".") })
            if round == 0 { try machine.machine.saveSnapshot(to: other) }
            #expect(isSoon { Self.guestsMapped(size) > 0 })
            #expect(machine.end() == .ended)
            configuration.snapshot = try Snapshot(other)
        }
        #expect(isSoon { Self.guestsMapped(size) == 0 }, "after they have run")
        try Data(count: 1).write(to: URL(fileURLWithPath: other + "/memory"))
        #expect(throws: (any Error).self) { try CountingMachine(configuration, folder: folder) }
        configuration.snapshot = nil
        configuration.boot = BootSource(kernel: folder + "/disk")
        #expect(throws: (any Error).self) { try CountingMachine(configuration, folder: folder) }
        #expect(isSoon { Self.guestsMapped(size) == 0 }, "after they could not be made")
    }

    /// How many guests' memories of so many bytes this process has mapped.
    private static func guestsMapped(_ size: Int) -> Int {
        let maps = (try? String(contentsOfFile: "/proc/self/maps", encoding: .utf8)) ?? ""
        // Of each file: pages that are still to be restored, or to be saved, split a mapping.
        var mapped: [Substring: Int] = [:]
        for line in maps.split(separator: "\n") where line.contains("guest-ram") {
            let words = line.split(separator: " ")
            let ends = words[0].split(separator: "-").compactMap { Int($0, radix: 16) }
            if words.count > 4 && ends.count == 2 { mapped[words[4], default: 0] += ends[1] - ends[0] }
        }
        return mapped.values.count { $0 == size }
    }

    /// The thread that ran a machine may still be letting go of it.
    private func isSoon(_ condition: () -> Bool) -> Bool {
        for _ in 0..<500 where !condition() { Thread.sleep(forTimeInterval: 0.01) }
        return condition()
    }
}
