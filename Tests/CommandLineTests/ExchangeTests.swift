// Machines as one file: what comes out goes in again; other programs read it; hostile archives are refused.
import Foundation
import Glibc
import HostOS
import Testing

@Suite("Export and import", .enabled("needs the built command") { TerminalSession.roost != nil })
struct ExchangeTests {
    private func run(_ program: String, _ arguments: [String]) throws -> (text: String, isGood: Bool) {
        var lines: [String] = []
        let ending = try ChildProcess.run(
            program, arguments, environment: ProcessInfo.processInfo.environment, line: { lines.append($0) },
            proceed: { true })
        return (lines.joined(separator: "\n"), ending == .exited(0))
    }

    /// A machine that doesn't run, with a disk that has something on it.
    private func machine(_ home: MachineHome) throws -> (kernel: String, disk: Data) {
        let kernel = try home.kernel(TinyGuest.say("up") + KeptMachineTests.obedient)
        var disk = Data(count: 8 << 20)
        for index in 0..<100_000 { disk[1_000_000 + index] = UInt8(truncatingIfNeeded: index &* 7) }
        try disk.write(to: URL(fileURLWithPath: home.folder + "/disk.raw"))
        try home.succeed("disk", "convert", home.folder + "/disk.raw", home.folder + "/disk.qcow2")
        try home.start("source", kernel, "--disk", home.folder + "/disk.qcow2", "--cpus", "2")
        try home.succeed("stop", "source")
        return (kernel, disk)
    }

    @Test("An archive becomes a machine of its own; tar and qemu-img read it", arguments: ["tar", "ova"])
    func roundTrip(format: String) throws {
        let home = try MachineHome()
        let (kernel, disk) = try machine(home)
        let path = home.folder + "/m." + format
        try home.succeed("export", "source", path)
        try home.fail("export", "source", path, status: 94, "--replace")
        let listing = try run("/usr/bin/tar", ["-tf", path])
        #expect(listing.isGood)
        let image = format == "ova" ? "disk0.vmdk" : "disk0.qcow2"
        #expect(
            listing.text.split(separator: "\n").map(String.init)
                == (format == "ova" ? ["source.ovf"] : []) + ["machine.json", "kernel", image])
        #expect(try run("/usr/bin/tar", ["-xf", path, "-C", home.folder]).isGood)
        #expect(
            try Data(contentsOf: URL(fileURLWithPath: home.folder + "/kernel"))
                == Data(contentsOf: URL(fileURLWithPath: kernel)))
        let back = home.folder + "/back.raw"
        let convert = try run("/usr/bin/qemu-img", ["convert", "-O", "raw", home.folder + "/" + image, back])
        #expect(convert.isGood, "\(convert.text)")
        #expect(try Data(contentsOf: URL(fileURLWithPath: back)) == disk)
        if format == "ova" {
            let parse =
                "import sys, xml.etree.ElementTree as e; print(len(list(e.parse(sys.argv[1]).getroot().iter())))"
            #expect(try run("/usr/bin/python3", ["-c", parse, home.folder + "/source.ovf"]).isGood)
        }
        #expect(try home.succeed("import", path, "--name", "copy") == "copy\n")
        let (old, new) = (try home.info("source"), try home.info("copy"))
        let manifests = [old, new].compactMap { $0["manifest"] as? [String: Any] }
        #expect(manifests[0]["id"] as? String != manifests[1]["id"] as? String)
        let machines = manifests.compactMap { $0["machine"] as? [String: Any] }
        #expect(machines[1]["processors"] as? Int == 2 && machines[1]["memory"] as? Int == 32 << 20)
        let check = try home.succeed(
            "disk", "convert", "-f", "raw", home.folder + "/data/machines/copy/disk0.qcow2", home.folder + "/copy.raw")
        #expect(check.isEmpty)
        #expect(try Data(contentsOf: URL(fileURLWithPath: home.folder + "/copy.raw")) == disk)
        try home.succeed("start", "copy")
        try home.succeed("stop", "copy")
        #expect(try home.succeed("logs", "copy") == "up")
    }

    @Test("An OVA package of others needs a kernel, and brings processors, memory and disks")
    func foreign() throws {
        let home = try MachineHome()
        let (kernel, _) = try machine(home)
        try home.succeed("disk", "convert", "-f", "vmdk", home.folder + "/disk.raw", home.folder + "/system.vmdk")
        let ovf = """
            <?xml version="1.0"?><!-- by hand --><Envelope ovf:version="1.0"><References>
            <File ovf:href="system.vmdk" ovf:id="f1" ovf:size="1"/></References>
            <DiskSection><Disk ovf:capacity="8" ovf:diskId="d1" ovf:fileRef="f1"/></DiskSection>
            <VirtualSystem ovf:id="theirs"><VirtualHardwareSection>
            <Item><rasd:ResourceType>3</rasd:ResourceType><rasd:VirtualQuantity>3</rasd:VirtualQuantity></Item>
            <Item><rasd:AllocationUnits>MegaBytes</rasd:AllocationUnits><rasd:ResourceType>4</rasd:ResourceType>
            <rasd:VirtualQuantity>64</rasd:VirtualQuantity></Item>
            <Item><rasd:HostResource>/disk/d1</rasd:HostResource><rasd:ResourceType>17</rasd:ResourceType></Item>
            <Item><rasd:ResourceType>10</rasd:ResourceType></Item>
            </VirtualHardwareSection></VirtualSystem></Envelope>
            """
        try Data(ovf.utf8).write(to: URL(fileURLWithPath: home.folder + "/theirs.ovf"))
        let path = home.folder + "/theirs.ova"
        #expect(try run("/usr/bin/tar", ["-cf", path, "-C", home.folder, "theirs.ovf", "system.vmdk"]).isGood)
        try home.fail("import", path, status: 64, "--kernel")
        #expect(try home.succeed("import", path, "--kernel", kernel) == "theirs\n")
        let manifest = try #require(try home.info("theirs")["manifest"] as? [String: Any])
        let machine = try #require(manifest["machine"] as? [String: Any])
        #expect(machine["processors"] as? Int == 3 && machine["memory"] as? Int == 64 << 20)
        #expect((machine["disks"] as? [Any])?.count == 1 && (machine["networks"] as? [Any])?.count == 1)
    }

    @Test("Archives that are cut short, altered or mean harm are refused, and leave nothing")
    func hostile() throws {
        let home = try MachineHome()
        _ = try machine(home)
        let path = home.folder + "/m.tar"
        try home.succeed("export", "source", path)
        let whole = try Data(contentsOf: URL(fileURLWithPath: path))
        let bad = home.folder + "/bad.tar"
        func refuse(_ data: Data, _ what: String) throws {
            try data.write(to: URL(fileURLWithPath: bad))
            let run = try home.roost("import", bad, "--name", "bad")
            #expect([64, 68, 94].contains(run.status), "\(what): \(run.status) \(run.error)")
        }
        for count in [0, 1, 511, 512, 700, 2000, whole.count / 2] { try refuse(whole.prefix(count), "cut at \(count)") }
        var state: UInt64 = 7
        for _ in 0..<12 {
            state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
            var data = whole
            data[Int(state >> 33) % 512] ^= UInt8(truncatingIfNeeded: state >> 20) | 1
            try refuse(data, "altered")
        }
        // A disk that is based on a file of the host's; a manifest that names files outside the archive.
        #expect(try run("/usr/bin/tar", ["-xf", path, "-C", home.folder]).isGood)
        let based = try run(
            "/usr/bin/qemu-img",
            ["create", "-q", "-f", "qcow2", "-b", "/etc/passwd", "-F", "raw", home.folder + "/disk0.qcow2"])
        #expect(based.isGood, "\(based.text)")
        #expect(
            try run("/usr/bin/tar", ["-cf", bad, "-C", home.folder, "machine.json", "kernel", "disk0.qcow2"]).isGood)
        try home.fail("import", bad, "--name", "bad", status: 94, "outside it")
        let manifest = try String(contentsOfFile: home.folder + "/machine.json", encoding: .utf8)
        try manifest.replacingOccurrences(of: "disk0.qcow2", with: "/etc/passwd")
            .write(toFile: home.folder + "/machine.json", atomically: true, encoding: .utf8)
        #expect(try run("/usr/bin/tar", ["-cf", bad, "-C", home.folder, "machine.json", "kernel"]).isGood)
        try home.fail("import", bad, "--name", "bad", status: 94, "not in the archive")
        #expect(try FileManager.default.contentsOfDirectory(atPath: home.folder + "/data/machines") == ["source"])
    }
}
