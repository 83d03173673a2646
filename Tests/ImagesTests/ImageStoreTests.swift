// The image store and the manifests of images, damaged ones included; tools that are stopped.
import Foundation
import HostOS
import Images
import Testing

/// A folder that goes away with its owner.
private final class ScratchFolder {
    let path = FileManager.default.temporaryDirectory.appendingPathComponent("roost-\(UUID().uuidString)").path

    init() throws { try FileManager.default.createDirectory(atPath: path, withIntermediateDirectories: true) }
    deinit { try? FileManager.default.removeItem(atPath: path) }

    /// Makes the folder of an image, its files empty.
    func addImage(_ name: String, manifest: String? = nil, without missing: String? = nil) throws {
        let folder = path + "/" + name
        try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: true)
        for file in ["kernel", "initrd", "disk.raw"] where file != missing {
            try Data().write(to: URL(fileURLWithPath: folder + "/" + file))
        }
        let text = try manifest ?? String(decoding: sample(name).serialized(), as: UTF8.self)
        try Data(text.utf8).write(to: URL(fileURLWithPath: folder + "/image.json"))
    }
}

private func sample(_ name: String) -> ImageManifest {
    ImageManifest(
        name: name, variant: "minimal", suite: "bookworm", commandLine: "console=ttyS0 root=/dev/vda rw",
        kernelRelease: "6.1.0-1-cloud-amd64", created: "2026-01-01T00:00:00Z", diskSize: 1 << 31)
}

/// The error of a body that must fail.
private func failure<Result>(_ body: () throws(ImageError) -> Result) -> ImageError? {
    do {
        _ = try body()
        return nil
    } catch {
        return error
    }
}

@Suite("image store")
struct ImageStoreTests {
    @Test("an image is found by name and by folder, with its paths and command line")
    func locates() throws {
        let scratch = try ScratchFolder()
        try scratch.addImage("debian")
        let store = ImageStore(root: scratch.path)
        let image = try store.locate("debian")
        #expect(image.manifest == sample("debian"))
        #expect(image.kernel == scratch.path + "/debian/kernel")
        #expect(image.disk == scratch.path + "/debian/disk.raw")
        #expect(image.commandLine.contains("root=/dev/vda"))
        #expect(try ImageStore(root: "/nowhere").locate(scratch.path + "/debian").folder == scratch.path + "/debian")
        #expect(store.list().map(\.manifest.name) == ["debian"])
    }

    @Test("a minimal guest is told the terminal's kind and size, and no other words than those")
    func terminals() throws {
        let scratch = try ScratchFolder()
        try scratch.addImage("debian")
        let image = try ImageStore(root: scratch.path).locate("debian")
        #expect(
            image.commandLine(terminal: "screen", columns: 80, rows: 24).hasSuffix(" roost.terminal=80x24 TERM=screen"))
        #expect(!image.commandLine(terminal: "x init=/bin/evil", columns: 80, rows: 24).contains("evil"))
    }

    @Test("a missing image says which command makes it")
    func missing() throws {
        let scratch = try ScratchFolder()
        let store = ImageStore(root: scratch.path + "/images")
        let error = try #require(failure { () throws(ImageError) in try store.locate("debian") })
        #expect(error.code == .notFound)
        #expect(error.message.contains("roost image build debian"))
        try scratch.addImage("one")
        let full = ImageStore(root: scratch.path)
        let other = try #require(failure { () throws(ImageError) in try full.locate("two") })
        #expect(other.message.contains("there is one"))
    }

    @Test("names that are no names are refused", arguments: ["", ".", "..", ".hidden", "a b", "é", "a\u{0}b"])
    func names(name: String) {
        #expect(!ImageStore.isName(name))
        let error = failure { () throws(ImageError) in try ImageStore(root: "/nowhere").locate(name) }
        #expect(error?.code == .badRequest)
    }

    @Test(
        "a damaged manifest is told from a missing image",
        arguments: [
            "", "{}", "[]", "null", "{\"version\":1}", String(repeating: "[", count: 60000),
            String(repeating: " ", count: 70000),
        ])
    func damaged(text: String) throws {
        let scratch = try ScratchFolder()
        try scratch.addImage("debian", manifest: text)
        let error = failure { () throws(ImageError) in try ImageStore(root: scratch.path).locate("debian") }
        #expect(error?.code == .damaged)
        #expect(ImageStore(root: scratch.path).list().isEmpty)
    }

    @Test("a manifest cannot name files outside its folder", arguments: ["../x", "/etc/passwd", "", ".", ".."])
    func escapes(file: String) throws {
        let scratch = try ScratchFolder()
        var manifest = sample("debian")
        manifest.disk = file
        try scratch.addImage("debian", manifest: String(decoding: manifest.serialized(), as: UTF8.self))
        let error = failure { () throws(ImageError) in try ImageStore(root: scratch.path).locate("debian") }
        #expect(error?.code == .damaged)
    }

    @Test("a manifest of a later version, or a missing file, is said so", arguments: ["kernel", "initrd", "disk.raw"])
    func incomplete(file: String) throws {
        let scratch = try ScratchFolder()
        try scratch.addImage("debian", without: file)
        let error = failure { () throws(ImageError) in try ImageStore(root: scratch.path).locate("debian") }
        #expect(error?.message.contains("\(file) is missing") == true)
        var later = sample("later")
        later.version = 2
        try scratch.addImage("later", manifest: String(decoding: later.serialized(), as: UTF8.self))
        let version = failure { () throws(ImageError) in try ImageStore(root: scratch.path).locate("later") }
        #expect(version?.message.contains("version 2") == true)
    }
}

@Suite("image builder")
struct DebianImageBuilderTests {
    @Test("bad requests are refused before anything is made")
    func refuses() throws {
        let scratch = try ScratchFolder()
        try scratch.addImage("debian")
        func reason(_ builder: DebianImageBuilder, _ name: String) -> ImageError? {
            failure { () throws(ImageError) in
                try builder.build(name: name, into: scratch.path + "/" + name, report: { _ in })
            }
        }
        #expect(reason(DebianImageBuilder(suite: "--help"), "new")?.code == .badRequest)
        #expect(reason(DebianImageBuilder(diskSize: 1), "new")?.code == .badRequest)
        for package in ["--hook", "gcc gdb", "", "a", "GCC", "../x", "-gcc"] {
            let error = reason(DebianImageBuilder(included: ["libstdc++-12-dev", package]), "new")
            #expect(error?.message.contains("'\(package)'") == true, "\(package)")
        }
        #expect(reason(DebianImageBuilder(), "debian")?.message.contains("--replace") == true)
        #expect(try FileManager.default.contentsOfDirectory(atPath: scratch.path) == ["debian"])
    }

    @Test("a child's output comes by lines, and stopping ends its whole group")
    func children() throws {
        var lines: [String] = []
        let ending = try ChildProcess.run(
            "/bin/sh", ["-c", "echo one; echo two >&2; printf three; exit 3"], environment: [:],
            line: { lines.append($0) }, proceed: { true })
        #expect(ending == .exited(3))
        #expect(lines == ["one", "two", "three"])
        let stopped = try ChildProcess.run(
            "/bin/sh", ["-c", "sleep 60 | sleep 60"], environment: ["PATH": "/bin:/usr/bin"],
            line: { _ in }, proceed: { false })
        #expect(stopped == .stopped)
        #expect(throws: HostError.self) {
            try ChildProcess.run("/nonexistent", [], environment: [:], line: { _ in }, proceed: { true })
        }
    }
}
