// A network card behind a switch or another program that speaks vhost-user, such as Open vSwitch with DPDK.
internal import HostOS
internal import Synchronization

/// A link whose other end is a vhost-user back end.
public final class VhostUserNetwork: NetworkLink {
    private let path: String
    /// Nil: the back end listens, and we connect.
    private let server: LocalServer?
    private let queue: PacketQueue
    private let session: Mutex<VhostUserSession?>

    /// Connects to a back end that listens at a path, or listens there for one; with `listens` it may come later.
    public init(path: String, listens: Bool) throws(NetworkError) {
        self.path = path
        do throws(HostError) {
            queue = try PacketQueue()
            if listens {
                if (try? LocalConnection(to: path)) != nil {
                    throw HostError("listen at \(path)", errno: HostErrorNumber.addressInUse)
                }
                server = try LocalServer(at: path)
            } else {
                server = nil
            }
        } catch { throw NetworkError(.host, "network: \(error)") }
        session = Mutex(nil)
        if !listens {
            let first = try Self.connect(to: path)
            session.withLock { $0 = first }
        }
    }

    deinit { stop() }

    private static func connect(to path: String) throws(NetworkError) -> VhostUserSession {
        let connection: LocalConnection
        do throws(HostError) { connection = try LocalConnection(to: path) } catch {
            throw NetworkError(
                .host, "network: \(error): start the vhost-user back end first, or add ,server and let it connect")
        }
        do throws(NetworkError) { return try VhostUserSession(connection) } catch {
            throw NetworkError(.host, "network: \(path): \(error)")
        }
    }

    /// Starts moving packets: one thread receives, and connects again when the back end was away.
    public func start(
        deliver: @escaping @Sendable ([UInt8]) -> Void, resume: @escaping @Sendable () -> Void
    ) throws(NetworkError) {
        do throws(HostError) {
            queue.keep(try HostThread(name: "roost-vhost") { [unowned self] in run(deliver, resume) })
        } catch { throw NetworkError(.host, "network: \(error)") }
    }

    /// A packet of the guest's, on any thread; without a back end it goes nowhere, as with an unplugged cable.
    public func send(_ packet: [UInt8]) -> Bool {
        guard let session = session.withLock({ $0 }) else { return true }
        do throws(NetworkError) {
            return try session.send(PacketFinisher.finish(packet, for: session.offloads))
        } catch {
            session.connection.close()
            return true
        }
    }

    /// Ends the thread and with it all traffic; not to be called by `deliver`.
    public func stop() {
        // Once: somebody else may be at the path by then.
        if queue.isStopped { return }
        server?.close()
        queue.stop()
        session.withLock { $0 = nil }
    }

    private func run(_ deliver: ([UInt8]) -> Void, _ resume: () -> Void) {
        while !queue.isStopped {
            if let current = session.withLock({ $0 }) {
                resume()
                serve(current, deliver, resume)
                session.withLock { $0 = nil }
                if queue.isStopped { return }
                Terminal.note("roost: network: \(path): the back end is gone; waiting for it to come back")
            }
            // Packets that wait find the cable unplugged.
            resume()
            reconnect()
        }
    }

    /// Waits a second and tries, or waits for somebody to connect.
    private func reconnect() {
        if let server {
            guard let connection = server.accept() else { return }
            do throws(NetworkError) {
                let next = try VhostUserSession(connection)
                session.withLock { $0 = next }
            } catch { Terminal.note("roost: network: \(path): \(error)") }
        } else {
            var wake = [Readiness(queue.wake.rawValue)]
            Readiness.wait(&wake, milliseconds: 1000)
            if queue.isStopped { return }
            guard let next = try? Self.connect(to: path) else { return }
            session.withLock { $0 = next }
            Terminal.note("roost: network: \(path): the back end is back")
        }
    }

    /// Moves packets until the back end is gone, or does what it may not.
    private func serve(_ session: VhostUserSession, _ deliver: ([UInt8]) -> Void, _ resume: () -> Void) {
        defer { session.connection.close() }
        do throws(NetworkError) {
            let watched = [
                Readiness(queue.wake.rawValue), Readiness(session.connection.descriptor.rawValue),
                Readiness(session.received.rawValue), Readiness(session.sent.rawValue),
            ]
            var isIdle = try session.receive(deliver)
            while !queue.isStopped {
                var all = watched
                Readiness.wait(&all, milliseconds: isIdle ? -1 : 0)
                if all[0].canRead { queue.wake.drain() }
                // A back end says nothing by itself: that is its end.
                if all[1].canRead { return }
                if all[2].canRead { session.received.drain() }
                if all[3].canRead {
                    session.sent.drain()
                    resume()
                }
                if all[2].canRead || !isIdle { isIdle = try session.receive(deliver) }
            }
        } catch { Terminal.note("roost: network: \(path): \(error)") }
    }
}
