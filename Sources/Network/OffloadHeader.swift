// The header in front of each packet, which says what is left to do on it: checksum, segmentation.
//
// Virtual I/O Device (VIRTIO) 1.2, 5.1.6; Linux's TAP devices use the same one.
//
//   00  flags 8          bit 0 a checksum is missing, bit 1 checksums are known to be right
//   01  gso_type 8       0 none, 1 TCP on IPv4, 3 UDP fragments, 4 TCP on IPv6, 5 UDP; bit 7 ECN
//   02  hdr_len 16       04  gso_size 16      06  csum_start 16      08  csum_offset 16      0A  num_buffers 16
//
// A *packet* here is this header and an Ethernet frame without frame check sequence, in one array.

/// What a receiver of packets can do by itself, or need not have done.
public struct LinkOffloads: OptionSet, Sendable, Hashable {
    /// The bits.
    public let rawValue: UInt8
    /// Wraps the bits.
    public init(rawValue: UInt8) { self.rawValue = rawValue }
    /// Takes packets whose checksum is missing.
    public static let checksum = LinkOffloads(rawValue: 1)
    /// Takes TCP on IPv4 that has yet to be cut into segments.
    public static let tcp4 = LinkOffloads(rawValue: 2)
    /// Takes TCP on IPv6 that has yet to be cut into segments.
    public static let tcp6 = LinkOffloads(rawValue: 4)
    /// Takes TCP on IPv4 of any length as one finished segment.
    public static let longTCP4 = LinkOffloads(rawValue: 8)
}

/// The header of a packet.
public struct OffloadHeader: Equatable, Sendable {
    /// Its length in bytes.
    public static let length = 12

    /// Bits of the first byte.
    public struct Flags: OptionSet, Sendable {
        /// The bits.
        public let rawValue: UInt8
        /// Wraps the bits.
        public init(rawValue: UInt8) { self.rawValue = rawValue }
        /// The checksum at `checksumStart + checksumOffset` covers the pseudo header only.
        public static let needsChecksum = Flags(rawValue: 1)
        /// Checksums have been verified.
        public static let isVerified = Flags(rawValue: 2)
    }

    /// How a packet is to be cut.
    public enum Segmentation: UInt8, Sendable {
        /// Not at all.
        case none = 0
        /// As TCP on IPv4.
        case tcp4 = 1
        /// As TCP on IPv6.
        case tcp6 = 4
    }

    /// What is left to do, or done.
    public var flags: Flags = []
    /// How it is to be cut.
    public var segmentation = Segmentation.none
    /// Bytes of headers in front of the payload; a hint only.
    public var headerLength: UInt16 = 0
    /// Payload of each segment.
    public var segmentSize: UInt16 = 0
    /// Where the checksum's range begins in the frame.
    public var checksumStart: UInt16 = 0
    /// Where it is stored, from there.
    public var checksumOffset: UInt16 = 0

    /// A header that asks for nothing.
    public init() {}

    /// Reads a packet's header; nil if the packet is too short or asks for what nobody offered.
    public init?(of packet: [UInt8]) {
        guard packet.count >= Self.length else { return nil }
        func half(_ offset: Int) -> UInt16 { UInt16(packet[offset]) | UInt16(packet[offset + 1]) << 8 }
        guard let segmentation = Segmentation(rawValue: packet[1] & 0x7F) else { return nil }
        flags = Flags(rawValue: packet[0]).intersection([.needsChecksum, .isVerified])
        self.segmentation = segmentation
        headerLength = half(2)
        segmentSize = half(4)
        checksumStart = half(6)
        checksumOffset = half(8)
    }

    /// Its bytes, with one buffer.
    public var bytes: [UInt8] {
        var bytes: [UInt8] = [flags.rawValue, segmentation.rawValue]
        for half in [headerLength, segmentSize, checksumStart, checksumOffset, 1] as [UInt16] {
            bytes += [UInt8(truncatingIfNeeded: half), UInt8(truncatingIfNeeded: half >> 8)]
        }
        return bytes
    }

    /// Puts itself in front of a packet that has room for it.
    func write(to packet: inout [UInt8]) {
        for (index, byte) in bytes.enumerated() where index < packet.count { packet[index] = byte }
    }

    /// Whether a receiver gets along with it as it is.
    func suits(_ offloads: LinkOffloads) -> Bool {
        if flags.contains(.needsChecksum), !offloads.contains(.checksum) { return false }
        switch segmentation {
        case .none: return true
        case .tcp4: return offloads.contains(.tcp4)
        case .tcp6: return offloads.contains(.tcp6)
        }
    }
}
