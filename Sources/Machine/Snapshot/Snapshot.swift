// A machine at one moment, in a folder. docs/snapshots.md describes the format.
//
//   snapshot.json   what it is of (SnapshotManifest)
//   state.json      processors and devices (SavedMachine)
//   memory          RAM, sparse, as long as it
//   memory.sums     a checksum for each page of it, 32 bits, little-endian; zero: the page is zero
//   translations-N  what vCPU N's translator had made of the guest's code (SavedTranslations); a cache
//   checksums       a line for each of the other files but memory: CRC-32C and name
internal import CHost
internal import Foundation
internal import GuestMemory
internal import HostOS

/// What a snapshot is of.
public struct SnapshotManifest: Codable, Sendable, Equatable {
    /// Version of the format that this Roost reads and writes.
    public static let currentVersion = 1

    /// Version of the format.
    public var version = Self.currentVersion
    /// When it was taken, ISO 8601.
    public var created: String
    /// Bytes of RAM.
    public var memory: UInt64
    /// Pages of RAM that aren't zero.
    public var pages: Int
    /// Number of processors.
    public var processors: Int
    /// Name of the processor model.
    public var model: String
}

/// A snapshot on disk, its small files checked.
public struct Snapshot: Sendable {
    /// The folder.
    public let path: String
    /// What it is of.
    public let manifest: SnapshotManifest
    let state: [UInt8]
    let sums: [UInt32]

    private static let checked = ["snapshot.json", "state.json", "memory.sums"]

    /// Opens a snapshot: everything but memory is read and checked now, each page of memory when it is used.
    public init(_ path: String) throws(MachineError) {
        self.path = path
        let manifest = try Self.read(path, "snapshot.json", limit: 1 << 20)
        try Self.requireVersion(manifest, path)
        let state = try Self.read(path, "state.json", limit: 64 << 20)
        let sums = try Self.read(path, "memory.sums", limit: 1 << 30)
        let expected = Self.checksums([manifest, state, sums])
        guard try Self.read(path, "checksums", limit: 4096) == expected else {
            throw MachineError(.state, "snapshot \(path) is damaged: its checksums don't match")
        }
        do {
            self.manifest = try JSONDecoder().decode(SnapshotManifest.self, from: Data(manifest))
        } catch {
            throw MachineError(.state, "snapshot \(path) has a malformed snapshot.json")
        }
        guard UInt64(sums.count) * 1024 == self.manifest.memory else {
            throw MachineError(
                .state, "snapshot \(path) has \(sums.count / 4) pages in memory.sums, not those of its memory")
        }
        self.state = state
        time = try Machine.time(of: state)
        self.sums = unsafe sums.withUnsafeBytes { unsafe [UInt32]($0.bindMemory(to: UInt32.self)) }
        memorySum = Self.sum(of: sums)
    }

    /// What its translated code must be of.
    let memorySum: UInt32

    static func sum(of bytes: [UInt8]) -> UInt32 {
        unsafe bytes.withUnsafeBytes { unsafe roost_crc32c(0, $0.baseAddress, $0.count) }
    }

    static func translations(in folder: String, _ processor: Int) -> String { "\(folder)/translations-\(processor)" }

    /// Guest time when it was taken.
    let time: UInt64

    /// Maps the memory.
    func openMemory() throws(MachineError) -> SavedMemory {
        do {
            return try SavedMemory(file: try FileDescriptor.open(path + "/memory", 0), sums: sums)
        } catch {
            throw MachineError(.state, "snapshot \(path): \(error)")
        }
    }

    private static func requireVersion(_ manifest: [UInt8], _ path: String) throws(MachineError) {
        struct Version: Codable { var version: Int }
        guard let version = try? JSONDecoder().decode(Version.self, from: Data(manifest)).version else {
            throw MachineError(.state, "snapshot \(path) has a malformed snapshot.json")
        }
        guard version == SnapshotManifest.currentVersion else {
            throw MachineError(
                .state,
                "snapshot \(path) has version \(version); this Roost reads version \(SnapshotManifest.currentVersion)")
        }
    }

    private static func read(_ path: String, _ name: String, limit: Int) throws(MachineError) -> [UInt8] {
        do {
            return try HostFile.contents(of: path + "/" + name, limit: limit)
        } catch {
            throw MachineError(.state, "snapshot \(path): \(name): \(error.reason)")
        }
    }

    /// The file `checksums` for these contents of the files that it is about.
    private static func checksums(_ contents: [[UInt8]]) -> [UInt8] {
        var text = "roost checksums 1\n"
        for (name, bytes) in zip(checked, contents) {
            let sum = unsafe bytes.withUnsafeBytes { unsafe roost_crc32c(0, $0.baseAddress, $0.count) }
            let digits = String(sum, radix: 16)
            text += String(repeating: "0", count: 8 - digits.count) + digits + " " + name + "\n"
        }
        return Array(text.utf8)
    }

    /// Writes everything but memory into a folder, and has the host keep it.
    static func write(
        _ manifest: SnapshotManifest, state: [UInt8], sums: [UInt32], to folder: String
    ) throws(MachineError) {
        do {
            let encoder = JSONEncoder()
            encoder.outputFormatting = [.prettyPrinted, .sortedKeys, .withoutEscapingSlashes]
            let text = Array(try encoder.encode(manifest))
            let table = unsafe sums.withUnsafeBytes { unsafe [UInt8]($0) }
            for (name, bytes) in zip(checked + ["checksums"], [text, state, table, checksums([text, state, table])]) {
                // O_WRONLY | O_CREAT | O_EXCL
                let file = try FileDescriptor.open(folder + "/" + name, 0o1 | 0o100 | 0o200)
                try file.write(bytes, at: 0)
                try file.synchronize()
            }
        } catch {
            throw MachineError(.state, "the snapshot can't be written to \(folder): \(error)")
        }
    }
}
