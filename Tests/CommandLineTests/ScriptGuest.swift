// A guest that runs a shell script, next to programs of the host that a shell script starts.
import Foundation
import Glibc
import Images
import Machine
import Testing

/// Debian's kernel with an initramfs that runs what `run=` on its command line says, plus signs for spaces, and a folder
/// for what host and guest do with each other.
final class ScriptGuest {
    let scratch = FileManager.default.temporaryDirectory.appendingPathComponent("roost-\(UUID())").path
    private let kernel: DebianKernel

    static var isPossible: Bool {
        (try? DebianKernel.fetched(.cloud)) != nil && TerminalSession.roost != nil
            && FileManager.default.isExecutableFile(atPath: "/usr/bin/gcc")
    }

    private static let initScript = #"""
        #!/bin/sh
        export PATH=/bin
        mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev 2>/dev/null
        mkdir -p /mnt /tmp
        while read module; do insmod /modules/$module.ko 2>/dev/null; done </modules/order
        word() { tr ' ' '\n' </proc/cmdline | sed -n "s/^$1=//p" | tail -n 1; }
        ip link set lo up
        sh -c "$(word run | tr '+' ' ')"
        echo GUEST DONE
        poweroff -f
        """#

    /// Makes the folder, with `initramfs` and the named programs of GuestTests in it; the guest has them too.
    init(_ flavor: DebianKernel.Flavor = .cloud, modules: [String], programs: [String] = []) throws {
        kernel = try DebianKernel.fetched(flavor)
        try FileManager.default.createDirectory(
            atPath: scratch, withIntermediateDirectories: true, attributes: [.posixPermissions: 0o700])
        var archive = CPIOArchive()
        archive.addFile("init", text: Self.initScript, mode: 0o755)
        for name in programs {
            let program = try #require(guestProgram(name + ".c"), "\(name) can't be compiled")
            archive.addFile("bin/" + name, contents: program, mode: 0o755)
            let path = scratch + "/" + name
            try Data(program).write(to: URL(fileURLWithPath: path))
            chmod(path, 0o755)
        }
        let whole = try SelfCheckImage.initramfs(for: kernel, with: modules) + archive.serialized()
        try Data(whole).write(to: URL(fileURLWithPath: scratch + "/initramfs"))
    }

    deinit { try? FileManager.default.removeItem(atPath: scratch) }

    /// The options that start the guest.
    func options(run: String) -> [String] {
        [
            "run", "--kernel", kernel.image, "--initrd", scratch + "/initramfs", "--no-reboot", "--net", "none",
            "--append", "console=ttyS0 quiet run=" + run.replacingOccurrences(of: " ", with: "+"),
        ]
    }

    /// The same as a machine, under the translator.
    func configuration(run: String) -> MachineConfiguration {
        var configuration = MachineConfiguration(
            boot: BootSource(
                kernel: kernel.image, initrd: scratch + "/initramfs",
                commandLine: "console=ttyS0 run=" + run.replacingOccurrences(of: " ", with: "+")))
        configuration.engine = .translator
        configuration.networks = []
        configuration.rebootsOnReset = false
        configuration.console = .file(scratch + "/console")
        return configuration
    }

    /// Runs a shell script in the folder with `guest COMMANDS OPTION…` and `until_there FILE TEXT`, for three minutes at
    /// most; what it printed. What it leaves running ends with it.
    func shell(_ script: String) throws -> String {
        let text = """
            cd \(scratch)
            trap 'kill -9 $(jobs -p) 2>/dev/null' EXIT
            guest() {
                commands=$(echo "$1" | tr ' ' '+'); shift
                exec \(TerminalSession.roost ?? "roost") run --kernel \(kernel.image) --initrd initramfs --no-reboot \\
                    --net none --append "console=ttyS0 quiet run=$commands" "$@" </dev/null
            }
            until_there() {
                for i in $(seq 600); do grep -q "$2" "$1" && return; sleep 0.1; done
                echo "no $2 in $1"; cat "$1"; exit 1
            }
            \(script)
            """
        let process = Process()
        process.executableURL = URL(fileURLWithPath: "/usr/bin/timeout")
        process.arguments = ["180", "bash", "-c", text]
        let log = URL(fileURLWithPath: scratch + "/log")
        try Data().write(to: log)
        let output = try FileHandle(forWritingTo: log)
        process.standardOutput = output
        process.standardError = output
        try process.run()
        process.waitUntilExit()
        return String(decoding: try Data(contentsOf: log), as: UTF8.self)
    }
}
