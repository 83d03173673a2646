// Stream-optimized VMDK images and small ISO 9660 volumes, against qemu-img and xorriso.
import Foundation
import Storage
import Testing

@Suite("Images that are written for others") struct ForeignImageTests {
    let folder: String

    init() throws {
        folder = FileManager.default.temporaryDirectory.appendingPathComponent("roost-foreign-\(UUID())").path
        try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: true)
    }

    private func run(_ program: String, _ arguments: [String]) throws -> (output: String, status: Int32) {
        let process = Process()
        process.executableURL = URL(fileURLWithPath: program)
        process.arguments = arguments
        let output = folder + "/output-\(UUID())"
        try Data().write(to: URL(fileURLWithPath: output))
        process.standardOutput = try FileHandle(forWritingTo: URL(fileURLWithPath: output))
        process.standardError = process.standardOutput
        try process.run()
        process.waitUntilExit()
        return (
            String(decoding: try Data(contentsOf: URL(fileURLWithPath: output)), as: UTF8.self),
            process.terminationStatus
        )
    }

    /// Parts that compress, parts that don't, holes, more than one table of grains, an end inside a grain.
    private func disk(_ size: Int, seed: UInt64) -> [UInt8] {
        var state = seed
        func next() -> UInt64 {
            state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
            return state >> 33
        }
        var bytes = [UInt8](repeating: 0, count: size)
        for _ in 0..<40 {
            let start = Int(next()) % size
            let count = min(Int(next()) % 200_000, size - start)
            let isNoise = next() % 2 == 0
            for index in start..<start + count { bytes[index] = isNoise ? UInt8(truncatingIfNeeded: next()) : 0x55 }
        }
        return bytes
    }

    @Test(
        "A VMDK image holds what went in, for qemu-img and for Roost", arguments: [512, 65536, 40_000_512, 67_108_864])
    func vmdk(size: Int) throws {
        let bytes = disk(size, seed: UInt64(size))
        let (raw, vmdk, back) = (folder + "/disk.raw", folder + "/disk.vmdk", folder + "/back.raw")
        try Data(bytes).write(to: URL(fileURLWithPath: raw))
        try DiskConverter.convert(
            try Disk.open(raw, DiskOptions(isReadOnly: true, format: .raw)), to: vmdk, .vmdk)
        let info = try run("/usr/bin/qemu-img", ["info", "--output=json", vmdk])
        #expect(info.output.contains("streamOptimized"), "\(info.output)")
        let convert = try run("/usr/bin/qemu-img", ["convert", "-f", "vmdk", "-O", "raw", vmdk, back])
        #expect(convert.status == 0, "\(convert.output)")
        #expect(try Data(contentsOf: URL(fileURLWithPath: back)).prefix(size) == Data(bytes))
        let ours = try Disk.open(vmdk, DiskOptions(isReadOnly: true))
        #expect(ours.byteCount == UInt64(size))
        var offset = 0
        while offset < size {
            let count = min(1 << 20, size - offset)
            #expect(try ours.read(at: UInt64(offset), count: count) == Array(bytes[offset..<offset + count]))
            offset += count
        }
    }

    @Test("A volume's files are what xorriso finds: names, contents, label")
    func iso() throws {
        let files: [(name: String, contents: [UInt8])] = [
            ("meta-data", Array("instance-id: 1\n".utf8)), ("user-data", [UInt8](repeating: 0x61, count: 5000)),
            ("network-config", []),
        ]
        let path = folder + "/cidata.iso"
        try Data(try ISOImage.volume(label: "cidata", files: files)).write(to: URL(fileURLWithPath: path))
        let listing = try run("/usr/bin/xorriso", ["-indev", path, "-pvd_info", "-find", "/"])
        #expect(listing.status == 0, "\(listing.output)")
        #expect(listing.output.contains("cidata"), "\(listing.output)")
        for file in files { #expect(listing.output.contains("'/\(file.name)'"), "\(listing.output)") }
        let target = folder + "/out"
        let extraction = try run("/usr/bin/xorriso", ["-osirrox", "on", "-indev", path, "-extract", "/", target])
        #expect(extraction.status == 0, "\(extraction.output)")
        for file in files {
            #expect(try Data(contentsOf: URL(fileURLWithPath: target + "/" + file.name)) == Data(file.contents))
        }
        #expect(throws: StorageError.self) {
            try ISOImage.volume(label: "x", files: (0..<40).map { ("name-\($0)", []) })
        }
    }
}
