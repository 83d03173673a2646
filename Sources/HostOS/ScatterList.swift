// Pieces of memory that one transfer goes to or comes from (`struct iovec`, readv(2)).
//
// Invariants: every piece is mapped for as long as the list exists, which its owner sees to, or whoever lends the memory
// for the length of a call; pieces aren't empty; `count` is the sum of their lengths.
internal import Glibc

/// Memory in pieces, as one run of bytes. Others, a guest above all, may write to it meanwhile: what is read is copied
/// first, and looked at once.
@safe public struct ScatterList: @unchecked Sendable {
    // SAFETY of @unchecked and @safe: see the invariants.
    private(set) var pieces: [iovec]
    private let owner: AnyObject?
    /// Bytes.
    public let count: Int

    /// Memory that `owner` keeps mapped.
    public init(_ ranges: [UnsafeMutableRawBufferPointer], owner: AnyObject) {
        self.init(
            ranges.filter { !$0.isEmpty }.map { iovec(iov_base: $0.baseAddress, iov_len: $0.count) }, owner,
            ranges.reduce(0) { $0 + $1.count })
    }

    /// `count` zeroes of its own.
    public init(count: Int) {
        let memory = OwnMemory(count)
        self.init([memory.bytes], owner: memory)
    }

    private init(_ pieces: [iovec], _ owner: AnyObject?, _ count: Int) {
        self.pieces = pieces
        self.owner = owner
        self.count = count
    }

    /// Memory lent for the length of a call.
    init(lent memory: UnsafeMutableRawBufferPointer) {
        self.init(
            memory.isEmpty ? [] : [iovec(iov_base: memory.baseAddress, iov_len: memory.count)], nil, memory.count)
    }

    /// A part of it.
    public subscript(range: Range<Int>) -> ScatterList {
        precondition(range.lowerBound >= 0 && range.upperBound <= count)
        if range.count == count { return self }
        var parts: [iovec] = []
        forEach(in: range) { parts.append(iovec(iov_base: $0.baseAddress, iov_len: $0.count)) }
        return ScatterList(parts, owner, range.count)
    }

    /// Its first bytes, at most `most`.
    public func prefix(_ most: Int) -> ScatterList { self[0..<min(most, count)] }

    /// What comes after the first bytes.
    public func dropFirst(_ number: Int) -> ScatterList { self[min(number, count)..<count] }

    /// Whether all addresses and lengths are multiples of a power of two.
    func isAligned(to size: Int) -> Bool {
        pieces.allSatisfy { (UInt(bitPattern: $0.iov_base) | UInt($0.iov_len)) & UInt(size - 1) == 0 }
    }

    // MARK: Content

    private func forEach(in range: Range<Int>, _ body: (UnsafeMutableRawBufferPointer) -> Void) {
        var start = 0
        for piece in pieces {
            let part =
                max(
                    range.lowerBound, start)..<max(
                    max(range.lowerBound, start), min(range.upperBound, start + piece.iov_len))
            if !part.isEmpty {
                body(
                    UnsafeMutableRawBufferPointer(start: piece.iov_base! + (part.lowerBound - start), count: part.count)
                )
            }
            start += piece.iov_len
            if start >= range.upperBound { break }
        }
    }

    /// Copies bytes to its beginning, as many as fit.
    func copy(from source: UnsafeRawBufferPointer) {
        var done = 0
        forEach(in: 0..<min(count, source.count)) { piece in
            piece.copyMemory(from: UnsafeRawBufferPointer(rebasing: source[done..<done + piece.count]))
            done += piece.count
        }
    }

    /// Copies its bytes, as many as fit.
    func copy(to target: UnsafeMutableRawBufferPointer) {
        var done = 0
        forEach(in: 0..<min(count, target.count)) { piece in
            (target.baseAddress! + done).copyMemory(from: piece.baseAddress!, byteCount: piece.count)
            done += piece.count
        }
    }

    /// Copies bytes to its beginning, as many as fit.
    public func store(_ bytes: ArraySlice<UInt8>) { bytes.withUnsafeBytes { copy(from: $0) } }

    /// Copies bytes to its beginning, as many as fit.
    public func store(_ bytes: [UInt8]) { store(bytes[...]) }

    /// A copy of its bytes.
    public func load() -> [UInt8] {
        [UInt8](unsafeUninitializedCapacity: count) { buffer, filled in
            copy(to: UnsafeMutableRawBufferPointer(buffer))
            filled = count
        }
    }

    /// Fills it with zeroes.
    public func zero() { forEach(in: 0..<count) { memset($0.baseAddress!, 0, $0.count) } }
}

private final class OwnMemory {
    let bytes: UnsafeMutableRawBufferPointer

    init(_ count: Int) {
        bytes = UnsafeMutableRawBufferPointer(start: count > 0 ? calloc(1, count)! : nil, count: count)
    }
    deinit { free(bytes.baseAddress) }
}

extension Array where Element == UInt8 {
    /// Lends a part of an array, to be filled; `body` must not keep the list.
    public mutating func withScatterList<Result, Failure: Error>(
        _ range: Range<Int>, _ body: (ScatterList) throws(Failure) -> Result
    ) throws(Failure) -> Result {
        precondition(range.lowerBound >= 0 && range.upperBound <= count)
        return try withUnsafeMutableBufferPointer { (buffer) throws(Failure) in
            try body(
                ScatterList(lent: UnsafeMutableRawBufferPointer(UnsafeMutableBufferPointer(rebasing: buffer[range]))))
        }
    }
}

extension ArraySlice where Element == UInt8 {
    /// Lends its bytes, to be read; `body` must not keep the list.
    public func withScatterList<Result, Failure: Error>(
        _ body: (ScatterList) throws(Failure) -> Result
    ) throws(Failure) -> Result {
        try withUnsafeBufferPointer { (buffer) throws(Failure) in
            try body(ScatterList(lent: UnsafeMutableRawBufferPointer(mutating: UnsafeRawBufferPointer(buffer))))
        }
    }
}

// MARK: Transfers

extension FileDescriptor {
    /// Most pieces of one call (`IOV_MAX`).
    static let mostPieces = 1024

    /// Fills a list from `offset`; returns how many bytes there were before the end of the file (`preadv(2)`).
    public func read(at offset: UInt64, into list: ScatterList) throws(HostError) -> Int {
        try move(list, "read") { preadv(rawValue, $0, $1, Int(truncatingIfNeeded: offset) &+ $2) }
    }

    /// Writes a list's bytes at `offset` (`pwritev(2)`).
    public func write(_ list: ScatterList, at offset: UInt64) throws(HostError) {
        let put = try move(list, "write") { pwritev(rawValue, $0, $1, Int(truncatingIfNeeded: offset) &+ $2) }
        if put < list.count { throw HostError("write", errno: EIO) }
    }

    /// What one call can move. A process that is killed between two calls leaves whole sectors, as a disk does.
    private static func oneCall(of list: ScatterList) -> ScatterList {
        guard list.pieces.count > mostPieces else { return list }
        let count = list.pieces[..<mostPieces].reduce(0) { $0 + $1.iov_len }
        return list.prefix(count < 512 ? count : count & ~511)
    }

    /// Moves a list's bytes by as many calls as it takes, up to one that moves nothing.
    private func move(
        _ list: ScatterList, _ name: String, _ call: (UnsafePointer<iovec>, Int32, Int) -> Int
    ) throws(HostError) -> Int {
        var rest = list
        while rest.count > 0 {
            let done = list.count - rest.count
            let part = Self.oneCall(of: rest)
            let moved = try retrying(name) {
                part.pieces.withUnsafeBufferPointer { call($0.baseAddress!, Int32($0.count), done) }
            }
            if moved == 0 { break }
            rest = rest.dropFirst(moved)
        }
        return list.count - rest.count
    }
}
