// Which engine runs, and what `roost doctor` says of the host.
import Foundation
import Testing

@Suite("Engine choice")
struct EngineChoiceTests {
    private func run(_ options: [String]) throws -> RoostRun {
        let path = FileManager.default.temporaryDirectory.appendingPathComponent("roost-choice-\(UUID())")
        try Data(TinyGuest.multiboot(TinyGuest.say("hi") + TinyGuest.exit(0x10))).write(to: path)
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

    @Test("The doctor's page is for people: one line a thing, and the command for what is missing")
    func page() throws {
        let doctor = try RoostRun(["doctor"])
        #expect(doctor.status == 0)
        #expect(doctor.output.hasPrefix("--engine auto takes the "))
        #expect(doctor.output.split(separator: "\n").count < 40)
    }
}
