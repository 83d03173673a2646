// The door whose time is the count of instructions.
import CHost
import CPU
import DeviceModel
import Machine
import Synchronization
import Testing

@Suite("Virtual time")
struct VirtualDoorTests {
    let cpu = VirtualCPU(id: 0)
    let door = VirtualDoor()

    init() { door.attach(cpu) }

    /// Names in the order in which they were added.
    final class Record: Sendable {
        private let contents = Mutex<[String]>([])
        func add(_ name: String) { contents.withLock { $0.append(name) } }
        var names: [String] { contents.withLock { $0 } }
    }

    @Test("A nanosecond is an instruction; the time of day begins at a fixed date")
    func time() {
        #expect(door.now == 0)
        let start = door.wallClock
        cpu.state.pointee.instructions = 12345
        #expect(door.now == 12345)
        #expect(door.wallClock == start + 12345)
    }

    @Test("Timers fire by deadline, then in the order of arming, and not before")
    func timers() {
        let record = Record()
        let timers = ["a", "b", "c", "d"].map { name in door.makeTimer { record.add(name) } }
        defer { withExtendedLifetime(timers) {} }
        timers[0].arm(at: 200)
        timers[1].arm(at: 100)
        timers[3].arm(at: 200)
        timers[2].arm(at: 100)
        #expect(door.limit == 100)
        door.fireDue()
        #expect(record.names.isEmpty)
        cpu.state.pointee.instructions = 100
        door.fireDue()
        #expect(record.names == ["b", "c"])
        timers[0].arm(at: 150)
        timers[0].disarm()
        #expect(door.limit == 200)
        cpu.state.pointee.instructions = 250
        door.fireDue()
        #expect(record.names == ["b", "c", "d"])
        #expect(door.limit == .max)
    }

    @Test("A halted processor's time jumps to the next timer; without one it can't")
    func skipping() {
        #expect(!door.skipToDeadline())
        let record = Record()
        let timer = door.makeTimer { record.add("fired") }
        cpu.state.pointee.instructions = 10
        timer.arm(at: 1_000_000)
        #expect(door.skipToDeadline())
        #expect(door.now == 1_000_000)
        #expect(cpu.state.pointee.instructions == 10)
        door.fireDue()
        #expect(record.names == ["fired"])
        timer.arm(at: 1_000_100)
        #expect(door.limit == 110)
    }

    @Test("A timer that arms itself for the past does not keep the guest from running")
    func past() {
        final class Again: Sendable {
            let timer = Mutex<(any DoorTimer)?>(nil)
        }
        let again = Again()
        let record = Record()
        let timer = door.makeTimer {
            record.add("fired")
            again.timer.withLock { $0?.arm(at: 0) }
        }
        again.timer.withLock { $0 = timer }
        timer.arm(at: 0)
        door.fireDue()
        #expect(record.names.count < 1000)
        #expect(door.limit == 1)
        again.timer.withLock { $0 = nil }
    }

    @Test("A door goes on from another's state, whatever its processor has counted")
    func state() throws {
        cpu.state.pointee.instructions = 1000
        _ = door.randomBytes(3)
        let other = VirtualDoor()
        let otherCPU = VirtualCPU(id: 0)
        other.attach(otherCPU)
        otherCPU.state.pointee.instructions = 5000
        try other.restoreState(door.saveState())
        #expect(other.now == 1000)
        #expect(other.randomBytes(8) == door.randomBytes(8))
        let timer = other.makeTimer {}
        timer.arm(at: 1250)
        #expect(other.limit == 5250)
        timer.arm(at: 500)
        #expect(other.limit == 5001)
        timer.disarm()
    }

    @Test("Randomness is the same in each run; finished requests come in, packets don't")
    func outside() {
        let other = VirtualDoor()
        #expect(door.randomBytes(100) == other.randomBytes(100))
        #expect(door.randomBytes(8) != door.randomBytes(8))
        #expect(door.randomBytes(-1).isEmpty)
        let record = Record()
        door.admit(.blockCompletion(id: 1, error: 0, data: [])) { _ in record.add("disk") }
        door.admit(.packet([1])) { _ in record.add("packet") }
        #expect(record.names == ["disk"])
    }
}
