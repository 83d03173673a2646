// Keeping the chains of disks short: layers that no snapshot stands on become one with what stands on them.
internal import Foundation
internal import HostOS
internal import Storage

extension StoredMachine {
    /// A layer and what alone stands on it, which can become one.
    private struct Pair: Equatable {
        var lower: String
        var upper: String
        /// Which files these are; what is made of them is of no use once they are others.
        var files: [[UInt64]]
    }

    /// Images behind one another beyond which layers are merged that other machines share, and no snapshot is taken: not
    /// many more can be opened (`Disk.longestChain`).
    private static let deepest = 48

    /// Whether a disk stands on too many layers.
    private func isDeep() throws -> Bool {
        try Self.ownDisks(try manifest().machine).contains { disk in
            try withBases([disk]).count { $0.hasPrefix("layer-") } >= Self.deepest
        }
    }

    /// What can be merged. A snapshot that can't be read is an error: nobody knows what it stands on.
    private func pairs(running: Bool) throws -> [Pair] {
        var pinned: Set<String> = []
        for name in try snapshotNames() { pinned.formUnion(try snapshot(name).layers) }
        let all = try withBases(Self.ownDisks(try manifest().machine) + pinned)
        var above: [String: [String]] = [:]
        for name in all {
            if let base = try DiskReport.base(of: folder + "/" + name) { above[base, default: []].append(name) }
        }
        let isDeep = try isDeep()
        let candidates = above.sorted { $0.key < $1.key }.filter { layer, above in
            layer.hasPrefix("layer-") && !pinned.contains(layer) && above.count == 1
                && (above[0].hasPrefix("layer-") || !running)
                // Merging what others share takes room instead of giving it back.
                && (isDeep || DurableFile.names(of: folder + "/" + layer) == 1)
        }
        return try candidates.map { layer, above in
            Pair(lower: layer, upper: above[0], files: [try identity(layer), try identity(above[0])])
        }
    }

    private func identity(_ name: String) throws -> [UInt64] {
        // O_RDONLY
        try FileDescriptor.open(folder + "/" + name, 0).identity
    }

    /// Makes each layer that no snapshot stands on, and one other layer or disk does, one with that. A disk takes part only
    /// if the machine doesn't run (`running`: it does); what a running machine has open stays as it is until it looks
    /// again. Killed half-way, everything is as it was. Who calls has the machine's lock, or is its process.
    ///
    /// `inTurn` runs something while nobody else changes the machine's snapshots. Bytes are copied outside of it, which may
    /// take minutes; what comes of that is dropped if it was made of what isn't there any more.
    package func mergeLayers(
        running: Bool, inTurn: (() throws -> Void) throws -> Void = { try $0() },
        progress: (UInt64, UInt64) -> Void = { _, _ in }
    ) throws {
        while true {
            var found: Pair?
            try inTurn { found = try pairs(running: running).first }
            guard let pair = found else { return }
            let merged = folder + "/" + ScratchName.make(".merging-")
            defer { try? FileManager.default.removeItem(atPath: merged) }
            try Qcow2Image.merge(folder + "/" + pair.upper, to: merged, progress: progress)
            try inTurn { try put(merged, inPlaceOf: pair, running: running) }
        }
    }

    /// Puts what was made of a pair into its place, if it is still there.
    private func put(_ merged: String, inPlaceOf pair: Pair, running: Bool) throws {
        try holdingLayers(exclusively: true) {
            guard try pairs(running: running).contains(pair) else { return }
            try explaining { () throws(HostError) in try DurableFile.move(merged, to: folder + "/" + pair.upper) }
        }
        sweepSnapshots()
    }

    /// Refuses one more layer where too many stand on one another.
    func requireRoomForLayer(running: Bool) throws {
        guard try isDeep() else { return }
        try mergeLayers(running: running)
        guard try isDeep() else { return }
        throw MachinesError(
            .badRequest,
            "machine '\(name)' has \(Self.deepest) snapshots that stand on one another; delete some: roost snapshot delete"
        )
    }
}
