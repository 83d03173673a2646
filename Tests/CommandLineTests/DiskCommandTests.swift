// `roost disk`, and guests on images other than raw ones.
import Foundation
import Images
import Testing

@Suite("Disk images") struct DiskCommandTests {
    let folder: String

    init() throws {
        folder = FileManager.default.temporaryDirectory.appendingPathComponent("roost-disk-\(UUID())").path
        try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: true)
    }

    /// Runs `roost disk`, which must end with a status; returns what it printed.
    @discardableResult
    private func disk(_ arguments: String..., status: Int32 = 0) throws -> String {
        let run = try RoostRun(["disk"] + arguments)
        #expect(run.status == status, "\(arguments): \(run.error)")
        return status == 0 ? run.output : run.error + run.output
    }

    private func json(_ text: String) throws -> [String: Any] {
        try #require(try JSONSerialization.jsonObject(with: Data(text.utf8)) as? [String: Any])
    }

    @Test("Images are made, described, grown, copied and checked")
    func life() throws {
        let (path, overlay, copy) = (folder + "/a.qcow2", folder + "/b.qcow2", folder + "/c.raw")
        try disk("create", path, "8M", "--cluster-size", "4K", "--compression", "zstd", "--preallocation", "metadata")
        let info = try json(try disk("info", path, "--json"))
        #expect(info["size"] as? Int == 8 << 20)
        #expect(info["clusterSize"] as? Int == 4096)
        #expect(info["compression"] as? String == "zstd")
        try disk("create", overlay, "-b", "a.qcow2")
        #expect(try disk("info", overlay).contains("base: a.qcow2 (qcow2)"))
        try disk("resize", overlay, "16M")
        try disk("resize", overlay, "4M", status: 68)
        try disk("resize", overlay, "4M", "--shrink")
        try disk("convert", overlay, copy, "-f", "raw")
        #expect(try Data(contentsOf: URL(fileURLWithPath: copy)).count == 4 << 20)
        try disk("convert", copy, folder + "/d.qcow2", "-c")
        let check = try json(try disk("check", folder + "/d.qcow2", "--json"))
        #expect(check["corruptions"] as? Int == 0 && check["leaks"] as? Int == 0)
        #expect(try disk("snapshot", path, "-q").isEmpty)
        try disk("snapshot", path, "--create", "before")
        #expect(try disk("snapshot", path, "-q") == "before\n")
        #expect(try disk("snapshot", path, "--format", "csv").hasPrefix("name,id,taken\r\nbefore,1,20"))
        try disk("snapshot", path, "--create", "before", status: 68)
        try disk("snapshot", path, "--apply", "before")
        try disk("snapshot", path, "--apply", "before", "--delete", "before", status: 64)
        try disk("snapshot", path, "--delete", "before")
        #expect(try disk("snapshot", path, "-q").isEmpty)
    }

    @Test("What can't be done is told in one line, with a status of its own kind")
    func refusals() throws {
        let path = folder + "/a.qcow2"
        try disk("create", path, "8M")
        #expect(try disk("create", path, "8M", status: 68).contains("is there already"))
        #expect(try disk("create", folder + "/b.qcow2", status: 64).contains("size"))
        #expect(
            try disk("create", folder + "/b.qcow2", "8M", "--cluster-size", "5K", status: 68).contains("power of two"))
        #expect(try disk("info", folder + "/none", status: 68).contains("no such file"))
        #expect(try disk("check", folder + "/none", status: 68).contains("no such file"))
        #expect(try disk("convert", path, path, "--force", status: 74).contains("in use"))
        #expect(try disk("convert", path, folder + "/c", "-f", "vdi", status: 64).contains("only qcow2, raw"))
        let run = try RoostRun(["disk", "chekc"])
        #expect(run.status == 64 && run.error.contains("Did you mean 'check'?"))
    }

    @Test(
        "A guest's disk may be a qcow2 image, an overlay that goes at the end, or a VHDX image",
        .enabled("needs `make kernels` and the built command") {
            TerminalSession.roost != nil && (try? DebianKernel.fetched(.cloud)) != nil
        },
        arguments: ["qcow2", "qcow2,snapshot", "vhdx,snapshot"])
    func guest(kind: String) throws {
        let path = folder + "/disk." + kind.prefix { $0 != "," }
        try disk("create", folder + "/disk.raw", "64M", "-f", "raw")
        if kind.hasPrefix("vhdx") {
            let convert = try Process.run(
                URL(fileURLWithPath: "/usr/bin/qemu-img"),
                arguments: ["convert", "-O", "vhdx", folder + "/disk.raw", path])
            convert.waitUntilExit()
        } else {
            try disk("convert", folder + "/disk.raw", path)
        }
        let before = try Data(contentsOf: URL(fileURLWithPath: path))
        let kernel = try DebianKernel.fetched(.cloud)
        try Data(SelfCheckImage.initramfs(for: kernel)).write(to: URL(fileURLWithPath: folder + "/initramfs"))
        let session = try TerminalSession([
            "run", "--kernel", kernel.image, "--initrd", folder + "/initramfs", "--net", "none", "--no-reboot",
            "--disk", folder + "/disk." + kind,
            "--append", "console=ttyS0 quiet selfcheck.only=modules,disk,filesystem",
        ])
        let output = session.expect("SELFCHECK DONE", seconds: 120) ?? ""
        #expect(output.contains("SELFCHECK disk ok"), "\(session.transcript.suffix(2000))")
        #expect(output.contains("SELFCHECK filesystem ok"), "\(session.transcript.suffix(2000))")
        #expect(session.wait(seconds: 60) == 0)
        if kind.hasSuffix("snapshot") {
            #expect(try Data(contentsOf: URL(fileURLWithPath: path)) == before)
        } else {
            let check = try json(try disk("check", path, "--json"))
            #expect(check["leaks"] as? Int == 0 && (check["allocated"] as? Int ?? 0) > 10)
        }
    }
}
