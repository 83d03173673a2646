// Multiboot 1 images: ELF, or flat by the header's own addresses.
//
// - Spec: Multiboot Specification 0.6.96, sections 3.1 to 3.3.
//
//   offset  header                        offset  information
//   0       magic 0x1BADB002              0       flags: 0 memory, 2 command line, 3 modules, 6 map, 9 loader
//   4       flags: 16 addresses valid     4, 8    KiB below 640 KiB, KiB from 1 MiB
//   8       checksum                      16      command line
//   12      header_addr, load_addr        20, 24  module count, module list
//   20      load_end, bss_end, entry      44, 48  memory map length, address
//                                         64      boot loader's name

/// A module for a Multiboot kernel.
package struct MultibootModule: Sendable {
    /// Its bytes.
    var contents: [UInt8]
    /// Its name and arguments.
    var commandLine: String
}

/// A Multiboot header, checked.
package struct MultibootHeader: Equatable, Sendable {
    /// The file's name, for errors.
    let name: String
    /// Where it stands in the file.
    package let offset: Int
    /// Its feature flags.
    package let flags: UInt32

    static let magic: UInt32 = 0x1BAD_B002

    /// Looks for a header in the first 8 KiB, at multiples of 4.
    package static func find(_ image: [UInt8]) -> Int? {
        var offset = 0
        while offset + 12 <= min(image.count, 8192) {
            if image.little(offset, as: UInt32.self) == magic, let flags = image.little(offset + 4, as: UInt32.self),
                let sum = image.little(offset + 8, as: UInt32.self), magic &+ flags &+ sum == 0
            {
                return offset
            }
            offset += 4
        }
        return nil
    }

    /// Checks the header that stands at `offset`.
    package init(_ image: [UInt8], at offset: Int, name: String) throws(BootError) {
        guard let flags = image.little(offset + 4, as: UInt32.self) else {
            throw BootError(.truncated, "kernel \(name): truncated in its Multiboot header")
        }
        self.name = name
        self.offset = offset
        self.flags = flags
        // Bits 0 to 2: page-aligned modules, memory information, video mode; others below 16 must be understood.
        guard flags & 0xFFF8 == 0 else {
            throw BootError(
                .malformed, "kernel \(name): Multiboot flags 0x\(String(flags, radix: 16)) ask for unknown features")
        }
    }

    /// Loads image, modules and information.
    package func load(_ image: [UInt8], modules: [MultibootModule], commandLine: String, loader: GuestLoader)
        throws(BootError) -> EntryState
    {
        let (entry, imageEnd) =
            flags & 0x1_0000 != 0 ? try loadFlat(image, loader) : try loadELF(image, loader)
        guard entry <= UInt64(UInt32.max) else {
            throw BootError(.malformed, "kernel \(name): its entry point lies above 4 GiB")
        }
        var place = imageEnd.roundedUp(to: 4096)
        if place < 0x10_0000 { place = 0x10_0000 }

        func put(_ bytes: [UInt8], _ what: String) throws(BootError) -> UInt64 {
            let at = place
            guard UInt64(bytes.count) <= loader.lowEnd, at <= loader.lowEnd - UInt64(bytes.count) else {
                throw BootError(
                    .initrdTooLarge,
                    "\(what) (\(sizeInWords(UInt64(bytes.count)))) doesn't fit beside kernel \(name) in "
                        + "\(sizeInWords(loader.ramSize)) of memory")
            }
            try loader.write(bytes, at: at, what, code: .initrdTooLarge)
            place = (at + UInt64(bytes.count)).roundedUp(to: 16)
            return at
        }

        var list: [UInt8] = []
        for module in modules {
            place = place.roundedUp(to: 4096)
            let start = try put(module.contents, "module \(module.commandLine)")
            list.append(little: UInt32(truncatingIfNeeded: start))
            list.append(little: UInt32(truncatingIfNeeded: start + UInt64(module.contents.count)))
            list.append(little: UInt32(0))
            list.append(little: UInt32(0))
        }
        place = place.roundedUp(to: 4096)
        for (index, module) in modules.enumerated() {
            let text = try put(Array(module.commandLine.utf8) + [0], "a module's command line")
            list.put(little: UInt32(truncatingIfNeeded: text), at: index * 16 + 8)
        }
        let listAddress = try put(list, "the module list")
        let line = try put(Array(commandLine.utf8) + [0], "the command line")
        let loaderName = try put(Array("roost\0".utf8), "the boot loader's name")
        var map: [UInt8] = []
        for range in MemoryMapEntry.map(ramSize: loader.ramSize) {
            map.append(little: UInt32(20))
            map.append(little: range.start)
            map.append(little: range.length)
            map.append(little: range.type)
        }
        let mapAddress = try put(map, "the memory map")

        var information = [UInt8](repeating: 0, count: 120)
        information.put(little: UInt32(1 << 0 | 1 << 2 | 1 << 3 | 1 << 6 | 1 << 9), at: 0)
        information.put(little: UInt32(639), at: 4)
        information.put(
            little: UInt32(truncatingIfNeeded: (loader.lowEnd - min(loader.lowEnd, 0x10_0000)) >> 10), at: 8)
        information.put(little: UInt32(truncatingIfNeeded: line), at: 16)
        information.put(little: UInt32(modules.count), at: 20)
        information.put(little: UInt32(truncatingIfNeeded: listAddress), at: 24)
        information.put(little: UInt32(map.count), at: 44)
        information.put(little: UInt32(truncatingIfNeeded: mapAddress), at: 48)
        information.put(little: UInt32(truncatingIfNeeded: loaderName), at: 64)
        let address = try put(information, "the boot information")
        let gdt = try loader.writeGDT([0, EntryState.Descriptor.code32, EntryState.Descriptor.data32])
        return EntryState(
            mode: .protected32, rip: entry, registers: [0: 0x2BAD_B002, 3: address], codeSelector: 8,
            dataSelector: 16, gdtBase: gdt.base, gdtLimit: gdt.limit)
    }

    private func loadELF(_ image: [UInt8], _ loader: GuestLoader) throws(BootError) -> (UInt64, UInt64) {
        guard image.starts(with: [0x7F, 0x45, 0x4C, 0x46]) else {
            throw BootError(.malformed, "kernel \(name): a Multiboot header without addresses in a file that isn't ELF")
        }
        let elf = try ELFImage(image, name: name)
        let end = try elf.load(image, loader: loader)
        return (elf.physicalEntry, end)
    }

    private func loadFlat(_ image: [UInt8], _ loader: GuestLoader) throws(BootError) -> (UInt64, UInt64) {
        guard let header = image.little(offset + 12, as: UInt32.self),
            let load = image.little(offset + 16, as: UInt32.self),
            let loadEnd = image.little(offset + 20, as: UInt32.self),
            let bssEnd = image.little(offset + 24, as: UInt32.self),
            let entry = image.little(offset + 28, as: UInt32.self)
        else { throw BootError(.truncated, "kernel \(name): truncated in its Multiboot header") }
        guard header >= load, Int(header - load) <= offset else {
            throw BootError(.malformed, "kernel \(name): its Multiboot addresses contradict each other")
        }
        let start = offset - Int(header - load)
        let length = loadEnd == 0 ? image.count - start : Int(loadEnd) - Int(load)
        guard length >= 0 else {
            throw BootError(.malformed, "kernel \(name): its Multiboot addresses contradict each other")
        }
        guard length <= image.count - start else {
            throw BootError(
                .truncated, "kernel \(name): truncated, \(image.count) bytes of \(start + length)")
        }
        let end = max(UInt64(load) + UInt64(length), UInt64(bssEnd))
        try loader.require(UInt64(load), end - UInt64(load), "kernel \(name)")
        try loader.write(Array(image[start..<(start + length)]), at: UInt64(load), "kernel \(name)")
        return (UInt64(entry), end)
    }
}
