// The host's side of a guest's sockets; the test is the guest, and the device knows of no stream.
import Devices
import Foundation
import HostOS
import Machine
import MachineTesting
import Synchronization
import Testing

/// What handlers were given, and by which port of the host's.
private final class Arrivals: Sendable {
    private let contents = Mutex<[(port: UInt32, stream: SharedDescriptor)]>([])
    private let news = DispatchSemaphore(value: 0)

    func add(_ port: UInt32, _ stream: SharedDescriptor) {
        contents.withLock { $0.append((port, stream)) }
        news.signal()
    }

    /// The first one, within five seconds.
    func first() -> (port: UInt32, stream: SharedDescriptor)? {
        _ = news.wait(timeout: .now() + 5)
        return contents.withLock { $0.first }
    }
}

@Suite("Sockets on the host")
struct VsockEndpointTests {
    private let arrivals = Arrivals()
    private let endpoint: VsockEndpoint
    private let device: VirtioVsock

    init() throws {
        endpoint = try VsockEndpoint(path: nil)
        device = VirtioVsock(cid: 3, door: ManualDoor(), backend: endpoint)
        for port in [7, 8] as [UInt32] {
            endpoint.listen(on: port) { [arrivals] (stream: consuming FileDescriptor) in
                arrivals.add(port, SharedDescriptor(stream))
            }
        }
    }

    @Test("A connection is closed if the guest has given it up while it was made")
    func givenUp() throws {
        try endpoint.start(device)
        defer { endpoint.stop() }
        endpoint.requested(2, hostPort: 7, guestPort: 1000)
        let stream = try #require(arrivals.first()).stream
        let hasNews = stream.descriptor.waitForInput(milliseconds: 5000)
        try #require(hasNews)
        let byte = stream.descriptor.readByte()
        #expect(byte == nil && device.streamCount == 0)
    }

    @Test("One that the guest has given up before isn't made")
    func neverMade() throws {
        endpoint.requested(2, hostPort: 7, guestPort: 1000)
        endpoint.requested(4, hostPort: 8, guestPort: 1001)
        endpoint.ended(2, sends: true, takes: true)
        try endpoint.start(device)
        defer { endpoint.stop() }
        #expect(arrivals.first()?.port == 8 && device.streamCount == 0)
    }
}
