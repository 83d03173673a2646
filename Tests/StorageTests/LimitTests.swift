// Limits on disks: arithmetic with a clock of the test's own.
import Foundation
import Storage
import Testing

@Suite struct LimitTests {
    @Test func `a bucket lets a second's worth pass at once, then as much as its rate`() {
        var bucket = TokenBucket(rate: 100, now: 0)
        for _ in 0..<101 { #expect(bucket.take(1, now: 0) == 0) }
        #expect(bucket.take(1, now: 0) == 10_000_000)
        // Debt is paid before anything passes, and idle time earns no more than a second's worth.
        #expect(bucket.take(1, now: 1_000_000_000) == 0)
        #expect(bucket.take(1000, now: 100_000_000_000) == 0)
        #expect(bucket.take(1, now: 100_000_000_000) == 9_000_000_000)
    }

    @Test func `time that runs backwards and numbers without sense do no harm`() {
        var bucket = TokenBucket(rate: 0, now: .max)
        #expect(bucket.take(.max, now: 0) == 0)
        #expect(bucket.take(1, now: 1) == 3_600_000_000_000)
    }

    @Test func `a disk is as fast as it may be`() throws {
        let folder = try Folder(inMemory: true)
        let path = folder.file("disk.raw")
        try Disk.createRaw(path, size: 1 << 20)
        var options = DiskOptions(format: .raw)
        options.limits.operations = 50
        let image = try openDisk(path, options)
        let start = ContinuousClock.now
        for _ in 0..<60 { _ = try image.read(at: 0, count: 512) }
        #expect(ContinuousClock.now - start > .milliseconds(150))
        #expect(try image.extent(at: 0, limit: 512).length == 512)
    }
}
