// Decoded blocks: runs of instructions of one guest-physical page, found by guest-physical address and mode.
//
// A block is good as long as the versions of the pages it was decoded from are unchanged: writes to pages marked `.code`
// raise them (devices through GuestMemory, vCPUs through `codeWritten`). A map of 64-byte chunks in each page lets data
// that shares a page with code be written without losing the blocks.
//
// Invariants: all pointers are allocated in `init` and live as long as the interpreter; the cache belongs to one vCPU.
internal import CHost
internal import Glibc
internal import HostOS

/// One decoded block.
struct Block {
    /// Guest-physical address of its first byte.
    var physical: UInt64
    /// Page of the last instruction's tail when it crosses a page end, else the same page.
    var secondPage: UInt64 = 0
    /// The linear page, where that is part of its identity (see BlockTranslator.absoluteStart), else 0.
    var absolute: UInt64 = 0
    /// Zero when the entry is empty: no mode has that key.
    var modeKey: UInt32
    var version: UInt32 = 0
    var secondVersion: UInt32 = 0
    /// Index of its first instruction.
    var first: UInt32 = 0
    var count: UInt16 = 0
    var byteLength: UInt16 = 0
    /// The last instruction sets RIP.
    var endsInBranch = false
    /// Executions by the interpreter, for the translator.
    var heat: UInt8 = 0
    /// Times that the interpreter had to run its translation's rest.
    var bails: UInt8 = 0
    /// Position of its translation in the code memory; 0 none.
    var host: UInt32 = 0
}

/// All decoded blocks of one vCPU.
struct BlockCache {
    static var maximumCount: Int { 32 }
    /// Entries that one block may be in, next to each other.
    static var ways: Int { 4 }

    /// Entries that `table` begins with: a guest that does little has no use for more memory.
    private static var firstSize: Int { 1 << 14 }

    /// Entries of `table` and how many it may get, powers of two, and of `instructions`.
    private(set) var tableSize: Int
    private let largestSize: Int
    let capacity: Int
    private(set) var table: UnsafeMutablePointer<Block>
    let instructions: UnsafeMutablePointer<Instruction>
    /// For each guest-physical page, which 64-byte chunks hold decoded code.
    let chunks: UnsafeMutablePointer<UInt64>
    var used = 0
    /// Which of an entry's ways goes next.
    var victim = 0
    /// For each page marked as code, stores to it that hit no code, and how often it was marked.
    let dataStores: UnsafeMutablePointer<UInt16>
    let marks: UnsafeMutablePointer<UInt8>

    /// Makes room for the blocks of `codeCache` bytes of translated code: a block makes some 400 of them, and has six or
    /// seven instructions.
    init(pages: Int, codeCache: Int) {
        largestSize = 1 << (Int.bitWidth - 1 - max(codeCache / 512, 2048).leadingZeroBitCount)
        capacity = largestSize * 8
        tableSize = min(Self.firstSize, largestSize)
        table = Self.makeTable(tableSize)
        instructions = PageMemory.allocate(capacity * MemoryLayout<Instruction>.stride)
            .bindMemory(to: Instruction.self, capacity: capacity)
        // calloc: untouched pages cost nothing.
        chunks = calloc(max(pages, 1), 8)!.bindMemory(to: UInt64.self, capacity: max(pages, 1))
        dataStores = calloc(max(pages, 1), 2)!.bindMemory(to: UInt16.self, capacity: max(pages, 1))
        marks = calloc(max(pages, 1), 1)!.bindMemory(to: UInt8.self, capacity: max(pages, 1))
    }

    private static func makeTable(_ size: Int) -> UnsafeMutablePointer<Block> {
        PageMemory.allocate(size * MemoryLayout<Block>.stride).bindMemory(to: Block.self, capacity: size)
    }

    private static func free(_ table: UnsafeMutablePointer<Block>, _ size: Int) {
        PageMemory.free(table, size * MemoryLayout<Block>.stride)
    }

    func deallocate() {
        Self.free(table, tableSize)
        PageMemory.free(instructions, capacity * MemoryLayout<Instruction>.stride)
        Glibc.free(chunks)
        Glibc.free(dataStores)
        Glibc.free(marks)
    }

    @inline(__always)
    func slot(_ physical: UInt64, _ modeKey: UInt32) -> Int {
        let mixed = (physical ^ UInt64(modeKey) << 40) &* 0x9E37_79B9_7F4A_7C15
        return Int(truncatingIfNeeded: mixed >> 44) & (tableSize - Self.ways)
    }

    /// Whether the table is so full that blocks soon push each other out.
    var isCrowded: Bool {
        @inline(__always) get { used > tableSize * 2 && tableSize < largestSize }
    }

    /// Gives the table four times the entries. Pointers to blocks are no longer good.
    mutating func grow() {
        let (old, count) = (table, tableSize)
        tableSize = min(count * 4, largestSize)
        table = Self.makeTable(tableSize)
        // An entry's ways go to several new ones, so there is room for each.
        for n in 0..<count where old[n].modeKey != 0 {
            let set = table + slot(old[n].physical, old[n].modeKey)
            if let way = (0..<Self.ways).first(where: { set[$0].modeKey == 0 }) { set[way] = old[n] }
        }
        Self.free(old, count)
    }

    /// Takes up blocks that were saved: pages of a file, for a table of so many entries and the instructions that they use.
    mutating func adopt(
        _ file: borrowing FileDescriptor, table offset: Int, entries: Int, instructions other: Int, used count: Int
    ) -> Bool {
        guard entries <= largestSize, count <= capacity else { return false }
        let new = Self.makeTable(entries)
        guard PageMemory.lay(file, from: offset, count: entries * MemoryLayout<Block>.stride, over: new),
            PageMemory.lay(file, from: other, count: count * MemoryLayout<Instruction>.stride, over: instructions)
        else {
            Self.free(new, entries)
            return false
        }
        Self.free(table, tableSize)
        (table, tableSize, used) = (new, entries, count)
        return true
    }

    /// Forgets every block.
    mutating func removeAll() {
        memset(table, 0, tableSize * MemoryLayout<Block>.stride)
        used = 0
    }
}

extension VCPU {
    /// The interpreter's blocks.
    @inline(__always)
    var blocks: UnsafeMutablePointer<BlockCache> { s.pointee.blocks.assumingMemoryBound(to: BlockCache.self) }

    /// A store by this vCPU changed bytes of a page marked as code.
    func codeWritten(_ physical: UInt64, _ size: Int) {
        let page = physical >> 12
        guard page < s.pointee.ram_limit >> 12 else { return }
        let first = (physical & 4095) >> 6
        let last = min(((physical & 4095) &+ UInt64(truncatingIfNeeded: max(size, 1)) &- 1) >> 6, 63)
        let mask = (~UInt64(0) << first) & (~UInt64(0) >> (63 - last))
        let held = withGroup { group, _ in group.chunks(Int(page)) } ?? blocks.pointee.chunks[Int(page)]
        if held & mask == 0 && !hasBecomeData(Int(page)) { return }
        if s.pointee.logs_stores != 0 { logCodeWritten(page, held) }
        blocks.pointee.chunks[Int(page)] = 0
        let ran = s.pointee.page_flags[Int(page)] & 16 != 0
        if ran { directStatesChanged() }
        roost_clear_flags(s.pointee.page_flags + Int(page), 17)
        roost_increment(s.pointee.code_versions + Int(page))
        _ = withGroup { group, id in group.tellCodeWritten(page, by: id, ran: ran) }
        s.pointee.block_end = nil
        if s.pointee.logs_stores == 0 { forgetTranslations(page: Int(page)) }
    }

    /// Whether a page marked as code has seen so many stores beside its code that they cost more than decoding it anew;
    /// each time that it turns out to be code after all takes twice as many.
    private func hasBecomeData(_ page: Int) -> Bool {
        // Two engines that are compared must agree; what they count isn't compared.
        if s.pointee.lockstep != nil { return false }
        let count = blocks.pointee.dataStores[page] &+ 1
        blocks.pointee.dataStores[page] = count
        if count < 32 &<< UInt16(min(blocks.pointee.marks[page], 10)) { return false }
        blocks.pointee.dataStores[page] = 0
        return true
    }

    /// The block at RIP, decoded now if it isn't known.
    @inline(__always)
    func findBlock() throws(CPUException) -> UnsafePointer<Block> {
        let linear = (s.pointee.rip &+ roost_effective_base_at(s, Int(ROOST_CS)).pointee) & s.pointee.linear_mask
        let physical = try translateFetch(linear)
        let absolute = linear >= BlockTranslator.absoluteStart && s.pointee.code_size == 8 ? linear & ~4095 : 0
        var set = blocks.pointee.table + blocks.pointee.slot(physical, s.pointee.mode_key)
        for way in 0..<BlockCache.ways {
            let block = set + way
            if block.pointee.physical != physical || block.pointee.modeKey != s.pointee.mode_key
                || block.pointee.absolute != absolute
            {
                continue
            }
            if s.pointee.code_versions[Int(physical >> 12)] == block.pointee.version
                && (block.pointee.secondPage == physical >> 12 || stillWhole(block, linear))
            {
                return UnsafePointer(block)
            }
            return try buildBlock(block, linear, physical, absolute)
        }
        if blocks.pointee.isCrowded {
            blocks.pointee.grow()
            set = blocks.pointee.table + blocks.pointee.slot(physical, s.pointee.mode_key)
        }
        blocks.pointee.victim &+= 1
        return try buildBlock(set + (blocks.pointee.victim & (BlockCache.ways - 1)), linear, physical, absolute)
    }

    /// Whether a block that crosses a page end still continues on the page it was decoded from.
    @inline(never)
    private func stillWhole(_ block: UnsafeMutablePointer<Block>, _ linear: UInt64) -> Bool {
        let next = ((linear | 4095) &+ 1) & s.pointee.linear_mask
        guard let physical = try? translateFetch(next), physical >> 12 == block.pointee.secondPage else { return false }
        return s.pointee.code_versions[Int(physical >> 12)] == block.pointee.secondVersion
    }

    @inline(never)
    private func buildBlock(
        _ block: UnsafeMutablePointer<Block>, _ linear: UInt64, _ physical: UInt64, _ absolute: UInt64
    ) throws(CPUException) -> UnsafePointer<Block> {
        let page = physical >> 12
        guard hasGroup, page < s.pointee.ram_limit >> 12, isMemoryPage(page) else {
            return try decodeBlock(block, linear, physical, absolute)
        }
        // Another vCPU's store is seen here, or sees the marks; if it takes the mark away, all begins anew.
        while true {
            markBeforeDecoding(page, from: physical & 4095, length: 256)
            let built = try decodeBlock(block, linear, physical, absolute)
            if s.pointee.page_flags[Int(page)] & s.pointee.page_flags[Int(built.pointee.secondPage)] & 1 != 0 {
                return built
            }
        }
    }

    /// Where there are several vCPUs: what is decoded next is marked before it is read.
    func markBeforeDecoding(_ page: UInt64, from first: UInt64, length: UInt64) {
        if !hasGroup { return }
        shareCodePage(page)
        markCode(page, from: first, to: min(first &+ length, 4096))
        roost_fence()
    }

    private func decodeBlock(
        _ block: UnsafeMutablePointer<Block>, _ linear: UInt64, _ physical: UInt64, _ absolute: UInt64
    ) throws(CPUException) -> UnsafePointer<Block> {
        if blocks.pointee.used + BlockCache.maximumCount > blocks.pointee.capacity {
            blocks.pointee.removeAll()
            dropTranslations()
        }
        let page = physical >> 12
        guard page < s.pointee.ram_limit >> 12, isMemoryPage(page) else { throw .generalProtection(0) }
        let version = roost_load(s.pointee.code_versions + Int(page))
        let start = blocks.pointee.used
        let room = 4096 - Int(physical & 4095)
        let bytes = UnsafePointer(s.pointee.ram + Int(physical))
        var built = Block(physical: physical, secondPage: page, modeKey: s.pointee.mode_key, version: version)
        built.first = UInt32(start)
        built.absolute = absolute
        var offset = 0
        var count = 0
        building: while count < BlockCache.maximumCount && offset < 240 {
            let i = blocks.pointee.instructions + start + count
            i.pointee = Instruction()
            var result = DecodeResult.needMoreBytes
            if offset < room {
                result = Decoder.decode(
                    bytes + offset, available: room - offset, codeSize: s.pointee.code_size, into: &i.pointee)
            }
            if result == .needMoreBytes {
                // The instruction crosses the page's end: a block of its own.
                if count > 0 { break }
                result = try decodeAcross(bytes, room, linear, i, &built)
            }
            switch result {
            case .ok: break
            case .tooLong:
                if count > 0 { break building }
                throw .generalProtection(0)
            default:
                if count > 0 { break building }
                throw .invalidOpcode
            }
            offset += Int(i.pointee.length)
            i.pointee.endOffset = UInt8(truncatingIfNeeded: offset)
            prepare(i)
            count += 1
            let attributes = InstructionTable.row(i.pointee.row).attributes
            if attributes.contains(.branch) || isRepeatedString(i) {
                built.endsInBranch = true
                break
            }
            if attributes.contains(.endsBlock) || built.secondPage != page { break }
        }
        built.count = UInt16(count)
        built.byteLength = UInt16(offset)
        blocks.pointee.used = start + count
        markCode(page, from: physical & 4095, to: min((physical & 4095) &+ UInt64(offset), 4096))
        if built.secondPage != page {
            markCode(built.secondPage, from: 0, to: UInt64(max(offset - room, 1)))
        }
        block.pointee = built
        return UnsafePointer(block)
    }

    /// Whether an instruction sets RIP itself.
    func setsRIP(_ i: UnsafePointer<Instruction>) -> Bool {
        InstructionTable.row(i.pointee.row).attributes.contains(.branch) || isRepeatedString(i)
    }

    @inline(__always)
    private func isRepeatedString(_ i: UnsafePointer<Instruction>) -> Bool {
        let operation = i.pointee.operation.rawValue
        return operation >= Operation.movs.rawValue && operation <= Operation.outs.rawValue
            && !i.pointee.prefixes.isDisjoint(with: [.rep, .repne])
    }

    /// Decodes an instruction whose bytes go on in the next linear page.
    private func decodeAcross(
        _ bytes: UnsafePointer<UInt8>, _ room: Int, _ linear: UInt64, _ i: UnsafeMutablePointer<Instruction>,
        _ built: inout Block
    ) throws(CPUException) -> DecodeResult {
        let next = try translateFetch(((linear | 4095) &+ 1) & s.pointee.linear_mask)
        let page = next >> 12
        guard page < s.pointee.ram_limit >> 12, isMemoryPage(page) else { throw .generalProtection(0) }
        built.secondVersion = roost_load(s.pointee.code_versions + Int(page))
        markBeforeDecoding(page, from: 0, length: 16)
        var joined: (UInt64, UInt64, UInt64, UInt64) = (0, 0, 0, 0)
        let source = UnsafePointer(s.pointee.ram + Int(next))
        let head = min(room, 16)
        let result = withUnsafeMutableBytes(of: &joined) { buffer -> DecodeResult in
            for n in 0..<head { buffer[n] = bytes[n] }
            for n in 0..<16 { buffer[head + n] = source[n] }
            return Decoder.decode(
                UnsafePointer(buffer.baseAddress!.assumingMemoryBound(to: UInt8.self)), available: head + 16,
                codeSize: s.pointee.code_size, into: &i.pointee)
        }
        built.secondPage = page
        return result
    }

    /// Marks a range of a page as decoded, and the page as code.
    func markCode(_ page: UInt64, from first: UInt64, to end: UInt64) {
        let last = (max(end, first &+ 1) &- 1) >> 6
        let mask = (~UInt64(0) << (first >> 6)) & (~UInt64(0) >> (63 - min(last, 63)))
        blocks.pointee.chunks[Int(page)] |= mask
        if s.pointee.page_flags[Int(page)] & 1 == 0 {
            if s.pointee.page_flags[Int(page)] & 8 != 0 {
                roost_clear_flags(s.pointee.page_flags + Int(page), 8)
                directStatesChanged()
            }
            if blocks.pointee.marks[Int(page)] < 255 { blocks.pointee.marks[Int(page)] += 1 }
            shareCodePage(page)
        }
    }

    /// Instructions of features that the CPU model lacks become invalid, or what older processors made of them.
    private func prepare(_ i: UnsafeMutablePointer<Instruction>) { applyModel(to: i) }
}
