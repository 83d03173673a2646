// Disks and drives of machines that run, changed by several at once and from any folder; their guests know nothing of them.
import Foundation
import HostOS
import MachineTesting
import Testing

@Suite("Requests about disks", .enabled("needs the built command") { TerminalSession.roost != nil })
struct DiskRequestTests {
    private func configuration(_ home: MachineHome) throws -> [String: Any] {
        let manifest = try #require(try home.info("m")["manifest"] as? [String: Any])
        return try #require(manifest["machine"] as? [String: Any])
    }

    @Test("Drives that are detached at the same time are those that go")
    func drives() throws {
        let home = try MachineHome()
        let count = 16
        let options = (0..<count).flatMap { _ in ["--cdrom", "empty"] }
        let run = try RoostRun(
            [
                "run", "-d", "--name", "m", "--kernel", try home.kernel(KeptMachineTests.obedient), "--net", "none",
                "--memory", "32M", "--engine", "translator",
            ] + options, environment: home.environment)
        try #require(run.status == 0, "\(run.error)")
        let disc = home.folder + "/a.iso"
        try Data(count: 1 << 20).write(to: URL(fileURLWithPath: disc))
        try home.succeed("insert", "m", disc, "--drive", "cdrom\(count - 1)")
        // All but the last one, by threads of the machine's process that begin at once.
        let connections = try (0..<count - 1).map { _ in try LocalConnection(to: try home.socket()) }
        for (number, connection) in connections.enumerated() {
            let request = #"{"version":1,"verb":"detach-disk","parameters":{"name":"cdrom\#(number)"}}"# + "\n"
            #expect(connection.write(Array(request.utf8)) == nil)
        }
        for connection in connections {
            #expect(connection.readLine(limit: 1000) == "{\"result\":{},\"version\":1}")
        }
        #expect(try home.status("m") == "running")
        #expect(try configuration(home)["drives"] as? [String] == [disc])
        try home.succeed("eject", "m")
        try home.succeed("stop", "m")
    }

    @Test("A disk is detached by a path that begins where the command is run")
    func relative() throws {
        let home = try MachineHome()
        try home.start("m", try home.kernel(KeptMachineTests.obedient))
        let disk = home.folder + "/data.raw"
        try Data(count: 1 << 20).write(to: URL(fileURLWithPath: disk))
        try home.succeed("attach", "m", disk)
        for path in ["other.raw", "data.raw"] {
            let detach = Process()
            detach.executableURL = URL(fileURLWithPath: try #require(TerminalSession.roost))
            detach.arguments = ["detach", "m", path]
            detach.environment = ProcessInfo.processInfo.environment.merging(home.environment) { $1 }
            detach.currentDirectoryURL = URL(fileURLWithPath: home.folder)
            detach.standardError = FileHandle.nullDevice
            try detach.run()
            detach.waitUntilExit()
            #expect(detach.terminationStatus == (path == "data.raw" ? 0 : 94))
        }
        #expect((try configuration(home)["disks"] as? [Any])?.isEmpty == true)
        try home.succeed("stop", "m")
    }

    @Test("A disk that can't come while the machine runs is refused, whether it runs or not")
    func bus() throws {
        let home = try MachineHome()
        try home.start("m", try home.kernel(KeptMachineTests.obedient))
        let disk = home.folder + "/data.raw"
        try Data(count: 1 << 20).write(to: URL(fileURLWithPath: disk))
        try home.fail("attach", "m", disk + ",bus=virtio", status: 64, "only SCSI disks")
        #expect(try home.succeed("attach", "m", disk + ",bus=scsi") == "disk0\n")
        try home.succeed("stop", "m")
        try home.fail("attach", "m", disk + ",bus=virtio", status: 64, "only SCSI disks")
    }
}
