// Machines as one file: what comes out goes in again; other programs read it; hostile archives are refused.
import Foundation
import Glibc
import HostOS
import MachineTesting
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

    @Test("What an archive wants of the host's networks it doesn't get, and that is said")
    func networks() throws {
        let home = try MachineHome()
        let kernel = try home.kernel(TinyGuest.say("up") + KeptMachineTests.obedient)
        let port = try freeLoopbackPort()
        try home.succeed(
            "run", "-d", "--name", "source", "--kernel", kernel, "--memory", "32M", "--net", "switch=laboratory",
            "--net", "user,forward=tcp:\(port):22")
        try home.succeed("stop", "source")
        let path = home.folder + "/m.tar"
        try home.succeed("export", "source", path)
        let run = try home.roost("import", path, "--name", "copy")
        #expect(run.status == 0 && run.output == "copy\n")
        #expect(run.error.contains("switch laboratory") && run.error.contains("port \(port)"), "\(run.error)")
        let manifest = try #require(try home.info("copy")["manifest"] as? [String: Any])
        let machine = try #require(manifest["machine"] as? [String: Any])
        let networks = try #require(machine["networks"] as? [Any])
        #expect(networks.count == 2 && !"\(networks)".contains("laboratory") && !"\(networks)".contains("\(port)"))
        try home.succeed("start", "copy")
        try home.succeed("stop", "copy")
    }

    /// A machine of an image, with a disk, whose guest says B when it boots; and a snapshot of it. Returns the port that
    /// it has open on the host.
    @discardableResult
    private func snapshotted(_ home: MachineHome) throws -> UInt16 {
        let port = try freeLoopbackPort()
        let disk = Data((0..<1 << 20).map { UInt8(truncatingIfNeeded: $0 &* 11) })
        let image = try home.image(TinyGuest.say("B") + TinyGuest.watchful, disk: disk)
        try home.succeed(
            "run", "-d", "--name", "source", "--net", "user,forward=tcp:\(port):22", "--memory", "32M", "--engine",
            "translator", image)
        let isUp = try MachineHome.eventually { try home.succeed("logs", "source").hasPrefix("B.") }
        #expect(isUp)
        try home.succeed("snapshot", "take", "source", "s")
        return port
    }

    /// Pages of a snapshot's memory that aren't zero, one after the other.
    private func pages(_ path: String) throws -> Data {
        let memory = try Data(contentsOf: URL(fileURLWithPath: path))
        var pages = Data()
        for start in stride(from: 0, to: memory.count, by: 4096) {
            let page = memory[start..<start + 4096]
            if page.contains(where: { $0 != 0 }) { pages += page }
        }
        return pages
    }

    @Test(
        "An archived snapshot of a machine that runs becomes one that goes on from there, wherever the first has gone")
    func snapshot() throws {
        let home = try MachineHome()
        let port = try snapshotted(home)
        let path = home.folder + "/s.tar"
        try home.fail("export", "source", path, "--snapshot", "other", status: 94, "no snapshot")
        try home.fail("export", "source", home.folder + "/s.ova", "--snapshot", "s", status: 64, "OVA")
        try home.succeed("export", "source", path, "--snapshot", "s")
        #expect(try home.status("source") == "running")
        let small = ["snapshot.json", "state.json", "memory.sums", "checksums"]
        let listing = try run("/usr/bin/tar", ["-tf", path]).text.split(separator: "\n").map(String.init)
        #expect(listing == ["machine.json", "kernel", "initrd", "disk0.qcow2"] + small + ["memory.zst"])
        let size = try #require(try FileManager.default.attributesOfItem(atPath: path)[.size] as? Int)
        #expect(size < 4 << 20, "\(size) bytes for 2 MiB in 32 MiB of memory, and 1 MiB of disk")
        // What others make of it.
        #expect(try run("/usr/bin/tar", ["-xf", path, "-C", home.folder]).isGood)
        let unpacked = home.folder + "/memory"
        #expect(try run("/usr/bin/env", ["zstd", "-q", "-d", home.folder + "/memory.zst", "-o", unpacked]).isGood)
        let folder = home.folder + "/data/machines/source/snapshots/s/machine"
        #expect(try Data(contentsOf: URL(fileURLWithPath: unpacked)) == pages(folder + "/memory"))
        let back = home.folder + "/back.raw"
        #expect(try run("/usr/bin/qemu-img", ["convert", "-O", "raw", home.folder + "/disk0.qcow2", back]).isGood)
        let disk = try Data(contentsOf: URL(fileURLWithPath: home.folder + "/image/disk.raw"))
        #expect(try Data(contentsOf: URL(fileURLWithPath: back)) == disk)

        let first = try #require(try home.info("source")["manifest"] as? [String: Any])
        try home.succeed("delete", "source", "--yes", "--force")
        try FileManager.default.removeItem(atPath: home.folder + "/image")
        #expect(try home.succeed("import", path, "--name", "copy") == "copy\n")
        let second = try #require(try home.info("copy")["manifest"] as? [String: Any])
        #expect(first["id"] as? String != second["id"] as? String)
        #expect(try !home.succeed("info", "copy").contains("tcp:\(port)"))
        #expect(try home.succeed("snapshot", "list", "copy", "-q") == "s\n")
        for _ in 0..<2 {
            try home.succeed("start", "copy")
            let goesOn = try MachineHome.eventually { try home.succeed("logs", "copy").count > 4 }
            #expect(goesOn)
            let log = try home.succeed("logs", "copy")
            #expect(!log.contains("B") && !log.contains("X"), "\(log.prefix(100))")
            try home.succeed("kill", "copy")
            try home.succeed("restore", "copy", "s", "--yes", "--no-start")
            // It is told again that it is a copy.
            let pending = try String(contentsOfFile: home.folder + "/data/machines/copy/goes-on.json", encoding: .utf8)
            #expect(pending.contains("\"isClone\" : true"))
        }
        for name in try FileManager.default.contentsOfDirectory(atPath: home.folder + "/data/machines/copy")
        where name.hasSuffix(".qcow2") {
            let check = try run("/usr/bin/qemu-img", ["check", home.folder + "/data/machines/copy/" + name])
            #expect(check.isGood, "\(name): \(check.text)")
        }
    }

    @Test("Archived snapshots that are cut short, altered or mean harm are refused, and leave nothing")
    func hostileSnapshot() throws {
        let home = try MachineHome()
        try snapshotted(home)
        try home.succeed("kill", "source")
        let path = home.folder + "/s.tar"
        try home.succeed("export", "source", path, "--snapshot", "s")
        let parts = home.folder + "/parts"
        let bad = home.folder + "/bad.tar"
        func refuse(_ words: String, _ change: (String) throws -> Void) throws {
            try? FileManager.default.removeItem(atPath: parts)
            try FileManager.default.createDirectory(atPath: parts, withIntermediateDirectories: false)
            #expect(try run("/usr/bin/tar", ["-xf", path, "-C", parts]).isGood)
            try change(parts)
            let names = try FileManager.default.contentsOfDirectory(atPath: parts).sorted()
            #expect(try run("/usr/bin/tar", ["-cf", bad, "-C", parts] + names).isGood)
            let result = try home.roost("import", bad, "--name", "bad")
            #expect(
                [64, 84, 94].contains(result.status) && result.error.contains(words),
                "\(words): \(result.status) \(result.error)")
        }
        func edit(_ name: String, _ body: @escaping (inout Data) -> Void) -> (String) throws -> Void {
            { folder in
                let url = URL(fileURLWithPath: folder + "/" + name)
                var data = try Data(contentsOf: url)
                body(&data)
                try data.write(to: url)
            }
        }
        func replace(_ name: String, _ old: String, _ new: String) -> (String) throws -> Void {
            edit(name) { data in
                let text = String(decoding: data, as: UTF8.self)
                #expect(text.contains(old))
                data = Data(text.replacingOccurrences(of: old, with: new).utf8)
            }
        }
        for name in ["state.json", "memory.sums", "checksums", "memory.zst"] {
            try refuse("'\(name)' is not in") { try FileManager.default.removeItem(atPath: $0 + "/" + name) }
        }
        try refuse("damaged", edit("memory.zst") { $0.removeLast() })
        try refuse("damaged", edit("memory.zst") { $0.removeAll() })
        try refuse("behind it", edit("memory.zst") { $0.append(0) })
        for place in [0, 4, 9, 1000] {
            try refuse("damaged", edit("memory.zst") { $0[min(place, $0.count - 1)] ^= 0x55 })
        }
        // Whole frames of other pages.
        try refuse("damaged") { folder in
            try Data(repeating: 7, count: 1 << 20).write(to: URL(fileURLWithPath: folder + "/other"))
            #expect(try run("/usr/bin/env", ["zstd", "-qf", folder + "/other", "-o", folder + "/memory.zst"]).isGood)
        }
        for name in ["snapshot.json", "state.json", "memory.sums"] {
            try refuse("damaged", edit(name) { $0[$0.count / 2] ^= 1 })
        }
        try refuse("too large", edit("memory.sums") { $0 += Data(count: 4096) })
        try refuse("version 9", replace("snapshot.json", "\"version\" : 1", "\"version\" : 9"))
        try refuse("too large", replace("machine.json", "\"memory\" : 33554432", "\"memory\" : 16777216"))
        try refuse("another machine", replace("machine.json", "\"memory\" : 33554432", "\"memory\" : 67108864"))
        try refuse("more memory", replace("machine.json", "\"memory\" : 33554432", "\"memory\" : 1125899906842624"))
        try refuse("another machine", replace("machine.json", "\"processors\" : 1", "\"processors\" : 2"))
        #expect(try FileManager.default.contentsOfDirectory(atPath: home.folder + "/data/machines") == ["source"])

        // Names and folders of the host's are not the archive's to give.
        try? FileManager.default.removeItem(atPath: parts)
        try FileManager.default.createDirectory(atPath: parts, withIntermediateDirectories: false)
        #expect(try run("/usr/bin/tar", ["-xf", path, "-C", parts]).isGood)
        try replace("machine.json", "\"snapshot\" : \"s\"", "\"snapshot\" : \"../../x\"")(parts)
        try replace(
            "machine.json", "\"mounts\" : [", "\"mounts\" : [{\"folder\":\"/etc\",\"path\":\"/e\",\"isReadOnly\":false}"
        )(parts)
        try Data("evil".utf8).write(to: URL(fileURLWithPath: parts + "/translations-0"))
        let names = try FileManager.default.contentsOfDirectory(atPath: parts).sorted()
        #expect(try run("/usr/bin/tar", ["-cf", bad, "-C", parts] + names).isGood)
        try home.succeed("import", bad, "--name", "good")
        #expect(try home.succeed("snapshot", "list", "good", "-q") == "imported\n")
        #expect(try home.succeed("mount", "good", "-q").isEmpty)
        let folder = home.folder + "/data/machines/good/snapshots/imported/machine"
        #expect(
            try FileManager.default.contentsOfDirectory(atPath: folder).sorted()
                == ["checksums", "memory", "memory.sums", "snapshot.json", "state.json"])
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
