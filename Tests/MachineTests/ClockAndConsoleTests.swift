// KVM's clock as the guest computes it, and the console's escape key.
import GuestMemory
import Machine
import Testing

@Suite("KVM clock")
struct KVMClockTests {
    @Test(
        "Ticks become nanoseconds to a few parts in a billion",
        arguments: [
            1_000_000, 999_999_999, 1_000_000_000, 1_000_000_001, 2_399_998_123, 3_000_000_000, 4_999_999_999,
            25_000_000,
        ] as [UInt64])
    func scale(frequency: UInt64) {
        let scale = ClockScale(frequency: frequency)
        for seconds in [UInt64(1), 60, 600] {
            let nanoseconds = scale.nanoseconds(frequency &* seconds)
            let exact = seconds &* 1_000_000_000
            let difference = nanoseconds > exact ? nanoseconds - exact : exact - nanoseconds
            #expect(
                difference <= 4 + exact / 200_000_000, "\(frequency) Hz: off by \(difference) ns after \(seconds) s")
        }
    }

    @Test("The record appears where the guest wants it, its version even and rising")
    func record() throws {
        let memory = try GuestMemory(size: 1 << 20)
        var clock = KVMClock(memory: memory)
        let isOn = clock.write(0x4B56_4D01, 0x5000 | 1, now: 7, wallTime: 0)
        #expect(isOn)
        #expect(clock.read(0x4B56_4D01) == 0x5001)
        let scale = ClockScale(frequency: 2_000_000_000)
        clock.update(tsc: 100, now: 50, scale: scale)
        clock.update(tsc: 300, now: 150, scale: scale)
        let bytes = try memory.read(GuestPhysicalAddress(0x5000), length: 32)
        #expect(bytes.little(0, as: UInt32.self) == 4)
        #expect(bytes.little(8, as: UInt64.self) == 300)
        #expect(bytes.little(16, as: UInt64.self) == 150)
        #expect(bytes.little(24, as: UInt32.self) == scale.multiplier)
        #expect(Int8(bitPattern: bytes[28]) == scale.shift)
        let isStillOn = clock.write(0x4B56_4D01, 0, now: 7, wallTime: 0)
        #expect(!isStillOn)
    }

    @Test("The wall clock is the time of guest time 0")
    func wallClock() throws {
        let memory = try GuestMemory(size: 1 << 20)
        var clock = KVMClock(memory: memory)
        _ = clock.write(0x4B56_4D00, 0x6000, now: 1_500_000_000, wallTime: 1_700_000_003_000_000_000)
        let bytes = try memory.read(GuestPhysicalAddress(0x6000), length: 12)
        #expect(bytes.little(0, as: UInt32.self) == 2)
        #expect(bytes.little(4, as: UInt32.self) == 1_700_000_001)
        #expect(bytes.little(8, as: UInt32.self) == 500_000_000)
    }

    @Test("Addresses outside RAM, at its end and odd ones do no harm")
    func hostile() throws {
        let memory = try GuestMemory(size: 1 << 20)
        let scale = ClockScale(frequency: 1)
        let addresses: [UInt64] = [.max, 0xF_FFFF, 0xF_FFF1, 0x8000_0000_0000_0001, 3, 0xC000_0001]
        for address in addresses {
            var clock = KVMClock(memory: memory)
            _ = clock.write(0x4B56_4D01, address, now: 0, wallTime: 0)
            _ = clock.write(0x4B56_4D00, address, now: 5, wallTime: 1)
            clock.update(tsc: .max, now: .max, scale: scale)
        }
    }
}

@Suite("Console escape key")
struct EscapeFilterTests {
    @Test("Ctrl-A x ends, Ctrl-A h helps, Ctrl-A Ctrl-A is one Ctrl-A, anything else passes")
    func keys() {
        var filter = EscapeFilter()
        let plain = filter.filter(Array("ls\r".utf8)).forGuest
        #expect(plain == Array("ls\r".utf8))
        let (bytes, actions) = filter.filter([97, 1, 104, 1, 1, 98, 1, 120])
        #expect(bytes == [97, 1, 98])
        #expect(actions == [.help, .end])
        let other = filter.filter([1, 99]).forGuest
        #expect(other == [1, 99])
    }

    @Test("A sequence may be split between two reads")
    func split() {
        var filter = EscapeFilter()
        let first = filter.filter([1])
        let second = filter.filter([120])
        #expect(first.forGuest.isEmpty)
        #expect(second.actions == [.end])
    }
}
