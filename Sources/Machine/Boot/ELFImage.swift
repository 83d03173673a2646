// ELF kernels: program headers, the PVH entry note and PVH's start information.
//
// - Spec: System V ABI chapters 4 and 5; Xen public/arch-x86/hvm/start_info.h; docs/misc/pvh.

/// An ELF executable's segments, 32 or 64-bit, little-endian.
package struct ELFImage: Equatable, Sendable {
    /// A program header.
    package struct Segment: Equatable, Sendable {
        /// 1 load, 4 note.
        package var type: UInt32
        /// Where it stands in the file.
        package var offset: UInt64
        /// Guest-physical address.
        package var physical: UInt64
        /// Linear address.
        package var linear: UInt64
        /// Bytes in the file.
        package var fileSize: UInt64
        /// Bytes in memory.
        package var memorySize: UInt64
    }

    /// Program headers at most; a Linux kernel has five or so.
    private static let mostSegments = 128

    /// The file's name, for errors.
    let name: String
    /// ELFCLASS64.
    package let is64Bit: Bool
    /// Entry point, linear.
    package let entry: UInt64
    /// All program headers.
    package let segments: [Segment]

    /// Reads and checks the headers.
    package init(_ image: [UInt8], name: String) throws(BootError) {
        self.name = name
        let truncated = BootError(.truncated, "kernel \(name): truncated ELF file (\(image.count) bytes)")
        guard image.count >= 52, image[4] == 1 || image[4] == 2 else { throw truncated }
        is64Bit = image[4] == 2
        let wide = is64Bit
        func word(_ offset: Int) throws(BootError) -> UInt64 {
            if wide {
                guard let value = image.little(offset, as: UInt64.self) else { throw truncated }
                return value
            }
            guard let value = image.little(offset, as: UInt32.self) else { throw truncated }
            return UInt64(value)
        }
        entry = try word(24)
        let table = try word(wide ? 32 : 28)
        guard let size = image.little(wide ? 54 : 42, as: UInt16.self),
            let count = image.little(wide ? 56 : 44, as: UInt16.self)
        else { throw truncated }
        guard count > 0, size >= (wide ? 56 : 32) else {
            throw BootError(.malformed, "kernel \(name): an ELF file without program headers")
        }
        // Each may be of the whole file.
        guard count <= Self.mostSegments else {
            throw BootError(.malformed, "kernel \(name): an ELF file with \(count) program headers")
        }
        guard table <= UInt64(image.count), UInt64(size) * UInt64(count) <= UInt64(image.count) - table else {
            throw truncated
        }
        var found: [Segment] = []
        for index in 0..<Int(count) {
            let at = Int(table) + index * Int(size)
            guard let type = image.little(at, as: UInt32.self) else { throw truncated }
            let segment = Segment(
                type: type, offset: try word(at + (wide ? 8 : 4)), physical: try word(at + (wide ? 24 : 12)),
                linear: try word(at + (wide ? 16 : 8)), fileSize: try word(at + (wide ? 32 : 16)),
                memorySize: try word(at + (wide ? 40 : 20)))
            if type == 1 || type == 4 {
                guard segment.offset <= UInt64(image.count),
                    segment.fileSize <= UInt64(image.count) - segment.offset
                else { throw truncated }
            }
            if type == 1 && segment.fileSize > segment.memorySize {
                throw BootError(.malformed, "kernel \(name): a segment larger in the file than in memory")
            }
            found.append(segment)
        }
        segments = found
        guard found.contains(where: { $0.type == 1 && $0.memorySize > 0 }) else {
            throw BootError(.malformed, "kernel \(name): an ELF file with nothing to load")
        }
    }

    /// The value of the Xen note 18, PHYS32_ENTRY, if there is one.
    package func pvhEntry(in image: [UInt8]) -> UInt64? {
        for segment in segments where segment.type == 4 {
            var at = Int(segment.offset)
            let end = at + Int(segment.fileSize)
            while at + 12 <= end {
                guard let nameSize = image.little(at, as: UInt32.self),
                    let size = image.little(at + 4, as: UInt32.self), let type = image.little(at + 8, as: UInt32.self)
                else { break }
                let value = at + 12 + (Int(nameSize) + 3) & ~3
                if type == 18, nameSize == 4, value + Int(size) <= end,
                    Array(image[(at + 12)..<(at + 16)]) == Array("Xen\0".utf8)
                {
                    if size >= 8 { return image.little(value, as: UInt64.self) }
                    if size >= 4 { return image.little(value, as: UInt32.self).map(UInt64.init) }
                }
                at = value + (Int(size) + 3) & ~3
            }
        }
        return nil
    }

    /// Copies the segments to their physical addresses; the end of the highest.
    package func load(_ image: [UInt8], loader: GuestLoader) throws(BootError) -> UInt64 {
        var end: UInt64 = 0
        for segment in segments where segment.type == 1 && segment.memorySize > 0 {
            try loader.require(segment.physical, segment.memorySize, "kernel \(name)")
            let start = Int(segment.offset)
            try loader.write(
                Array(image[start..<(start + Int(segment.fileSize))]), at: segment.physical, "kernel \(name)")
            end = max(end, segment.physical + segment.memorySize)
        }
        return end
    }

    /// Where the entry point lies in physical memory.
    package var physicalEntry: UInt64 {
        for segment in segments where segment.type == 1 {
            if entry >= segment.linear, entry - segment.linear < segment.memorySize {
                return segment.physical &+ (entry - segment.linear)
            }
        }
        return entry
    }
}

/// Enters an ELF kernel by the PVH protocol.
package struct PVHLoader {
    /// The file's name, for errors.
    let name: String
    /// 32-bit entry point.
    let entry: UInt64

    /// Enters the kernel `name` at `entry`.
    package init(name: String, entry: UInt64) {
        self.name = name
        self.entry = entry
    }

    /// Loads the kernel and its start information.
    package func load(_ image: [UInt8], initrd: [UInt8]?, commandLine: String, loader: GuestLoader) throws(BootError)
        -> EntryState
    {
        let elf = try ELFImage(image, name: name)
        let end = try elf.load(image, loader: loader)
        let information: UInt64 = 0x6000
        let map: UInt64 = 0x6100
        let modules: UInt64 = 0x6080
        let line: UInt64 = 0x2_0000
        guard commandLine.utf8.count < 0x1_0000 else {
            throw BootError(
                .commandLineTooLong, "the command line has \(commandLine.utf8.count) bytes; 65535 is the most")
        }
        try loader.write(Array(commandLine.utf8) + [0], at: line, "the command line")
        var table: [UInt8] = []
        if let initrd {
            let size = UInt64(initrd.count)
            let ceiling = loader.lowEnd
            guard size <= ceiling, (ceiling - size) & ~4095 >= end else {
                throw BootError(
                    .initrdTooLarge,
                    "the initrd (\(sizeInWords(size))) doesn't fit beside kernel \(name) in "
                        + "\(sizeInWords(loader.ramSize)) of memory")
            }
            let place = (ceiling - size) & ~4095
            try loader.write(initrd, at: place, "the initrd", code: .initrdTooLarge)
            for field in [place, size, 0, 0] { table.append(little: field) }
            try loader.write(table, at: modules, "the module list")
        }
        let ranges = MemoryMapEntry.map(ramSize: loader.ramSize)
        var entries: [UInt8] = []
        for range in ranges {
            entries.append(little: range.start)
            entries.append(little: range.length)
            entries.append(little: range.type)
            entries.append(little: UInt32(0))
        }
        try loader.write(entries, at: map, "the memory map")
        var start: [UInt8] = []
        start.append(little: UInt32(0x336E_C578))
        start.append(little: UInt32(1))
        start.append(little: UInt32(0))
        start.append(little: UInt32(initrd == nil ? 0 : 1))
        for field in [initrd == nil ? 0 : modules, line, BoardLayout.acpiTables, map] { start.append(little: field) }
        start.append(little: UInt32(ranges.count))
        start.append(little: UInt32(0))
        try loader.write(start, at: information, "the start information")
        let gdt = try loader.writeGDT([0, EntryState.Descriptor.code32, EntryState.Descriptor.data32])
        return EntryState(
            mode: .protected32, rip: entry, registers: [3: information], codeSelector: 8, dataSelector: 16,
            gdtBase: gdt.base, gdtLimit: gdt.limit)
    }
}
