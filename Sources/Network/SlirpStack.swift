// libslirp, driven by one thread.
//
// Invariant: while `run` runs, only its thread calls libslirp; `perform` hands it what others want. Before, whoever has
// `jobs` locked does.
internal import CSlirp
internal import Dispatch
internal import Glibc
internal import HostOS
internal import Synchronization

/// A timer that libslirp asked for.
@safe private final class SlirpTimer {
    let fire: @convention(c) (UnsafeMutableRawPointer?) -> Void
    let argument: UnsafeMutableRawPointer?
    var deadline: Int64?

    init(_ fire: @escaping @convention(c) (UnsafeMutableRawPointer?) -> Void, _ argument: UnsafeMutableRawPointer?) {
        unsafe self.fire = fire
        unsafe self.argument = argument
    }
}

/// Something that another thread wants of the stack.
private final class SlirpJob: Sendable {
    let work: @Sendable (SlirpStack) throws(NetworkError) -> Void
    private let outcome = Mutex<NetworkError?>(nil)
    private let done = DispatchSemaphore(value: 0)

    init(_ work: @escaping @Sendable (SlirpStack) throws(NetworkError) -> Void) { self.work = work }

    func end(_ error: NetworkError?) {
        outcome.withLock { $0 = error }
        done.signal()
    }

    func wait() throws(NetworkError) {
        done.wait()
        if let error = outcome.withLock({ $0 }) { throw error }
    }
}

/// One instance of libslirp.
@safe final class SlirpStack: @unchecked Sendable {
    private let callbacks: UnsafeMutablePointer<SlirpCb>
    private var slirp: OpaquePointer?
    private var polled: [pollfd] = []
    private var timers: [SlirpTimer] = []
    private var deliver: (([UInt8]) -> Void)?
    private var joiner = SegmentJoiner()
    private var joins = false
    private let wake: Int32
    private let subnet: UInt8
    private var forwards: [PortForward] = []

    private enum Stage { case new, running, over }
    private let jobs = Mutex<(stage: Stage, waiting: [SlirpJob])>((.new, []))

    static func address(_ a: UInt8, _ b: UInt8, _ c: UInt8, _ d: UInt8) -> in_addr {
        in_addr(s_addr: UInt32(a) | UInt32(b) << 8 | UInt32(c) << 16 | UInt32(d) << 24)
    }

    init(wake: Int32, subnet: UInt8) throws(NetworkError) {
        self.wake = wake
        self.subnet = subnet
        // SAFETY: allocated here, initialized at once, freed in deinit after libslirp's clean-up.
        unsafe callbacks = .allocate(capacity: 1)
        unsafe callbacks.initialize(to: SlirpCb())
        var config = unsafe SlirpConfig()
        unsafe config.version = 1
        unsafe config.in_enabled = true
        unsafe config.vnetwork = Self.address(10, 0, subnet, 0)
        unsafe config.vnetmask = Self.address(255, 255, 255, 0)
        unsafe config.vhost = Self.address(10, 0, subnet, 2)
        unsafe config.vdhcp_start = Self.address(10, 0, subnet, 15)
        unsafe config.vnameserver = Self.address(10, 0, subnet, 3)
        setCallbacks()
        // SAFETY: `self` outlives the instance, which deinit destroys; the configuration is copied.
        unsafe slirp = slirp_new(&config, callbacks, Unmanaged.passUnretained(self).toOpaque())
        guard unsafe slirp != nil else { throw NetworkError(.host, "network: libslirp can't start") }
    }

    deinit {
        // SAFETY: no other reference is left, so nothing else calls libslirp.
        if let slirp = unsafe slirp { unsafe slirp_cleanup(slirp) }
        unsafe callbacks.deinitialize(count: 1)
        unsafe callbacks.deallocate()
    }

    /// The stack that a callback belongs to.
    fileprivate static func of(_ opaque: UnsafeMutableRawPointer?) -> SlirpStack? {
        // SAFETY: libslirp passes back what `slirp_new` got, an unretained reference to a living stack.
        unsafe opaque.map { unsafe Unmanaged<SlirpStack>.fromOpaque($0).takeUnretainedValue() }
    }

    // SAFETY of the callbacks: buffers are read within the call, timers are retained from timer_new to timer_free.
    private func setCallbacks() {
        unsafe callbacks.pointee.send_packet = { buffer, length, opaque in
            guard let buffer = unsafe buffer, let stack = unsafe SlirpStack.of(opaque) else { return -1 }
            var packet = SlirpStack.verified
            unsafe packet.append(contentsOf: UnsafeRawBufferPointer(start: buffer, count: length))
            stack.hand(packet)
            return length
        }
        unsafe callbacks.pointee.guest_error = { _, _ in }
        unsafe callbacks.pointee.clock_get_ns = { _ in Int64(truncatingIfNeeded: HostClock.monotonic) }
        unsafe callbacks.pointee.timer_new = { fire, argument, opaque in
            guard let fire = unsafe fire, let stack = unsafe SlirpStack.of(opaque) else { return nil }
            let timer = unsafe SlirpTimer(fire, argument)
            stack.timers.append(timer)
            return unsafe Unmanaged.passRetained(timer).toOpaque()
        }
        unsafe callbacks.pointee.timer_free = { timer, opaque in
            guard let timer = unsafe timer else { return }
            let owned = unsafe Unmanaged<SlirpTimer>.fromOpaque(timer).takeRetainedValue()
            owned.deadline = nil
            unsafe SlirpStack.of(opaque)?.timers.removeAll { $0 === owned }
        }
        unsafe callbacks.pointee.timer_mod = { timer, deadline, _ in
            guard let timer = unsafe timer else { return }
            unsafe Unmanaged<SlirpTimer>.fromOpaque(timer).takeUnretainedValue().deadline = deadline
        }
        unsafe callbacks.pointee.register_poll_fd = { _, _ in }
        unsafe callbacks.pointee.unregister_poll_fd = { _, _ in }
        unsafe callbacks.pointee.notify = { _ in }
    }

    // MARK: Forwards

    /// Does something with the stack where nothing else does, and waits for it.
    func perform(
        _ queue: PacketQueue, _ work: @escaping @Sendable (SlirpStack) throws(NetworkError) -> Void
    ) throws(NetworkError) {
        let job = SlirpJob(work)
        jobs.withLock { jobs in
            switch jobs.stage {
            case .new: doJob(job)
            case .running: jobs.waiting.append(job)
            case .over: job.end(NetworkError(.host, "network: it has ended"))
            }
        }
        queue.wake.signal()
        try job.wait()
    }

    private func doJob(_ job: SlirpJob) {
        do throws(NetworkError) {
            try job.work(self)
            job.end(nil)
        } catch { job.end(error) }
    }

    /// Begins or ends a stage, and refuses what still waits at the end.
    private func enter(_ stage: Stage) {
        let left = jobs.withLock { jobs in
            jobs.stage = stage
            defer { if stage == .over { jobs.waiting = [] } }
            return stage == .over ? jobs.waiting : []
        }
        for job in left { job.end(NetworkError(.host, "network: it has ended")) }
    }

    private func doJobs() {
        let waiting = jobs.withLock { jobs in
            defer { jobs.waiting = [] }
            return jobs.waiting
        }
        for job in waiting { doJob(job) }
    }

    /// Opens a port of the host's loopback address.
    func add(_ forward: PortForward) throws(NetworkError) {
        try probe(forward)
        // SAFETY: called by `perform`'s job, or by the thread that made the stack before anybody else has it.
        let result = unsafe slirp_add_hostfwd(
            slirp, forward.transport == .udp ? 1 : 0, Self.address(127, 0, 0, 1), Int32(forward.hostPort),
            Self.address(10, 0, subnet, 15), Int32(forward.guestPort))
        if result != 0 { throw Self.explain(HostError.last("listen"), forward) }
        forwards.append(forward)
    }

    /// Closes a port; connections through it stay.
    func remove(_ forward: PortForward) throws(NetworkError) {
        guard let index = forwards.firstIndex(of: forward) else {
            throw NetworkError(.noForward, "forward \(forward): there is none")
        }
        forwards.remove(at: index)
        // SAFETY: as in `add`.
        _ = unsafe slirp_remove_hostfwd(
            slirp, forward.transport == .udp ? 1 : 0, Self.address(127, 0, 0, 1), Int32(forward.hostPort))
    }

    /// Tries the port without sharing: libslirp would share a datagram port silently.
    private func probe(_ forward: PortForward) throws(NetworkError) {
        let type = forward.transport == .udp ? SOCK_DGRAM : SOCK_STREAM
        let descriptor = socket(AF_INET, Int32(type.rawValue | SOCK_CLOEXEC.rawValue), 0)
        guard descriptor >= 0 else { throw Self.explain(HostError.last("socket"), forward) }
        let owned = FileDescriptor(owning: descriptor)
        if forward.transport == .tcp {
            var one: Int32 = 1
            // SAFETY: the option is read within the call. A connection in TIME_WAIT doesn't keep a port.
            _ = unsafe setsockopt(owned.rawValue, SOL_SOCKET, SO_REUSEADDR, &one, socklen_t(4))
        }
        var name = sockaddr_in()
        name.sin_family = sa_family_t(AF_INET)
        name.sin_port = forward.hostPort.bigEndian
        name.sin_addr = Self.address(127, 0, 0, 1)
        // SAFETY: a sockaddr_in is a sockaddr of its length, read within the call.
        let result = unsafe withUnsafePointer(to: &name) { pointer in
            unsafe pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) { address in
                unsafe bind(owned.rawValue, address, socklen_t(MemoryLayout<sockaddr_in>.size))
            }
        }
        if result != 0 { throw Self.explain(HostError.last("bind"), forward) }
    }

    private static func explain(_ error: HostError, _ forward: PortForward) -> NetworkError {
        switch error.errno {
        case EADDRINUSE:
            return NetworkError(.portInUse, "forward \(forward): port \(forward.hostPort) is already in use")
        case EACCES, EPERM:
            return NetworkError(.portRefused, "forward \(forward): port \(forward.hostPort) needs privileges")
        default: return NetworkError(.host, "forward \(forward): \(error.reason)")
        }
    }

    // MARK: The thread

    /// The header of a packet that libslirp made: nothing is left to do, and its checksums are right.
    private static let verified: [UInt8] = {
        var header = OffloadHeader()
        header.flags = .isVerified
        return header.bytes
    }()

    /// A packet of libslirp's for the guest.
    fileprivate func hand(_ packet: [UInt8]) {
        guard let deliver else { return }
        if joins { joiner.add(packet, deliver) } else { deliver(packet) }
    }

    /// Moves packets until told to stop.
    func run(
        _ queue: PacketQueue, _ deliver: @escaping ([UInt8]) -> Void, _ resume: @escaping () -> Void
    ) {
        self.deliver = deliver
        enter(.running)
        defer {
            enter(.over)
            self.deliver = nil
        }
        while let (packets, isAwaited) = queue.take() {
            if isAwaited { resume() }
            joins = queue.offloads.isSuperset(of: [.checksum, .tcp4])
            for packet in packets {
                for packet in PacketFinisher.finish(packet, for: .longTCP4) { input(packet) }
            }
            joiner.flush(deliver)
            wait(queue)
            doJobs()
            fireTimers()
            joiner.flush(deliver)
        }
    }

    private func input(_ packet: [UInt8]) {
        // SAFETY: libslirp copies the frame within the call; a finished packet is longer than its header.
        unsafe packet.withUnsafeBufferPointer { buffer in
            let frame = unsafe buffer.dropFirst(OffloadHeader.length)
            let rebased = unsafe UnsafeBufferPointer(rebasing: frame)
            unsafe slirp_input(slirp, rebased.baseAddress, Int32(truncatingIfNeeded: rebased.count))
        }
    }

    /// Sleeps until a socket, a timer or the wake-up descriptor has something.
    private func wait(_ queue: PacketQueue) {
        polled = [pollfd(fd: wake, events: Int16(POLLIN), revents: 0)]
        var timeout = UInt32.max
        // SAFETY: the callbacks run within the calls, with this stack as their argument.
        let own = unsafe Unmanaged.passUnretained(self).toOpaque()
        unsafe slirp_pollfds_fill(
            slirp, &timeout,
            { descriptor, events, opaque in unsafe SlirpStack.of(opaque)?.watch(descriptor, events) ?? -1 }, own)
        if let next = timers.compactMap({ $0.deadline }).min() {
            let left = max(0, next &- Int64(HostClock.monotonic / 1_000_000))
            timeout = min(timeout, UInt32(min(left, 3_600_000)))
        }
        let milliseconds = timeout == .max ? -1 : Int32(min(timeout, 3_600_000))
        // SAFETY: the list is only read and filled within the call.
        let result = unsafe poll(&polled, nfds_t(polled.count), milliseconds)
        if result < 0 { for index in polled.indices { polled[index].revents = 0 } }
        if polled[0].revents != 0 { queue.wake.drain() }
        unsafe slirp_pollfds_poll(
            slirp, result < 0 ? 1 : 0,
            { index, opaque in unsafe SlirpStack.of(opaque)?.happened(Int(index)) ?? 0 }, own)
    }

    /// libslirp's event bits and poll's.
    private static let events: [(slirp: Int32, poll: Int16)] = [
        (1, Int16(POLLIN)), (2, Int16(POLLOUT)), (4, Int16(POLLPRI)), (8, Int16(POLLERR)), (16, Int16(POLLHUP)),
    ]

    fileprivate func watch(_ descriptor: Int32, _ wanted: Int32) -> Int32 {
        var events: Int16 = 0
        for event in Self.events where wanted & event.slirp != 0 { events |= event.poll }
        polled.append(pollfd(fd: descriptor, events: events, revents: 0))
        return Int32(truncatingIfNeeded: polled.count - 1)
    }

    fileprivate func happened(_ index: Int) -> Int32 {
        guard polled.indices.contains(index) else { return 0 }
        var events: Int32 = 0
        for event in Self.events where polled[index].revents & event.poll != 0 { events |= event.slirp }
        return events
    }

    private func fireTimers() {
        let now = Int64(HostClock.monotonic / 1_000_000)
        for timer in timers {
            guard let deadline = timer.deadline, deadline <= now else { continue }
            timer.deadline = nil
            // SAFETY: a timer with a deadline hasn't been freed, so libslirp's argument is alive.
            unsafe timer.fire(timer.argument)
        }
    }
}
