// A file with all packets of a port, for tcpdump, tshark and Wireshark.
//
// The classic format (draft-ietf-opsawg-pcap, also pcap-savefile(5)), little-endian:
//
//   file    magic A1B2C3D4 32, major 2 16, minor 4 16, zone 32, accuracy 32, longest packet 32, link type 32 (1 Ethernet)
//   packet  seconds 32, microseconds 32, bytes kept 32, bytes there were 32, bytes
internal import Glibc
internal import HostOS
internal import Synchronization

/// A capture file. Each packet is one write, so that the file is whole whenever the process ends.
public final class PacketCapture: Sendable {
    private let file: FileDescriptor
    /// Whether writing still works; the lock keeps packets in order.
    private let isOpen = Mutex(true)

    /// Makes the file, or empties it.
    public init(path: String) throws(NetworkError) {
        do {
            file = try FileDescriptor.open(path, O_WRONLY | O_CREAT | O_TRUNC | O_APPEND)
        } catch {
            throw NetworkError(.host, "packet capture: \(error)")
        }
        let header = Self.little(0xA1B2_C3D4, 0x0004_0002, 0, 0, 262_144, 1)
        guard Self.write(header, to: file) else {
            throw NetworkError(.host, "packet capture: \(HostError.last("write \(path)"))")
        }
    }

    /// Writes a packet without its offload header. When the disk is full the capture ends there.
    public func add(_ packet: [UInt8]) {
        guard packet.count > OffloadHeader.length else { return }
        let length = UInt32(truncatingIfNeeded: packet.count - OffloadHeader.length)
        isOpen.withLock { isOpen in
            guard isOpen else { return }
            let now = HostClock.realTime / 1000
            let seconds = UInt32(truncatingIfNeeded: now / 1_000_000)
            var record = Self.little(seconds, UInt32(now % 1_000_000), length, length)
            record += packet[OffloadHeader.length...]
            isOpen = Self.write(record, to: file)
        }
    }

    private static func little(_ words: UInt32...) -> [UInt8] {
        words.flatMap { word in (0..<4).map { UInt8(truncatingIfNeeded: word >> UInt32($0 * 8)) } }
    }

    private static func write(_ bytes: [UInt8], to file: borrowing FileDescriptor) -> Bool {
        // SAFETY: the buffer is read within the call.
        unsafe bytes.withUnsafeBytes { unsafe Glibc.write(file.rawValue, $0.baseAddress, $0.count) } == bytes.count
    }
}
