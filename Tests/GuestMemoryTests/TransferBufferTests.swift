// Requests that go to guest memory directly: which bytes, what becomes of pages, and what a reset does.
import Foundation
import GuestMemory
import HostOS
import Synchronization
import Testing

@Suite struct TransferBufferTests {
    private let memory: GuestMemory
    private let gate = TransferGate()
    private let ranges = [
        GuestMemoryRange(address: GuestPhysicalAddress(0x3000), length: 16),
        GuestMemoryRange(address: GuestPhysicalAddress(0x8FF0), length: 32),
        GuestMemoryRange(address: GuestPhysicalAddress(0x1000), length: 100),
    ]

    init() throws { memory = try GuestMemory(size: 1 << 20) }

    private func buffer(from offset: Int = 16, count: Int = 100, isFilled: Bool = true) -> TransferBuffer {
        TransferBuffer(memory, ranges, from: offset, count: count, isFilled: isFilled, gate: gate, life: gate.life)
    }

    private func flags(_ page: Int) -> PageFlags { PageFlags(rawValue: memory.pageFlags[page]) }

    @Test func `a buffer is the ranges' bytes behind the header, as many as are wanted`() throws {
        let bytes = (1...100).map { UInt8($0) }
        try buffer().withMemory { $0.store(bytes) }
        #expect(try memory.read(GuestPhysicalAddress(0x3000), length: 16) == [UInt8](repeating: 0, count: 16))
        #expect(try memory.read(GuestPhysicalAddress(0x8FF0), length: 32) == Array(bytes[..<32]))
        #expect(
            try memory.read(GuestPhysicalAddress(0x1000), length: 100)
                == bytes[32...] + [UInt8](repeating: 0, count: 32))
        #expect(try buffer(isFilled: false).withMemory { $0.load() } == bytes)
        #expect(buffer(count: 1000).count == 132)
        #expect(buffer(from: 200).count == 0)
    }

    @Test func `pages that are filled are dirty, and code on them is known to be stale`() throws {
        memory.pageFlags[1] = PageFlags.code.rawValue
        let told = Mutex<[UInt64]>([])
        memory.onCodeWritten(vcpu: 0) { page in told.withLock { $0.append(page) } }
        try buffer().withMemory { _ in }
        #expect(flags(1).contains(.dirty) && flags(8).contains(.dirty) && flags(9).contains(.dirty))
        #expect(!flags(3).contains(.dirty) && memory.codeVersions[1] == 1)
        #expect(told.withLock { $0 } == [1])
    }

    @Test func `pages that are only read stay clean`() throws {
        try buffer(isFilled: false).withMemory { _ in }
        #expect([1, 8, 9].allSatisfy { flags($0).isEmpty })
    }

    @Test func `what was asked for before a reset isn't carried out after it`() throws {
        let old = buffer()
        gate.cut()
        #expect(throws: TransferCut.self) { try old.withMemory { $0.zero() } }
        try buffer().withMemory { $0.zero() }
    }

    @Test func `a reset waits for transfers that have begun`() throws {
        let buffer = buffer()
        let (list, done) = (try buffer.begin(), DispatchSemaphore(value: 0))
        let thread = Thread { [gate] in
            gate.cut()
            done.signal()
        }
        thread.start()
        #expect(done.wait(timeout: .now() + .milliseconds(50)) == .timedOut)
        list.store([1])
        buffer.end()
        #expect(done.wait(timeout: .now() + .seconds(60)) == .success)
    }

    @Test func `a range outside RAM is refused, and holds nothing up`() throws {
        let wrong = [GuestMemoryRange(address: GuestPhysicalAddress(0xFFFF0), length: 32)]
        let buffer = TransferBuffer(memory, wrong, from: 0, count: 32, isFilled: true, gate: gate, life: gate.life)
        #expect(throws: GuestMemoryError.self) { try buffer.withMemory { $0.zero() } }
        gate.cut()
    }
}
