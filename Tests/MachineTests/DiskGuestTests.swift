// A stock Debian kernel's own drivers on the SCSI controller, disks that come and go while it runs, a drive whose medium
// changes. The machine runs in this process; the guest's console is a file.
import Foundation
import Images
import Machine
import Storage
import Synchronization
import Testing

/// A machine that runs on a thread of its own, and what its guest prints.
final class RunningGuest: Sendable {
    let machine: Machine
    private let console: String
    private let outcome = Mutex<MachineOutcome?>(nil)

    /// Starts a kernel with an initramfs whose init runs a script after loading modules.
    init(_ script: String, modules: [String], in folder: String, _ change: (inout MachineConfiguration) -> Void) throws
    {
        let kernel = try DebianKernel.fetched(.cloud)
        var archive = CPIOArchive()
        archive.addFile("init", text: Self.start + script + "\necho GUEST DONE\npoweroff -f\n", mode: 0o755)
        let image = try SelfCheckImage.initramfs(for: kernel, with: modules) + archive.serialized()
        try Data(image).write(to: URL(fileURLWithPath: folder + "/initramfs"))
        console = folder + "/console"
        var configuration = MachineConfiguration(
            boot: BootSource(kernel: kernel.image, initrd: folder + "/initramfs", commandLine: "console=ttyS0 quiet"))
        configuration.engine = .translator
        configuration.networks = []
        configuration.rebootsOnReset = false
        configuration.console = .file(console)
        change(&configuration)
        machine = try Machine(configuration)
        Thread.detachNewThread { [self] in
            let result = machine.run()
            outcome.withLock { $0 = result }
        }
    }

    private static let start = #"""
        #!/bin/sh
        export PATH=/bin
        mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev 2>/dev/null
        mount -t tmpfs tmp /tmp
        while read module; do insmod /modules/$module.ko 2>/dev/null; done </modules/order
        # until_true COMMAND…: asks every tenth of a second, a minute long.
        until_true() { n=0; until "$@" 2>/dev/null; do n=$((n + 1)); [ $n -lt 600 ] || { echo "FAIL $*"; return 1; }; sleep 0.1; done; }
        no() { ! "$@"; }
        sum() { sha256sum | cut -c 1-16; }

        """#

    /// All that was printed so far.
    var output: String { (try? String(contentsOfFile: console, encoding: .utf8)) ?? "" }

    /// Waits until the guest has printed something.
    func saw(_ text: String, seconds: Double = 120) -> Bool {
        let deadline = Date().addingTimeInterval(seconds)
        while Date() < deadline {
            if output.contains(text) { return true }
            if let outcome = outcome.withLock({ $0 }) { return outcome == .poweredOff && output.contains(text) }
            Thread.sleep(forTimeInterval: 0.05)
        }
        return false
    }

    /// How it ended, after a minute at most.
    func ended() -> MachineOutcome? {
        for _ in 0..<1200 {
            if let outcome = outcome.withLock({ $0 }) { return outcome }
            Thread.sleep(forTimeInterval: 0.05)
        }
        return nil
    }
}

/// Runs a tool of the host, which must succeed; what it printed.
@discardableResult
func tool(_ name: String, _ arguments: String...) throws -> String {
    let process = Process()
    process.executableURL = URL(fileURLWithPath: "/usr/bin/env")
    process.arguments = [name] + arguments
    let pipe = Pipe()
    process.standardOutput = pipe
    process.standardError = pipe
    try process.run()
    let output = String(decoding: pipe.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
    process.waitUntilExit()
    #expect(process.terminationStatus == 0, "\(name) \(arguments): \(output)")
    return output
}

@Suite(
    "Disks in guests", .serialized,
    .enabled("needs `make kernels`") { (try? DebianKernel.fetched(.cloud)) != nil })
final class DiskGuestTests {
    fileprivate let folder = FileManager.default.temporaryDirectory.appendingPathComponent("roost-disks-\(UUID())").path
    fileprivate static let modules = ["virtio_scsi", "sd_mod", "sr_mod", "isofs"]

    init() throws { try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: true) }

    deinit { try? FileManager.default.removeItem(atPath: folder) }

    fileprivate func raw(_ name: String, _ megabytes: Int) throws -> String {
        try Disk.createRaw(folder + "/" + name, size: UInt64(megabytes) << 20)
        return folder + "/" + name
    }

    /// An ISO 9660 image with one file.
    private func iso(_ name: String, _ text: String) throws -> String {
        let source = folder + "/" + name + ".d"
        try FileManager.default.createDirectory(atPath: source, withIntermediateDirectories: true)
        try Data(text.utf8).write(to: URL(fileURLWithPath: source + "/hello.txt"))
        try tool("xorriso", "-as", "mkisofs", "-quiet", "-V", "LABEL", "-o", folder + "/" + name, source)
        return folder + "/" + name
    }

    private func sum(_ path: String, _ range: Range<Int>) throws -> String {
        let handle = try FileHandle(forReadingFrom: URL(fileURLWithPath: path))
        try handle.seek(toOffset: UInt64(range.lowerBound))
        let part = folder + "/part"
        try (handle.read(upToCount: range.count) ?? Data()).write(to: URL(fileURLWithPath: part))
        return String(try tool("sha256sum", part).prefix(16))
    }

    @Test("sd drives a disk: data, flushes, discards, zeroes, a file system")
    func disk() throws {
        let path = try raw("a.raw", 64)
        let guest = try RunningGuest(
            #"""
            until_true test -b /dev/sda
            echo "ID $(cat /sys/block/sda/device/vendor) $(cat /sys/block/sda/device/model) $(cat /sys/block/sda/size)"
            echo "CACHE $(cat /sys/class/scsi_disk/*/cache_type), $(cat /sys/class/scsi_disk/*/provisioning_mode)"
            echo "LIMITS $(cat /sys/block/sda/queue/discard_max_bytes) $(cat /sys/block/sda/queue/write_zeroes_max_bytes)"
            dd if=/dev/urandom of=/tmp/data bs=1M count=8 2>/dev/null; echo "DATA $(sum </tmp/data)"
            dd if=/tmp/data of=/dev/sda bs=1M seek=4 conv=fsync 2>/dev/null
            echo 3 >/proc/sys/vm/drop_caches
            echo "READ $(dd if=/dev/sda bs=1M skip=4 count=8 2>/dev/null | sum)"
            blkdiscard -o 4194304 -l 1048576 /dev/sda && echo "DISCARDED"
            mke2fs -q /dev/sda 32768 >/dev/null && mount -t ext4 /dev/sda /mnt && cp /bin/busybox /mnt/x && umount /mnt
            echo 3 >/proc/sys/vm/drop_caches
            mount -t ext4 -o ro /dev/sda /mnt && cmp /bin/busybox /mnt/x && echo "SAME"; umount /mnt
            dd if=/tmp/data of=/dev/sda bs=1M seek=48 conv=fsync 2>/dev/null
            """#, modules: Self.modules, in: folder
        ) { $0.disks = [DiskConfiguration(path: path, bus: .scsi)] }
        #expect(guest.ended() == .poweredOff)
        let output = guest.output
        for text in [
            "ID Roost    Disk             131072", "CACHE write back, unmap", "LIMITS 2147483648 2147483648",
            "DISCARDED", "SAME",
        ] { #expect(output.contains(text), "\(text): \(output)") }
        let data = try #require(output.split(separator: "DATA ").last?.prefix(16))
        #expect(output.contains("READ \(data)"))
        #expect(try sum(path, 48 << 20..<56 << 20) == data)
    }

    @Test("a disk comes and goes while the guest runs")
    func hotPlug() throws {
        let (first, second) = (try raw("a.raw", 16), try raw("b.raw", 16))
        let guest = try RunningGuest(
            #"""
            echo READY
            until_true test -b /dev/sda
            dd if=/dev/urandom of=/tmp/data bs=1M count=2 2>/dev/null; echo "DATA $(sum </tmp/data)"
            dd if=/tmp/data of=/dev/sda bs=1M conv=fsync 2>/dev/null
            echo WRITTEN
            until_true no test -b /dev/sda && echo GONE
            until_true test -b /dev/sda && echo "AGAIN $(dd if=/dev/sda bs=1M count=2 2>/dev/null | sum)"
            """#, modules: Self.modules, in: folder
        ) { _ in }
        try #require(guest.saw("READY"), "\(guest.output)")
        let disk = DiskConfiguration(path: first, bus: .scsi)
        #expect(try guest.machine.attachDisk(disk) == "disk0")
        #expect(throws: MachineError.self) { try guest.machine.attachDisk(disk) }
        try #require(guest.saw("WRITTEN"), "\(guest.output)")
        #expect(guest.machine.disks.map(\.name) == ["disk0"])
        try guest.machine.detachDisk("disk0")
        let data = try #require(guest.output.split(separator: "DATA ").last?.prefix(16))
        #expect(try sum(first, 0..<2 << 20) == data)
        #expect(guest.machine.disks.isEmpty)
        #expect { try guest.machine.detachDisk("disk0") } throws: { ($0 as? MachineError)?.code == .noSuchDisk }
        try #require(guest.saw("GONE"), "\(guest.output)")
        #expect(try guest.machine.attachDisk(DiskConfiguration(path: second, bus: .scsi)) == "disk0")
        #expect(guest.ended() == .poweredOff)
        #expect(guest.output.contains("AGAIN 5647f05ec1895894"), "\(guest.output)")
    }

    @Test("sr drives a drive: the guest ejects, the host changes the medium, a mounted one is locked")
    func drive() throws {
        let (first, second) = (try iso("a.iso", "first"), try iso("b.iso", "second"))
        let guest = try RunningGuest(
            #"""
            until_true test -b /dev/sr0
            mount -t iso9660 -o ro /dev/sr0 /mnt && echo "FILE $(cat /mnt/hello.txt) $(cat /sys/block/sr0/size)"
            echo MOUNTED; sleep 1
            echo 1 >/proc/sys/dev/cdrom/autoeject; umount /mnt; echo EJECTED; echo 0 >/proc/sys/dev/cdrom/autoeject
            until_true mount -t iso9660 -o ro /dev/sr0 /mnt && echo "FILE $(cat /mnt/hello.txt)"
            cat /proc/sys/dev/cdrom/info | grep -E 'Can (lock|close|open)' | tr -s '\t\n' ' '
            """#, modules: Self.modules, in: folder
        ) { $0.drives = [first, nil] }
        try #require(guest.saw("MOUNTED"), "\(guest.output)")
        #expect(guest.machine.disks.first?.isLocked == true)
        #expect { try guest.machine.ejectMedium(from: "cdrom0") } throws: {
            ($0 as? MachineError)?.code == .mediumLocked
        }
        try #require(guest.saw("EJECTED"), "\(guest.output)")
        let status = try #require(guest.machine.disks.first)
        // The guest tries to mount it again at once, which closes the tray.
        #expect(status.path == nil && !status.isLocked)
        // The host may do with the image what it likes again.
        _ = try Disk.open(first)
        try guest.machine.insertMedium(second, into: "cdrom0")
        #expect(throws: MachineError.self) { try guest.machine.insertMedium(first, into: "cdrom0") }
        #expect(guest.machine.disks.map(\.path) == [second, nil])
        #expect(guest.ended() == .poweredOff)
        #expect(guest.output.contains("FILE first"), "\(guest.output)")
        #expect(guest.output.contains("FILE second"), "\(guest.output)")
        #expect(guest.output.contains("Can open tray: 1 1"), "\(guest.output)")
    }
}

extension DiskGuestTests {
    @Test("what the guest discards takes no room on the host", arguments: [DiskBus.virtio, .scsi])
    func discard(bus: DiskBus) throws {
        let path = try raw("a.raw", 64)
        let guest = try RunningGuest(
            #"""
            disk=/dev/vda; until_true test -b /dev/vda -o -b /dev/sda; [ -b $disk ] || disk=/dev/sda
            dd if=/dev/urandom of=$disk bs=1M count=32 conv=fsync 2>/dev/null
            blkdiscard -o 0 -l 16777216 $disk && echo DISCARDED; sync
            """#, modules: Self.modules, in: folder
        ) { $0.disks = [DiskConfiguration(path: path, bus: bus)] }
        #expect(guest.ended() == .poweredOff)
        #expect(guest.output.contains("DISCARDED"), "\(guest.output)")
        let taken =
            try #require(try tool("stat", "-c", "%b", path).split(separator: "\n").first.flatMap { Int($0) }) * 512
        #expect(16 << 20...18 << 20 ~= taken, "\(taken)")
    }

    @Test(
        "several processors use a disk through a queue each", arguments: DiskTransfers.allCases,
        [CacheMode.writeback, .writethrough, .none])
    func queues(transfers: DiskTransfers, cache: CacheMode) throws {
        let path = try raw("a.raw", 64)
        let guest = try RunningGuest(
            #"""
            until_true test -b /dev/vda
            echo "QUEUES $(ls /sys/block/vda/mq | wc -l) $(cat /sys/block/vda/queue/write_cache)"
            for n in 0 1 2 3; do
                ( dd if=/dev/urandom of=/tmp/$n bs=1M count=4 2>/dev/null
                  taskset $((1 << n % 2)) dd if=/tmp/$n of=/dev/vda bs=4k seek=$((n * 1024)) conv=fsync 2>/dev/null ) &
            done; wait
            echo 3 >/proc/sys/vm/drop_caches
            for n in 0 1 2 3; do dd if=/dev/vda bs=1M skip=$((n * 4)) count=4 2>/dev/null | cmp - /tmp/$n && echo "SAME $n"; done
            """#, modules: Self.modules, in: folder
        ) { configuration in
            configuration.processors = 2
            configuration.disks = [DiskConfiguration(path: path, options: options(cache))]
            configuration.disks[0].transfers = transfers
        }
        #expect(guest.ended() == .poweredOff)
        let mode = cache == .writethrough ? "write through" : "write back"
        #expect(guest.output.contains("QUEUES 2 \(mode)"), "\(guest.output)")
        for n in 0..<4 { #expect(guest.output.contains("SAME \(n)"), "\(guest.output)") }
    }

    private func options(_ cache: CacheMode) -> DiskOptions {
        var options = DiskOptions(format: .raw)
        options.cache = cache
        return options
    }

    /// Reads and writes past the guest's cache, many at once, while the host stops and continues the machine. What was
    /// read is compared with the host's own sums, what was written with what was read.
    @Test(
        "many transfers at once bring the right bytes, also if the machine is paused meanwhile",
        arguments: DiskTransfers.allCases, [CacheMode.writeback, .none])
    func paused(transfers: DiskTransfers, cache: CacheMode) throws {
        let path = try raw("a.raw", 16)
        var random = SystemRandomNumberGenerator()
        let content = (0..<2 << 20).flatMap { _ in withUnsafeBytes(of: random.next() as UInt64) { Array($0) } }
        try Data(content).write(to: URL(fileURLWithPath: path))
        let target = try raw("b.raw", 16)
        let guest = try RunningGuest(
            #"""
            until_true test -b /dev/vdb; echo BEGIN
            for n in 0 1 2 3 4 5 6 7; do
                ( for m in 0 1 2 3; do
                      dd if=/dev/vda of=/dev/vdb bs=4k skip=$((n * 512 + m * 128)) seek=$((n * 512 + m * 128)) count=128 \
                          iflag=direct oflag=direct conv=notrunc 2>/dev/null
                      dd if=/dev/vda bs=64k skip=$((n * 32)) count=32 iflag=direct 2>/dev/null | sum >/tmp/$n.$m
                  done ) &
            done; wait; sync
            for n in 0 1 2 3 4 5 6 7; do echo "SUMS $n" $(cat /tmp/$n.?); done
            """#, modules: Self.modules, in: folder
        ) { configuration in
            configuration.processors = 2
            configuration.disks = [path, target].map { DiskConfiguration(path: $0, options: options(cache)) }
            for index in 0..<2 { configuration.disks[index].transfers = transfers }
        }
        #expect(guest.saw("BEGIN"))
        for _ in 0..<10 {
            try guest.machine.pause()
            try guest.machine.resume()
            Thread.sleep(forTimeInterval: 0.02)
        }
        #expect(guest.ended() == .poweredOff)
        for n in 0..<8 {
            let sum = try sum(path, n * 2 << 20..<(n + 1) * 2 << 20)
            #expect(guest.output.contains("SUMS \(n) \(sum) \(sum) \(sum) \(sum)"), "\(guest.output)")
        }
        #expect(try Data(contentsOf: URL(fileURLWithPath: target)) == Data(content))
    }
}
