// The guest-physical address space: RAM (one memfd) below and above the PCI hole, and ROM.
//
// Memory that comes and goes is RAM too, all the time: a region behind what the guest has from the start. What it hasn't got
// holds no pages of the host's.
//
// Invariants of this file (it is part of the trusted core, so pointers are not marked `unsafe`):
// - host address of guest-physical address A is `base + A` for all RAM and ROM; holes are reserved and never mapped;
// - `regions` is written during set-up only, before any vCPU or device thread starts;
// - every access checks its whole range against one region first.
public import HostOS

internal import CHost
internal import Glibc
internal import Synchronization

/// An access outside RAM and ROM, or a write to ROM by the loader's checked interface.
public struct GuestMemoryError: Error, Equatable, Sendable, CustomStringConvertible {
    /// First byte of the access.
    public var address: GuestPhysicalAddress
    /// Length of the access in bytes.
    public var length: Int

    /// Makes an error from its parts.
    public init(address: GuestPhysicalAddress, length: Int) {
        self.address = address
        self.length = length
    }

    /// One line with the range.
    public var description: String { "no guest memory at \(address), \(length) bytes" }
}

/// What is known of each guest-physical page: one byte a page.
public struct PageFlags: OptionSet, Sendable {
    /// The bits.
    public let rawValue: UInt8

    /// Wraps the bits.
    @inlinable public init(rawValue: UInt8) { self.rawValue = rawValue }

    /// An engine holds decoded or translated code from the page: writers must tell it.
    public static let code = PageFlags(rawValue: 1)
    /// Written since the dirty log was last read.
    public static let dirty = PageFlags(rawValue: 2)
    /// Not writable by the guest (ROM); writes are dropped.
    public static let readOnly = PageFlags(rawValue: 4)
    /// User code that runs directly may write to the page: no engine holds code from it.
    public static let directWritable = PageFlags(rawValue: 8)
    /// User code that runs directly may execute the page: marked `.code` too, and not writable for such code.
    public static let directExecutable = PageFlags(rawValue: 16)
    /// The content is still in the saved memory that the machine goes on from (`restoreLazily`).
    public static let absent = PageFlags(rawValue: 32)
}

/// One contiguous range of RAM or ROM.
public struct MemoryRegion: Sendable, Equatable, Codable {
    /// What is there.
    public enum Kind: String, Sendable, Codable { case ram, rom }

    /// First guest-physical address.
    public var start: GuestPhysicalAddress
    /// Length in bytes, a page multiple.
    public var length: UInt64
    /// RAM or ROM.
    public var kind: Kind

    /// First address after it.
    public var end: GuestPhysicalAddress { start + length }
}

/// The guest-physical address space of one machine; the only holder of guest pointers.
public final class GuestMemory: @unchecked Sendable {
    /// Where the PCI hole begins when RAM is larger: 3 GiB.
    public static let holeStart: UInt64 = 0xC000_0000
    /// Where RAM goes on beyond the hole: 4 GiB.
    public static let highStart: UInt64 = 0x1_0000_0000
    /// What the start of the region for memory that comes and goes is a multiple of: a memory block of Linux.
    public static let plugAlignment: UInt64 = 128 << 20
    /// Bytes in a page.
    public static let pageSize: UInt64 = 4096

    let shared: SharedMemory
    let saved = Mutex<SavedMemory?>(nil)
    let capture = Mutex<MemoryCapture?>(nil)
    private let codeObservers = Mutex<[Int: @Sendable (UInt64) -> Void]>([:])
    /// Raised by every write of a device to a page that is `.directExecutable`.
    public let directChanges: UnsafeMutablePointer<UInt32>
    /// RAM and ROM, by address, not overlapping.
    public private(set) var regions: [MemoryRegion]
    /// Bytes of RAM, the region for memory that comes and goes and what lies before it included.
    public let ramSize: UInt64
    /// Bytes of RAM that the guest has from the start.
    public let bootSize: UInt64
    /// Bytes of RAM below the PCI hole.
    public let lowSize: UInt64
    /// Where memory that comes and goes lies; empty: nowhere.
    public let plugRegion: Range<UInt64>
    /// Host address of guest-physical 0; add a checked guest-physical address.
    public let base: UnsafeMutablePointer<UInt8>
    /// One `PageFlags` byte for each page up to `limit`.
    public let pageFlags: UnsafeMutablePointer<UInt8>
    /// First guest-physical address beyond every region, a page multiple, at least 4 GiB.
    public let limit: UInt64
    /// One count for each page up to `limit`, raised by every write to a page marked `.code`: stale code is recognized by it.
    public let codeVersions: UnsafeMutablePointer<UInt32>

    /// Lays out `size` bytes of RAM (a page multiple): below 3 GiB, the rest from 4 GiB, and behind that a region of `growth`
    /// bytes; in huge pages, where they are asked for and the host has some.
    public init(size: UInt64, growth: UInt64 = 0, hugePages: Bool = false) throws(HostError) {
        bootSize = size
        let low = min(size, Self.holeStart)
        let bootEnd = Self.highStart + (size - low)
        let start = (bootEnd + Self.plugAlignment - 1) & ~(Self.plugAlignment - 1)
        plugRegion = growth == 0 ? bootEnd..<bootEnd : start..<start + growth
        limit = plugRegion.upperBound
        let high = limit - Self.highStart
        lowSize = low
        ramSize = low + high
        // The memfd holds low RAM, high RAM, then up to 16 MiB of ROM.
        shared = try SharedMemory(name: "guest-ram", size: Int(ramSize + 0x100_0000), span: Int(limit))
        try shared.map(offset: 0, fileOffset: 0, length: Int(low))
        try shared.map(offset: Int(Self.highStart), fileOffset: Int(low), length: Int(high))
        if hugePages {
            try shared.useHugePages(offset: 0, length: Int(low))
            try shared.useHugePages(offset: Int(Self.highStart), length: Int(high))
        }
        base = shared.base.assumingMemoryBound(to: UInt8.self)
        let pages = Int(limit / Self.pageSize)
        guard
            let flags = mmap(nil, pages, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0),
            flags != MAP_FAILED
        else { throw HostError.last("allocate page flags") }
        pageFlags = flags.assumingMemoryBound(to: UInt8.self)
        guard
            let versions = mmap(
                nil, pages * 4, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0),
            versions != MAP_FAILED
        else { throw HostError.last("allocate code versions") }
        codeVersions = versions.assumingMemoryBound(to: UInt32.self)
        directChanges = .allocate(capacity: 1)
        directChanges.initialize(to: 0)
        regions = [MemoryRegion(start: GuestPhysicalAddress(0), length: low, kind: .ram)]
        if high > 0 {
            regions.append(MemoryRegion(start: GuestPhysicalAddress(Self.highStart), length: high, kind: .ram))
        }
    }

    deinit {
        munmap(pageFlags, Int(limit / Self.pageSize))
        munmap(codeVersions, Int(limit / Self.pageSize) * 4)
        directChanges.deallocate()
    }

    /// Puts ROM in a hole (set-up only): page-aligned, inside the first 4 GiB, 16 MiB in all.
    public func addROM(at start: GuestPhysicalAddress, contents: [UInt8]) throws {
        let length = (UInt64(contents.count) + 4095) & ~4095
        let used = regions.filter { $0.kind == .rom }.reduce(0) { $0 + $1.length }
        guard start.rawValue & 4095 == 0, start.rawValue + length <= Self.highStart, used + length <= 0x100_0000,
            !regions.contains(where: { $0.start < start + length && start < $0.end })
        else { throw GuestMemoryError(address: start, length: contents.count) }
        try shared.map(offset: Int(start.rawValue), fileOffset: Int(ramSize + used), length: Int(length))
        contents.withUnsafeBytes {
            (base + Int(start.rawValue)).update(from: $0.bindMemory(to: UInt8.self).baseAddress!, count: $0.count)
        }
        for page in 0..<(length / 4096) { pageFlags[Int(start.rawValue / 4096 + page)] |= PageFlags.readOnly.rawValue }
        regions.append(MemoryRegion(start: start, length: length, kind: .rom))
        regions.sort { $0.start < $1.start }
    }

    /// Makes all RAM zero again, giving its pages back to the host; nothing may run. ROM stays.
    public func clear() {
        let current = capture.withLock { $0 }
        current?.saveRest(of: self)
        forgetSaved()
        for region in regions where region.kind == .ram && region.length > 0 {
            let start = base + Int(region.start.rawValue)
            if madvise(start, Int(region.length), MADV_REMOVE) != 0 { memset(start, 0, Int(region.length)) }
            for page in (region.start.rawValue / 4096)..<(region.end.rawValue / 4096) {
                let old = pageFlags[Int(page)]
                if old & PageFlags.code.rawValue != 0 { roost_increment(codeVersions + Int(page)) }
                if old != 0 || current != nil { pageFlags[Int(page)] = old | PageFlags.dirty.rawValue }
            }
        }
    }

    /// Gives the whole pages of a range of RAM back to the host: they read as zero from now on. The guest doesn't use
    /// them meanwhile. False if the range isn't RAM or the host refuses.
    @discardableResult
    public func giveBack(_ address: GuestPhysicalAddress, length: Int) -> Bool {
        guard length > 0, isRAM(address, length: length) else { return false }
        let first = (address.rawValue &+ 4095) & ~4095
        let end = (address.rawValue &+ UInt64(length)) & ~4095
        guard first < end else { return false }
        for page in first >> 12..<end >> 12 { prepareWrite(page) }
        if madvise(base + Int(first), Int(end - first), MADV_REMOVE) != 0 { return false }
        didWrite(GuestPhysicalAddress(first), length: Int(end - first))
        return true
    }

    /// Whether all of `length` bytes from `address` lie in one region of RAM.
    public func isRAM(_ address: GuestPhysicalAddress, length: Int = 1) -> Bool {
        region(address, length)?.kind == .ram
    }

    @inline(__always)
    private func region(_ address: GuestPhysicalAddress, _ length: Int) -> MemoryRegion? {
        guard length >= 0 else { return nil }
        for region in regions where address >= region.start {
            let offset = address.rawValue &- region.start.rawValue
            if offset <= region.length, UInt64(length) <= region.length - offset { return region }
        }
        return nil
    }

    /// Host address of a range that lies in one region, or nil, with its content there. Reading it races with the guest:
    /// copy, don't trust twice. Writing begins at once, if at all, and `didWrite` follows.
    public func hostAddress(_ address: GuestPhysicalAddress, length: Int, forWriting: Bool) -> UnsafeMutableRawPointer?
    {
        guard let region = region(address, length), !forWriting || region.kind == .ram else { return nil }
        if length > 0 {
            for page in address.rawValue / 4096...(address.rawValue + UInt64(length) - 1) / 4096 {
                if forWriting { prepareWrite(page) } else { prepareRead(page) }
            }
        }
        return UnsafeMutableRawPointer(base + Int(address.rawValue))
    }

    /// Tells that a range was written through a host address: sets dirty flags, tells engines of code pages.
    public func didWrite(_ address: GuestPhysicalAddress, length: Int) {
        guard length > 0, isRAM(address, length: length) else { return }
        for page in (address.rawValue / 4096)...((address.rawValue + UInt64(length) - 1) / 4096) {
            let old = roost_set_flags(pageFlags + Int(page), PageFlags.dirty.rawValue)
            if old & PageFlags.code.rawValue != 0 {
                roost_increment(codeVersions + Int(page))
                tellCodeWritten(page)
            }
            if old & PageFlags.directExecutable.rawValue != 0 { roost_increment(directChanges) }
        }
    }

    /// Has the observer of vCPU `id` told of every page marked `.code` that is written by devices or other vCPUs, on the
    /// thread that does it; nil: no more.
    public func onCodeWritten(vcpu id: Int, _ observer: (@Sendable (UInt64) -> Void)?) {
        codeObservers.withLock { $0[id] = observer }
    }

    /// A page of code has been written to; `writer` knows.
    public func tellCodeWritten(_ page: UInt64, except writer: Int? = nil) {
        for (id, observer) in codeObservers.withLock({ $0 }) where id != writer { observer(page) }
    }

    /// The memfd behind RAM: guest-physical addresses below `holeStart`, then those from `highStart` on.
    public var descriptor: Int32 { shared.descriptor }

    /// Loads a value (little-endian, any alignment; one host load where aligned).
    public func load<T: FixedWidthInteger & BitwiseCopyable>(_ address: GuestPhysicalAddress, as type: T.Type = T.self)
        throws(GuestMemoryError) -> T
    {
        guard let host = hostAddress(address, length: MemoryLayout<T>.size, forWriting: false) else {
            throw GuestMemoryError(address: address, length: MemoryLayout<T>.size)
        }
        return host.loadUnaligned(as: T.self)
    }

    /// Stores a value (little-endian, any alignment; one host store where aligned).
    public func store<T: FixedWidthInteger & BitwiseCopyable>(_ value: T, at address: GuestPhysicalAddress)
        throws(GuestMemoryError)
    {
        guard let host = hostAddress(address, length: MemoryLayout<T>.size, forWriting: true) else {
            throw GuestMemoryError(address: address, length: MemoryLayout<T>.size)
        }
        host.storeBytes(of: value, as: T.self)
        didWrite(address, length: MemoryLayout<T>.size)
    }

    /// Copies bytes out of the guest. The caller bounds `length`.
    public func read(_ address: GuestPhysicalAddress, length: Int) throws(GuestMemoryError) -> [UInt8] {
        guard let host = hostAddress(address, length: length, forWriting: false) else {
            throw GuestMemoryError(address: address, length: length)
        }
        return [UInt8](UnsafeRawBufferPointer(start: host, count: length))
    }

    /// Appends bytes of memory to an array.
    public func append(_ address: GuestPhysicalAddress, length: Int, to bytes: inout [UInt8]) throws(GuestMemoryError) {
        guard let host = hostAddress(address, length: length, forWriting: false) else {
            throw GuestMemoryError(address: address, length: length)
        }
        bytes.append(contentsOf: UnsafeRawBufferPointer(start: host, count: length))
    }

    /// Stores a part of an array, which must lie within it.
    public func write(_ bytes: [UInt8], _ range: Range<Int>, at address: GuestPhysicalAddress) throws(GuestMemoryError)
    {
        let failure = bytes.withUnsafeBytes { buffer -> GuestMemoryError? in
            do throws(GuestMemoryError) {
                try write(UnsafeRawBufferPointer(rebasing: buffer[range]), at: address)
                return nil
            } catch {
                return error
            }
        }
        if let failure { throw failure }
    }

    /// Copies bytes into the guest's RAM.
    public func write(_ bytes: [UInt8], at address: GuestPhysicalAddress) throws(GuestMemoryError) {
        let wrote = bytes.withUnsafeBytes { buffer in
            (try? write(buffer, at: address)) != nil
        }
        if !wrote { throw GuestMemoryError(address: address, length: bytes.count) }
    }

    /// Copies bytes into the guest's RAM.
    public func write(_ bytes: UnsafeRawBufferPointer, at address: GuestPhysicalAddress) throws(GuestMemoryError) {
        guard let host = hostAddress(address, length: bytes.count, forWriting: true) else {
            throw GuestMemoryError(address: address, length: bytes.count)
        }
        if let source = bytes.baseAddress { host.copyMemory(from: source, byteCount: bytes.count) }
        didWrite(address, length: bytes.count)
    }
}
