// What the tests of disk images stand on: folders, qemu-img, a plain disk in memory, seeded numbers.
import Foundation
import Glibc
import HostOS
import Storage
import Testing

/// A folder of a test's own.
final class Folder: Sendable {
    let path: String

    /// In memory, nothing waits for the host's disk.
    init(inMemory: Bool = false) throws {
        let hasMemory = inMemory && access("/dev/shm", W_OK) == 0
        path = (hasMemory ? "/dev/shm/" : NSTemporaryDirectory()) + "roost-storage-\(UUID().uuidString)"
        try FileManager.default.createDirectory(atPath: path, withIntermediateDirectories: true)
    }

    deinit { try? FileManager.default.removeItem(atPath: path) }

    func file(_ name: String) -> String { path + "/" + name }
}

/// Numbers that are the same for the same seed (SplitMix64).
struct Seeded: RandomNumberGenerator {
    var state: UInt64

    init(_ seed: UInt64) { state = seed }

    mutating func next() -> UInt64 {
        state &+= 0x9E37_79B9_7F4A_7C15
        var z = state
        z = (z ^ (z >> 30)) &* 0xBF58_476D_1CE4_E5B9
        z = (z ^ (z >> 27)) &* 0x94D0_49BB_1331_11EB
        return z ^ (z >> 31)
    }
}

/// Does something again while an image is in use: another test's child holds all descriptors between fork and exec.
func patiently<Result>(_ body: () throws -> Result) throws -> Result {
    for _ in 0..<200 {
        do { return try body() } catch let error as StorageError where error.code == .inUse { usleep(10_000) }
    }
    return try body()
}

/// Opens an image, patiently.
func openDisk(_ path: String, _ options: DiskOptions = DiskOptions()) throws -> any DiskImage {
    try patiently { try Disk.open(path, options) }
}

/// Describes an image, patiently.
func report(_ path: String) throws -> DiskReport { try patiently { try DiskReport(path) } }

/// A run of qemu-img or qemu-io.
struct QEMU {
    var status: Int32
    var output: String

    @discardableResult
    static func run(_ tool: String, _ arguments: [String]) throws -> QEMU {
        for _ in 0..<100 {
            let run = try start(tool, arguments)
            if run.status == 0 || !run.output.contains(" lock\n") { return run }
            usleep(10_000)
        }
        return try start(tool, arguments)
    }

    private static func start(_ tool: String, _ arguments: [String]) throws -> QEMU {
        let process = Process()
        process.executableURL = URL(fileURLWithPath: "/usr/bin/" + tool)
        process.arguments = arguments
        let file = NSTemporaryDirectory() + "roost-qemu-\(UUID().uuidString)"
        _ = FileManager.default.createFile(atPath: file, contents: nil)
        defer { try? FileManager.default.removeItem(atPath: file) }
        let handle = try #require(FileHandle(forWritingAtPath: file))
        process.standardOutput = handle
        process.standardError = handle
        try process.run()
        process.waitUntilExit()
        return QEMU(status: process.terminationStatus, output: try String(contentsOfFile: file, encoding: .utf8))
    }

    /// `qemu-img`, which must succeed.
    static func image(_ arguments: String...) throws {
        let run = try run("qemu-img", arguments)
        try #require(run.status == 0, "qemu-img \(arguments): \(run.output)")
    }

    /// Commands of `qemu-io`, which must succeed.
    static func io(_ path: String, _ format: String, _ commands: [String]) throws {
        let run = try run("qemu-io", ["-f", format] + commands.flatMap { ["-c", $0] } + [path])
        try #require(run.status == 0, "qemu-io \(path): \(run.output)")
    }

    /// Whether `qemu-img check` finds nothing, or nothing but leaks.
    static func isSound(_ path: String, leaksAllowed: Bool = false) throws -> Bool {
        let run = try run("qemu-img", ["check", "-f", "qcow2", path])
        if run.status != 0 && !(leaksAllowed && run.status == 3) { print("qemu-img check: \(run.output)") }
        return run.status == 0 || (leaksAllowed && run.status == 3)
    }
}

/// Memory in pieces of random lengths, most of them whole sectors, as a guest's buffers are.
final class Scattered {
    private let memory: UnsafeMutableRawBufferPointer
    private var pieces: [UnsafeMutableRawBufferPointer] = []

    init(_ count: Int, _ random: inout Seeded) {
        memory = .allocate(byteCount: count * 2, alignment: 4096)
        memory.initializeMemory(as: UInt8.self, repeating: 0xEE)
        var (place, rest) = (count * 2, count)
        let unit = [1, 512, 4096, 65536].randomElement(using: &random)!
        while rest > 0 {
            let length = min(rest, unit * Int.random(in: 1...8, using: &random))
            place -= length
            pieces.append(UnsafeMutableRawBufferPointer(rebasing: memory[place..<place + length]))
            rest -= length
        }
    }

    deinit { memory.deallocate() }

    var list: ScatterList { ScatterList(pieces, owner: self) }
}

/// The guest's disk as it should be.
struct Model {
    var bytes: [UInt8]
    /// Sectors whose content isn't known: discarded ones.
    var unknown: Set<Int> = []

    init(count: Int) { bytes = [UInt8](repeating: 0, count: count) }

    mutating func set(_ range: Range<Int>, _ new: [UInt8]) {
        bytes.replaceSubrange(range, with: new)
        for sector in range.lowerBound / 512..<(range.upperBound + 511) / 512 { unknown.remove(sector) }
    }

    /// A random operation on an image and here.
    mutating func operate(_ image: any DiskImage, _ random: inout Seeded, zeroes: Bool = true) throws {
        let sectors = bytes.count / 512
        let first = Int.random(in: 0..<sectors, using: &random)
        let longest = Bool.random(using: &random) ? 16 : 512
        let count = Int.random(in: 1...min(longest, sectors - first), using: &random)
        let range = first * 512..<(first + count) * 512
        switch Int.random(in: 0..<(zeroes ? 10 : 6), using: &random) {
        case 0..<6:
            let seed = UInt8.random(in: 1...255, using: &random)
            let data = (0..<range.count).map { UInt8(truncatingIfNeeded: $0 >> 4) ^ seed }
            let memory = Scattered(data.count, &random)
            memory.list.store(data)
            try image.write(memory.list, at: UInt64(range.lowerBound))
            set(range, data)
        case 6, 7:
            let mayUnmap = Bool.random(using: &random)
            try image.writeZeroes(at: UInt64(range.lowerBound), length: UInt64(range.count), mayUnmap: mayUnmap)
            set(range, [UInt8](repeating: 0, count: range.count))
        case 8:
            try image.discard(at: UInt64(range.lowerBound), length: UInt64(range.count))
            for sector in first..<first + count { unknown.insert(sector) }
        default:
            let memory = Scattered(range.count, &random)
            try image.read(at: UInt64(range.lowerBound), into: memory.list)
            let got = memory.list.load()
            for sector in first..<first + count where !unknown.contains(sector) {
                let part = (sector - first) * 512..<(sector - first + 1) * 512
                #expect(Array(got[part]) == Array(bytes[sector * 512..<(sector + 1) * 512]), "sector \(sector)")
            }
        }
    }

    /// Sectors that differ; what was discarded is taken over from the image.
    mutating func differences(_ image: any DiskImage) throws -> [Int] {
        let got = try image.read(at: 0, count: bytes.count)
        for sector in unknown {
            bytes.replaceSubrange(sector * 512..<(sector + 1) * 512, with: got[sector * 512..<(sector + 1) * 512])
        }
        unknown = []
        return (0..<bytes.count / 512).filter {
            got[$0 * 512..<($0 + 1) * 512] != bytes[$0 * 512..<($0 + 1) * 512]
        }
    }

    /// Whether qemu-img reads the same from the image.
    func matches(_ path: String, _ format: String, in folder: Folder) throws -> Bool {
        let raw = folder.file("model-\(UUID().uuidString).raw")
        try Data(bytes).write(to: URL(fileURLWithPath: raw))
        defer { unlink(raw) }
        let run = try QEMU.run("qemu-img", ["compare", "-f", "raw", "-F", format, raw, path])
        if run.status != 0 { print("qemu-img compare: \(run.output)") }
        return run.status == 0
    }
}
