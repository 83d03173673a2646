// Whole boots, driven as a person would: Debian's kernels with the initramfs that checks its machine, and the Debian
// image to its login shell and off again.
import Foundation
import Glibc
import Images
import Testing

@Suite(
    "booting Debian", .serialized,
    .enabled("needs `make kernels` and the built command") {
        TerminalSession.roost != nil && (try? DebianKernel.fetched(.standard)) != nil
    })
struct BootTests {
    /// A folder for one test's files.
    private final class Scratch {
        let path = FileManager.default.temporaryDirectory.appendingPathComponent("roost-\(UUID().uuidString)").path
        init() throws { try FileManager.default.createDirectory(atPath: path, withIntermediateDirectories: true) }
        deinit { try? FileManager.default.removeItem(atPath: path) }
    }

    /// Boots a kernel with the self-check; returns its lines by the check's name, and the exit status.
    private func selfCheck(
        _ flavor: DebianKernel.Flavor, words: String, scratch: String, seconds: Double
    ) throws -> (lines: [String: String], status: Int32?, session: TerminalSession) {
        let kernel = try DebianKernel.fetched(flavor)
        try Data(SelfCheckImage.initramfs(for: kernel)).write(to: URL(fileURLWithPath: scratch + "/initramfs"))
        let disk = scratch + "/disk.raw"
        try Data().write(to: URL(fileURLWithPath: disk))
        let file = try FileHandle(forWritingTo: URL(fileURLWithPath: disk))
        try file.truncate(atOffset: 64 << 20)
        try file.close()
        let now = Int(Date().timeIntervalSince1970)
        let session = try TerminalSession([
            "run", "--kernel", kernel.image, "--initrd", scratch + "/initramfs", "--disk", disk, "--net", "user",
            "--no-reboot", "--append", "console=ttyS0 selfcheck.now=\(now) selfcheck.slack=\(Int(seconds)) \(words)",
        ])
        guard session.expect("SELFCHECK BEGIN", seconds: seconds) != nil else { return ([:], nil, session) }
        let output = session.expect("SELFCHECK DONE", seconds: seconds) ?? ""
        var lines: [String: String] = [:]
        for line in output.split(whereSeparator: \.isNewline) {
            guard let start = line.range(of: "SELFCHECK ") else { continue }
            let parts = line[start.upperBound...].split(separator: " ", maxSplits: 1).map(String.init)
            if parts.count == 2 { lines[parts[0]] = parts[1].trimmingCharacters(in: .whitespaces) }
        }
        return (lines, session.wait(seconds: 60), session)
    }

    @Test("the cloud kernel finds every device of its machine in order, and powers off")
    func cloudKernel() throws {
        let scratch = try Scratch()
        let (lines, status, session) = try selfCheck(.cloud, words: "", scratch: scratch.path, seconds: 240)
        let expected = [
            "modules", "cpu", "memory", "clocksource", "clock", "timer", "interrupts", "rng", "disk", "filesystem",
            "net",
        ]
        for name in expected {
            #expect(lines[name]?.hasPrefix("ok") == true, "\(name): \(lines[name] ?? "not reached")")
        }
        #expect(status == 0, "\(session.transcript.suffix(2000))")
    }

    @Test("the standard kernel boots, and what it wrote to its disk is in the file")
    func standardKernel() throws {
        let scratch = try Scratch()
        let (lines, status, session) = try selfCheck(
            .standard, words: "quiet selfcheck.only=modules,cpu,clock,disk,net", scratch: scratch.path, seconds: 300)
        for name in ["modules", "cpu", "clock", "disk", "net"] {
            #expect(lines[name]?.hasPrefix("ok") == true, "\(name): \(lines[name] ?? "not reached")")
        }
        #expect(status == 0, "\(session.transcript.suffix(2000))")
        let file = try FileHandle(forReadingFrom: URL(fileURLWithPath: scratch.path + "/disk.raw"))
        try file.seek(toOffset: 1 << 20)
        let written = try file.read(upToCount: 1 << 20) ?? Data()
        let sum = try checksum(written, scratch: scratch.path)
        #expect(lines["disk"] == "ok " + sum)
    }

    @Test("a disk that shrinks while it is in use gives the guest I/O errors, and nothing is lost")
    func shrinkingDisk() throws {
        let scratch = try Scratch()
        let kernel = try DebianKernel.fetched(.cloud)
        try Data(SelfCheckImage.initramfs(for: kernel)).write(to: URL(fileURLWithPath: scratch.path + "/initramfs"))
        let disk = scratch.path + "/disk.raw"
        try Data(repeating: 7, count: 4 << 20).write(to: URL(fileURLWithPath: disk))
        let session = try TerminalSession([
            "run", "--kernel", kernel.image, "--initrd", scratch.path + "/initramfs", "--disk", disk, "--net", "none",
            "--no-reboot", "--append", "console=ttyS0 quiet selfcheck.only=modules,disk",
        ])
        try #require(session.expect("SELFCHECK BEGIN", seconds: 240) != nil)
        #expect(truncate(disk, 65536) == 0)
        let output = try #require(session.expect("SELFCHECK DONE", seconds: 120), "\(session.transcript.suffix(2000))")
        #expect(output.contains("SELFCHECK disk FAIL"), "\(output)")
        #expect(session.wait(seconds: 60) == 0)
        #expect(try Data(contentsOf: URL(fileURLWithPath: disk)) == Data(repeating: 7, count: 65536))
        #expect(session.transcript.contains("I/O error"), "\(session.transcript.suffix(2000))")
    }

    @Test("a guest that resets ends Roost with --no-reboot")
    func reset() throws {
        let scratch = try Scratch()
        let (lines, status, _) = try selfCheck(
            .cloud, words: "quiet selfcheck.only=cpu selfcheck.end=reboot", scratch: scratch.path, seconds: 240)
        #expect(lines["cpu"]?.hasPrefix("ok") == true)
        #expect(status == 0)
    }

    /// Programs of both machines, and what they are told to compute: integers, sorting, compression, regular expressions.
    private static let programs = [
        // Short enough for one line of the terminal: a longer one is drawn again.
        #"perl -e '$x=1;$x=($x*69069+1)%2**32 for 1..3e6;print "is $x"'"#,
        #"perl -e 'print sort map{$_*7919%10007}1..6e4'|md5sum"#,
        #"perl -e '$_=q(ab)x2e4;$n=()=/(a|b(?=a))+?b/g;print qq(is $n)'"#,
        #"perl -e '$x+=sin($_)/($_+1)for 0..8e5;printf q(%.12f),$x'"#,
        #"head -c 20000000 /dev/zero|gzip -9|md5sum"#,
        #"seq 300000|sort -r|sort -n|sed 's/^1\(.*\)$/\1x/'|sha256sum"#,
    ]

    /// What a shell on the host prints for it.
    private func onHost(_ program: String) throws -> String {
        let shell = Process()
        let output = Pipe()
        shell.executableURL = URL(fileURLWithPath: "/bin/sh")
        shell.arguments = ["-c", program]
        shell.standardOutput = output
        try shell.run()
        let data = output.fileHandleForReading.readDataToEndOfFile()
        shell.waitUntilExit()
        return String(decoding: data, as: UTF8.self).trimmingCharacters(in: .whitespacesAndNewlines)
    }

    @Test(
        "the Debian image leaves a person at a shell where network, dmesg, lscpu and poweroff behave",
        .enabled("needs the image that `make test` builds") {
            (try? ImageStore(root: "/").locate(testImage("debian"))) != nil
        })
    func debianImage() throws {
        let scratch = try Scratch()
        let folder = scratch.path + "/debian"
        let copy = Process()
        copy.executableURL = URL(fileURLWithPath: "/bin/cp")
        copy.arguments = ["-r", "--sparse=always", testImage("debian"), folder]
        try copy.run()
        copy.waitUntilExit()
        let session = try TerminalSession(["run", folder])
        let prompt = "root@debian:~# "
        try #require(session.expect(prompt, seconds: 300) != nil, "\(session.transcript.suffix(2000))")
        /// Types a command; what it printed, without the echo.
        func command(_ line: String, seconds: Double = 120) -> String {
            session.type(line)
            _ = session.expect("\n", seconds: 30)
            return session.expect(prompt, seconds: seconds) ?? "no prompt: \(session.transcript.suffix(1000))"
        }
        #expect(command("echo $((6 * 7)) on $(tty)").contains("42 on /dev/ttyS0"))
        #expect(command("lscpu").contains("x86_64"))
        // Debian's own programs compute what they compute on the host, in the translator and then natively.
        for program in Self.programs {
            let expected = try onHost(program)
            #expect(!expected.isEmpty && command(program).contains(expected), "\(program)")
        }
        #expect(command("cat /proc/interrupts").contains("ttyS0"))
        #expect(command("dmesg | grep -c Linux").contains { $0.isNumber && $0 != "0" })
        #expect(command("ip -brief address show eth0").contains("10.0.2.15/24"))
        #expect(command("ping -c 1 -W 5 10.0.2.2").contains("1 received"))
        #expect(command("cat /etc/resolv.conf").contains("nameserver 10.0.2.3"))
        #expect(command("sleep 100 & jobs; kill %1").contains("Running"))
        #expect(command("sync; df -h / | tail -n 1").contains("/dev/vda"))
        session.type("poweroff")
        #expect(session.wait(seconds: 90) == 0, "\(session.transcript.suffix(2000))")
    }

    private func checksum(_ data: Data, scratch: String) throws -> String {
        let path = scratch + "/written"
        try data.write(to: URL(fileURLWithPath: path))
        let process = Process()
        process.executableURL = URL(fileURLWithPath: "/usr/bin/sha256sum")
        process.arguments = [path]
        let pipe = Pipe()
        process.standardOutput = pipe
        try process.run()
        let output = pipe.fileHandleForReading.readDataToEndOfFile()
        process.waitUntilExit()
        return String(String(decoding: output, as: UTF8.self).prefix { $0 != " " })
    }
}

/// Where `make test` puts an image that tests boot.
func testImage(_ name: String) -> String {
    let environment = ProcessInfo.processInfo.environment
    let cache = environment["XDG_CACHE_HOME"] ?? (environment["HOME"] ?? NSHomeDirectory()) + "/.cache"
    return cache + "/roost/images/" + name
}
