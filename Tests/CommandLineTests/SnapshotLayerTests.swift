// The layers of disks that snapshots leave behind: few, however many snapshots come and go.
import Foundation
import Testing

@Suite("Layers of snapshots", .enabled("needs the built command") { TerminalSession.roost != nil })
struct SnapshotLayerTests {
    /// A machine with a disk of its own, running.
    private func machine(_ home: MachineHome) throws {
        let image = try home.image(TinyGuest.say("up") + KeptMachineTests.obedient)
        try home.succeed(
            "run", "-d", "--name", "m", "--net", "none", "--memory", "16M", "--engine", "translator", image)
    }

    private func layers(_ home: MachineHome) throws -> [String] {
        try FileManager.default.contentsOfDirectory(atPath: home.folder + "/data/machines/m")
            .filter { $0.hasPrefix("layer-") || $0.hasPrefix(".merging-") }
    }

    @Test(
        "Snapshots that are taken and deleted again leave no chain behind, while the machine runs and when it doesn't")
    func comeAndGo() throws {
        let home = try MachineHome()
        try machine(home)
        try home.succeed("snapshot", "take", "m", "first")
        for _ in 0..<8 {
            try home.succeed("snapshot", "take", "m", "s")
            try home.succeed("snapshot", "delete", "m", "s", "--yes")
        }
        // The first one's, and one that the running machine has open.
        let isShort = try MachineHome.eventually(30) { try layers(home).count <= 3 }
        let left = try layers(home)
        #expect(isShort, "\(left)")
        try home.succeed("stop", "m")
        try home.succeed("snapshot", "take", "m", "s")
        try home.succeed("snapshot", "delete", "m", "s", "--yes")
        #expect(try layers(home).count == 1)
        try home.succeed("snapshot", "delete", "m", "first", "--yes")
        #expect(try layers(home).isEmpty)
        try home.succeed("start", "m")
        try home.succeed("stop", "m")
        #expect(try home.succeed("logs", "m") == "upup")
    }

    @Test("A chain that would become too long to be opened is refused in time")
    func tooMany() throws {
        let home = try MachineHome()
        try machine(home)
        try home.succeed("stop", "m")
        for number in 0..<48 { try home.succeed("snapshot", "take", "m", "s\(number)") }
        try home.fail("snapshot", "take", "m", "s48", status: 64, "delete some")
        try home.succeed("start", "m")
        try home.succeed("stop", "m")
        // Those in the middle go.
        for number in 10..<40 { try home.succeed("snapshot", "delete", "m", "s\(number)", "--yes") }
        #expect(try layers(home).count == 18)
        try home.succeed("snapshot", "take", "m", "s48")
        try home.succeed("restore", "m", "s45", "--yes", "--no-start")
        try home.succeed("start", "m")
        try home.succeed("stop", "m")
    }
}
