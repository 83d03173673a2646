// Runs the programs once in one system. A program that crashes, hangs or takes the guest with it costs its own row:
// the guest is started again for the programs behind it.
import BenchmarkReport
import Foundation
import HostOS
import Images

/// What is measured, and how.
struct Bench {
    let programs: [GuestProgram]
    let guest: GuestPrograms
    let scale: Double
    let timeout: Duration
    let niceness: Int
    let engine: String?
    let qemuCPU: String
    let roost: String
    let kernel: DebianKernel
    /// The one core that everything runs on, so that helper threads cost as much in each system.
    let core: Int
    let qemu: String?

    /// The arguments of nice(1) that bind a program to the core.
    private var launcher: [String] { ["-n", "\(niceness)", "/usr/bin/taskset", "-c", "\(core)"] }

    static let memoryMiB = 512

    init(
        programs: [GuestProgram], guest: GuestPrograms, scale: Double, timeout: Duration, niceness: Int,
        engine: String?,
        qemuCPU: String, roost: String
    ) throws {
        self.programs = programs
        self.guest = guest
        self.scale = scale
        self.timeout = timeout
        self.niceness = niceness
        self.engine = engine
        self.qemuCPU = qemuCPU
        self.roost = roost
        kernel = try DebianKernel.fetched(.cloud)
        core = max(0, ProcessInfo.processInfo.activeProcessorCount - 1)
        qemu = ["/usr/bin", "/usr/local/bin", "/bin"].map { $0 + "/qemu-system-x86_64" }
            .first { FileManager.default.isExecutableFile(atPath: $0) }
    }

    /// Every program once.
    func run(_ system: System) throws -> SystemRun {
        if system == .native { return try runNatively() }
        let initrd = NSTemporaryDirectory() + "/roost-bench-\(ProcessInfo.processInfo.processIdentifier).cpio"
        try Data(guest.initrd()).write(to: URL(fileURLWithPath: initrd))
        defer { try? FileManager.default.removeItem(atPath: initrd) }

        var total = SystemRun()
        var remaining = programs.map(\.name)
        repeat {
            let part = try runGuest(system, remaining, initrd)
            total.results.merge(part.results) { $1 }
            total.failures.merge(part.failures) { $1 }
            total.boot = total.boot ?? part.boot
            total.clockRate = total.clockRate ?? part.clockRate
            total.residentBeyondGuest = [total.residentBeyondGuest, part.residentBeyondGuest].compactMap(\.self).max()
            remaining.removeAll { total.results[$0] != nil || total.failures[$0] != nil }
            if part.isDone || Interruption.requested || remaining.isEmpty { break }
            let reason = "the guest ended: \(part.lastWords)"
            // Nothing started: what stopped the guest would stop it again.
            let lost = part.current.map { [$0] } ?? remaining
            for name in lost { total.failures[name] = reason }
            Progress.say("\(system.title): \(lost.joined(separator: " ")): \(reason)")
            remaining.removeAll { lost.contains($0) }
        } while !remaining.isEmpty
        return total
    }

    /// The host as it is now.
    var description: HostDescription {
        HostDescription(kernel: kernel, memoryMiB: Self.memoryMiB, engine: engine, qemu: qemu, qemuCPU: qemuCPU)
    }

    // MARK: Natively

    private func runNatively() throws -> SystemRun {
        var run = SystemRun()
        for program in programs where !Interruption.requested {
            run.begin(program.name)
            let deadline = ContinuousClock.now + timeout
            let watch = ProcessorWatch()
            let ending = try ChildProcess.run(
                "/usr/bin/nice", launcher + [guest.executable, program.name, "\(scale)"],
                environment: [
                    "PATH": "/usr/bin:/bin", "BENCH_TMP": "/dev/shm", "BENCH_BUSYBOX": guest.busybox,
                    "BENCH_SOURCE": guest.sample,
                ],
                line: {
                    guard run.take($0) else { return }
                    run.results[program.name]?.processorShare = watch.share()
                    Self.report(.native, program.name, run)
                },
                proceed: { .now < deadline && !Interruption.requested })
            if run.results[program.name] == nil {
                run.failures[program.name] = run.failures[program.name] ?? "\(ending)"
                Progress.say("native: \(program.name) failed: \(run.failures[program.name] ?? "")")
            }
        }
        return run
    }

    // MARK: In a guest

    /// The kernel's command line.
    func commandLine(_ names: [String]) -> String {
        "console=ttyS0 panic=-1 bench.scale=\(scale) bench.timeout=\(timeout.components.seconds) "
            + "bench.only=\(names.joined(separator: ","))"
    }

    /// Program and arguments of a machine.
    func machine(_ system: System, _ names: [String], _ initrd: String) throws -> [String] {
        let append = commandLine(names)
        if system == .roost {
            let options = [
                "--kernel", kernel.image, "--initrd", initrd, "--append", append, "--memory", "\(Self.memoryMiB)M",
                "--cpus", "1", "--net", "none", "--no-reboot",
            ]
            return [roost, "run"] + (engine.map { ["--engine", $0] } ?? []) + options
        }
        guard let qemu else { throw Unmeasured(description: "qemu-system-x86_64 is missing; run `make setup-bench`") }
        return [
            qemu, "-accel", "tcg", "-cpu", qemuCPU, "-m", "\(Self.memoryMiB)", "-smp", "1", "-kernel", kernel.image,
            "-initrd", initrd, "-append", append, "-nodefaults", "-display", "none", "-serial", "stdio", "-no-reboot",
        ]
    }

    private func runGuest(_ system: System, _ names: [String], _ initrd: String) throws -> SystemRun {
        var run = SystemRun()
        var wasStopped = false
        var watch = ProcessorWatch()
        let ending = try ChildProcess.run(
            "/usr/bin/nice", launcher + machine(system, names, initrd),
            environment: ProcessInfo.processInfo.environment,
            line: { line in
                let before = run.current
                guard run.take(line) else {
                    if before == nil, run.current != nil { watch = ProcessorWatch() }
                    return
                }
                if let before {
                    run.results[before]?.processorShare = watch.share()
                    Self.report(system, before, run)
                }
                if let child = ProcessReport.children().first {
                    let resident = ProcessReport.residentBeyondGuest(
                        child, guestMiB: system == .tcg ? Self.memoryMiB : nil)
                    run.residentBeyondGuest = max(run.residentBeyondGuest ?? 0, resident)
                }
            },
            proceed: {
                if Interruption.requested { return false }
                // The guest stops a program that hangs; this is for a guest that does.
                if .now - run.lastWord < timeout + .seconds(15) { return true }
                wasStopped = true
                return false
            })
        if wasStopped, let current = run.current { run.failures[current] = "hung" }
        if !run.isDone { Progress.say("\(system.title): ended early (\(ending))") }
        return run
    }

    private static func report(_ system: System, _ name: String, _ run: SystemRun) {
        guard let seconds = run.results[name]?.seconds else { return }
        Progress.say("  \(system.title): \(name) " + String(format: "%.3f s", seconds))
    }
}
