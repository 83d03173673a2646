// The free-mode door: order of timers, disarming, arming from a timer.
import DeviceModel
import Devices
import Foundation
import Machine
import Synchronization
import Testing

/// A cable that leads nowhere.
private final class Nowhere: NetworkBackend {
    func send(_ packet: [UInt8], queue: Int) -> Bool { true }
    func agreed(to features: VirtioNetFeatures) {}
}

@Suite("Host door")
struct HostDoorTests {
    @Test("Timers fire in order of their deadlines, disarmed ones don't")
    func order() throws {
        let door = try HostDoor()
        let fired = Mutex<[Int]>([])
        let done = DispatchSemaphore(value: 0)
        nonisolated(unsafe) var box: [any DoorTimer] = []
        for number in 0..<4 {
            box.append(
                door.makeTimer {
                    fired.withLock { $0.append(number) }
                    if number == 0 { done.signal() }
                })
        }
        let now = door.now
        box[0].arm(at: now + 60_000_000)
        box[1].arm(at: now + 20_000_000)
        box[2].arm(at: now + 40_000_000)
        box[3].arm(at: now + 30_000_000)
        box[3].disarm()
        #expect(done.wait(timeout: .now() + 5) == .success)
        #expect(fired.withLock { $0 } == [1, 2, 0])
        #expect(door.now >= now + 60_000_000)
    }

    @Test("A timer armed in the past fires at once, and can arm itself again")
    func again() throws {
        let door = try HostDoor()
        let done = DispatchSemaphore(value: 0)
        let count = Mutex(0)
        let holder = Mutex<(any DoorTimer)?>(nil)
        let timer = door.makeTimer {
            let soFar = count.withLock {
                $0 += 1
                return $0
            }
            if soFar < 5 { holder.withLock { $0?.arm(at: 0) } } else { done.signal() }
        }
        holder.withLock { $0 = timer }
        timer.arm(at: 0)
        #expect(done.wait(timeout: .now() + 5) == .success)
        holder.withLock { $0 = nil }
    }

    @Test("What comes due while the door is closed fires when it opens, and holds nothing up before")
    func closed() throws {
        let fired = DispatchSemaphore(value: 0)
        let door = try HostDoor()
        let timers = (0..<2).map { _ in door.makeTimer { fired.signal() } }
        timers[0].arm(at: door.now + 1_000_000)
        _ = door.close()
        timers[1].arm(at: door.now)
        #expect(fired.wait(timeout: .now() + 0.05) == .timedOut)
        _ = door.open()
        withExtendedLifetime(timers) {
            for _ in 0..<2 { #expect(fired.wait(timeout: .now() + 5) == .success) }
        }
        // One that is never opened again can go.
        let gone = DispatchSemaphore(value: 0)
        Thread.detachNewThread {
            if let other = try? HostDoor() {
                let timer = other.makeTimer {}
                _ = other.close()
                timer.arm(at: 0)
                usleep(10_000)
                withExtendedLifetime(timer) {}
            }
            gone.signal()
        }
        #expect(gone.wait(timeout: .now() + 5) == .success)
    }

    @Test("While the door is closed a network card doesn't hold up the thread that brings packets and tells of room")
    func network() throws {
        let door = try HostDoor()
        let card = VirtioNet(macAddress: [2, 0, 0, 0, 0, 1], door: door, backend: Nowhere())
        _ = door.close()
        let done = DispatchSemaphore(value: 0)
        Thread.detachNewThread {
            card.receive([UInt8](repeating: 1, count: 100))
            card.resume()
            done.signal()
        }
        #expect(done.wait(timeout: .now() + 5) == .success)
        _ = door.open()
    }

    @Test("Random bytes come in the number asked for, bounded")
    func random() throws {
        let door = try HostDoor()
        #expect(door.randomBytes(16).count == 16)
        #expect(door.randomBytes(16) != door.randomBytes(16))
        #expect(door.randomBytes(1 << 20).count == 65536)
        #expect(door.randomBytes(-1).isEmpty)
    }
}
