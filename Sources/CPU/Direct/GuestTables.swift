// The guest's page tables, read without touching them: what user code may reach without the processor setting a bit.
internal import CHost
internal import GuestMemory

/// What stands for the 2 MiB around a linear address.
enum LeafTable {
    /// Nothing that user code may reach.
    case none
    /// 512 entries, and what the levels above allow.
    case entries(UnsafePointer<UInt64>, writable: Bool, executable: Bool)
    /// One large page, or a piece of a huge one: its first guest-physical page.
    case large(page: UInt64, writable: Bool, executable: Bool)
}

/// A page as user code may have it now: nothing, or its guest-physical page and rights.
struct UserPage {
    var page: UInt64
    /// Writable, and already dirty.
    var writable: Bool
    var executable: Bool
}

/// A reader of 4-level tables (SDM 3A 4.5).
struct GuestTables {
    private let v: VCPU
    private let ram: UnsafePointer<UInt8>
    private let lowEnd: UInt64
    private let highEnd: UInt64
    private let root: UInt64
    private let noExecute: Bool
    private let keys: Bool

    private static let reserved: UInt64 = 0x000F_C000_0000_0000

    init(_ v: VCPU) {
        let s = v.s
        self.v = v
        ram = UnsafePointer(s.pointee.ram)
        lowEnd = s.pointee.ram_low_end
        highEnd = s.pointee.ram_high_end
        root = s.pointee.cr3 & VCPU.frameMask
        noExecute = s.pointee.efer & 0x800 != 0
        keys = s.pointee.cr4 & 0x40_0000 != 0
    }

    /// Whether a guest-physical page is RAM.
    @inline(__always)
    func isRAM(_ page: UInt64) -> Bool {
        let address = page << 12
        return address < lowEnd || (address >= GuestMemory.highStart && address < highEnd)
    }

    @inline(__always)
    private func table(_ address: UInt64) -> UnsafePointer<UInt64>? {
        guard isRAM(address >> 12), v.isMemoryPage(address >> 12) else { return nil }
        return UnsafeRawPointer(ram + Int(address)).assumingMemoryBound(to: UInt64.self)
    }

    /// Present, user, accessed, no reserved bit.
    @inline(__always)
    private func isUsable(_ entry: UInt64) -> Bool {
        entry & 0x25 == 0x25 && entry & Self.reserved == 0 && (noExecute || entry >> 63 == 0)
    }

    /// The table behind the 2 MiB at a linear address; also whether it is a piece of a 1 GiB page.
    func leaf(_ linear: UInt64) -> (table: LeafTable, isHuge: Bool) {
        var at = root
        var writable = true
        var executable = true
        for shift: UInt64 in [39, 30, 21] {
            guard let table = table(at) else { return (.none, false) }
            let entry = table[Int((linear >> shift) & 511)]
            guard isUsable(entry) else { return (.none, false) }
            writable = writable && entry & 2 != 0
            executable = executable && entry >> 63 == 0
            if shift < 39 && entry & 0x80 != 0 {
                let mask: UInt64 = (1 << shift) - 1
                guard entry & mask & ~0x1FFF == 0, !hasKey(entry) else { return (.none, shift == 30) }
                let base = (entry & VCPU.frameMask & ~mask) | (linear & mask & ~0x1F_FFFF)
                let isWritable = writable && entry & 0x40 != 0
                return (.large(page: base >> 12, writable: isWritable, executable: executable), shift == 30)
            }
            if shift == 39 && entry & 0x80 != 0 { return (.none, false) }
            at = entry & VCPU.frameMask
        }
        guard let table = table(at) else { return (.none, false) }
        return (.entries(table, writable: writable, executable: executable), false)
    }

    @inline(__always)
    private func hasKey(_ entry: UInt64) -> Bool { keys && (entry >> 59) & 15 != 0 }

    /// Page `n` of the 2 MiB that a table stands for.
    @inline(__always)
    func page(_ n: Int, of table: LeafTable) -> UserPage? {
        switch table {
        case .none: return nil
        case .entries(let entries, let writable, let executable):
            let entry = entries[n]
            guard isUsable(entry), !hasKey(entry) else { return nil }
            let page = (entry & VCPU.frameMask) >> 12
            guard isRAM(page) else { return nil }
            return UserPage(
                page: page, writable: writable && entry & 0x42 == 0x42, executable: executable && entry >> 63 == 0)
        case .large(let first, let writable, let executable):
            let page = first + UInt64(n)
            guard isRAM(page) else { return nil }
            return UserPage(page: page, writable: writable, executable: executable)
        }
    }

    /// Whether the guest has anything present in the pages from a linear address on, within one 2 MiB.
    func isPresent(_ linear: UInt64, pages: Int) -> Bool {
        var at = root
        for shift: UInt64 in [39, 30, 21] {
            guard let table = table(at) else { return true }
            let entry = table[Int((linear >> shift) & 511)]
            if entry & 1 == 0 { return false }
            if entry & 0x80 != 0 { return true }
            at = entry & VCPU.frameMask
        }
        guard let table = table(at) else { return true }
        let first = Int((linear >> 12) & 511)
        for n in first..<min(first + pages, 512) where table[n] & 1 != 0 { return true }
        return false
    }
}
