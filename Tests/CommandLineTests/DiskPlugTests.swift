// Disks and media of a machine that is kept, changed by the command, with Debian's own drivers in the guest.
import Foundation
import Images
import Testing

@Suite("Disks of machines that run", .serialized, .enabled("needs `make kernels` and gcc") { ScriptGuest.isPossible })
struct DiskPlugTests {
    /// Tells what the first disk and the drive begin with, whenever that changes, and writes to a new disk once.
    private static let watch = """
        while true; do s=$(head -c 6 /dev/sda 2>/dev/null); c=$(head -c 6 /dev/sr0 2>/dev/null);
        if test "$s,$c" != "$old"; then old="$s,$c"; echo STATE "$s,$c"; fi;
        if test -n "$s" -a ! -e /tmp/w; then touch /tmp/w; echo written | dd of=/dev/sda bs=512 seek=1 conv=fsync 2>/dev/null;
        echo WROTE; fi; sleep 0.2; done
        """.split(separator: "\n").joined(separator: " ")

    private func image(_ home: MachineHome, _ name: String, _ mark: String) throws -> String {
        let path = home.folder + "/" + name
        var bytes = Data(mark.utf8)
        bytes.append(Data(count: (1 << 20) - bytes.count))
        try bytes.write(to: URL(fileURLWithPath: path))
        return path
    }

    private func sees(_ home: MachineHome, _ line: String) -> Bool {
        MachineHome.eventually(60) {
            ((try? home.succeed("logs", "heron")) ?? "").split(whereSeparator: \.isNewline).last == Substring(line)
        }
    }

    private func log(_ home: MachineHome) -> String {
        String(((try? home.succeed("logs", "heron")) ?? "").suffix(1500))
    }

    @Test("come, go and change while Linux runs, and are as they were left at the next start", .timeLimit(.minutes(4)))
    func guest() throws {
        let home = try MachineHome()
        let guest = try ScriptGuest(modules: ["virtio_scsi", "sd_mod", "sr_mod"])
        let (disk, first, second) = (
            try image(home, "disk.raw", "MARK-1"), try image(home, "a.iso", "DISC-A"),
            try image(home, "b.iso", "DISC-B")
        )
        let run = try RoostRun(
            guest.options(run: Self.watch)
                + ["-d", "--name", "heron", "--engine", "translator", "--memory", "256M", "--cdrom", "empty"],
            environment: home.environment)
        try #require(run.status == 0, "\(run.error)")
        #expect(sees(home, "STATE ,"), "\(log(home))")
        #expect(try home.succeed("attach", "heron", disk) == "disk0\n")
        #expect(sees(home, "WROTE"), "\(log(home))")
        #expect(log(home).contains("STATE MARK-1,"))
        let info = try home.succeed("info", "heron")
        #expect(info.contains("disk0       " + disk) && info.contains("cdrom0      empty"), "\(info)")

        try home.succeed("insert", "heron", first)
        #expect(sees(home, "STATE MARK-1,DISC-A"), "\(log(home))")
        try home.fail("insert", "heron", second, status: 94, "eject it first")
        try home.succeed("eject", "heron")
        #expect(sees(home, "STATE MARK-1,"), "\(log(home))")
        try home.succeed("insert", "heron", second, "--drive", "cdrom0")
        #expect(sees(home, "STATE MARK-1,DISC-B"), "\(log(home))")
        try home.succeed("detach", "heron", "disk0")
        #expect(sees(home, "STATE ,DISC-B"), "\(log(home))")
        let written = try Data(contentsOf: URL(fileURLWithPath: disk))
        #expect(String(decoding: written[512..<519], as: UTF8.self) == "written")
        try home.fail("detach", "heron", "disk0", status: 94, "there are: cdrom0")
        try home.succeed("attach", "heron", disk + ",readonly")
        #expect(sees(home, "STATE MARK-1,DISC-B"), "\(log(home))")

        try home.succeed("kill", "heron")
        try home.succeed("start", "heron")
        #expect(MachineHome.eventually(60) { log(home).contains("STATE MARK-1,DISC-B") }, "\(log(home))")
        try home.succeed("pause", "heron")
        try home.fail("eject", "heron", status: 64, "paused")
        try home.succeed("kill", "heron")
    }

    @Test("are changed while the machine doesn't run; what can't be is refused with what there is")
    func stopped() throws {
        let home = try MachineHome()
        try home.start("heron", try home.kernel(KeptMachineTests.echo), "--cdrom", "empty", "--cdrom", "empty")
        try home.succeed("kill", "heron")
        let (disk, disc) = (try image(home, "disk.raw", "MARK"), try image(home, "a.iso", "DISC"))
        #expect(try home.succeed("attach", "heron", disk, disk + ",readonly") == "disk0\ndisk1\n")
        try home.fail("insert", "heron", disc, status: 64, "--drive cdrom0, cdrom1")
        try home.succeed("insert", "heron", disc, "--drive", "cdrom1")
        try home.fail("insert", "heron", disc, "--drive", "cdrom1", status: 64, "eject it first")
        try home.fail("insert", "heron", disc, "--drive", "cdrom2", status: 94, "there are: cdrom0, cdrom1")
        try home.fail("attach", "heron", "/nonexistent", status: 94, "/nonexistent")
        let info = try home.succeed("info", "heron")
        #expect(info.contains(disk) && info.contains(disc) && info.contains("empty"), "\(info)")
        try home.succeed("detach", "heron", "disk1", disk, "cdrom0")
        try home.succeed("eject", "heron", "cdrom0", "--force")
        let after = try home.succeed("info", "heron")
        #expect(!after.contains(disk) && !after.contains(disc), "\(after)")
        try home.fail("detach", "heron", "disk0", status: 94, "there are: cdrom0")
    }
}
