// Guests on their networks: data over TCP, each byte compared, through every kind of link.
import Foundation
import Glibc
import Images
import MachineTesting
import Testing

/// An initramfs whose init brings eth0 up with `addr=` and runs the commands of `run=`, plus signs for spaces.
private enum NetworkImage {
    static let program = guestProgram("throughput.c")

    private static let initScript = #"""
        #!/bin/sh
        export PATH=/bin
        mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev 2>/dev/null
        while read module; do insmod /modules/$module.ko 2>/dev/null; done </modules/order
        word() { tr ' ' '\n' </proc/cmdline | sed -n "s/^$1=//p" | tail -n 1; }
        ip link set lo up; ip addr add $(word addr) dev eth0; ip link set eth0 up
        sh -c "$(word run | tr '+' ' ')"
        echo GUEST DONE
        poweroff -f
        """#

    static func initramfs() throws -> [UInt8] {
        var archive = CPIOArchive()
        archive.addFile("init", text: initScript, mode: 0o755)
        archive.addFile("bin/throughput", contents: program ?? [], mode: 0o755)
        return try SelfCheckImage.initramfs(for: DebianKernel.fetched(.cloud)) + archive.serialized()
    }
}

@Suite(
    "Guests on networks", .serialized,
    .enabled("needs `make kernels`, the built command and a C compiler that links statically") {
        (try? DebianKernel.fetched(.cloud)) != nil && TerminalSession.roost != nil && NetworkImage.program != nil
    })
final class NetworkGuestTests {
    private let scratch = FileManager.default.temporaryDirectory.appendingPathComponent("roost-\(UUID())").path

    init() throws {
        try FileManager.default.createDirectory(
            atPath: scratch, withIntermediateDirectories: true, attributes: [.posixPermissions: 0o700])
        try Data(NetworkImage.initramfs()).write(to: URL(fileURLWithPath: scratch + "/initramfs"))
        let program = scratch + "/throughput"
        try Data(NetworkImage.program ?? []).write(to: URL(fileURLWithPath: program))
        chmod(program, 0o755)
    }

    deinit { try? FileManager.default.removeItem(atPath: scratch) }

    /// Runs a shell script with `guest ADDRESS COMMANDS OPTION…` and `until_there FILE TEXT` for three minutes at most;
    /// what it printed. What it leaves running ends with it.
    private func shell(_ script: String, prefix: [String] = []) throws -> String {
        let text = """
            cd \(scratch)
            export XDG_RUNTIME_DIR=\(scratch)
            trap 'kill -9 $(jobs -p) 2>/dev/null' EXIT
            guest() {
                address=$1 commands=$2; shift 2
                exec \(TerminalSession.roost ?? "roost") run --kernel \(try DebianKernel.fetched(.cloud).image) \\
                    --initrd initramfs --no-reboot --append "console=ttyS0 quiet addr=$address run=$commands" "$@" \\
                    </dev/null
            }
            until_there() {
                for i in $(seq 600); do grep -q "$2" "$1" && return; sleep 0.1; done
                echo "no $2 in $1"; cat "$1"; exit 1
            }
            \(script)
            """
        let process = Process()
        process.executableURL = URL(fileURLWithPath: "/usr/bin/timeout")
        process.arguments = ["180"] + prefix + ["bash", "-c", text]
        let log = scratch + "/log"
        try Data().write(to: URL(fileURLWithPath: log))
        let output = try FileHandle(forWritingTo: URL(fileURLWithPath: log))
        process.standardOutput = output
        process.standardError = output
        try process.run()
        process.waitUntilExit()
        return String(decoding: try Data(contentsOf: URL(fileURLWithPath: log)), as: UTF8.self)
    }

    /// The commands that send and receive.
    private func transfers(_ address: String, _ port: UInt16, megabytes: Int = 16) -> String {
        "'throughput+send+\(address)+\(port)+\(megabytes);throughput+receive+\(address)+\(port)+\(megabytes)'"
    }

    private func expectTransfers(_ output: String) {
        for way in ["send", "receive"] {
            #expect(output.contains("THROUGHPUT \(way) 16 MB"), "\(output.suffix(3000))")
        }
        #expect(!output.contains("FAIL"))
    }

    @Test("the user-mode network carries data both ways; a limited one too; a capture has it")
    func userMode() throws {
        let port = try freeLoopbackPort()
        let output = try shell(
            """
            ./throughput serve \(port) >server & until_there server serving
            (guest 10.0.2.15/24 \(transfers("10.0.2.2", port)) --net user,pcap=capture --net user,mac=02:00:00:00:00:09)
            (guest 10.0.2.15/24 'throughput+send+10.0.2.2+\(port)+1;cat+/sys/class/net/*/address' --net user,rate=100M)
            """)
        expectTransfers(output)
        #expect(output.contains("THROUGHPUT send 1 MB"), "\(output.suffix(3000))")
        let capture = [UInt8](try Data(contentsOf: URL(fileURLWithPath: scratch + "/capture")))
        func word(_ offset: Int) -> Int { (0..<4).reduce(0) { $0 | Int(capture[offset + $1]) << ($1 * 8) } }
        try #require(capture.count > 32 << 20 && word(0) == 0xA1B2_C3D4)
        var place = 24
        var packets = 0
        while place + 16 <= capture.count {
            place += 16 + word(place + 8)
            packets += 1
        }
        // Offloads let packets be long.
        #expect(place == capture.count && packets > 100 && packets < 20_000, "\(packets)")
    }

    @Test("two machines on a switch reach each other, and the address of one isn't the other's too")
    func virtualSwitch() throws {
        let output = try shell(
            """
            guest 10.9.0.1/24 throughput+serve+5000 --net switch=lab,mac=02:00:00:00:00:01 >server &
            until_there server serving
            (guest 10.9.0.3/24 true --net switch=lab,mac=02:00:00:00:00:01); echo status $?
            (guest 10.9.0.2/24 'ping+-c+2+10.9.0.1;'\(transfers("10.9.0.1", 5000)) --net switch=lab)
            (guest 10.9.0.2/24 'ping+-c+1+-W+1+10.9.0.1' --net switch=other)
            """)
        #expect(output.contains("give this one mac=") && output.contains("status 76"), "\(output.suffix(3000))")
        #expect(output.contains("2 packets received"), "\(output.suffix(3000))")
        #expect(output.contains(" 0 packets received"), "\(output.suffix(3000))")
        expectTransfers(output)
    }

    @Test(
        "a TAP interface carries data both ways",
        .enabled("needs root for a network namespace with a TAP interface") {
            getuid() == 0 && access("/dev/net/tun", R_OK | W_OK) == 0 && system("unshare -n true 2>/dev/null") == 0
                && system("unshare -n ip tuntap add t0 mode tap 2>/dev/null") == 0
        })
    func tap() throws {
        let output = try shell(
            """
            ip link set lo up; ip link add br0 type bridge && ip addr add 10.9.0.1/24 dev br0 && ip link set br0 up
            ./throughput serve 5000 >server & until_there server serving
            (guest 10.9.0.2/24 'ping+-c+2+10.9.0.1;'\(transfers("10.9.0.1", 5000)) --net tap,ifname=roost0,bridge=br0)
            """, prefix: ["unshare", "-n"])
        #expect(output.contains("2 packets received"), "\(output.suffix(3000))")
        expectTransfers(output)
    }

    @Test(
        "a card with two queues uses both on two processors, and a guest can give it another address",
        .enabled("needs root for a network namespace with a TAP interface") {
            getuid() == 0 && access("/dev/net/tun", R_OK | W_OK) == 0
                && system("unshare -n ip tuntap add t0 mode tap multi_queue 2>/dev/null") == 0
        })
    func severalQueues() throws {
        let transfer = transfers("10.9.0.1", 5000).filter { $0 != "'" }
        let commands = [
            "ip link set eth0 address 02:00:00:00:00:77", "ping -c 2 10.9.0.1", "taskset 1 \(transfer)",
            "taskset 2 \(transfer)", "grep virtio0 /proc/interrupts",
        ].joined(separator: ";").replacing(" ", with: "+")
        let output = try shell(
            """
            ip link set lo up; ip tuntap add roost0 mode tap multi_queue; ip addr add 10.9.0.1/24 dev roost0
            ./throughput serve 5000 >server & until_there server serving
            while sleep 0.2; do ip neigh show dev roost0; done >neighbors &
            (guest 10.9.0.2/24 '\(commands)' --net tap,ifname=roost0,queues=2 --cpus 2)
            sort -u neighbors
            """, prefix: ["unshare", "-n"])
        #expect(output.contains("2 packets received"), "\(output.suffix(3000))")
        expectTransfers(output)
        #expect(output.contains("lladdr 02:00:00:00:00:77"), "\(output.suffix(3000))")
        // Interrupts of the second pair, whichever processor took them.
        for name in ["virtio0-input.1", "virtio0-output.1"] {
            let line = output.split(whereSeparator: \.isNewline).first { $0.hasSuffix(name) }
            let counts = line?.split(separator: " ").dropFirst().prefix(2).compactMap { Int($0) } ?? []
            #expect(counts.reduce(0, +) > 0, "\(name): \(output.suffix(3000))")
        }
    }

    @Test("passt carries data both ways", .enabled("needs passt") { access("/usr/bin/passt", X_OK) == 0 })
    func passt() throws {
        let port = try freeLoopbackPort()
        // Its guests have the host's own address, so that the way to the host is by the gateway, whatever that is.
        let output = try shell(
            """
            ./throughput serve \(port) >server & until_there server serving
            ip link set lo up; ip link add d0 type bridge; ip addr add 10.7.0.2/24 dev d0; ip link set d0 up
            ip route add default via 10.7.0.1
            (guest 10.7.0.2/24 'ip+route+add+default+via+10.7.0.1;'\(transfers("10.7.0.1", port)) --net passt)
            """, prefix: getuid() == 0 ? ["unshare", "-n"] : ["unshare", "-rn"])
        expectTransfers(output)
        #expect(!output.contains("passt has ended"))
    }

    @Test(
        "two machines reach each other through a vhost-user back end, whoever of the two listens",
        .enabled("needs dpdk-testpmd (make setup)") { access("/usr/bin/dpdk-testpmd", X_OK) == 0 })
    func vhostUser() throws {
        let output = try shell(
            """
            guest 10.9.0.1/24 throughput+serve+5000 --net vhost-user=two,server >server &
            until_there server serving
            mkfifo input
            dpdk-testpmd --no-huge -m 128 --no-shconf --no-pci --no-telemetry -l 0,1 --vdev net_vhost0,iface=one \\
                --vdev net_vhost1,iface=two,client=1 -- --auto-start --disable-link-check --forward-mode=io \\
                --total-num-mbufs=4096 <>input >switch 2>&1 &
            until_there switch 'packet forwarding'
            (guest 10.9.0.2/24 'ping+-c+2+10.9.0.1;'\(transfers("10.9.0.1", 5000)) --net vhost-user=one,pcap=capture)
            (guest 10.9.0.2/24 true --net vhost-user=nobody); echo status $?
            """)
        #expect(output.contains("2 packets received"), "\(output.suffix(3000))")
        expectTransfers(output)
        #expect(output.contains("start the vhost-user back end first") && output.contains("status 76"))
        let capture = FileManager.default.contents(atPath: scratch + "/capture")?.count ?? 0
        #expect(capture > 32 << 20)
    }

    @Test("misspelled networks are refused with what is wrong with them")
    func misspelled() throws {
        let kinds = "there are user, passt, tap, switch=NAME"
        let words = [
            ("usr", kinds), ("switch=", kinds), ("switch", kinds), ("vhost-user", kinds), ("vhost-user=", kinds),
            ("user,", "no '' here; there are forward=, mac=, pcap=, rate= and burst="),
            ("user,mac=1", "mac=1: an address such as"), ("user,mac=01:00:00:00:00:00", "not one of a group"),
            ("user,mac=02:00:00:00:00:01,mac=2", "mac is there twice"), ("user,pcap=", "pcap wants a value"),
            ("user,burst=1K", "burst belongs to a rate"), ("user,rate=0", "rate=0: bits a second"),
            ("user,rate=10X", "such as 10M"), ("user,rate=1M,burst=0", "burst=0: a size"),
            ("user,ifname=a", "no 'ifname'"), ("user,queues=2", "no 'queues'"), ("user,server", "no 'server'"),
            ("user,forward=tcp:1", "forward=tcp:1: tcp:HOSTPORT:GUESTPORT"),
            ("tap,queues=0", "queues=0: a number from 1 to 8"), ("tap,queues=9", "a number from 1 to 8"),
            ("tap,queues=1,queues=2", "queues is there twice"), ("tap,forward=tcp:1:2", "no 'forward'"),
            ("tap,server", "no 'server'"), ("bridge=br0", "a bridge is tap,bridge=NAME"),
            ("vhost-user=a,server,server", "server is there twice"),
            ("vhost-user=a,server=1", "server takes no value"),
        ]
        for (word, wanted) in words {
            let run = try RoostRun(["run", "--kernel", "/dev/null", "--net", word])
            #expect(run.status == 64 && run.error.contains("'--net <net>': "), "\(word): \(run.status) \(run.error)")
            #expect(run.error.contains(wanted), "\(word): \(run.error)")
        }
        let both = try RoostRun(["run", "--kernel", "/dev/null", "--net", "none", "--net", "user"])
        #expect(both.status == 64 && both.error.contains("stands alone"), "\(both.error)")
        let bad = try RoostRun(["run", "--kernel", try DebianKernel.fetched(.cloud).image, "--net", "switch=../x"])
        #expect(bad.status == 76 && bad.error.contains("../x"), "\(bad.status) \(bad.error)")
    }
}
