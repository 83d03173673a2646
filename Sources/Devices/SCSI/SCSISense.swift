// Why a SCSI command failed, and how commands end.
//
// SCSI Primary Commands 4 (SPC-4), 4.5 (sense data, fixed format) and Annex F (additional sense codes); SCSI Architecture
// Model 5 (SAM-5), 5.3.1 (status).
//
//   sense  00 response code 70h   02 key   07 additional length   0C code   0D qualifier

/// What a device says of a command that failed: sense key, additional sense code and its qualifier.
///
/// - Spec: SPC-4, 4.5.6 and Annex F.2
struct SCSISense: Error, Sendable, Equatable, Codable {
    /// The sense key, four bits.
    var key: UInt8
    /// The additional sense code.
    var code: UInt8
    /// Its qualifier.
    var qualifier: UInt8

    private init(_ key: UInt8, _ code: UInt8, _ qualifier: UInt8) {
        self.key = key
        self.code = code
        self.qualifier = qualifier
    }

    /// Nothing to say.
    static let none = SCSISense(0, 0, 0)
    /// No medium, the tray is closed.
    static let noMedium = SCSISense(2, 0x3A, 1)
    /// No medium, the tray is open.
    static let trayOpen = SCSISense(2, 0x3A, 2)
    /// The unit has been stopped.
    static let stopped = SCSISense(2, 4, 2)
    /// The medium couldn't be read.
    static let readError = SCSISense(3, 0x11, 0)
    /// The medium couldn't be written.
    static let writeError = SCSISense(3, 0x0C, 0)
    /// There is no such command.
    static let invalidCommand = SCSISense(5, 0x20, 0)
    /// A block beyond the end.
    static let outOfRange = SCSISense(5, 0x21, 0)
    /// A field of the command makes no sense.
    static let invalidField = SCSISense(5, 0x24, 0)
    /// There is no such logical unit.
    static let noSuchUnit = SCSISense(5, 0x25, 0)
    /// A field of the parameters makes no sense.
    static let invalidParameter = SCSISense(5, 0x26, 0)
    /// The parameters are too short.
    static let parameterLength = SCSISense(5, 0x1A, 0)
    /// Mode pages aren't saved.
    static let savingUnsupported = SCSISense(5, 0x39, 0)
    /// The guest has locked the tray.
    static let removalPrevented = SCSISense(5, 0x53, 2)
    /// Another medium, or one where there was none.
    static let mediumChanged = SCSISense(6, 0x28, 0)
    /// Power came on.
    static let powerOn = SCSISense(6, 0x29, 0)
    /// The unit was reset.
    static let unitReset = SCSISense(6, 0x29, 3)
    /// The unit can't be written.
    static let writeProtected = SCSISense(7, 0x27, 0)
    /// There is no room left behind the unit.
    static let noRoom = SCSISense(7, 0x27, 7)

    /// As the guest reads it, in fixed format.
    var bytes: [UInt8] { [0x70, 0, key, 0, 0, 0, 0, 10, 0, 0, 0, 0, code, qualifier, 0, 0, 0, 0] }
}

/// How a command ended.
struct SCSIResult: Sendable {
    /// GOOD, or CHECK CONDITION with sense data.
    ///
    /// - Spec: SAM-5, 5.3.1
    static let good: UInt8 = 0
    static let checkCondition: UInt8 = 2

    /// The status.
    var status: UInt8
    /// What the guest reads.
    var data: [UInt8] = []
    /// How much of what the guest sent was used.
    var taken = 0
    /// Sense data.
    var sense: [UInt8] = []

    /// It was done.
    init(data: [UInt8] = [], taken: Int = 0) {
        status = Self.good
        self.data = data
        self.taken = taken
    }

    /// It failed.
    init(_ failure: SCSISense) {
        status = Self.checkCondition
        sense = failure.bytes
    }
}

/// A command as it came: its bytes, the room for what it reads, and what it writes.
struct SCSICommand {
    /// The command descriptor block, padded to 16 bytes at least.
    let block: [UInt8]
    /// Bytes that the guest has room for.
    let room: Int
    /// Bytes that the guest sends.
    let sent: Int
    private let gather: (Int) -> [UInt8]

    /// A command; `gather` copies that many of the bytes that the guest sends.
    init(block: [UInt8], room: Int, sent: Int, gather: @escaping (Int) -> [UInt8]) {
        self.block = block + [UInt8](repeating: 0, count: max(0, 16 - block.count))
        self.room = room
        self.sent = sent
        self.gather = gather
    }

    /// The operation code.
    var operation: UInt8 { block[0] }

    /// A field of `count` bytes, most significant first.
    func field(_ start: Int, _ count: Int) -> UInt64 {
        block[start..<start + count].reduce(0) { $0 << 8 | UInt64($1) }
    }

    /// Whether a bit of a byte is set.
    func flag(_ byte: Int, _ bit: UInt8) -> Bool { block[byte] >> bit & 1 != 0 }

    /// Exactly `count` bytes of what the guest sends.
    func parameters(_ count: Int) throws(SCSIFailure) -> [UInt8] {
        guard count <= sent else { throw .overrun }
        let bytes = gather(count)
        guard bytes.count == count else { throw .overrun }
        return bytes
    }
}

/// Why a command wasn't done.
enum SCSIFailure: Error {
    /// The command failed.
    case sense(SCSISense)
    /// The command needs more data, or room, than the guest gave it.
    case overrun
}

/// Big-endian bytes of a number.
func bigEndian<Number: FixedWidthInteger>(_ value: Number) -> [UInt8] { littleEndian(value).reversed() }

/// Text in a field of fixed width, padded with spaces.
func padded(_ text: String, _ count: Int) -> [UInt8] {
    let bytes = text.utf8.map { 0x20...0x7E ~= $0 ? $0 : 0x3F }.prefix(count)
    return bytes + [UInt8](repeating: 0x20, count: count - bytes.count)
}
