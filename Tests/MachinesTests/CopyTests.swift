// Copies of machines, and machines that go on from snapshots, as far as their files tell.
import Foundation
import HostOS
import Machine
import Machines
import Testing

@Suite("Copies of machines") struct CopyTests {
    @Test("A clone that is restored stays one: no ports, captures, addresses and folders of the first machine's")
    func restored() throws {
        let home = try StoreHome()
        defer { home.remove() }
        let forward = ForwardConfiguration(hostPort: 2222, guestPort: 22)
        let kinds: [NetworkKind] = [.user(forwards: [forward]), .passt(forwards: [forward])]
        let bare: [NetworkKind] = [.user(forwards: []), .passt(forwards: [])]
        let machine = try home.machine { configuration in
            configuration.networks = kinds.map { kind in
                var card = NetworkConfiguration(kind)
                card.capture = "/tmp/packets"
                return card
            }
            configuration.sockets = VsockConfiguration(path: "/tmp/sockets")
        }
        _ = try machine.mount(MountConfiguration(folder: home.folder, path: "/mnt/folder"))
        try machine.take("s")
        let first = try machine.manifest().machine.networks
        let clone = try home.store.clone(machine, snapshot: "s", as: "c")
        let again = try home.store.clone(clone, snapshot: "s", as: "d")
        for copy in [clone, again] {
            let before = try copy.manifest().machine
            #expect(before.networks.map(\.kind) == bare)
            #expect(before.networks.allSatisfy { $0.capture == nil })
            try copy.restore("s")
            let after = try copy.manifest().machine
            #expect(after.networks == before.networks && after.sockets?.path == nil && after.mounts?.isEmpty == true)
            #expect(after.networks != first)
            let record = try copy.snapshot("s")
            #expect(record.isCopy == true && record.hadMounts == true)
        }
        // The first one's is as it was.
        let record = try machine.snapshot("s")
        #expect(record.isCopy == nil && record.machine.networks == first)
    }

    @Test("A snapshot whose deletion is broken off isn't what the next start goes on from")
    func brokenOff() throws {
        let home = try StoreHome()
        defer { home.remove() }
        let machine = try home.machine()
        try machine.take("s")
        let goesOn = machine.folder + "/goes-on.json"
        try Data(#"{"snapshot":"s","isDone":true,"isClone":false}"#.utf8).write(to: URL(fileURLWithPath: goesOn))
        // The manifest can't be written.
        let obstacle = "\(machine.folder)/machine.json.\(ProcessInfo.processInfo.processIdentifier).new"
        try FileManager.default.createDirectory(atPath: obstacle, withIntermediateDirectories: false)
        #expect(throws: (any Error).self) { try machine.deleteSnapshot("s") }
        #expect(try machine.snapshots().isEmpty && !FileManager.default.fileExists(atPath: goesOn))
    }

    @Test("What exports that were killed have left beside their archive goes; what others are at stays")
    func leftovers() throws {
        let home = try StoreHome()
        defer { home.remove() }
        let machine = try home.machine()
        let path = home.folder + "/m.tar"
        let own = ProcessInfo.processInfo.processIdentifier
        let left = ["m.tar.999999999.exporting"]
        let others = ["m.tar.1.exporting", "m.tar.x.exporting", "other.tar.999999999.exporting"]
        for name in left + others {
            try FileManager.default.createDirectory(
                atPath: home.folder + "/" + name, withIntermediateDirectories: false)
        }
        try machine.export(to: path, .tar, replacing: false) { _, _, _ in }
        let names = Set(try FileManager.default.contentsOfDirectory(atPath: home.folder))
        #expect(names.isDisjoint(with: left + ["m.tar.\(own).exporting"]) && names.isSuperset(of: others + ["m.tar"]))
    }

    @Test("A machine that another command has is told from one that runs")
    func inUse() throws {
        let home = try StoreHome()
        defer { home.remove() }
        let machine = try home.machine()
        let lock = try machine.lock()
        #expect {
            _ = try machine.lock()
        } throws: { "\($0)".contains("another command is at work on it") }
        withExtendedLifetime(lock) {}
    }
}

@Suite("Manifests") struct ManifestTests {
    private func manifest(_ words: String) throws -> MachineManifest {
        let text = """
            {"version":1,"id":"8B1A9953-C461-4296-A827-ABF8C47804D7","created":"2026-01-01T00:00:00Z",
            "machine":{"boot":{"kernel":"kernel"},\(words)"engine":"auto"}}
            """
        return try MachineManifest(Data(text.utf8), "machine.json")
    }

    @Test(
        "What no machine can be is refused with a reason",
        arguments: [
            (#""processors":-1,"#, "processors"), (#""processors":0,"#, "processors"),
            (#""processors":65,"#, "processors"), (#""maximumProcessors":-1,"#, "maximumProcessors"),
            (#""maximumProcessors":1000,"#, "maximumProcessors"), (#""memory":18446744073709551615,"#, "memory"),
            (#""maximumMemory":18446744073709551615,"#, "maximumMemory"),
            (#""wantedMemory":9007199254740992,"#, "wantedMemory"), (#""balloon":9007199254740992,"#, "balloon"),
            (#""codeCache":1,"#, "codeCache"), (#""sockets":{"cid":1},"#, "cid"),
        ])
    func refused(words: String, reason: String) throws {
        #expect {
            _ = try manifest(words)
        } throws: { error in
            (error as? MachinesError)?.code == .damaged && "\(error)".contains(reason)
        }
    }

    @Test("Everything that machines can be is taken")
    func taken() throws {
        let made = try manifest(
            #""processors":64,"maximumProcessors":64,"memory":1048576,"maximumMemory":1099511627776,"#
                + #""sockets":{"cid":3},"#)
        #expect(made.machine.processors == 64)
        #expect(try manifest("").machine.processors == 1)
    }
}
