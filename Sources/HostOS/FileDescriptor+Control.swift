// Device control (`ioctl(2)`), memory that a descriptor maps, and threads that a signal pulls out of a blocking call.
internal import CHost
internal import Glibc

extension FileDescriptor {
    /// Controls a device with an argument in memory; interrupted calls are an error like others.
    @discardableResult
    public func control(_ request: UInt64, _ argument: UnsafeMutableRawPointer?) throws(HostError) -> Int32 {
        let result = roost_ioctl(rawValue, request, argument)
        if result == -1 { throw HostError.last("ioctl 0x\(String(request, radix: 16))") }
        return result
    }

    /// Controls a device with a number for argument.
    @discardableResult
    public func control(_ request: UInt64, value: UInt64 = 0) throws(HostError) -> Int32 {
        let result = roost_ioctl_value(rawValue, request, value)
        if result == -1 { throw HostError.last("ioctl 0x\(String(request, radix: 16))") }
        return result
    }

    /// Controls a device on a path that runs often: zero or more, or the negative error number.
    @inline(__always)
    public func controlOrErrno(_ request: UInt64, _ argument: UnsafeMutableRawPointer? = nil) -> Int32 {
        let result = roost_ioctl(rawValue, request, argument)
        return result == -1 ? -Glibc.errno : result
    }

    /// Whether there is something at a path.
    public static func exists(_ path: String) -> Bool { access(path, F_OK) == 0 }

    /// Whether a device file can be opened for reading and writing by this process; nil: yes.
    public static func obstacle(to path: String) -> HostError? {
        access(path, R_OK | W_OK) == 0 ? nil : HostError.last("open \(path)")
    }
}

/// A shared mapping of what a descriptor offers.
///
/// Invariant: the bytes stay mapped until the value is destroyed, whatever becomes of the descriptor.
public final class DescriptorMapping: @unchecked Sendable {
    /// First byte.
    public let base: UnsafeMutableRawPointer
    /// Length in bytes.
    public let size: Int

    /// Maps `size` bytes from an offset.
    public init(_ descriptor: borrowing FileDescriptor, offset: Int = 0, size: Int) throws(HostError) {
        guard let base = mmap(nil, size, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor.rawValue, offset),
            base != MAP_FAILED
        else { throw HostError.last("map \(size) bytes of a device") }
        self.base = base
        self.size = size
    }

    deinit { munmap(base, size) }
}

/// The host's error numbers that callers decide by.
public enum HostErrorNumber {
    /// Interrupted by a signal.
    public static var interrupted: Int32 { EINTR }
    /// Try again.
    public static var again: Int32 { EAGAIN }
    /// Permission denied.
    public static var accessDenied: Int32 { EACCES }
    /// No such file.
    public static var notFound: Int32 { ENOENT }
    /// No such device.
    public static var noDevice: Int32 { ENODEV }
    /// Bad address.
    public static var badAddress: Int32 { EFAULT }
    /// Operation not permitted.
    public static var notPermitted: Int32 { EPERM }
    /// In use.
    public static var busy: Int32 { EBUSY }
    /// Another has the address.
    public static var addressInUse: Int32 { EADDRINUSE }
    /// Nobody listens.
    public static var connectionRefused: Int32 { ECONNREFUSED }
    /// Already there.
    public static var exists: Int32 { EEXIST }
    /// An argument that makes no sense.
    public static var invalid: Int32 { EINVAL }
    /// The device failed.
    public static var ioError: Int32 { EIO }
    /// No room, for whatever reason: the device, a quota, a limit on the length of files.
    public static var noRoom: [Int32] { [ENOSPC, EDQUOT, EFBIG] }
}

/// One thread that others pull out of a blocking system call.
///
/// Invariant: `number` is only touched by atomic operations.
public final class KickableThread: @unchecked Sendable {
    private let number: UnsafeMutablePointer<Int32>

    /// Names no thread yet.
    public init() {
        number = .allocate(capacity: 1)
        number.initialize(to: 0)
    }

    deinit { number.deallocate() }

    /// Makes the calling thread the one that is kicked.
    public func enter() {
        let mine = roost_thread_number()
        if roost_load_thread(number) == mine { return }
        roost_allow_kicks()
        roost_store_thread(number, mine)
    }

    /// Interrupts the thread's system call; nothing to do if it is the caller or there is none.
    public func kick() {
        let thread = roost_load_thread(number)
        if thread != 0 && thread != roost_thread_number() { roost_kick(thread) }
    }
}
