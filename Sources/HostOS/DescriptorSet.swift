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

    /// Removes a descriptor.
    public func remove(_ other: borrowing FileDescriptor) {
        var event = epoll_event()
        epoll_ctl(descriptor.rawValue, EPOLL_CTL_DEL, other.rawValue, &event)
    }

    /// Waits until some can be read; at most sixteen tokens.
    public func wait() -> [UInt64] {
        var events = [epoll_event](repeating: epoll_event(), count: 16)
        while true {
            let count = epoll_wait(descriptor.rawValue, &events, 16, -1)
            if count >= 0 { return events[..<Int(count)].map(\.data.u64) }
            if errno != EINTR { return [] }
        }
    }
}
