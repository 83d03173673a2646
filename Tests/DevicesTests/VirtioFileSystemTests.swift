// The virtio file system device: what a reset and a restore mean to the server behind it.
import DeviceModel
import Devices
import MachineTesting
import Synchronization
import Testing

/// A server that notes what happens to it.
private final class RecordingServer: FileServer {
    private let contents = Mutex((events: [String](), state: SharedFolderState()))
    var events: [String] { contents.withLock { $0.events } }
    func answer(_ request: [UInt8], room: Int) -> [UInt8]? {
        contents.withLock { $0.events.append("asked") }
        return [1, 2, 3]
    }
    func reset() { contents.withLock { $0.events.append("reset") } }
    func saveState() -> SharedFolderState { contents.withLock { $0.state } }
    func restoreState(_ state: SharedFolderState) throws {
        contents.withLock { contents in
            contents.events.append("restored")
            contents.state = state
        }
    }
}

/// A worker that is late.
private final class LateWorker: Worker {
    private let jobs = Mutex<[@Sendable () -> Void]>([])
    func run(_ job: @escaping @Sendable () -> Void) { jobs.withLock { $0.append(job) } }
    func catchUp() {
        let due = jobs.withLock { jobs in
            defer { jobs = [] }
            return jobs
        }
        for job in due { job() }
    }
}

@Suite struct VirtioFileSystemTests {
    @Test func `a reset reaches the server, but never what is restored after it, however late the worker is`() throws {
        let (server, worker) = (RecordingServer(), LateWorker())
        let rig = try VirtioRig(VirtioFileSystem(tag: "t", door: ManualDoor(), server: server, worker: worker))
        rig.start(features: 1 << 32)
        worker.catchUp()
        let before = server.events.count
        var state = rig.transport.saveState()
        state.device.folder?.nextNode = 77
        rig.write(0x14, 1, 0)
        worker.catchUp()
        #expect(server.events.count == before + 1 && server.events.last == "reset")
        try rig.transport.restoreState(state)
        worker.catchUp()
        #expect(server.events.last == "restored" && server.saveState().nextNode == 77)
    }

    @Test func `requests that a reset finds queued are not done, nor read`() throws {
        let (server, worker) = (RecordingServer(), LateWorker())
        let rig = try VirtioRig(VirtioFileSystem(tag: "t", door: ManualDoor(), server: server, worker: worker))
        rig.start(features: 1 << 32)
        func ask() {
            rig.put([UInt8](repeating: 7, count: 40), at: 0x20_0000)
            rig.queues[1].add([(0x20_0000, 40, false), (0x20_1000, 4096, true)])
            rig.kick(1)
        }
        ask()
        worker.catchUp()
        #expect(server.events.last == "asked")
        ask()
        rig.write(0x14, 1, 0)
        worker.catchUp()
        #expect(server.events.last == "reset" && server.events.count { $0 == "asked" } == 1)
    }
}
