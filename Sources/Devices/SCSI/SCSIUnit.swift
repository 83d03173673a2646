// A SCSI logical unit: a disk or a CD-ROM drive.
//
// SPC-4; SCSI Block Commands 3 (SBC-3) for disks, Multi-Media Commands 6 (MMC-6) for drives. A table of what is answered:
//
//   both    00 TEST UNIT READY  03 REQUEST SENSE  12 INQUIRY  15/55 MODE SELECT  1A/5A MODE SENSE  1B START STOP UNIT
//           1E PREVENT ALLOW MEDIUM REMOVAL  25, 9E/10 READ CAPACITY  08 28 A8 88 READ  2B SEEK  2F 8F VERIFY  A0 REPORT LUNS
//           35, 91 SYNCHRONIZE CACHE
//   disk    0A 2A AA 8A WRITE  41 93 WRITE SAME  42 UNMAP
//   drive   43 READ TOC  46 GET CONFIGURATION  4A GET EVENT STATUS NOTIFICATION  51 READ DISC INFORMATION
//           BD MECHANISM STATUS
internal import DeviceModel
internal import Synchronization

/// A logical unit behind a SCSI controller. Commands come one after the other; media come and go at any time.
public final class SCSIUnit: Sendable {
    /// What it is.
    public enum Kind: Sendable, Equatable {
        /// A direct-access device with blocks of 512 bytes.
        case disk
        /// A drive for disks with blocks of 2048 bytes, which can be taken out.
        case cdrom
    }

    /// What it remembers, as plain data; media are the machine's configuration.
    public struct State: Codable, Sendable, Equatable {
        /// The layout's version.
        public var version = 1
        /// What the guest will be told with its next command.
        var attentions: [SCSISense] = [.powerOn]
        /// The tray is out.
        var isTrayOpen = false
        /// The guest has locked the tray.
        var isLocked = false
        /// The guest has stopped it.
        var isStopped = false
        /// The guest wants every write to be durable, or may lose what it didn't flush.
        var isWriteCacheOn = true
        /// The media event to be reported (MMC-6, table 301): 1 eject request, 2 new medium, 3 removal.
        var mediaEvent: UInt8 = 0
    }

    private struct Contents: Sendable {
        var state = State()
        var medium: (any BlockBackend)?

        /// Opens the tray and lets go of what is in it.
        mutating func open() {
            if medium != nil { state.mediaEvent = 3 }
            medium = nil
            state.isTrayOpen = true
            state.isLocked = false
        }
    }

    /// What it is.
    public let kind: Kind
    /// What the guest reads as serial number.
    public let identifier: String
    private let contents: Mutex<Contents>
    private let ejected: @Sendable () -> Void

    /// Blocks that one command moves at most, bytes: what a guest can make Roost take memory for.
    static let largestTransfer = 16 << 20
    /// Blocks that one UNMAP or WRITE SAME command changes at most.
    static let largestRange: UInt64 = 1 << 22
    /// Descriptors of one UNMAP command at most.
    static let mostRanges = 64

    /// Makes a unit; `ejected` is called when the guest has taken the medium out.
    public init(
        _ kind: Kind, medium: (any BlockBackend)?, identifier: String, ejected: @escaping @Sendable () -> Void = {}
    ) {
        self.kind = kind
        self.identifier = identifier
        self.ejected = ejected
        var first = Contents(medium: medium)
        first.state.isWriteCacheOn = medium?.writesThrough != true
        contents = Mutex(first)
    }

    /// Bytes of a block.
    var blockSize: UInt64 { kind == .disk ? 512 : 2048 }

    // MARK: For the machine

    /// Whether there is a medium.
    public var hasMedium: Bool { contents.withLock { $0.medium != nil } }

    /// Whether the guest has locked the tray.
    public var isLocked: Bool { contents.withLock { $0.state.isLocked } }

    /// Whether the tray is out.
    public var isTrayOpen: Bool { contents.withLock { $0.state.isTrayOpen } }

    /// Puts a medium in and closes the tray; false if there is one.
    public func insert(_ medium: any BlockBackend) -> Bool {
        contents.withLock { contents in
            guard contents.medium == nil else { return false }
            contents.medium = medium
            contents.state.isTrayOpen = false
            contents.state.mediaEvent = 2
            contents.state.attend(.mediumChanged)
            return true
        }
    }

    /// Takes the medium out and leaves the tray open. If the guest has locked it, the guest is asked for it instead and
    /// the answer is false, unless it is `forced`.
    public func remove(forced: Bool) -> Bool {
        contents.withLock { contents in
            if contents.state.isLocked, !forced {
                contents.state.mediaEvent = 1
                return false
            }
            contents.open()
            return true
        }
    }

    /// Lets go of the medium, for good.
    func retire() { contents.withLock { $0.medium = nil } }

    /// Back to the state after power-on; the medium stays.
    func reset(_ attention: SCSISense) {
        contents.withLock { contents in
            let isTrayOpen = contents.state.isTrayOpen
            contents.state = State()
            contents.state.isTrayOpen = isTrayOpen
            contents.state.isWriteCacheOn = contents.medium?.writesThrough != true
            contents.state.attentions = [attention]
        }
    }

    /// The state.
    var state: State { contents.withLock { $0.state } }

    /// Changes the state.
    func update<Result: Sendable>(_ body: (inout State) -> Result) -> Result {
        contents.withLock { body(&$0.state) }
    }

    // MARK: Commands

    /// Carries out a command, on the thread that may wait for the medium.
    func execute(_ command: SCSICommand) throws(SCSIFailure) -> SCSIResult {
        if let attention = takeAttention(command.operation) { throw .sense(attention) }
        switch command.operation {
        case 0x00:
            _ = try medium()
            return SCSIResult()
        case 0x03: return requestSense(command)
        case 0x12: return try inquire(command)
        case 0x15, 0x55: return try selectMode(command)
        case 0x1A, 0x5A: return try senseMode(command)
        case 0x1B: return try startOrStop(command)
        case 0x1E:
            let locks = command.flag(4, 0)
            contents.withLock { $0.state.isLocked = locks && kind == .cdrom }
            return SCSIResult()
        case 0xA0: return try reportUnits(command)
        default: return try kind == .disk ? executeOnDisk(command) : executeOnDrive(command)
        }
    }

    /// What must be reported before this command, if it is one that reports.
    private func takeAttention(_ operation: UInt8) -> SCSISense? {
        let exempt: [UInt8] = [0x03, 0x12, 0xA0, 0x46, 0x4A]
        if exempt.contains(operation) { return nil }
        return contents.withLock { $0.state.takeAttention() }
    }

    /// The medium; that there is none, or that the unit is stopped, is a failure.
    func medium() throws(SCSIFailure) -> any BlockBackend {
        let (medium, state) = contents.withLock { ($0.medium, $0.state) }
        guard let medium else { throw .sense(state.isTrayOpen ? .trayOpen : .noMedium) }
        if state.isStopped { throw .sense(.stopped) }
        return medium
    }

    /// The medium if there is one, whatever the unit's state.
    var insertedMedium: (any BlockBackend)? { contents.withLock { $0.medium } }

    /// - Spec: SPC-4, 6.39
    private func requestSense(_ command: SCSICommand) -> SCSIResult {
        let sense = contents.withLock { contents -> SCSISense in
            if let attention = contents.state.takeAttention() { return attention }
            if contents.medium != nil || kind == .disk { return .none }
            return contents.state.isTrayOpen ? .trayOpen : .noMedium
        }
        return answer(sense.bytes, allocation: Int(command.block[4]))
    }

    /// - Spec: SPC-4, 6.33
    private func reportUnits(_ command: SCSICommand) throws(SCSIFailure) -> SCSIResult {
        guard command.block[2] <= 2 else { throw .sense(.invalidField) }
        let units = command.block[2] == 1 ? [] : [UInt8](repeating: 0, count: 8)
        return answer(bigEndian(UInt32(units.count)) + [0, 0, 0, 0] + units, allocation: Int(command.field(6, 4)))
    }

    /// Starts, stops, loads and ejects.
    ///
    /// - Spec: SBC-3, 5.24; MMC-6, 6.42
    private func startOrStop(_ command: SCSICommand) throws(SCSIFailure) -> SCSIResult {
        let (starts, loads, power) = (command.flag(4, 0), command.flag(4, 1), command.block[4] >> 4)
        if power != 0 { return SCSIResult() }
        if kind == .disk {
            if !starts { try synchronize(try medium()) }
            contents.withLock { $0.state.isStopped = !starts }
            return SCSIResult()
        }
        guard loads else { return SCSIResult() }
        let isGone = try contents.withLock { contents throws(SCSIFailure) -> Bool in
            if starts {
                contents.state.isTrayOpen = false
                return false
            }
            if contents.state.isLocked { throw .sense(.removalPrevented) }
            let hadMedium = contents.medium != nil
            contents.open()
            return hadMedium
        }
        if isGone { ejected() }
        return SCSIResult()
    }

    /// As much of an answer as the guest allows.
    func answer(_ bytes: [UInt8], allocation: Int) -> SCSIResult { SCSIResult(data: Array(bytes.prefix(allocation))) }
}

extension SCSIUnit.State {
    /// Notes something that the guest must hear; the same twice is once, and there are few kinds.
    fileprivate mutating func attend(_ sense: SCSISense) {
        if !attentions.contains(sense) { attentions.append(sense) }
    }

    fileprivate mutating func takeAttention() -> SCSISense? { attentions.isEmpty ? nil : attentions.removeFirst() }
}
