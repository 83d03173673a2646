// A process that is killed, and a host without room. ROOST_KILLS says how often to kill (20).
import Foundation
import Glibc
import Storage
import Testing

@Suite(.serialized) struct CrashTests {
    static let size = 8 << 20
    static var kills: Int { ProcessInfo.processInfo.environment["ROOST_KILLS"].flatMap { Int($0) } ?? 20 }

    /// Writes for ever; the number of the operation, and of those that a flush has made durable, go to a file.
    static func load(_ path: String, _ journal: String, _ seed: UInt64) throws {
        let image = try openDisk(path)
        let log = open(journal, O_RDWR | O_CREAT, 0o600)
        var (random, model) = (Seeded(seed), Model(count: size))
        var counts: [UInt64] = [0, 0]
        while true {
            counts[0] += 1
            pwrite(log, counts, 16, 0)
            try model.operate(image, &random)
            guard counts[0] % 7 == 0 else { continue }
            try image.flush()
            counts[1] = counts[0]
            pwrite(log, counts, 16, 0)
        }
    }

    @Test func `killed at any moment, an image is sound and holds what was flushed`() async throws {
        for round in 0..<Self.kills {
            let folder = try Folder(inMemory: true)
            let (path, journal) = (folder.file("disk.qcow2"), folder.file("journal"))
            var options = Qcow2Options()
            options.size = UInt64(Self.size)
            options.clusterSize = [512, 4096, 65536][round % 3]
            do { try Qcow2Image.create(path, options) }
            // A chain and snapshots too: their clusters are copied before they are written.
            if round % 4 == 3 { try QEMU.image("snapshot", "-c", "s", path) }
            let seed = UInt64(round) &+ 100
            await #expect(processExitsWith: .signal(SIGKILL)) {
                [path = path as String, journal = journal as String, seed = seed as UInt64] in
                Thread.detachNewThread {
                    while access(journal, F_OK) != 0 { usleep(100) }
                    var random = Seeded(seed)
                    usleep(UInt32.random(in: 0..<60_000, using: &random))
                    kill(getpid(), SIGKILL)
                }
                try CrashTests.load(path, journal, seed)
            }
            #expect(try QEMU.isSound(path, leaksAllowed: true), "round \(round)")
            try expectFlushed(path, journal, seed)
            // It goes on as if nothing had happened.
            let image = try #require(try openDisk(path) as? Qcow2Image)
            #expect(try image.check().corruptions == 0)
            #expect(try image.check(repairing: true).corruptions == 0)
            #expect(try image.check().leaks == 0)
        }
    }

    /// Repeats what was flushed in memory, and compares.
    private func expectFlushed(_ path: String, _ journal: String, _ seed: UInt64) throws {
        let log = [UInt8](try Data(contentsOf: URL(fileURLWithPath: journal)))
        let counts = log.withUnsafeBytes { Array($0.bindMemory(to: UInt64.self)) }
        guard counts.count == 2 else { return }
        let folder = try Folder()
        let scratch = folder.file("scratch.raw")
        try Disk.createRaw(scratch, size: UInt64(Self.size))
        let raw = try openDisk(scratch)
        var (random, model) = (Seeded(seed), Model(count: Self.size))
        for _ in 0..<counts[1] { try model.operate(raw, &random) }
        // What came after the flush may be there or not, each operation for itself.
        var states = [model]
        for _ in counts[1]..<counts[0] {
            try model.operate(raw, &random)
            states.append(model)
        }
        let image = try openDisk(path, DiskOptions(isReadOnly: true))
        let got = try image.read(at: 0, count: Self.size)
        let wrong = (0..<Self.size / 512).filter { sector in
            let range = sector * 512..<(sector + 1) * 512
            return !states.contains { $0.unknown.contains(sector) || $0.bytes[range] == got[range] }
        }
        #expect(wrong == [])
    }

    @Test func `a host without room gives the guest an error, and the image stays sound`() async throws {
        let folder = try Folder()
        let path = folder.file("disk.qcow2")
        var options = Qcow2Options()
        options.size = UInt64(Self.size)
        options.clusterSize = 4096
        do { try Qcow2Image.create(path, options) }
        await #expect(processExitsWith: .exitCode(42)) { [path = path as String] in
            let image = try openDisk(path)
            signal(SIGXFSZ, SIG_IGN)
            var limit = rlimit(rlim_cur: 2 << 20, rlim_max: rlim_t.max)
            setrlimit(__rlimit_resource_t(1), &limit)
            var (random, model, failures) = (Seeded(11), Model(count: CrashTests.size), 0)
            for _ in 0..<400 {
                var next = model
                do { try next.operate(image, &random) } catch {
                    failures += 1
                    // Any of it may have been written.
                    next = try Model(of: image)
                }
                model = next
                if Int.random(in: 0..<10, using: &random) == 0 { do { try image.flush() } catch { failures += 1 } }
            }
            // There is room again: nothing is lost.
            limit.rlim_cur = limit.rlim_max
            setrlimit(__rlimit_resource_t(1), &limit)
            try image.flush()
            guard failures > 10, try model.differences(image) == [] else { exit(1) }
            try image.write([UInt8](repeating: 1, count: 65536), at: 0)
            try image.flush()
            exit(42)
        }
        #expect(try QEMU.isSound(path, leaksAllowed: true))
    }
}

extension Model {
    /// What an image holds now.
    init(of image: any DiskImage) throws {
        bytes = try image.read(at: 0, count: Int(image.byteCount))
    }
}
