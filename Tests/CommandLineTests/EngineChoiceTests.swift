// Which engine runs, and what `roost doctor` says of the host.
import Foundation
import MachineTesting
import Testing

@Suite("Engine choice")
struct EngineChoiceTests {
    private func run(
        _ options: [String], _ code: [UInt8] = TinyGuest.say("hi") + TinyGuest.exit(0x10)
    ) throws -> RoostRun {
        let path = FileManager.default.temporaryDirectory.appendingPathComponent("roost-choice-\(UUID())")
        try Data(MultibootImage.make(code)).write(to: path)
        defer { try? FileManager.default.removeItem(at: path) }
        return try RoostRun(
            ["run", "--kernel", path.path, "--net", "none", "--memory", "32M", "--debug-exit", "0xf4"] + options)
    }

    private struct Report: Decodable {
        struct Item: Decodable {
            var name, standing, detail: String
            var remedy: String?
        }
        var engine: String
        var items: [Item]
    }

    @Test("auto takes what the doctor says, and tells why where that is the translator")
    func auto() throws {
        let doctor = try RoostRun(["doctor", "--json"])
        #expect(doctor.status == 0)
        let report = try JSONDecoder().decode(Report.self, from: Data(doctor.output.utf8))
        let result = try run(["--stats"])
        #expect(result.status == 0x21, "\(result.error)")
        #expect(result.output == "hi")
        #expect(result.error.contains("hypervisor    exits") == (report.engine == "kvm"))
        #expect((result.choice == nil) == (report.engine == "kvm"), "\(result.choice ?? "")")
        let hypervisor = try #require(report.items.first { $0.name == "KVM" })
        if let choice = result.choice {
            #expect(choice.hasSuffix(hypervisor.detail.prefix(0)) && !hypervisor.detail.isEmpty)
        }
        #expect(
            ["KVM", "memory", "huge pages", "TAP", "user namespaces"].allSatisfy { name in
                report.items.contains { $0.name == name && !$0.detail.isEmpty }
            })
    }

    @Test("An engine that was named is not discussed")
    func named() throws {
        for engine in ["translator", "interpreter"] {
            let result = try run(["--engine", engine])
            #expect(result.status == 0x21)
            #expect(result.choice == nil && result.error.isEmpty)
        }
        // What only software has decides without a word.
        let virtual = try run(["--clock", "virtual"])
        #expect(virtual.status == 0x21 && virtual.choice == nil, "\(virtual.error)")
    }

    @Test("KVM runs the same guest, or says in one line why not")
    func kvm() throws {
        let result = try run(["--engine", "kvm"])
        if result.status == 0x21 {
            #expect(result.output == "hi" && result.error.isEmpty)
        } else {
            #expect(result.status == 92)
            #expect(result.error.hasPrefix("roost: ") && result.error.split(separator: "\n").count == 1)
        }
        let impossible = try run(["--engine", "kvm", "--clock", "virtual"])
        #expect(impossible.status == 92)
        #expect(impossible.error.contains("--clock virtual"), "\(impossible.error)")
    }

    @Test("Under KVM a reset starts the guest again, from the write that asked for it")
    func reset() throws {
        // CMOS byte 0x50 survives: 0 the first time, then 1.
        let choose: [UInt8] = [0xB0, 0x50, 0xE6, 0x70, 0xE4, 0x71, 0x3C, 0x01, 0x74, UInt8(8 + TinyGuest.reset.count)]
        let remember: [UInt8] = [0xB0, 0x50, 0xE6, 0x70, 0xB0, 0x01, 0xE6, 0x71]
        let result = try run(
            ["--engine", "kvm"], TinyGuest.say("R") + choose + remember + TinyGuest.reset + TinyGuest.exit(1))
        if result.status == 92 { return }
        #expect(result.status == 3, "\(result.error)")
        #expect(result.output == "RR")
    }

    @Test("What KVM gives up on is reported in words, with the registers, and a status of its own")
    func fault() throws {
        // mov eax, 0xd0000000; jmp eax: code where there is no memory
        let result = try run(["--engine", "kvm"], [0xB8, 0, 0, 0, 0xD0, 0xFF, 0xE0])
        if result.status == 92 { return }
        #expect(result.status == 90)
        #expect(result.error.hasPrefix("roost: KVM gave up"), "\(result.error)")
        #expect(result.error.contains("rax 00000000d0000000"), "\(result.error)")
    }

    @Test("Under KVM characters that no exit follows still come out")
    func collectedOutput() throws {
        // mov dx, 0x3f8; three characters; then spin without an exit
        let code: [UInt8] = [0x66, 0xBA, 0xF8, 0x03, 0xB0, 0x61, 0xEE, 0xB0, 0x62, 0xEE, 0xFA, 0xF4, 0xEB, 0xFD]
        let path = FileManager.default.temporaryDirectory.appendingPathComponent("roost-collected-\(UUID())")
        try Data(MultibootImage.make(code)).write(to: path)
        defer { try? FileManager.default.removeItem(at: path) }
        let session = try TerminalSession(["run", "--engine", "kvm", "--kernel", path.path, "--net", "none"])
        if session.expect("ab", seconds: 10) == nil {
            #expect(session.wait(seconds: 5) == 92, "\(session.transcript)")
        } else {
            session.send([1, 120])
            #expect(session.wait(seconds: 10) == 0)
        }
    }

    @Test("The doctor's page is for people: one line a thing, and the command for what is missing")
    func page() throws {
        let doctor = try RoostRun(["doctor"])
        #expect(doctor.status == 0)
        #expect(doctor.output.hasPrefix("--engine auto takes the "))
        #expect(doctor.output.split(separator: "\n").count < 40)
    }
}
