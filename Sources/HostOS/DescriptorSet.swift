// Waiting for many descriptors at once (`epoll(7)`).
internal import CHost
internal import Glibc

/// Descriptors that one thread waits for and others add to.
public final class DescriptorSet: Sendable {
    private let descriptor: FileDescriptor

    /// An empty set.
    public init() throws(HostError) {
        descriptor = FileDescriptor(owning: try retrying("epoll_create") { epoll_create1(Int32(EPOLL_CLOEXEC)) })
    }

    /// Adds a descriptor that is waited for until it can be read; `token` names it.
    public func add(_ other: borrowing FileDescriptor, token: UInt64) throws(HostError) {
        var event = epoll_event()
        event.events = EPOLLIN.rawValue
        event.data.u64 = token
        guard epoll_ctl(descriptor.rawValue, EPOLL_CTL_ADD, other.rawValue, &event) == 0 else {
            throw HostError.last("epoll_ctl")
        }
    }

    /// Adds a socket, whose every change is told once: that it can be read or written, or that the other side has gone.
    public func addEdges(_ other: borrowing FileDescriptor, token: UInt64) throws(HostError) {
        var event = epoll_event()
        event.events =
            EPOLLIN.rawValue | EPOLLOUT.rawValue | EPOLLRDHUP.rawValue | EPOLLHUP.rawValue | EPOLLET.rawValue
        event.data.u64 = token
        guard epoll_ctl(descriptor.rawValue, EPOLL_CTL_ADD, other.rawValue, &event) == 0 else {
            throw HostError.last("epoll_ctl")
        }
    }

    /// Removes a descriptor.
    public func remove(_ other: borrowing FileDescriptor) {
        var event = epoll_event()
        epoll_ctl(descriptor.rawValue, EPOLL_CTL_DEL, other.rawValue, &event)
    }

    /// Waits until there is something to tell; at most sixteen tokens, and whether the other side has gone for good.
    public func wait() -> [(token: UInt64, isHungUp: Bool)] {
        var events = [epoll_event](repeating: epoll_event(), count: 16)
        while true {
            let count = epoll_wait(descriptor.rawValue, &events, 16, -1)
            if count >= 0 {
                return events[..<Int(count)].map {
                    ($0.data.u64, $0.events & (EPOLLHUP.rawValue | EPOLLERR.rawValue) != 0)
                }
            }
            if errno != EINTR { return [] }
        }
    }
}
