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
}
