// `roost top`: what running machines use.
internal import ArgumentParser
internal import Foundation
internal import HostOS
internal import Machine
internal import Machines

/// `roost top`.
struct TopCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "top", abstract: "Show what running machines use: processor, memory, disks, network.",
        discussion: "100% of processor is one of the host's. Rates are bytes a second. Ctrl-C ends it.")

    @OptionGroup var list: ListOptions

    @Flag(help: "Measure once, and end.")
    var once = false

    @Option(help: "Seconds between two measurements.")
    var interval: Double = 2

    func validate() throws {
        guard 0.1...3600 ~= interval else { throw ValidationError("--interval is 0.1 to 3600 seconds") }
    }

    func run() throws {
        var before = Self.reports()
        while true {
            HostClock.sleep(nanoseconds: UInt64(interval * 1e9))
            let now = Self.reports()
            var listing = Listing(columns: ["name", "cpu", "memory", "diskRead", "diskWrite", "netIn", "netOut"])
            for (name, report) in now.sorted(by: { $0.key < $1.key }) {
                if let former = before[name], report.time > former.time {
                    listing.rows.append(Self.row(name, former, report))
                }
            }
            before = now
            let isScreen = !once && list.format == .table && Terminal.isTerminal(1)
            if isScreen { print("\u{1B}[H\u{1B}[2J", terminator: "") }
            list.show(listing, ifEmpty: "No machine runs.")
            TerminalInput.flush()
            if once { return }
        }
    }

    private static func reports() -> [String: MachineReport] {
        var reports: [String: MachineReport] = [:]
        for machine in MachineStore.standard.list() where machine.isRunning {
            reports[machine.name] = try? machine.control().call(
                MachineRequest.report, NoParameters(), returning: MachineReport.self)
        }
        return reports
    }

    private static func row(_ name: String, _ former: MachineReport, _ now: MachineReport) -> [Listing.Field] {
        let seconds = Double(now.time - former.time) / 1e9
        func rate(_ key: KeyPath<TrafficCount, UInt64>) -> Listing.Field {
            let (more, less) = (now.traffic[keyPath: key], former.traffic[keyPath: key])
            return .bytes(more > less ? UInt64(Double(more - less) / seconds) : 0)
        }
        let spent = Double((now.usage?.processorTime ?? 0)) - Double(former.usage?.processorTime ?? 0)
        return [
            .text(name), .fraction(max(0, spent / 1e7 / seconds)), .bytes(now.usage?.memory ?? 0),
            rate(\.diskRead), rate(\.diskWritten), rate(\.received), rate(\.sent),
        ]
    }
}
