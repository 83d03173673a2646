// Disk images as what stands behind the machine's block devices.
internal import Devices
internal import HostOS
internal import Storage
internal import Synchronization

/// An open image behind a block device.
final class DiskBackend: BlockBackend {
    private let image: any DiskImage
    private let traffic: Traffic

    private init(_ image: any DiskImage, _ traffic: Traffic) {
        self.image = image
        self.traffic = traffic
    }

    var byteCount: UInt64 { image.byteCount }
    var isReadOnly: Bool { image.isReadOnly }

    func read(at offset: UInt64, count: Int) throws -> [UInt8] {
        traffic.addDiskRead(count)
        return try image.read(at: offset, count: count)
    }
    func write(_ bytes: [UInt8], at offset: UInt64) throws {
        traffic.addDiskWritten(bytes.count)
        try image.write(bytes, at: offset)
    }
    func flush() throws { try image.flush() }
    func discard(at offset: UInt64, length: UInt64) throws { try image.discard(at: offset, length: length) }
    func writeZeroes(at offset: UInt64, length: UInt64, mayUnmap: Bool) throws {
        try image.writeZeroes(at: offset, length: length, mayUnmap: mayUnmap)
    }

    /// Opens a disk's image; what the user should know about it is said on the terminal.
    static func open(_ disk: DiskConfiguration, _ traffic: Traffic) throws(MachineError) -> DiskBackend {
        do {
            let image = try Disk.open(disk.path, disk.options)
            if let note = image.note { Terminal.note("roost: \(note)") }
            OpenDisks.add(image)
            return DiskBackend(image, traffic)
        } catch {
            throw MachineError(error.code == .inUse ? .diskInUse : .disk, error.description)
        }
    }
}

/// The images that this process has open, so that an orderly end writes what they keep in memory.
public enum OpenDisks {
    private struct Entry: Sendable {
        weak var image: (any DiskImage)?
    }

    private static let entries = Mutex<[Entry]>([])

    fileprivate static func add(_ image: any DiskImage) { entries.withLock { $0.append(Entry(image: image)) } }

    /// Brings everything written to the files; says what fails.
    public static func flush() {
        for entry in entries.withLock({ $0 }) {
            guard let image = entry.image, !image.isReadOnly else { continue }
            do { try image.flush() } catch { Terminal.note("roost: disk \(image.path): \(error)") }
        }
    }
}
