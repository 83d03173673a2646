// The archive writer against cpio(1), module order, the image store.
import Foundation
import Testing

import Images

/// Runs a host program on bytes and returns what it prints.
private func run(_ program: String, _ arguments: [String], input: [UInt8], in folder: String = "/") throws -> String {
    let file = FileManager.default.temporaryDirectory.appendingPathComponent("roost-\(UUID().uuidString)")
    try Data(input).write(to: file)
    defer { try? FileManager.default.removeItem(at: file) }
    let process = Process()
    process.executableURL = URL(fileURLWithPath: program)
    process.arguments = arguments
    process.currentDirectoryURL = URL(fileURLWithPath: folder)
    process.standardInput = try FileHandle(forReadingFrom: file)
    process.standardError = FileHandle.nullDevice
    let pipe = Pipe()
    process.standardOutput = pipe
    try process.run()
    let data = pipe.fileHandleForReading.readDataToEndOfFile()
    process.waitUntilExit()
    #expect(process.terminationStatus == 0)
    return String(decoding: data, as: UTF8.self)
}

@Suite("cpio archives")
struct CPIOArchiveTests {
    @Test("cpio(1) lists what was added, parents first")
    func listing() throws {
        var archive = CPIOArchive()
        archive.addFile("/bin/tool", contents: [1, 2, 3, 4, 5], mode: 0o755)
        archive.addSymbolicLink("bin/sh", to: "tool")
        archive.addDirectory("proc")
        archive.addCharacterDevice("dev/console", major: 5, minor: 1)
        let names = try run("/usr/bin/cpio", ["-t", "--quiet"], input: archive.serialized())
        #expect(names == "bin\nbin/tool\nbin/sh\nproc\ndev\ndev/console\n")
        let long = try run("/usr/bin/cpio", ["-tv", "--quiet"], input: archive.serialized())
        #expect(long.contains("-rwxr-xr-x"))
        #expect(long.contains("bin/sh -> tool"))
        #expect(long.contains("  5,   1"))
    }

    @Test("contents of every length modulo four come back whole")
    func contents() throws {
        var archive = CPIOArchive()
        for length in 0..<9 {
            archive.addFile("file\(length)", contents: (0..<length).map { UInt8($0 + 65) })
        }
        let folder = FileManager.default.temporaryDirectory.appendingPathComponent("roost-\(UUID().uuidString)").path
        try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: true)
        defer { try? FileManager.default.removeItem(atPath: folder) }
        _ = try run("/usr/bin/cpio", ["-i", "--quiet"], input: archive.serialized(), in: folder)
        for length in 0..<9 {
            let data = FileManager.default.contents(atPath: folder + "/file\(length)")
            #expect(data.map(Array.init) == (0..<length).map { UInt8($0 + 65) })
        }
    }

    @Test("paths cannot climb out of the archive, directories stand once")
    func paths() throws {
        var archive = CPIOArchive()
        archive.addFile("../../etc//passwd", text: "x")
        archive.addDirectory("/etc/")
        let names = try run("/usr/bin/cpio", ["-t", "--quiet"], input: archive.serialized())
        #expect(names == "etc\netc/passwd\n")
    }
}

@Suite("self-check initramfs", .enabled(if: (try? DebianKernel.fetched(.cloud)) != nil))
struct SelfCheckImageTests {
    @Test("holds init, busybox and the virtio modules in an order that loads", arguments: DebianKernel.Flavor.allCases)
    func holdsWhatItNeeds(flavor: DebianKernel.Flavor) throws {
        let bytes = try SelfCheckImage.initramfs(for: .fetched(flavor))
        let names = try run("/usr/bin/cpio", ["-t", "--quiet"], input: bytes).split(separator: "\n")
        for name in ["init", "bin/busybox", "bin/sh", "etc/udhcpc.script", "modules/order", "dev/console"] {
            #expect(names.contains(Substring(name)))
        }
        let modules = names.filter { $0.hasSuffix(".ko") }
        if let disk = modules.firstIndex(of: "modules/ext4.ko"), let journal = modules.firstIndex(of: "modules/jbd2.ko")
        {
            #expect(journal < disk)
        }
        #expect(bytes.count < 16 << 20)
    }
}
