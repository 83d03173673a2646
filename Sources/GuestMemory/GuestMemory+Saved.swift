// Memory that goes on from a saved one, and memory that is being saved: what happens before a page is read or written.
//
// A page that is absent is copied from the saved memory when anything looks at it first: an engine that fills a TLB, a
// walk of page tables, a device. Nothing maps an absent page.
internal import CHost
internal import Glibc
public import HostOS
internal import Synchronization

extension GuestMemory {
    /// Number of pages of RAM; they are counted as they lie in the memfd, low RAM first.
    public var pageCount: Int { Int(ramSize / Self.pageSize) }

    /// Guest-physical page of a page of RAM.
    @inline(__always)
    func physicalPage(_ index: Int) -> Int {
        let low = Int(lowSize / Self.pageSize)
        return index < low ? index : index - low + Int(Self.highStart / Self.pageSize)
    }

    /// The page of RAM at a guest-physical page, which must be RAM.
    @inline(__always)
    func ramPage(_ physical: Int) -> Int {
        let low = Int(lowSize / Self.pageSize)
        return physical < low ? physical : physical - Int(Self.highStart / Self.pageSize) + low
    }

    // MARK: Going on from saved memory

    /// Has RAM, which is all zero, take its content from saved memory, page by page as it is needed. Nothing runs yet.
    public func restoreLazily(from source: SavedMemory) throws(SavedMemoryError) {
        guard source.pageCount == pageCount else {
            throw SavedMemoryError("it is of \(source.pageCount) pages, this machine has \(pageCount)")
        }
        for index in 0..<pageCount where source.holds(index) {
            pageFlags[physicalPage(index)] |= PageFlags.absent.rawValue
        }
        saved.withLock { $0 = source }
    }

    /// Copies all of saved memory now: where the engine looks at memory by itself. Nothing runs yet.
    public func restoreWhole(from source: SavedMemory) throws(SavedMemoryError) {
        try restoreLazily(from: source)
        for index in 0..<pageCount { prepareRead(UInt64(physicalPage(index))) }
        if let damage = source.damage { throw damage }
    }

    /// Copies an absent page from the saved memory.
    public func bringIn(_ page: UInt64) {
        saved.withLock { saved in
            // Another thread may have been here first.
            guard let saved, pageFlags[Int(page)] & PageFlags.absent.rawValue != 0 else { return }
            saved.copy(ramPage(Int(page)), to: base + Int(page << 12))
            roost_clear_flags(pageFlags + Int(page), PageFlags.absent.rawValue)
        }
    }

    /// Lets go of the saved memory: what is absent is zero now.
    func forgetSaved() {
        saved.withLock { saved in
            if saved == nil { return }
            for index in 0..<pageCount { roost_clear_flags(pageFlags + physicalPage(index), PageFlags.absent.rawValue) }
            saved = nil
        }
    }

    /// What was found to be damaged of the saved memory that RAM goes on from.
    public var savedDamage: SavedMemoryError? { saved.withLock { $0?.damage } }

    /// A page is about to be read.
    @inline(__always)
    func prepareRead(_ page: UInt64) {
        if pageFlags[Int(page)] & PageFlags.absent.rawValue != 0 { bringIn(page) }
    }

    /// A page is about to be written.
    @inline(__always)
    func prepareWrite(_ page: UInt64) {
        prepareRead(page)
        if pageFlags[Int(page)] & PageFlags.dirty.rawValue == 0 { willWrite(page) }
    }

    // MARK: Being saved

    /// A page that isn't dirty is about to be written: keeps its content if it is being saved, and marks it.
    public func willWrite(_ page: UInt64) {
        capture.withLock { capture in
            if let capture, isRAM(GuestPhysicalAddress(page << 12)) { capture.keep(ramPage(Int(page)), of: self) }
        }
        _ = roost_set_flags(pageFlags + Int(page), PageFlags.dirty.rawValue)
    }

    /// Begins to save memory as it is now, while the machine is paused. Afterwards the vCPUs must forget that they may
    /// store to pages (`VCPU.forgetWriteRights`); then the machine may go on, and somebody must call
    /// `MemoryCapture.saveRest`.
    ///
    /// Where the engine doesn't notice first writes, the machine may run: what is saved then is of no one moment, until the
    /// machine is paused and what was written (`MemoryCapture.takeWritten`) is saved again.
    public func beginCapture(to file: borrowing FileDescriptor) throws(SavedMemoryError) -> MemoryCapture {
        try capture.withLock { (capture) throws(SavedMemoryError) in
            if capture != nil { throw SavedMemoryError("the memory is being saved already") }
            // Code that runs directly must ask again before it writes.
            let mask = PageFlags.dirty.rawValue | PageFlags.directWritable.rawValue
            for index in 0..<pageCount where pageFlags[physicalPage(index)] & mask != 0 {
                roost_clear_flags(pageFlags + physicalPage(index), mask)
            }
            roost_increment(directChanges)
            let new = MemoryCapture(self, file: file.rawValue)
            capture = new
            return new
        }
    }

    /// Ends a capture, whatever isn't saved yet.
    public func endCapture(_ ending: MemoryCapture) {
        capture.withLock { if $0 === ending { $0 = nil } }
    }
}
