// Reading and writing blocks: what disks and drives share, and what only disks do.
//
// SBC-3, 5 (READ, WRITE, SYNCHRONIZE CACHE, UNMAP, WRITE SAME, READ CAPACITY).
internal import DeviceModel

/// Blocks of a unit that a command names.
private struct Blocks {
    var first: UInt64
    var count: UInt64

    /// From a command of 6, 10, 12 or 16 bytes, as its operation code's upper bits say (SPC-4, 4.2.5.1).
    init(_ command: SCSICommand) {
        switch command.operation >> 5 {
        case 0:
            (first, count) = (command.field(1, 3) & 0x1F_FFFF, command.block[4] == 0 ? 256 : UInt64(command.block[4]))
        case 4: (first, count) = (command.field(2, 8), command.field(10, 4))
        case 5: (first, count) = (command.field(2, 4), command.field(6, 4))
        default: (first, count) = (command.field(2, 4), command.field(7, 2))
        }
    }
}

extension SCSIUnit {
    /// Commands that disks know beside those of all units.
    func executeOnDisk(_ command: SCSICommand) throws(SCSIFailure) -> SCSIResult {
        switch command.operation {
        case 0x0A, 0x2A, 0xAA, 0x8A: return try write(command)
        case 0x41, 0x93: return try writeSame(command)
        case 0x42: return try unmap(command)
        default: return try executeOnBlocks(command)
        }
    }

    /// Commands on blocks that disks and drives know.
    func executeOnBlocks(_ command: SCSICommand) throws(SCSIFailure) -> SCSIResult {
        switch command.operation {
        case 0x08, 0x28, 0xA8, 0x88: return try read(command)
        case 0x25: return try readCapacity(command)
        case 0x9E where command.block[1] & 0x1F == 0x10: return try readLongCapacity(command)
        case 0x2B, 0x2F, 0x8F:
            // SEEK, and VERIFY without data to compare with: whether the blocks are there.
            guard command.operation == 0x2B || command.block[1] >> 1 & 3 == 0 else { throw .sense(.invalidField) }
            var blocks = Blocks(command)
            if command.operation == 0x2B { blocks.count = 1 }
            _ = try place(blocks, try medium())
            return SCSIResult()
        case 0x35, 0x91:
            try synchronize(try medium())
            return SCSIResult()
        default: throw .sense(.invalidCommand)
        }
    }

    /// Where blocks are, in bytes; they must be inside the medium.
    private func place(_ blocks: Blocks, _ medium: any BlockBackend) throws(SCSIFailure) -> Range<UInt64> {
        let all = medium.byteCount / blockSize
        guard blocks.first <= all, blocks.count <= all - blocks.first else { throw .sense(.outOfRange) }
        return blocks.first * blockSize..<(blocks.first + blocks.count) * blockSize
    }

    /// The same for blocks that are moved, which must not be too many at once.
    private func transfer(_ blocks: Blocks, _ medium: any BlockBackend) throws(SCSIFailure) -> Range<UInt64> {
        let range = try place(blocks, medium)
        guard range.count <= Self.largestTransfer else { throw .sense(.invalidField) }
        return range
    }

    /// Runs something on the medium; what fails is the medium's error.
    private func working(_ failure: SCSISense, _ body: () throws -> Void) throws(SCSIFailure) {
        do { try body() } catch BlockError.noRoom { throw .sense(.noRoom) } catch { throw .sense(failure) }
    }

    /// Makes what was written durable.
    func synchronize(_ medium: any BlockBackend) throws(SCSIFailure) {
        if !medium.isReadOnly { try working(.writeError) { try medium.flush() } }
    }

    private func read(_ command: SCSICommand) throws(SCSIFailure) -> SCSIResult {
        let medium = try medium()
        let range = try transfer(Blocks(command), medium)
        guard range.count <= command.room else { throw .overrun }
        var data: [UInt8] = []
        try working(.readError) { data = try medium.read(at: range.lowerBound, count: range.count) }
        return SCSIResult(data: data)
    }

    /// The medium, if it may be written.
    private func writableMedium() throws(SCSIFailure) -> any BlockBackend {
        let medium = try medium()
        if medium.isReadOnly { throw .sense(.writeProtected) }
        return medium
    }

    private func write(_ command: SCSICommand) throws(SCSIFailure) -> SCSIResult {
        let medium = try writableMedium()
        let range = try transfer(Blocks(command), medium)
        let bytes = try command.parameters(range.count)
        try working(.writeError) { try medium.write(bytes, at: range.lowerBound) }
        let forces = command.operation != 0x0A && command.flag(1, 3)
        if forces || !state.isWriteCacheOn { try synchronize(medium) }
        return SCSIResult(taken: bytes.count)
    }

    /// - Spec: SBC-3, 5.48 and 5.49
    private func writeSame(_ command: SCSICommand) throws(SCSIFailure) -> SCSIResult {
        let medium = try writableMedium()
        let blocks = Blocks(command)
        let (anchors, unmaps, isBare) = (
            command.flag(1, 4), command.flag(1, 3), command.operation == 0x93 && command.flag(1, 0)
        )
        guard blocks.count > 0, blocks.count <= Self.largestRange, !anchors else { throw .sense(.invalidField) }
        let range = try place(blocks, medium)
        let block = try isBare ? [UInt8](repeating: 0, count: Int(blockSize)) : command.parameters(Int(blockSize))
        try working(.writeError) {
            if block.allSatisfy({ $0 == 0 }) {
                try medium.writeZeroes(at: range.lowerBound, length: UInt64(range.count), mayUnmap: unmaps)
            } else {
                try fill(range, with: block, medium)
            }
        }
        if !state.isWriteCacheOn { try synchronize(medium) }
        return SCSIResult(taken: isBare ? 0 : block.count)
    }

    private func fill(_ range: Range<UInt64>, with block: [UInt8], _ medium: any BlockBackend) throws {
        var piece: [UInt8] = []
        for _ in 0..<min(range.count, 1 << 20) / block.count { piece += block }
        var place = range.lowerBound
        while place < range.upperBound {
            let count = Int(min(UInt64(piece.count), range.upperBound - place))
            try medium.write(count == piece.count ? piece : Array(piece[..<count]), at: place)
            place += UInt64(count)
        }
    }

    /// - Spec: SBC-3, 5.28
    private func unmap(_ command: SCSICommand) throws(SCSIFailure) -> SCSIResult {
        let medium = try writableMedium()
        let count = Int(command.field(7, 2))
        if count == 0 { return SCSIResult() }
        guard !command.flag(1, 0) else { throw .sense(.invalidField) }
        guard count >= 8 else { throw .sense(.parameterLength) }
        let bytes = try command.parameters(count)
        let length = min((Int(bytes[2]) << 8 | Int(bytes[3])) / 16, (count - 8) / 16)
        guard length <= Self.mostRanges else { throw .sense(.invalidParameter) }
        var ranges: [Range<UInt64>] = []
        var total: UInt64 = 0
        for start in stride(from: 8, to: 8 + length * 16, by: 16) {
            var blocks = Blocks(command)
            blocks.first = bytes[start..<start + 8].reduce(0) { $0 << 8 | UInt64($1) }
            blocks.count = bytes[start + 8..<start + 12].reduce(0) { $0 << 8 | UInt64($1) }
            ranges.append(try place(blocks, medium))
            total += blocks.count
        }
        guard total <= Self.largestRange else { throw .sense(.invalidParameter) }
        try working(.writeError) {
            for range in ranges where !range.isEmpty {
                try medium.discard(at: range.lowerBound, length: UInt64(range.count))
            }
        }
        return SCSIResult(taken: count)
    }

    // MARK: Capacity

    private func readCapacity(_ command: SCSICommand) throws(SCSIFailure) -> SCSIResult {
        let blocks = try medium().byteCount / blockSize
        return answer(bigEndian(UInt32(clamping: max(blocks, 1) - 1)) + bigEndian(UInt32(blockSize)), allocation: 8)
    }

    /// - Spec: SBC-3, 5.16; 8 blocks to a physical one, provisioned thinly if it can be written
    private func readLongCapacity(_ command: SCSICommand) throws(SCSIFailure) -> SCSIResult {
        let medium = try medium()
        let isThin = kind == .disk && !medium.isReadOnly
        let bytes =
            bigEndian(max(medium.byteCount / blockSize, 1) - 1) + bigEndian(UInt32(blockSize))
            + [0, kind == .disk ? 3 : 0, isThin ? 0x80 : 0, 0]
        return answer(bytes + [UInt8](repeating: 0, count: 16), allocation: Int(command.field(10, 4)))
    }
}
