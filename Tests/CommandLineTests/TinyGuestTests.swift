// Guests of a few instructions, whole runs of the executable: boot protocols, ends, console, reset.
import Foundation
import MachineTesting
import Testing

/// Machine code that means the same in 32 and 64-bit mode.
enum TinyGuest {
    /// Writes a byte to the debug console.
    static func say(_ text: String) -> [UInt8] { text.utf8.flatMap { [0xB0, $0, 0xE6, 0xE9] } }
    /// Writes the debug-exit port 0xF4.
    static func exit(_ value: UInt8) -> [UInt8] { [0xB0, value, 0xE6, 0xF4, 0xF4, 0xEB, 0xFD] }
    /// mov dx, 0x604; mov ax, 0x3400; out dx, ax; hlt
    static let powerOff: [UInt8] = [0x66, 0xBA, 0x04, 0x06, 0x66, 0xB8, 0x00, 0x34, 0x66, 0xEF, 0xF4, 0xEB, 0xFD]
    /// mov dx, 0xcf9; mov al, 6; out dx, al; hlt
    static let reset: [UInt8] = [0x66, 0xBA, 0xF9, 0x0C, 0xB0, 0x06, 0xEE, 0xF4, 0xEB, 0xFD]

    /// Looks for ever whether 2 MiB of memory are as it left them, and tells of each time with a dot, and with an X if not.
    static let watchful: [UInt8] = [
        0xBF, 0x00, 0x00, 0x20, 0x00,  // mov edi, 0x200000
        0x89, 0x3F,  // fill: mov [edi], edi
        0x83, 0xC7, 0x04,  // add edi, 4
        0x81, 0xFF, 0x00, 0x00, 0x40, 0x00,  // cmp edi, 0x400000
        0x72, 0xF3,  // jb fill
        0xB0, 0x2E, 0xE6, 0xE9,  // pass: mov al, '.'; out 0xe9, al
        0xBF, 0x00, 0x00, 0x20, 0x00,  // mov edi, 0x200000
        0x39, 0x3F,  // check: cmp [edi], edi
        0x75, 0x0D,  // jne wrong
        0x83, 0xC7, 0x04,  // add edi, 4
        0x81, 0xFF, 0x00, 0x00, 0x40, 0x00,  // cmp edi, 0x400000
        0x72, 0xF1,  // jb check
        0xEB, 0xE6,  // jmp pass
        0xB0, 0x58, 0xE6, 0xE9, 0xF4, 0xEB, 0xFD,  // wrong: mov al, 'X'; out 0xe9, al; hlt
    ]

    /// A bzImage with this code at its 64-bit entry.
    static func linux(_ code: [UInt8]) -> [UInt8] {
        var image = [UInt8](repeating: 0, count: 5 * 512 + 0x200)
        image[0x1F1] = 4
        image.replaceSubrange(0x1FE..<0x200, with: [0x55, 0xAA])
        image[0x201] = 0x6A
        image.replaceSubrange(0x202..<0x208, with: Array("HdrS".utf8) + [0x0F, 0x02])
        image[0x211] = 1
        image.replaceSubrange(0x22C..<0x230, with: [0xFF, 0xFF, 0xFF, 0x7F])
        image[0x236] = 1
        image[0x239] = 8
        image[0x25B] = 1
        image[0x261] = 0x40
        return image + code + [UInt8](repeating: 0, count: max(0, 1024 - code.count))
    }
}

@Suite("Tiny guests")
struct TinyGuestTests {
    func run(_ image: [UInt8], _ options: [String] = [], input: Data? = nil) throws -> RoostRun {
        let path = FileManager.default.temporaryDirectory.appendingPathComponent("roost-tiny-\(UUID())")
        try Data(image).write(to: path)
        defer { try? FileManager.default.removeItem(at: path) }
        let network = options.contains("--net") ? [] : ["--net", "none"]
        return try RoostRun(["run", "--kernel", path.path, "--memory", "32M"] + network + options, input: input)
    }

    @Test("Multiboot and Linux entries run; the debug-exit port gives the status")
    func debugExit() throws {
        for image in [
            MultibootImage.make(TinyGuest.say("hi") + TinyGuest.exit(0x10)),
            TinyGuest.linux(TinyGuest.say("hi") + TinyGuest.exit(0x10)),
        ] {
            let result = try run(image, ["--debug-exit", "0xf4"])
            #expect(result.status == 0x21, "\(result.error)")
            #expect(result.output == "hi")
            #expect(result.error.isEmpty)
        }
    }

    @Test("Power-off through ACPI ends with 0")
    func powerOff() throws {
        let result = try run(MultibootImage.make(TinyGuest.powerOff))
        #expect(result.status == 0, "\(result.error)")
    }

    @Test("A reset starts the guest again; --no-reboot ends")
    func reset() throws {
        // CMOS byte 0x50 survives: 0 the first time, then 1.
        let choose: [UInt8] = [0xB0, 0x50, 0xE6, 0x70, 0xE4, 0x71, 0x3C, 0x01, 0x74, UInt8(8 + TinyGuest.reset.count)]
        let remember: [UInt8] = [0xB0, 0x50, 0xE6, 0x70, 0xB0, 0x01, 0xE6, 0x71]
        let image = MultibootImage.make(
            TinyGuest.say("R") + choose + remember + TinyGuest.reset + TinyGuest.exit(1))
        let again = try run(image, ["--debug-exit", "0xf4"])
        #expect(again.status == 3, "\(again.error)")
        #expect(again.output == "RR")
        let once = try run(image, ["--debug-exit", "0xf4", "--no-reboot"])
        #expect(once.status == 0, "\(once.error)")
        #expect(once.output == "R")
    }

    @Test("A triple fault prints its report and has a status of its own")
    func tripleFault() throws {
        // lidt [0x90000], where memory is zero; ud2
        let result = try run(MultibootImage.make([0x0F, 0x01, 0x1D, 0, 0, 9, 0, 0x0F, 0x0B]))
        #expect(result.status == 86)
        #expect(result.error.contains("triple fault"))
        #expect(result.error.contains("ud2"), "\(result.error)")
        #expect(result.error.contains("rip 0000000000100047"), "\(result.error)")
    }

    @Test("Input through a pipe is taken as fast as the guest reads it, none lost; its end is no end")
    func input() throws {
        // again: mov dx,3fd; in al,dx; test al,1; jz again; mov dx,3f8; in al,dx; out dx,al; cmp al,'q'; jne again
        let echo: [UInt8] = [
            0x66, 0xBA, 0xFD, 0x03, 0xEC, 0xA8, 0x01, 0x74, 0xF7, 0x66, 0xBA, 0xF8, 0x03, 0xEC, 0xEE, 0x3C, 0x71, 0x75,
            0xED,
        ]
        let text = String(repeating: "0123456789abcdef", count: 8192) + "q"
        let result = try run(
            MultibootImage.make(echo + TinyGuest.exit(2)), ["--debug-exit", "0xf4"], input: Data(text.utf8))
        #expect(result.status == 5, "\(result.error)")
        #expect(result.output == text)
    }

    @Test("Ctrl-A x ends with 0, even while the guest is halted for good")
    func escape() throws {
        let result = try run(MultibootImage.make([0xFA, 0xF4, 0xEB, 0xFD]), input: Data([1, 120]))
        #expect(result.status == 0, "\(result.error)")
    }

    @Test("The statistics tell of exits and instructions")
    func statistics() throws {
        let image = MultibootImage.make(TinyGuest.say("abc") + TinyGuest.powerOff)
        let result = try run(image, ["--stats"])
        #expect(result.error.contains("port write 4"), "\(result.error)")
        let json = try run(image, ["--json"])
        #expect(json.error.contains("\"port write\" : 4"), "\(json.error)")
    }

    @Test("--trace prints exits, instructions and blocks, each where it is asked for")
    func traces() throws {
        // mov ecx, 100; again: dec ecx; jnz again
        let loop: [UInt8] = [0xB9, 100, 0, 0, 0, 0xFF, 0xC9, 0x75, 0xFC]
        let image = TinyGuest.linux(loop + TinyGuest.say("a") + TinyGuest.powerOff)
        #expect(try run(image).error.isEmpty)
        let exits = try run(image, ["--trace", "exits"])
        #expect(exits.error.contains("out port 0xe9 size 1 value 0x61"), "\(exits.error)")
        #expect(!exits.error.contains("dec ecx"))
        for engine in ["interpreter", "translator"] {
            let instructions = try run(image, ["--trace", "instructions", "--engine", engine])
            let lines = instructions.error.split(separator: "\n")
            #expect(lines.filter { $0.contains("dec ecx") }.count == 100, "\(instructions.error.prefix(2000))")
            #expect(lines.filter { $0.contains("out 0xE9, al") }.count == 1)
            #expect(instructions.output == "a")
        }
        let blocks = try run(image, ["--trace", "blocks,exits"])
        let beside = blocks.error.split(separator: "\n").filter { $0.contains("  dec ecx ") && $0.contains(" | ") }
        #expect(!beside.isEmpty, "\(blocks.error)")
        #expect(blocks.error.contains("block guest_kernel_"))
        #expect(blocks.error.contains("out port 0xe9"))
    }

    @Test("--perf names translated code in /tmp/perf-PID.map")
    func perfMap() throws {
        let loop: [UInt8] = [0xB9, 100, 0, 0, 0, 0xFF, 0xC9, 0x75, 0xFC]
        let known = Set(perfMaps())
        #expect(try run(TinyGuest.linux(loop + TinyGuest.powerOff), ["--perf"]).status == 0)
        let lines = try perfMaps().filter { !known.contains($0) }.flatMap { path in
            defer { try? FileManager.default.removeItem(atPath: path) }
            return try String(contentsOfFile: path, encoding: .utf8).split(separator: "\n").map(String.init)
        }
        #expect(lines.contains { $0.hasSuffix(" roost_translator_routines") })
        #expect(lines.contains { $0.contains(" guest_kernel_") && $0.split(separator: " ").count == 3 })
    }

    private func perfMaps() -> [String] {
        let names = (try? FileManager.default.contentsOfDirectory(atPath: "/tmp")) ?? []
        return names.filter { $0.hasPrefix("perf-") && $0.hasSuffix(".map") }.map { "/tmp/" + $0 }
    }

    @Test("With virtual time a tiny guest's run can be repeated; it has no network and no input")
    func virtualTime() throws {
        let loop: [UInt8] = [0xB9, 100, 0, 0, 0, 0xFF, 0xC9, 0x75, 0xFC]
        let image = TinyGuest.linux(loop + TinyGuest.say("a") + TinyGuest.powerOff)
        let reports = try ["interpreter", "translator", "translator"].map { engine in
            let lines = try run(image, ["--clock", "virtual", "--stats", "--engine", engine]).error.split(
                separator: "\n")
            return lines.filter { $0.hasPrefix("instructions") || $0.hasPrefix("memory hash") }
        }
        #expect(reports[0].count == 2, "\(reports)")
        #expect(reports[0] == reports[1] && reports[1] == reports[2], "\(reports)")
        let network = try run(image, ["--clock", "virtual", "--net", "user"])
        #expect(network.status != 0)
        #expect(network.error.contains("virtual time has no network"), "\(network.error)")
        let halted = MultibootImage.make([0xFA, 0xF4, 0xEB, 0xFD])
        let typed = try run(halted, ["--clock", "virtual"], input: Data([97, 1, 120]))
        #expect(typed.status == 0)
        #expect(typed.error.contains("no input"), "\(typed.error)")
    }

    @Test("--console file takes the output")
    func consoleFile() throws {
        let path = FileManager.default.temporaryDirectory.appendingPathComponent("roost-console-\(UUID())").path
        defer { try? FileManager.default.removeItem(atPath: path) }
        let result = try run(
            MultibootImage.make(TinyGuest.say("to a file") + TinyGuest.powerOff), ["--console", "file:" + path])
        #expect(result.status == 0, "\(result.error)")
        #expect(result.output.isEmpty)
        #expect(try String(contentsOfFile: path, encoding: .utf8) == "to a file")
    }
}
