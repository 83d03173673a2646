// Keeping the chains of disks short: layers that no snapshot stands on become one with what stands on them.
internal import Foundation
internal import HostOS
internal import Storage

extension StoredMachine {
    /// Disks and layers of a machine, and what stands on what.
    private struct Chains {
        /// The machine's own disks.
        var disks: [String]
        /// Layers that snapshots stand on.
        var pinned: Set<String> = []
        /// What a disk or layer is based on, and what is based on it.
        var bases: [String: String] = [:]
        var above: [String: [String]] = [:]

        /// How many layers there are below a disk.
        func depth(_ disk: String) -> Int {
            var (count, name) = (0, disk)
            // A circle, which only somebody else can have made, ends too.
            while let base = bases[name], base.hasPrefix("layer-"), count < bases.count {
                count += 1
                name = base
            }
            return count
        }
    }

    /// Images behind one another beyond which layers are merged that other machines share, and no snapshot is taken: not
    /// many more can be opened (`Disk.longestChain`).
    private static let deepest = 48

    private func chains() throws -> Chains {
        var chains = Chains(disks: Self.ownDisks(try manifest().machine))
        var waiting = chains.disks
        for summary in try snapshots() {
            let layers = try snapshot(summary.name).layers
            chains.pinned.formUnion(layers)
            waiting += layers
        }
        while let name = waiting.popLast() {
            guard chains.bases[name] == nil, let base = try DiskReport.base(of: folder + "/" + name),
                !base.contains("/")
            else { continue }
            chains.bases[name] = base
            chains.above[base, default: []].append(name)
            waiting.append(base)
        }
        return chains
    }

    /// Makes each layer that no snapshot stands on, and one other layer or disk does, one with that. A disk takes part only
    /// if the machine doesn't run (`running`: it does); what a running machine has open stays as it is until it looks
    /// again. Killed half-way, everything is as it was. Who calls has the machine's lock, or is its process.
    func mergeLayers(running: Bool, progress: (UInt64, UInt64) -> Void = { _, _ in }) throws {
        while true {
            let chains = try chains()
            let isDeep = chains.disks.contains { chains.depth($0) >= Self.deepest }
            let next = chains.above.sorted { $0.key < $1.key }.first { layer, above in
                layer.hasPrefix("layer-") && !chains.pinned.contains(layer) && above.count == 1
                    && (above[0].hasPrefix("layer-") || !running)
                    // Merging what others share takes room instead of giving it back.
                    && (isDeep || DurableFile.names(of: folder + "/" + layer) == 1)
            }
            guard let upper = next?.value.first else { return }
            let merged = folder + "/.merging-" + UUID().uuidString
            try Qcow2Image.merge(folder + "/" + upper, to: merged, progress: progress)
            try explaining { () throws(HostError) in try DurableFile.move(merged, to: folder + "/" + upper) }
            sweepSnapshots()
        }
    }

    /// Refuses one more layer where too many stand on one another.
    func requireRoomForLayer(running: Bool) throws {
        func isDeep() throws -> Bool {
            let chains = try chains()
            return chains.disks.contains { chains.depth($0) >= Self.deepest }
        }
        guard try isDeep() else { return }
        try mergeLayers(running: running)
        guard try isDeep() else { return }
        throw MachinesError(
            .badRequest,
            "machine '\(name)' has \(Self.deepest) snapshots that stand on one another; delete some: roost snapshot delete"
        )
    }
}
