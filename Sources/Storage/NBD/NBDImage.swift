// A disk on an NBD server.
public import HostOS
internal import Synchronization

/// An export of an NBD server: `nbd://HOST[:PORT]/EXPORT`, `nbds://` with TLS, `nbd+unix:///EXPORT?socket=PATH`.
///
/// A connection that breaks is made again, and the request repeated. What was written before and not flushed may have been
/// lost with the server: then the next flush fails, once.
public final class NBDImage: DiskImage {
    /// The URI.
    public let path: String
    /// Bytes, a multiple of 512.
    public let byteCount: UInt64
    /// Whether writes fail.
    public let isReadOnly: Bool
    /// Something the user should know, in one line.
    public var note: String? { nil }
    /// Raw: an export is a disk.
    public var format: DiskFormat { .raw }
    /// Whether several connections may be used at once.
    public let allowsSeveral: Bool

    private final class Lane: Sendable {
        let connection: Mutex<NBDConnection?>
        /// Something was written over the connection that isn't durable yet; changes while the connection is held.
        let isDirty = Atomic(false)
        init(_ connection: NBDConnection?) { self.connection = Mutex(connection) }
    }

    private let lanes: [Lane]
    private let nextLane = Atomic<Int>(0)
    /// How often a connection broke over which something was written that wasn't durable.
    private let losses = Atomic<UInt64>(0)
    /// Losses that a flush has told of.
    private let told = Atomic<UInt64>(0)
    private let isDown = Atomic(false)
    private let cache: CacheMode
    private let most: UInt64

    /// Connections at once to a server that allows several.
    private static let mostConnections = 4
    /// A quarter of a second, so often: how long a server may be away.
    private static let attempts = 20

    /// Whether a path is a URI of this kind.
    static func isURI(_ path: String) -> Bool {
        ["nbd://", "nbds://", "nbd+unix://", "nbds+unix://"].contains { path.hasPrefix($0) }
    }

    /// Connects.
    init(_ uri: String, readOnly: Bool, cache: CacheMode) throws(StorageError) {
        let connection = try NBDConnection(uri)
        path = uri
        byteCount = connection.byteCount & ~511
        isReadOnly = readOnly || connection.isReadOnly
        self.cache = cache
        guard readOnly || !connection.isReadOnly else {
            throw StorageError(.notWritable, "disk \(uri): the server exports it read-only; add ,readonly")
        }
        guard byteCount >= 512 else { throw StorageError(.empty, "disk \(uri): holds less than one sector of 512") }
        let sizes = connection.blockSizes
        guard sizes.least <= 512 else {
            throw StorageError(.unsupported, "disk \(uri): the server wants blocks of \(sizes.least) bytes, not 512")
        }
        most = max(512, min(sizes.most == 0 ? 32 << 20 : sizes.most, 32 << 20) & ~511)
        allowsSeveral = connection.allowsSeveral
        lanes = [Lane(connection)] + (1..<(allowsSeveral ? Self.mostConnections : 1)).map { _ in Lane(nil) }
    }

    // MARK: Connections

    /// Does something on the connection whose turn it is.
    private func onConnection<Result: Sendable>(_ body: (NBDConnection, Lane) throws -> Result) throws -> Result {
        let number = nextLane.wrappingAdd(1, ordering: .relaxed).oldValue
        let lane = lanes[Int(UInt(bitPattern: number) % UInt(lanes.count))]
        return try on(lane) { try body($0, lane) }
    }

    /// Does something on a connection, which is made again if it is broken.
    private func on<Result: Sendable>(_ lane: Lane, _ body: (NBDConnection) throws -> Result) throws -> Result {
        try lane.connection.withLock { connection in
            for _ in 0..<2 {
                do {
                    let current = try connection ?? reconnect()
                    connection = current
                    return try body(current)
                } catch {
                    guard let broken = connection, broken.isBroken else { throw error }
                    connection = nil
                    if lane.isDirty.exchange(false, ordering: .acquiringAndReleasing) {
                        losses.wrappingAdd(1, ordering: .acquiringAndReleasing)
                    }
                }
            }
            throw HostError("use \(path)", errno: HostErrorNumber.ioError)
        }
    }

    /// Connects to the server again, which must have the same export; one that was away already is asked once.
    private func reconnect() throws -> NBDConnection {
        var failure: any Error = HostError("connect", errno: HostErrorNumber.ioError)
        for attempt in 0..<(isDown.load(ordering: .relaxed) ? 1 : Self.attempts) {
            if attempt > 0 { HostClock.sleep(nanoseconds: 250_000_000) }
            do {
                let connection = try NBDConnection(path)
                guard connection.byteCount & ~511 == byteCount, isReadOnly || !connection.isReadOnly else {
                    throw StorageError(.damaged, "disk \(path): the server has another export under this name now")
                }
                isDown.store(false, ordering: .relaxed)
                return connection
            } catch let error as StorageError where error.code == .host {
                failure = error
            }
        }
        isDown.store(true, ordering: .relaxed)
        // An I/O error, which a disk may wait out.
        throw HostError("\(failure)", errno: HostErrorNumber.ioError)
    }

    /// Parts of a range, none longer than `most`.
    private func parts(_ length: UInt64, _ most: UInt64, _ body: (UInt64, UInt64) throws -> Void) rethrows {
        var done: UInt64 = 0
        while done < length {
            let count = min(most, length - done)
            try body(done, count)
            done += count
        }
    }

    private var forces: Bool { cache == .writethrough }

    /// Notes that something was written; forced writes are durable.
    private func wrote(over lane: Lane, _ wasForced: Bool) {
        if !wasForced && cache != .unsafe { lane.isDirty.store(true, ordering: .releasing) }
    }

    // MARK: Transfers

    /// On its server.
    public var isRemote: Bool { true }

    /// Fills memory from `offset`.
    public func read(at offset: UInt64, into list: ScatterList) throws {
        try checkRange(offset, UInt64(list.count))
        var bytes = [UInt8](repeating: 0, count: list.count)
        try parts(UInt64(list.count), most) { done, count in
            try onConnection { connection, _ in
                try connection.read(at: offset + done, into: &bytes, Int(done)..<Int(done + count))
            }
        }
        list.store(bytes)
    }

    /// Writes memory at `offset`.
    public func write(_ list: ScatterList, at offset: UInt64) throws {
        try checkWritable(offset, UInt64(list.count))
        let bytes = list.load()
        try parts(UInt64(bytes.count), most) { done, count in
            let part = bytes[bytes.startIndex + Int(done)..<bytes.startIndex + Int(done + count)]
            try onConnection { connection, lane in
                let isForced = forces && connection.forces
                try connection.write(part, at: offset + done, forced: isForced)
                wrote(over: lane, isForced)
            }
        }
    }

    /// Makes everything written durable; flushes that were under way when something was lost all tell of it.
    ///
    /// Each connection flushes what went over it: another that is new would find a server that was started again, and
    /// succeed without what that has lost.
    public func flush() throws {
        let known = told.load(ordering: .acquiring)
        for lane in lanes where lane.isDirty.load(ordering: .acquiring) { try flush(lane) }
        let lost = losses.load(ordering: .acquiring)
        guard lost != known else { return }
        told.store(lost, ordering: .releasing)
        // None that goes away by waiting, as the host's errors may.
        throw StorageError(
            .host, "disk \(path): the connection broke, and what was written before may be lost with the server")
    }

    private func flush(_ lane: Lane) throws {
        try on(lane) { connection in
            // Nothing is left if another flush was here, or the connection is a new one.
            guard lane.isDirty.load(ordering: .acquiring) else { return }
            if connection.flushes { try connection.flush() }
            lane.isDirty.store(false, ordering: .releasing)
        }
    }

    /// Says that a range isn't needed any more.
    public func discard(at offset: UInt64, length: UInt64) throws {
        try checkWritable(offset, length)
        try parts(length, 1 << 30) { done, count in
            try onConnection { connection, _ in
                if connection.trims { try connection.trim(at: offset + done, length: count) }
            }
        }
    }

    /// Makes a range read as zeroes.
    public func writeZeroes(at offset: UInt64, length: UInt64, mayUnmap: Bool) throws {
        try checkWritable(offset, length)
        let canZero = try onConnection { connection, _ in connection.zeroes }
        guard canZero else {
            let zeroes = [UInt8](repeating: 0, count: Int(min(length, 1 << 20)))
            return try parts(length, 1 << 20) { done, count in
                try write(zeroes[..<Int(count)], at: offset + done)
            }
        }
        try parts(length, 1 << 30) { done, count in
            try onConnection { connection, lane in
                let isForced = forces && connection.forces
                try connection.zero(at: offset + done, length: count, mayUnmap: mayUnmap, forced: isForced)
                wrote(over: lane, isForced)
            }
        }
    }

    /// Data, as far as is known.
    public func extent(at offset: UInt64, limit: UInt64) throws -> DiskExtent {
        try checkRange(offset, limit)
        return DiskExtent(length: limit, isZero: false)
    }
}
