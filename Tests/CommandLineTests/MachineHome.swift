// A store of machines for one test, and the `roost` that works in it.
import Foundation
import HostOS
import MachineTesting
import Testing

/// A store and a runtime folder of its own; machines that still run at the end are killed.
final class MachineHome {
    let folder: String
    let environment: [String: String]

    init() throws {
        folder = "/tmp/roost-home-\(UUID().uuidString.prefix(8))"
        environment = ["ROOST_HOME": folder + "/data", "XDG_RUNTIME_DIR": folder + "/run"]
        for path in [folder, folder + "/data", folder + "/run"] {
            try FileManager.default.createDirectory(
                atPath: path, withIntermediateDirectories: true, attributes: [.posixPermissions: 0o700])
        }
    }

    deinit {
        for row in (try? list()) ?? [] where row["status"] as? String == "running" {
            _ = try? roost("kill", row["name"] as? String ?? "")
        }
        try? FileManager.default.removeItem(atPath: folder)
    }

    /// Runs `roost`.
    func roost(_ arguments: String..., input: Data? = nil) throws -> RoostRun {
        try RoostRun(arguments, input: input, environment: environment)
    }

    /// Runs `roost`, which must end with 0, or the test ends; returns what it printed.
    @discardableResult
    func succeed(_ arguments: String..., input: Data? = nil) throws -> String {
        let run = try RoostRun(arguments, input: input, environment: environment)
        try #require(run.status == 0, "\(arguments): \(run.error)")
        return run.output
    }

    /// Runs `roost`, which must fail with a status and one line of these words.
    func fail(_ arguments: String..., status: Int32, _ words: String) throws {
        let run = try RoostRun(arguments, environment: environment)
        #expect(run.status == status, "\(arguments): \(run.error)")
        #expect(run.error.contains(words), "\(arguments): \(run.error)")
    }

    /// Writes a guest's code to a Multiboot image.
    func kernel(_ code: [UInt8], _ name: String = "kernel") throws -> String {
        let path = folder + "/" + name
        try Data(MultibootImage.make(code)).write(to: URL(fileURLWithPath: path))
        return path
    }

    /// Makes an image of a guest's code and what is on its disk; returns its folder.
    func image(_ code: [UInt8], disk: Data = Data(count: 1 << 20)) throws -> String {
        let image = folder + "/image"
        try FileManager.default.createDirectory(atPath: image, withIntermediateDirectories: true)
        _ = try kernel(code, "image/kernel")
        try Data([1]).write(to: URL(fileURLWithPath: image + "/initrd"))
        try disk.write(to: URL(fileURLWithPath: image + "/disk.raw"))
        let manifest = """
            {"version":1,"name":"image","variant":"minimal","suite":"none","kernel":"kernel","initrd":"initrd",
            "disk":"disk.raw","commandLine":"","kernelRelease":"0","created":"2026-01-01T00:00:00Z",
            "diskSize":\(disk.count)}
            """
        try Data(manifest.utf8).write(to: URL(fileURLWithPath: image + "/image.json"))
        return image
    }

    /// Starts a machine in the background.
    func start(_ name: String, _ kernel: String, _ options: String...) throws {
        let run = try RoostRun(
            [
                "run", "-d", "--name", name, "--kernel", kernel, "--net", "none", "--memory", "32M", "--engine",
                "translator",
            ]
                + options, environment: environment)
        try #require(run.status == 0, "\(run.error)")
        #expect(run.output == name + "\n")
    }

    func list() throws -> [[String: Any]] {
        let text = try roost("list", "--format", "json").output
        return try JSONSerialization.jsonObject(with: Data(text.utf8)) as? [[String: Any]] ?? []
    }

    func status(_ name: String) throws -> String? {
        try list().first { $0["name"] as? String == name }?["status"] as? String
    }

    func info(_ name: String) throws -> [String: Any] {
        try #require(
            try JSONSerialization.jsonObject(with: Data(try succeed("info", name, "--json").utf8)) as? [String: Any])
    }

    func events(_ name: String) throws -> [String] {
        try succeed("events", name).split(separator: "\n").compactMap {
            (try JSONSerialization.jsonObject(with: Data($0.utf8)) as? [String: Any])?["event"] as? String
        }
    }

    /// Where the process of the only machine listens.
    func socket() throws -> String {
        let machines = folder + "/data/machines"
        let names = try FileManager.default.contentsOfDirectory(atPath: machines).filter { !$0.hasPrefix(".") }
        return machines + "/" + (try #require(names.first)) + "/control.sock"
    }

    /// Waits until something is so.
    static func eventually(_ seconds: Double = 20, _ condition: () throws -> Bool) rethrows -> Bool {
        let deadline = Date().addingTimeInterval(seconds)
        while Date() < deadline {
            if try condition() { return true }
            usleep(20_000)
        }
        return try condition()
    }
}
