// The other end of one of a guest's streams.
internal import DeviceModel
internal import HostOS
internal import Synchronization

/// A socket of the host's and what is on its way to it.
final class VsockPeer: Sendable {
    enum Phase: Sendable {
        /// A program that hasn't said yet which port it wants.
        case greeting
        /// The guest hasn't accepted yet.
        case opening
        case open
    }

    struct State: Sendable {
        var phase: Phase
        /// Bytes of the guest's that found no room: no more than it has credit for.
        var outgoing = ByteQueue()
        var guestEndsSending = false
        var guestEndsTaking = false
        /// The end of what the host sends was read.
        var hostHasEnded = false
        /// The host has closed its end; what it has sent may still be unread.
        var isHungUp = false
        /// Nothing can be written any more.
        var isGone = false
        /// The host has ended it, and what there is no room for with it.
        var isAbandoned = false
        var hasShutDown = (writing: false, reading: false)

        var guestIsGone: Bool { guestEndsSending && guestEndsTaking }
        /// Whether the host has closed its end and all that it has sent is read, or wanted by nobody; or ended the stream.
        var hostIsGone: Bool {
            isGone || isAbandoned || (isHungUp && (hostHasEnded || guestEndsTaking || phase == .opening))
        }
    }

    let stream: LocalStream
    let state: Mutex<State>
    /// Which socket is at the other end, if Roost itself has opened the stream.
    let other: [UInt64]?

    init(_ stream: LocalStream, _ phase: Phase, other: [UInt64]? = nil) {
        self.stream = stream
        self.other = other
        state = Mutex(State(phase: phase))
    }

    /// Writes bytes after those that wait; returns how many went on at once.
    func send(_ bytes: ArraySlice<UInt8>) -> Int {
        state.withLock { state in
            if state.isGone { return 0 }
            if !state.outgoing.isEmpty {
                state.outgoing.append(bytes)
                return 0
            }
            var rest = bytes
            while state.outgoing.isEmpty, !rest.isEmpty {
                switch stream.write(rest) {
                case .moved(let count): rest = rest.dropFirst(count)
                case .wait: state.outgoing.append(rest)
                case .gone, .end:
                    state.isGone = true
                    return bytes.count - rest.count
                }
            }
            return bytes.count - rest.count
        }
    }

    /// Writes what waits, then ends what the guest has ended; returns how many bytes went on.
    func flush() -> Int {
        state.withLock { state in
            var count = 0
            writing: while !state.outgoing.isEmpty, !state.isGone {
                switch stream.write(state.outgoing.first(64 << 10)) {
                case .moved(let moved):
                    state.outgoing.drop(moved)
                    count += moved
                case .gone, .end: state.isGone = true
                case .wait: break writing
                }
            }
            let ends = (writing: state.guestEndsSending && state.outgoing.isEmpty, reading: state.guestEndsTaking)
            stream.shutDown(
                writing: ends.writing && !state.hasShutDown.writing, reading: ends.reading && !state.hasShutDown.reading
            )
            state.hasShutDown = ends
            return count
        }
    }
}
