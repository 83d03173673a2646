// The benchmark programs as built by Benchmarks/Guest/Makefile, and the initrd that runs them in a guest.
//
// Words on the guest kernel's command line steer its init:
//
//   bench.only=NAME,NAME   run these
//   bench.scale=NUMBER     multiply their work
//   bench.timeout=SECONDS  stop a program that takes longer
//
// The guest prints, each on a line of its own:
//
//   @bench begin
//   @bench clock UPTIME                                         at the beginning and at the end
//   @bench start NAME
//   @bench result NAME SECONDS OPERATIONS CHECKSUM PATH
//   @bench fail NAME STATUS
//   @bench done
import BenchmarkReport
import Foundation
import HostOS
import Images

/// The folder with the built programs.
struct GuestPrograms {
    let executable: String
    let programs: [GuestProgram]
    let busybox = "/bin/busybox"
    /// What the compile benchmark runs, and on what.
    let compiler = "/usr/bin/tcc"
    let sample: String

    /// - Parameters:
    ///   - folder: Where `bench` was built.
    ///   - sources: `Benchmarks/Guest`.
    init(folder: String, sources: String) throws {
        sample = URL(fileURLWithPath: sources).appendingPathComponent("sample/sample.c").path
        executable = URL(fileURLWithPath: folder).appendingPathComponent("bench").path
        guard FileManager.default.isExecutableFile(atPath: executable) else {
            throw Unmeasured(description: "\(executable) is not there; `make bench` builds it")
        }
        var lines: [String] = []
        _ = try ChildProcess.run(
            executable, ["--list"], environment: [:], line: { lines.append($0) }, proceed: { true })
        programs = lines.compactMap { line in
            let fields = line.split(separator: "\t").map(String.init)
            return fields.count == 3 ? GuestProgram(name: fields[0], set: fields[1], unit: fields[2]) : nil
        }
    }

    /// The initrd: busybox, the programs, the compiler with what it reads, an init.
    func initrd() throws -> [UInt8] {
        var archive = CPIOArchive()
        for directory in ["bin", "dev", "etc", "proc", "sys", "tmp"] { archive.addDirectory(directory) }
        archive.addCharacterDevice("dev/console", major: 5, minor: 1)
        try archive.addHostFile(busybox)
        for name in ["sh", "mount", "poweroff", "sed", "tail", "timeout", "tr"] {
            archive.addSymbolicLink("bin/\(name)", to: "busybox")
        }
        try archive.addHostFile(executable, as: "bin/bench")
        try archive.addHostFile(compiler)
        for path in try compilerFiles() { try archive.addHostFile(path) }
        try archive.addHostFile(sample, as: "sample.c")
        archive.addFile("init", text: Self.initScript, mode: 0o755)
        return archive.serialized()
    }

    /// The compiler's shared libraries, and the headers that the sample includes: the same files as the host's.
    private func compilerFiles() throws -> [String] {
        func output(_ program: String, _ arguments: [String]) throws -> [String] {
            var words: [String] = []
            let ending = try ChildProcess.run(
                program, arguments, environment: ["PATH": "/usr/bin:/bin"],
                line: { words += $0.split { " \t".contains($0) }.map(String.init) }, proceed: { true })
            guard ending == .exited(0) else {
                throw Unmeasured(description: "\(program) \(arguments.joined(separator: " ")): \(ending)")
            }
            return words
        }
        let libraries = try output("/usr/bin/ldd", [compiler])
        // It tells each file that it opens.
        // tcc deletes its output file before it writes it: root would lose /dev/null.
        let object = NSTemporaryDirectory() + "/roost-bench-\(ProcessInfo.processInfo.processIdentifier).o"
        defer { try? FileManager.default.removeItem(atPath: object) }
        let headers = try output(compiler, ["-vv", "-c", "-o", object, sample])
        return Set((libraries + headers).filter { $0.hasPrefix("/") && $0 != sample && $0 != object }).sorted()
    }

    static let initScript = #"""
        #!/bin/sh
        # Runs the benchmark programs named on the kernel's command line; see GuestPrograms.swift.
        echo "@bench begin"
        export PATH=/bin BENCH_TMP=/tmp
        mount -t proc proc /proc
        mount -t sysfs sys /sys
        mount -t devtmpfs dev /dev 2>/dev/null
        mount -t tmpfs tmp /tmp
        echo 1 >/proc/sys/kernel/printk

        word() { tr ' ' '\n' </proc/cmdline | sed -n "s/^bench\.$1=//p" | tail -n 1; }
        clock() { read up idle </proc/uptime; echo "@bench clock $up"; }
        scale=$(word scale) limit=$(word timeout)
        clock
        for name in $(word only | tr , ' '); do
            echo "@bench start $name"
            timeout -s KILL "${limit:-120}" bench "$name" "${scale:-1}" || echo "@bench fail $name status $?"
        done
        clock
        echo "@bench done"
        poweroff -f
        """#
}

extension CPIOArchive {
    /// Adds a file of the host, by default at the same path.
    mutating func addHostFile(_ path: String, as name: String? = nil) throws {
        guard let contents = FileManager.default.contents(atPath: path) else {
            throw Unmeasured(description: "cannot read \(path)")
        }
        let mode: UInt32 = FileManager.default.isExecutableFile(atPath: path) ? 0o755 : 0o644
        addFile(name ?? path, contents: Array(contents), mode: mode)
    }
}

/// Why something could not be measured.
struct Unmeasured: Error, CustomStringConvertible { var description: String }
