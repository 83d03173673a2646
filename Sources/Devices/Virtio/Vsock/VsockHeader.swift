// The header of a vsock packet.
//
// Virtual I/O Device (VIRTIO) 1.2, 5.10.6, little-endian, 44 bytes:
//
//   00 src_cid 64   08 dst_cid 64   10 src_port 32   14 dst_port 32   18 len 32   1C type 16   1E op 16
//   20 flags 32     24 buf_alloc 32     28 fwd_cnt 32

/// What a packet is for.
///
/// - Spec: virtio 1.2, 5.10.6
enum VsockOperation: UInt16, Sendable {
    case request = 1
    case response = 2
    case reset = 3
    case shutdown = 4
    /// Bytes of the stream follow.
    case data = 5
    case creditUpdate = 6
    case creditRequest = 7
}

/// Which directions the sender of a SHUTDOWN packet has ended.
///
/// - Spec: virtio 1.2, 5.10.6.5
struct VsockShutdown: OptionSet, Sendable {
    let rawValue: UInt32
    /// It takes no more.
    static let receive = VsockShutdown(rawValue: 1)
    /// It sends no more.
    static let send = VsockShutdown(rawValue: 2)
    static let both: VsockShutdown = [.receive, .send]
}

/// Both ends of a stream: its name, as long as it lives.
struct VsockPorts: Hashable, Sendable {
    var host: UInt32
    var guest: UInt32
}

/// A packet's header.
struct VsockHeader: Sendable, Equatable {
    static let length = 44
    /// The host's context identifier.
    static let hostCID: UInt64 = 2
    /// A stream socket; the only type there is here.
    static let stream: UInt16 = 1

    var source: UInt64
    var destination: UInt64
    var sourcePort: UInt32
    var destinationPort: UInt32
    var length: UInt32 = 0
    var type = VsockHeader.stream
    var operation: UInt16
    var flags: UInt32 = 0
    var allocation: UInt32 = 0
    var forwarded: UInt32 = 0

    /// A header for the guest.
    init(to guest: UInt64, _ ports: VsockPorts, _ operation: VsockOperation) {
        source = Self.hostCID
        destination = guest
        sourcePort = ports.host
        destinationPort = ports.guest
        self.operation = operation.rawValue
    }

    /// Reads a header; nil if there are too few bytes.
    init?(_ bytes: ArraySlice<UInt8>) {
        guard bytes.count >= Self.length else { return nil }
        func field(_ offset: Int, _ size: Int) -> UInt64 { number(bytes.dropFirst(offset).prefix(size)) }
        source = field(0x00, 8)
        destination = field(0x08, 8)
        sourcePort = UInt32(truncatingIfNeeded: field(0x10, 4))
        destinationPort = UInt32(truncatingIfNeeded: field(0x14, 4))
        length = UInt32(truncatingIfNeeded: field(0x18, 4))
        type = UInt16(truncatingIfNeeded: field(0x1C, 2))
        operation = UInt16(truncatingIfNeeded: field(0x1E, 2))
        flags = UInt32(truncatingIfNeeded: field(0x20, 4))
        allocation = UInt32(truncatingIfNeeded: field(0x24, 4))
        forwarded = UInt32(truncatingIfNeeded: field(0x28, 4))
    }

    /// The header as bytes.
    var bytes: [UInt8] {
        littleEndian(source) + littleEndian(destination) + littleEndian(sourcePort) + littleEndian(destinationPort)
            + littleEndian(length) + littleEndian(type) + littleEndian(operation) + littleEndian(flags)
            + littleEndian(allocation) + littleEndian(forwarded)
    }
}
