// The virtio memory device: a region of memory of which the guest has as much as the host asks it to take.
//
// Virtual I/O Device (VIRTIO) 1.2, 5.15. Queue 0: requests.
//
//   configuration  00 block_size 64   08 node_id 16   10 addr 64   18 region_size 64   20 usable_region_size 64
//                  28 plugged_size 64   30 requested_size 64
//   request        00 type 16 (0 plug, 1 unplug, 2 unplug all, 3 state)   08 addr 64   10 nb_blocks 16
//   response       00 type 16 (0 ack, 1 nack, 2 busy, 3 error)   08 state 16 (0 plugged, 1 unplugged, 2 mixed)
//
// The region is RAM all the time: what isn't plugged is given back to the host when it is unplugged.
internal import DeviceModel
internal import GuestMemory
internal import Synchronization

/// Memory that comes and goes.
public final class VirtioMemory: VirtioDevice {
    /// What is plugged and unplugged in one piece, and what the region's start and length are multiples of.
    public static let blockSize: UInt64 = 2 << 20

    /// What the device holds beside its queue.
    public struct State: Codable, Sendable, Equatable {
        /// The region.
        var start, size: UInt64
        /// Bytes of it that are wanted.
        var requested: UInt64
        /// Numbers of blocks that are unplugged, plugged, unplugged and so on, from the start on.
        var runs: [Int]
    }

    private struct Contents: Sendable {
        var isPlugged: [Bool]
        var requested: UInt64 = 0
        var reference = WeakTransport()
    }

    private enum Answer: UInt16 { case ack, nack, busy, error }

    private let start: UInt64
    private let size: UInt64
    private let contents: Mutex<Contents>

    /// Makes a device for a region of RAM that the guest isn't told of otherwise; start and length are multiples of a block.
    public init(region: Range<UInt64>) {
        start = region.lowerBound
        size = region.upperBound - region.lowerBound
        contents = Mutex(Contents(isPlugged: [Bool](repeating: false, count: Int(size / Self.blockSize))))
    }

    /// Memory.
    public var deviceID: UInt16 { 24 }
    /// Memory controller, other.
    public var classCode: UInt32 { 0x05_80_00 }
    /// Requests.
    public var queueSizes: [UInt16] { [64] }
    /// None of its own.
    public var features: UInt64 { 0 }

    /// Block size, region, and how much of it is plugged and wanted.
    public var configuration: [UInt8] {
        let (plugged, requested) = contents.withLock { (Self.plugged($0), $0.requested) }
        return littleEndian(Self.blockSize) + littleEndian(UInt64(0)) + littleEndian(start) + littleEndian(size)
            + littleEndian(size) + littleEndian(plugged) + littleEndian(requested)
    }

    private static func plugged(_ contents: borrowing Contents) -> UInt64 {
        UInt64(contents.isPlugged.count { $0 }) * blockSize
    }

    /// Bytes in the region.
    public var regionSize: UInt64 { size }
    /// Bytes that the guest has taken.
    public var pluggedSize: UInt64 { contents.withLock { Self.plugged($0) } }

    /// Asks the guest to have so many bytes of the region, rounded down to blocks; it takes or gives back when it can.
    public func request(_ bytes: UInt64) {
        let transport = contents.withLock { contents in
            contents.requested = min(bytes, size) / Self.blockSize * Self.blockSize
            return contents.reference.transport
        }
        transport?.configurationChanged()
    }

    /// Takes all memory away: the machine starts again.
    public func unplugAll() {
        contents.withLock { $0.isPlugged = [Bool](repeating: false, count: $0.isPlugged.count) }
    }

    /// Keeps a weak reference.
    public func attach(to transport: VirtioPCI) { contents.withLock { $0.reference.transport = transport } }
    /// Nothing to do until the first request.
    public func activate(features: UInt64) {}
    /// What is plugged stays so: the next driver finds it.
    public func reset() {}

    /// Requests of the guest.
    public func notified(queue: Int) {
        guard let transport = contents.withLock({ $0.reference.transport }) else { return }
        // Giving back takes time: no more at once than the queue holds.
        transport.drain(0, limit: 64) { chain, _ in
            let bytes = transport.memory.gather(chain.readable, limit: 24)
            var (answer, state): (Answer, UInt16) = (.error, 0)
            if bytes.count == 24 {
                (answer, state) = perform(
                    Int(number(bytes[0..<2])), number(bytes[8..<16]), number(bytes[16..<18]), transport.memory)
            }
            let response = littleEndian(answer.rawValue) + [0, 0, 0, 0, 0, 0] + littleEndian(state)
            return transport.memory.scatter(response, into: chain.writable)
        }
    }

    /// - Spec: virtio 1.2, 5.15.6
    private func perform(_ type: Int, _ address: UInt64, _ blocks: UInt64, _ memory: GuestMemory) -> (Answer, UInt16) {
        if type == 2 {
            let plugged = contents.withLock { contents in
                defer { contents.isPlugged = [Bool](repeating: false, count: contents.isPlugged.count) }
                return contents.isPlugged.indices.filter { contents.isPlugged[$0] }
            }
            for block in plugged { giveBack(block..<block + 1, memory) }
            return (.ack, 0)
        }
        let offset = address &- start
        guard address >= start, offset % Self.blockSize == 0, blocks > 0, offset < size,
            blocks <= (size - offset) / Self.blockSize
        else { return (.error, 0) }
        let first = Int(offset / Self.blockSize)
        let range = first..<first + Int(blocks)
        let answer = contents.withLock { contents -> (Answer, UInt16) in
            let plugged = range.count { contents.isPlugged[$0] }
            switch type {
            case 0:
                guard plugged == 0 else { return (.error, 0) }
                guard Self.plugged(contents) + blocks * Self.blockSize <= contents.requested else { return (.nack, 0) }
                for block in range { contents.isPlugged[block] = true }
            case 1:
                guard plugged == range.count else { return (.error, 0) }
                for block in range { contents.isPlugged[block] = false }
            case 3: return (.ack, plugged == range.count ? 0 : plugged == 0 ? 1 : 2)
            default: return (.error, 0)
            }
            return (.ack, 0)
        }
        if type == 1, answer.0 == .ack { giveBack(range, memory) }
        return answer
    }

    private func giveBack(_ blocks: Range<Int>, _ memory: GuestMemory) {
        memory.giveBack(
            GuestPhysicalAddress(start + UInt64(blocks.lowerBound) * Self.blockSize),
            length: blocks.count * Int(Self.blockSize))
    }

    // MARK: State

    /// Which blocks are plugged, and how much is wanted.
    public func saveDeviceState() -> VirtioDeviceState {
        var state = VirtioDeviceState()
        state.memory = contents.withLock { contents in
            var runs = [0]
            var isPlugged = false
            for block in contents.isPlugged {
                if block != isPlugged { runs.append(0) }
                isPlugged = block
                runs[runs.count - 1] += 1
            }
            return State(start: start, size: size, requested: contents.requested, runs: runs)
        }
        return state
    }

    /// Puts that back.
    public func restoreDeviceState(_ state: VirtioDeviceState) throws {
        guard let saved = state.memory, saved.start == start, saved.size == size, saved.requested <= size else {
            throw StateError("saved memory of another size")
        }
        try contents.withLock { contents in
            var blocks: [Bool] = []
            for (number, run) in saved.runs.enumerated() {
                guard 0...contents.isPlugged.count - blocks.count ~= run else { break }
                blocks += [Bool](repeating: number & 1 != 0, count: run)
            }
            guard blocks.count == contents.isPlugged.count else { throw StateError("saved memory of other blocks") }
            contents.isPlugged = blocks
            contents.requested = saved.requested
        }
    }
}
