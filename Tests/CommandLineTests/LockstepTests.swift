// The beginning of a boot with translator and interpreter side by side.
import Foundation
import Images
import Testing

@Suite(
    "lockstep", .serialized,
    .enabled("needs `make kernels` and the built command") {
        TerminalSession.roost != nil && (try? DebianKernel.fetched(.cloud)) != nil
    })
struct LockstepTests {
    @Test("translator and interpreter agree on every block of the cloud kernel's first 200 million instructions")
    func beginningOfBoot() throws {
        let kernel = try DebianKernel.fetched(.cloud)
        let session = try TerminalSession([
            "run", "--engine", "lockstep", "--kernel", kernel.image, "--net", "none", "--no-reboot", "--append",
            "console=ttyS0 earlyprintk=ttyS0",
        ])
        // Decompression, page tables, memory, interrupt controllers.
        let reached = session.expect("Built 1 zonelists", seconds: 300)
        #expect(reached != nil, "\(session.transcript.suffix(3000))")
        session.type("\u{1}x")
        #expect(session.wait(seconds: 60) == 0, "\(session.transcript.suffix(3000))")
    }

    @Test("a guest ends as it does on other engines")
    func tinyGuest() throws {
        let path = FileManager.default.temporaryDirectory.appendingPathComponent("roost-lockstep-\(UUID())")
        try Data(TinyGuest.linux(TinyGuest.say("hi") + TinyGuest.exit(0x10))).write(to: path)
        defer { try? FileManager.default.removeItem(at: path) }
        let result = try RoostRun([
            "run", "--kernel", path.path, "--net", "none", "--memory", "32M", "--engine", "lockstep", "--debug-exit",
            "0xf4", "--stats",
        ])
        #expect(result.status == 0x21)
        #expect(result.output == "hi")
        #expect(result.error.contains("blocks compared"))
    }
}
