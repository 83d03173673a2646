// What a SCSI unit says of itself: INQUIRY and its pages of vital product data.
//
// SPC-4, 6.4 (INQUIRY), 7.8 (pages 00, 80, 83); SBC-3, 6.5 (pages B0 block limits, B1 characteristics, B2 provisioning).

extension SCSIUnit {
    /// Peripheral device type: direct access, or CD-ROM.
    private var peripheralType: UInt8 { kind == .disk ? 0 : 5 }

    /// - Spec: SPC-4, 6.4
    func inquire(_ command: SCSICommand) throws(SCSIFailure) -> SCSIResult {
        let allocation = Int(command.field(3, 2))
        guard command.flag(1, 0) else {
            guard command.block[2] == 0 else { throw .sense(.invalidField) }
            return answer(Self.standardData(peripheralType, isRemovable: kind == .cdrom), allocation: allocation)
        }
        let page = command.block[2]
        let body = try vitalData(page)
        return answer([peripheralType, page] + bigEndian(UInt16(body.count)) + body, allocation: allocation)
    }

    /// The data for a unit that isn't there, on a target that is.
    static var absentData: [UInt8] { standardData(0x7F, isRemovable: false) }

    private static func standardData(_ type: UInt8, isRemovable: Bool) -> [UInt8] {
        // SPC-4, response format 2 with hierarchical addressing, 31 bytes more, command queuing.
        [type, isRemovable ? 0x80 : 0, 6, 0x12, 31, 0, 0, 2] + padded("Roost", 8)
            + padded(isRemovable ? "CD-ROM" : "Disk", 16) + padded("1", 4)
    }

    private func vitalData(_ page: UInt8) throws(SCSIFailure) -> [UInt8] {
        switch page {
        case 0x00: return kind == .disk ? [0x00, 0x80, 0x83, 0xB0, 0xB1, 0xB2] : [0x00, 0x80, 0x83]
        case 0x80: return Array(identifier.utf8.prefix(64))
        case 0x83:
            // One designator: text, of a vendor's own, of the logical unit.
            let name = padded("Roost", 8) + identifier.utf8.prefix(64)
            return [2, 1, 0, UInt8(name.count)] + name
        case 0xB0 where kind == .disk: return blockLimits
        case 0xB1 where kind == .disk: return [0, 1] + [UInt8](repeating: 0, count: 58)
        case 0xB2 where kind == .disk: return provisioning
        default: throw .sense(.invalidField)
        }
    }

    private var isWritable: Bool { kind == .disk && insertedMedium?.isReadOnly == false }

    /// WRITE SAME of no blocks is refused; granularity 4 KiB.
    private var blockLimits: [UInt8] {
        var bytes: [UInt8] = [1, 0] + bigEndian(UInt16(8))
        bytes += bigEndian(UInt32(UInt64(Self.largestTransfer) / blockSize)) + bigEndian(UInt32(0))
        bytes += bigEndian(UInt32(0))
        bytes += bigEndian(UInt32(isWritable ? Self.largestRange : 0))
        bytes += bigEndian(UInt32(isWritable ? Self.mostRanges : 0))
        bytes += bigEndian(UInt32(8)) + bigEndian(UInt32(0))
        bytes += bigEndian(isWritable ? Self.largestRange : 0)
        return bytes + [UInt8](repeating: 0, count: 60 - bytes.count)
    }

    /// Thin, with UNMAP and both WRITE SAME commands; what was unmapped needn't read as zeroes.
    private var provisioning: [UInt8] { isWritable ? [0, 0xE0, 2, 0] : [0, 0, 0, 0] }
}
