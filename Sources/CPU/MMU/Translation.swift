// The software TLB: filling, flushing, and the page walk behind it (SDM 3A chapter 4).
//
// Entries are tagged with an address space: a CR3 write that flushes takes a fresh tag, so nothing is swept. Global pages
// are marked in their entry and taken over by the new tag on their first miss. Large pages are held in 4 KiB pieces;
// two 64-bit summaries tell INVLPG whether it must sweep for pieces of one.
internal import CHost
internal import Glibc

/// Bits 11:0 of `roost_tlb_entry.physical`.
private enum EntryFlags {
    static let global: UInt64 = 1
}

/// What a walk found.
private struct Translation {
    var physical: UInt64
    var user: Bool
    var writable: Bool
    var dirty: Bool
    var executeDisable: Bool
    var global: Bool
    /// log2 of the page's size.
    var shift: UInt64
    var key: UInt64
    /// Where the entry that maps the page is, and what it was.
    var leaf: UInt64 = 0
    var entry: UInt64 = 0
    var isWide = true
}

extension VCPU {
    private static var present: UInt64 { 1 }

    /// Guest-physical address of a linear address for a data access; fills the TLB.
    @inline(never)
    func translate(_ linear: UInt64, write: Bool, supervisor: Bool = false) throws(CPUException) -> UInt64 {
        let context: Int
        if supervisor {
            // Implicit supervisor accesses are subject to SMAP whatever AC says.
            context = s.pointee.cr4 & 0x20_0000 != 0 ? Int(ROOST_TLB_SUPERVISOR) : Int(ROOST_TLB_SUPERVISOR_AC)
        } else {
            context = Int(s.pointee.tlb_context)
        }
        let entry = table(context) + Int(truncatingIfNeeded: (linear >> 12) & UInt64(ROOST_TLB_ENTRIES - 1))
        let tag = (linear & ~0xFFF) | UInt64(s.pointee.address_space)
        if (write ? entry.pointee.write_tag : entry.pointee.read_tag) == tag {
            return (entry.pointee.physical & ~0xFFF) | linear & 0xFFF
        }
        if entry.pointee.physical & EntryFlags.global != 0 && entry.pointee.read_tag != ~0
            && entry.pointee.read_tag & ~0xFFF == linear & ~0xFFF && entry.pointee.read_tag != tag
        {
            entry.pointee.read_tag = tag
            if entry.pointee.write_tag != ~0 { entry.pointee.write_tag = tag }
            if !write || entry.pointee.write_tag == tag { return (entry.pointee.physical & ~0xFFF) | linear & 0xFFF }
        }
        s.pointee.tlb_misses &+= 1
        if s.pointee.cr0 & 0x8000_0000 == 0 {
            fill(
                entry, tag, linear,
                Translation(
                    physical: linear & 0xFFFF_FFFF, user: true, writable: true, dirty: true, executeDisable: false,
                    global: false, shift: 12, key: 0), writable: true)
            return linear & 0xFFFF_FFFF
        }
        let isUser = context == Int(ROOST_TLB_USER)
        var found: Translation
        var mayWrite: Bool
        repeat {
            found = try walk(linear, write: write, user: isUser, fetch: false)
            mayWrite = try checkData(found, linear, write: write, context: context)
        } while !setEntry(found.leaf, found.entry, write ? 0x60 : 0x20, wide: found.isWide)
        fill(entry, tag, linear, found, writable: mayWrite && (write || found.dirty))
        return found.physical
    }

    /// The entry for a page in the context in force, whatever `tlb` points at.
    func contextSlot(_ linear: UInt64) -> UnsafeMutablePointer<roost_tlb_entry> {
        table(Int(s.pointee.tlb_context)) + Int(truncatingIfNeeded: (linear >> 12) & UInt64(ROOST_TLB_ENTRIES - 1))
    }

    @inline(__always)
    private func table(_ context: Int) -> UnsafeMutablePointer<roost_tlb_entry> {
        switch context {
        case 0: s.pointee.tlb_contexts.0.unsafelyUnwrapped
        case 1: s.pointee.tlb_contexts.1.unsafelyUnwrapped
        default: s.pointee.tlb_contexts.2.unsafelyUnwrapped
        }
    }

    /// Access rights of a data access (SDM 3A 4.6.1); returns whether the page may also be written.
    private func checkData(
        _ found: Translation, _ linear: UInt64, write: Bool, context: Int
    ) throws(CPUException) -> Bool {
        let isUser = context == Int(ROOST_TLB_USER)
        let protects = s.pointee.cr0 & 0x1_0000 != 0
        var code: UInt32 = 1 | (write ? 2 : 0) | (isUser ? 4 : 0)
        if isUser && !found.user { throw pageFault(linear, code) }
        if !isUser && found.user && context == Int(ROOST_TLB_SUPERVISOR) && s.pointee.cr4 & 0x20_0000 != 0 {
            throw pageFault(linear, code)
        }
        var mayWrite = found.writable || (!isUser && !protects)
        if write && !mayWrite { throw pageFault(linear, code) }
        if found.user && s.pointee.cr4 & 0x40_0000 != 0 && s.pointee.long_mode != 0 {
            let rights = (s.pointee.pkru >> UInt32(truncatingIfNeeded: found.key * 2)) & 3
            code |= 0x20
            if rights & 1 != 0 { throw pageFault(linear, code) }
            if rights & 2 != 0 && (isUser || protects) {
                if write { throw pageFault(linear, code) }
                mayWrite = false
            }
        }
        return mayWrite
    }

    private func pageFault(_ linear: UInt64, _ code: UInt32) -> CPUException {
        s.pointee.cr2 = linear
        return .pageFault(code)
    }

    private func fill(
        _ entry: UnsafeMutablePointer<roost_tlb_entry>, _ tag: UInt64, _ linear: UInt64, _ found: Translation,
        writable: Bool
    ) {
        let page = found.physical >> 12
        guard isMemoryPage(page) else { return }
        let flags = s.pointee.page_flags[Int(page)]
        entry.pointee.read_tag = tag
        entry.pointee.write_tag = ~0
        if writable && flags & 5 == 0 {
            entry.pointee.write_tag = tag
            noteStores(to: page)
            noteDirty(page)
        }
        entry.pointee.physical = page << 12 | (found.global ? EntryFlags.global : 0)
        entry.pointee.addend = UInt64(UInt(bitPattern: s.pointee.ram)) &+ (page << 12) &- (linear & ~0xFFF)
        noteSize(found, linear)
    }

    /// Guest-physical address of an instruction fetch.
    @inline(__always)
    package func translateFetch(_ linear: UInt64) throws(CPUException) -> UInt64 {
        let isUser = s.pointee.cpl == 3
        let entry =
            s.pointee.fetch_tlb.unsafelyUnwrapped + Int(truncatingIfNeeded: (linear >> 12) & 511) + (isUser ? 512 : 0)
        let tag = (linear & ~0xFFF) | UInt64(s.pointee.address_space)
        if entry.pointee.read_tag == tag { return (entry.pointee.physical & ~0xFFF) | linear & 0xFFF }
        return try translateFetchSlowly(linear, entry, tag)
    }

    /// Whether the page that was just fetched from is global: it is there in every address space.
    func isGlobalCode(_ linear: UInt64) -> Bool {
        let entry =
            s.pointee.fetch_tlb.unsafelyUnwrapped + Int(truncatingIfNeeded: (linear >> 12) & 511)
            + (s.pointee.cpl == 3 ? 512 : 0)
        return entry.pointee.physical & EntryFlags.global != 0
    }

    @inline(never)
    private func translateFetchSlowly(
        _ linear: UInt64, _ entry: UnsafeMutablePointer<roost_tlb_entry>, _ tag: UInt64
    ) throws(CPUException) -> UInt64 {
        if s.pointee.code_size == 8 && !isCanonical(linear) { throw .generalProtection(0) }
        if entry.pointee.physical & EntryFlags.global != 0 && entry.pointee.read_tag != ~0
            && (entry.pointee.read_tag ^ linear) & ~0xFFF == 0
        {
            entry.pointee.read_tag = tag
            return (entry.pointee.physical & ~0xFFF) | linear & 0xFFF
        }
        var physical = linear & 0xFFFF_FFFF
        var isGlobal = false
        if s.pointee.cr0 & 0x8000_0000 != 0 {
            var found: Translation
            repeat {
                found = try walk(linear, write: false, user: s.pointee.cpl == 3, fetch: true)
                try checkFetch(found, linear)
            } while !setEntry(found.leaf, found.entry, 0x20, wide: found.isWide)
            physical = found.physical
            isGlobal = found.global
            noteSize(found, linear)
        }
        let page = physical >> 12
        // Code outside memory: a bus that answers nothing would read as ones.
        guard page < s.pointee.ram_limit >> 12, isMemoryPage(page) else { throw .generalProtection(0) }
        entry.pointee.read_tag = tag
        entry.pointee.physical = page << 12 | (isGlobal ? EntryFlags.global : 0)
        if linear < BlockTranslator.absoluteStart {
            let hash = codeHash(linear)
            roost_code_filter_at(s, hash >> 6).pointee |= 1 &<< UInt64(hash & 63)
            let region = regionHash(linear)
            roost_code_regions_at(s, region >> 6).pointee |= 1 &<< UInt64(region & 63)
        }
        return physical
    }

    /// Access rights of an instruction fetch (SDM 3A 4.6.1).
    private func checkFetch(_ found: Translation, _ linear: UInt64) throws(CPUException) {
        let isUser = s.pointee.cpl == 3
        let code: UInt32 = 1 | (isUser ? 4 : 0) | (fetchIsReported ? 0x10 : 0)
        if found.executeDisable || (isUser && !found.user) { throw pageFault(linear, code) }
        if !isUser && found.user && s.pointee.cr4 & 0x10_0000 != 0 { throw pageFault(linear, code) }
    }

    /// Whether page-fault codes tell instruction fetches apart (SDM 3A 4.7).
    private var fetchIsReported: Bool {
        s.pointee.cr4 & 0x10_0000 != 0 || (s.pointee.cr4 & 0x20 != 0 && s.pointee.efer & 0x800 != 0)
    }

    // MARK: The walk

    /// Walks the paging structures, sets accessed bits above the last level (the last entry's A and D are the caller's, after
    /// the rights are checked); throws on entries not present or reserved bits set.
    private func walk(_ linear: UInt64, write: Bool, user: Bool, fetch: Bool) throws(CPUException) -> Translation {
        s.pointee.page_walks &+= 1
        let code: UInt32 = (write ? 2 : 0) | (user ? 4 : 0) | (fetch && fetchIsReported ? 0x10 : 0)
        if s.pointee.cr4 & 0x20 == 0 { return try walkTwoLevels(linear, code, write, user) }
        var shift: UInt64
        var at: UInt64
        var result = Translation(
            physical: 0, user: true, writable: true, dirty: false, executeDisable: false, global: false, shift: 12,
            key: 0)
        let noExecute = s.pointee.efer & 0x800 != 0
        if s.pointee.long_mode != 0 {
            shift = s.pointee.cr4 & 0x1000 != 0 ? 48 : 39
            at = s.pointee.cr3 & Self.frameMask
        } else {
            let pointer = roost_pdpte_at(s, Int(truncatingIfNeeded: linear >> 30) & 3).pointee
            if pointer & 1 == 0 { throw pageFault(linear, code) }
            at = pointer & Self.frameMask
            shift = 21
        }
        while true {
            let address = at &+ ((linear >> shift) & 511) &* 8
            let entry = loadEntry(address)
            if entry & 1 == 0 { throw pageFault(linear, code) }
            let isLast = shift == 12 || (entry & 0x80 != 0 && (shift == 21 || shift == 30))
            var reserved = Self.reservedAddress | (noExecute ? 0 : 1 << 63)
            if s.pointee.long_mode == 0 { reserved |= 0x7FF0_0000_0000_0000 }
            if entry & 0x80 != 0 && shift > 30 { reserved |= 0x80 }
            if isLast && shift > 12 { reserved |= ((1 << shift) - 1) & ~0x1FFF }
            if entry & reserved != 0 { throw pageFault(linear, code | 9) }
            if !isLast && !setEntry(address, entry, 0x20, wide: true) { continue }
            result.user = result.user && entry & 4 != 0
            result.writable = result.writable && entry & 2 != 0
            result.executeDisable = result.executeDisable || (noExecute && entry >> 63 != 0)
            if isLast {
                let mask: UInt64 = (1 << shift) - 1
                result.physical = (entry & Self.frameMask & ~mask) | (linear & mask)
                result.shift = shift
                result.global = entry & 0x100 != 0 && s.pointee.cr4 & 0x80 != 0
                result.key = (entry >> 59) & 15
                (result.leaf, result.entry) = (address, entry)
                result.dirty = entry & 0x40 != 0
                return result
            }
            at = entry & Self.frameMask
            shift -= 9
        }
    }

    /// 32-bit paging with 4 KiB and 4 MiB pages (SDM 3A 4.3).
    private func walkTwoLevels(
        _ linear: UInt64, _ code: UInt32, _ write: Bool, _ user: Bool
    ) throws(CPUException) -> Translation {
        let directoryAt = (s.pointee.cr3 & 0xFFFF_F000) &+ ((linear >> 22) & 1023) &* 4
        var directory: UInt64
        var isLarge: Bool
        repeat {
            directory = loadEntry32(directoryAt)
            if directory & 1 == 0 { throw pageFault(linear, code) }
            isLarge = directory & 0x80 != 0 && s.pointee.cr4 & 0x10 != 0
        } while !isLarge && !setEntry(directoryAt, directory, 0x20, wide: false)
        var result = Translation(
            physical: 0, user: directory & 4 != 0, writable: directory & 2 != 0, dirty: false, executeDisable: false,
            global: false, shift: 12, key: 0)
        var at = directoryAt
        var entry = directory
        if isLarge {
            if directory & 0x20_0000 != 0 { throw pageFault(linear, code | 9) }
            result.physical = (directory & 0xFFC0_0000) | ((directory >> 13) & 0xFF) << 32 | (linear & 0x3F_FFFF)
            result.shift = 22
        } else {
            at = (directory & 0xFFFF_F000) &+ ((linear >> 12) & 1023) &* 4
            entry = loadEntry32(at)
            if entry & 1 == 0 { throw pageFault(linear, code) }
            result.user = result.user && entry & 4 != 0
            result.writable = result.writable && entry & 2 != 0
            result.physical = (entry & 0xFFFF_F000) | (linear & 0xFFF)
        }
        result.global = entry & 0x100 != 0 && s.pointee.cr4 & 0x80 != 0
        (result.leaf, result.entry, result.isWide) = (at, entry, false)
        result.dirty = entry & 0x40 != 0
        return result
    }

    /// Frame numbers: 46 bits of guest-physical address.
    static var frameMask: UInt64 { 0x3FFF_FFFF_F000 }
    private static var reservedAddress: UInt64 { 0x000F_C000_0000_0000 }

    private func loadEntry(_ physical: UInt64) -> UInt64 {
        guard isMemoryPage(physical >> 12) else { return ~0 }
        return UnsafeRawPointer(s.pointee.ram + Int(physical)).load(as: UInt64.self)
    }

    private func loadEntry32(_ physical: UInt64) -> UInt64 {
        guard isMemoryPage(physical >> 12) else { return 0xFFFF_FFFF }
        return UInt64(UnsafeRawPointer(s.pointee.ram + Int(physical)).load(as: UInt32.self))
    }

    /// Sets A and D in an entry of which the walk has seen `entry`; false: it is another one by now, and is to be read again.
    ///
    /// - Spec: SDM 3A 4.8 and 9.1.2: the bits are set by a locked operation, and never in an entry that isn't present.
    private func setEntry(_ physical: UInt64, _ entry: UInt64, _ bits: UInt64, wide: Bool) -> Bool {
        let page = physical >> 12
        guard entry & bits != bits, isMemoryPage(page), s.pointee.page_flags[Int(page)] & 4 == 0 else { return true }
        let size = wide ? 8 : 4
        if s.pointee.logs_stores != 0 { logStore(physical, size) }
        noteDirty(page)
        let place = UnsafeMutableRawPointer(s.pointee.ram + Int(physical))
        if roost_cmpxchg_atomic(UInt32(size), place, entry, entry | bits) != entry { return false }
        if s.pointee.page_flags[Int(page)] & 1 != 0 { codeWritten(physical, size) }
        return true
    }

    // MARK: Flushing

    /// Forgets every translation.
    package func flushTLB() {
        let entries = Int(ROOST_TLB_ENTRIES) * Int(ROOST_TLB_CONTEXTS)
        if s.pointee.tables_ready != 0 {
            memset(s.pointee.tlb_contexts.0.unsafelyUnwrapped, 0xFF, entries * MemoryLayout<roost_tlb_entry>.stride)
        }
        for n in 0..<64 { roost_large_pages_at(s, n).pointee = 0 }
        if let other = s.pointee.other_tlb { memset(other, 0xFF, entries * MemoryLayout<roost_tlb_entry>.stride) }
        memset(s.pointee.store_filter.unsafelyUnwrapped, 0, Self.storeFilterWords * 8)
        s.pointee.huge_pages = 0
        // The tags begin anew with the tables empty: the next one must differ from the one in force.
        s.pointee.address_space = 1
        s.pointee.next_address_space = 1
        flushCode()
        unchainPages()
        if s.pointee.direct != nil { directFlush(page: nil) }
        for n in 0..<16 { roost_pcid_tag_at(s, n).pointee = 0 }
    }

    /// Forgets where code is.
    private func flushCode() {
        if s.pointee.tables_ready != 0 {
            memset(s.pointee.fetch_tlb.unsafelyUnwrapped, 0xFF, 1024 * MemoryLayout<roost_tlb_entry>.stride)
        }
        for n in 0..<64 {
            roost_code_filter_at(s, n).pointee = 0
            roost_code_regions_at(s, n).pointee = 0
        }
        s.pointee.jump_generation &+= 1
        s.pointee.local_code = 0
        updateJumpKey()
    }

    /// Where a page stands in `code_filter`.
    @inline(__always)
    private func codeHash(_ linear: UInt64) -> Int {
        Int(truncatingIfNeeded: (linear >> 12) ^ (linear >> 24)) & 4095
    }

    /// Where a 4 MiB region stands in `large_pages` and `code_regions`.
    @inline(__always)
    private func regionHash(_ linear: UInt64) -> Int {
        Int(truncatingIfNeeded: (linear >> 22) ^ (linear >> 34)) & 4095
    }

    /// Where a 1 GiB region stands in `huge_pages`.
    @inline(__always)
    private func hugeBit(_ linear: UInt64) -> UInt64 { 1 &<< (((linear >> 30) ^ (linear >> 39)) & 63) }

    /// Remembers that a piece of a large page is held.
    @inline(__always)
    private func noteSize(_ found: Translation, _ linear: UInt64) {
        if found.shift == 21 || found.shift == 22 {
            let region = regionHash(linear)
            roost_large_pages_at(s, region >> 6).pointee |= 1 &<< UInt64(region & 63)
        }
        if found.shift == 30 { s.pointee.huge_pages |= hugeBit(linear) }
    }

    /// A translation is about to go: forgets where code is if it may be one of code.
    private func flushCode(at linear: UInt64, isLarge: Bool, isHuge: Bool) {
        if linear >= BlockTranslator.absoluteStart {
            flushCode()
            unchainPages()
            return
        }
        let hash = isLarge ? regionHash(linear) : codeHash(linear)
        let word = isLarge ? roost_code_regions_at(s, hash >> 6).pointee : roost_code_filter_at(s, hash >> 6).pointee
        if isHuge || word &>> UInt64(hash & 63) & 1 != 0 { flushCode() }
    }

    /// Leaves all translations that aren't global behind.
    package func newAddressSpace() {
        let next = s.pointee.next_address_space &+ 1
        if next >= 2048 {
            flushTLB()
        } else {
            s.pointee.next_address_space = next
            s.pointee.address_space = next
            enteredAddressSpace()
            if s.pointee.direct != nil { directFlushAddressSpace() }
        }
    }

    /// `address_space` has changed: supervisor code that isn't global may be elsewhere now.
    package func enteredAddressSpace() {
        if s.pointee.local_code != 0 {
            s.pointee.jump_generation &+= 1
            s.pointee.local_code = 0
        }
        updateJumpKey()
    }

    /// INVLPG: forgets one page, in every address space.
    package func flushPage(_ linear: UInt64) {
        if s.pointee.direct != nil { directFlush(page: linear) }
        let isHuge = s.pointee.huge_pages & hugeBit(linear) != 0
        let region = regionHash(linear)
        let isLarge = roost_large_pages_at(s, region >> 6).pointee &>> UInt64(region & 63) & 1 != 0
        flushCode(at: linear, isLarge: isLarge, isHuge: isHuge)
        if isHuge { return flushRange(linear & ~0x3FFF_FFFF, 0x3FFF_FFFF) }
        if isLarge { return flushRange(linear & ~0x3F_FFFF, 0x3F_FFFF) }
        for context in 0..<Int(ROOST_TLB_CONTEXTS) {
            let slot = Int(truncatingIfNeeded: (linear >> 12) & UInt64(ROOST_TLB_ENTRIES - 1))
            forget(table(context) + slot, linear, ~0xFFF)
            if let other = otherTable(context) { forget(other + slot, linear, ~0xFFF) }
        }
    }

    private func flushRange(_ start: UInt64, _ mask: UInt64) {
        let count = min(Int((mask &+ 1) >> 12), Int(ROOST_TLB_ENTRIES))
        let first = Int(truncatingIfNeeded: (start >> 12) & UInt64(ROOST_TLB_ENTRIES - 1))
        for context in 0..<Int(ROOST_TLB_CONTEXTS) {
            for n in 0..<count {
                let slot = (first + n) & Int(ROOST_TLB_ENTRIES - 1)
                forget(table(context) + slot, start, ~mask)
                if let other = otherTable(context) { forget(other + slot, start, ~mask) }
            }
        }
    }

    /// The table of the engine that doesn't run now, if two are compared.
    private func otherTable(_ context: Int) -> UnsafeMutablePointer<roost_tlb_entry>? {
        s.pointee.other_tlb.map { $0 + context * Int(ROOST_TLB_ENTRIES) }
    }

    private func forget(_ entry: UnsafeMutablePointer<roost_tlb_entry>, _ linear: UInt64, _ mask: UInt64) {
        if (entry.pointee.read_tag ^ linear) & mask != 0 { return }
        entry.pointee.read_tag = ~0
        entry.pointee.write_tag = ~0
        entry.pointee.physical = 0
    }

    /// The pages' dirty flags have been taken away: the first store to each must be noticed. The vCPU doesn't run.
    package func forgetWriteRights() {
        guard s.pointee.tables_ready != 0 else { return }
        let entries = Int(ROOST_TLB_ENTRIES) * Int(ROOST_TLB_CONTEXTS)
        let table = s.pointee.tlb_contexts.0.unsafelyUnwrapped
        for n in 0..<entries { table[n].write_tag = ~0 }
        if let other = s.pointee.other_tlb { for n in 0..<entries { other[n].write_tag = ~0 } }
        directStatesChanged()
    }

    // MARK: Stores to code

    static var storeFilterWords: Int { 1024 }

    /// Remembers that a TLB entry may let stores to a page pass.
    @inline(__always)
    private func noteStores(to page: UInt64) {
        let filter = s.pointee.store_filter.unsafelyUnwrapped
        filter[Int(page >> 6) & (Self.storeFilterWords - 1)] |= 1 &<< (page & 63)
    }

    /// Whether there may be an entry that lets stores to a page pass.
    @inline(__always)
    func mayPassStores(to page: UInt64) -> Bool {
        let filter = s.pointee.store_filter.unsafelyUnwrapped
        return filter[Int(page >> 6) & (Self.storeFilterWords - 1)] &>> (page & 63) & 1 != 0
    }

    /// A page now holds decoded code: stores to it must be noticed.
    ///
    /// Most pages of code have never been stored to by this vCPU, and those need no look at all entries.
    package func protectCodePage(_ page: UInt64) { if mayPassStores(to: page) { protectCodePages() } }

    /// No entry of any TLB lets stores to pages of code pass from now on; the filter is made anew.
    func protectCodePages() {
        memset(s.pointee.store_filter.unsafelyUnwrapped, 0, Self.storeFilterWords * 8)
        protectCodePages(in: s.pointee.tlb_contexts.0.unsafelyUnwrapped)
        if let other = s.pointee.other_tlb { protectCodePages(in: other) }
    }

    private func protectCodePages(in table: UnsafeMutablePointer<roost_tlb_entry>) {
        let pages = s.pointee.ram_limit >> 12
        for n in 0..<Int(ROOST_TLB_ENTRIES) * Int(ROOST_TLB_CONTEXTS) where table[n].write_tag != ~0 {
            let page = table[n].physical >> 12
            if page < pages && s.pointee.page_flags[Int(page)] & 1 != 0 {
                table[n].write_tag = ~0
            } else {
                noteStores(to: page)
            }
        }
    }
}
