// What CD-ROM drives answer beside all that reads blocks.
//
// MMC-6: 6.26 (READ TOC), 6.6 (GET CONFIGURATION) and 5 (features), 6.7 (GET EVENT STATUS NOTIFICATION), 6.22 (READ DISC
// INFORMATION), 6.13 (MECHANISM STATUS).

extension SCSIUnit {
    /// Profiles (MMC-6, table 93): CD-ROM, DVD-ROM.
    private static let (cd, dvd): (UInt16, UInt16) = (0x0008, 0x0010)
    /// Blocks of 2048 bytes that the largest CD holds, 99 minutes.
    private static let largestCD: UInt64 = 99 * 60 * 75

    func executeOnDrive(_ command: SCSICommand) throws(SCSIFailure) -> SCSIResult {
        switch command.operation {
        case 0x43: return try readContents(command)
        case 0x46: return getConfiguration(command)
        case 0x4A: return try getEventStatus(command)
        case 0x51: return try readDiscInformation(command)
        case 0xBD: return answer([0, 0, 0, 0, 0, 0, 0, 0], allocation: Int(command.field(8, 2)))
        default: return try executeOnBlocks(command)
        }
    }

    /// The profile of what is in the drive; nil without a medium.
    private var profile: UInt16? {
        insertedMedium.map { $0.byteCount / blockSize <= Self.largestCD ? Self.cd : Self.dvd }
    }

    /// One data track, or one session.
    private func readContents(_ command: SCSICommand) throws(SCSIFailure) -> SCSIResult {
        let blocks = try medium().byteCount / blockSize
        let isTime = command.flag(1, 1)
        func address(_ block: UInt64) -> [UInt8] {
            if !isTime { return bigEndian(UInt32(clamping: block)) }
            let frames = block + 150
            return [0, UInt8(clamping: frames / 75 / 60), UInt8(frames / 75 % 60), UInt8(frames % 75)]
        }
        func descriptor(_ track: UInt8, _ block: UInt64) -> [UInt8] { [0, 0x14, track, 0] + address(block) }
        let body: [UInt8]
        switch command.block[2] & 0x0F {
        case 0:
            let first = command.block[6]
            guard first <= 1 || first == 0xAA else { throw .sense(.invalidField) }
            body = (first <= 1 ? descriptor(1, 0) : []) + descriptor(0xAA, blocks)
        case 1: body = descriptor(1, 0)
        default: throw .sense(.invalidField)
        }
        return answer(bigEndian(UInt16(body.count + 2)) + [1, 1] + body, allocation: Int(command.field(7, 2)))
    }

    /// Features by number: profiles, core, removable medium, random reads, CD reads, DVD reads.
    private func getConfiguration(_ command: SCSICommand) -> SCSIResult {
        let profile = profile
        func flags(_ profiles: UInt16...) -> UInt8 { profile.map { profiles.contains($0) } == true ? 1 : 0 }
        let features: [(code: UInt16, isCurrent: UInt8, body: [UInt8])] = [
            (
                0x0000, 3,
                bigEndian(Self.dvd) + [flags(Self.dvd), 0] + bigEndian(Self.cd) + [flags(Self.cd), 0]
            ),
            // Physical interface: SCSI.
            (0x0001, 11, [0, 0, 0, 1, 1, 0, 0, 0]),
            // A tray that ejects, and locks.
            (0x0003, 3, [0x29, 0, 0, 0]),
            (0x0010, flags(Self.cd, Self.dvd), bigEndian(UInt32(2048)) + [0, 1, 0, 0]),
            (0x001E, flags(Self.cd) | 8, [0, 0, 0, 0]),
            (0x001F, flags(Self.dvd), []),
        ]
        let (kind, start) = (command.block[1] & 3, UInt16(command.field(2, 2)))
        var body: [UInt8] = []
        for feature in features {
            let isWanted = kind == 2 ? feature.code == start : feature.code >= start
            guard isWanted, kind != 1 || feature.isCurrent & 1 != 0 else { continue }
            body += bigEndian(feature.code) + [feature.isCurrent, UInt8(feature.body.count)] + feature.body
        }
        let header = bigEndian(UInt32(body.count + 4)) + [0, 0] + bigEndian(profile ?? 0)
        return answer(header + body, allocation: Int(command.field(7, 2)))
    }

    /// Polled only, media events only.
    private func getEventStatus(_ command: SCSICommand) throws(SCSIFailure) -> SCSIResult {
        guard command.flag(1, 0) else { throw .sense(.invalidField) }
        guard command.block[4] & 0x10 != 0 else {
            return answer([0, 2, 0x80, 0x10], allocation: Int(command.field(7, 2)))
        }
        let allocation = Int(command.field(7, 2))
        let (event, isOpen) = update { state -> (UInt8, Bool) in
            defer { if allocation >= 8 { state.mediaEvent = 0 } }
            return (state.mediaEvent, state.isTrayOpen)
        }
        let status: UInt8 = (isOpen ? 1 : 0) | (insertedMedium == nil ? 0 : 2)
        return answer([0, 6, 4, 0x10, event, status, 0, 0], allocation: allocation)
    }

    /// A finished disk with one session and one track.
    private func readDiscInformation(_ command: SCSICommand) throws(SCSIFailure) -> SCSIResult {
        _ = try medium()
        guard command.block[1] & 7 == 0 else { throw .sense(.invalidField) }
        let bytes: [UInt8] = [0, 32, 0x0E, 1, 1, 1, 1, 0x20] + [UInt8](repeating: 0, count: 26)
        return answer(bytes, allocation: Int(command.field(7, 2)))
    }
}
