// Tar archives: what an exported machine is, and what an OVA package is.
//
// POSIX.1-1988 ustar; sizes beyond eight octal digits in GNU's base-256 form.
//
//   000 name 100   064 mode 8   07C size 12   088 time 12   094 checksum 8   09C type 1   101 "ustar" 6   159 prefix 155
internal import HostOS

/// Files in an archive.
struct TarEntry: Sendable, Equatable {
    /// A plain name, without a folder.
    var name: String
    /// Where its bytes begin.
    var offset: UInt64
    /// How many there are.
    var size: UInt64
}

/// An archive that is read; nothing in it is believed.
struct TarReader: ~Copyable {
    private static let mostEntries = 256
    let file: FileDescriptor
    private let path: String
    /// The regular files.
    let entries: [TarEntry]

    init(path: String) throws(MachinesError) {
        let file = try explaining { () throws(HostError) in try FileDescriptor.openDisk(path, .readOnly) }
        guard file.kind == .regular else { throw MachinesError(.badRequest, "\(path) is not a file") }
        entries = try Self.scan(file, path)
        self.file = file
        self.path = path
    }

    private static func scan(_ file: borrowing FileDescriptor, _ path: String) throws(MachinesError) -> [TarEntry] {
        let end: UInt64
        do { end = try file.byteCount() } catch { throw MachinesError(.fileSystem, "\(path): \(error)") }
        var entries: [TarEntry] = []
        var offset: UInt64 = 0
        while offset &+ 512 <= end {
            let header: [UInt8]
            do { header = try file.read(at: offset, count: 512) } catch {
                throw MachinesError(.fileSystem, "\(path): \(error)")
            }
            if header.count == 512, header.allSatisfy({ $0 == 0 }) { return entries }
            guard header.count == 512, Self.checksum(header) == Self.number(header[148..<156]),
                let size = Self.number(header[124..<136]), size <= end - offset - 512
            else {
                throw MachinesError(.damaged, "\(path) is not an archive, or was cut short at byte \(offset)")
            }
            let name = String(decoding: header[..<100].prefix { $0 != 0 }, as: UTF8.self)
            // Other kinds (folders, links, extended headers) are passed over.
            if header[156] == 0 || header[156] == UInt8(ascii: "0") {
                guard entries.count < mostEntries else {
                    throw MachinesError(.damaged, "\(path) has more files than a machine has")
                }
                let last = name.split(separator: "/").last.map(String.init) ?? ""
                entries.append(TarEntry(name: last, offset: offset + 512, size: size))
            }
            offset += 512 + (size + 511) / 512 * 512
        }
        if entries.isEmpty { throw MachinesError(.damaged, "\(path) is not an archive") }
        return entries
    }

    /// The entry of a name.
    func entry(_ name: String) -> TarEntry? { entries.first { $0.name == name } }

    /// A small file.
    func contents(_ entry: TarEntry, limit: UInt64) throws(MachinesError) -> [UInt8] {
        guard entry.size <= limit else { throw MachinesError(.damaged, "\(path): '\(entry.name)' is too large") }
        do { return try file.read(at: entry.offset, count: Int(entry.size)) } catch {
            throw MachinesError(.fileSystem, "\(path): \(error)")
        }
    }

    /// Takes a file out.
    func extract(
        _ entry: TarEntry, to target: String, progress: (UInt64, UInt64) -> Void
    ) throws(MachinesError) {
        do {
            let output = try FileDescriptor.createDisk(target)
            var done: UInt64 = 0
            while done < entry.size {
                let bytes = try file.read(at: entry.offset + done, count: Int(min(1 << 20, entry.size - done)))
                if bytes.isEmpty { break }
                try output.write(bytes, at: done)
                done += UInt64(bytes.count)
                progress(done, entry.size)
            }
        } catch { throw MachinesError(.fileSystem, "\(path): \(error)") }
    }

    /// Octal digits, or GNU's base 256.
    private static func number(_ field: ArraySlice<UInt8>) -> UInt64? {
        guard let first = field.first else { return nil }
        var value: UInt64 = 0
        if first == 0x80 {
            for byte in field.dropFirst() {
                guard value >> 54 == 0 else { return nil }
                value = value << 8 | UInt64(byte)
            }
            return value
        }
        for byte in field where byte != 0x20 && byte != 0 {
            guard (0x30...0x37).contains(byte), value >> 60 == 0 else { return nil }
            value = value << 3 | UInt64(byte - 0x30)
        }
        return value
    }

    fileprivate static func checksum(_ header: [UInt8]) -> UInt64 {
        header.enumerated().reduce(0) { $0 + UInt64((148..<156).contains($1.offset) ? 0x20 : $1.element) }
    }
}

/// An archive that is written.
struct TarWriter: ~Copyable {
    private let file: FileDescriptor
    private let path: String
    private var end: UInt64 = 0

    init(path: String, replacing: Bool) throws(MachinesError) {
        do { file = try FileDescriptor.createDisk(path, replacing: replacing) } catch {
            if error.errno == HostErrorNumber.exists {
                throw MachinesError(.exists, "\(path) is there already; --replace replaces it")
            }
            throw MachinesError(.fileSystem, "\(error)")
        }
        self.path = path
    }

    /// Adds a file of these bytes.
    mutating func add(_ name: String, _ bytes: [UInt8]) throws(MachinesError) {
        try write(Self.header(name, UInt64(bytes.count)))
        try write(bytes + [UInt8](repeating: 0, count: (512 - bytes.count % 512) % 512))
    }

    /// Adds a copy of a file.
    mutating func add(
        _ name: String, file source: String, progress: (UInt64, UInt64) -> Void
    ) throws(MachinesError) {
        let input = try explaining { () throws(HostError) in try FileDescriptor.openDisk(source, .readOnly) }
        let size = try explaining { () throws(HostError) in try input.byteCount() }
        try write(Self.header(name, size))
        var done: UInt64 = 0
        while done < size {
            var bytes: [UInt8]
            do { bytes = try input.read(at: done, count: Int(min(1 << 20, size - done))) } catch {
                throw MachinesError(.fileSystem, "\(source): \(error)")
            }
            guard !bytes.isEmpty else { throw MachinesError(.fileSystem, "\(source) became shorter meanwhile") }
            done += UInt64(bytes.count)
            bytes += [UInt8](repeating: 0, count: (512 - bytes.count % 512) % 512)
            try write(bytes)
            progress(done, size)
        }
    }

    /// Ends the archive: two empty blocks, and all of it on the disk.
    mutating func finish() throws(MachinesError) {
        try write([UInt8](repeating: 0, count: 1024))
        do { try file.synchronize() } catch { throw MachinesError(.fileSystem, "\(path): \(error)") }
    }

    private mutating func write(_ bytes: [UInt8]) throws(MachinesError) {
        do { try file.write(bytes, at: end) } catch { throw MachinesError(.fileSystem, "\(path): \(error)") }
        end += UInt64(bytes.count)
    }

    private static func header(_ name: String, _ size: UInt64) -> [UInt8] {
        var header = [UInt8](repeating: 0, count: 512)
        func put(_ text: String, _ at: Int) {
            for (index, byte) in text.utf8.enumerated() { header[at + index] = byte }
        }
        func octal(_ number: UInt64, _ digits: Int) -> String {
            let text = String(number, radix: 8)
            return String(repeating: "0", count: max(0, digits - text.count)) + text
        }
        put(String(name.prefix(99)), 0)
        put(octal(0o644, 7), 100)
        put(octal(0, 7), 108)
        put(octal(0, 7), 116)
        if size < 1 << 33 {
            put(octal(size, 11), 124)
        } else {
            header[124] = 0x80
            for index in 0..<8 { header[128 + index] = UInt8(truncatingIfNeeded: size >> UInt64(56 - index * 8)) }
        }
        put(octal(0, 11), 136)
        header[156] = UInt8(ascii: "0")
        put("ustar", 257)
        header[263] = 0x30
        header[264] = 0x30
        put(octal(TarReader.checksum(header), 6), 148)
        header[155] = 0x20
        return header
    }
}
