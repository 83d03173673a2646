// `roost copy` with a Debian guest: names and links, a guest that sends what nobody asked for, sides that give up.
import Foundation
import HostOS
import Images
import Testing

@Suite(
    "Copies to a guest and from it",
    .enabled("needs the built command and Debian's image with an agent") {
        TerminalSession.roost != nil
            && (try? ImageStore(root: "/").locate(testImage("debian")))?.manifest.agent != nil
    })
struct CopyGuestTests {
    private let home: MachineHome
    /// What is copied from there on the host, and to.
    private let files: String
    private let target: String

    init() throws {
        home = try MachineHome()
        files = home.folder + "/files"
        target = home.folder + "/target"
        for path in [files + "/d", target] {
            try FileManager.default.createDirectory(atPath: path, withIntermediateDirectories: true)
        }
        try write("one\n", files + "/d/f")
        try write(String(repeating: "x", count: 3 << 20), files + "/big")
        for (link, place) in [("/d/l", "f"), ("/d/away", "/etc/passwd"), ("/flink", "d/f"), ("/dlink", "d")] {
            try FileManager.default.createSymbolicLink(atPath: files + link, withDestinationPath: place)
        }
        try home.succeed(
            "run", "-d", "--name", "m", "--engine", "translator",
            try ImageStore(root: "/").locate(testImage("debian")).folder)
        try home.succeed("exec", "m", "--", "true")
    }

    private func write(_ text: String, _ path: String) throws {
        try Data(text.utf8).write(to: URL(fileURLWithPath: path))
    }

    private func read(_ name: String) -> String? { try? String(contentsOfFile: target + "/" + name, encoding: .utf8) }

    private func link(_ name: String) -> String? {
        try? FileManager.default.destinationOfSymbolicLink(atPath: target + "/" + name)
    }

    private func names(_ path: String) throws -> [String] {
        try FileManager.default.contentsOfDirectory(atPath: path).sorted()
    }

    /// What a shell command in the guest prints.
    @discardableResult
    private func guest(_ command: String) throws -> String { try home.succeed("exec", "m", "--", "sh", "-c", command) }

    @Test("have the names and the links that cp gives them, nothing that wasn't asked for, and an end")
    func copies() throws {
        try sent()
        try fetched()
        try hostile()
        try givenUp()
    }

    private func sent() throws {
        try home.succeed("copy", files + "/d", "m:/root/new")
        #expect(try guest("cd /root/new; ls; cat f; readlink l away") == "away\nf\nl\none\nf\n/etc/passwd\n")
        try home.succeed("copy", files + "/flink", "m:/root")
        try home.succeed("copy", files + "/dlink", "m:")
        #expect(try guest("[ -L flink ] || cat flink; [ -L dlink ] || cat dlink/f") == "one\none\n")
        try home.succeed("copy", files + "/d", "m:/root/dlink/")
        try guest("echo own >new/own")
        try home.succeed("copy", files + "/d", "m:.")
        try home.succeed("copy", files + "/d/.", "m:new")
        #expect(try guest("ls dlink new") == "dlink:\naway\nd\nf\nl\n\nnew:\naway\nd\nf\nl\nown\n")
        #expect(try !guest("ls -A . dlink new").contains("roost-copy"))
        try guest("rm -r new/d; chmod 4755 new/f; ln -s new link")
    }

    private func fetched() throws {
        try home.succeed("copy", "m:new", target + "/renamed")
        #expect(try names(target + "/renamed") == ["away", "f", "l", "own"])
        #expect(read("renamed/f") == "one\n" && link("renamed/l") == "f" && link("renamed/away") == "/etc/passwd")
        let attributes = try FileManager.default.attributesOfItem(atPath: target + "/renamed/f")
        #expect((attributes[.posixPermissions] as? Int).map { $0 & 0o7000 } == 0)
        try home.succeed("copy", "m:link", target)
        #expect(link("link") == nil && read("link/f") == "one\n")
        // As with cp: what a folder of that name has stays.
        try write("mine\n", target + "/link/mine")
        try write("changed\n", target + "/link/f")
        try home.succeed("copy", "m:link", target)
        try home.succeed("copy", "m:new/f", target + "/link/l")
        #expect(read("link/mine") == "mine\n" && read("link/f") == "one\n" && link("link/l") == nil)
        try home.succeed("copy", "m:new/.", target + "/dot")
        #expect(try names(target + "/dot") == ["away", "f", "l", "own"])
        #expect(try names(target) == ["dot", "link", "renamed"])
    }

    /// The guest's `tar` is one that sends something else.
    private func hostile() throws {
        let place = home.folder + "/place"
        try FileManager.default.createDirectory(atPath: place, withIntermediateDirectories: true)
        try guest("mkdir -p evil/d pipe/d other; echo x >evil/.bashrc; mkfifo pipe/d/p; ln -s /etc/passwd other/d")
        try guest("echo '#!/bin/sh' >/usr/local/bin/tar; chmod +x /usr/local/bin/tar")
        for (members, words) in [
            ("-C evil d .bashrc", "more or less than d"), ("-C evil .bashrc", "something other than d"),
            ("-C pipe d", "no file, folder or symbolic link"), ("-C other d", "something other than d"),
        ] {
            try guest("echo 'exec /bin/tar -c -f - \(members)' >>/usr/local/bin/tar")
            try home.fail("copy", "m:evil/d", place, status: 94, words)
            #expect(try names(place).isEmpty, "\(members)")
            try guest("sed -i '$d' /usr/local/bin/tar")
        }
        // A link that came first doesn't lead what comes next elsewhere.
        try guest("rm /usr/local/bin/tar; ln -s \(place)/victim evil/d/x")
        try write("mine\n", place + "/victim")
        try home.succeed("copy", "m:evil/d", place)
        try guest("rm evil/d/x; echo theirs >evil/d/x")
        try home.succeed("copy", "m:evil/d", place)
        #expect(try String(contentsOfFile: place + "/victim", encoding: .utf8) == "mine\n")
        #expect(try String(contentsOfFile: place + "/d/x", encoding: .utf8) == "theirs\n")
    }

    private func givenUp() throws {
        try guest("head -c 3000000 /dev/zero >big")
        try home.fail("copy", "m:big", target + "/no/where", status: 94, "there is no folder")
        try home.fail("copy", files + "/big", "m:/no/where", status: 94, "there is no folder")
        try home.fail("copy", "m:nothing", target, status: 94, "not all of m:nothing")
    }
}
