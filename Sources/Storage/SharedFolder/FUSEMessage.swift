// The messages of FUSE, as far as they are fixed: what a guest's request says, and the bytes of an answer.
//
// <linux/fuse.h>, protocol 7.31, little-endian:
//
//   request   00 len 32   04 opcode 32   08 unique 64   10 nodeid 64   18 uid 32   1C gid 32   20 pid 32   28 arguments
//   answer    00 len 32   04 error 32 (negative errno)  08 unique 64   10 results

/// What a request asks for.
enum FUSEOperation: UInt32 {
    case lookUp = 1
    case forget = 2
    case getAttributes = 3
    case setAttributes = 4
    case readLink = 5
    case makeSymbolicLink = 6
    case makeNode = 8
    case makeFolder = 9
    case removeFile = 10
    case removeFolder = 11
    case rename = 12
    case link = 13
    case open = 14
    case read = 15
    case write = 16
    case fileSystemStatus = 17
    case release = 18
    case synchronize = 20
    case flush = 25
    case initialize = 26
    case openFolder = 27
    case readFolder = 28
    case releaseFolder = 29
    case synchronizeFolder = 30
    case create = 35
    case interrupt = 36
    case destroy = 38
    case batchForget = 42
    case changeRoom = 43
    case renameWithFlags = 45
    case seek = 46
}

/// Why a request failed: an errno.
struct FUSEError: Error {
    var errno: Int32
    init(_ errno: Int32) { self.errno = errno }
    // Linux numbers, the same for every architecture here.
    static let notPermitted = FUSEError(1)
    static let notFound = FUSEError(2)
    static let badHandle = FUSEError(9)
    static let invalid = FUSEError(22)
    static let tooManyFiles = FUSEError(23)
    static let readOnly = FUSEError(30)
    static let notImplemented = FUSEError(38)
    static let otherFileSystem = FUSEError(18)
    static let noMemory = FUSEError(12)
    static let stale = FUSEError(116)
    static let notSupported = FUSEError(95)
}

/// A request; numbers that aren't there are an error.
struct FUSERequest {
    static let headerLength = 40
    let bytes: [UInt8]
    private var place = FUSERequest.headerLength

    init?(_ bytes: [UInt8]) {
        guard bytes.count >= Self.headerLength else { return nil }
        self.bytes = bytes
        guard Int(header(0, 4)) == bytes.count else { return nil }
    }

    private func header(_ offset: Int, _ size: Int) -> UInt64 {
        (0..<size).reduce(0) { $0 | UInt64(bytes[offset + $1]) << UInt64($1 * 8) }
    }

    var operation: FUSEOperation? { FUSEOperation(rawValue: UInt32(header(4, 4))) }
    var unique: UInt64 { header(8, 8) }
    var node: UInt64 { header(0x10, 8) }
    /// Bytes of arguments not yet taken.
    var left: Int { bytes.count - place }

    private mutating func number(_ size: Int) throws(FUSEError) -> UInt64 {
        guard left >= size else { throw .invalid }
        defer { place += size }
        return header(place, size)
    }

    mutating func word() throws(FUSEError) -> UInt32 { UInt32(truncatingIfNeeded: try number(4)) }
    mutating func long() throws(FUSEError) -> UInt64 { try number(8) }

    mutating func skip(_ count: Int) throws(FUSEError) {
        guard count <= left else { throw .invalid }
        place += count
    }

    /// Text that ends with a zero byte.
    mutating func text() throws(FUSEError) -> [UInt8] {
        guard let end = bytes[place...].firstIndex(of: 0) else { throw .invalid }
        defer { place = end + 1 }
        return Array(bytes[place..<end])
    }

    /// Data of a length.
    mutating func data(_ count: Int) throws(FUSEError) -> ArraySlice<UInt8> {
        guard count >= 0, count <= left else { throw .invalid }
        defer { place += count }
        return bytes[place..<place + count]
    }
}

/// The results of a request.
struct FUSEReply {
    static let headerLength = 16
    private(set) var bytes: [UInt8] = []

    mutating func word(_ value: UInt32) { for n in 0..<4 { bytes.append(UInt8(truncatingIfNeeded: value >> (n * 8))) } }
    mutating func long(_ value: UInt64) { for n in 0..<8 { bytes.append(UInt8(truncatingIfNeeded: value >> (n * 8))) } }
    mutating func data(_ more: some Collection<UInt8>) { bytes.append(contentsOf: more) }
    mutating func zeroes(_ count: Int) { bytes.append(contentsOf: repeatElement(0, count: count)) }

    /// Adds a folder's entry, padded; false if that would be more than so many bytes in all.
    mutating func folderEntry(_ name: [UInt8], inode: UInt64, type: UInt32, next: UInt64, room: Int) -> Bool {
        let padded = (name.count + 7) & ~7
        guard bytes.count + 24 + padded <= room else { return false }
        long(inode)
        long(next)
        word(UInt32(name.count))
        word(type)
        data(name)
        zeroes(padded - name.count)
        return true
    }

    /// An answer as it goes to the guest.
    static func message(_ unique: UInt64, error: Int32 = 0, _ results: [UInt8] = []) -> [UInt8] {
        var header = FUSEReply()
        header.word(UInt32(truncatingIfNeeded: headerLength + results.count))
        header.word(UInt32(bitPattern: -error))
        header.long(unique)
        return header.bytes + results
    }
}

extension [UInt8] {
    /// A number of 64 bits in a message; nil where it isn't whole.
    func long(at offset: Int) -> UInt64? {
        guard offset >= 0, offset + 8 <= count else { return nil }
        return (0..<8).reduce(0) { $0 | UInt64(self[offset + $1]) << UInt64($1 * 8) }
    }

    /// Changes a number of 64 bits that is there.
    mutating func setLong(_ value: UInt64, at offset: Int) {
        for n in 0..<8 { self[offset + n] = UInt8(truncatingIfNeeded: value >> UInt64(n * 8)) }
    }
}
