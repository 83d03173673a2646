// The ACPI tables of the board.
//
// - Spec: ACPI 6.5, sections 5.2.5 (RSDP), 5.2.8 (XSDT), 5.2.9 (FADT), 5.2.10 (FACS), 5.2.12 (MADT); PCI Firmware
//   Specification 3.3, 4.1.2 (MCFG).
//
//   table  says
//   FADT   PM1a event 0x600 and control 0x604, PM timer 0x608, GPE none, SCI 9, reset by 6 to port 0xCF9
//   MADT   local APICs 0…n-1, I/O APIC 0 at GSI 0, ISA 0 on GSI 2, SCI level and active high, NMI on LINT1
//   MCFG   configuration space of bus 0
//   DSDT   PCI root with windows and interrupt routing, power-off state, COM1, RTC, i8042, motherboard resources,
//          generation ID, generic event device

/// Builds the tables for one board.
package struct ACPITables {
    /// The processors that are there, a bit each.
    package var present: UInt64
    /// Number of processors that there can be.
    package var possible: Int
    /// Slots on PCI bus 0.
    package var slots = 32

    /// Tables for a board with these processors.
    package init(present: UInt64, possible: Int) {
        self.present = present
        self.possible = possible
    }

    /// The interrupt input that a slot's pin (0 for INTA) is wired to.
    package static func gsi(slot: Int, pin: Int) -> UInt32 { UInt32(16 + (slot + pin) & 3) }

    /// The value that a sleep type field must hold for S5.
    package static let softOffType: UInt8 = 5

    /// The whole area, RSDP first, as it stands at `base`.
    package func build(at base: UInt64) -> [UInt8] {
        var area = [UInt8](repeating: 0, count: 64)
        func place(_ table: [UInt8]) -> UInt64 {
            while area.count % 64 != 0 { area.append(0) }
            let address = base + UInt64(area.count)
            area += table
            return address
        }
        let facs = place(Self.facs())
        let dsdt = place(Self.table("DSDT", revision: 2, dsdtBody()))
        let tables = [
            place(Self.table("FACP", revision: 6, Self.fadtBody(facs: facs, dsdt: dsdt))),
            place(Self.table("APIC", revision: 5, madtBody())),
            place(Self.table("MCFG", revision: 1, Self.mcfgBody())),
        ]
        var roots: [UInt8] = []
        for table in tables { roots.append(little: table) }
        let xsdt = place(Self.table("XSDT", revision: 1, roots))
        var short: [UInt8] = []
        for table in tables { short.append(little: UInt32(truncatingIfNeeded: table)) }
        let rsdt = place(Self.table("RSDT", revision: 1, short))
        area.put(Self.rsdp(rsdt: UInt32(truncatingIfNeeded: rsdt), xsdt: xsdt), at: 0)
        return area
    }

    /// What makes the bytes' sum zero.
    static func checksum(_ bytes: [UInt8]) -> UInt8 { 0 &- bytes.reduce(0, &+) }

    /// A table with its header and checksum.
    static func table(_ signature: String, revision: UInt8, _ body: [UInt8]) -> [UInt8] {
        var table = Array(signature.utf8)
        table.append(little: UInt32(36 + body.count))
        table += [revision, 0]
        table += Array("ROOST ROOSTPC ".utf8)
        table.append(little: UInt32(1))
        table += Array("RST ".utf8)
        table.append(little: UInt32(1))
        table += body
        table[9] = checksum(table)
        return table
    }

    static func rsdp(rsdt: UInt32, xsdt: UInt64) -> [UInt8] {
        var bytes = Array("RSD PTR ".utf8)
        bytes.append(0)
        bytes += Array("ROOST ".utf8)
        bytes.append(2)
        bytes.append(little: rsdt)
        bytes[8] = checksum(bytes)
        bytes.append(little: UInt32(36))
        bytes.append(little: xsdt)
        bytes += [0, 0, 0, 0]
        bytes[32] = checksum(bytes)
        return bytes
    }

    static func facs() -> [UInt8] {
        var bytes = Array("FACS".utf8)
        bytes.append(little: UInt32(64))
        bytes += [UInt8](repeating: 0, count: 56)
        bytes[32] = 2
        return bytes
    }

    static func fadtBody(facs: UInt64, dsdt: UInt64) -> [UInt8] {
        let ports = BoardLayout.acpiPorts
        var table = [UInt8](repeating: 0, count: 276)
        table.put(little: UInt32(truncatingIfNeeded: facs), at: 36)
        table.put(little: UInt32(truncatingIfNeeded: dsdt), at: 40)
        table.put(little: UInt16(9), at: 46)  // SCI_INT
        table.put(little: UInt32(ports), at: 56)  // PM1a_EVT_BLK
        table.put(little: UInt32(ports + 4), at: 64)  // PM1a_CNT_BLK
        table.put(little: UInt32(ports + 8), at: 76)  // PM_TMR_BLK
        table[88] = 4  // PM1_EVT_LEN
        table[89] = 2  // PM1_CNT_LEN
        table[91] = 4  // PM_TMR_LEN
        table.put(little: UInt16(0xFFFF), at: 96)  // P_LVL2_LAT: no C2
        table.put(little: UInt16(0xFFFF), at: 98)  // P_LVL3_LAT: no C3
        table[108] = 0x32  // CENTURY: the RTC's century byte
        table.put(little: UInt16(0b111), at: 109)  // IAPC_BOOT_ARCH: legacy devices, 8042, no VGA
        // Flags: WBINVD, C1, sleep button is a control method device, RTC wake not fixed, 32-bit timer, reset register.
        table.put(little: UInt32(0b101_0110_0101), at: 112)
        table.put(address(0xCF9, bits: 8, access: 1), at: 116)
        table[128] = 6
        table[131] = 5  // FADT minor version
        table.put(little: facs, at: 132)
        table.put(little: dsdt, at: 140)
        table.put(address(UInt64(ports), bits: 32, access: 2), at: 148)
        table.put(address(UInt64(ports) + 4, bits: 16, access: 2), at: 172)
        table.put(address(UInt64(ports) + 8, bits: 32, access: 3), at: 208)
        table.put(Array("ROOSTVMM".utf8), at: 268)
        return Array(table[36...])
    }

    /// A generic address structure in port space.
    private static func address(_ port: UInt64, bits: UInt8, access: UInt8) -> [UInt8] {
        var bytes: [UInt8] = [1, bits, 0, access]
        bytes.append(little: port)
        return bytes
    }

    func madtBody() -> [UInt8] {
        var body: [UInt8] = []
        body.append(little: UInt32(truncatingIfNeeded: BoardLayout.localAPIC))
        body.append(little: UInt32(1))  // PCAT_COMPAT: 8259s are there
        for id in 0..<UInt8(clamping: possible) {
            body += [0, 8, id, id]
            // Enabled, or online capable: it may come later.
            body.append(little: UInt32(present >> UInt64(id) & 1 != 0 ? 1 : 2))
        }
        body += [1, 12, 0, 0]
        body.append(little: UInt32(truncatingIfNeeded: BoardLayout.ioAPIC))
        body.append(little: UInt32(0))
        body += [2, 10, 0, 0, 2, 0, 0, 0, 0, 0]  // ISA 0 on GSI 2, as the bus has it
        body += [2, 10, 0, 9, 9, 0, 0, 0, 0x0D, 0]  // SCI: level, active high
        body += [4, 6, 0xFF, 0, 0, 1]  // NMI on LINT1 of every processor
        return body
    }

    static func mcfgBody() -> [UInt8] {
        var body = [UInt8](repeating: 0, count: 8)
        body.append(little: BoardLayout.configurationBase)
        body.append(little: UInt16(0))
        body += [0, 0]
        body.append(little: UInt32(0))
        return body
    }

    func dsdtBody() -> [UInt8] {
        var routes: [AML] = []
        for slot in 0..<slots {
            for pin in 0..<4 {
                let route: [UInt64] = [
                    UInt64(slot) << 16 | 0xFFFF, UInt64(pin), 0, UInt64(Self.gsi(slot: slot, pin: pin)),
                ]
                routes.append(.package(route.map { AML.integer($0) }))
            }
        }
        let windows: [[UInt8]] = [
            AML.wordWindow(kind: 2, 0...0, flags: 0),
            AML.ports(0xCF8, count: 8),
            AML.wordWindow(kind: 1, 0...0xCF7, flags: 3),
            AML.wordWindow(kind: 1, 0xD00...0xFFFF, flags: 3),
            AML.memoryWindow(BoardLayout.memoryWindow),
        ]
        let root: [AML] = [
            .define("_HID", .eisaID("PNP0A08")), .define("_CID", .eisaID("PNP0A03")),
            .define("_UID", .integer(0)), .define("_SEG", .integer(0)), .define("_BBN", .integer(0)),
            .define("_CRS", .resources(windows)), .define("_PRT", .package(routes)),
        ]
        let sleep: [UInt64] = [UInt64(Self.softOffType), 0, 0, 0]
        let body: [AML] = [
            .define("\\_S5", .package(sleep.map { AML.integer($0) })),
            .scope(
                "\\_SB",
                [.device("PCI0", root), motherboard, serial, realTimeClock, keyboard, mouse, generation]
                    + eventRegisters + processorDevices + [events]
            ),
        ]
        return AML(body).bytes
    }

    /// What the board takes for itself: the memory-mapped configuration space and the power-management ports.
    private var motherboard: AML {
        .device(
            "MBRD",
            [
                .define("_HID", .eisaID("PNP0C02")), .define("_UID", .integer(0)),
                .define(
                    "_CRS",
                    .resources([
                        AML.memory32(
                            UInt32(truncatingIfNeeded: BoardLayout.configurationBase),
                            length: UInt32(truncatingIfNeeded: BoardLayout.configurationLength)),
                        AML.ports(BoardLayout.acpiPorts, count: 16),
                        AML.ports(BoardLayout.eventPorts, count: 0x20),
                    ])),
            ])
    }

    private var serial: AML {
        .device(
            "COM1",
            [
                .define("_HID", .eisaID("PNP0501")), .define("_UID", .integer(1)), .define("_STA", .integer(15)),
                .define("_CRS", .resources([AML.ports(0x3F8, count: 8), AML.interrupt(4)])),
            ])
    }

    private var realTimeClock: AML {
        .device(
            "RTC_",
            [
                .define("_HID", .eisaID("PNP0B00")),
                .define("_CRS", .resources([AML.ports(0x70, count: 2), AML.interrupt(8)])),
            ])
    }

    /// Microsoft, Virtual Machine Generation ID (2012): the address of the number, in halves.
    private var generation: AML {
        .device(
            "VGEN",
            [
                .define("_HID", .string("ROST0001")), .define("_CID", .string("VM_Gen_Counter")),
                .define("_DDN", .string("VM_Gen_Counter")),
                .define("ADDR", .package([.integer(BoardLayout.generationID), .integer(0)])),
            ])
    }

    private var keyboard: AML {
        .device(
            "KBD_",
            [
                .define("_HID", .eisaID("PNP0303")), .define("_STA", .integer(15)),
                .define(
                    "_CRS",
                    .resources([AML.ports(0x60, count: 1), AML.ports(0x64, count: 1), AML.interrupt(1)])),
            ])
    }

    private var mouse: AML {
        .device(
            "MOU_",
            [
                .define("_HID", .eisaID("PNP0F13")), .define("_STA", .integer(15)),
                .define("_CRS", .resources([AML.interrupt(12)])),
            ])
    }
}
