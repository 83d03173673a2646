// A disk that may be used only so fast.
internal import HostOS
internal import Synchronization

/// An image whose requests wait their turn, on the thread that makes them.
final class LimitedImage: DiskImage {
    private struct Buckets: Sendable {
        var operations: TokenBucket?
        var bytes: TokenBucket?
    }

    private let image: any DiskImage
    private let buckets: Mutex<Buckets>

    init(_ image: any DiskImage, _ limits: DiskLimits) {
        self.image = image
        let now = HostClock.monotonic
        buckets = Mutex(
            Buckets(
                operations: limits.operations == 0 ? nil : TokenBucket(rate: limits.operations, now: now),
                bytes: limits.bytes == 0 ? nil : TokenBucket(rate: limits.bytes, now: now)))
    }

    var path: String { image.path }
    var format: DiskFormat { image.format }
    var byteCount: UInt64 { image.byteCount }
    var isReadOnly: Bool { image.isReadOnly }
    var note: String? { image.note }

    /// Waits until a request of some bytes may go on.
    private func wait(_ bytes: Int) {
        let pause = buckets.withLock { buckets in
            let now = HostClock.monotonic
            return max(
                buckets.operations?.take(1, now: now) ?? 0, buckets.bytes?.take(UInt64(max(0, bytes)), now: now) ?? 0)
        }
        if pause > 0 { HostClock.sleep(nanoseconds: pause) }
    }

    func read(at offset: UInt64, into bytes: inout [UInt8], _ range: Range<Int>) throws {
        wait(range.count)
        try image.read(at: offset, into: &bytes, range)
    }

    func write(_ bytes: ArraySlice<UInt8>, at offset: UInt64) throws {
        wait(bytes.count)
        try image.write(bytes, at: offset)
    }

    func flush() throws { try image.flush() }

    func discard(at offset: UInt64, length: UInt64) throws {
        wait(0)
        try image.discard(at: offset, length: length)
    }

    func writeZeroes(at offset: UInt64, length: UInt64, mayUnmap: Bool) throws {
        wait(0)
        try image.writeZeroes(at: offset, length: length, mayUnmap: mayUnmap)
    }

    func extent(at offset: UInt64, limit: UInt64) throws -> DiskExtent { try image.extent(at: offset, limit: limit) }
}
