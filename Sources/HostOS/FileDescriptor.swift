// File descriptors that close themselves.
internal import CHost
internal import Glibc

/// An open file descriptor, closed when its owner goes away.
public struct FileDescriptor: ~Copyable, Sendable {
    /// The kernel's number for it.
    public let rawValue: Int32

    /// Takes ownership of an open descriptor.
    public init(owning rawValue: Int32) { self.rawValue = rawValue }

    deinit { close(rawValue) }

    /// Opens a file (`open(2)`), close-on-exec.
    public static func open(
        _ path: String, _ flags: Int32, mode: UInt32 = 0o644
    ) throws(HostError) -> FileDescriptor {
        FileDescriptor(owning: try retrying("open \(path)") { Glibc.open(path, flags | O_CLOEXEC, mode) })
    }

    /// Makes `/tmp/perf-PID.map`, where perf looks for names of generated code. A file that is there already goes: it is an
    /// older process's, or somebody's who must not choose where we write.
    public static func createForPerf() throws(HostError) -> FileDescriptor {
        let path = "/tmp/perf-\(getpid()).map"
        unlink(path)
        return try open(path, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW)
    }

    /// Makes an event counter (`eventfd(2)`), non-blocking.
    public static func eventCounter() throws(HostError) -> FileDescriptor {
        FileDescriptor(owning: try retrying("eventfd") { eventfd(0, Int32(O_CLOEXEC | O_NONBLOCK)) })
    }

    /// Makes a monotonic timer (`timerfd_create(2)`), non-blocking.
    public static func timer() throws(HostError) -> FileDescriptor {
        FileDescriptor(
            owning: try retrying("timerfd_create") {
                timerfd_create(CLOCK_MONOTONIC, Int32(O_CLOEXEC | O_NONBLOCK))
            })
    }

    /// Adds one to an event counter: wakes whoever polls it.
    public func signal() {
        var one: UInt64 = 1
        _ = Glibc.write(rawValue, &one, 8)
    }

    /// Reads an event counter or timer back to zero.
    public func drain() {
        var value: UInt64 = 0
        _ = Glibc.read(rawValue, &value, 8)
    }

    /// Arms a timer at an absolute `CLOCK_MONOTONIC` time in nanoseconds; nil disarms it.
    public func arm(at deadline: UInt64?) {
        var spec = itimerspec()
        if let deadline {
            let at = max(deadline, 1)
            spec.it_value.tv_sec = Int(at / 1_000_000_000)
            spec.it_value.tv_nsec = Int(at % 1_000_000_000)
        }
        timerfd_settime(rawValue, roost_timer_absolute, &spec, nil)
    }
}
