// Saving a machine while it runs.
internal import CPU
internal import DeviceModel
internal import Devices
internal import Foundation
internal import GuestMemory
internal import HostOS

/// How far a snapshot is.
public struct SnapshotProgress: Sendable {
    /// Pages of memory looked at.
    public var done: Int
    /// Pages there are to look at. Where pages are saved again because they were written meanwhile, it grows.
    public var total: Int

    init(_ capture: MemoryCapture) { (done, total) = capture.progress }
}

/// A snapshot that was taken.
public struct SnapshotResult: Sendable {
    /// Nanoseconds for which the guest stood still.
    public var pause: UInt64
    /// Bytes of memory that aren't zero.
    public var bytes: UInt64
    /// Pages that were saved in the pause: what the guest had written since they were saved before.
    public var pagesInPause: Int
}

extension Machine {
    /// Saves the machine as it is now into a new folder, and lets it go on meanwhile: a page that it is about to write is
    /// saved before. The folder appears when all is in it; a snapshot that fails leaves none.
    ///
    /// `whilePaused` runs at that moment, with the machine standing still: it may switch disks. A machine that was paused
    /// stays so.
    @discardableResult
    public func saveSnapshot(
        to path: String, whilePaused: () throws(MachineError) -> Void = {},
        progress: (SnapshotProgress) -> Void = { _ in }
    ) throws(MachineError) -> SnapshotResult {
        let partial = path + ".partial"
        do {
            guard !FileManager.default.fileExists(atPath: path) else {
                throw MachineError(.state, "there is a snapshot at \(path) already")
            }
            try? FileManager.default.removeItem(atPath: partial)
            try FileManager.default.createDirectory(atPath: partial, withIntermediateDirectories: true)
        } catch {
            throw error as? MachineError
                ?? MachineError(.state, "cannot make \(partial): \(error.localizedDescription)")
        }
        do throws(MachineError) {
            let result = try saveSnapshot(into: partial, whilePaused, progress)
            do {
                try HostFile.rename(partial, to: path)
            } catch {
                throw MachineError(.state, "\(error)")
            }
            return result
        } catch {
            try? FileManager.default.removeItem(atPath: partial)
            throw error
        }
    }

    private func saveSnapshot(
        into folder: String, _ whilePaused: () throws(MachineError) -> Void, _ progress: (SnapshotProgress) -> Void
    ) throws(MachineError) -> SnapshotResult {
        let file = try Self.createMemoryFile(folder, memory.ramSize)
        var translations = processors.map { $0.engine?.makeRoomForTranslations() }
        let ahead = try saveAhead(into: file, progress)
        defer { if let ahead { endSaving(ahead) } }
        let started = HostClock.monotonic
        let (state, capture, pagesInPause) = try captureState(into: file, ahead, &translations, whilePaused)
        let pause = HostClock.monotonic &- started
        capture.saveRest(of: memory) { progress(SnapshotProgress(capture)) }
        memory.endCapture(capture)
        if let failure = capture.failure {
            throw MachineError(.state, "the snapshot's memory can't be written: \(failure.reason)")
        }
        // What was damaged would have good checksums now.
        if let damage = memory.savedDamage { throw MachineError(.state, "\(damage): no snapshot can be made of it") }
        let sums = capture.sums
        let manifest = SnapshotManifest(
            created: Date().formatted(.iso8601), memory: memory.ramSize, pages: sums.count { $0 != 0 },
            processors: processorCount, model: processors[0].cpu.model.name)
        do { try file.synchronize() } catch {
            throw MachineError(.state, "the snapshot's memory can't be written: \(error)")
        }
        try Snapshot.write(manifest, state: try state.encoded, sums: sums, to: folder)
        let sum = Snapshot.sum(of: unsafe sums.withUnsafeBytes { unsafe [UInt8]($0) })
        for (number, saved) in translations.enumerated() {
            let path = Snapshot.translations(in: folder, number)
            // A cache: where there is no room for it, the snapshot is as good.
            do { try saved?.write(to: path, memory: sum) } catch { try? FileManager.default.removeItem(atPath: path) }
        }
        return SnapshotResult(
            pause: pause, bytes: UInt64(manifest.pages) * GuestMemory.pageSize, pagesInPause: pagesInPause)
    }

    /// Memory that is being saved while the engine doesn't tell of pages before they are written.
    private struct SavingAhead {
        var log: any WriteLog
        var capture: MemoryCapture
    }

    /// Saves memory while the machine runs, where the engine tells of writes afterwards only: what was written meanwhile
    /// is saved once more, and so on, until it is little or gets no less.
    private func saveAhead(
        into file: borrowing FileDescriptor, _ progress: (SnapshotProgress) -> Void
    ) throws(MachineError) -> SavingAhead? {
        guard let log = processors.lazy.compactMap({ $0.engine?.writeLog }).first else { return nil }
        try log.begin()
        let ahead: SavingAhead
        do throws(MachineError) { ahead = SavingAhead(log: log, capture: try beginCapture(to: file)) } catch {
            log.end()
            throw error
        }
        do throws(MachineError) {
            var last = Int.max
            // Each time it has become less by a quarter, so this ends.
            while true {
                ahead.capture.saveRest(of: memory) { progress(SnapshotProgress(ahead.capture)) }
                try log.collect()
                let written = ahead.capture.takeWritten(of: memory)
                if written < 256 || written > last / 4 * 3 { return ahead }
                last = written
            }
        } catch {
            endSaving(ahead)
            throw error
        }
    }

    private func endSaving(_ ahead: SavingAhead) {
        ahead.log.end()
        memory.endCapture(ahead.capture)
    }

    /// Takes the state and begins to save memory, or saves what is left of it, while the machine stands still; how many pages
    /// were saved by then.
    private func captureState(
        into file: borrowing FileDescriptor, _ ahead: SavingAhead?, _ translations: inout [SavedTranslations?],
        _ whilePaused: () throws(MachineError) -> Void
    ) throws(MachineError) -> (SavedMachine, MemoryCapture, pagesInPause: Int) {
        standstill.lockForWriting()
        defer { standstill.unlock() }
        let wasPaused = isPaused
        try stopProcessors()
        let state: SavedMachine
        let capture: MemoryCapture
        var pagesInPause = 0
        do throws(MachineError) {
            guard (ahead == nil) == processors.allSatisfy({ $0.engine?.writeLog == nil }) else {
                throw MachineError(.state, "the machine has moved to another engine while it was being saved")
            }
            state = try saveState()
            try whilePaused()
            if let ahead {
                capture = ahead.capture
                pagesInPause = try saveWritten(ahead)
            } else {
                capture = try beginCapture(to: file)
                for processor in processors { processor.vcpu.forgetWriteRights() }
            }
            saveTranslations(into: &translations)
        } catch {
            if !wasPaused { try letProcessorsGo() }
            throw error
        }
        if !wasPaused { try letProcessorsGo() }
        return (state, capture, pagesInPause)
    }

    /// Saves what was written since it was saved; how many pages that were.
    private func saveWritten(_ ahead: SavingAhead) throws(MachineError) -> Int {
        try ahead.log.collect()
        _ = ahead.capture.takeWritten(of: memory)
        let before = ahead.capture.progress.done
        ahead.capture.saveRest(of: memory)
        return ahead.capture.progress.done - before
    }

    /// Keeps what a disk holds in a file of another name, beside its own, and lets the guest write to a new one over it. For
    /// `whilePaused`.
    public func layDisk(_ path: String, as layer: String) throws(MachineError) {
        try backends.disks.lay(path, as: layer)
    }

    /// Copies each processor's translated code, or leaves nil.
    private func saveTranslations(into rooms: inout [SavedTranslations?]) {
        for (number, processor) in processors.enumerated() {
            guard var room = rooms[number].take() else { continue }
            if processor.engine?.saveTranslations(into: &room) == true { rooms[number] = room }
        }
    }

    private static func createMemoryFile(_ folder: String, _ size: UInt64) throws(MachineError) -> FileDescriptor {
        do {
            // O_RDWR | O_CREAT | O_EXCL
            let file = try FileDescriptor.open(folder + "/memory", 0o2 | 0o100 | 0o200)
            try file.setByteCount(size)
            return file
        } catch {
            throw MachineError(.state, "the snapshot's memory can't be written: \(error)")
        }
    }

    private func beginCapture(to file: borrowing FileDescriptor) throws(MachineError) -> MemoryCapture {
        do throws(SavedMemoryError) {
            return try memory.beginCapture(to: file)
        } catch {
            throw MachineError(.state, error.description)
        }
    }
}

extension Snapshot {
    /// The files of translated code, which are being checked from now on.
    func openTranslations(_ processors: Int) -> [TranslationFile?] {
        (0..<processors).map { TranslationFile(Self.translations(in: path, $0)) }
    }
}

extension Machine {
    /// Puts a snapshot's state into this machine, which has never run and is paused then.
    func restore(
        _ snapshot: Snapshot, _ choice: EngineChoice, code: [TranslationFile?]
    ) throws(MachineError) {
        guard snapshot.manifest.memory == memory.ramSize else {
            throw MachineError(
                .state,
                "the snapshot has \(sizeInWords(snapshot.manifest.memory)) of memory, the machine \(sizeInWords(memory.ramSize))"
            )
        }
        let saved = try snapshot.openMemory()
        do throws(SavedMemoryError) {
            if choice.kind == .kvm {
                try memory.restoreWhole(from: saved)
            } else {
                saved.whenDamaged { [weak self] damage in
                    self?.fail("\(snapshot.path): \(damage)")
                }
                try memory.restoreLazily(from: saved)
            }
        } catch {
            throw MachineError(.state, "snapshot \(snapshot.path): \(error)")
        }
        door.close()
        try restoreState(snapshot.state)
        try adoptProcessors()
        for (processor, file) in zip(processors, code) {
            if let file { _ = processor.engine?.restoreTranslations(from: file, memory: snapshot.memorySum) }
        }
        // The state is an earlier one, or another machine's too: what must be unique has to be made anew.
        if !door.isOrdered { for processor in processors { processor.cpu.seedRandom(door.randomBytes(16)) } }
        board.generation.change()
        board.events.tell(.generation)
    }
}
