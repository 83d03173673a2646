// Where machines are kept: a folder each below ${XDG_DATA_HOME:-~/.local/share}/roost/machines, or $ROOST_HOME/machines.
internal import Foundation
internal import HostOS
internal import Images

/// The machines of one person on this host.
public struct MachineStore: Sendable {
    /// The folder that holds them.
    public let root: String

    /// A store in a folder, which need not exist.
    public init(root: String) { self.root = root }

    /// The person's own store.
    public static var standard: MachineStore { MachineStore(root: PrivateFolder.data + "/machines") }

    /// The machine of a name, whether there is one or not.
    func place(of name: String) -> StoredMachine { StoredMachine(folder: root + "/" + name) }

    /// All machines, by name.
    public func list() -> [StoredMachine] {
        PrivateFolder.names(in: root).filter(ImageStore.isName).sorted().map(place)
            .filter { FileDescriptor.exists($0.manifestPath) }
    }

    /// The machine of a name.
    public func find(_ name: String) throws(MachinesError) -> StoredMachine {
        try check(name)
        let machine = place(of: name)
        if FileDescriptor.exists(machine.manifestPath) { return machine }
        let known = list().map(\.name)
        throw MachinesError(
            .notFound,
            "there is no machine '\(name)'"
                + (known.isEmpty
                    ? "; `roost run -d --name \(name) debian` makes one"
                    : "; there is \(known.prefix(8).joined(separator: ", "))" + (known.count > 8 ? " …" : "")))
    }

    func check(_ name: String) throws(MachinesError) {
        guard ImageStore.isName(name), !name.hasPrefix("-") else {
            throw MachinesError(.badRequest, "'\(name)' cannot be a machine's name: letters, digits, '.', '_', '-'")
        }
    }

    /// Refuses a name that a machine has, or that none can have.
    public func requireFree(_ name: String) throws(MachinesError) {
        try check(name)
        if FileDescriptor.exists(place(of: name).folder) {
            throw MachinesError(.exists, "there is a machine '\(name)' already; `roost start \(name)` starts it")
        }
    }

    /// Gives a machine another name; one that runs is in its folder, and needn't know.
    public func rename(_ machine: StoredMachine, to name: String) throws(MachinesError) -> StoredMachine {
        try requireFree(name)
        let place = place(of: name)
        var lock: MachineLock?
        do throws(MachinesError) { lock = try machine.lock() } catch {
            // Whoever has it may be at work on its files by their names, and not run it.
            guard error.code == .running, machine.latestRun?.ended == nil,
                (try? machine.control().call(
                    MachineRequest.report, NoParameters(), returning: MachineReport.self)) != nil
            else { throw error }
        }
        defer { withExtendedLifetime(lock) {} }
        try explaining { () throws(HostError) in try HostFile.rename(machine.folder, to: place.folder) }
        return place
    }

    /// Deletes a machine that doesn't run.
    public func delete(_ machine: StoredMachine) throws(MachinesError) {
        let lock = try machine.lock()
        defer { withExtendedLifetime(lock) {} }
        try deleteLocked(machine)
    }

    /// Deletes a machine whose lock this process holds: first its name goes, so that nobody finds half of it.
    func deleteLocked(_ machine: StoredMachine) throws(MachinesError) {
        let doomed = root + "/.deleted-" + UUID().uuidString
        try explaining { () throws(HostError) in try HostFile.rename(machine.path, to: doomed) }
        do { try FileManager.default.removeItem(atPath: doomed) } catch {
            throw MachinesError(.fileSystem, "\(doomed) could not be removed: \(error.localizedDescription)")
        }
    }

    /// Removes what processes that were killed have left of machines half made or half deleted.
    func sweep() {
        for name in (try? FileManager.default.contentsOfDirectory(atPath: root)) ?? []
        where name.hasPrefix(".making-") || name.hasPrefix(".deleted-") {
            let left = StoredMachine(folder: root + "/" + name)
            // One that was made just now may not be locked yet.
            let age = Int(HostClock.realTime) - PrivateFolder.changed(left.folder)
            if age > 60_000_000_000, !left.isTaken { try? FileManager.default.removeItem(atPath: left.folder) }
        }
    }

    /// A name that no machine has, made of another's.
    public func freeName(after name: String) -> String {
        var number = 1
        while FileDescriptor.exists(place(of: "\(name)-\(number)").folder) { number += 1 }
        return "\(name)-\(number)"
    }

    /// A name that no machine has.
    public func freeName() -> String {
        while true {
            let name = NameGenerator.name()
            if !FileDescriptor.exists(place(of: name).folder) { return name }
        }
    }
}

/// Names for machines that were given none.
enum NameGenerator {
    private static let qualities = [
        "amber", "brave", "bright", "brisk", "calm", "clever", "dapper", "dusky", "eager", "fleet", "gentle", "golden",
        "happy", "hardy", "keen", "lively", "lucky", "merry", "misty", "nimble", "proud", "quick", "quiet", "russet",
        "silver", "snowy", "spry", "stout", "sunny", "swift", "tidy", "wise",
    ]
    private static let birds = [
        "avocet", "bittern", "bunting", "crane", "curlew", "dipper", "dunlin", "egret", "falcon", "finch", "godwit",
        "grebe", "heron", "hoopoe", "jackdaw", "kestrel", "kite", "lapwing", "linnet", "magpie", "martin", "merlin",
        "nuthatch", "oriole", "osprey", "owl", "petrel", "pipit", "plover", "raven", "robin", "sandpiper", "shrike",
        "siskin", "skua", "starling", "stork", "swallow", "teal", "tern", "thrush", "wagtail", "warbler", "wren",
    ]

    static func name() -> String {
        let pair = "\(qualities.randomElement() ?? "quiet")-\(birds.randomElement() ?? "wren")"
        return Bool.random() ? pair : pair + "-\(Int.random(in: 2...99))"
    }
}
