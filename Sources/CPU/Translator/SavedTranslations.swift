// A vCPU's translated code as a file: who goes on from the same memory, in the same program on the same kind of processor,
// begins with it. Everything that it holds is relative to the code cache, the pool of instructions or the guest.
//
//   a page       the header
//   code         what follows the common routines
//   instructions, blocks, records     as they are in memory
//   pages        a `SavedPage` for each page that code was made of
//   chains       the jumps between pages
//
// Each part begins at a page. Nothing in it is trusted before its checksum is right; who can write both can replace the
// program as well: it is never taken from an archive.
internal import CHost
internal import Glibc
public import HostOS

/// What is known of a guest page that code was made of.
private struct SavedPage: BitwiseCopyable {
    var page: UInt32
    /// Its first record.
    var head: UInt32
    /// See `BlockCache.chunks`.
    var chunks: UInt64
}

/// The first page of the file.
private struct SavedHeader: BitwiseCopyable, Equatable {
    /// "ROOSTTC" and the version of this layout.
    var magic: UInt64 = 0x0143_5454_534F_4F52
    /// What the file fits, see `Fitness`.
    var program: UInt64 = 0
    var setup: UInt64 = 0
    /// Sum of the guest memory that it is of.
    var memory: UInt64 = 0
    var guestPages: UInt64 = 0
    /// Where the code begins and ends in the cache.
    var firstPosition: UInt64 = 0
    var position: UInt64 = 0
    var instructions: UInt64 = 0
    var tableSize: UInt64 = 0
    var records: UInt64 = 0
    var pages: UInt64 = 0
    var chains: UInt64 = 0
    /// Checksum of this, with zero here, and of all after this page.
    var sum: UInt64 = 0

    /// What `sum` has to be, with `length` bytes of parts.
    func sum(with parts: UnsafeRawPointer, _ length: Int) -> UInt64 {
        var header = self
        header.sum = 0
        let first = withUnsafeBytes(of: header) { roost_crc32c(0, $0.baseAddress, $0.count) }
        return UInt64(first) << 32 | UInt64(roost_lane_sum(parts, length))
    }

    /// Where the parts begin, and where the file ends.
    var parts: (code: Int, instructions: Int, table: Int, records: Int, pages: Int, chains: Int, end: Int)? {
        let limit: UInt64 = 1 << 30
        guard position >= firstPosition, max(position, instructions, tableSize, records, pages, chains) < limit else {
            return nil
        }
        var place = PageMemory.pageSize
        func next(_ count: UInt64, _ stride: Int) -> Int {
            defer { place += PageMemory.rounded(Int(count) * stride) }
            return place
        }
        let code = next(position - firstPosition, 1)
        let instructions = next(instructions, MemoryLayout<Instruction>.stride)
        let table = next(tableSize, MemoryLayout<Block>.stride)
        let records = next(records, MemoryLayout<TranslationRecord>.stride)
        let pages = next(pages, MemoryLayout<SavedPage>.stride)
        let chains = next(chains, MemoryLayout<TranslationCache.CrossChain>.stride)
        return (code, instructions, table, records, pages, chains, place)
    }
}

/// A vCPU's translated code, taken out of its engine.
public struct SavedTranslations: Sendable {
    private var bytes: [UInt8]

    /// More of it is not worth a file.
    static let mostBytes = 128 << 20

    /// Writes it to a new file; `memory` is the sum of the guest memory that it is of.
    public func write(to path: String, memory: UInt32) throws(HostError) {
        var first = Array(bytes.prefix(PageMemory.pageSize))
        first.withUnsafeMutableBytes { first in
            var header = first.load(as: SavedHeader.self)
            header.memory = UInt64(memory)
            bytes.withUnsafeBytes {
                header.sum = header.sum(with: $0.baseAddress! + PageMemory.pageSize, $0.count - PageMemory.pageSize)
            }
            first.storeBytes(of: header, as: SavedHeader.self)
        }
        let file = try FileDescriptor.open(path, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW, mode: 0o600)
        try file.write(first, at: 0)
        try file.write(bytes[PageMemory.pageSize...], at: UInt64(PageMemory.pageSize))
    }

    /// Room for so many bytes; the host is asked for it now.
    public init(room: Int) { bytes = [UInt8](repeating: 0, count: room) }

    /// Takes the parts that the header tells of.
    fileprivate mutating func fill(
        _ header: SavedHeader, _ vcpu: VCPU, _ pages: [SavedPage], _ place: SavedPlaces
    ) {
        let cache = vcpu.translations
        let blocks = vcpu.blocks
        if bytes.count < place.end { bytes = [UInt8](repeating: 0, count: place.end) }
        bytes.removeLast(bytes.count - place.end)
        bytes.withUnsafeMutableBytes { base in
            base.storeBytes(of: header, as: SavedHeader.self)
            func put(_ part: UnsafeRawBufferPointer, at start: Int, until end: Int) {
                let target = base.baseAddress! + start
                if let from = part.baseAddress { memcpy(target, from, part.count) }
                memset(target + part.count, 0, end - start - part.count)
            }
            put(
                UnsafeRawBufferPointer(
                    start: cache.pointee.memory.executable + Int(header.firstPosition),
                    count: Int(header.position - header.firstPosition)), at: place.code, until: place.instructions)
            put(
                UnsafeRawBufferPointer(
                    UnsafeBufferPointer(start: blocks.pointee.instructions, count: Int(header.instructions))),
                at: place.instructions, until: place.table)
            put(
                UnsafeRawBufferPointer(UnsafeBufferPointer(start: blocks.pointee.table, count: Int(header.tableSize))),
                at: place.table, until: place.records)
            put(cache.pointee.recordBytes, at: place.records, until: place.pages)
            pages.withUnsafeBytes { put($0, at: place.pages, until: place.chains) }
            cache.pointee.crossChains.withUnsafeBytes { put($0, at: place.chains, until: place.end) }
            let table = (base.baseAddress! + place.table).bindMemory(to: Block.self, capacity: Int(header.tableSize))
            for n in 0..<Int(header.tableSize) where table[n].modeKey != 0 { vcpu.makeFirstVersion(table + n) }
        }
    }
}

/// A file of translated code, which a thread checks while a machine is being made.
public final class TranslationFile: @unchecked Sendable {
    // SAFETY of @unchecked: the thread only reads the mapping; `Verdict` is guarded by its lock.
    fileprivate let descriptor: FileDescriptor
    fileprivate let view: UnsafeMutableRawPointer
    private let size: Int
    private let header: SavedHeader
    private let verdict = Verdict()

    /// What the thread has found.
    private final class Verdict: @unchecked Sendable {
        private let lock = ConditionLock()
        private var isRight: Bool?

        func settle(_ isRight: Bool) { lock.update { self.isRight = isRight } }

        /// Waits for it.
        var isGood: Bool {
            var result = false
            lock.wait(until: { isRight != nil }, then: { result = isRight == true })
            return result
        }
    }

    /// Opens a file and begins to check it; nil if it isn't there or is nothing of this kind.
    public init?(_ path: String) {
        guard let file = try? FileDescriptor.open(path, O_RDONLY | O_NOFOLLOW), let count = try? file.byteCount(),
            count >= UInt64(PageMemory.pageSize), count <= UInt64(SavedTranslations.mostBytes),
            let view = mmap(nil, Int(count), PROT_READ, MAP_PRIVATE, file.rawValue, 0), view != MAP_FAILED
        else { return nil }
        let size = Int(count)
        let header = view.load(as: SavedHeader.self)
        // SAFETY: `deinit` waits for the thread before it unmaps the file.
        nonisolated(unsafe) let base = view
        descriptor = file
        (self.view, self.size, self.header) = (view, size, header)
        let check: @Sendable () -> Void = { [verdict] in
            madvise(base, size, MADV_POPULATE_READ)
            verdict.settle(header.sum(with: base + PageMemory.pageSize, size - PageMemory.pageSize) == header.sum)
        }
        do { try HostThread.detached(name: "roost-check", check) } catch { check() }
    }

    deinit {
        _ = verdict.isGood
        munmap(view, size)
    }

    /// What it begins with, if it is whole.
    fileprivate var checked: (SavedHeader, SavedPlaces)? {
        guard header.magic == SavedHeader().magic, let places = header.parts, places.end == size else { return nil }
        return verdict.isGood ? (header, places) : nil
    }
}

/// Offsets of the parts.
private typealias SavedPlaces = (
    code: Int, instructions: Int, table: Int, records: Int, pages: Int, chains: Int, end: Int
)

/// What saved code fits.
private enum Fitness {
    /// The file that this process runs: code calls into it, and its layouts are in all parts.
    static let program: UInt64 = {
        var status = stat()
        guard stat("/proc/self/exe", &status) == 0 else { return 0 }
        var sum = Sum()
        for word in [
            UInt64(status.st_ino), UInt64(status.st_dev), UInt64(status.st_size), UInt64(status.st_mtim.tv_sec),
            UInt64(status.st_mtim.tv_nsec),
        ] { sum.add(word) }
        return sum.value
    }()

    /// The host's processor, the guest's, and how it was translated.
    static func setup(_ s: UnsafeMutablePointer<roost_vcpu>, _ options: TranslationOptions) -> UInt64 {
        var sum = Sum()
        for (leaf, subleaf) in [(1, 0), (7, 0), (7, 1), (0xD, 0), (0xD, 1), (0x8000_0001, 0)] as [(UInt32, UInt32)] {
            var (a, b, c, d): (UInt32, UInt32, UInt32, UInt32) = (0, 0, 0, 0)
            roost_cpuid(leaf, subleaf, &a, &b, &c, &d)
            // EBX of leaf 1 has the processor's number in it, EBX of leaf 0xD goes by what is on.
            for word in leaf == 1 || leaf == 0xD ? [a, c, d] : [a, b, c, d] { sum.add(UInt64(word)) }
        }
        for n in 0..<Int(s.pointee.cpuid_count) * 6 {
            sum.add(UInt64(s.pointee.cpuid_table.unsafelyUnwrapped[n]))
        }
        sum.add(s.pointee.features)
        for option in [options.counts, options.stopsExactly, options.exactFlags, options.chains] {
            sum.add(option ? 1 : 0)
        }
        return sum.value
    }

    /// FNV-1a, of words.
    private struct Sum {
        var value: UInt64 = 0xCBF2_9CE4_8422_2325
        mutating func add(_ word: UInt64) { value = (value ^ word) &* 0x0000_0100_0000_01B3 }
    }
}

extension VCPU {
    /// Whether a block is of what its pages hold now; then its versions become those of pages that were never written.
    fileprivate func makeFirstVersion(_ block: UnsafeMutablePointer<Block>) {
        let (first, second) = (Int(block.pointee.physical >> 12), Int(block.pointee.secondPage))
        let (flags, versions) = (s.pointee.page_flags!, s.pointee.code_versions!)
        let isGood =
            flags[first] & flags[second] & 1 != 0 && versions[first] == block.pointee.version
            && (second == first || versions[second] == block.pointee.secondVersion)
        if isGood {
            block.pointee.version = 0
            block.pointee.secondVersion = 0
        } else {
            block.pointee = Block(physical: 0, modeKey: 0)
        }
    }
}

extension Translator {
    /// Room for what `saveTranslations` would copy now, and somewhat more; while the vCPU runs, so nothing but numbers is
    /// looked at, and pages and chains are guessed by the records.
    public func makeRoomForTranslations() -> SavedTranslations? {
        let count = cpu.vcpu.translations.pointee.recordCount
        let places = header(pages: count, chains: count).parts
        return SavedTranslations(room: min(places?.end ?? 0, SavedTranslations.mostBytes) + 1 << 20)
    }

    /// Copies the translated code, while its vCPU stands still; false where that isn't worth it.
    public func saveTranslations(into room: inout SavedTranslations) -> Bool {
        forgetWritten()
        let vcpu = cpu.vcpu
        let (cache, blocks) = (vcpu.translations, vcpu.blocks)
        var pages: [SavedPage] = []
        for page in 0..<cache.pointee.pageCount where vcpu.s.pointee.page_flags[page] & 1 != 0 {
            let (head, chunks) = (cache.pointee.head(of: page), blocks.pointee.chunks[page])
            if head != 0 || chunks != 0 { pages.append(SavedPage(page: UInt32(page), head: head, chunks: chunks)) }
        }
        let header = header(pages: pages.count, chains: cache.pointee.crossChains.count)
        guard let places = header.parts, header.records > 1, places.end <= SavedTranslations.mostBytes else {
            return false
        }
        room.fill(header, vcpu, pages, places)
        return true
    }

    private func header(pages: Int, chains: Int) -> SavedHeader {
        let vcpu = cpu.vcpu
        let (cache, blocks) = (vcpu.translations, vcpu.blocks)
        var header = SavedHeader()
        header.program = Fitness.program
        header.setup = Fitness.setup(vcpu.s, cache.pointee.options)
        header.guestPages = UInt64(cache.pointee.pageCount)
        header.firstPosition = UInt64(cache.pointee.routinesEnd)
        header.position = UInt64(cache.pointee.position)
        header.instructions = UInt64(blocks.pointee.used)
        header.tableSize = UInt64(blocks.pointee.tableSize)
        header.records = UInt64(cache.pointee.recordCount)
        header.pages = UInt64(pages)
        header.chains = UInt64(chains)
        return header
    }

    /// Begins with code that was saved with memory of this sum, before the first run; false if the file doesn't fit.
    public func restoreTranslations(from file: TranslationFile, memory: UInt32) -> Bool {
        guard let (header, places) = file.checked, fits(header, memory: memory) else { return false }
        return adopt(file, header, places)
    }

    private func fits(_ header: SavedHeader, memory: UInt32) -> Bool {
        let cache = cpu.vcpu.translations
        return header.magic == SavedHeader().magic && header.program == Fitness.program && header.program != 0
            && header.setup == Fitness.setup(cpu.state, cache.pointee.options) && header.memory == UInt64(memory)
            && header.guestPages == UInt64(cache.pointee.pageCount)
            && header.firstPosition == UInt64(cache.pointee.routinesEnd)
    }

    private func adopt(
        _ file: TranslationFile, _ header: SavedHeader, _ places: SavedPlaces
    ) -> Bool {
        let view = file.view
        let vcpu = cpu.vcpu
        let (cache, blocks) = (vcpu.translations, vcpu.blocks)
        let chains = UnsafeRawBufferPointer(
            start: view + places.chains, count: Int(header.chains) * MemoryLayout<TranslationCache.CrossChain>.stride)
        guard
            (try? cache.pointee.adopt(
                file.descriptor, code: places.code..<places.instructions, records: places.records,
                count: Int(header.records),
                chains: Array(chains.bindMemory(to: TranslationCache.CrossChain.self)))) == true,
            blocks.pointee.adopt(
                file.descriptor, table: places.table, entries: Int(header.tableSize), instructions: places.instructions,
                used: Int(header.instructions))
        else {
            // What was taken is never entered: no block leads to it.
            return false
        }
        let pages = UnsafeRawBufferPointer(
            start: view + places.pages, count: Int(header.pages) * MemoryLayout<SavedPage>.stride)
        for saved in pages.bindMemory(to: SavedPage.self) where Int(saved.page) < cache.pointee.pageCount {
            cache.pointee.setHead(of: Int(saved.page), saved.head)
            blocks.pointee.chunks[Int(saved.page)] = saved.chunks
            // Nothing has run: no TLB lets stores to it pass.
            _ = roost_set_flags(vcpu.s.pointee.page_flags + Int(saved.page), 1)
        }
        return true
    }
}
