// A machine's control socket.
import Foundation
import HostOS
import Machines
import Synchronization
import Testing

@Suite("The control socket") struct ControlServerTests {
    @Test("The answer to the request that ends the machine gets out before its socket is closed")
    func lastAnswer() throws {
        let path = "/tmp/roost-control-\(UUID().uuidString.prefix(8))"
        defer { unlink(path) }
        let server = Mutex<ControlServer?>(nil)
        let end: ControlServer.Handler = { _ in
            let isClosing = Mutex(false)
            try HostThread.detached(name: "machine") {
                server.withLock { $0 }?.close()
                isClosing.withLock { $0 = true }
            }
            // The machine is over while this is still at work.
            HostClock.sleep(nanoseconds: 100_000_000)
            #expect(!isClosing.withLock { $0 })
            return .done
        }
        let made = try ControlServer(path: path, handlers: ["end": end])
        server.withLock { $0 = made }
        let connection = try LocalConnection(to: path)
        #expect(connection.write(Array(#"{"version":1,"verb":"end","parameters":{}}"#.utf8 + [10])) == nil)
        #expect(connection.readLine(limit: 1000) == #"{"result":{},"version":1}"#)
        #expect(connection.readLine(limit: 1000) == nil)
    }

    /// A relay on a thread of its own: the client, the other side, and what is signaled at its end.
    private func relay() throws -> (client: LocalConnection, other: LocalStream, isOver: DispatchSemaphore) {
        let path = "/tmp/roost-control-\(UUID().uuidString.prefix(8))"
        let server = try LocalServer(at: path)
        defer { server.close() }
        let client = try LocalConnection(to: path)
        let connection = try #require(server.accept())
        let pair = try LocalStream.pair()
        let stream = SharedDescriptor(FileDescriptor(owning: pair.other))
        let isOver = DispatchSemaphore(value: 0)
        try HostThread.detached(name: "relay") {
            ControlStream.relay(stream, connection)
            connection.close()
            isOver.signal()
        }
        return (client, pair.own, isOver)
    }

    /// Writes until no buffer on the way has any room.
    private func fill(_ client: LocalConnection) throws {
        let part = [UInt8](repeating: 7, count: 65536)[...]
        var full = 0
        while full < 20 {
            let written = try #require(client.writeNow(part))
            full = written == 0 ? full + 1 : 0
            if written == 0 { HostClock.sleep(nanoseconds: 10_000_000) }
        }
    }

    @Test("A relay ends when its client goes, though nobody takes what the client has sent")
    func unread() throws {
        let (client, other, isOver) = try relay()
        try fill(client)
        #expect(isOver.wait(timeout: .now()) == .timedOut)
        client.close()
        #expect(isOver.wait(timeout: .now() + 5) == .success)
        withExtendedLifetime(other) {}
    }

    @Test("A relay passes on what a side has sent before it went, though the other sends what nobody takes")
    func lastWords() throws {
        let (client, other, isOver) = try relay()
        try fill(client)
        #expect(other.write(Array("status 3\n".utf8)[...]) == .moved(9))
        other.shutDown(writing: true, reading: true)
        #expect(client.readLine(limit: 100) == "status 3")
        #expect(isOver.wait(timeout: .now() + 5) == .success)
    }
}
