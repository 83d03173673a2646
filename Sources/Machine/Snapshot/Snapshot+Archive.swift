// A snapshot's memory as one compressed file, for archives.
//
// The file holds the pages that aren't zero, in their order, 256 in a Zstandard frame; memory.sums tells which they are.
// Translated code stays behind: it is host code, which nobody takes from elsewhere.
internal import Foundation
internal import GuestMemory
public import HostOS
internal import Storage

extension Snapshot {
    /// The files beside memory, each with the most bytes that it can have.
    public static let smallFiles: [(name: String, limit: UInt64)] = [
        ("snapshot.json", 1 << 20), ("state.json", 64 << 20), ("memory.sums", 1 << 30), ("checksums", 4096),
    ]

    private static var pageSize: Int { Int(GuestMemory.pageSize) }
    private static var pagesInFrame: Int { 256 }

    /// Pages that aren't zero, as they come in frames.
    private var frames: some Sequence<ArraySlice<Int>> {
        let pages = sums.indices.filter { sums[$0] != 0 }
        return stride(from: 0, to: pages.count, by: Self.pagesInFrame).lazy.map {
            pages[$0..<min(pages.count, $0 + Self.pagesInFrame)]
        }
    }

    /// Writes what memory holds to a new file; a page that isn't what was saved is an error.
    public func packMemory(to target: String, progress: (UInt64, UInt64) -> Void) throws(MachineError) {
        do {
            let memory = try FileDescriptor.openDisk(path + "/memory", .readOnly)
            let output = try FileDescriptor.createDisk(target)
            var end: UInt64 = 0
            var done: UInt64 = 0
            for pages in frames {
                var content: [UInt8] = []
                content.reserveCapacity(pages.count * Self.pageSize)
                for run in Self.runs(pages) {
                    content += try memory.read(
                        at: UInt64(run.lowerBound * Self.pageSize), count: run.count * Self.pageSize)
                }
                try check(content, pages)
                guard let frame = ZstandardFrames.frame(content) else {
                    throw SavedMemoryError("there is no memory to compress it")
                }
                try output.write(frame, at: end)
                end += UInt64(frame.count)
                done += UInt64(pages.count * Self.pageSize)
                progress(done, manifest.memory)
            }
        } catch {
            throw MachineError(.state, "snapshot \(path): \(error)")
        }
    }

    /// Makes the memory file, which isn't there yet, of what `packMemory` has written: so many bytes of a file, of which
    /// nothing is believed. Each page must be the one that `memory.sums` tells of.
    public func unpackMemory(
        from file: borrowing FileDescriptor, at offset: UInt64, count: UInt64, progress: (UInt64, UInt64) -> Void
    ) throws(MachineError) {
        do {
            let output = try FileDescriptor.createDisk(path + "/memory")
            try output.setByteCount(manifest.memory)
            var (place, left, done) = (offset, count, UInt64(0))
            for pages in frames {
                let length = pages.count * Self.pageSize
                let limit = min(UInt64(ZstandardFrames.longest(length)), left)
                guard
                    let (content, taken) = ZstandardFrames.expand(
                        try file.read(at: place, count: Int(limit)), count: length)
                else { throw Self.damage(pages) }
                try check(content, pages)
                var start = 0
                for run in Self.runs(pages) {
                    let next = start + run.count * Self.pageSize
                    try output.write(content[start..<next], at: UInt64(run.lowerBound * Self.pageSize))
                    start = next
                }
                place += UInt64(taken)
                left -= UInt64(taken)
                done += UInt64(length)
                progress(done, manifest.memory)
            }
            guard left == 0 else { throw SavedMemoryError("the saved memory has something behind it") }
            try output.synchronize()
        } catch {
            throw MachineError(.state, "snapshot \(path): \(error)")
        }
    }

    /// Whether pages are those that were saved.
    private func check(_ content: [UInt8], _ pages: ArraySlice<Int>) throws(SavedMemoryError) {
        guard content.count == pages.count * Self.pageSize else { throw Self.damage(pages) }
        for (index, page) in pages.enumerated() {
            let bytes = content[index * Self.pageSize..<(index + 1) * Self.pageSize]
            guard SavedMemory.checksum(of: bytes) == sums[page] else { throw Self.damage([page]) }
        }
    }

    private static func damage(_ pages: ArraySlice<Int>) -> SavedMemoryError {
        SavedMemoryError(
            "the saved memory is damaged at offset 0x\(String((pages.first ?? 0) * pageSize, radix: 16))")
    }

    /// Pages that follow one another, together.
    private static func runs(_ pages: ArraySlice<Int>) -> [Range<Int>] {
        var runs: [Range<Int>] = []
        for page in pages {
            if let last = runs.last, last.upperBound == page {
                runs[runs.count - 1] = last.lowerBound..<page + 1
            } else {
                runs.append(page..<page + 1)
            }
        }
        return runs
    }
}
