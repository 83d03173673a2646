// Linux bzImage: the boot protocol's setup header, zero page and 64-bit entry.
//
// - Spec: Linux Documentation/arch/x86/boot.rst and zero-page.rst.
//
//   offset  size  header field                offset  zero-page field
//   0x1F1   1     setup_sects                 0x070   acpi_rsdp_addr
//   0x1F4   4     syssize (16-byte units)     0x0C0   ext_ramdisk_image
//   0x202   4     "HdrS"                      0x0C4   ext_ramdisk_size
//   0x206   2     version                     0x0C8   ext_cmd_line_ptr
//   0x210   1     type_of_loader              0x1E8   e820_entries
//   0x211   1     loadflags                   0x2D0   e820_table, 128 entries of 20 bytes
//   0x218   4     ramdisk_image, +4 size
//   0x228   4     cmd_line_ptr
//   0x22C   4     initrd_addr_max
//   0x230   4     kernel_alignment
//   0x234   1     relocatable_kernel
//   0x236   2     xloadflags: 0 64-bit entry, 1 above 4 GiB
//   0x238   4     cmdline_size
//   0x258   8     pref_address
//   0x260   4     init_size

/// The setup header of a bzImage, checked.
package struct LinuxHeader: Equatable, Sendable {
    /// The file's name, for errors.
    var name: String
    /// Bytes before the protected-mode kernel.
    package var setupSize: Int
    /// Bytes of the protected-mode kernel.
    package var kernelSize: Int
    /// Protocol version, 0x020C and later.
    package var version: UInt16
    /// Whether there is a 64-bit entry at +0x200.
    package var has64BitEntry: Bool
    /// Where the kernel goes.
    package var loadAddress: UInt64
    /// Bytes it needs there while it unpacks itself.
    package var initSize: UInt64
    /// Highest address that the initrd may occupy.
    package var initrdMax: UInt64
    /// Longest command line, without the final zero.
    package var commandLineMax: Int

    static let zeroPage: UInt64 = 0x7000
    static let commandLineAddress: UInt64 = 0x2_0000

    /// Reads and checks the header.
    package init(_ image: [UInt8], name: String) throws(BootError) {
        self.name = name
        func field<T: FixedWidthInteger & UnsignedInteger>(_ offset: Int, _: T.Type) throws(BootError) -> T {
            guard let value = image.little(offset, as: T.self) else {
                throw BootError(.truncated, "kernel \(name): truncated in its setup header (\(image.count) bytes)")
            }
            return value
        }
        version = try field(0x206, UInt16.self)
        guard version >= 0x020A else {
            throw BootError(
                .malformed,
                "kernel \(name): boot protocol \(version >> 8).\(version & 0xFF) is too old (2.10 is needed)")
        }
        let sectors = try field(0x1F1, UInt8.self)
        setupSize = (Int(sectors == 0 ? 4 : sectors) + 1) * 512
        let promised = UInt64(try field(0x1F4, UInt32.self)) * 16
        guard UInt64(image.count) >= UInt64(setupSize) + max(promised, 0x400) else {
            throw BootError(
                .truncated,
                "kernel \(name): truncated, \(image.count) bytes of \(UInt64(setupSize) + promised)")
        }
        kernelSize = image.count - setupSize
        guard try field(0x211, UInt8.self) & 1 != 0 else {
            throw BootError(.malformed, "kernel \(name): a zImage, which must be loaded low; a bzImage is needed")
        }
        let extended = try field(0x236, UInt16.self)
        has64BitEntry = version >= 0x020C && extended & 1 != 0
        let preferred = try field(0x258, UInt64.self)
        let relocatable = try field(0x234, UInt8.self) != 0
        loadAddress = relocatable && preferred < 0x10_0000 ? 0x10_0000 : preferred
        guard loadAddress >= 0x10_0000 else {
            throw BootError(
                .malformed, "kernel \(name): its load address 0x\(String(preferred, radix: 16)) is below 1 MiB")
        }
        initSize = max(UInt64(try field(0x260, UInt32.self)), UInt64(kernelSize))
        initrdMax = UInt64(try field(0x22C, UInt32.self))
        if initrdMax == 0 { initrdMax = 0x37FF_FFFF }
        let longest = try field(0x238, UInt32.self)
        commandLineMax = min(longest == 0 ? 255 : Int(longest), 0xFFFF)
    }

    /// Loads kernel, initrd, command line and zero page.
    package func load(_ image: [UInt8], initrd: [UInt8], commandLine: String, loader: GuestLoader) throws(BootError)
        -> EntryState
    {
        try loader.require(loadAddress, initSize, "kernel \(name)")
        try loader.write(Array(image[setupSize...]), at: loadAddress, "kernel \(name)")
        let line = Array(commandLine.utf8)
        guard line.count <= commandLineMax else {
            throw BootError(
                .commandLineTooLong,
                "the command line has \(line.count) bytes; kernel \(name) takes \(commandLineMax)")
        }
        try loader.write(line + [0], at: Self.commandLineAddress, "the command line")

        var page = [UInt8](repeating: 0, count: 4096)
        let headerEnd = 0x202 + Int(image[0x201])
        page.put(Array(image[0x1F1..<min(headerEnd, 0x290, image.count)]), at: 0x1F1)
        page.put(little: BoardLayout.acpiTables, at: 0x70)
        page.put(little: UInt16(0xFFFF), at: 0x1FA)
        page[0x210] = 0xFF
        page.put(little: UInt32(Self.commandLineAddress), at: 0x228)
        if !initrd.isEmpty {
            let place = try placeInitrd(UInt64(initrd.count), loader)
            try loader.write(initrd, at: place, "the initrd", code: .initrdTooLarge)
            page.put(little: UInt32(truncatingIfNeeded: place), at: 0x218)
            page.put(little: UInt32(truncatingIfNeeded: initrd.count), at: 0x21C)
        }
        let map = MemoryMapEntry.map(ramSize: loader.ramSize)
        page[0x1E8] = UInt8(map.count)
        for (index, entry) in map.enumerated() {
            page.put(little: entry.start, at: 0x2D0 + index * 20)
            page.put(little: entry.length, at: 0x2D0 + index * 20 + 8)
            page.put(little: entry.type, at: 0x2D0 + index * 20 + 16)
        }
        try loader.write(page, at: Self.zeroPage, "the zero page")
        return try entry(loader)
    }

    private func entry(_ loader: GuestLoader) throws(BootError) -> EntryState {
        let code = has64BitEntry ? EntryState.Descriptor.code64 : EntryState.Descriptor.code32
        let gdt = try loader.writeGDT([0, 0, code, EntryState.Descriptor.data32])
        return EntryState(
            mode: has64BitEntry ? .long64 : .protected32, rip: has64BitEntry ? loadAddress + 0x200 : loadAddress,
            registers: [6: Self.zeroPage, 4: 0x6F00], codeSelector: 0x10, dataSelector: 0x18, gdtBase: gdt.base,
            gdtLimit: gdt.limit, pageTable: has64BitEntry ? try loader.writeIdentityMap() : 0)
    }

    /// As high as the kernel allows, below the PCI hole, clear of the kernel.
    private func placeInitrd(_ size: UInt64, _ loader: GuestLoader) throws(BootError) -> UInt64 {
        let ceiling = min(initrdMax + 1, loader.lowEnd)
        let floor = loadAddress + initSize
        guard size <= ceiling, (ceiling - size) & ~4095 >= floor else {
            throw BootError(
                .initrdTooLarge,
                "the initrd (\(sizeInWords(size))) doesn't fit beside kernel \(name) in "
                    + "\(sizeInWords(loader.ramSize)) of memory")
        }
        return (ceiling - size) & ~4095
    }
}
