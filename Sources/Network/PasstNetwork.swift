// A user-mode network of passt(1), a program that we start and that ends with us.
//
// It speaks the protocol of QEMU's stream sockets: each frame has its length before it, four bytes, big-endian. The guest
// gets the host's own address by DHCP, and reaches what the host reaches, over IPv6 too.
internal import HostOS
internal import Synchronization

/// A network behind passt.
public final class PasstNetwork: NetworkLink {
    static let prefix = 4
    /// Longer frames passt doesn't take; a packet that makes one is cut into segments.
    private static let longest = 65000

    private let process: ConnectedProcess
    private let queue: PacketQueue
    private let stopping: PacketQueue

    /// Starts passt and opens the forwarded ports.
    public init(forwards: [PortForward] = []) throws(NetworkError) {
        guard let program = HostProgram.find("passt") else {
            throw NetworkError(.host, "network: passt is not installed (Debian: apt install passt)")
        }
        // It prints its process number as soon as all is set up.
        var words = ["--foreground", "--quiet", "--one-off", "--fd", "\(ConnectedProcess.programEnd)"]
        words += ["--pid", "/dev/fd/2"]
        for forward in forwards {
            words += [forward.transport == .tcp ? "--tcp-ports" : "--udp-ports"]
            words += ["127.0.0.1/\(forward.hostPort):\(forward.guestPort)"]
        }
        do throws(HostError) {
            process = try ConnectedProcess(program, words)
            queue = try PacketQueue()
            stopping = try PacketQueue()
        } catch { throw NetworkError(.host, "network: \(error)") }
        let failure = process.waitForLine(milliseconds: 10_000) { line in
            !line.isEmpty && line.utf8.allSatisfy { UInt8(ascii: "0")...UInt8(ascii: "9") ~= $0 }
        }
        if let failure {
            process.stop()
            throw Self.explain(failure, forwards)
        }
    }

    deinit { stop() }

    private static func explain(_ text: String, _ forwards: [PortForward]) -> NetworkError {
        let lines = text.split(separator: "\n").filter { !$0.contains("syslog") && !$0.contains("run as root") }
        let reason = lines.last.map(String.init) ?? "it did not start"
        let isPort = reason.contains("bind") || reason.contains("listen")
        return NetworkError(isPort && !forwards.isEmpty ? .portInUse : .host, "network: passt: \(reason)")
    }

    /// Starts moving packets: one thread sends, one receives.
    public func start(
        deliver: @escaping @Sendable ([UInt8]) -> Void, resume: @escaping @Sendable () -> Void
    ) throws(NetworkError) {
        do throws(HostError) {
            queue.keep(try HostThread(name: "roost-passt-tx") { [unowned self] in runSender(resume) })
            stopping.keep(try HostThread(name: "roost-passt-rx") { [unowned self] in runReceiver(deliver) })
        } catch { throw NetworkError(.host, "network: \(error)") }
    }

    /// Segments are joined if the guest takes them so.
    public func setGuestOffloads(_ offloads: LinkOffloads) { stopping.offloads = offloads }

    /// A packet from the guest, on any thread.
    public func send(_ packet: [UInt8]) -> Bool { queue.add(packet) }

    /// Ends passt and the threads; not to be called by `deliver`.
    public func stop() {
        if queue.isStopped { return }
        stopping.stop()
        // The other thread may be waiting for passt to take something.
        process.stop()
        queue.stop()
    }

    private func runSender(_ resume: () -> Void) {
        var isThere = true
        while let (packets, isAwaited) = queue.take() {
            if isAwaited { resume() }
            for packet in packets where isThere {
                let offloads: LinkOffloads = packet.count <= Self.longest ? .longTCP4 : []
                for packet in PacketFinisher.finish(packet, for: offloads) where isThere {
                    isThere = process.send(StreamFrames.framed(packet))
                }
            }
            if packets.isEmpty {
                _ = FileDescriptor.waitForInput(queue.wake.rawValue, -1)
                queue.wake.drain()
            }
        }
    }

    private func runReceiver(_ deliver: ([UInt8]) -> Void) {
        var joiner = SegmentJoiner()
        var frames = StreamFrames()
        var header = OffloadHeader()
        // passt has computed the checksums, and nothing has been between it and us.
        header.flags = .isVerified
        let verified = header.bytes
        while stopping.take() != nil {
            let (isReady, isWoken) = FileDescriptor.waitForInput(
                process.descriptor.rawValue, stopping.wake.rawValue)
            if isWoken { stopping.wake.drain() }
            guard isReady else { continue }
            let joins = stopping.offloads.isSuperset(of: [.checksum, .tcp4])
            let goesOn = frames.read({ process.receive(into: &$0, from: $1) }) { frame in
                let packet = verified + frame
                if joins { joiner.add(packet, deliver) } else { deliver(packet) }
            }
            joiner.flush(deliver)
            if !goesOn { return tellEnd() }
        }
    }

    private func tellEnd() {
        if !stopping.isStopped { Terminal.note("roost: network: passt has ended; that card's cable leads nowhere now") }
    }
}

/// Takes the frames out of a stream.
package struct StreamFrames {
    /// The longest frame, its length included.
    private static let longest = PasstNetwork.prefix + PacketFinisher.longestPacket

    private var buffer = [UInt8](repeating: 0, count: 2 * longest)
    private var filled = 0

    package init() {}

    /// A packet's frame as it goes into a stream.
    package static func framed(_ packet: [UInt8]) -> [UInt8] {
        let frame = packet.dropFirst(OffloadHeader.length)
        let length = UInt32(truncatingIfNeeded: frame.count)
        return [24, 16, 8, 0].map { UInt8(truncatingIfNeeded: length >> $0) } + frame
    }

    /// Reads what there is (but leaves again after a while) and hands on each frame that is whole. False: the stream has
    /// ended, or what comes are no frames.
    package mutating func read(_ receive: (inout [UInt8], Int) -> Int, _ take: (ArraySlice<UInt8>) -> Void) -> Bool {
        for _ in 0..<64 {
            let count = receive(&buffer, filled)
            if count == 0 { return false }
            if count < 0 { return true }
            filled += count
            guard takeWhole(take) else { return false }
        }
        return true
    }

    private mutating func takeWhole(_ take: (ArraySlice<UInt8>) -> Void) -> Bool {
        var place = 0
        while filled - place >= PasstNetwork.prefix {
            let length = buffer[place..<place + PasstNetwork.prefix].reduce(0) { $0 << 8 | Int($1) }
            guard length <= Self.longest - PasstNetwork.prefix else { return false }
            let start = place + PasstNetwork.prefix
            if filled - start < length { break }
            if length >= 14 { take(buffer[start..<start + length]) }
            place = start + length
        }
        buffer.replaceSubrange(0..<filled - place, with: Array(buffer[place..<filled]))
        filled -= place
        return true
    }
}
