// `roost-bench`: what Roost's speed is, measured. `make bench` runs all of it.
import ArgumentParser

@main
struct Benchmarks: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "roost-bench", abstract: "Measure Roost.",
        subcommands: [CompareCommand.self, FiguresCommand.self, DevicesCommand.self, MachinesCommand.self])
}
