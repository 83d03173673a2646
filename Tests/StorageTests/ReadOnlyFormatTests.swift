// Formats that are only read, against what qemu-img makes of them.
import Foundation
import Storage
import Testing

@Suite struct ReadOnlyFormatTests {
    static let formats = [
        "vmdk monolithicSparse", "vmdk monolithicFlat", "vmdk streamOptimized", "vmdk twoGbMaxExtentSparse",
        "vmdk twoGbMaxExtentFlat", "vdi", "vdi static=on", "vpc dynamic", "vpc fixed", "vhdx dynamic", "vhdx fixed",
        "vhdx block_size=1M",
    ]

    @Test(arguments: formats) func `an image of qemu-img reads the same`(kind: String) throws {
        let words = kind.split(separator: " ").map(String.init)
        let folder = try Folder()
        let (raw, path, back) = (folder.file("disk.raw"), folder.file("disk." + words[0]), folder.file("back.raw"))
        try QEMU.image("create", "-q", "-f", "raw", raw, "20M")
        try QEMU.io(raw, "raw", ["write -P 5 1M 3M", "write -P 6 7000k 12k", "write -P 7 19M 1M", "write -P 1 0 512"])
        var arguments = ["convert", "-O", words[0]]
        if words.count > 1 { arguments += ["-o", words[1].contains("=") ? words[1] : "subformat=" + words[1]] }
        let run = try QEMU.run("qemu-img", arguments + [raw, path])
        try #require(run.status == 0, "\(run.output)")
        let format = kind == "vpc fixed" ? DiskFormat.vhd : nil
        do {
            let image = try openDisk(path, DiskOptions(isReadOnly: true, format: format))
            try check(image, path, format, words[0])
            try DiskConverter.convert(image, to: back, .raw(.off))
        }
        // qemu-img keeps away from what is open here.
        let same = try QEMU.run("qemu-img", ["compare", "-f", words[0], "-F", "raw", path, back])
        #expect(same.status == 0, "\(same.output)")
        // Writes go to an overlay.
        let overlay = try openDisk(path, DiskOptions(format: format, isTemporary: true))
        try overlay.write([UInt8](repeating: 9, count: 512), at: 1024)
        #expect(try overlay.read(at: 1024, count: 512).allSatisfy { $0 == 9 })
        #expect(try overlay.read(at: 1 << 20, count: 512).allSatisfy { $0 == 5 })
    }

    private func check(_ image: any DiskImage, _ path: String, _ format: DiskFormat?, _ name: String) throws {
        #expect(image.format == DiskFormat(name: name))
        #expect(image.isReadOnly)
        #expect(throws: StorageError.self) { try image.write([UInt8](repeating: 0, count: 512), at: 0) }
        #expect(throws: StorageError.self) { try Disk.open(path, DiskOptions(format: format)) }
    }

    @Test func `an extent outside the image's folder is refused`() throws {
        let folder = try Folder()
        let path = folder.file("disk.vmdk")
        let text = """
            # Disk DescriptorFile
            version=1
            parentCID=ffffffff
            createType="monolithicFlat"
            RW 1 FLAT "/etc/passwd" 0

            """
        try Data(text.utf8).write(to: URL(fileURLWithPath: path))
        let error = #expect(throws: StorageError.self) { try Disk.open(path, DiskOptions(isReadOnly: true)) }
        #expect(error?.description.contains("its own folder") == true)
    }
}
