// Packets of a guest on their way to the thread that sends them.
internal import HostOS
internal import Synchronization

/// What a link's thread and its callers share.
final class PacketQueue: Sendable {
    /// Bytes that may wait for the thread.
    private static let mostWaiting = 4 << 20

    private struct Contents: Sendable {
        var outgoing: [[UInt8]] = []
        var waiting = 0
        /// Somebody was told that there is no room.
        var isAwaited = false
        var offloads = LinkOffloads()
        var isStopping = false
        var thread: HostThread?
    }

    private let contents = Mutex(Contents())
    let wake: FileDescriptor

    init() throws(HostError) { wake = try FileDescriptor.eventCounter() }

    /// Keeps a packet for the thread; false if too much waits already.
    func add(_ packet: [UInt8]) -> Bool {
        let isFirst = contents.withLock { contents -> Bool? in
            if contents.isStopping { return false }
            guard contents.waiting < Self.mostWaiting else {
                contents.isAwaited = true
                return nil
            }
            contents.waiting += packet.count
            contents.outgoing.append(packet)
            return contents.outgoing.count == 1
        }
        if isFirst == true { wake.signal() }
        return isFirst != nil
    }

    /// Packets to send, and whether somebody waits for room; nil when it is time to end.
    func take() -> (packets: [[UInt8]], isAwaited: Bool)? {
        contents.withLock { contents in
            guard !contents.isStopping else { return nil }
            defer {
                contents.outgoing = []
                contents.waiting = 0
                contents.isAwaited = false
            }
            return (contents.outgoing, contents.isAwaited)
        }
    }

    /// What the guest takes.
    var offloads: LinkOffloads {
        get { contents.withLock { $0.offloads } }
        set { contents.withLock { $0.offloads = newValue } }
    }

    /// Whether it was told to end.
    var isStopped: Bool { contents.withLock { $0.isStopping } }

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
