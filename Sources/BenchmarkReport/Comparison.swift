// What all rounds together say: medians, ratios, geometric means, and whether the results agree.
package import Foundation

/// The runs of one program in one system.
package struct Series: Codable {
    /// Seconds, in the order of the rounds.
    package var seconds: [Double] = []
    package var path: String?
    /// The share of the time in which the process had its core when it wanted it: far below 1, others took it.
    package var processorShares: [Double] = []
    /// Why a round gave no figure; the row counts as failed.
    package var failure: String?

    /// The median, unless a round failed.
    package var median: Double? {
        guard failure == nil, !seconds.isEmpty else { return nil }
        return Self.median(of: seconds)
    }

    /// The middle of some numbers, zero of none.
    static func median(of numbers: [Double]) -> Double {
        let sorted = numbers.sorted()
        let middle = sorted.count / 2
        if sorted.isEmpty { return 0 }
        return sorted.count % 2 == 1 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2
    }
}

/// One program in every system.
package struct Row: Codable {
    package var program: GuestProgram
    package var operations: UInt64?
    package var checksum: String?
    package var series: [String: Series] = [:]

    package func median(_ system: System) -> Double? { series[system.rawValue]?.median }

    /// How fast `system` is, measured by `other`: 1 is as fast, 0.5 takes twice the time.
    package func speed(_ system: System, relativeTo other: System) -> Double? {
        guard let seconds = median(system), let reference = median(other), seconds > 0 else { return nil }
        return reference / seconds
    }
}

/// Geometric mean and minimum over the rows that have both figures.
package struct Aggregate: Codable {
    package var set: String
    package var of: System
    package var relativeTo: System
    package var geometricMean: Double
    package var minimum: Double
    package var slowest: String
    package var programs: Int
    /// Programs of the set without a figure: what is wanted of all is not met.
    package var failed: Int
    /// What the mean and the minimum should be at least.
    package var wantedMean: Double?
    package var wantedMinimum: Double?

    package var isMet: Bool? {
        guard wantedMean != nil || wantedMinimum != nil else { return nil }
        return failed == 0 && geometricMean >= wantedMean ?? 0 && minimum >= wantedMinimum ?? 0
    }
}

/// Everything measured, as it is written to JSON.
package struct Comparison: Codable {
    package var host: HostDescription
    package var rounds: Int
    package var scale: Double
    package var systems: [System]
    package var rows: [Row]
    package var aggregates: [Aggregate] = []
    /// The most MiB resident beyond the guest's memory, by system.
    package var residentBeyondGuest: [String: Double] = [:]
    /// Things a reader of the figures must know.
    package var warnings: [String] = []

    package static let boot = GuestProgram(name: "boot", set: "system", unit: "kernel boot to user space")

    package init(
        host: HostDescription, programs: [GuestProgram], rounds: Int, scale: Double, systems: [System]
    ) {
        self.host = host
        self.rounds = rounds
        self.scale = scale
        self.systems = systems
        rows = (programs + [Self.boot]).map { Row(program: $0) }
    }

    /// Takes one run of all programs in a system.
    package mutating func add(_ run: SystemRun, of system: System) {
        let key = system.rawValue
        for index in rows.indices {
            let name = rows[index].program.name
            if name == Self.boot.name {
                guard system != .native else { continue }
                var series = rows[index].series[key] ?? Series()
                if let boot = run.boot { series.seconds.append(boot) } else { series.failure = "did not boot" }
                rows[index].series[key] = series
                continue
            }
            var series = rows[index].series[key] ?? Series()
            if let result = run.results[name] {
                series.seconds.append(result.seconds)
                series.path = result.path
                if let share = result.processorShare { series.processorShares.append(share) }
                // The first system that gave a result (natively, as a rule) says what is right.
                rows[index].checksum = rows[index].checksum ?? result.checksum
                rows[index].operations = rows[index].operations ?? result.operations
                if rows[index].checksum != result.checksum || rows[index].operations != result.operations {
                    series.failure = "wrong result \(result.checksum), not \(rows[index].checksum ?? "")"
                }
            } else {
                series.failure = run.failures[name] ?? "did not run"
            }
            rows[index].series[key] = series
        }
        if let resident = run.residentBeyondGuest {
            residentBeyondGuest[key] = max(residentBeyondGuest[key] ?? 0, resident)
        }
        if let rate = run.clockRate, abs(rate - 1) > 0.02 {
            warnings.append(
                "the guest's clock in \(system.title) ran at \(String(format: "%.3f", rate)) of the host's: its figures "
                    + "are wrong by that")
        }
    }

    /// Works out what needs all rounds.
    package mutating func finish() {
        for set in ["compute", "system"] {
            for (system, other) in [(System.roost, System.native), (.tcg, .native), (.roost, .tcg)] {
                if let aggregate = aggregate(set, system, other) { aggregates.append(aggregate) }
            }
        }
        for row in rows {
            let paths = systems.compactMap { system in
                row.series[system.rawValue]?.path.map { "\($0) (\(system.title))" }
            }
            if Set(systems.compactMap { row.series[$0.rawValue]?.path }).count > 1 {
                warnings.append("\(row.program.name) ran different code: \(paths.joined(separator: ", "))")
            }
        }
        for system in systems {
            let disturbed = rows.filter { row in
                guard row.program.set == "compute", let shares = row.series[system.rawValue]?.processorShares,
                    !shares.isEmpty
                else { return false }
                return Series.median(of: shares) < 0.9
            }
            if disturbed.isEmpty { continue }
            let names = disturbed.map(\.program.name).joined(separator: " ")
            warnings.append("in \(system.title) these waited more than a tenth of the time for the core: \(names)")
        }
        warnings += failures
        if host.loadAtStart > 0.5 {
            warnings.append(
                "the host was busy when this began (load \(String(format: "%.1f", host.loadAtStart))): expect noise")
        }
    }

    private func aggregate(_ set: String, _ system: System, _ other: System) -> Aggregate? {
        let members = rows.filter { $0.program.set == set }
        let failed = members.filter { row in
            [system, other].contains { row.series[$0.rawValue]?.failure != nil }
        }
        let speeds = members.compactMap { row in
            row.speed(system, relativeTo: other).map { (name: row.program.name, speed: $0) }
        }
        guard let slowest = speeds.min(by: { $0.speed < $1.speed }) else { return nil }
        let mean = exp(speeds.map { log($0.speed) }.reduce(0, +) / Double(speeds.count))
        let wanted: (Double?, Double?) =
            switch (set, system, other) {
            case ("compute", .roost, .native): (0.65, 0.4)
            case ("compute", .roost, .tcg): (4, nil)
            case ("system", .roost, .tcg): (2, 1)
            default: (nil, nil)
            }
        return Aggregate(
            set: set, of: system, relativeTo: other, geometricMean: mean, minimum: slowest.speed, slowest: slowest.name,
            programs: speeds.count, failed: failed.count, wantedMean: wanted.0, wantedMinimum: wanted.1)
    }

    /// Rows without a figure, and why.
    package var failures: [String] {
        rows.flatMap { row in
            systems.compactMap { system in
                row.series[system.rawValue]?.failure.map { "\(row.program.name) failed in \(system.title): \($0)" }
            }
        }
    }

    /// The JSON file.
    package func encoded() throws -> Data {
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.prettyPrinted, .sortedKeys, .withoutEscapingSlashes]
        return try encoder.encode(self) + Data("\n".utf8)
    }
}
