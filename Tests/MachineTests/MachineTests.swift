// Boot images: what is recognized, what is refused and in which words.
import Foundation
import GuestMemory
import Machine
import Testing

/// A crafted bzImage header with `payload` bytes of kernel.
func makeBzImage(payload: Int = 4096, setup: ((inout [UInt8]) -> Void)? = nil) -> [UInt8] {
    var image = [UInt8](repeating: 0, count: 5 * 512)
    image[0x1F1] = 4
    image.put(little: UInt32(payload / 16), at: 0x1F4)
    image.put(little: UInt16(0xAA55), at: 0x1FE)
    image[0x201] = 0x6A
    image.put(little: UInt32(0x5372_6448), at: 0x202)
    image.put(little: UInt16(0x020F), at: 0x206)
    image[0x211] = 1
    image.put(little: UInt32(0x7FFF_FFFF), at: 0x22C)
    image.put(little: UInt32(0x20_0000), at: 0x230)
    image[0x234] = 1
    image.put(little: UInt16(0x3F), at: 0x236)
    image.put(little: UInt32(2047), at: 0x238)
    image.put(little: UInt64(0x100_0000), at: 0x258)
    image.put(little: UInt32(0x10_0000), at: 0x260)
    setup?(&image)
    return image + [UInt8](repeating: 0x90, count: payload)
}

/// A 64-bit ELF file with one segment at 2 MiB and, if wanted, a PVH note.
func makeELF(machine: UInt16 = 62, note: Bool = true) -> [UInt8] {
    var image: [UInt8] = [0x7F, 0x45, 0x4C, 0x46, 2, 1, 1] + [UInt8](repeating: 0, count: 9)
    image.append(little: UInt16(2))
    image.append(little: machine)
    image.append(little: UInt32(1))
    for value in [UInt64(0x20_0000), 64, 0] { image.append(little: value) }
    image.append(little: UInt32(0))
    for value in [UInt16(64), 56, note ? 2 : 1, 0, 0, 0] { image.append(little: value) }
    func segment(_ type: UInt32, _ offset: UInt64, _ address: UInt64, _ size: UInt64, _ memory: UInt64) {
        image.append(little: type)
        image.append(little: UInt32(7))
        for value in [offset, address, address, size, memory, 4096] { image.append(little: value) }
    }
    segment(1, 256, 0x20_0000, 256, 8192)
    if note { segment(4, 512, 0, 20, 20) }
    image += [UInt8](repeating: 0, count: 256 - image.count) + [UInt8](repeating: 0xCC, count: 256)
    if note {
        for value in [UInt32(4), 4, 18] { image.append(little: value) }
        image += Array("Xen\0".utf8)
        image.append(little: UInt32(0x20_0010))
    }
    return image
}

/// A Multiboot header with addresses.
func makeMultiboot(_ addresses: [UInt32]) -> [UInt32] {
    let flags: UInt32 = 0x1_0003
    return [0x1BAD_B002, flags, 0 &- 0x1BAD_B002 &- flags] + addresses
}

func makeLoader(_ size: UInt64) throws -> (GuestMemory, GuestLoader) {
    let memory = try GuestMemory(size: size)
    return (memory, GuestLoader(memory: memory))
}

func code(_ body: () throws -> Void) -> BootError.Code? {
    do {
        try body()
        return nil
    } catch {
        return (error as? BootError)?.code
    }
}

@Suite("Boot images")
struct BootTests {
    @Test("A bzImage enters in long mode at +0x200 with the zero page in RSI")
    func linux() throws {
        let (memory, loader) = try makeLoader(64 << 20)
        let image = makeBzImage()
        #expect(try BootProtocol.sniff(image, name: "k") == .linux)
        let entry = try LinuxHeader(image, name: "k").load(
            image, initrd: [1, 2, 3], commandLine: "console=ttyS0", loader: loader)
        #expect(entry.mode == .long64)
        #expect(entry.rip == 0x100_0200)
        #expect(entry.registers[6] == 0x7000)
        let page = try memory.read(GuestPhysicalAddress(0x7000), length: 4096)
        #expect(page.little(0x202, as: UInt32.self) == 0x5372_6448)
        #expect(page.little(0x21C, as: UInt32.self) == 3)
        let ramdisk = try #require(page.little(0x218, as: UInt32.self))
        #expect(try memory.read(GuestPhysicalAddress(UInt64(ramdisk)), length: 3) == [1, 2, 3])
        #expect(page[0x1E8] == UInt8(MemoryMapEntry.map(ramSize: 64 << 20).count))
        let line = try #require(page.little(0x228, as: UInt32.self))
        #expect(try memory.read(GuestPhysicalAddress(UInt64(line)), length: 14) == Array("console=ttyS0\0".utf8))
        let table: UInt64 = try memory.load(GuestPhysicalAddress(entry.pageTable))
        #expect(table & 3 == 3)
    }

    @Test("A kernel cut short, larger than RAM, or with an initrd that doesn't fit is refused")
    func refusals() throws {
        let (_, loader) = try makeLoader(32 << 20)
        let image = makeBzImage(payload: 65536)
        #expect(code { _ = try LinuxHeader(Array(image.dropLast(5000)), name: "k") } == .truncated)
        #expect(code { _ = try LinuxHeader(Array(image.prefix(0x230)), name: "k") } == .truncated)
        let header = try LinuxHeader(image, name: "k")
        let big = [UInt8](repeating: 0, count: 20 << 20)
        #expect(code { _ = try header.load(image, initrd: big, commandLine: "", loader: loader) } == .initrdTooLarge)
        let long = String(repeating: "x", count: 3000)
        #expect(
            code { _ = try header.load(image, initrd: [], commandLine: long, loader: loader) } == .commandLineTooLong)
        let (_, small) = try makeLoader(8 << 20)
        #expect(code { _ = try header.load(image, initrd: [], commandLine: "", loader: small) } == .tooLarge)
    }

    @Test("Kernels of other processors are named")
    func architectures() {
        var arm = [UInt8](repeating: 0, count: 4096)
        arm.put(little: UInt16(0x5A4D), at: 0)
        arm.put(little: UInt32(0x644D_5241), at: 0x38)
        #expect(throws: BootError(.otherArchitecture, "kernel k: built for aarch64, not for x86")) {
            _ = try BootProtocol.sniff(arm, name: "k")
        }
        #expect(throws: BootError(.otherArchitecture, "kernel k: built for riscv, not for x86")) {
            _ = try BootProtocol.sniff(makeELF(machine: 243), name: "k")
        }
        #expect(code { _ = try BootProtocol.sniff([], name: "k") } == .truncated)
        #expect(code { _ = try BootProtocol.sniff(Array("#!/bin/sh\n".utf8), name: "k") } == .notAKernel)
        #expect(code { _ = try BootProtocol.sniff(makeELF(note: false), name: "k") } == .notAKernel)
        var many = makeELF() + [UInt8](repeating: 0, count: 1 << 20)
        many.put(little: UInt16(10_000), at: 56)
        #expect(code { _ = try ELFImage(many, name: "k") } == .malformed)
    }

    @Test("PVH: the entry comes from the Xen note, the start information in RBX")
    func pvh() throws {
        let (memory, loader) = try makeLoader(16 << 20)
        let image = makeELF()
        guard case .pvh(let address) = try BootProtocol.sniff(image, name: "k") else {
            Issue.record("not seen as PVH")
            return
        }
        #expect(address == 0x20_0010)
        _ = loader
        let directory = try TemporaryFile(image)
        let state = try BootSource(kernel: directory.path, commandLine: "hello").load(into: memory)
        #expect(state.mode == .protected32)
        #expect(state.rip == 0x20_0010)
        let start = try memory.read(GuestPhysicalAddress(state.registers[3] ?? 0), length: 56)
        #expect(start.little(0, as: UInt32.self) == 0x336E_C578)
        #expect(start.little(32, as: UInt64.self) == 0xE_0000)
        let map = try #require(start.little(40, as: UInt64.self))
        #expect(try memory.load(GuestPhysicalAddress(map + 8), as: UInt64.self) == 0x9_FC00)
    }

    @Test("Multiboot: flat image, modules with arguments, map and command line")
    func multiboot() throws {
        let (memory, _) = try makeLoader(16 << 20)
        var image = [UInt8](repeating: 0, count: 4096)
        for (index, value) in makeMultiboot([0x10_0010, 0x10_0000, 0, 0x10_8000, 0x10_0040]).enumerated() {
            image.put(little: value, at: 16 + index * 4)
        }
        let kernel = try TemporaryFile(image)
        let module = try TemporaryFile(Array("module".utf8))
        let state = try BootSource(
            kernel: kernel.path, initrd: "\(module.path) one two,\(module.path)", commandLine: "a b"
        )
        .load(into: memory)
        #expect(state.rip == 0x10_0040)
        #expect(state.registers[0] == 0x2BAD_B002)
        let information = try memory.read(GuestPhysicalAddress(state.registers[3] ?? 0), length: 120)
        #expect(information.little(20, as: UInt32.self) == 2)
        let list = UInt64(try #require(information.little(24, as: UInt32.self)))
        let first: UInt32 = try memory.load(GuestPhysicalAddress(list))
        #expect(first >= 0x10_8000)
        #expect(try memory.read(GuestPhysicalAddress(UInt64(first)), length: 6) == Array("module".utf8))
        let text: UInt32 = try memory.load(GuestPhysicalAddress(list + 8))
        let words = Array("\(module.path) one two\0".utf8)
        #expect(try memory.read(GuestPhysicalAddress(UInt64(text)), length: words.count) == words)
    }

    @Test("Damaged images are refused or loaded, never a crash")
    func fuzz() throws {
        let (memory, loader) = try makeLoader(8 << 20)
        _ = memory
        var random = UInt64(42)
        func next(_ bound: Int) -> Int {
            random = random &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
            return Int(random >> 33) % bound
        }
        var flat = [UInt8](repeating: 0, count: 1024)
        for (index, value) in makeMultiboot([0x10_0000, 0x10_0000]).enumerated() {
            flat.put(little: value, at: index * 4)
        }
        let originals = [makeBzImage(payload: 1024), makeELF(), makeELF(note: false), flat]
        for round in 0..<4000 {
            var image = originals[round % originals.count]
            for _ in 0..<(1 + next(6)) {
                // Mostly header fields, with the values that break arithmetic.
                let place = next(2) == 0 ? next(min(image.count, 0x280)) : next(image.count)
                image[place] = [0, 1, 0x7F, 0x80, 0xFF, UInt8(next(256))][next(6)]
            }
            if next(4) == 0 { image.removeLast(next(image.count)) }
            _ = code {
                switch try BootProtocol.sniff(image, name: "k") {
                case .linux:
                    _ = try LinuxHeader(image, name: "k").load(image, initrd: [1], commandLine: "x", loader: loader)
                case .multiboot(let offset):
                    _ = try MultibootHeader(image, at: offset, name: "k").load(
                        image, modules: [], commandLine: "x", loader: loader)
                case .pvh(let entry):
                    _ = try PVHLoader(name: "k", entry: entry).load(
                        image, initrd: [1], commandLine: "x", loader: loader)
                }
            }
        }
    }

    @Test("The memory map leaves the PCI hole out and goes on at 4 GiB")
    func memoryMap() {
        let map = MemoryMapEntry.map(ramSize: 5 << 30)
        #expect(map.contains(MemoryMapEntry(start: 1 << 32, length: 2 << 30, type: 1)))
        #expect(map.contains(MemoryMapEntry(start: 0x10_0000, length: 0xBFF0_0000, type: 1)))
        #expect(map.filter { $0.type == 1 }.reduce(0) { $0 + $1.length } <= 5 << 30)
        for (one, two) in zip(map, map.dropFirst()) { #expect(one.end <= two.start) }
    }
}

/// A file that goes away with its owner.
final class TemporaryFile {
    let path: String

    init(_ bytes: [UInt8]) throws {
        path = "/tmp/roost-test-\(UInt64.random(in: 0...UInt64.max))"
        try Data(bytes).write(to: URL(fileURLWithPath: path))
    }

    deinit { try? FileManager.default.removeItem(atPath: path) }
}
