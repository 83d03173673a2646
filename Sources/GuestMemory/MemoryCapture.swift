// Memory on its way into a file, as it was at one moment, while the guest goes on.
//
// Invariant: a page's content is read either while the page isn't dirty, or before its first write, by the thread that
// is about to write; `pending` and the file's position in it are touched with the lock held. Where first writes aren't
// noticed, a page may be saved as it never was: it is dirty then, and saved again (`takeWritten`) before the end.
internal import CHost
internal import Glibc
public import HostOS
internal import Synchronization

/// Saves the pages of RAM, each once, in any order.
public final class MemoryCapture: Sendable {
    private struct Contents: ~Copyable, Sendable {
        /// One bit for each page that isn't in the file yet.
        var pending: [UInt64]
        /// What `SavedMemory` finds the pages' checksums in.
        var sums: [UInt32]
        var saved = 0
        var total = 0
        var failure: HostError?
    }

    private let contents: Mutex<Contents>
    private let file: Int32

    init(_ memory: GuestMemory, file: Int32) {
        let count = memory.pageCount
        var pending = [UInt64](repeating: 0, count: (count + 63) / 64)
        var total = 0
        memory.forEachTouchedPage { page in
            pending[page >> 6] |= 1 << UInt64(page & 63)
            total += 1
        }
        self.file = file
        contents = Mutex(Contents(pending: pending, sums: [UInt32](repeating: 0, count: count), total: total))
    }

    /// Pages looked at so far, and all that there are to look at: those that weren't zero when it began, and each one again
    /// that was written since.
    public var progress: (done: Int, total: Int) { contents.withLock { ($0.saved, $0.total) } }

    /// Why pages could not be written.
    public var failure: HostError? { contents.withLock { $0.failure } }

    /// The pages' checksums, when all is saved.
    public var sums: [UInt32] { contents.withLock { $0.sums } }

    /// Saves one page that is about to be written, if it isn't yet.
    func keep(_ page: Int, of memory: GuestMemory) {
        contents.withLock { contents in
            guard contents.pending[page >> 6] >> UInt64(page & 63) & 1 != 0 else { return }
            contents.pending[page >> 6] &= ~(1 << UInt64(page & 63))
            contents.saved += 1
            memory.withSavedContent(of: page) { bytes in
                let sum = SavedMemory.checksum(bytes)
                if sum != 0 || contents.sums[page] != 0 { write(bytes, page, &contents.failure) }
                contents.sums[page] = sum
            }
        }
    }

    /// Has the pages that were written since they were saved saved again; how many they are.
    public func takeWritten(of memory: GuestMemory) -> Int {
        contents.withLock { contents in
            var count = 0
            for page in 0..<memory.pageCount {
                let flags = memory.pageFlags + memory.physicalPage(page)
                if flags.pointee & PageFlags.dirty.rawValue == 0 { continue }
                roost_clear_flags(flags, PageFlags.dirty.rawValue)
                if contents.pending[page >> 6] >> UInt64(page & 63) & 1 == 0 { contents.total += 1 }
                contents.pending[page >> 6] |= 1 << UInt64(page & 63)
                count += 1
            }
            return count
        }
    }

    /// Saves all that is left; `report` is called now and then.
    public func saveRest(of memory: GuestMemory, report: () -> Void = {}) {
        for word in 0..<((memory.pageCount + 63) / 64) {
            saveWord(word, of: memory)
            if word & 63 == 63 { report() }
        }
        report()
    }

    /// The pages of one word of `pending`: copied under the lock, written without it.
    private func saveWord(_ word: Int, of memory: GuestMemory) {
        withUnsafeTemporaryAllocation(byteCount: 64 * 4096, alignment: 4096) { buffer in
            let (taken, known) = contents.withLock { contents -> (UInt64, UInt64) in
                let taken = contents.pending[word]
                var known: UInt64 = 0
                contents.pending[word] = 0
                for bit in 0..<64 where taken >> UInt64(bit) & 1 != 0 {
                    memory.withSavedContent(of: word * 64 + bit) { bytes in
                        (buffer.baseAddress! + bit * 4096).copyMemory(from: bytes.baseAddress!, byteCount: 4096)
                    }
                    if contents.sums[word * 64 + bit] != 0 { known |= 1 << UInt64(bit) }
                }
                return (taken, known)
            }
            if taken == 0 { return }
            var failure: HostError?
            var sums: [(Int, UInt32)] = []
            var start = -1
            for bit in 0...64 {
                var isWritten = false
                if bit < 64, taken >> UInt64(bit) & 1 != 0 {
                    let sum = SavedMemory.checksum(
                        UnsafeRawBufferPointer(rebasing: buffer[bit * 4096..<bit * 4096 + 4096]))
                    sums.append((word * 64 + bit, sum))
                    // The file has zeros where nothing was written, and what it had before mustn't stay.
                    isWritten = sum != 0 || known >> UInt64(bit) & 1 != 0
                }
                if isWritten {
                    if start < 0 { start = bit }
                } else if start >= 0 {
                    // Neighbors go in one call.
                    let run = UnsafeRawBufferPointer(rebasing: buffer[start * 4096..<bit * 4096])
                    write(run, word * 64 + start, &failure)
                    start = -1
                }
            }
            contents.withLock { contents in
                for (page, sum) in sums { contents.sums[page] = sum }
                contents.saved += sums.count
                if let failure { contents.failure = failure }
            }
        }
    }

    private func write(_ bytes: UnsafeRawBufferPointer, _ page: Int, _ failure: inout HostError?) {
        var done = 0
        while done < bytes.count && failure == nil {
            let count = pwrite(file, bytes.baseAddress! + done, bytes.count - done, off_t(page * 4096 + done))
            if count > 0 { done += count } else if count == 0 || errno != EINTR { failure = .last("save memory") }
        }
    }
}

extension GuestMemory {
    /// Calls `body` with each page of RAM that may hold anything but zeros.
    func forEachTouchedPage(_ body: (Int) -> Void) {
        var page = 0
        let count = pageCount
        while page < count {
            // A page that is absent is a hole of the memfd, but has content.
            let next = min(shared.nextData(from: page * 4096) / 4096, count)
            for index in page..<next where pageFlags[physicalPage(index)] & PageFlags.absent.rawValue != 0 {
                body(index)
            }
            guard next < count else { return }
            let end = min(shared.nextHole(from: next * 4096) / 4096, count)
            for index in next..<max(end, next + 1) { body(index) }
            page = max(end, next + 1)
        }
    }

    /// A page's content, from the saved memory if it is still there.
    func withSavedContent(of page: Int, _ body: (UnsafeRawBufferPointer) -> Void) {
        let physical = physicalPage(page)
        saved.withLock { saved in
            if let saved, pageFlags[physical] & PageFlags.absent.rawValue != 0 { return saved.withPage(page, body) }
            body(UnsafeRawBufferPointer(start: base + physical << 12, count: 4096))
        }
    }
}
