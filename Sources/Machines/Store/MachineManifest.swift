// What a machine's folder says of it: `machine.json`.
public import Foundation
internal import HostOS
public import Machine
internal import Storage

/// The manifest of a machine.
public struct MachineManifest: Codable, Sendable {
    /// The layout that this Roost writes and reads.
    public static let currentVersion = 1

    /// The version of this layout.
    public private(set) var version = currentVersion
    /// The machine's own number, which it keeps when it is renamed.
    public var id: UUID
    /// When it was made, in ISO 8601.
    public var created: String
    /// The image that it was made from, by name or folder.
    public var image: String?
    /// The snapshot that it went on from last, or that was taken last.
    public var snapshot: String?
    /// It goes when it stops.
    public var isTemporary: Bool?
    /// What it is made of; paths without a leading slash are in the machine's folder.
    public var machine: MachineConfiguration

    /// A manifest of a new machine.
    public init(id: UUID = UUID(), image: String? = nil, machine: MachineConfiguration) {
        self.id = id
        created = Date().formatted(.iso8601)
        self.image = image
        self.machine = machine
    }

    static let largest = 1 << 20
    private static let mostDisks = 31
    /// What 52 bits of an address reach.
    private static let mostMemory: UInt64 = 1 << 52

    /// Reads a manifest; refuses what this version doesn't understand.
    public init(reading path: String) throws(MachinesError) {
        let bytes: [UInt8]
        do { bytes = try HostFile.contents(of: path, limit: Self.largest) } catch {
            throw MachinesError(.damaged, "\(path): \(error.reason)")
        }
        try self.init(Data(bytes), path)
    }

    /// Reads a manifest's text.
    public init(_ data: Data, _ path: String) throws(MachinesError) {
        struct Head: Decodable { var version: Int }
        let decoder = JSONDecoder()
        guard let head = try? decoder.decode(Head.self, from: data) else {
            throw MachinesError(.damaged, "\(path) is not a machine's manifest")
        }
        guard head.version == Self.currentVersion else {
            throw MachinesError(
                .damaged,
                "\(path) is of version \(head.version), this Roost reads \(Self.currentVersion)"
                    + (head.version > Self.currentVersion ? "; use the Roost that wrote it, or a newer one" : ""))
        }
        do { self = try decoder.decode(Self.self, from: data) } catch {
            throw MachinesError(.damaged, "\(path): \(Self.explain(error))")
        }
        if let fault = Self.fault(in: machine) { throw MachinesError(.damaged, "\(path): \(fault)") }
    }

    /// What no machine can be, wherever it runs; the rest is checked when it is made.
    static func fault(in machine: MachineConfiguration) -> String? {
        let sizes = [machine.memory, machine.maximumMemory ?? 0, machine.wantedMemory ?? 0, machine.balloon]
        if ![machine.processors, machine.maximumProcessors ?? 1].allSatisfy({ 1...64 ~= $0 }) {
            return "processors and maximumProcessors must be 1 to 64"
        }
        if sizes.contains(where: { $0 > mostMemory }) {
            return "memory, maximumMemory, wantedMemory and balloon must be at most 4 PiB"
        }
        if !(1 << 20...512 << 20 ~= machine.codeCache) { return "codeCache must be 1 MiB to 512 MiB" }
        if machine.disks.count > mostDisks { return "disks must be at most \(mostDisks)" }
        if let cid = machine.sockets?.cid, !(3..<UInt32.max ~= cid) {
            return "sockets.cid must be 3 to \(UInt32.max - 1)"
        }
        return nil
    }

    private static func explain(_ error: any Error) -> String {
        guard let error = error as? DecodingError else { return "\(error)" }
        func place(_ context: DecodingError.Context) -> String {
            context.codingPath.map(\.stringValue).joined(separator: ".")
        }
        switch error {
        case .keyNotFound(let key, let context):
            return "'\(key.stringValue)' is missing" + (context.codingPath.isEmpty ? "" : " in \(place(context))")
        case .typeMismatch(_, let context), .valueNotFound(_, let context):
            return "\(place(context)) is of the wrong kind"
        case .dataCorrupted(let context): return context.debugDescription
        @unknown default: return "\(error)"
        }
    }

    /// The manifest as it is written.
    public func serialized() throws(MachinesError) -> [UInt8] { try JSONText.pretty(self) }
}

/// JSON as people read it, and as lines.
public enum JSONText {
    /// Many lines, keys sorted.
    public static func pretty(_ value: some Encodable) throws(MachinesError) -> [UInt8] {
        try encode(value, [.prettyPrinted, .sortedKeys, .withoutEscapingSlashes])
    }

    /// One line with its end.
    public static func line(_ value: some Encodable) throws(MachinesError) -> [UInt8] {
        try encode(value, [.sortedKeys, .withoutEscapingSlashes])
    }

    private static func encode(
        _ value: some Encodable, _ format: JSONEncoder.OutputFormatting
    ) throws(MachinesError) -> [UInt8] {
        let encoder = JSONEncoder()
        encoder.outputFormatting = format
        do { return Array(try encoder.encode(value)) + [10] } catch {
            throw MachinesError(.badRequest, "cannot be written as JSON: \(error)")
        }
    }
}

extension MachineConfiguration {
    /// The same with every path that is relative to a folder made absolute.
    func resolved(in folder: String) -> MachineConfiguration {
        func resolve(_ path: String) -> String {
            path.hasPrefix("/") || Disk.isOnServer(path) ? path : folder + "/" + path
        }
        var result = self
        result.boot.kernel = resolve(boot.kernel)
        result.boot.initrd = boot.initrd.map(resolve)
        for index in disks.indices { result.disks[index].path = resolve(disks[index].path) }
        result.drives = drives.map { $0.map(resolve) }
        for index in networks.indices { result.networks[index] = networks[index].mappingPaths(resolve) }
        result.sockets?.path = sockets?.path.map(resolve)
        for index in folders.indices { result.folders[index].path = resolve(folders[index].path) }
        return result
    }

    /// The same with paths that mean the same files from anywhere, and cards whose addresses are a machine's own.
    func fixed(for id: UUID) -> MachineConfiguration {
        func fix(_ path: String) -> String {
            path.hasPrefix("/") || Disk.isOnServer(path) ? path : PrivateFolder.absolute(path)
        }
        var result = self
        result.boot.kernel = fix(boot.kernel)
        // Modules of a Multiboot kernel are several files in one word.
        result.boot.initrd = boot.initrd.map { word in
            FileDescriptor.exists(word)
                ? fix(word) : word.split(separator: ",").map { fix(String($0)) }.joined(separator: ",")
        }
        for index in disks.indices { result.disks[index].path = fix(disks[index].path) }
        result.drives = drives.map { $0.map(fix) }
        result.sockets?.path = sockets?.path.map(fix)
        for index in folders.indices { result.folders[index].path = fix(folders[index].path) }
        for index in networks.indices {
            result.networks[index] = networks[index].mappingPaths(fix)
            if networks[index].macAddress == nil { result.networks[index].macAddress = Self.address(index, of: id) }
        }
        return result
    }

    /// A card's address: locally administered (IEEE 802, 8.4.2: bit 1 of the first byte), the rest of the machine's number.
    static func address(_ index: Int, of id: UUID) -> [UInt8] {
        let bytes = id.uuid
        return [0x52, bytes.0, bytes.1, bytes.2, bytes.3, UInt8(truncatingIfNeeded: index)]
    }
}
