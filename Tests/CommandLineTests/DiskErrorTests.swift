// A host without room: what the guest is told, or that it waits and loses nothing.
import Foundation
import Glibc
import Images
import Testing

@Suite(
    "A host without room", .serialized,
    .enabled("needs `make kernels` and the built command") {
        (try? DebianKernel.fetched(.cloud)) != nil && TerminalSession.roost != nil
    })
final class DiskErrorTests {
    private let folder = FileManager.default.temporaryDirectory.appendingPathComponent("roost-room-\(UUID())").path

    init() throws { try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: true) }

    deinit { try? FileManager.default.removeItem(atPath: folder) }

    private static let initScript = #"""
        #!/bin/sh
        export PATH=/bin
        mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev 2>/dev/null
        mount -t tmpfs tmp /tmp
        while read module; do insmod /modules/$module.ko 2>/dev/null; done </modules/order
        echo 1 >/proc/sys/kernel/printk
        disk=/dev/vda; [ -b $disk ] || disk=/dev/sda
        for n in $(seq 50); do [ -b $disk ] && break; sleep 0.1; done
        dd if=/dev/urandom of=/tmp/data bs=1M count=16 2>/dev/null
        echo READY; read line
        if grep -qw told /proc/cmdline; then
            dd if=/tmp/data of=$disk bs=1M conv=fsync 2>/dev/null & sleep 3
            dmesg | grep -o -m 1 'critical space allocation error'; poweroff -f
        fi
        dd if=/tmp/data of=$disk bs=1M conv=fsync 2>/dev/null
        echo 3 >/proc/sys/vm/drop_caches
        cmp /tmp/data $disk -n 16777216 2>/dev/null && echo SAME || echo DIFFERENT
        echo "SUM $(sha256sum </tmp/data)"
        poweroff -f
        """#

    private func prlimit(_ process: pid_t, _ limit: String) throws {
        let run = try Process.run(
            URL(fileURLWithPath: "/usr/bin/prlimit"), arguments: ["--pid", "\(process)", "--fsize=\(limit)"])
        run.waitUntilExit()
        try #require(run.terminationStatus == 0)
    }

    private func start(_ options: String, _ format: String, _ words: String = "") throws -> TerminalSession {
        let kernel = try DebianKernel.fetched(.cloud)
        var archive = CPIOArchive()
        archive.addFile("init", text: Self.initScript, mode: 0o755)
        let image = try SelfCheckImage.initramfs(for: kernel, with: ["virtio_scsi", "sd_mod"])
        try Data(image + archive.serialized()).write(to: URL(fileURLWithPath: folder + "/initramfs"))
        _ = try RoostRun(["disk", "create", "-f", format, folder + "/disk", "64M"])
        return try TerminalSession([
            "run", "--kernel", kernel.image, "--initrd", folder + "/initramfs", "--net", "none", "--no-reboot",
            "--engine", "translator", "--disk", folder + "/disk," + options, "--append", "console=ttyS0 quiet " + words,
        ])
    }

    @Test(
        "the guest waits until there is room",
        arguments: [
            ("aio=threads", "raw"), ("aio=io_uring,cache=none", "raw"), ("bus=scsi", "qcow2"),
        ])
    func pause(options: String, format: String) throws {
        let session = try start(options + ",on-error=pause", format)
        try #require(session.expect("READY", seconds: 60) != nil, "\(session.transcript)")
        try prlimit(session.child, "8388608:unlimited")
        session.type("")
        #expect(session.expect("/disk: File too large; the guest waits", seconds: 60) != nil, "\(session.transcript)")
        try prlimit(session.child, "unlimited:unlimited")
        #expect(session.expect("SAME", seconds: 60) != nil, "\(session.transcript)")
        let sum = try #require(session.expect("  -", seconds: 20)?.split(separator: " ").last)
        #expect(session.wait(seconds: 30) == 0)
        #expect(session.transcript.components(separatedBy: "the guest waits").count == 2)
        _ = try RoostRun(["disk", "convert", folder + "/disk", folder + "/raw", "-f", "raw"])
        let head = try #require(
            try FileHandle(forReadingFrom: URL(fileURLWithPath: folder + "/raw")).read(upToCount: 16 << 20))
        try head.write(to: URL(fileURLWithPath: folder + "/head"))
        let pipe = Pipe()
        let process = Process()
        process.executableURL = URL(fileURLWithPath: "/usr/bin/sha256sum")
        process.arguments = [folder + "/head"]
        process.standardOutput = pipe
        try process.run()
        let text = String(decoding: pipe.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
        #expect(text.hasPrefix(sum), "\(text) \(sum)")
    }

    @Test("the guest gets an error, which SCSI can name")
    func report() throws {
        let session = try start("bus=scsi", "raw", "told")
        try #require(session.expect("READY", seconds: 60) != nil, "\(session.transcript)")
        try prlimit(session.child, "8388608:unlimited")
        session.type("")
        #expect(session.expect("critical space allocation error", seconds: 60) != nil, "\(session.transcript)")
        #expect(session.wait(seconds: 30) == 0)
    }
}
