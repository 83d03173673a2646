// Mistakes with Debian's kernels, images and ports: one clear line and a status of its own kind (docs/exit-status.md).
import Foundation
import Glibc
import HostOS
import Images
import Testing

/// Runs `roost` with nothing on standard input; its lines and its status.
private func roost(_ arguments: [String]) throws -> (lines: [String], status: Int32?) {
    var lines: [String] = []
    let deadline = Date().addingTimeInterval(30)
    let ending = try ChildProcess.run(
        TerminalSession.roost ?? "", arguments, environment: ProcessInfo.processInfo.environment,
        line: { lines.append($0) }, proceed: { Date() < deadline })
    if case .exited(let status) = ending { return (lines, status) }
    return (lines, nil)
}

/// Expects one line that contains the words, and the status.
private func expect(_ arguments: [String], status: Int32, words: String...) throws {
    let result = try roost(arguments)
    #expect(result.status == status, "\(arguments): \(result.lines)")
    #expect(result.lines.count == 1, "\(result.lines)")
    for word in words { #expect(result.lines.first?.contains(word) == true, "\(arguments): \(result.lines)") }
}

@Suite("mistakes with real files", .enabled("needs the built command") { TerminalSession.roost != nil })
struct BadInputTests {
    private let scratch: String

    init() throws {
        scratch = FileManager.default.temporaryDirectory.appendingPathComponent("roost-\(UUID().uuidString)").path
        try FileManager.default.createDirectory(atPath: scratch, withIntermediateDirectories: true)
    }

    /// A file of the test's own, removed by the operating system's cleaning if a test fails.
    private func file(_ name: String, _ bytes: Data) throws -> String {
        let path = scratch + "/" + name
        try bytes.write(to: URL(fileURLWithPath: path))
        return path
    }

    private func remove() { try? FileManager.default.removeItem(atPath: scratch) }

    @Test("an image that is not there says how to make one")
    func images() throws {
        defer { remove() }
        try expect(["run", "no-such-image"], status: 72, words: "no-such-image")
        try expect(["run", "../escape/"], status: 72, words: "../escape/")
    }

    @Test(
        "a kernel that is truncated or larger than memory, an initrd that does not fit",
        .enabled("needs `make kernels`") { (try? DebianKernel.fetched(.cloud)) != nil })
    func sizes() throws {
        defer { remove() }
        let kernel = try DebianKernel.fetched(.cloud).image
        let whole = try Data(contentsOf: URL(fileURLWithPath: kernel))
        for length in [100, 1000, 20000, whole.count / 2] {
            try expect(["run", "--kernel", try file("short", whole.prefix(length))], status: 66, words: "short")
        }
        try expect(["run", "--kernel", kernel, "--memory", "8M"], status: 66)
        let initrd = try file("initrd", Data(count: 80 << 20))
        try expect(
            ["run", "--kernel", kernel, "--initrd", initrd, "--memory", "96M"], status: 66, words: "initrd")
        try expect(["run", "--kernel", kernel, "--initrd", scratch + "/none"], status: 66, words: "none")
    }

    @Test("a port already taken", .enabled("needs `make kernels`") { (try? DebianKernel.fetched(.cloud)) != nil })
    func ports() throws {
        defer { remove() }
        let listener = FileDescriptor(owning: socket(AF_INET, Int32(SOCK_STREAM.rawValue), 0))
        var address = sockaddr_in()
        address.sin_family = sa_family_t(AF_INET)
        var size = socklen_t(MemoryLayout<sockaddr_in>.size)
        let bound = withUnsafeMutablePointer(to: &address) {
            $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                bind(listener.rawValue, $0, size) == 0 && listen(listener.rawValue, 1) == 0
                    && getsockname(listener.rawValue, $0, &size) == 0
            }
        }
        try #require(bound)
        let port = UInt16(bigEndian: address.sin_port)
        try expect(
            ["run", "--kernel", DebianKernel.fetched(.cloud).image, "--net", "user,forward=tcp:\(port):22"],
            status: 76, words: "\(port)")
    }

    @Test(
        "a processor model that does not exist",
        .enabled("needs `make kernels`") { (try? DebianKernel.fetched(.cloud)) != nil })
    func processors() throws {
        defer { remove() }
        let kernel = try DebianKernel.fetched(.cloud).image
        try expect(["run", "--kernel", kernel, "--cpu", "no-such-model"], status: 80, words: "no-such-model")
    }
}
