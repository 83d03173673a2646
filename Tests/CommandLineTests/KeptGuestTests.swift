// A Debian guest as a machine that is kept: its own disk, cloud-init's volume, the console.
import Foundation
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
}
