// The agent's messages: what is written is read back, and nothing that comes is trusted.
import Testing

import AgentProtocol

@Suite("Agent messages")
struct AgentMessageTests {
    static let messages: [AgentMessage] = {
        var request = ProgramRequest(command: ["sh", "-c", "echo \u{e4}"])
        request.environment = ["A=1", "B="]
        request.folder = "/tmp"
        request.user = "nobody"
        request.terminal = TerminalSize(columns: 211, rows: 53)
        return [
            .hello(version: 7), .start(request), .start(ProgramRequest(command: ["true"])), .input([1, 2, 0]),
            .input([]),
            .inputEnd, .signal(15), .resize(TerminalSize(columns: 80, rows: 24)), .started(process: 99), .output([255]),
            .errors([9]), .exited(.exited(3)), .exited(.killed(9)), .failed(2, "not there"), .setClock(1 << 60),
            .addEntropy([4]), .setIdentity(machine: "00", host: "h"), .setLinkAddress(interface: "eth0", [1, 2]),
            .addresses, .powerOff, .reboot, .done(["a", ""]), .synchronizeMounts(isForced: true),
            .outputEnd(isErrors: true), .outputEnd(isErrors: false),
        ]
    }()

    @Test("every message comes back from its bytes, in pieces of any size", arguments: [1, 3, 7, 4096])
    func pieces(size: Int) throws {
        let stream = Self.messages.flatMap(\.bytes)
        var parser = MessageParser()
        var found: [AgentMessage] = []
        for start in stride(from: 0, to: stream.count, by: size) {
            parser.append(stream[start..<min(start + size, stream.count)])
            while let message = try parser.next() { found.append(message) }
        }
        #expect(found == Self.messages)
        #expect(parser.pending == 0)
    }

    @Test("a length beyond the limit, or of nothing, ends the stream")
    func lengths() {
        for length in [0, UInt32(AgentMessage.longest) + 1, .max] {
            var parser = MessageParser()
            parser.append((0..<4).map { UInt8(truncatingIfNeeded: length >> (8 * $0)) })
            #expect(throws: AgentProtocolError.self) { try parser.next() }
        }
    }

    @Test("an end with a status that is no byte, or by a signal that Linux doesn't have, is refused")
    func ends() throws {
        func end(_ kind: UInt8, _ value: UInt32) throws -> AgentMessage? {
            var bytes = AgentMessage.exited(.exited(0)).bytes
            bytes[5] = kind
            for index in 0..<4 { bytes[9 + index] = UInt8(truncatingIfNeeded: value >> (8 * index)) }
            var parser = MessageParser()
            parser.append(bytes)
            return try parser.next()
        }
        #expect(try end(0, 255) == .exited(.exited(255)))
        #expect(try end(1, 1) == .exited(.killed(1)))
        #expect(try end(1, 64) == .exited(.killed(64)))
        let bad: [(UInt8, UInt32)] = [(0, 256), (0, .max), (1, 0), (1, 65), (1, 0x7FFF_FFFF), (1, .max), (2, 9)]
        for (kind, value) in bad {
            #expect(throws: AgentProtocolError.self, "\(kind) \(value)") { try end(kind, value) }
        }
    }

    @Test("damaged messages are refused or are other messages, never more")
    func damage() {
        var generator = SystemRandomNumberGenerator()
        for _ in 0..<20000 {
            var bytes = Self.messages.randomElement(using: &generator)?.bytes ?? []
            for _ in 0..<Int.random(in: 1...3, using: &generator) {
                bytes[Int.random(in: 0..<bytes.count, using: &generator)] = UInt8.random(in: 0...255, using: &generator)
            }
            var parser = MessageParser()
            parser.append(bytes)
            while let message = try? parser.next() { #expect(message.bytes.count <= bytes.count) }
        }
    }
}
