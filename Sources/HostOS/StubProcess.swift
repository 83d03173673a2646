// A process with nothing in it but pages of one memfd, mapped where we say, that runs user code under ptrace.
//
// Invariants: only the thread that made a stub drives it (ptrace's rule); `kick` is for all threads. The stub executes
// code that isn't ours only between `run`'s PTRACE_SYSEMU and its stop: the kernel stops it at every system call before
// that is looked at. Its own page executes calls, in `apply`, from a list that the stub can't write.
public import CHost
internal import Glibc

/// A stub process.
public final class StubProcess: @unchecked Sendable {
    /// Why it stopped.
    public enum Stop: Equatable, Sendable {
        /// At a system call, which was not done.
        case systemCall
        /// By a signal.
        case signal(Int32)
        /// It is gone.
        case ended
    }

    /// First address of the stub's own pages.
    public static let address = UInt64(ROOST_STUB_ADDRESS)
    /// Bytes of them.
    public static let size = UInt64(ROOST_STUB_SIZE)
    /// Pages can be mapped below this address.
    public static let limit = UInt64(ROOST_STUB_LIMIT)
    /// Calls that `apply` takes at once.
    public static let capacity = Int(ROOST_STUB_LIST_ENTRIES)
    /// The signal that `kick` sends.
    public static let kickSignal = SIGUSR1

    /// Its process number.
    public var processID: Int32 { stub.pid }
    /// What `kick` takes.
    public var descriptor: Int32 { stub.pidfd }
    /// The thread that made it, and so the one that drives it.
    public let owner: UInt
    /// General registers, for `run` and after it.
    public var registers = user_regs_struct()
    /// The extended state in the standard XSAVE format, of the host's full size.
    public let extended: UnsafeMutableRawPointer
    private let extendedSize: Int
    private var stub: roost_stub
    private let list: UnsafeMutablePointer<roost_stub_call>
    private let control: UnsafeMutableRawPointer
    private var initial = user_regs_struct()
    private var processor: Int32 = -1
    private var sinceFree: UInt32 = 0
    private let freedom = UnsafeMutableRawPointer.allocate(byteCount: Int(ROOST_PROCESSOR_SET), alignment: 8)
    private var isJoined = false

    /// Starts a stub over a memfd.
    public init(memory: Int32) throws(HostError) {
        let size = Int(ROOST_STUB_SIZE)
        let file = try retrying("memfd_create") { roost_memfd_create("roost-stub") }
        defer { close(file) }
        guard ftruncate(file, size) == 0, let control = mmap(nil, size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0),
            control != MAP_FAILED
        else { throw HostError.last("make a stub's pages") }
        _ = roost_stub_code(control)
        self.control = control
        list = (control + 4096).bindMemory(to: roost_stub_call.self, capacity: Self.capacity + 1)
        stub = roost_stub()
        let failure = roost_stub_start(memory, file, &stub)
        if failure != 0 {
            munmap(control, size)
            throw HostError("start a process under ptrace", errno: failure)
        }
        owner = Self.thread
        roost_stub_get_registers(stub.pid, &initial)
        // Its size isn't known before it is asked for: AMX alone takes 8 KiB.
        let room = 1 << 16
        extended = .allocate(byteCount: room, alignment: 64)
        memset(extended, 0, room)
        extendedSize = max(Int(roost_stub_get_extended(stub.pid, extended, room)), 832)
    }

    deinit {
        roost_stub_end(&stub)
        munmap(control, Int(ROOST_STUB_SIZE))
        extended.deallocate()
        freedom.deallocate()
    }

    /// Identifies the calling thread.
    public static var thread: UInt { UInt(pthread_self()) }

    /// Stops whatever stub runs behind a descriptor; from any thread.
    public static func kick(_ descriptor: Int32) { roost_stub_kick(descriptor) }

    /// Says what call `n` of the next `apply` does: map pages of the memfd.
    @inline(__always)
    ///
    /// `isPrivate`: so that `patch` can change them for this process alone.
    public func map(
        _ n: Int, at address: UInt64, length: UInt64, offset: UInt64, writable: Bool, executable: Bool,
        isPrivate: Bool = false
    ) {
        let protection = UInt64(PROT_READ | (writable ? PROT_WRITE : 0) | (executable ? PROT_EXEC : 0))
        let flags = UInt64((isPrivate ? MAP_PRIVATE : MAP_SHARED) | MAP_FIXED | MAP_NORESERVE)
        list[n] = roost_stub_call(
            number: UInt64(ROOST_STUB_MAP), arguments: (address, length, protection, flags, 0, offset))
    }

    /// The same: change the rights of pages that are mapped.
    @inline(__always)
    public func protect(_ n: Int, at address: UInt64, length: UInt64, writable: Bool, executable: Bool) {
        let protection = UInt64(PROT_READ | (writable ? PROT_WRITE : 0) | (executable ? PROT_EXEC : 0))
        list[n] = roost_stub_call(
            number: UInt64(ROOST_STUB_PROTECT), arguments: (address, length, protection, 0, 0, 0))
    }

    /// The same: unmap.
    @inline(__always)
    public func unmap(_ n: Int, at address: UInt64, length: UInt64) {
        list[n] = roost_stub_call(number: UInt64(ROOST_STUB_UNMAP), arguments: (address, length, 0, 0, 0, 0))
    }

    /// Keeps this thread and the stub on the processor that this thread is on, until `separate`: else the host wakes the one
    /// on another processor while the other runs, which takes several times as long.
    ///
    /// Every 64th time both may run anywhere, so that the host can move them to an idle processor.
    public func join() {
        sinceFree &+= 1
        let now = sinceFree & 63 == 0 ? -1 : roost_pin_thread(freedom)
        isJoined = now >= 0
        if now == processor { return }
        processor = now
        _ = roost_stub_pin(stub.pid, now)
    }

    /// Lets this thread run where it might before `join`.
    public func separate() {
        if isJoined { roost_unpin_thread(freedom) }
        isJoined = false
    }

    /// Makes the first `count` calls of the list; false: one failed, the stub may be gone.
    public func apply(_ count: Int) -> Bool {
        list[count].number = ~0
        var work = initial
        work.rip = Self.address + UInt64(roost_stub_list_entry())
        work.orig_rax = ~0
        work.eflags = 0x202
        guard roost_stub_set_registers(stub.pid, &work) == 0, roost_stub_resume(stub.pid, 0) == 0 else { return false }
        var stop = wait()
        while stop == .signal(Self.kickSignal) {
            // A late kick: whoever sent it has set the attention word.
            guard roost_stub_resume(stub.pid, 0) == 0 else { return false }
            stop = wait()
        }
        let done = stop == .signal(SIGTRAP) && roost_stub_get_registers(stub.pid, &work) == 0 && work.rax == ~0
        memset(list, 0, (count + 1) * MemoryLayout<roost_stub_call>.stride)
        return done
    }

    /// Loads `extended` into it.
    public func loadExtended() -> Bool { roost_stub_set_extended(stub.pid, extended, extendedSize) == 0 }

    /// Loads `registers`; false: the kernel refuses a value.
    public func loadRegisters() -> Bool { roost_stub_set_registers(stub.pid, &registers) == 0 }

    /// Lets it run; false: it is gone.
    @inline(__always)
    public func resume() -> Bool { roost_stub_resume(stub.pid, 1) == 0 }

    /// Waits until it stops.
    @inline(__always)
    public func wait() -> Stop {
        let status = roost_stub_wait(stub.pid)
        if status < 0 || status & 0xFF != 0x7F { return .ended }
        let signal = (status >> 8) & 0xFF
        return signal == SIGTRAP | 0x80 ? .systemCall : .signal(signal)
    }

    /// Fetches `registers` and the first 832 bytes of `extended`.
    public func fetch() -> Bool {
        roost_stub_get_registers(stub.pid, &registers) == 0 && roost_stub_get_extended(stub.pid, extended, 832) > 0
    }

    /// Writes a byte to a page that was mapped privately; false: it can't be done.
    public func patch(_ address: UInt64, _ byte: UInt8) -> Bool { roost_stub_patch(stub.pid, address, byte) == 0 }

    /// `si_code` and `si_addr` of the signal that stopped it.
    public func signalDetails() -> (code: Int32, address: UInt64) {
        var code: Int32 = 0
        var address: UInt64 = 0
        _ = roost_stub_signal(stub.pid, &code, &address)
        return (code, address)
    }
}
