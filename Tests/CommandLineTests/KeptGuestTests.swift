// A Debian guest as a machine that is kept: its own disk, cloud-init's volume, the console.
import Foundation
import HostOS
import Images
import Testing

@Suite(
    "Debian as a machine that is kept",
    .enabled("needs the built command and Debian's image") {
        TerminalSession.roost != nil && (try? ImageStore(root: "/").locate(testImage("debian"))) != nil
    })
struct KeptGuestTests {
    private static let prompt = "root@debian:~# "

    @Test("Linux mounts cloud-init's volume, and what it writes is there after a power failure; the image is untouched")
    func debian() throws {
        let home = try MachineHome()
        let userData = "#cloud-config\nhostname: heron\n"
        try Data(userData.utf8).write(to: URL(fileURLWithPath: home.folder + "/user-data"))
        let image = try ImageStore(root: "/").locate(testImage("debian"))
        let before = try FileManager.default.attributesOfItem(atPath: image.disk)[.modificationDate] as? Date
        let run = try RoostRun(
            [
                "run", "-d", "--name", "heron", "--engine", "translator", "--cloud-init", home.folder + "/user-data",
                image.folder,
            ], environment: home.environment)
        #expect(run.status == 0, "\(run.error)")
        let console = try TerminalSession(["console", "heron"], environment: home.environment)
        try #require(console.expect(Self.prompt, seconds: 90) != nil, "\(console.transcript)")
        console.type(
            "modprobe isofs; mount -o ro -L cidata /mnt || mount -t iso9660 -o ro /dev/vdb /mnt; ls /mnt | xargs")
        _ = console.expect("xargs", seconds: 10)
        let files = try #require(console.expect(Self.prompt, seconds: 60), "\(console.transcript)")
        #expect(files.contains("meta-data user-data"), "\(files)")
        console.type("cat /mnt/user-data; grep local /mnt/meta-data; echo kept >/root/mark; sync; echo do''ne")
        let contents = try #require(console.expect("done", seconds: 60), "\(console.transcript)")
        #expect(contents.contains("hostname: heron") && contents.contains("local-hostname: heron"), "\(contents)")
        try home.succeed("kill", "heron")
        _ = console.wait(seconds: 30)

        try home.succeed("start", "heron")
        let again = try TerminalSession(["console", "heron"], environment: home.environment)
        try #require(again.expect(Self.prompt, seconds: 90) != nil, "\(again.transcript)")
        again.type("cat /root/mark; poweroff")
        #expect(again.expect("kept", seconds: 60) != nil)
        let isOff = try MachineHome.eventually(60) { try home.status("heron") == "stopped" }
        #expect(isOff)
        let after = try FileManager.default.attributesOfItem(atPath: image.disk)[.modificationDate] as? Date
        #expect(before == after)
    }

    /// What e2fsprogs say of a machine's disk.
    private func fileSystem(_ home: MachineHome, _ name: String) throws -> (state: String, isSound: Bool) {
        let copy = home.folder + "/disk.raw"
        try home.succeed("disk", "convert", "-f", "raw", home.folder + "/data/machines/\(name)/disk.qcow2", copy)
        defer { try? FileManager.default.removeItem(atPath: copy) }
        var lines: [String] = []
        let environment = ["PATH": "/usr/sbin:/sbin:/usr/bin:/bin"]
        _ = try ChildProcess.run(
            "/usr/bin/env", ["dumpe2fs", "-h", copy], environment: environment, line: { lines.append($0) },
            proceed: { true })
        let check = try ChildProcess.run(
            "/usr/bin/env", ["e2fsck", "-fn", copy], environment: environment, line: { _ in }, proceed: { true })
        let interesting = lines.filter { $0.contains("state:") || $0.contains("needs_recovery") }
        return (interesting.joined(separator: " "), check == .exited(0))
    }

    @Test("Its addresses are told; stopped by its agent and by its power button it leaves a clean file system")
    func stopped() throws {
        let home = try MachineHome()
        try home.succeed(
            "run", "-d", "--name", "m", "--engine", "translator",
            try ImageStore(root: "/").locate(testImage("debian")).folder)
        try home.succeed("exec", "m", "--", "sh", "-c", "dd if=/dev/urandom of=/root/file bs=1M count=8 2>/dev/null")
        let addresses = try home.info("m")["addresses"] as? [[String: String]] ?? []
        #expect(addresses.contains { $0["interface"] == "eth0" && $0["address"] == "10.0.2.15" }, "\(addresses)")
        #expect(try home.succeed("info", "m").contains("10.0.2.15 (eth0)"))
        try home.succeed("stop", "m")
        #expect(try home.events("m").suffix(2) == ["shutDown", "ended"])
        var disk = try fileSystem(home, "m")
        #expect(disk.isSound && disk.state.contains("clean") && !disk.state.contains("needs_recovery"), "\(disk)")

        try home.succeed("start", "m")
        let agent = "/usr/lib/roost/agent"
        _ = try home.roost(
            "exec", "m", "--", "sh", "-c", "date >/root/more; mv \(agent) \(agent).off; kill -9 $(pidof agent)")
        let isGone = try MachineHome.eventually { try (home.info("m")["addresses"] as? [Any])?.isEmpty == true }
        #expect(isGone)
        try home.succeed("stop", "m")
        #expect(try home.events("m").suffix(2) == ["powerButton", "ended"])
        disk = try fileSystem(home, "m")
        #expect(disk.isSound && disk.state.contains("clean") && !disk.state.contains("needs_recovery"), "\(disk)")
    }

    @Test("A limit on a disk holds from the moment that it is set, and lets all go that waits when it is lifted")
    func limits() throws {
        let home = try MachineHome()
        try home.succeed(
            "run", "-d", "--name", "m", "--engine", "translator",
            try ImageStore(root: "/").locate(testImage("debian")).folder)
        let read = ["dd", "if=/dev/vda", "of=/dev/null", "bs=4096", "count=20000", "iflag=direct"]
        // What the guest needs for it is in its memory then.
        try home.succeed("exec", "m", "--", "dd", "if=/dev/vda", "of=/dev/null", "bs=4096", "count=1", "iflag=direct")
        try home.succeed("set", "m", "--disk-iops", "10")
        let process = Process()
        process.executableURL = URL(fileURLWithPath: try #require(TerminalSession.roost))
        process.arguments = ["exec", "m", "--"] + read
        process.environment = ProcessInfo.processInfo.environment.merging(home.environment) { $1 }
        process.standardInput = FileHandle.nullDevice
        process.standardError = FileHandle.nullDevice
        try process.run()
        func requests() throws -> UInt64 {
            let running = try home.info("m")["running"] as? [String: Any]
            return try #require((running?["traffic"] as? [String: Any])?["diskRead"] as? UInt64)
        }
        // It has half an hour's worth to do.
        let before = try requests()
        let isAtWork = try MachineHome.eventually { try requests() > before + 4 * 4096 }
        #expect(isAtWork && process.isRunning)
        try home.succeed("set", "m", "--disk-iops", "0")
        #expect(MachineHome.eventually(60) { !process.isRunning })
        #expect(!process.isRunning && process.terminationStatus == 0)
        if process.isRunning { process.terminate() }
    }
}
