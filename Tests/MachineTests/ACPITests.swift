// ACPI tables: checksums, pointers, and the judgment of ACPICA's compiler where it is installed.
import Foundation
import Machine
import Testing

@Suite("ACPI tables")
struct ACPITests {
    let base: UInt64 = 0xE_0000

    func tables(_ area: [UInt8]) -> [String: [UInt8]] {
        var found: [String: [UInt8]] = [:]
        for offset in stride(from: 64, to: area.count - 8, by: 64) {
            let name = String(decoding: area[offset..<(offset + 4)], as: UTF8.self)
            guard ["FACS", "DSDT", "FACP", "APIC", "MCFG", "XSDT", "RSDT"].contains(name) else { continue }
            let length = Int(area.little(offset + 4, as: UInt32.self) ?? 0)
            if found[name] == nil, offset + length <= area.count {
                found[name] = Array(area[offset..<(offset + length)])
            }
        }
        return found
    }

    @Test("Every table sums to zero and the RSDP leads to them")
    func checksums() throws {
        let area = ACPITables(present: 1, possible: 1).build(at: base)
        #expect(area.count < 0x2_0000)
        #expect(area.prefix(20).reduce(0, &+) == 0)
        #expect(area.prefix(36).reduce(0, &+) == 0)
        let found = tables(area)
        for name in ["DSDT", "FACP", "APIC", "MCFG", "XSDT", "RSDT"] {
            let table = try #require(found[name])
            #expect(table.reduce(0, &+) == 0, "\(name)")
        }
        let xsdt = Int(try #require(area.little(24, as: UInt64.self)) - base)
        #expect(Array(area[xsdt..<(xsdt + 4)]) == Array("XSDT".utf8))
        let fadt = Int(try #require(area.little(xsdt + 36, as: UInt64.self)) - base)
        #expect(area.little(fadt + 76, as: UInt32.self) == 0x608)
        #expect(area[fadt + 128] == 6)
    }

    @Test("Package lengths of one to four bytes")
    func packageLengths() {
        #expect(AML.scope("\\_SB", []).bytes == [0x10, 6, 0x5C, 0x5F, 0x53, 0x42, 0x5F])
        let long = AML.scope("\\", [AML.define("X", .string(String(repeating: "a", count: 100)))])
        #expect(long.bytes[1] >> 6 == 1)
        #expect(Int(long.bytes[1] & 15) + Int(long.bytes[2]) << 4 == long.bytes.count - 1)
        #expect(AML.eisaID("PNP0A03").bytes == [0x0C, 0x41, 0xD0, 0x0A, 0x03])
    }

    @Test(
        "ACPICA disassembles and recompiles every table",
        .enabled(if: FileManager.default.fileExists(atPath: "/usr/bin/iasl")))
    func compiler() throws {
        let directory = FileManager.default.temporaryDirectory.appendingPathComponent("roost-acpi-\(UUID())")
        try FileManager.default.createDirectory(at: directory, withIntermediateDirectories: true)
        defer { try? FileManager.default.removeItem(at: directory) }
        for (name, table) in tables(ACPITables(present: 3, possible: 40).build(at: base)) where name != "FACS" {
            let file = directory.appendingPathComponent("\(name).aml")
            try Data(table).write(to: file)
            let (text, status) = try run(["-d", file.path])
            #expect(status == 0, "\(name): \(text)")
            #expect(!text.contains("Error"), "\(name): \(text)")
            if name == "DSDT" {
                let (back, again) = try run(["-we", directory.appendingPathComponent("DSDT.dsl").path])
                #expect(again == 0, "\(back)")
            }
        }
    }

    func run(_ arguments: [String]) throws -> (String, Int32) {
        let process = Process()
        process.executableURL = URL(fileURLWithPath: "/usr/bin/iasl")
        process.arguments = arguments
        let pipe = Pipe()
        process.standardOutput = pipe
        process.standardError = pipe
        try process.run()
        let data = pipe.fileHandleForReading.readDataToEndOfFile()
        process.waitUntilExit()
        return (String(decoding: data, as: UTF8.self), process.terminationStatus)
    }
}
