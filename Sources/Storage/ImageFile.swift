// The file that an image is stored in: opened, locked, read in checked pieces.
internal import Glibc
internal import HostOS

/// A file or block device, locked for as long as it is open: one may write it, or several may read it.
final class ImageFile: Sendable {
    let path: String
    let isReadOnly: Bool
    let isBlockDevice: Bool
    private let file: FileDescriptor
    /// The same file, past the host's cache.
    private let direct: DirectFile?
    private let cache: CacheMode
    private let durability = Durability()

    init(path: String, readOnly: Bool, cache: CacheMode = .writeback) throws(StorageError) {
        let file: FileDescriptor
        do { file = try FileDescriptor.openDisk(path, readOnly ? .readOnly : .readWrite) } catch {
            throw Self.explain(error, path, readOnly)
        }
        switch file.kind {
        case .regular: isBlockDevice = false
        case .blockDevice: isBlockDevice = true
        case .directory: throw StorageError(.directory, "disk \(path): is a directory")
        case .other: throw StorageError(.notADisk, "disk \(path): is neither a file nor a block device")
        }
        try Self.lock(file, path, exclusive: !readOnly)
        self.path = path
        isReadOnly = readOnly
        direct = cache == .none ? try Self.openDirect(path, readOnly, file.identity) : nil
        self.file = file
        self.cache = cache
    }

    private static func openDirect(_ path: String, _ readOnly: Bool, _ identity: [UInt64]) throws(StorageError)
        -> DirectFile
    {
        do {
            let direct = try DirectFile(path, readOnly ? .readOnly : .readWrite)
            if direct.identity == identity { return direct }
        } catch {
            if error.errno == HostErrorNumber.invalid {
                throw StorageError(
                    .unsupported, "disk \(path): its file system can't go past the host's cache, as cache=none wants")
            }
            throw explain(error, path, readOnly)
        }
        throw StorageError(.host, "disk \(path): was replaced while it was opened")
    }

    /// Makes a new file and locks it.
    init(creating path: String, replacing: Bool = false) throws(StorageError) {
        do {
            if replacing {
                file = try FileDescriptor.openOrCreateDisk(path)
            } else {
                file = try FileDescriptor.createDisk(path)
            }
        } catch {
            if error.errno == EEXIST { throw StorageError(.exists, "disk \(path): is there already") }
            throw Self.explain(error, path, false)
        }
        guard file.kind == .regular else { throw StorageError(.notADisk, "disk \(path): is not a file") }
        try Self.lock(file, path, exclusive: true)
        // Not before: somebody may be using it.
        do { try file.setByteCount(0) } catch { throw Self.explain(error, path, false) }
        self.path = path
        isReadOnly = false
        isBlockDevice = false
        cache = .writeback
        direct = nil
    }

    /// A new file without a name: it goes when it is closed, however the process ends.
    static func temporary() throws(StorageError) -> ImageFile {
        let folder = unsafe getenv("TMPDIR").map { unsafe String(cString: $0) } ?? "/var/tmp"
        let file = try ImageFile(creating: "\(folder)/roost-\(getpid())-\(UInt64.random(in: 0 ... .max)).qcow2")
        file.unlink()
        return file
    }

    /// How long a lock is waited for: a child that another thread starts keeps closed files open until it executes its
    /// program.
    private static let patience: UInt64 = 200_000_000

    private static func lock(
        _ file: borrowing FileDescriptor, _ path: String, exclusive: Bool
    ) throws(StorageError) {
        let deadline = HostClock.monotonic &+ patience
        do {
            while HostClock.monotonic < deadline {
                if try file.lock(exclusive: exclusive) { return }
                HostClock.sleep(nanoseconds: 5_000_000)
            }
        } catch {
            throw StorageError(.host, "disk \(path): \(error)")
        }
        let holder = file.lockHolder(exclusive: exclusive).map { " by process \($0)" } ?? ""
        throw StorageError(.inUse, "disk \(path): is already in use\(holder)")
    }

    private static func explain(_ error: HostError, _ path: String, _ readOnly: Bool) -> StorageError {
        switch error.errno {
        case ENOENT, ENOTDIR: return StorageError(.missing, "disk \(path): no such file")
        case EISDIR: return StorageError(.directory, "disk \(path): is a directory")
        case EROFS: return StorageError(.notWritable, "disk \(path): is on a read-only file system; add ,readonly")
        case EACCES, EPERM:
            if readOnly { return StorageError(.notReadable, "disk \(path): may not be read (\(error.reason))") }
            return StorageError(.notWritable, "disk \(path): is not writable; add ,readonly to read it")
        default: return StorageError(.host, "disk \(path): \(error.reason)")
        }
    }

    /// Takes the name away; the file goes when it is closed.
    func unlink() { _ = unsafe Glibc.unlink(path) }

    /// Takes a name away.
    static func remove(_ path: String) { _ = unsafe Glibc.unlink(path) }

    // MARK: Length

    /// Bytes in the file now.
    func byteCount() throws -> UInt64 { try file.byteCount() }

    /// Sets the file's length.
    func setByteCount(_ count: UInt64) throws { try file.setByteCount(count) }

    // MARK: Transfers

    /// Fills memory; what lies beyond the file's end is zeroes. Returns how many bytes the file had.
    @discardableResult
    func read(at offset: UInt64, into list: ScatterList) throws -> Int {
        let got = try direct?.read(at: offset, into: list) ?? file.read(at: offset, into: list)
        if got < list.count { list.dropFirst(got).zero() }
        return got
    }

    /// Fills an array in the same way.
    @discardableResult
    func read(at offset: UInt64, into bytes: inout [UInt8]) throws -> Int {
        try bytes.withScatterList(0..<bytes.count) { try read(at: offset, into: $0) }
    }

    /// Reads exactly `count` bytes. The file must hold them: its own words can't make Roost take memory.
    func read(at offset: UInt64, exactly count: Int, _ what: String) throws -> [UInt8] {
        let end = try file.byteCount()
        guard count >= 0, offset <= end, UInt64(count) <= end - offset else {
            throw damaged("its \(what) lies beyond its end")
        }
        let bytes = try file.read(at: offset, count: count)
        guard bytes.count == count else { throw damaged("its \(what) is cut off") }
        return bytes
    }

    /// Where a list goes by a plain call.
    func place(of list: ScatterList, at offset: UInt64) -> FilePlace? {
        if let direct {
            return direct.takes(list, at: offset) ? FilePlace(descriptor: direct.rawValue, offset: offset) : nil
        }
        return FilePlace(descriptor: file.rawValue, offset: offset)
    }

    func write(_ list: ScatterList, at offset: UInt64) throws {
        if let direct, try direct.write(list, at: offset) { return }
        try file.write(list, at: offset)
    }

    func write(_ bytes: ArraySlice<UInt8>, at offset: UInt64) throws {
        try bytes.withScatterList { try write($0, at: offset) }
    }

    func write(_ bytes: [UInt8], at offset: UInt64) throws { try write(bytes[...], at: offset) }

    /// Makes everything written durable, unless nobody wants that. Once that has failed, it always does.
    func synchronize() throws(StorageError) {
        if cache == .unsafe { return }
        try durability.keep(path) { () throws(HostError) in try file.synchronize() }
    }

    /// Gives a range back to the host; false if it can't be done here.
    func discard(at offset: UInt64, length: UInt64) throws -> Bool { try file.discard(at: offset, length: length) }

    /// Makes a range zero without writing it; false if it can't be done here.
    func zero(at offset: UInt64, length: UInt64) throws -> Bool { try file.zero(at: offset, length: length) }

    /// Takes room for a range on the host.
    func allocate(at offset: UInt64, length: UInt64) throws { try file.allocate(at: offset, length: length) }

    /// What the file system says about `offset`.
    func extent(at offset: UInt64, limit: UInt64) throws -> DiskExtent {
        if isBlockDevice { return DiskExtent(length: limit, isZero: false) }
        guard let data = try file.nextData(at: offset) else { return DiskExtent(length: limit, isZero: true) }
        if data.lowerBound > offset { return DiskExtent(length: min(limit, data.lowerBound - offset), isZero: true) }
        return DiskExtent(length: max(1, min(limit, data.upperBound - offset)), isZero: false)
    }

    // MARK: Errors

    /// The image contradicts itself.
    func damaged(_ what: String) -> StorageError { StorageError(.damaged, "disk \(path): \(what)") }

    /// The image has something that Roost doesn't know.
    func unsupported(_ what: String) -> StorageError { StorageError(.unsupported, "disk \(path): \(what)") }
}
