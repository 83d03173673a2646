// The guest-physical address space: what is RAM, what is a hole, what is ROM, and that nothing reaches beyond.
import GuestMemory
import Testing

/// Shorthand.
private func at(_ address: UInt64) -> GuestPhysicalAddress { GuestPhysicalAddress(address) }

@Suite("Address space") struct AddressSpaceTests {
    @Test("RAM lies below the PCI hole and goes on at 4 GiB")
    func layout() throws {
        let small = try GuestMemory(size: 16 << 20)
        #expect(small.regions.map(\.start) == [at(0)])
        #expect(small.regions.map(\.length) == [16 << 20])
        let large = try GuestMemory(size: 4 << 30)
        #expect(large.regions.map(\.start) == [at(0), at(4 << 30)])
        #expect(large.regions.map(\.length) == [3 << 30, 1 << 30])
        #expect(large.regions.allSatisfy { $0.kind == .ram })
        #expect(large.limit == 5 << 30)
        try large.store(0x1234 as UInt16, at: at(5 << 30 - 2))
        #expect(try large.load(at(5 << 30 - 2)) as UInt16 == 0x1234)
        #expect(!large.isRAM(at(3 << 30)))
        #expect(!large.isRAM(at(4 << 30 - 1)))
        #expect(!large.isRAM(at(5 << 30)))
    }

    @Test(
        "An access outside RAM, across its end or around 2^64 fails and changes nothing",
        arguments: [
            (0xFF_FFFF, 2), (0x100_0000, 1), (0xC000_0000, 4), (0xFFFF_FFFF, 1), (0x1_0000_0000, 1), (UInt64.max, 1),
            (UInt64.max - 3, 8), (UInt64.max - 0xFFF, 4096), (0, Int.max), (0, -1), (1, Int.min), (0xFF_FFFF, Int.max),
        ] as [(UInt64, Int)])
    func bounds(address: UInt64, length: Int) throws {
        let memory = try GuestMemory(size: 16 << 20)
        #expect(!memory.isRAM(at(address), length: length))
        #expect(memory.hostAddress(at(address), length: length, forWriting: false) == nil)
        #expect(throws: GuestMemoryError(address: at(address), length: length)) {
            _ = try memory.read(at(address), length: length)
        }
        memory.didWrite(at(address), length: length)
        if length > 0 && length <= 4096 {
            #expect(throws: GuestMemoryError.self) {
                try memory.write([UInt8](repeating: 1, count: length), at: at(address))
            }
        }
        #expect(try memory.load(at(0xFF_FFF8)) as UInt64 == 0)
    }

    @Test("Values of every width at every alignment, little-endian")
    func values() throws {
        let memory = try GuestMemory(size: 1 << 20)
        for offset in 0..<9 as Range<UInt64> {
            try memory.store(0x8877_6655_4433_2211 as UInt64, at: at(0x1000 + offset))
            #expect(try memory.load(at(0x1000 + offset)) as UInt8 == 0x11)
            #expect(try memory.load(at(0x1001 + offset)) as UInt16 == 0x3322)
            #expect(try memory.load(at(0x1003 + offset)) as UInt32 == 0x7766_5544)
            #expect(try memory.read(at(0x1000 + offset), length: 3) == [0x11, 0x22, 0x33])
        }
    }

    @Test("An empty transfer anywhere in RAM is fine, its end included")
    func empty() throws {
        let memory = try GuestMemory(size: 1 << 20)
        #expect(try memory.read(at(0), length: 0).isEmpty)
        #expect(try memory.read(at(1 << 20), length: 0).isEmpty)
        try memory.write([], at: at(1 << 20))
    }
}

@Suite("ROM") struct ROMTests {
    @Test("ROM is read and never written through the checked interface")
    func readOnly() throws {
        let memory = try GuestMemory(size: 1 << 20)
        try memory.addROM(at: at(0xFFFF_F000), contents: [1, 2, 3])
        #expect(try memory.read(at(0xFFFF_F000), length: 4) == [1, 2, 3, 0])
        #expect(!memory.isRAM(at(0xFFFF_F000)))
        #expect(throws: GuestMemoryError.self) { try memory.store(9 as UInt8, at: at(0xFFFF_F000)) }
        #expect(memory.hostAddress(at(0xFFFF_F000), length: 1, forWriting: true) == nil)
        #expect(memory.pageFlags[0xF_FFFF] == PageFlags.readOnly.rawValue)
        memory.clear()
        #expect(try memory.load(at(0xFFFF_F001)) as UInt8 == 2)
    }

    @Test("ROM that is unaligned, over RAM or other ROM, beyond 4 GiB or too large is refused")
    func refused() throws {
        let memory = try GuestMemory(size: 1 << 20)
        try memory.addROM(at: at(0xFFFF_0000), contents: [UInt8](repeating: 1, count: 0x1_0000))
        let bad: [(UInt64, Int)] = [
            (0xFFFE_0001, 1), (0xF_F000, 1), (0xFFFF_F000, 1), (0xFFFE_F000, 4097), (0x1_0000_0000, 1),
            (0xE000_0000, 0x100_0001),
        ]
        for (start, length) in bad {
            #expect(throws: GuestMemoryError.self, "\(start) \(length)") {
                try memory.addROM(at: at(start), contents: [UInt8](repeating: 1, count: length))
            }
        }
        #expect(memory.regions.count == 2)
    }
}

@Suite("Page flags") struct PageFlagTests {
    private func dirty(_ memory: GuestMemory, _ pages: Range<Int>) -> [Bool] {
        pages.map { memory.pageFlags[$0] & PageFlags.dirty.rawValue != 0 }
    }

    @Test("A write marks the pages it touches as dirty, and no others")
    func dirtyPages() throws {
        let memory = try GuestMemory(size: 1 << 20)
        try memory.write([1, 2], at: at(0x1FFF))
        #expect(dirty(memory, 0..<4) == [false, true, true, false])
        try memory.store(1 as UInt64, at: at(0x3000))
        #expect(dirty(memory, 3..<5) == [true, false])
        _ = try memory.read(at(0x5000), length: 4096)
        #expect(dirty(memory, 5..<6) == [false])
    }

    @Test("A write to a page that holds code raises its version; clearing raises it too")
    func codeVersions() throws {
        let memory = try GuestMemory(size: 1 << 20)
        memory.pageFlags[2] |= PageFlags.code.rawValue
        try memory.write([UInt8](repeating: 1, count: 8192), at: at(0x1000))
        #expect([memory.codeVersions[1], memory.codeVersions[2]] == [0, 1])
        try memory.store(1 as UInt8, at: at(0x2FFF))
        #expect(memory.codeVersions[2] == 2)
        memory.clear()
        #expect(memory.codeVersions[2] == 3)
        #expect(try memory.load(at(0x2FFF)) as UInt8 == 0)
        #expect(dirty(memory, 1..<3) == [true, true])
    }
}
