// Disk images as what stands behind the machine's block devices.
internal import Devices
internal import Foundation
package import GuestMemory
internal import HostOS
package import Storage
internal import Synchronization

/// What becomes of a request that the host can't carry out.
public enum DiskErrorPolicy: String, Sendable, CaseIterable {
    /// The guest gets an error.
    case report
    /// The request is held, and tried again every second until it works.
    case pause
}

/// An open image behind a block device.
package final class DiskBackend: BlockBackend {
    /// How images are opened.
    package typealias Opening = @Sendable (String, DiskOptions) throws(StorageError) -> any DiskImage

    /// The image; another one takes its place when a snapshot keeps it.
    private let opened: Mutex<any DiskImage>
    /// Held for reading by requests, for writing while the image is exchanged.
    private let exchange = ReadersWriterLock()
    private let opening: Opening
    private let options: DiskOptions
    /// As the image had it that was opened first; those that take its place are the same disk.
    package let byteCount: UInt64
    /// The same.
    package let isReadOnly: Bool
    package let writesThrough: Bool
    private let traffic: Traffic
    private let policy: DiskErrorPolicy
    private let limiting: Mutex<(limits: DiskLimits, throttle: DiskThrottle?)>
    private let isClosing = Atomic(false)
    /// Requests that wait for better times.
    private let waiting = Atomic<Int>(0)

    /// Most attempts to open an image again at once, and nanoseconds between them: a child of this process has all that is
    /// open, locks too, between fork and exec.
    private static let (attempts, pause): (Int, UInt64) = (10, 20_000_000)

    private init(_ disk: DiskConfiguration, _ traffic: Traffic, _ opening: @escaping Opening) throws(StorageError) {
        let image = try opening(disk.path, disk.options)
        opened = Mutex(image)
        byteCount = image.byteCount
        isReadOnly = image.isReadOnly
        options = disk.options
        self.opening = opening
        self.traffic = traffic
        writesThrough = disk.options.cache == .writethrough
        policy = disk.errorPolicy
        limiting = Mutex((disk.limits, DiskThrottle(disk.limits)))
    }

    private var throttle: DiskThrottle? { limiting.withLock { $0.throttle } }

    /// Changes how fast the guest may use it; requests that wait go on by the new limits.
    func changeLimits(_ body: (inout DiskLimits) -> Void) {
        let old = limiting.withLock { limiting in
            body(&limiting.limits)
            defer { limiting.throttle = DiskThrottle(limiting.limits) }
            return limiting.throttle
        }
        old?.lift()
    }

    var image: any DiskImage { opened.withLock { $0 } }

    /// Whether the kernel may be left to carry out transfers: limits have requests wait.
    var allowsDirect: Bool { throttle == nil && (image is RawImage || image is Qcow2Image) }

    /// Whether what is written goes to the host's cache.
    var isCached: Bool { options.cache != .none }

    /// Whether several threads gain from using it at once.
    var isConcurrent: Bool { image is RawImage || (image as? NBDImage)?.allowsSeveral == true }

    package func read(at offset: UInt64, into buffer: TransferBuffer) throws {
        traffic.addDiskRead(buffer.count)
        throttle?.wait(UInt64(buffer.count))
        try carryOut { image in
            guard image.isRemote else { return try buffer.withMemory { try image.read(at: offset, into: $0) } }
            // A server takes as long as it likes; the guest's memory isn't held for it.
            let bytes = ScatterList(count: buffer.count)
            try image.read(at: offset, into: bytes)
            try buffer.withMemory { $0.store(bytes.load()) }
        }
    }

    package func write(_ buffer: TransferBuffer, at offset: UInt64) throws {
        traffic.addDiskWritten(buffer.count)
        throttle?.wait(UInt64(buffer.count))
        try carryOut { image in
            guard image.isRemote else { return try buffer.withMemory { try image.write($0, at: offset) } }
            try image.write(try buffer.withMemory { $0.load() }, at: offset)
        }
    }

    package func flush() throws { try carryOut { try $0.flush() } }

    package func discard(at offset: UInt64, length: UInt64) throws {
        try discard(at: offset, length: length, for: TransferBuffer(count: 0))
    }

    package func writeZeroes(at offset: UInt64, length: UInt64, mayUnmap: Bool) throws {
        try writeZeroes(at: offset, length: length, mayUnmap: mayUnmap, for: TransferBuffer(count: 0))
    }

    package func discard(at offset: UInt64, length: UInt64, for request: TransferBuffer) throws {
        throttle?.wait(0)
        try carryOut { image in
            try Self.change(image, for: request) { try image.discard(at: offset, length: length) }
        }
    }

    package func writeZeroes(
        at offset: UInt64, length: UInt64, mayUnmap: Bool, for request: TransferBuffer
    ) throws {
        throttle?.wait(0)
        try carryOut { image in
            try Self.change(image, for: request) {
                try image.writeZeroes(at: offset, length: length, mayUnmap: mayUnmap)
            }
        }
    }

    /// Does something as a request's transfer; for a server, as long as that likes, it only begins as one.
    private static func change(
        _ image: any DiskImage, for request: TransferBuffer, _ body: () throws -> Void
    ) throws {
        guard image.isRemote else { return try request.withMemory { _ in try body() } }
        try request.withMemory { _ in }
        try body()
    }

    /// A transfer that whoever begins it carries out by itself.
    struct DirectTransfer: Sendable {
        let place: FilePlace
        let list: ScatterList
        let fills: Bool
        fileprivate let buffer: TransferBuffer
    }

    /// Begins a transfer without the image's help, which keeps its file until `end`; nil if that can't be.
    func beginDirect(_ operation: Devices.BlockOperation) -> DirectTransfer? {
        // Limits may have come since the disk was opened: who carries out the request waits for them.
        if throttle != nil { return nil }
        let (offset, buffer, fills): (UInt64, TransferBuffer, Bool)
        switch operation {
        case .read(let place, let memory): (offset, buffer, fills) = (place, memory, true)
        case .write(let place, let memory): (offset, buffer, fills) = (place, memory, false)
        default: return nil
        }
        exchange.lockForReading()
        if let list = try? buffer.begin() {
            if let place = try? image.place(of: list, at: offset, forWriting: !fills) {
                if fills { traffic.addDiskRead(list.count) } else { traffic.addDiskWritten(list.count) }
                return DirectTransfer(place: place, list: list, fills: fills, buffer: buffer)
            }
            buffer.end()
        }
        exchange.unlockForReading()
        return nil
    }

    /// A transfer is over, whatever came of it.
    func end(_ transfer: DirectTransfer) {
        transfer.buffer.end()
        exchange.unlockForReading()
    }

    /// Does what the guest asked for, again and again if the host has no room or its disk fails and the user wants to wait
    /// for better times.
    private func carryOut<Result>(_ body: (any DiskImage) throws -> Result) throws -> Result {
        var isWaiting = false
        defer { if isWaiting { waiting.subtract(1, ordering: .relaxed) } }
        while true {
            do { return try exchange.read { try body(try current()) } } catch let error as HostError {
                let isFull = HostErrorNumber.noRoom.contains(error.errno)
                guard policy == .pause, isFull || error.errno == HostErrorNumber.ioError,
                    !isClosing.load(ordering: .relaxed)
                else { throw isFull ? BlockError.noRoom : error }
                if !isWaiting, waiting.add(1, ordering: .relaxed).oldValue == 0 {
                    Terminal.note("roost: disk \(image.path): \(error.reason); the guest waits until it can go on")
                }
                isWaiting = true
                waitASecond()
            }
        }
    }

    /// The image. One that could not be opened again is tried anew.
    private func current() throws -> any DiskImage {
        try opened.withLock { image in
            guard let closed = image as? ClosedImage else { return image }
            do { image = try opening(closed.path, closed.options) } catch {
                // An I/O error, which a disk may wait out.
                throw HostError("\(error)", errno: HostErrorNumber.ioError)
            }
            return image
        }
    }

    private func waitASecond() {
        for _ in 0..<20 where !isClosing.load(ordering: .relaxed) { HostClock.sleep(nanoseconds: 50_000_000) }
    }

    /// Has requests that wait for better times fail.
    func stopWaiting() { isClosing.store(true, ordering: .relaxed) }

    /// Opens a disk's image; what the user should know about it is said on the terminal.
    static func open(_ disk: DiskConfiguration, _ traffic: Traffic) throws(MachineError) -> DiskBackend {
        do {
            let backend = try DiskBackend(disk, traffic) { (path, options) throws(StorageError) in
                try Disk.open(path, options)
            }
            if let note = backend.image.note { Terminal.note("roost: \(note)") }
            return backend
        } catch {
            throw MachineError(error.code == .inUse ? .diskInUse : .disk, error.description)
        }
    }

    /// Opens a disk as `open` does, by a function of the caller's; for tests.
    package convenience init(_ disk: DiskConfiguration, opening: @escaping Opening) throws(StorageError) {
        try self.init(disk, Traffic(), opening)
    }

    /// Gives the image's file another name, which nobody writes to from now on, and goes on with a new image over it in
    /// its place. The guest stands still. An image that can't be opened again at once is when it is needed next.
    package func lay(as layer: String) throws {
        try exchange.write {
            let format = try current().format
            let path = image.path
            try image.flush()
            var name = Qcow2Options()
            name.base = layer.split(separator: "/").last.map(String.init)
            name.baseFormat = format
            // The one that was open must let go of its file.
            var options = options
            // The format that the user named may be that of a layer by now.
            if options.format != nil { options.format = format }
            setAside(path, options)
            defer { reopen() }
            try Self.layFile(path, as: layer, name)
            options.format = .qcow2
            setAside(path, options)
            try DurableFile.synchronize(path.lastIndex(of: "/").map { String(path[...$0]) } ?? ".")
        }
    }

    /// Lets go of the image, and notes how it is to be opened.
    private func setAside(_ path: String, _ options: DiskOptions) {
        opened.withLock { $0 = ClosedImage(byteCount: byteCount, path: path, options) }
    }

    /// Opens the image again.
    private func reopen() {
        var failure: (any Error)?
        for attempt in 0..<Self.attempts {
            if attempt > 0 { HostClock.sleep(nanoseconds: Self.pause) }
            do {
                _ = try current()
                return
            } catch { failure = error }
        }
        if let failure { Terminal.note("roost: disk \(image.path) could not be opened again yet: \(failure)") }
    }

    /// At every moment there is a whole image at `path`, whatever ends this process. When this has returned, it stands on
    /// the layer.
    private static func layFile(_ path: String, as layer: String, _ options: Qcow2Options) throws {
        guard try DurableFile.link(path, as: layer) else {
            throw MachineError(.disk, "its file system has no hard links, which layers need")
        }
        let new = path + ".new"
        do {
            try? FileManager.default.removeItem(atPath: new)
            try Qcow2Image.create(new, options).flush()
            // The folder comes later: if that failed, the image would stand on the layer already.
            try DurableFile.move(new, to: path, isSynchronized: false)
        } catch {
            try? FileManager.default.removeItem(atPath: new)
            try? FileManager.default.removeItem(atPath: layer)
            throw error
        }
    }

    /// Brings everything written to the file; says on the terminal if that fails.
    func close() {
        stopWaiting()
        guard !isReadOnly else { return }
        do { try image.flush() } catch { Terminal.note("roost: disk \(image.path): \(error)") }
    }
}

/// What stands for an image while it is exchanged, or until it can be opened again: nobody asks it for anything.
private final class ClosedImage: DiskImage {
    let path: String
    let byteCount: UInt64
    /// How it is to be opened.
    let options: DiskOptions
    var format: DiskFormat { .raw }
    var isReadOnly: Bool { true }
    var note: String? { nil }

    init(byteCount: UInt64, path: String, _ options: DiskOptions) {
        self.byteCount = byteCount
        self.path = path
        self.options = options
    }

    private func refuse() throws(HostError) -> Never { throw HostError("use \(path)", errno: HostErrorNumber.ioError) }

    func read(at offset: UInt64, into list: ScatterList) throws { try refuse() }
    func write(_ list: ScatterList, at offset: UInt64) throws { try refuse() }
    func flush() throws {}
    func discard(at offset: UInt64, length: UInt64) throws { try refuse() }
    func writeZeroes(at offset: UInt64, length: UInt64, mayUnmap: Bool) throws { try refuse() }
    func extent(at offset: UInt64, limit: UInt64) throws -> DiskExtent { try refuse() }
}
