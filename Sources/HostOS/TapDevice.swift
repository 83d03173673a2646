// TAP interfaces: an Ethernet port of the host whose cable is a file descriptor.
//
// Linux: Documentation/networking/tuntap.rst, <linux/if_tun.h>, netdevice(7). `struct ifreq` is 40 bytes: the name in 16,
// then what the call is about.
internal import Glibc

/// An open TAP interface.
public final class TapDevice: Sendable {
    private enum Request {
        static let setInterface: UInt64 = 0x4004_54CA
        static let getFeatures: UInt64 = 0x8004_54CF
        static let setOffloads: UInt64 = 0x4004_54D0
        static let setHeaderLength: UInt64 = 0x4004_54D8
        static let getFlags: UInt64 = 0x8913
        static let setFlags: UInt64 = 0x8914
        static let getIndex: UInt64 = 0x8933
        static let addToBridge: UInt64 = 0x89A2
    }

    private enum Flag {
        static let tap: UInt16 = 0x0002
        static let noPacketInformation: UInt16 = 0x1000
        static let severalQueues: UInt16 = 0x0100
        static let offloadHeader: UInt16 = 0x4000
        static let up: UInt16 = 1
    }

    /// The most bytes of a name.
    public static let longestName = 15

    /// The descriptor, for waiting.
    public let descriptor: FileDescriptor
    /// The interface's name.
    public let name: String
    /// Whether frames come and go behind a virtio header of 12 bytes.
    public let hasOffloadHeader: Bool

    /// Opens an interface, which is made if it isn't there; without a name the kernel chooses one.
    ///
    /// With `severalQueues` it can be opened again, a queue each time.
    public init(name wanted: String?, severalQueues: Bool = false) throws(HostError) {
        descriptor = try FileDescriptor.open("/dev/net/tun", O_RDWR | O_NONBLOCK)
        var features: UInt32 = 0
        try descriptor.control(Request.getFeatures, &features)
        var hasHeader = features & UInt32(Flag.offloadHeader) != 0
        var request = Self.request(wanted ?? "")
        var flags = Flag.tap | Flag.noPacketInformation | (hasHeader ? Flag.offloadHeader : 0)
        if severalQueues { flags |= Flag.severalQueues }
        (request[16], request[17]) = (UInt8(flags & 0xFF), UInt8(flags >> 8))
        try descriptor.control(Request.setInterface, &request)
        var length: Int32 = 12
        if hasHeader, (try? descriptor.control(Request.setHeaderLength, &length)) == nil {
            hasHeader = false
            flags &= ~Flag.offloadHeader
            (request[16], request[17]) = (UInt8(flags & 0xFF), UInt8(flags >> 8))
            try descriptor.control(Request.setInterface, &request)
        }
        hasOffloadHeader = hasHeader
        name = String(decoding: request.prefix(16).prefix { $0 != 0 }, as: UTF8.self)
    }

    /// Puts the interface into a bridge.
    public func join(bridge: String) throws(HostError) {
        let socket = try Self.controlSocket()
        var own = Self.request(name)
        try socket.control(Request.getIndex, &own)
        var request = Self.request(bridge)
        for index in 16..<20 { request[index] = own[index] }
        do {
            try socket.control(Request.addToBridge, &request)
        } catch {
            if error.errno != EBUSY { throw HostError("add \(name) to bridge \(bridge)", errno: error.errno) }
        }
    }

    /// Switches the interface on, if it is off.
    public func bringUp() throws(HostError) {
        let socket = try Self.controlSocket()
        var request = Self.request(name)
        try socket.control(Request.getFlags, &request)
        if request[16] & UInt8(Flag.up) != 0 { return }
        request[16] |= UInt8(Flag.up)
        do {
            try socket.control(Request.setFlags, &request)
        } catch { throw HostError("switch on \(name)", errno: error.errno) }
    }

    /// Tells the kernel what it may leave to the reader: missing checksums, TCP that is to be cut.
    public func setOffloads(checksum: Bool, tcp4: Bool, tcp6: Bool) {
        guard hasOffloadHeader else { return }
        let value: UInt64 = checksum ? 1 | (tcp4 ? 2 : 0) | (tcp6 ? 4 : 0) : 0
        _ = try? descriptor.control(Request.setOffloads, value: value)
    }

    /// One frame, with its header if there are headers; the number of bytes, zero if there is none now. An error: the
    /// interface is gone.
    public func read(into buffer: inout [UInt8]) throws(HostError) -> Int {
        let count = buffer.withUnsafeMutableBytes { Glibc.read(descriptor.rawValue, $0.baseAddress, $0.count) }
        if count >= 0 { return count }
        let error = HostError.last("read from \(name)")
        guard error.errno == EAGAIN || error.errno == EINTR else { throw error }
        return 0
    }

    /// Sends the bytes from an offset as one frame; the kernel may drop it.
    public func write(_ bytes: [UInt8], from start: Int) {
        bytes.withUnsafeBytes { buffer in
            let part = UnsafeRawBufferPointer(rebasing: buffer.dropFirst(start))
            _ = Glibc.write(descriptor.rawValue, part.baseAddress, part.count)
        }
    }

    private static func controlSocket() throws(HostError) -> FileDescriptor {
        FileDescriptor(
            owning: try retrying("socket") { socket(AF_INET, Int32(SOCK_DGRAM.rawValue | SOCK_CLOEXEC.rawValue), 0) })
    }

    private static func request(_ name: String) -> [UInt8] {
        let bytes = Array(name.utf8.prefix(longestName))
        return bytes + [UInt8](repeating: 0, count: 40 - bytes.count)
    }
}
