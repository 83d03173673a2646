// Memory that comes and goes while Debian's kernel runs, with its own driver, and is given back to the host.
import Foundation
import Glibc
import Images
import Testing

@Suite("Memory that comes and goes", .serialized, .enabled("needs `make kernels` and gcc") { ScriptGuest.isPossible })
struct MemoryPlugTests {
    /// Tells how many MiB it has, and fills 300 MB once there is room.
    private static let watch = """
        mount -t tmpfs -o size=400m t /mnt;
        while true; do set -- $(grep MemTotal /proc/meminfo); m=$(($2/1024)); echo TOTAL $m;
        if test $m -gt 600 -a ! -e /tmp/done; then
        head -c 300000000 /dev/zero | tr '\\0' x >/mnt/f; touch /tmp/done; echo FILLED; sleep 4; md5sum /mnt/f; rm /mnt/f; fi;
        sleep 0.3; done
        """.split(separator: "\n").joined(separator: " ")

    private func logs(_ home: MachineHome) -> String { (try? home.succeed("logs", "heron")) ?? "" }

    /// The MiB that the guest told of last.
    private func total(_ home: MachineHome) -> Int? {
        logs(home).split(whereSeparator: \.isNewline).last { $0.hasPrefix("TOTAL ") }
            .flatMap { Int($0.dropFirst(6)) }
    }

    /// MiB of the guest's memory that the host holds.
    private func resident(_ home: MachineHome) -> Int {
        let run = (try? home.info("heron"))?["latestRun"] as? [String: Any]
        let status = try? String(contentsOfFile: "/proc/\(run?["process"] ?? 0)/status", encoding: .utf8)
        let line = (status ?? "").split(separator: "\n").first { $0.hasPrefix("RssShmem:") }
        return line.flatMap { Int($0.filter(\.isNumber)) }.map { $0 / 1024 } ?? 0
    }

    @Test("can be used, outlives a restore, and is given back", .timeLimit(.minutes(4)))
    func growAndShrink() throws {
        let home = try MachineHome()
        let guest = try ScriptGuest(modules: ["virtio_mem"])
        var options = guest.options(run: Self.watch)
        options[options.count - 1] = "memhp_default_state=online_movable " + options[options.count - 1]
        let run = try RoostRun(
            options + ["-d", "--name", "heron", "--engine", "translator", "--memory", "256M,max=1G"],
            environment: home.environment)
        try #require(run.status == 0, "\(run.error)")
        #expect(MachineHome.eventually(60) { total(home) != nil })
        let little = try #require(total(home))
        #expect(180...256 ~= little)

        try home.succeed("set", "heron", "--memory", "768M")
        let grew = MachineHome.eventually(60) { total(home) == little + 512 }
        #expect(grew, "\(logs(home).suffix(2000))")
        #expect(MachineHome.eventually(60) { logs(home).contains("FILLED") })
        let filled = resident(home)
        #expect(filled > 300)
        try home.succeed("snapshot", "take", "heron", "full")
        try home.succeed("restore", "--yes", "heron", "full")
        // As `head -c 300000000 /dev/zero | tr '\0' x | md5sum` says.
        let sum = MachineHome.eventually(60) {
            logs(home).contains("c85a87bba3e6c37dfd7e639e886610b3  /mnt/f")
        }
        #expect(sum, "\(logs(home).suffix(2000))")

        try home.succeed("set", "heron", "--memory", "256M")
        let shrank = MachineHome.eventually(60) { total(home) == little }
        #expect(shrank, "\(logs(home).suffix(2000))")
        let isBack = MachineHome.eventually(20) { resident(home) < filled - 250 }
        #expect(isBack, "\(resident(home)) of \(filled) MiB held")
        for (size, words) in [
            ("2G", "256 MiB to 1024 MiB"), ("128M", "256 MiB to 1024 MiB"), ("257M", "steps of 2 MiB"),
        ] {
            try home.fail("set", "heron", "--memory", size, status: 94, words)
        }
        try home.fail("set", "heron", "--memory", "512M,max=2G", status: 94, "runs")
        try home.succeed("kill", "heron")
    }

    @Test("sizes that can't be are refused")
    func refused() throws {
        for word in ["512M,max=256M", "512M,2G", "512M,max=", "x,max=1G"] {
            let run = try RoostRun(["run", "--kernel", "/dev/null", "--memory", word])
            #expect(run.status == 64 && run.error.contains("--memory"), "\(word): \(run.error)")
        }
        let run = try RoostRun(["run", "--kernel", "/dev/null", "--memory", "512M,max=513M"])
        #expect(run.status == 78 && run.error.contains("multiple of 2 MiB"), "\(run.status) \(run.error)")
        let home = try MachineHome()
        try home.start("heron", try home.kernel(KeptMachineTests.echo))
        try home.fail("set", "heron", "--memory", "64M", status: 94, "stays as it is")
    }
}
