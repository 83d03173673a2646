// qcow2 against qemu-img, in both directions.
import Foundation
import Storage
import Testing

@Suite struct Qcow2Tests {
    /// A kind of image.
    struct Kind: CustomTestStringConvertible, Sendable {
        var options: String
        var testDescription: String { options }
    }

    static let kinds = [
        "compat=0.10", "compat=1.1", "cluster_size=512", "cluster_size=4096,refcount_bits=1",
        "cluster_size=1024,refcount_bits=64", "refcount_bits=8,lazy_refcounts=on", "cluster_size=2M,refcount_bits=2",
        "compression_type=zstd,cluster_size=32k", "preallocation=metadata", "preallocation=falloc,refcount_bits=32",
    ].map(Kind.init)

    @Test(arguments: kinds) func `what qemu-img wrote is read, and goes on being written`(kind: Kind) throws {
        let folder = try Folder()
        let path = folder.file("disk.qcow2")
        try QEMU.image("create", "-q", "-f", "qcow2", "-o", kind.options, path, "4M")
        try QEMU.io(path, "qcow2", ["write -P 7 64k 100k", "write -P 9 3M 1M", "discard 3200k 256k", "write -z 70k 8k"])
        try changeAndCompare(path, folder, seed: 1)
    }

    /// Writes at random through Roost, and compares with memory and with what qemu-img reads.
    func changeAndCompare(_ path: String, _ folder: Folder, seed: UInt64) throws {
        var random = Seeded(seed)
        var model = Model(count: 0)
        do {
            let image = try #require(try Disk.open(path) as? Qcow2Image)
            model = Model(count: Int(image.byteCount))
            model.bytes = try image.read(at: 0, count: model.bytes.count)
            for step in 0..<400 {
                try model.operate(image, &random)
                if step % 50 == 49 { try image.flush() }
            }
            #expect(try model.differences(image) == [])
            try image.flush()
            let report = try image.check()
            #expect(report.corruptions == 0 && report.leaks == 0, "\(report.findings)")
        }
        #expect(try QEMU.isSound(path))
        #expect(try model.matches(path, "qcow2", in: folder))
        #expect(try model.differences(try Disk.open(path, DiskOptions(isReadOnly: true))) == [])
    }
}
