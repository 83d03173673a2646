// Threads, and a lock with which they wait for each other.
//
// Invariant: the pthread objects live on the heap at a fixed address from init to deinit of their owner.
internal import CHost
internal import Glibc

/// A thread of the host.
public final class HostThread: @unchecked Sendable {
    private var handle: pthread_t = 0

    private final class Start {
        let name: String
        let body: @Sendable () -> Void
        init(_ name: String, _ body: @escaping @Sendable () -> Void) {
            self.name = name
            self.body = body
        }
    }

    /// Starts a thread with all signals blocked, so that they reach the main thread only.
    public init(name: String, _ body: @escaping @Sendable () -> Void) throws(HostError) {
        let start = Unmanaged.passRetained(Start(name, body))
        var all = sigset_t()
        var before = sigset_t()
        sigfillset(&all)
        for fault in [SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP, SIGABRT] { sigdelset(&all, fault) }
        pthread_sigmask(SIG_SETMASK, &all, &before)
        let failure = pthread_create(
            &handle, nil,
            { argument in
                let start = Unmanaged<Start>.fromOpaque(argument!).takeRetainedValue()
                roost_name_thread(String(start.name.prefix(15)))
                start.body()
                return nil
            }, start.toOpaque())
        pthread_sigmask(SIG_SETMASK, &before, nil)
        if failure != 0 {
            start.release()
            throw HostError("start thread \(name)", errno: failure)
        }
    }

    /// Waits until it has ended; once only.
    public func join() { pthread_join(handle, nil) }

    /// Starts a thread that nobody waits for.
    public static func detached(name: String, _ body: @escaping @Sendable () -> Void) throws(HostError) {
        pthread_detach(try HostThread(name: name, body).handle)
    }
}

/// A mutex with a condition: threads change what it guards, others wait until that is as they want it.
public final class ConditionLock: @unchecked Sendable {
    // SAFETY of @unchecked: the mutex and the condition are made for several threads.
    private let mutex: UnsafeMutablePointer<pthread_mutex_t>
    private let condition: UnsafeMutablePointer<pthread_cond_t>

    /// A lock that nobody holds.
    public init() {
        mutex = .allocate(capacity: 1)
        condition = .allocate(capacity: 1)
        pthread_mutex_init(mutex, nil)
        pthread_cond_init(condition, nil)
    }

    deinit {
        pthread_cond_destroy(condition)
        pthread_mutex_destroy(mutex)
        condition.deallocate()
        mutex.deallocate()
    }

    /// Changes what is guarded, and has all who wait look again.
    public func update(_ body: () -> Void) {
        pthread_mutex_lock(mutex)
        body()
        pthread_cond_broadcast(condition)
        pthread_mutex_unlock(mutex)
    }

    /// Waits until `isTrue` says so and does `body` then; both are called with the mutex held.
    public func wait(until isTrue: () -> Bool, then body: () -> Void = {}) {
        pthread_mutex_lock(mutex)
        while !isTrue() { pthread_cond_wait(condition, mutex) }
        body()
        pthread_mutex_unlock(mutex)
    }
}

/// A lock that many readers or one writer hold. A reader may take it again while it has it; a writer waits for a moment
/// without readers, and may let go on another thread.
public final class ReadersWriterLock: @unchecked Sendable {
    // SAFETY of @unchecked: the counts are touched with the lock held.
    private let lock = ConditionLock()
    private var readers = 0
    private var isWriting = false

    /// A lock that nobody holds.
    public init() {}

    /// Runs `body` as one of the readers.
    public func read<Result>(_ body: () throws -> Result) rethrows -> Result {
        lockForReading()
        defer { unlockForReading() }
        return try body()
    }

    /// The same, unless that would have to wait: then nothing is done, and it is false.
    public func readNow(_ body: () -> Void) -> Bool {
        var isReading = false
        lock.wait(
            until: { true },
            then: {
                isReading = !isWriting
                readers += isReading ? 1 : 0
            })
        guard isReading else { return false }
        defer { unlockForReading() }
        body()
        return true
    }

    /// Becomes one of the readers.
    public func lockForReading() { lock.wait(until: { !isWriting }, then: { readers += 1 }) }

    /// Ends `lockForReading`, on any thread.
    public func unlockForReading() { lock.update { readers -= 1 } }

    /// Runs `body` alone.
    public func write<Result>(_ body: () throws -> Result) rethrows -> Result {
        lockForWriting()
        defer { unlock() }
        return try body()
    }

    /// Waits until nobody holds it, and takes it for writing.
    public func lockForWriting() { lock.wait(until: { !isWriting && readers == 0 }, then: { isWriting = true }) }

    /// Ends `lockForWriting`.
    public func unlock() { lock.update { isWriting = false } }
}

extension FileDescriptor {
    /// Waits until one of two descriptors can be read; whether each can. A negative descriptor is never ready.
    public static func waitForInput(_ first: Int32, _ second: Int32) -> (first: Bool, second: Bool) {
        var descriptors = [
            pollfd(fd: first, events: Int16(POLLIN), revents: 0), pollfd(fd: second, events: Int16(POLLIN), revents: 0),
        ]
        while poll(&descriptors, 2, -1) < 0 {
            if errno != EINTR { return (false, true) }
        }
        return (descriptors[0].revents != 0, descriptors[1].revents != 0)
    }
}
