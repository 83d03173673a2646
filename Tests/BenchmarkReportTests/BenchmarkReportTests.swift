// What the benchmark's report makes of the lines that guests print.
import BenchmarkReport
import Foundation
import Testing

private let host = HostDescription(
    processor: "test", processors: 1, kernel: "1", guestKernel: "2", guestMemoryMiB: 512, engine: "default", qemu: "7",
    qemuCPU: "max", date: "2026-01-01T00:00:00Z", loadAtStart: 0)

private func run(_ lines: [String]) -> SystemRun {
    var run = SystemRun()
    for line in lines { _ = run.take(line) }
    return run
}

private func result(_ name: String, _ seconds: Double, sum: String = "00ff") -> SystemRun {
    run(["@bench begin", "@bench start \(name)", "@bench result \(name) \(seconds) 10 \(sum) -", "@bench done"])
}

private func comparison(_ names: [String] = ["one"], set: String = "compute") -> Comparison {
    Comparison(
        host: host, programs: names.map { GuestProgram(name: $0, set: set, unit: "thing") }, rounds: 3, scale: 1,
        systems: [.native, .roost, .tcg])
}

@Suite("A guest's lines")
struct SystemRunTests {
    @Test("a result is found behind other text on its line")
    func result() {
        let run = run(["@bench start aes", "[    1.0] x@bench result aes 0.25 40 00ff AES-NI"])
        #expect(run.results["aes"]?.seconds == 0.25)
        #expect(run.results["aes"]?.operations == 40)
        #expect(run.results["aes"]?.path == "AES-NI")
        #expect(run.current == nil)
    }

    @Test("a program's own reason for failing outlives its status")
    func failure() {
        let run = run(["@bench start dot", "@bench error no AVX2 and FMA", "@bench fail dot status 1"])
        #expect(run.failures == ["dot": "no AVX2 and FMA"])
    }

    @Test("what ran when the guest ended is known, and its panic comes first")
    func panic() {
        let run = run(["@bench start fork", "Kernel panic - not syncing: x", "---[ end ]---"])
        #expect(run.current == "fork")
        #expect(run.lastWords == "Kernel panic - not syncing: x")
        #expect(!run.isDone)
    }

    @Test(
        "broken lines are no results",
        arguments: [
            "@bench result", "@bench result x nan 1 0 -", "@bench result x 0 1 0 -", "@bench result x 1 -1 0 -",
            "result x 1 1 0 -", "@bench clock", "@bench fail", "@bench ",
        ])
    func broken(line: String) { #expect(run([line]).results.isEmpty) }
}

@Suite("All rounds together")
struct ComparisonTests {
    @Test("medians, ratios and the geometric mean")
    func ratios() {
        var comparison = comparison(["one"])
        for seconds in [1.0, 9.0, 2.0] { comparison.add(result("one", seconds), of: .native) }
        for seconds in [4.0, 4.5, 0.1] { comparison.add(result("one", seconds), of: .roost) }
        for seconds in [16.0, 16.0, 16.0] { comparison.add(result("one", seconds), of: .tcg) }
        comparison.finish()
        let row = comparison.rows[0]
        #expect(row.median(.native) == 2)
        #expect(row.speed(.roost, relativeTo: .native) == 0.5)
        #expect(row.speed(.roost, relativeTo: .tcg) == 4)
        let aggregate = comparison.aggregates.first { $0.set == "compute" && $0.of == .roost && $0.relativeTo == .tcg }
        #expect(aggregate?.geometricMean == 4)
        #expect(aggregate?.isMet == true)
    }

    @Test("a result that differs from the native one is a failure, and nothing is met with one")
    func wrongResult() {
        var comparison = comparison(["one", "two"])
        var native = result("one", 1)
        native.results["two"] = native.results["one"]
        var roost = native
        roost.results["two"]?.checksum = "0bad"
        comparison.add(native, of: .native)
        comparison.add(roost, of: .roost)
        comparison.finish()
        #expect(comparison.failures == ["two failed in Roost: wrong result 0bad, not 00ff"])
        #expect(comparison.rows[1].median(.roost) == nil)
        #expect(comparison.aggregates.first { $0.of == .roost }?.isMet == false)
        #expect(TextReport.text(comparison).contains("failed"))
    }

    @Test("one failed round fails the row")
    func failedRound() {
        var comparison = comparison(["one"])
        comparison.add(result("one", 1), of: .roost)
        comparison.add(SystemRun(), of: .roost)
        #expect(comparison.rows[0].median(.roost) == nil)
    }

    @Test("a program that waited for its core is named")
    func disturbed() {
        var comparison = comparison(["one"])
        var run = result("one", 1)
        run.results["one"]?.processorShare = 0.5
        comparison.add(run, of: .tcg)
        comparison.finish()
        #expect(comparison.warnings.contains { $0.contains("QEMU TCG") && $0.hasSuffix("core: one") })
    }

    @Test("a guest clock that runs wrong is told")
    func clock() {
        var comparison = comparison(["one"])
        var run = result("one", 1)
        run.clockRate = 0.8
        comparison.add(run, of: .roost)
        #expect(comparison.warnings.contains { $0.contains("clock in Roost") })
    }
}

@Suite("Reports")
struct ReportTests {
    @Test("Markdown goes between the markers and leaves the rest")
    func markers() throws {
        let path = NSTemporaryDirectory() + "/roost-\(UUID().uuidString).md"
        defer { try? FileManager.default.removeItem(atPath: path) }
        try "before\n\(MarkdownReport.begin("compare"))\nold\n\(MarkdownReport.end)\nafter\n"
            .write(toFile: path, atomically: true, encoding: .utf8)
        var comparison = comparison(["one"])
        comparison.add(result("one", 1), of: .native)
        try MarkdownReport.write(MarkdownReport.text(comparison), of: "compare", to: path)
        let text = try String(contentsOfFile: path, encoding: .utf8)
        #expect(text.hasPrefix("before\n"))
        #expect(text.hasSuffix("\nafter\n"))
        #expect(!text.contains("old"))
        #expect(text.contains("| one | compute | 1.000 |"))
    }

    @Test("the chart is well-formed, and cuts a bar that is too long")
    func chart() throws {
        var comparison = comparison(["one"])
        comparison.add(result("one", 10), of: .native)
        comparison.add(result("one", 1), of: .roost)
        let svg = ChartReport.svg(comparison)
        #expect(svg.hasPrefix("<svg ") && svg.hasSuffix("</svg>\n"))
        #expect(svg.contains(">10.00<"))
        #expect(svg.components(separatedBy: "<text").count == svg.components(separatedBy: "</text>").count)
    }
}

@Suite("Rates of devices")
struct DeviceComparisonTests {
    private func comparison(_ rates: [(System, String, Double, Int)]) -> DeviceComparison {
        var comparison = DeviceComparison(host: host, rounds: 1, systems: [.native, .roost, .tcg])
        for (system, name, seconds, operations) in rates {
            comparison.add(
                run(["@bench start \(name)", "@bench result \(name) \(seconds) \(operations) 0 -"]), of: system,
                wanted: DeviceFigure.all.filter { $0.name == name })
        }
        return comparison
    }

    @Test("a rate is in the figure's unit, the median of its rounds, and its ratio is judged")
    func rates() {
        let comparison = comparison([
            (.roost, "raw-read", 2, 200 << 20), (.roost, "raw-read", 1, 300 << 20), (.roost, "raw-read", 1, 10 << 20),
            (.tcg, "raw-read", 1, 40 << 20), (.native, "raw-read", 1, 1000 << 20),
        ])
        #expect(comparison.rate("raw-read", .roost) == 100)
        #expect(comparison.rows == [["raw-read", "MiB/s", "1000", "100", "40.0", "0.10", "2.50", "2: ok"]])
        let slower = self.comparison([(.roost, "net-to-host", 1, 100), (.tcg, "net-to-host", 1, 100)])
        #expect(slower.rows.first?.last == "2: MISSED")
    }

    @Test("two processors are compared with one, and memory that came back with what is wanted")
    func summary() {
        var comparison = comparison([(.roost, "make-1cpu", 8, 8), (.roost, "make-2cpu", 5, 8)])
        comparison.returnedMemory = [210]
        #expect(comparison.summary[0] == "two processors by one: Roost 1.60; wanted of Roost: 1.7: MISSED")
        #expect(comparison.summary[1].hasSuffix("210 MiB; wanted: 200: ok"))
    }

    @Test("a figure that is missing is told with its reason")
    func missing() {
        var comparison = comparison([])
        comparison.add(
            run(["@bench start raw-read", "@bench fail raw-read fio: broken"]), of: .tcg,
            wanted: DeviceFigure.disks.filter { $0.name == "raw-read" })
        #expect(comparison.failures == ["raw-read failed in QEMU TCG: fio: broken"])
    }

    @Test("two tables have a place each in one file")
    func places() throws {
        let path = NSTemporaryDirectory() + "/roost-\(UUID().uuidString).md"
        defer { try? FileManager.default.removeItem(atPath: path) }
        for table in ["old", "new"] {
            try MarkdownReport.write("\(table) compare", of: "compare", to: path)
            try MarkdownReport.write("\(table) devices", of: "devices", to: path)
        }
        let text = try String(contentsOfFile: path, encoding: .utf8)
        #expect(!text.contains("old"))
        #expect(text.components(separatedBy: "new").count == 3)
    }
}
