// Memory that the guest frees comes back to the host by itself.
import Foundation
import Images
import Testing

@Suite(
    "Memory given back", .serialized,
    .enabled("needs `make kernels`") { (try? DebianKernel.fetched(.cloud)) != nil })
struct MemoryReturnTests {
    /// MiB of the guest's memory that the host holds.
    private func resident(_ process: pid_t) -> Int {
        let status = (try? String(contentsOfFile: "/proc/\(process)/status", encoding: .utf8)) ?? ""
        let line = status.split(separator: "\n").first { $0.hasPrefix("RssShmem:") }
        return line.flatMap { Int($0.filter(\.isNumber)) }.map { $0 / 1024 } ?? 0
    }

    @Test("of 256 MiB that a guest frees, the host has at least 200 back within seconds")
    func freePages() throws {
        let kernel = try DebianKernel.fetched(.cloud)
        let path = FileManager.default.temporaryDirectory.appendingPathComponent("roost-initramfs-\(UUID())")
        try Data(SelfCheckImage.initramfs(for: kernel)).write(to: path)
        defer { try? FileManager.default.removeItem(at: path) }
        let session = try TerminalSession([
            "run", "--kernel", kernel.image, "--initrd", path.path, "--memory", "768M", "--net", "none", "--no-reboot",
            "--append", "console=ttyS0 selfcheck.only=modules,fill selfcheck.fill=256",
        ])
        #expect(session.expect("SELFCHECK filled", seconds: 120) != nil, "\(session.transcript.suffix(2000))")
        let filled = resident(session.child)
        #expect(filled > 256)
        #expect(session.expect("SELFCHECK freed", seconds: 60) != nil)
        var best = 0
        for _ in 0..<60 where best < 200 {
            Thread.sleep(forTimeInterval: 0.2)
            best = max(best, filled - resident(session.child))
        }
        #expect(best >= 200, "\(filled) MiB held, \(best) came back")
        _ = session.expect("SELFCHECK DONE", seconds: 60)
        #expect(session.wait(seconds: 60) == 0, "\(session.transcript.suffix(2000))")
        print("memory: \(filled) MiB held, \(best) given back")
    }
}
