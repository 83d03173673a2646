// Processors that come and go while Debian's kernel runs.
import Foundation
import Glibc
import Images
import Machine
import Testing

@Suite(
    "Processors that come and go", .serialized, .enabled("needs `make kernels` and gcc") { ScriptGuest.isPossible })
struct ProcessorPlugTests {
    /// Tells of the processors that it has whenever that changes, brings up what is offline, and has each do some work.
    private static let watch = """
        while true; do
        for f in /sys/devices/system/cpu/cpu*/online; do if grep -q 0 $f; then echo 1 >$f; fi; done;
        now=$(cat /sys/devices/system/cpu/online);
        if test "$now" != "$old"; then old=$now; echo ONLINE $now;
        for n in 0 1 2 3; do taskset -c $n sh -c 'n=0; while test $n -lt 20000; do n=$((n*1+1)); done' && echo WORKED $n; done;
        echo DONE $now; fi; sleep 0.2; done
        """.split(separator: "\n").joined(separator: " ").replacingOccurrences(of: "+1", with: "- -1")

    /// A machine that runs on a thread, and what its console shows.
    private final class Running: @unchecked Sendable {
        let machine: Machine
        private let path: String
        private let finished = DispatchSemaphore(value: 0)

        init(_ configuration: MachineConfiguration, _ folder: String) throws {
            path = folder + "/console-\(UUID())"
            var configuration = configuration
            configuration.console = .file(path)
            machine = try Machine(configuration)
            Thread.detachNewThread { [self] in
                _ = machine.run()
                finished.signal()
            }
        }

        var output: String {
            FileManager.default.contents(atPath: path).map { String(decoding: $0, as: UTF8.self) } ?? ""
        }

        func sees(_ text: String, seconds: Int = 60) -> Bool {
            for _ in 0..<seconds * 20 where !output.contains(text + "\r\n") { usleep(50_000) }
            return output.contains(text + "\r\n")
        }

        func end() {
            machine.end()
            finished.wait()
        }
    }

    @Test("are brought up, do work, go again, come again, and outlive a snapshot", .timeLimit(.minutes(4)))
    func plug() throws {
        let guest = try ScriptGuest(modules: [])
        var configuration = guest.configuration(run: Self.watch)
        configuration.memory = 256 << 20
        configuration.maximumProcessors = 4
        let running = try Running(configuration, guest.scratch)
        #expect(running.sees("DONE 0"), "\(running.output.suffix(3000))")
        #expect(running.output.contains("WORKED 0") && !running.output.contains("WORKED 1"))
        #expect(throws: MachineError.self) { try running.machine.setProcessors(5) }
        try running.machine.setProcessors(3)
        #expect(running.machine.processorCount == 3)
        #expect(running.sees("DONE 0-2"), "\(running.output.suffix(3000))")
        #expect(running.output.contains("WORKED 2"))
        try running.machine.setProcessors(2)
        #expect(running.sees("DONE 0-1"), "\(running.output.suffix(3000))")
        for _ in 0..<200 where running.machine.processorCount != 2 { usleep(50_000) }
        #expect(running.machine.processorCount == 2)
        try running.machine.setProcessors(4)
        #expect(running.sees("DONE 0-3"), "\(running.output.suffix(3000))")
        #expect(running.output.contains("WORKED 3"))
        try running.machine.saveSnapshot(to: guest.scratch + "/snapshot")
        running.end()
        let words = ["BUG:", "lockup", "stall", "Call Trace", "TSC unstable", "ACPI Error"]
        #expect(!words.contains { running.output.contains($0) }, "\(running.output.suffix(5000))")

        configuration.snapshot = try Snapshot(guest.scratch + "/snapshot")
        let copy = try Running(configuration, guest.scratch)
        #expect(copy.machine.processorCount == 4)
        for _ in 0..<200 where copy.machine.state != .running { usleep(10_000) }
        try copy.machine.setProcessors(3)
        #expect(copy.sees("DONE 0-2"), "\(copy.output.suffix(3000))")
        #expect(copy.output.contains("WORKED 2"))
        copy.end()
    }

    @Test("by the command, on a machine that is kept; what can't be is refused")
    func command() throws {
        let home = try MachineHome()
        let echo = try home.kernel(KeptMachineTests.echo)
        try home.start("heron", echo, "--cpus", "1,max=3")
        try home.succeed("set", "heron", "--cpus", "3")
        #expect(try home.succeed("info", "heron", "--json").contains("\"processors\" : 3"))
        try home.fail("set", "heron", "--cpus", "4", status: 94, "1 to 3")
        try home.fail("set", "heron", "--cpus", "2,max=8", status: 94, "runs")
        try home.succeed("kill", "heron")
        try home.succeed("set", "heron", "--cpus", "2,max=8")
        for word in ["2,max=1", "2,3", "x"] {
            let run = try RoostRun(["run", "--kernel", echo, "--cpus", word])
            #expect(run.status == 64 && run.error.contains("--cpus"), "\(word): \(run.error)")
        }
    }
}
