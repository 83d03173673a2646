// Disk images as what stands behind the machine's block devices.
internal import Devices
internal import Foundation
internal import GuestMemory
internal import HostOS
internal import Storage
internal import Synchronization

/// What becomes of a request that the host can't carry out.
public enum DiskErrorPolicy: String, Sendable, CaseIterable {
    /// The guest gets an error.
    case report
    /// The request is held, and tried again every second until it works.
    case pause
}

/// An open image behind a block device.
final class DiskBackend: BlockBackend {
    /// The image; another one takes its place when a snapshot keeps it.
    private let opened: Mutex<any DiskImage>
    /// Held for reading by requests, for writing while the image is exchanged.
    private let exchange = ReadersWriterLock()
    private let options: DiskOptions
    let writesThrough: Bool
    private let traffic: Traffic
    private let policy: DiskErrorPolicy
    private let limiting: Mutex<(limits: DiskLimits, throttle: DiskThrottle?)>
    private let isClosing = Atomic(false)
    /// Requests that wait for better times.
    private let waiting = Atomic<Int>(0)

    private init(_ image: any DiskImage, _ disk: DiskConfiguration, _ traffic: Traffic) {
        opened = Mutex(image)
        options = disk.options
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

    var byteCount: UInt64 { image.byteCount }
    var isReadOnly: Bool { image.isReadOnly }

    func read(at offset: UInt64, into buffer: TransferBuffer) throws {
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

    func write(_ buffer: TransferBuffer, at offset: UInt64) throws {
        traffic.addDiskWritten(buffer.count)
        throttle?.wait(UInt64(buffer.count))
        try carryOut { image in
            guard image.isRemote else { return try buffer.withMemory { try image.write($0, at: offset) } }
            try image.write(try buffer.withMemory { $0.load() }, at: offset)
        }
    }

    func flush() throws { try carryOut { try $0.flush() } }

    func discard(at offset: UInt64, length: UInt64) throws {
        throttle?.wait(0)
        try carryOut { try $0.discard(at: offset, length: length) }
    }

    func writeZeroes(at offset: UInt64, length: UInt64, mayUnmap: Bool) throws {
        throttle?.wait(0)
        try carryOut { try $0.writeZeroes(at: offset, length: length, mayUnmap: mayUnmap) }
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
            do { return try exchange.read { try body(image) } } catch let error as HostError {
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

    private func waitASecond() {
        for _ in 0..<20 where !isClosing.load(ordering: .relaxed) { HostClock.sleep(nanoseconds: 50_000_000) }
    }

    /// Has requests that wait for better times fail.
    func stopWaiting() { isClosing.store(true, ordering: .relaxed) }

    /// Opens a disk's image; what the user should know about it is said on the terminal.
    static func open(_ disk: DiskConfiguration, _ traffic: Traffic) throws(MachineError) -> DiskBackend {
        do {
            let image = try Disk.open(disk.path, disk.options)
            if let note = image.note { Terminal.note("roost: \(note)") }
            return DiskBackend(image, disk, traffic)
        } catch {
            throw MachineError(error.code == .inUse ? .diskInUse : .disk, error.description)
        }
    }

    /// Gives the image's file another name, which nobody writes to from now on, and goes on with a new image over it in
    /// its place. The guest stands still.
    func lay(as layer: String) throws {
        try exchange.write {
            let path = image.path
            try image.flush()
            var name = Qcow2Options()
            name.base = layer.split(separator: "/").last.map(String.init)
            name.baseFormat = image.format
            // The one that was open must let go of its file.
            opened.withLock { $0 = ClosedImage(byteCount: $0.byteCount, path: path) }
            do {
                try Self.layFile(path, as: layer, name)
            } catch {
                let old = try Disk.open(path, options)
                opened.withLock { $0 = old }
                throw error
            }
            let new = try Disk.open(path, options)
            opened.withLock { $0 = new }
        }
    }

    /// At every moment there is a whole image at `path`, whatever ends this process.
    private static func layFile(_ path: String, as layer: String, _ options: Qcow2Options) throws {
        guard try DurableFile.link(path, as: layer) else {
            throw MachineError(.disk, "its file system has no hard links, which layers need")
        }
        let new = path + ".new"
        do {
            try? FileManager.default.removeItem(atPath: new)
            try Qcow2Image.create(new, options).flush()
            try DurableFile.move(new, to: path)
        } catch {
            try? FileManager.default.removeItem(atPath: new)
            try? FileManager.default.removeItem(atPath: layer)
            throw error
        }
    }

    /// Brings everything written to the file; says on the terminal if that fails.
    func close() {
        stopWaiting()
        guard !image.isReadOnly else { return }
        do { try image.flush() } catch { Terminal.note("roost: disk \(image.path): \(error)") }
    }
}

/// What stands for an image while it is exchanged: nobody asks it for anything.
private final class ClosedImage: DiskImage {
    let path: String
    let byteCount: UInt64
    var format: DiskFormat { .raw }
    var isReadOnly: Bool { true }
    var note: String? { nil }

    init(byteCount: UInt64, path: String) {
        self.byteCount = byteCount
        self.path = path
    }

    private func refuse() throws(HostError) -> Never { throw HostError("use \(path)", errno: HostErrorNumber.ioError) }

    func read(at offset: UInt64, into list: ScatterList) throws { try refuse() }
    func write(_ list: ScatterList, at offset: UInt64) throws { try refuse() }
    func flush() throws {}
    func discard(at offset: UInt64, length: UInt64) throws { try refuse() }
    func writeZeroes(at offset: UInt64, length: UInt64, mayUnmap: Bool) throws { try refuse() }
    func extent(at offset: UInt64, limit: UInt64) throws -> DiskExtent { try refuse() }
}
