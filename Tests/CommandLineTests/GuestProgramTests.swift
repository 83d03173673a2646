// Debian's own programs: a compiler, OpenSSL, Python's tests, SQLite, Perl and a debugger do in the guest what they do on
// the host. The programs lie in GuestTests/programs, a folder each, whose `run` both machines run.
import Foundation
import Images
import Testing

@Suite(
    "Debian's programs", .serialized,
    .enabled("needs the built command and the images that `make test` builds") {
        TerminalSession.roost != nil && (try? ImageStore(root: "/").locate(testImage("debian-programs"))) != nil
    })
struct GuestProgramTests {
    @Test(
        "print what they print on the host",
        arguments: [
            (
                "auto",
                [
                    "compile", "compiler", "openssl", "openssl-speed", "python", "sqlite", "perl", "gdb", "gdb-watch",
                ]
            ),
            ("translate", ["compiler-short", "openssl", "python-short", "perl", "gdb", "gdb-watch"]),
        ])
    func programs(userMode: String, names: [String]) throws {
        let folder = try ProgramFolder(names)
        let host = try folder.hostOutput()
        let guest = try folder.guestOutput(["--user-mode", userMode])
        for name in names {
            let (here, there) = (host[name] ?? "nothing", guest[name] ?? "nothing")
            // Another version of the program may say the same otherwise.
            let versions = [here, there].map { $0.prefix { $0 != "\n" } }
            if versions[0].hasPrefix("version ") && versions[0] != versions[1] {
                #expect(there.hasSuffix("\nstatus 0\n"), "\(name): \(there.suffix(2000))")
                print("\(name): not compared, the host has \(versions[0]), the guest \(versions[1])")
                continue
            }
            #expect(here == there, "\(name): \(difference(here, there))")
        }
    }

    @Test(
        "apt installs a package from the network, which then works",
        .enabled("needs Debian's mirror") { GuestProgramTests.reachesMirror })
    func package() throws {
        let folder = try ProgramFolder([])
        let session = try TerminalSession(["run", try folder.copyImage("debian-programs"), "--net", "user"])
        let prompt = "root@debian:~# "
        try #require(session.expect(prompt, seconds: 300) != nil, "\(session.transcript.suffix(2000))")
        func command(_ line: String) -> String {
            session.type(line)
            _ = session.expect("\n", seconds: 30)
            return session.expect(prompt, seconds: 600) ?? "no prompt: \(session.transcript.suffix(2000))"
        }
        #expect(command("apt-get update -qq; echo status $?").contains("status 0\r"))
        #expect(command("apt-get install -qq hello >log 2>&1; echo status $?").contains("status 0\r"))
        #expect(command("hello; echo status $?").contains("Hello, world!\r\nstatus 0\r"))
        #expect(command("dpkg --audit; dpkg -V hello; echo status $?").contains("status 0\r"))
        session.type("poweroff")
        #expect(session.wait(seconds: 90) == 0, "\(session.transcript.suffix(2000))")
    }

    private static var reachesMirror: Bool {
        (try? launch("/usr/bin/timeout", ["10", "bash", "-c", "exec 3<>/dev/tcp/deb.debian.org/80"])) == 0
    }

    /// The first lines that differ.
    private func difference(_ here: String, _ there: String) -> String {
        let (a, b) = (here.components(separatedBy: "\n"), there.components(separatedBy: "\n"))
        let first = zip(a, b).prefix { $0 == $1 }.count
        func lines(_ all: [String]) -> String { all[min(first, all.count)...].prefix(12).joined(separator: "\n") }
        return "from line \(first + 1) on, the host:\n\(lines(a))\nthe guest:\n\(lines(b))"
    }
}

/// A copy of the programs' folder, and what comes of it.
private final class ProgramFolder {
    private static let source = URL(fileURLWithPath: #filePath)
        .appendingPathComponent("../../../GuestTests/programs").standardized.path
    private let names: [String]
    private let scratch = FileManager.default.temporaryDirectory.appendingPathComponent("roost-\(UUID().uuidString)")
        .path
    private var programs: String { scratch + "/programs" }
    private var archive: String { scratch + "/programs.tar" }

    /// Copies the folder, and has the host prepare what both machines are to have.
    init(_ names: [String]) throws {
        self.names = names
        try FileManager.default.createDirectory(atPath: scratch, withIntermediateDirectories: true)
        try succeed("/bin/cp", ["-r", Self.source, programs])
        for name in try FileManager.default.contentsOfDirectory(atPath: programs) {
            let folder = programs + "/" + name
            if names.isEmpty || !FileManager.default.fileExists(atPath: folder + "/prepare") { continue }
            try succeed("/usr/bin/env", ["-C", folder, "PATH=/usr/bin:/bin", "sh", "./prepare"])
        }
        let commands = "sh ./all out \(names.joined(separator: " "))\ntar cf /dev/vdb out\nsync\npoweroff\n"
        try Data(commands.utf8).write(to: URL(fileURLWithPath: programs + "/go"))
        try succeed("/bin/tar", ["cf", archive, "-C", programs, "."])
    }

    deinit { try? FileManager.default.removeItem(atPath: scratch) }

    /// What the programs print on the host, or what is written down that they print.
    func hostOutput() throws -> [String: String] {
        func expected(_ name: String) -> String { "\(Self.source)/\(name)/expected" }
        let run = names.filter { !FileManager.default.fileExists(atPath: expected($0)) }
        try succeed("/usr/bin/env", ["-C", programs, "sh", "./all", "../host"] + run)
        var result = outputs(in: scratch + "/host")
        for name in names where !run.contains(name) { result[name] = read(expected(name)) }
        return result
    }

    /// What they print in a guest: they come on a second disk, and their output goes back there.
    func guestOutput(_ options: [String]) throws -> [String: String] {
        let image = try copyImage("debian-programs")
        let disk = scratch + "/disk.raw"
        try succeed("/bin/cp", [archive, disk])
        try succeed("/usr/bin/truncate", ["--size=64M", disk])
        let session = try TerminalSession(["run", image, "--disk", disk, "--memory", "1G", "--net", "user"] + options)
        try #require(session.expect("root@debian:~# ", seconds: 300) != nil, "\(session.transcript.suffix(2000))")
        session.type("mkdir w; cd w; tar xf /dev/vdb; . ./go")
        #expect(session.wait(seconds: 1200) == 0, "\(session.transcript.suffix(2000))")
        try succeed("/bin/tar", ["xf", disk, "-C", scratch])
        return outputs(in: scratch + "/out")
    }

    /// A guest of one's own.
    func copyImage(_ name: String) throws -> String {
        let copy = scratch + "/" + name
        try succeed("/bin/cp", ["-r", "--sparse=always", testImage(name), copy])
        return copy
    }

    private func outputs(in folder: String) -> [String: String] {
        var result: [String: String] = [:]
        for name in names { result[name] = read(folder + "/" + name) }
        return result
    }

    private func read(_ path: String) -> String? {
        FileManager.default.contents(atPath: path).map { String(decoding: $0, as: UTF8.self) }
    }

    private func succeed(_ program: String, _ arguments: [String]) throws {
        try #require(try launch(program, arguments) == 0, "\(program) \(arguments)")
    }
}

/// Runs a program of the host; its status.
private func launch(_ program: String, _ arguments: [String]) throws -> Int32 {
    let process = Process()
    process.executableURL = URL(fileURLWithPath: program)
    process.arguments = arguments
    process.standardInput = FileHandle.nullDevice
    process.standardOutput = FileHandle.nullDevice
    process.standardError = FileHandle.nullDevice
    try process.run()
    process.waitUntilExit()
    return process.terminationStatus
}
