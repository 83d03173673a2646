// The part of the DSDT that isn't fixed: processors that come and go, and the generic event device that tells of them.
//
// The registers are those of Devices/Power/EventBlock.swift.
//
// - Spec: ACPI 6.5, 5.6.9 (generic event device), 8.4 (processors), 6.2.11 (_MAT), 6.3.3 (_EJ0), table 5.168 (notifications).

extension ACPITables {
    private static func name(_ processor: Int) -> String {
        "C" + ("00" + String(processor, radix: 16, uppercase: true)).suffix(3)
    }

    /// The registers of the event block, by name.
    var eventRegisters: [AML] {
        [
            .ports("EVTR", BoardLayout.eventPorts, count: 0x20),
            .doubleWords("EVTR", ["EVTS", "CPR0", "CPR1", "CIN0", "CIN1", "COU0", "COU1", "CEJT"]),
        ]
    }

    /// A device for each processor that there can be.
    var processorDevices: [AML] {
        (0..<possible).map { number in
            let bit = AML.integer(1 << UInt64(number & 31))
            let isThere = AML.and(.reference(number < 32 ? "CPR0" : "CPR1"), bit)
            let identifier = UInt8(clamping: number)
            var parts: [AML] = [
                .define("_HID", .string("ACPI0007")), .define("_UID", .integer(UInt64(number))),
                .method("_STA", [.when(isThere, [.returning(.integer(15))]), .returning(.integer(0))]),
                // As in the MADT: local APIC, enabled.
                .define("_MAT", .buffer([0, 8, identifier, identifier, 1, 0, 0, 0])),
            ]
            // The first one stays.
            if number > 0 {
                parts.append(.handler("_EJ0", [.store(.integer(UInt64(number)), "CEJT")]))
            }
            return .device(Self.name(number), parts)
        }
    }

    /// The generic event device: its method reads what there is, and notifies devices.
    var events: AML {
        var processors: [AML] = []
        for first in stride(from: 0, to: possible, by: 32) {
            processors += [
                .storeLocal(.reference(first == 0 ? "CIN0" : "CIN1"), 1),
                .storeLocal(.reference(first == 0 ? "COU0" : "COU1"), 2),
            ]
            for number in max(first, 1)..<max(min(possible, first + 32), 1) {
                let bit = AML.integer(1 << UInt64(number & 31))
                processors += [
                    // Device check, and eject request.
                    .when(.and(.local(1), bit), [.notify("\\_SB." + Self.name(number), 1)]),
                    .when(.and(.local(2), bit), [.notify("\\_SB." + Self.name(number), 3)]),
                ]
            }
        }
        return .device(
            "GED_",
            [
                .define("_HID", .string("ACPI0013")), .define("_UID", .integer(0)),
                // Edge-triggered, active high, exclusive.
                .define("_CRS", .resources([AML.globalInterrupt(UInt32(BoardLayout.eventInterrupt), flags: 0x03)])),
                .handler(
                    "_EVT",
                    [
                        .storeLocal(.reference("EVTS"), 0),
                        .when(.and(.local(0), .integer(1)), [.notify("\\_SB.VGEN", 0x80)]),
                        .when(.and(.local(0), .integer(2)), processors),
                    ]),
            ])
    }
}
