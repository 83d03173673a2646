// The guest-physical memory map as boot protocols report it.
//
//   0x00000000  conventional memory, 639 KiB
//   0x0009FC00  extended BIOS data area, reserved
//   0x000E0000  ACPI tables, reserved
//   0x00100000  RAM, up to 3 GiB
//   0xC0000000  PCI memory window (0xE0000000: memory-mapped configuration space)
//   0xFEC00000  I/O APIC, 0xFEE00000 local APIC
//   0x100000000 the rest of RAM

internal import GuestMemory

/// Addresses that the board, ACPI and the boot protocols share.
package enum BoardLayout {
    /// PCI memory-mapped configuration space of bus 0.
    package static let configurationBase: UInt64 = 0xE000_0000
    /// Its length.
    package static let configurationLength: UInt64 = 0x10_0000
    /// PCI memory window.
    package static let memoryWindow: ClosedRange<UInt64> = 0xC000_0000...0xDFFF_FFFF
    /// First byte of the extended BIOS data area.
    package static let extendedBIOSData: UInt64 = 0x9_FC00
    /// Where the ACPI tables stand; the RSDP first.
    package static let acpiTables: UInt64 = 0xE_0000
    /// End of the area for ACPI tables.
    package static let acpiTablesEnd: UInt64 = 0x10_0000
    /// The generation ID, in the last page of that area.
    package static let generationID: UInt64 = 0xF_F000
    /// Base of the event block's ports.
    package static let eventPorts: UInt16 = 0x620
    /// GSI of ACPI's generic event device.
    package static let eventInterrupt = 20
    /// Local APIC registers.
    package static let localAPIC: UInt64 = 0xFEE0_0000
    /// I/O APIC registers.
    package static let ioAPIC: UInt64 = 0xFEC0_0000
    /// Base of the ACPI power-management ports.
    package static let acpiPorts: UInt16 = 0x600
}

/// One range of the memory map, numbered as INT 15h AX=E820h does.
///
/// - Spec: ACPI 6.5, 15.2, table 15.2.
package struct MemoryMapEntry: Equatable, Sendable {
    /// First guest-physical address.
    package var start: UInt64
    /// Length in bytes.
    package var length: UInt64
    /// 1 RAM, 2 reserved.
    package var type: UInt32

    /// Makes an entry from its parts.
    package init(start: UInt64, length: UInt64, type: UInt32) {
        self.start = start
        self.length = length
        self.type = type
    }

    /// First address beyond it.
    package var end: UInt64 { start + length }

    /// The entries as INT 15h AX=E820h and fw_cfg's `etc/e820` lay them out: 20 bytes each.
    package static func bytes(_ map: [MemoryMapEntry]) -> [UInt8] {
        var bytes: [UInt8] = []
        for entry in map {
            bytes.append(little: entry.start)
            bytes.append(little: entry.length)
            bytes.append(little: entry.type)
        }
        return bytes
    }

    /// The whole map of a machine with so much RAM.
    package static func map(ramSize: UInt64) -> [MemoryMapEntry] {
        var map: [MemoryMapEntry] = []
        func add(_ start: UInt64, _ end: UInt64, _ type: UInt32) {
            if end > start { map.append(MemoryMapEntry(start: start, length: end - start, type: type)) }
        }
        let low = min(ramSize, GuestMemory.holeStart)
        add(0, min(low, BoardLayout.extendedBIOSData), 1)
        add(BoardLayout.extendedBIOSData, 0xA_0000, 2)
        add(BoardLayout.acpiTables, BoardLayout.acpiTablesEnd, 2)
        add(0x10_0000, low, 1)
        add(
            BoardLayout.configurationBase, BoardLayout.configurationBase + BoardLayout.configurationLength,
            2)
        add(BoardLayout.ioAPIC, BoardLayout.ioAPIC + 0x1000, 2)
        add(BoardLayout.localAPIC, BoardLayout.localAPIC + 0x1000, 2)
        add(GuestMemory.highStart, GuestMemory.highStart + (ramSize - low), 1)
        return map
    }
}
