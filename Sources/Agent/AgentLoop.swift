// One thread serves all streams: it waits for whatever is ready and moves bytes, never more than a piece at a time.
internal import CAgent
internal import Glibc

/// What the agent waits for.
struct Interest {
    var descriptor: Int32
    var events: Int16
}

/// All streams of the host's.
final class AgentLoop {
    /// Streams at most.
    private static let mostSessions = 256

    private let listener: Int32
    /// Readable when a child has ended.
    private let children: Int32
    private var sessions: [Session] = []

    init(listener: Int32) {
        self.listener = listener
        children = roost_child_signals()
    }

    func run() -> Never {
        while true {
            var waiting = [pollfd(fd: children, events: Int16(POLLIN), revents: 0)]
            if sessions.count < Self.mostSessions {
                waiting.append(pollfd(fd: listener, events: Int16(POLLIN), revents: 0))
            }
            for session in sessions {
                for interest in session.interests {
                    waiting.append(pollfd(fd: interest.descriptor, events: interest.events, revents: 0))
                }
            }
            if poll(&waiting, nfds_t(waiting.count), -1) < 0 { continue }
            var ready: [Int32: Int16] = [:]
            for entry in waiting where entry.revents != 0 { ready[entry.fd] = entry.revents }
            if ready[children] != nil { reap() }
            for session in sessions { session.serve(ready) }
            sessions.removeAll { $0.isOver }
            if ready[listener] != nil { accept() }
        }
    }

    private func accept() {
        let stream = roost_accept(listener)
        if stream >= 0 { sessions.append(Session(stream)) }
    }

    /// Takes the statuses of all children that have ended; most were nobody's but the kernel's to begin with.
    private func reap() {
        roost_drain_signals(children)
        var status: Int32 = 0
        while true {
            let process = waitpid(-1, &status, WNOHANG)
            if process <= 0 { return }
            for session in sessions { session.childEnded(process, status) }
        }
    }
}
