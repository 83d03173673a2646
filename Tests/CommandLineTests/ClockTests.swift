// KVM's paravirtual clock from the guest's side: a guest that answers each byte with its time-stamp counter and the
// clock's records, compared with the host's clock around the question.
import Foundation
import Glibc
import HostOS
import MachineTesting
import Testing

/// What the guest knew when it answered.
private struct ClockSample {
    /// Host time (`CLOCK_REALTIME`) before the question and after the answer began.
    var before: UInt64
    var after: UInt64
    var tsc: UInt64
    var version: UInt32
    var sampleTSC: UInt64
    var sampleTime: UInt64
    var multiplier: UInt32
    var shift: Int8
    var wallClock: UInt64

    /// Reads an answer; nil if the record changed while it was copied.
    init?(_ bytes: [UInt8], before: UInt64, after: UInt64) {
        func number(_ at: Int, _ count: Int) -> UInt64 {
            (0..<count).reduce(0) { $0 | UInt64(bytes[at + $1]) << UInt64($1 * 8) }
        }
        self.before = before
        self.after = after
        tsc = number(0, 8)
        version = UInt32(number(8, 4))
        sampleTSC = number(16, 8)
        sampleTime = number(24, 8)
        multiplier = UInt32(number(32, 4))
        shift = Int8(bitPattern: bytes[36])
        wallClock = number(44, 4) * 1_000_000_000 + number(48, 4)
        if version & 1 != 0 || number(52, 4) != UInt64(version) { return nil }
    }

    /// Nanoseconds of guest time at a count, as a guest computes them from this record (Linux, pvclock.h).
    func time(at count: UInt64) -> UInt64 {
        let ticks = count &- sampleTSC
        let shifted = shift < 0 ? ticks >> UInt64(-Int(shift)) : ticks << UInt64(shift)
        let product = shifted.multipliedFullWidth(by: UInt64(multiplier))
        return sampleTime &+ (product.high << 32 | product.low >> 32)
    }

    /// How far the guest's wall clock is from the host's: at least and at most, in nanoseconds.
    var error: ClosedRange<Int64> {
        let wall = wallClock &+ time(at: tsc)
        return Int64(bitPattern: wall &- after)...Int64(bitPattern: wall &- before)
    }

    var width: UInt64 { after - before }
}

@Suite("The guest's clock", .enabled("needs the built command") { TerminalSession.roost != nil })
struct ClockTests {
    /// Seconds between the first question and the last; `ROOST_CLOCK_SECONDS=60` measures what the design promises.
    private static var seconds: Double {
        ProcessInfo.processInfo.environment["ROOST_CLOCK_SECONDS"].flatMap(Double.init) ?? 5
    }

    /// 32-bit code: clock on, then for each byte from the serial port 56 bytes back; `q` ends it.
    private static let guest: [UInt8] = [
        0xB9, 0x00, 0x4D, 0x56, 0x4B, 0xB8, 0x00, 0x00, 0x09, 0x00, 0x31, 0xD2, 0x0F, 0x30,  // wall clock at 90000
        0xB9, 0x01, 0x4D, 0x56, 0x4B, 0xB8, 0x01, 0x10, 0x09, 0x00, 0x31, 0xD2, 0x0F, 0x30,  // record at 91000
        0x66, 0xBA, 0xFD, 0x03, 0xEC, 0xA8, 0x01, 0x74, 0xF7,  // again: wait for a byte
        0x66, 0xBA, 0xF8, 0x03, 0xEC, 0x3C, 0x71, 0x74, 0x3B,  // q: to the end
        0xBF, 0x00, 0x20, 0x09, 0x00, 0x0F, 0x31, 0xAB, 0x89, 0xD0, 0xAB,  // rdtsc to 92000
        0xBE, 0x00, 0x10, 0x09, 0x00, 0xB9, 0x08, 0x00, 0x00, 0x00, 0xF3, 0xA5,  // the record
        0xBE, 0x00, 0x00, 0x09, 0x00, 0xB9, 0x03, 0x00, 0x00, 0x00, 0xF3, 0xA5,  // the wall clock
        0xA1, 0x00, 0x10, 0x09, 0x00, 0xAB,  // the record's version again
        0xBE, 0x00, 0x20, 0x09, 0x00, 0xB9, 0x38, 0x00, 0x00, 0x00, 0x66, 0xBA, 0xF8, 0x03, 0xF3, 0x6E,
        0xEB, 0xB3,  // jmp again
    ]

    @Test("Guest and host agree to a millisecond, at once and later")
    func agreement() throws {
        let path = FileManager.default.temporaryDirectory.appendingPathComponent("roost-clock-\(UUID())")
        try Data(MultibootImage.make(Self.guest + TinyGuest.exit(3))).write(to: path)
        defer { try? FileManager.default.removeItem(at: path) }
        let process = Process()
        process.executableURL = URL(fileURLWithPath: TerminalSession.roost ?? "")
        process.arguments = [
            "run", "--kernel", path.path, "--net", "none", "--memory", "32M", "--debug-exit", "0xf4",
        ]
        let (input, output) = (Pipe(), Pipe())
        process.standardInput = input
        process.standardOutput = output
        process.standardError = FileHandle.nullDevice
        try process.run()
        defer { process.terminate() }
        let reader = ByteStream(writing: output.fileHandleForReading.fileDescriptor)
        func ask() throws -> ClockSample? {
            let before = HostClock.realTime
            try input.fileHandleForWriting.write(contentsOf: [0x70])
            var answer = reader.read(limit: 56)
            let after = HostClock.realTime
            while answer.count < 56 {
                let more = reader.read(limit: 56 - answer.count)
                try #require(!more.isEmpty, "the guest ended")
                answer += more
            }
            return ClockSample(answer, before: before, after: after)
        }
        /// The answer that came fastest.
        func best() throws -> ClockSample {
            try #require(try (0..<200).compactMap { _ in try ask() }.min { $0.width < $1.width })
        }
        let first = try best()
        Thread.sleep(forTimeInterval: Self.seconds)
        let last = try best()
        try input.fileHandleForWriting.write(contentsOf: [0x71])
        process.waitUntilExit()
        #expect(process.terminationStatus == 7)
        for (name, sample) in [("first", first), ("last", last)] {
            #expect(sample.width < 1_000_000, "\(name): no answer within a millisecond")
            #expect(sample.error.lowerBound < 1_000_000, "\(name): \(sample.error) ns")
            #expect(sample.error.upperBound > -1_000_000, "\(name): \(sample.error) ns")
        }
        #expect(last.version > first.version)
        // A guest that counts on the time-stamp counter alone: the first record, the last count.
        let free = Int64(bitPattern: first.wallClock &+ first.time(at: last.tsc) &- last.after)
        #expect(abs(free) < 1_000_000 + Int64(last.width))
        print("clock: \(first.error) ns at the start, \(last.error) ns and \(free) ns by TSC after \(Self.seconds) s")
    }
}
