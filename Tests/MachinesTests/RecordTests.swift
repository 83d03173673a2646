// What several threads, or several processes, write of a machine at the same time; what its console showed.
import Foundation
import HostOS
import Machine
import Machines
import Synchronization
import Testing

@Suite("Records of machines") struct RecordTests {
    @Test("What a run is at is what was said last, whichever thread says it")
    func run() throws {
        let home = try StoreHome()
        defer { home.remove() }
        let machine = try home.machine()
        let keeper = RunKeeper(machine)
        let failures = Mutex<[String]>([])
        let order = Mutex(0)
        DispatchQueue.concurrentPerform(iterations: 8) { _ in
            for _ in 0..<25 {
                do {
                    try keeper.change { record in
                        let number = order.withLock { number in
                            number += 1
                            return number
                        }
                        record.outcome = "\(number)"
                    }
                } catch { failures.withLock { $0.append("\(error)") } }
            }
        }
        let failed = failures.withLock { $0 }
        #expect(failed.isEmpty, "\(failed)")
        #expect(machine.latestRun?.outcome == "200")
    }

    @Test("Of two first runs of an image, the second leaves the first one's machine where others go on from it")
    func warm() throws {
        let home = try StoreHome()
        defer { home.remove() }
        func work(_ name: String, _ key: String) throws -> String {
            let folder = home.folder + "/" + name
            try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: true)
            try Data(key.utf8).write(to: URL(fileURLWithPath: folder + "/key"))
            try Data(name.utf8).write(to: URL(fileURLWithPath: folder + "/snapshot"))
            return folder
        }
        let place = home.folder + "/warm"
        func snapshot() -> String? {
            FileManager.default.contents(atPath: place + "/snapshot").map { String(decoding: $0, as: UTF8.self) }
        }
        try WarmImage.publish(try work("first", "image a"), as: place, "image a")
        #expect(snapshot() == "first")
        let second = try work("second", "image a")
        try WarmImage.publish(second, as: place, "image a")
        #expect(snapshot() == "first" && FileManager.default.fileExists(atPath: second))
        // One of another image that has the same checksum, or one half there, goes.
        try WarmImage.publish(try work("third", "image b"), as: place, "image b")
        #expect(snapshot() == "third")
    }

    @Test("The console's last lines, as a message shows them, steer no terminal")
    func console() throws {
        let home = try StoreHome()
        defer { home.remove() }
        let machine = try home.machine()
        let text = "first\n\u{1B}]0;title\u{7}red \u{1B}[31mé\u{9B}2J\r\n" + String(repeating: "x", count: 5000)
        try Data(text.utf8).write(to: URL(fileURLWithPath: machine.consoleLogPath))
        let lines = machine.plainConsoleTail(lines: 2)
        #expect(lines == ["]0;titlered [31mé2J", String(repeating: "x", count: 1000)])
    }

    @Test("Files of a machine are put on the disk though its process listens there")
    func socket() throws {
        let home = try StoreHome()
        defer { home.remove() }
        let machine = try home.machine()
        let server = try LocalServer(at: machine.folder + "/control.sock")
        defer { server.close() }
        try machine.synchronize()
        // The client's way, which a long path doesn't bar.
        _ = try LocalConnection(to: "control.sock", in: machine.folder)
        #expect(server.accept() != nil)
    }
}
