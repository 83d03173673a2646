// `roost-bench machines`: how soon machines that are kept and machines that nobody keeps are there, and what they cost.
import ArgumentParser
import Foundation
import Images

/// `roost-bench machines`.
struct MachinesCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "machines",
        abstract: "Measure programs in throw-away machines, restores, clones and live snapshots of Debian.")

    @Argument(help: "Measure only what begins with one of these: run, restore, clone, memory, pause.")
    var picked: [String] = []

    @Option(help: "The `roost` that is measured.")
    var roost = ".build/release/roost"

    @Option(help: "The engine, as `roost run --engine` has it.")
    var engine = "translator"

    @Option(help: "The folder of a Debian image with an agent.")
    var image: String

    @Option(help: "Measurements of which the median is shown.")
    var repeats = 9

    func run() throws {
        let bench = try MachineBench(roost: roost, engine: engine, image: image, repeats: max(1, repeats))
        defer { bench.removeHome() }
        let all: [(name: String, measure: () throws -> [Figure])] = [
            ("run", bench.measureRuns), ("restore", bench.measureRestore), ("clone", bench.measureClone),
            ("memory", bench.measureMemory), ("pause", bench.measurePause),
        ]
        for one in all where picked.isEmpty || picked.contains(where: { one.name.hasPrefix($0) }) {
            do {
                for figure in try one.measure() { print(FiguresCommand.line(figure)) }
            } catch {
                FileHandle.standardError.write(Data("\(one.name): not measured: \(error)\n".utf8))
            }
        }
    }
}

/// A store of its own, and what is measured there.
private final class MachineBench {
    private let roost: String
    private let engine: String
    private let image: String
    private let repeats: Int
    private let home: String
    private var hasBase = false

    init(roost: String, engine: String, image: String, repeats: Int) throws {
        guard try ImageStore(root: "/").locate(image).manifest.agent != nil else {
            throw Unmeasured(description: "the image in \(image) has no agent; `roost image build` makes one that has")
        }
        self.roost = roost
        self.engine = engine
        self.image = image
        self.repeats = repeats
        home = NSTemporaryDirectory() + "/roost-bench-machines-\(ProcessInfo.processInfo.processIdentifier)"
        for folder in ["/data", "/run"] {
            try FileManager.default.createDirectory(
                atPath: home + folder, withIntermediateDirectories: true, attributes: [.posixPermissions: 0o700])
        }
    }

    func removeHome() {
        for name in (try? roost("list", "-q"))?.split(separator: "\n") ?? [] { _ = try? roost("kill", String(name)) }
        try? FileManager.default.removeItem(atPath: home)
    }

    /// Runs `roost`, which must succeed; what it prints.
    @discardableResult
    private func roost(_ words: String...) throws -> String {
        let process = Process()
        process.executableURL = URL(fileURLWithPath: roost)
        process.arguments = words
        process.environment = ProcessInfo.processInfo.environment.merging(
            ["ROOST_HOME": home + "/data", "XDG_RUNTIME_DIR": home + "/run"]) { $1 }
        let output = home + "/output"
        _ = FileManager.default.createFile(atPath: output, contents: nil)
        process.standardInput = FileHandle.nullDevice
        process.standardOutput = FileHandle(forWritingAtPath: output)
        process.standardError = process.standardOutput
        // Foundation polls for the end; a signal handler of its own would be late by as much.
        let ended = DispatchSemaphore(value: 0)
        process.terminationHandler = { _ in ended.signal() }
        try process.run()
        ended.wait()
        let text = (try? String(contentsOfFile: output, encoding: .utf8)) ?? ""
        guard process.terminationStatus == 0 else {
            throw Unmeasured(description: "roost \(words.joined(separator: " ")): \(text)")
        }
        return text
    }

    private static func seconds(_ body: () throws -> Void) rethrows -> Double {
        let start = ContinuousClock.now
        try body()
        let passed = (ContinuousClock.now - start).components
        return Double(passed.seconds) + Double(passed.attoseconds) / 1e18
    }

    private func median(_ measure: () throws -> Double) throws -> Double {
        let values = try (0..<repeats).map { _ in try measure() }.sorted()
        return values[values.count / 2]
    }

    private func figure(_ name: String, _ value: Double, _ unit: String, atMost most: Double) -> Figure {
        Figure(name: name, value: value, unit: unit, wanted: "at most \(Int(most))", met: value <= most)
    }

    // MARK: What is measured

    /// `roost run IMAGE -- true`: the first time in this store, and afterwards.
    func measureRuns() throws -> [Figure] {
        let run = { try Self.seconds { try self.roost("run", "--engine", self.engine, self.image, "--", "true") } }
        let cold = try run()
        return [
            figure("run.cold (roost run IMAGE -- true, first)", cold, "s", atMost: 180),
            figure("run.warm (median of \(repeats))", try median(run) * 1000, "ms", atMost: 500),
        ]
    }

    /// A machine of 512 MiB whose agent answers, and its snapshot.
    private func prepareBase() throws {
        if hasBase { return }
        try roost("run", "-d", "--name", "m", "--memory", "512M", "--net", "none", "--engine", engine, image)
        try roost("exec", "m", "--", "true")
        try roost("snapshot", "take", "m", "base")
        try roost("kill", "m")
        hasBase = true
    }

    /// Time from the start of `roost start` to the moment when the restored guest's first instruction is next.
    func measureRestore() throws -> [Figure] {
        try prepareBase()
        let value = try median {
            try roost("restore", "m", "base", "--yes", "--no-start")
            let begun = Date()
            try roost("start", "m")
            let started = try events("m").last { $0.event == "started" }
            try roost("kill", "m")
            guard let started, let time = Self.date(started.time) else {
                throw Unmeasured(description: "there is no event")
            }
            return time.timeIntervalSince(begun)
        }
        return [figure("restore (512 MiB, to the first instruction)", value * 1000, "ms", atMost: 30)]
    }

    /// Time from the start of `roost clone` to the end of a program in the clone.
    func measureClone() throws -> [Figure] {
        try prepareBase()
        var alone: [Double] = []
        let value = try median {
            let cloning = try Self.seconds { try roost("clone", "m", "c", "--snapshot", "base") }
            let answering = try Self.seconds { try roost("exec", "c", "--", "true") }
            try roost("kill", "c")
            try roost("delete", "c", "--yes")
            alone.append(cloning)
            return cloning + answering
        }
        return [
            figure("clone (answers roost exec -- true)", value * 1000, "ms", atMost: 150),
            Figure(
                name: "  of it roost clone", value: alone.sorted()[alone.count / 2] * 1000, unit: "ms", wanted: "",
                met: nil),
        ]
    }

    /// The host's memory for 20 clones of a snapshot, each of which has answered.
    func measureMemory() throws -> [Figure] {
        try prepareBase()
        let names = try roost("clone", "m", "--snapshot", "base", "--count", "20").split(separator: "\n").map(
            String.init)
        defer {
            for name in names {
                _ = try? roost("kill", name)
                _ = try? roost("delete", name, "--yes")
            }
        }
        for name in names { try roost("exec", name, "--", "true") }
        let total = processes.reduce(0) { $0 + Self.proportionalMiB($1) }
        return [figure("memory of 20 clones (PSS)", total, "MiB", atMost: 1023)]
    }

    /// How long a guest of 2 GiB stands still for a snapshot while it writes memory as fast as it can.
    func measurePause() throws -> [Figure] {
        try roost("run", "-d", "--name", "big", "--memory", "2G", "--net", "none", "--engine", engine, image)
        defer { _ = try? roost("kill", "big") }
        let load = """
            mkdir -p /run/load; mount -t tmpfs -o size=1800m load /run/load
            head -c 500000000 /dev/zero | tr '\\0' x >/run/load/a
            (while :; do cat /run/load/a >/run/load/b; cat /run/load/a >/run/load/c; done) >/dev/null 2>&1 </dev/null &
            """
        try roost("exec", "big", "--", "sh", "-c", load)
        var number = 0
        let value = try median {
            number += 1
            try roost("snapshot", "take", "big", "s\(number)")
            let words = try events("big").last { $0.event == "snapshot" }?.detail ?? ""
            try roost("snapshot", "delete", "big", "s\(number)", "--yes")
            guard let pause = words.split(separator: " ").compactMap({ Double($0) }).last else {
                throw Unmeasured(description: "the event doesn't tell: \(words)")
            }
            return pause
        }
        return [figure("pause of a live snapshot (2 GiB, written to)", value, "ms", atMost: 100)]
    }

    // MARK: What there is to see

    private struct Event: Decodable {
        var time: String
        var event: String
        var detail: String?
    }

    private func events(_ name: String) throws -> [Event] {
        try roost("events", name).split(separator: "\n").compactMap {
            try? JSONDecoder().decode(Event.self, from: Data($0.utf8))
        }
    }

    private static func date(_ text: String) -> Date? {
        try? Date(text, strategy: Date.ISO8601FormatStyle(includingFractionalSeconds: true))
    }

    /// The processes that have this store.
    private var processes: [Int32] {
        ((try? FileManager.default.contentsOfDirectory(atPath: "/proc")) ?? []).compactMap { Int32($0) }.filter {
            let environment = FileManager.default.contents(atPath: "/proc/\($0)/environ") ?? Data()
            return environment.range(of: Data("ROOST_HOME=\(home)/".utf8)) != nil
        }
    }

    /// MiB of a process, a page that several have in equal parts. See Documentation/filesystems/proc.rst.
    private static func proportionalMiB(_ process: Int32) -> Double {
        let text = (try? String(contentsOfFile: "/proc/\(process)/smaps_rollup", encoding: .utf8)) ?? ""
        let line = text.split(separator: "\n").first { $0.hasPrefix("Pss:") }
        return line.flatMap { Double($0.filter(\.isNumber)) }.map { $0 / 1024 } ?? 0
    }
}
