// Folders of the host in a Debian guest that is kept, mounted by its agent: while it runs and not, through reboots, snapshots
// and clones. GuestTests/files.c checks each operation there.
import Foundation
import HostOS
import Images
import Testing

@Suite(
    "Folders mounted in a guest",
    .enabled("needs the built command and Debian's image with an agent") {
        TerminalSession.roost != nil
            && (try? ImageStore(root: "/").locate(testImage("debian")))?.manifest.isCurrent == true
    })
struct MountGuestTests {
    private let home: MachineHome
    private let share: String

    init() throws {
        home = try MachineHome()
        share = home.folder + "/share"
        try FileManager.default.createDirectory(atPath: share, withIntermediateDirectories: false)
        try Data("written by the host\n".utf8).write(to: URL(fileURLWithPath: share + "/from-host"))
        try home.succeed(
            "run", "-d", "--name", "m", "--engine", "translator",
            try ImageStore(root: "/").locate(testImage("debian")).folder)
        try home.succeed("exec", "m", "--", "true")
    }

    /// What a shell command in the guest prints, its complaints included.
    @discardableResult
    private func guest(_ command: String, in name: String = "m") throws -> String {
        let run = try home.roost("exec", name, "--", "sh", "-c", command + " 2>&1")
        return run.output + run.error
    }

    private func text(_ name: String) -> String? { try? String(contentsOfFile: share + "/" + name, encoding: .utf8) }

    private var mounted: [String: Any]? {
        get throws {
            let manifest = try home.info("m")["manifest"] as? [String: Any]
            return ((manifest?["machine"] as? [String: Any])?["mounts"] as? [[String: Any]])?.first
        }
    }

    @Test("come and go while it runs, are there after a reboot and a start, and are read and written")
    func life() throws {
        #expect(try home.succeed("mount", "m", share, "/srv/a b") == "/srv/a b\n")
        #expect(
            try guest("cat '/srv/a b/from-host'; echo by the guest >'/srv/a b/from-guest'") == "written by the host\n")
        #expect(text("from-guest") == "by the guest\n")
        #expect(try home.succeed("mount", "m", "-q") == "/srv/a b\n")
        #expect(try home.succeed("info", "m").contains("at /srv/a b"))
        try home.fail("mount", "m", share, "/srv/a b", status: 94, "already")
        try home.succeed("mount", "m", share, "--read-only")
        #expect(try guest("cat /mnt/share/from-guest; echo x >/mnt/share/no").contains("Read-only file system"))
        #expect(text("no") == nil)
        // What can't be mounted leaves all as it was.
        try guest("echo >/root/file")
        try home.fail("mount", "m", share, "/root/file", status: 94, "Not a directory")
        try home.fail("mount", "m", share + "/nothing", status: 94, "No such file")
        for path in ["relative", "/", "/a/../b", "/a//b", "/a/"] {
            try home.fail("mount", "m", share, path, status: 64, "absolute and plain")
        }
        #expect(try home.succeed("mount", "m", "-q") == "/srv/a b\n/mnt/share\n")
        #expect(try guest("grep -c '^[^ ]* [^ ]* [^ ]* [^ ]* /\\(srv\\|mnt\\)' /proc/self/mountinfo") == "2\n")
        // In use: it stays, unless forced.
        let user = try RoostRun(
            ["exec", "m", "--", "sh", "-c", "cd /mnt/share; setsid sleep 1000 >/dev/null 2>&1 & true"],
            environment: home.environment)
        #expect(user.status == 0, "\(user.error)")
        try home.fail("unmount", "m", "/mnt/share", status: 94, "--force")
        #expect(try guest("cat /mnt/share/from-host") == "written by the host\n")
        try home.succeed("unmount", "m", "/mnt/share", "--force")
        #expect(try guest("ls /mnt/share").isEmpty)
        try home.fail("unmount", "m", "/mnt/share", status: 94, "nothing mounted")

        try home.succeed("reset", "m")
        let isBack = try MachineHome.eventually(90) { try guest("cat '/srv/a b/from-host'") == "written by the host\n" }
        #expect(isBack)
        try home.succeed("stop", "m")
        try home.succeed("mount", "m", share, "/two", "--read-only")
        try home.succeed("unmount", "m", "/srv/a b")
        try home.succeed("start", "m")
        let isThere = try MachineHome.eventually(90) { try guest("cat /two/from-host") == "written by the host\n" }
        #expect(isThere)
        #expect(try guest("ls '/srv/a b'").isEmpty)
        try home.succeed("unmount", "m")
        #expect(try mounted == nil)
        #expect(try guest("ls /two").isEmpty)
    }

    @Test("take every operation on files")
    func operations() throws {
        let program = try #require(guestProgram("files.c"), "files.c can't be compiled")
        try Data(program).write(to: URL(fileURLWithPath: home.folder + "/files"))
        chmod(home.folder + "/files", 0o755)
        try home.succeed("copy", home.folder + "/files", "m:/root/files")
        try home.succeed("mount", "m", home.folder, "/other")
        try home.succeed("mount", "m", share, "/work")
        let output = try guest("/root/files /work; /root/files /work random 54321 300")
        #expect(output.contains("FILES ok ") && output.contains("FILES random 300"), "\(output.suffix(2000))")
        #expect(!output.contains("FAIL"))
    }

    @Test("are what they were after a restore, open files too; a clone has none")
    func snapshots() throws {
        try home.succeed("mount", "m", share, "/work")
        let follow = "exec 3<>/work/log; while sleep 0.2; do cat /proc/uptime >&3; done"
        let start = try RoostRun(
            ["exec", "m", "--", "sh", "-c", "setsid sh -c '\(follow)' >/dev/null 2>&1 & true"],
            environment: home.environment)
        #expect(start.status == 0, "\(start.error)")
        let ticks = MachineHome.eventually(60) { (text("log")?.count ?? 0) > 20 }
        #expect(ticks)
        try home.succeed("snapshot", "take", "m", "s")
        try home.succeed("unmount", "m", "--force")
        #expect(try guest("ls /work").isEmpty)
        try home.succeed("restore", "m", "s", "--yes")
        // It overwrites what it wrote after the snapshot.
        let before = text("log")
        let goesOn = MachineHome.eventually(60) { text("log") != before }
        #expect(goesOn)
        #expect(try guest("cat /work/from-host") == "written by the host\n")
        #expect(try mounted?["path"] as? String == "/work")

        try home.succeed("clone", "m", "c", "--snapshot", "s")
        #expect(try guest("ls /work; hostname", in: "c") == "c\n")
        #expect(try home.succeed("mount", "c", "-q").isEmpty)
        try home.succeed("mount", "c", share, "/mine", "--read-only")
        #expect(try guest("cat /mine/from-host", in: "c") == "written by the host\n")

        // Nor has one that was in an archive; where they were stands there, not what they were.
        let archive = home.folder + "/s.tar"
        try home.succeed("export", "m", archive, "--snapshot", "s")
        let head = try String(decoding: Data(contentsOf: URL(fileURLWithPath: archive)).prefix(4096), as: UTF8.self)
        #expect(head.contains("/work") && !head.contains(share))
        try home.succeed("import", archive, "--name", "i")
        try home.succeed("start", "i")
        #expect(try guest("ls /work; hostname", in: "i") == "i\n")
        try home.succeed("stop", "i", "--timeout", "0", "--force")

        // One that is gone meanwhile is said, and can be taken away.
        try home.succeed("stop", "m", "--timeout", "0", "--force")
        try FileManager.default.moveItem(atPath: share, toPath: share + "-gone")
        try home.fail("start", "m", status: 68, "roost unmount")
        try home.succeed("restore", "m", "s", "--yes", "--no-start")
        try home.succeed("unmount", "m", share)
        try home.succeed("start", "m")
        let isGone = try MachineHome.eventually(60) { try guest("ls /work").isEmpty }
        #expect(isGone)
    }
}
