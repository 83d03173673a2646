// A user-mode network: libslirp on a thread of its own.
//
// The guest sees 10.0.2.0/24: gateway 10.0.2.2, DNS 10.0.2.3, itself 10.0.2.15 by DHCP. No privilege is needed.
public import HostOS
internal import Synchronization

/// A network behind address translation in this process.
public final class UserNetwork: Sendable {
    static let mostOutgoing = 1024
    static let largestFrame = 1518

    /// What the thread and its owner share.
    final class Shared: Sendable {
        private struct Contents: Sendable {
            var outgoing: [[UInt8]] = []
            var isStopping = false
            var thread: HostThread?
        }

        private let contents = Mutex(Contents())
        let wake: FileDescriptor

        init() throws(HostError) { wake = try FileDescriptor.eventCounter() }

        func add(_ frame: [UInt8]) {
            let isFirst = contents.withLock { contents in
                guard contents.outgoing.count < UserNetwork.mostOutgoing, !contents.isStopping else { return false }
                contents.outgoing.append(frame)
                return contents.outgoing.count == 1
            }
            if isFirst { wake.signal() }
        }

        /// Frames to send; nil when it is time to end.
        func take() -> [[UInt8]]? {
            contents.withLock { contents in
                guard !contents.isStopping else { return nil }
                defer { contents.outgoing = [] }
                return contents.outgoing
            }
        }

        func keep(_ thread: HostThread) { contents.withLock { $0.thread = thread } }

        func stop() {
            let thread = contents.withLock { contents in
                contents.isStopping = true
                defer { contents.thread = nil }
                return contents.thread
            }
            wake.signal()
            thread?.join()
        }
    }

    private let shared: Shared
    private let stack: SlirpStack

    /// Sets up the network and opens the forwarded ports; nothing moves before `start`.
    public init(forwards: [PortForward] = []) throws(NetworkError) {
        do { shared = try Shared() } catch { throw NetworkError(.host, "network: \(error)") }
        stack = try SlirpStack(wake: shared.wake.rawValue)
        for forward in forwards { try stack.add(forward) }
    }

    deinit { stop() }

    /// Starts moving frames; `deliver` gets each frame for the guest, on the network's thread.
    public func start(deliver: @escaping @Sendable ([UInt8]) -> Void) throws(HostError) {
        let stack = stack
        let shared = shared
        shared.keep(try HostThread(name: "network") { stack.run(shared, deliver) })
    }

    /// A frame from the guest, on any thread; dropped when it is too long or too many wait.
    public func send(_ frame: [UInt8]) {
        if frame.count >= 14, frame.count <= Self.largestFrame { shared.add(frame) }
    }

    /// Ends the thread and with it all traffic; not to be called by `deliver`.
    public func stop() { shared.stop() }
}
