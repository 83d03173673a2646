// Runs the parts of `roost-bench devices` in one system: on the host, or in guests with the same disks and networks.
import BenchmarkReport
import Foundation
import HostOS
import Images

/// What is measured, and with what.
struct DeviceBench {
    private let roost: String
    private let engine: String?
    private let image: String
    private let qemuCPU: String
    private let seconds: Int
    private let niceness: Int
    private let kernel: DebianKernel
    private let scratch: String
    private static let qemu = "/usr/bin/qemu-system-x86_64"
    private static let port = 5299

    /// Makes the disks that are measured, and the initrd.
    init(roost: String, engine: String?, image: String, qemuCPU: String, seconds: Int, niceness: Int) throws {
        self.roost = roost
        self.engine = engine
        self.image = image
        self.qemuCPU = qemuCPU
        self.seconds = seconds
        self.niceness = niceness
        kernel = try DebianKernel.fetched(.cloud)
        scratch = NSTemporaryDirectory() + "/roost-bench-\(ProcessInfo.processInfo.processIdentifier)"
        guard FileManager.default.fileExists(atPath: image + "/disk.raw") else {
            throw Unmeasured(description: "no image in \(image); `make bench` builds it")
        }
        try FileManager.default.createDirectory(atPath: scratch + "/work", withIntermediateDirectories: true)
        guard let sample = FileManager.default.contents(atPath: "Benchmarks/Guest/sample/sample.c") else {
            throw Unmeasured(description: "Benchmarks/Guest/sample/sample.c is not there: run it from the repository")
        }
        try Data(DeviceGuest.initrd(kernel: kernel, sample: Array(sample))).write(to: file("initrd"))
        try Data(DeviceGuest.measureScript.utf8).write(to: file("work/measure"))
        try Data(DeviceGuest.makefile.utf8).write(to: file("work/Makefile"))
        try sample.write(to: file("work/sample.c"))
        try makeDisks()
    }

    func removeScratch() { try? FileManager.default.removeItem(atPath: scratch) }

    private func file(_ name: String) -> URL { URL(fileURLWithPath: scratch + "/" + name) }

    /// 256 MiB without a hole, raw and qcow2.
    private func makeDisks() throws {
        let words = (0..<131_072 as Range<UInt64>).map { $0 &* 0x9E37_79B9_7F4A_7C15 }
        let block = words.withUnsafeBytes { Data($0) }
        _ = FileManager.default.createFile(atPath: scratch + "/raw", contents: nil)
        let handle = try FileHandle(forWritingTo: file("raw"))
        for _ in 0..<256 { try handle.write(contentsOf: block) }
        try handle.close()
        let ending = try ChildProcess.run(
            "/usr/bin/qemu-img", ["convert", "-O", "qcow2", scratch + "/raw", scratch + "/qcow2"], environment: [:],
            line: { Progress.say($0) }, proceed: { true })
        guard ending == .exited(0) else { throw Unmeasured(description: "qemu-img: \(ending)") }
    }

    /// The host as it is now.
    var description: HostDescription {
        HostDescription(kernel: kernel, memoryMiB: 512, engine: engine, qemu: Self.qemu, qemuCPU: qemuCPU)
    }

    // MARK: Parts

    /// Runs the picked parts once.
    func run(_ system: System, _ picked: Set<String>, into comparison: inout DeviceComparison) throws {
        var one: [DeviceFigure] = []
        if picked.contains("processors") { one += DeviceFigure.processors.prefix(1) }
        if picked.contains("disks") { one += DeviceFigure.disks }
        if picked.contains("network") { one += DeviceFigure.network }
        if !one.isEmpty {
            let server = picked.contains("network") ? try startServer() : nil
            defer { server?.terminate() }
            comparison.add(try measure(system, one, processors: 1), of: system, wanted: one)
        }
        if picked.contains("processors") {
            let two = Array(DeviceFigure.processors.dropFirst())
            comparison.add(try measure(system, two, processors: 2), of: system, wanted: two)
        }
        if picked.contains("guests") {
            comparison.add(try measureGuests(system), of: system, wanted: DeviceFigure.guests)
        }
        if picked.contains("memory"), system == .roost { comparison.returnedMemory.append(try measureMemory()) }
    }

    /// iperf3's server, on the host.
    private func startServer() throws -> Process {
        try start("/usr/bin/iperf3", ["-s", "-p", "\(Self.port)"], output: "server")
    }

    private func start(_ program: String, _ arguments: [String], output: String) throws -> Process {
        let process = Process()
        process.executableURL = URL(fileURLWithPath: "/usr/bin/nice")
        process.arguments = ["-n", "\(niceness)", program] + arguments
        _ = FileManager.default.createFile(atPath: scratch + "/" + output, contents: nil)
        let handle = try FileHandle(forWritingTo: file(output))
        process.standardInput = FileHandle.nullDevice
        process.standardOutput = handle
        process.standardError = handle
        try process.run()
        return process
    }

    private func measure(_ system: System, _ figures: [DeviceFigure], processors: Int) throws -> SystemRun {
        let names = figures.map(\.name)
        if system == .native { return try runNatively(names, processors: processors) }
        let words = words(names, address: "10.0.2.15/24", peer: "10.0.2.2")
        return try collect(machine(system, words, processors: processors, network: .user, disks: true))
    }

    /// Two guests, one of them iperf3's server; natively, the loopback interface.
    private func measureGuests(_ system: System) throws -> SystemRun {
        let names = DeviceFigure.guests.map(\.name)
        if system == .native {
            let server = try startServer()
            defer { server.terminate() }
            return try runNatively(names, processors: 2)
        }
        let serving = words(["serve"], address: "10.9.0.1/24", peer: "10.9.0.1")
        let command = try machine(system, serving, processors: 1, network: .first, disks: false)
        let server = try start(command[0], Array(command.dropFirst()), output: "server")
        defer {
            server.terminate()
            server.waitUntilExit()
        }
        let deadline = ContinuousClock.now + .seconds(60)
        while ContinuousClock.now < deadline, server.isRunning, !Interruption.requested {
            if let text = try? String(contentsOf: file("server"), encoding: .utf8), text.contains("@bench start serve")
            {
                break
            }
            Thread.sleep(forTimeInterval: 0.1)
        }
        let words = words(names, address: "10.9.0.2/24", peer: "10.9.0.1")
        return try collect(machine(system, words, processors: 1, network: .second, disks: false))
    }

    // MARK: Systems

    private func words(_ names: [String], address: String, peer: String) -> String {
        "console=ttyS0 panic=-1 bench.only=\(names.joined(separator: ",")) bench.seconds=\(seconds) "
            + "bench.addr=\(address) bench.peer=\(peer) bench.port=\(Self.port)"
    }

    /// Only the compiler is bound to a core: what a guest's devices do has the host's other processors, too.
    private func runNatively(_ names: [String], processors: Int) throws -> SystemRun {
        var run = SystemRun()
        for isBound in [true, false] {
            let parts = names.filter { ($0.hasPrefix("make") && processors == 1) == isBound }
            if parts.isEmpty { continue }
            let core = ["/usr/bin/taskset", "-c", "0"]
            let command = (isBound ? core : []) + ["/bin/sh", scratch + "/work/measure"] + parts
            _ = try ChildProcess.run(
                "/usr/bin/nice", ["-n", "\(niceness)"] + command,
                environment: [
                    "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "raw": scratch + "/raw", "qcow2": scratch + "/raw",
                    "direct": "0", "seconds": "\(seconds)", "peer": "127.0.0.1", "port": "\(Self.port)",
                ],
                line: { if run.take($0) { Progress.say("  \($0)") } }, proceed: { !Interruption.requested })
        }
        return run
    }

    /// What a guest's network card is plugged into.
    private enum Cable { case user, first, second }

    private func machine(
        _ system: System, _ append: String, processors: Int, network: Cable, disks: Bool
    ) throws -> [String] {
        let common = ["--kernel", kernel.image, "--initrd", scratch + "/initrd", "--append", append]
        if system == .roost {
            var words = [roost, "run"] + common + ["--memory", "512M", "--cpus", "\(processors)", "--no-reboot"]
            if let engine { words += ["--engine", engine] }
            words += ["--disk", image + "/disk.raw,snapshot"]
            if disks { words += ["--disk", scratch + "/raw", "--disk", scratch + "/qcow2,format=qcow2"] }
            let switched = "switch=bench-\(ProcessInfo.processInfo.processIdentifier),mac=02:00:00:00:00:0"
            return words + ["--net", network == .user ? "user" : switched + (network == .first ? "1" : "2")]
        }
        guard FileManager.default.isExecutableFile(atPath: Self.qemu) else {
            throw Unmeasured(description: "qemu-system-x86_64 is missing; run `make setup-bench`")
        }
        var words =
            [Self.qemu, "-accel", "tcg", "-cpu", qemuCPU, "-m", "512", "-smp", "\(processors)"]
            + common.map { $0.hasPrefix("--") ? String($0.dropFirst()) : $0 }
            + ["-nodefaults", "-display", "none", "-serial", "stdio", "-no-reboot"]
            + ["-drive", "if=virtio,format=raw,snapshot=on,file.locking=off,file=\(image)/disk.raw"]
        if disks {
            words += ["-drive", "if=virtio,format=raw,file=\(scratch)/raw"]
            words += ["-drive", "if=virtio,format=qcow2,file=\(scratch)/qcow2"]
        }
        let backend =
            switch network {
            case .user: "user,id=n"
            case .first: "socket,id=n,listen=127.0.0.1:\(Self.port + 1)"
            case .second: "socket,id=n,connect=127.0.0.1:\(Self.port + 1)"
            }
        let address = network == .second ? "02:00:00:00:00:02" : "02:00:00:00:00:01"
        return words + ["-netdev", backend, "-device", "virtio-net-pci,netdev=n,mac=\(address)"]
    }

    /// Runs a guest to its end and takes its lines.
    private func collect(_ command: [String]) throws -> SystemRun {
        var run = SystemRun()
        let ending = try ChildProcess.run(
            "/usr/bin/nice", ["-n", "\(niceness)"] + command, environment: ProcessInfo.processInfo.environment,
            line: { if run.take($0) { Progress.say("  \($0)") } },
            proceed: { !Interruption.requested && .now - run.lastWord < .seconds(180) })
        if !run.isDone { Progress.say("the guest ended early (\(ending)): \(run.lastWords)") }
        return run
    }

    /// MiB that the host has back of 256 that a guest filled and freed.
    private func measureMemory() throws -> Double {
        try Data(SelfCheckImage.initramfs(for: kernel)).write(to: file("check"))
        var filled: Double?
        var freed: ContinuousClock.Instant?
        var best = 0.0
        _ = try ChildProcess.run(
            roost,
            [
                "run", "--kernel", kernel.image, "--initrd", scratch + "/check", "--memory", "768M", "--net", "none",
                "--no-reboot", "--append", "console=ttyS0 selfcheck.only=modules,fill selfcheck.fill=256",
            ] + (engine.map { ["--engine", $0] } ?? []),
            environment: ProcessInfo.processInfo.environment,
            line: { line in
                if line.contains("SELFCHECK filled") {
                    filled = ProcessReport.children().map(ProcessReport.residentShared).max()
                }
                if line.contains("SELFCHECK freed") { freed = .now }
            },
            proceed: {
                if let filled, freed != nil, let now = ProcessReport.children().map(ProcessReport.residentShared).max()
                {
                    best = max(best, filled - now)
                }
                return !Interruption.requested && freed.map { .now - $0 < .seconds(15) } ?? true
            })
        return best
    }
}
