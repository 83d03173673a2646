// `roost snapshot`, `roost restore`, `roost clone`.
internal import ArgumentParser
internal import Foundation
internal import HostOS
internal import Machines

/// `roost snapshot`.
struct SnapshotCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "snapshot", abstract: "Take, list and delete snapshots of machines.",
        subcommands: [Take.self, List.self, Delete.self])

    /// `roost snapshot take`.
    struct Take: ParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Keep a machine as it is now; it goes on running meanwhile.")

        @OptionGroup var machine: MachineArgument

        @Argument(help: "The snapshot's name (default: the time).")
        var snapshot: String?

        func run() throws {
            let name = snapshot ?? Date().formatted(.iso8601.timeSeparator(.omitted).dateTimeSeparator(.standard))
            var progress = ProgressLine()
            try machine.find().takeSnapshot(name) { progress.show("saving memory", $0, $1) }
            progress.finish()
            print(name)
        }
    }

    /// `roost snapshot list`.
    struct List: ParsableCommand {
        static let configuration = CommandConfiguration(abstract: "List a machine's snapshots, the oldest first.")

        @OptionGroup var machine: MachineArgument
        @OptionGroup var list: ListOptions

        func run() throws {
            let machine = try machine.find()
            var listing = Listing(columns: ["name", "taken", "parent", "memory", "onDisk", "current"])
            for one in try machine.snapshots() {
                listing.rows.append([
                    .text(one.name), .text(one.created), .init(one.parent), .text(one.hasMemory ? "yes" : "no"),
                    .bytes(UInt64(max(0, one.bytes))), .text(one.isCurrent ? "yes" : "no"),
                ])
            }
            list.show(listing, ifEmpty: "No snapshots yet; `roost snapshot take \(machine.name)` takes one.")
        }
    }

    /// `roost snapshot delete`.
    struct Delete: ParsableCommand {
        static let configuration = CommandConfiguration(abstract: "Delete a snapshot.")

        @OptionGroup var machine: MachineArgument

        @Argument(help: "The snapshot's name.")
        var snapshot: String

        @Flag(help: "Don't ask.")
        var yes = false

        func run() throws {
            let machine = try machine.find()
            _ = try machine.snapshot(snapshot)
            try Confirmation.require("Delete snapshot '\(snapshot)' of machine '\(machine.name)'?", yes: yes)
            var progress = ProgressLine()
            defer { progress.finish() }
            try machine.dropSnapshot(snapshot) { progress.show("merging layers", $0, $1) }
        }
    }
}

/// `roost restore`.
struct RestoreCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "restore", abstract: "Take a machine back to a snapshot, and let it go on from there.")

    @OptionGroup var machine: MachineArgument

    @Argument(help: "The snapshot's name; see 'roost snapshot list'.")
    var snapshot: String

    @Flag(help: "Don't ask; what the machine has been since is lost.")
    var yes = false

    @Flag(inversion: .prefixedNo, help: "Run it afterwards, in the background.")
    var start = true

    func run() throws {
        let machine = try machine.find()
        _ = try machine.snapshot(snapshot)
        try Confirmation.require(
            "Take machine '\(machine.name)' back to '\(snapshot)'? What it has been since is lost.", yes: yes)
        if machine.isRunning {
            let control = try machine.control()
            if try machine.manifest().isTemporary == true { try control.call(MachineRequest.keep) }
            try control.call(MachineRequest.end)
            guard machine.hasStopped(within: 30) else {
                throw MachinesError(
                    .stillRuns, "machine '\(machine.name)' doesn't end; `roost kill \(machine.name)` ends it")
            }
        }
        try machine.restore(snapshot)
        if start { try MonitorProcess.launch(machine) }
        print(machine.name)
    }
}

/// `roost clone`.
struct CloneCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "clone", abstract: "Make machines that go on from another's snapshot.",
        discussion: """
            A clone has a number, a host name, addresses and random numbers of its own, and shares with the machine that \
            it is of what neither of them changes. Ports of the host that were forwarded, and captures of its network cards, \
            stay with the first one.
            """)

    @OptionGroup var machine: MachineArgument

    @Argument(help: "The clone's name (default: the machine's with a number).")
    var clone: String?

    @Option(help: "The snapshot to go on from (default: one that is taken now).")
    var snapshot: String?

    @Option(help: "How many clones.")
    var count: Int = 1

    @Flag(inversion: .prefixedNo, help: "Run them, in the background.")
    var start = true

    func run() throws {
        let machine = try machine.find()
        guard (1...1000).contains(count) else { throw ValidationError("--count wants 1 to 1000") }
        if clone != nil && count != 1 { throw ValidationError("a name is for one clone; leave it out for --count") }
        if let clone { try MachineStore.standard.requireFree(clone) }
        let source = try snapshot ?? fresh(machine)
        do { try makeClones(of: machine, source) } catch {
            // Nobody has asked for it; clones that were made don't need it.
            if snapshot == nil { try? machine.dropSnapshot(source) { _, _ in } }
            throw error
        }
    }

    private func makeClones(of machine: StoredMachine, _ source: String) throws {
        for _ in 0..<count {
            let name = clone ?? MachineStore.standard.freeName(after: machine.name)
            let new = try MachineStore.standard.clone(machine, snapshot: source, as: name)
            if start {
                do { try MonitorProcess.launch(new) } catch {
                    try? MachineStore.standard.delete(new)
                    throw error
                }
            }
            print(name)
        }
    }

    private func fresh(_ machine: StoredMachine) throws -> String {
        let name = "clone-" + String(UInt64(Date().timeIntervalSince1970 * 1000), radix: 36)
        var progress = ProgressLine()
        try machine.takeSnapshot(name) { progress.show("saving memory", $0, $1) }
        progress.finish()
        return name
    }
}
