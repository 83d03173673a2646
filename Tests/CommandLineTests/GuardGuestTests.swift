// What looks after a guest, with Debian's own drivers: pvpanic, the i6300ESB watchdog, the generation ID.
import Foundation
import Glibc
import Images
import Machine
import Synchronization
import Testing

@Suite("What looks after a guest", .serialized, .enabled("needs `make kernels` and gcc") { ScriptGuest.isPossible })
struct GuardGuestTests {
    private let crash = "echo 1 >/proc/sys/kernel/panic_on_oops; echo c >/proc/sysrq-trigger"

    @Test("tells of a panic, and ends, starts again or goes on as is wanted")
    func panic() throws {
        let guest = try ScriptGuest(modules: ["pvpanic_pci"])
        let told = "kernel has panicked"
        for (action, status) in [("exit-failure", 96), ("reset", 0), ("poweroff", 0)] as [(String, Int32)] {
            let run = try RoostRun(guest.options(run: crash) + ["--on-panic", action])
            #expect(run.status == status && run.error.contains(told), "\(action): \(run.status) \(run.error)")
        }
        // The kernel itself starts again after a second: --no-reboot makes that the end.
        let none = try RoostRun(guest.options(run: "echo 1 >/proc/sys/kernel/panic; " + crash))
        #expect(none.status == 0 && none.error.contains(told), "\(none.status) \(none.error)")
        let other = try RoostRun(["run", "--kernel", "/dev/null", "--on-panic", "report"])
        #expect(other.status == 64 && other.error.contains("exit-failure"), "\(other.error)")
    }

    @Test("a panic or a watchdog pauses the machine, which can go on", .timeLimit(.minutes(3)))
    func pauses() throws {
        let guest = try ScriptGuest(.standard, modules: ["pvpanic_pci", "i6300esb"])
        for (action, commands) in [
            ("panicked", "echo 1 >/proc/sys/kernel/panic; " + crash),
            ("watchdog", "watchdog -T 2 -t 1000 /dev/watchdog; sleep 8"),
        ] {
            var configuration = guest.configuration(run: commands)
            configuration.onPanic = .pause
            configuration.watchdog = .pause
            let machine = try Machine(configuration)
            let paused = DispatchSemaphore(value: 0)
            let finished = DispatchSemaphore(value: 0)
            let events = Mutex<[String]>([])
            machine.onEvent { event in
                events.withLock { $0.append(event.rawValue) }
                if event == .paused { paused.signal() }
            }
            Thread.detachNewThread {
                _ = machine.run()
                finished.signal()
            }
            #expect(paused.wait(timeout: .now() + 60) == .success)
            #expect(machine.isPaused && events.withLock { $0 } == ["started", action, "paused"])
            try machine.resume()
            #expect(finished.wait(timeout: .now() + 60) == .success)
        }
    }

    @Test("a watchdog that isn't fed ends the guest, one that is doesn't", .timeLimit(.minutes(3)))
    func watchdog() throws {
        let guest = try ScriptGuest(.standard, modules: ["i6300esb"])
        let starved = try RoostRun(
            guest.options(run: "watchdog -T 2 -t 1000 /dev/watchdog; sleep 60; echo SURVIVED")
                + ["--watchdog", "poweroff"])
        #expect(
            starved.error.contains("watchdog has expired: poweroff"), "\(starved.error) \(starved.output.suffix(500))")
        #expect(starved.status == 0 && !starved.output.contains("SURVIVED"))
        let fed = try RoostRun(
            guest.options(run: "watchdog -T 4 -t 1 /dev/watchdog; sleep 9; echo SURVIVED") + ["--watchdog", "reset"])
        #expect(fed.output.contains("SURVIVED") && !fed.error.contains("expired"), "\(fed.error)")
        let none = try RoostRun(guest.options(run: "ls /dev/watchdog && echo THERE"))
        #expect(!none.output.contains("THERE"))
    }

    @Test("a machine that goes on from a snapshot seeds its random numbers anew")
    func generation() throws {
        let guest = try ScriptGuest(.standard, modules: [])
        var configuration = guest.configuration(
            run: "dmesg -n 8; echo READ''Y; sleep 5; cat /sys/bus/acpi/devices/ROST0001:00/path")
        let snapshot = guest.scratch + "/snapshot"
        func run(_ body: (Machine, () -> String) throws -> Void) throws -> String {
            let path = guest.scratch + "/console-\(UUID())"
            configuration.console = .file(path)
            let machine = try Machine(configuration)
            let finished = DispatchSemaphore(value: 0)
            Thread.detachNewThread {
                _ = machine.run()
                finished.signal()
            }
            try body(machine) { (try? String(contentsOfFile: path, encoding: .utf8)) ?? "" }
            #expect(finished.wait(timeout: .now() + 60) == .success)
            return try String(contentsOfFile: path, encoding: .utf8)
        }
        let fork = "reseeded due to virtual machine fork"
        let first = try run { machine, console in
            for _ in 0..<600 where !console().contains("READY") { usleep(100_000) }
            try machine.saveSnapshot(to: snapshot)
        }
        #expect(first.contains("VGEN") && !first.contains(fork), "\(first.suffix(3000))")
        configuration.snapshot = try Snapshot(snapshot)
        for _ in 0..<2 {
            let copy = try run { _, _ in }
            #expect(copy.contains(fork) && copy.contains("VGEN"), "\(copy.suffix(3000))")
        }
    }

    @Test("huge pages are there, or it is said what is missing")
    func hugePages() throws {
        let guest = try ScriptGuest(modules: [])
        let path = "/sys/kernel/mm/transparent_hugepage/shmem_enabled"
        let setting = (try? String(contentsOfFile: path, encoding: .utf8)) ?? ""
        if setting.contains("[never]") || setting.contains("[deny]") || setting.isEmpty {
            let run = try RoostRun(guest.options(run: "true") + ["--huge-pages"])
            #expect(run.status == 78 && run.error.contains("huge pages"), "\(run.status) \(run.error)")
            return
        }
        let session = try TerminalSession(guest.options(run: "echo READY; sleep 5") + ["--huge-pages"])
        #expect(session.expect("READY", seconds: 60) != nil)
        // Such a file has no length, which String(contentsOfFile:) would go by.
        let file = try #require(FileHandle(forReadingAtPath: "/proc/\(session.child)/smaps"))
        let maps = String(decoding: file.readDataToEndOfFile(), as: UTF8.self)
        let huge = maps.split(separator: "\n").filter { $0.hasPrefix("ShmemPmdMapped:") }
            .compactMap { Int($0.filter(\.isNumber)) }.reduce(0, +)
        #expect(huge >= 2048, "\(huge) KiB")
        _ = session.wait(seconds: 60)
    }
}
