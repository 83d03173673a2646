// The state of a paused machine, all but its memory and disks, as one JSON document (law 3).
//
//   version      of this document
//   time         guest nanoseconds since the first start
//   processors   one for each vCPU: its state, the paravirtual clock, what is on its way in
//   components   the board's, by name; what each holds is in its `State`
internal import CHost
internal import CPU
internal import DeviceModel
internal import Devices
internal import Foundation
internal import Synchronization

/// What a vCPU needs to go on beside the board.
struct ProcessorState: Codable, Sendable {
    var cpu: VCPUState
    /// After INIT: it waits for a start-up message.
    var awaitsStartup: Bool
    var clock: KVMClock.Registers
    /// A vector that the 8259 has handed out and the guest hasn't got.
    var undelivered: UInt8?
}

/// A component's name in the document.
private struct Name: CodingKey {
    var stringValue: String
    var intValue: Int? { nil }
    init(_ name: String) { stringValue = name }
    init?(stringValue: String) { self.stringValue = stringValue }
    init?(intValue: Int) { nil }
}

/// The states of components, taken or read from a document.
struct ComponentStates: Codable {
    private typealias Write = (inout KeyedEncodingContainer<Name>) throws -> Void

    private let writes: [Write]
    private let container: KeyedDecodingContainer<Name>?

    /// Takes the states now; they are written when the document is.
    init(_ components: [(name: String, component: any Saveable)]) {
        var writes: [Write] = []
        for (name, component) in components { writes.append(Self.take(component, Name(name))) }
        self.writes = writes
        container = nil
    }

    private static func take(_ component: some Saveable, _ name: Name) -> Write {
        let state = component.saveState()
        return { try $0.encode(state, forKey: name) }
    }

    func encode(to encoder: any Swift.Encoder) throws {
        var container = encoder.container(keyedBy: Name.self)
        for write in writes { try write(&container) }
    }

    init(from decoder: any Swift.Decoder) throws {
        writes = []
        container = try decoder.container(keyedBy: Name.self)
    }

    /// Puts the states into components of the same names, in their order.
    func restore(_ components: [(name: String, component: any Saveable)]) throws {
        let known = Set(components.map(\.name))
        if let other = container?.allKeys.first(where: { !known.contains($0.stringValue) }) {
            throw StateError("it has a \(other.stringValue), which this machine hasn't")
        }
        for (name, component) in components { try restore(component, Name(name)) }
    }

    private func restore(_ component: some Saveable, _ name: Name) throws {
        guard let container, container.contains(name) else {
            throw StateError("it has no \(name.stringValue), which this machine has")
        }
        try Self.put(component, container, name)
    }

    private static func put<Component: Saveable>(
        _ component: Component, _ container: KeyedDecodingContainer<Name>, _ name: Name
    ) throws {
        let state = try container.decode(Component.State.self, forKey: name)
        do {
            try component.restoreState(state)
        } catch let error as StateError {
            throw StateError("\(name.stringValue): \(error)")
        }
    }
}

/// The document.
struct SavedMachine: Codable {
    static let version = 1

    var version = Self.version
    var time: UInt64
    var processors: [ProcessorState]
    var components: ComponentStates

    /// Its bytes.
    var encoded: [UInt8] {
        get throws(MachineError) {
            do {
                return Array(try JSONEncoder().encode(self))
            } catch {
                throw MachineError(.state, "the machine's state can't be written: \(error)")
            }
        }
    }
}

/// What is read first: a newer document may have another layout.
private struct VersionOnly: Codable {
    var version: Int
}

extension Machine {
    /// Takes the state; the machine is paused.
    func saveState() throws(MachineError) -> SavedMachine {
        guard let pausedAt = pausedAt.withLock({ $0 }) else {
            throw MachineError(.state, "only a paused machine has a state to save")
        }
        return SavedMachine(
            time: door.now, processors: processors.map { $0.saveState(at: pausedAt) },
            components: ComponentStates(board.components))
    }

    /// Puts a document's state into a machine that has never run; it is paused then. A machine that it doesn't fit must
    /// not be run.
    func restoreState(_ bytes: [UInt8]) throws(MachineError) {
        do {
            let data = Data(bytes)
            let version = try JSONDecoder().decode(VersionOnly.self, from: data).version
            guard version == SavedMachine.version else {
                throw StateError("it has version \(version); this Roost reads version \(SavedMachine.version)")
            }
            let state = try JSONDecoder().decode(SavedMachine.self, from: data)
            guard state.processors.count == processors.count else {
                throw StateError(
                    "it is of \(state.processors.count) processors at most, this machine of \(processors.count)")
            }
            let now = roost_rdtsc()
            try state.components.restore(board.components)
            for (processor, saved) in zip(processors, state.processors) { try processor.restoreState(saved, at: now) }
            pausedAt.withLock { $0 = now }
        } catch let error as StateError {
            throw MachineError(.state, "the saved state doesn't fit: \(error)")
        } catch {
            throw MachineError(.state, "the saved state can't be read: \(Self.describe(error))")
        }
    }

    /// Guest time in a document, which the door must be made with.
    static func time(of bytes: [UInt8]) throws(MachineError) -> UInt64 {
        struct Time: Codable { var time: UInt64 }
        do {
            return try JSONDecoder().decode(Time.self, from: Data(bytes)).time
        } catch {
            throw MachineError(.state, "the saved state can't be read: \(Self.describe(error))")
        }
    }

    private static func describe(_ error: any Error) -> String {
        guard let error = error as? DecodingError else { return "\(error)" }
        switch error {
        case .keyNotFound(let key, _): return "\(key.stringValue) is missing"
        case .typeMismatch(_, let context), .valueNotFound(_, let context), .dataCorrupted(let context):
            let path = context.codingPath.map(\.stringValue).joined(separator: ".")
            return path.isEmpty ? "it isn't JSON" : "\(path) is malformed"
        @unknown default: return "\(error)"
        }
    }
}

extension Processor {
    /// Takes the state of a vCPU that waits; its time-stamp counter at the host's `counter`.
    func saveState(at counter: UInt64) -> ProcessorState {
        var state = cpu.saveState()
        // SAFETY: the vCPU waits.
        if !isOrdered { unsafe state.timeStamp = counter &+ cpu.state.pointee.tsc_offset }
        return ProcessorState(
            cpu: state, awaitsStartup: unsafe cpu.state.pointee.awaits_startup != 0, clock: clock.registers,
            undelivered: undelivered)
    }

    /// Puts a state into a vCPU that has never run.
    func restoreState(_ saved: ProcessorState, at counter: UInt64) throws {
        try cpu.restoreState(saved.cpu)
        // SAFETY: the vCPU hasn't run.
        if !isOrdered { unsafe cpu.state.pointee.tsc_offset = saved.cpu.timeStamp &- counter }
        unsafe cpu.state.pointee.awaits_startup = saved.awaitsStartup ? 1 : 0
        clock.registers = saved.clock
        undelivered = saved.undelivered
    }
}
