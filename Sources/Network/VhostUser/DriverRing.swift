// The driver's side of a split virtqueue in memory that is shared with the device's.
//
// Virtual I/O Device (VIRTIO) 1.2, 2.7. Each of the descriptors has a buffer of its own, so a descriptor's number is a
// buffer's, and chains have one link.
//
//   0000  descriptors   address 64, length 32, flags 16 (2 the device writes), next 16
//   1000  available     flags 16 (1 no interrupts), index 16, heads 16
//   2000  used          flags 16 (1 no notifications), index 16, (head 32, length 32)
//
// The device's side is another program: what it writes is checked where it is read.
package import HostOS
internal import Synchronization

/// One virtqueue with its buffers.
package struct DriverRing: Sendable {
    /// Descriptors, and buffers.
    package static let size: UInt16 = 256
    /// Bytes of a buffer: the longest packet, in whole pages.
    package static let bufferSize = 17 * 4096
    /// Bytes of the three parts.
    package static let ringLength = 0x3000
    package static let availableOffset = 0x1000
    package static let usedOffset = 0x2000

    private let memory: SharedMemory
    /// Offsets of the three parts and of the first buffer.
    private let start: Int
    private let buffers: Int
    /// What is added to offsets in descriptors.
    private let address: UInt64
    private let deviceWrites: Bool
    /// Descriptors that the driver has.
    private var free: [UInt16]
    private var isOut = [Bool](repeating: false, count: Int(size))
    private var nextAvailable: UInt16 = 0
    private var nextUsed: UInt16 = 0

    /// A ring in fresh memory, which is zero, with nothing made available.
    package init(in memory: SharedMemory, start: Int, buffers: Int, address: UInt64, deviceWrites: Bool) {
        self.memory = memory
        self.start = start
        self.buffers = buffers
        self.address = address
        self.deviceWrites = deviceWrites
        free = Array((0..<Self.size).reversed())
    }

    /// Buffers that the driver has.
    package var freeCount: Int { free.count }

    /// Makes a buffer available: with bytes that the device reads, or empty for it to write into. The device sees it after
    /// `publish`. False if the device has all of them.
    package mutating func add(_ bytes: [UInt8] = []) -> Bool {
        guard bytes.count <= Self.bufferSize, let head = free.popLast() else { return false }
        let buffer = buffers + Int(head) * Self.bufferSize
        memory.write(bytes, at: buffer)
        let descriptor = start + Int(head) * 16
        memory.store(address &+ UInt64(buffer), at: descriptor)
        memory.store(UInt32(deviceWrites ? Self.bufferSize : bytes.count), at: descriptor + 8)
        memory.store(UInt16(deviceWrites ? 2 : 0), at: descriptor + 12)
        memory.store(head, at: start + Self.availableOffset + 4 + 2 * Int(nextAvailable % Self.size))
        nextAvailable = nextAvailable &+ 1
        isOut[Int(head)] = true
        return true
    }

    /// Shows the device what was added; true if it wants to be told.
    package func publish() -> Bool {
        atomicMemoryFence(ordering: .releasing)
        memory.store(nextAvailable, at: start + Self.availableOffset + 2)
        atomicMemoryFence(ordering: .sequentiallyConsistent)
        return memory.load(start + Self.usedOffset, as: UInt16.self) & 1 == 0
    }

    /// Takes a buffer back that the device is through with, and what it wrote into it; nil if there is none.
    package mutating func take() throws(NetworkError) -> [UInt8]? {
        let index = memory.load(start + Self.usedOffset + 2, as: UInt16.self)
        guard index != nextUsed else { return nil }
        atomicMemoryFence(ordering: .acquiring)
        let entry = start + Self.usedOffset + 4 + 8 * Int(nextUsed % Self.size)
        let head = memory.load(entry, as: UInt32.self)
        let length = memory.load(entry + 4, as: UInt32.self)
        guard head < UInt32(Self.size), isOut[Int(head)], length <= UInt32(Self.bufferSize) else {
            throw NetworkError(.host, "the back end gave a buffer back that it did not have")
        }
        nextUsed = nextUsed &+ 1
        isOut[Int(head)] = false
        free.append(UInt16(head))
        return deviceWrites ? memory.read(buffers + Int(head) * Self.bufferSize, length: Int(length)) : []
    }

    /// Asks for interrupts, or for none; with them on, true if the device has given something back meanwhile.
    package func setInterrupts(_ areOn: Bool) -> Bool {
        memory.store(UInt16(areOn ? 0 : 1), at: start + Self.availableOffset)
        atomicMemoryFence(ordering: .sequentiallyConsistent)
        return areOn && memory.load(start + Self.usedOffset + 2, as: UInt16.self) != nextUsed
    }
}
