// Mode pages of a SCSI unit.
//
// SPC-4, 6.11 (MODE SENSE), 6.9 (MODE SELECT), 7.5; SBC-3, 6.4; MMC-6, 7.
//
//   01 error recovery   08 caching (disk)   0A control   2A capabilities (drive)   3F all
//   header   6: length 8, medium type 8, device-specific 8 (7 write-protected, 4 DPO and FUA), block descriptors' length 8
//           10: length 16, medium type 8, device-specific 8, 16 reserved, block descriptors' length 16

extension SCSIUnit {
    /// - Spec: SPC-4, 6.11 and 6.12
    func senseMode(_ command: SCSICommand) throws(SCSIFailure) -> SCSIResult {
        let isLong = command.operation == 0x5A
        let control = command.block[2] >> 6
        let page = command.block[2] & 0x3F
        guard control != 3 else { throw .sense(.savingUnsupported) }
        guard command.block[3] == 0 || command.block[3] == 0xFF else { throw .sense(.invalidField) }
        var pages: [UInt8] = []
        for number in page == 0x3F ? [0x01, 0x08, 0x0A, 0x2A] : [page] {
            if let bytes = modePage(number, isMask: control == 1) { pages += bytes }
        }
        guard !pages.isEmpty else { throw .sense(.invalidField) }
        let descriptor = command.flag(1, 3) || kind == .cdrom ? [] : blockDescriptor
        let isProtected = insertedMedium?.isReadOnly ?? true
        let specific: UInt8 = kind == .disk ? (isProtected ? 0x80 : 0) | 0x10 : 0
        let count = descriptor.count + pages.count
        let header =
            isLong
            ? bigEndian(UInt16(count + 6)) + [0, specific, 0, 0] + bigEndian(UInt16(descriptor.count))
            : [UInt8(count + 3), 0, specific, UInt8(descriptor.count)]
        return answer(
            header + descriptor + pages, allocation: Int(isLong ? command.field(7, 2) : UInt64(command.block[4])))
    }

    /// The number of blocks, and their length.
    private var blockDescriptor: [UInt8] {
        let blocks = (insertedMedium?.byteCount ?? 0) / blockSize
        return bigEndian(UInt32(clamping: blocks)) + bigEndian(UInt32(blockSize))
    }

    /// A page, or the mask of what can be changed in it; nil if there is none.
    private func modePage(_ number: UInt8, isMask: Bool) -> [UInt8]? {
        func page(_ body: [UInt8], _ mask: [UInt8]? = nil) -> [UInt8] {
            [number, UInt8(body.count)] + (isMask ? mask ?? [UInt8](repeating: 0, count: body.count) : body)
        }
        switch (number, kind) {
        case (0x01, _): return page([kind == .disk ? 0x80 : 0] + [UInt8](repeating: 0, count: 9))
        case (0x08, .disk):
            let rest = [UInt8](repeating: 0, count: 17)
            return page([state.isWriteCacheOn ? 4 : 0] + rest, [4] + rest)
        case (0x0A, .disk): return page([0, 0x10, 0, 0, 0, 0, 0xFF, 0xFF, 0, 0])
        case (0x2A, .cdrom):
            // Reads CD-R, CD-RW and DVD-ROM; tray that opens by command, and locks.
            let body: [UInt8] = [0x0B, 0, 0x71, 0x60, 0x29 | (isLocked ? 2 : 0), 0]
            return page(body + bigEndian(UInt16(5540)) + [0, 0, 0, 0] + bigEndian(UInt16(5540)) + [0, 0, 0, 0])
        default: return nil
        }
    }

    /// Sets whether writes may be kept in a cache, the one thing that can be set.
    ///
    /// - Spec: SPC-4, 6.9 and 6.10
    func selectMode(_ command: SCSICommand) throws(SCSIFailure) -> SCSIResult {
        let isLong = command.operation == 0x55
        let count = Int(isLong ? command.field(7, 2) : UInt64(command.block[4]))
        if count == 0 { return SCSIResult() }
        guard !command.flag(1, 0) else { throw .sense(.invalidField) }
        let bytes = try command.parameters(count)
        let header = isLong ? 8 : 4
        guard count >= header else { throw .sense(.parameterLength) }
        var place = header + (isLong ? Int(bytes[6]) << 8 | Int(bytes[7]) : Int(bytes[3]))
        guard place <= count else { throw .sense(.parameterLength) }
        var cache: Bool?
        while place < count {
            guard place + 2 <= count, bytes[place] & 0x40 == 0 else { throw .sense(.invalidParameter) }
            let length = Int(bytes[place + 1])
            guard place + 2 + length <= count else { throw .sense(.parameterLength) }
            guard let page = modePage(bytes[place] & 0x3F, isMask: false), page.count == length + 2 else {
                throw .sense(.invalidParameter)
            }
            if bytes[place] & 0x3F == 8 { cache = bytes[place + 2] & 4 != 0 }
            place += 2 + length
        }
        if let cache {
            if !cache { try synchronize(try medium()) }
            update { $0.isWriteCacheOn = cache }
        }
        return SCSIResult(taken: count)
    }
}
