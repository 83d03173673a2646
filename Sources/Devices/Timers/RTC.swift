// Motorola MC146818A real-time clock with CMOS RAM (datasheet), as in a PC.
//
// port 70 W          6:0 index, 7 NMI mask (ignored); port 71 R/W data
//   00 seconds 01 alarm 02 minutes 03 alarm 04 hours 05 alarm 06 weekday 07 day 08 month 09 year
//   0A R/W  7 update in progress (R), 6:4 divider (2: runs), 3:0 periodic rate
//   0B R/W  7 SET (halt updates), 6 periodic, 5 alarm, 4 update interrupt, 2 binary, 1 24 h
//   0C R    7 IRQ, 6 periodic, 5 alarm, 4 update; cleared by reading
//   0D R    7 valid RAM and time
//   15/16 base memory KiB, 17/18 and 30/31 extended memory KiB, 34/35 memory above 16 MiB in 64 KiB,
//   5B-5D memory above 4 GiB in 64 KiB, 32 century
//
// The time is the door's wall clock plus what the guest has set. Interrupts: IRQ 8.
public import DeviceModel
internal import Synchronization

/// The PC's real-time clock and its CMOS RAM.
public final class RTC: BusDevice, Saveable {
    /// The chip's whole state.
    public struct State: Codable, Sendable {
        var version = 1
        var index: UInt8 = 0
        var memory = [UInt8](repeating: 0, count: 128)
        var statusA: UInt8 = 0x26
        var statusB: UInt8 = 0x02
        var statusC: UInt8 = 0
        /// Seconds to add to the wall clock.
        var offset: Int64 = 0
        /// The time as set while SET halts it, seconds since 1970.
        var halted: Int64?
        /// Guest time of the next periodic and update event.
        var nextPeriodic: UInt64?
        var nextUpdate: UInt64?
        /// The second that the alarm was compared with last.
        var compared: Int64?
    }

    private struct Contents {
        var state = State()
        var level = false
        var timer: (any DoorTimer)?
    }

    private let contents = Mutex(Contents())
    private let door: any Door
    private let line: any InterruptLine

    /// Makes the clock; the CMOS RAM tells of `memoryBelow4G` and `memoryAbove4G` bytes of RAM.
    public init(door: any Door, line: any InterruptLine, memoryBelow4G: UInt64, memoryAbove4G: UInt64 = 0) {
        self.door = door
        self.line = line
        let timer = door.makeTimer { [weak self] in self?.timerFired() }
        contents.withLock { contents in
            contents.timer = timer
            contents.state.setMemorySize(memoryBelow4G, memoryAbove4G)
        }
    }

    /// Attaches ports 0x70 and 0x71.
    @discardableResult
    public func attach(to ports: Bus) -> Bool { ports.attach(self, at: 0x70, length: 2) }

    /// The RESET pin: interrupts off; time and RAM go on.
    public func reset() {
        contents.withLock { contents in
            contents.state.statusB &= 0x87
            contents.state.statusC = 0
            schedule(&contents, door.now)
            updateLine(&contents)
        }
    }

    // MARK: Ports

    /// Reads a port.
    public func read(offset: UInt64, size: Int) -> UInt64 {
        readByteWise(offset, size) { port in
            guard port == 1 else { return 0xFF }
            let clock = (now: door.now, wall: door.wallClock)
            return contents.withLock { contents in
                let value = contents.state.read(wall: clock.wall)
                updateLine(&contents)
                return value
            }
        }
    }

    /// Writes a port.
    public func write(offset: UInt64, size: Int, value: UInt64) {
        writeByteWise(offset, size, value) { port, byte in
            let clock = (now: door.now, wall: door.wallClock)
            contents.withLock { contents in
                if port == 0 { contents.state.index = byte & 0x7F }
                if port == 1 {
                    contents.state.write(byte, wall: clock.wall)
                    if contents.state.index == 0x0A || contents.state.index == 0x0B { schedule(&contents, clock.now) }
                    updateLine(&contents)
                }
            }
        }
    }

    // MARK: Interrupts

    private func updateLine(_ contents: inout Contents) {
        let level = contents.state.statusC & 0x80 != 0
        guard level != contents.level else { return }
        contents.level = level
        line.set(level)
    }

    /// Arms the timer for the next event that an interrupt or flag is wanted for.
    private func schedule(_ contents: inout Contents, _ now: UInt64) {
        let period = contents.state.period
        let wantsUpdates = contents.state.statusB & 0xB0 != 0 && contents.state.statusB & 0x80 == 0
        if contents.state.statusB & 0x40 == 0 || period == 0 {
            contents.state.nextPeriodic = nil
        } else if contents.state.nextPeriodic == nil {
            contents.state.nextPeriodic = now &+ period
        }
        if !wantsUpdates {
            (contents.state.nextUpdate, contents.state.compared) = (nil, nil)
        } else if contents.state.nextUpdate == nil {
            let wall = door.wallClock
            contents.state.nextUpdate = now &+ 1_000_000_000 &- wall % 1_000_000_000
            contents.state.compared = contents.state.seconds(wall)
        }
        arm(&contents)
    }

    private func arm(_ contents: inout Contents) {
        let next = min(contents.state.nextPeriodic ?? .max, contents.state.nextUpdate ?? .max)
        if next == .max { contents.timer?.disarm() } else { contents.timer?.arm(at: next) }
    }

    private func timerFired() {
        let (now, wall) = (door.now, door.wallClock)
        contents.withLock { contents in
            if let next = contents.state.nextPeriodic, next <= now, contents.state.period > 0 {
                let period = contents.state.period
                contents.state.nextPeriodic = next &+ ((now &- next) / period &+ 1) &* period
                contents.state.raise(0x40)
            }
            if let next = contents.state.nextUpdate, next <= now {
                contents.state.nextUpdate = now &+ 1_000_000_000 &- wall % 1_000_000_000
                contents.state.raise(0x10)
                if contents.state.alarmHasCome(wall: wall) { contents.state.raise(0x20) }
            }
            updateLine(&contents)
            arm(&contents)
        }
    }

    // MARK: State

    /// Takes the state.
    public func saveState() -> State { contents.withLock { $0.state } }

    /// Puts a state back and arms the timer.
    public func restoreState(_ state: State) throws {
        try requireVersion(state.version, 1, "RTC")
        guard state.memory.count == 128, state.index < 128 else { throw StateError("RTC: not 128 bytes of RAM") }
        contents.withLock { contents in
            contents.state = state
            contents.level = state.statusC & 0x80 != 0
            arm(&contents)
        }
    }
}

extension RTC.State {
    fileprivate mutating func setMemorySize(_ low: UInt64, _ high: UInt64) {
        let kib = low / 1024
        let extended = min(kib > 1024 ? kib - 1024 : 0, 65535)
        let above16M = min(low > 0x100_0000 ? (low - 0x100_0000) / 65536 : 0, 65535)
        let above4G = high / 65536
        let bytes: [(Int, UInt64)] = [
            (0x15, min(kib, 640)), (0x16, min(kib, 640) >> 8), (0x17, extended), (0x18, extended >> 8),
            (0x30, extended), (0x31, extended >> 8), (0x34, above16M), (0x35, above16M >> 8), (0x5B, above4G),
            (0x5C, above4G >> 8), (0x5D, above4G >> 16),
        ]
        for (index, value) in bytes { memory[index] = UInt8(truncatingIfNeeded: value) }
    }

    private var isBinary: Bool { statusB & 0x04 != 0 }
    private var is24Hour: Bool { statusB & 0x02 != 0 }
    private var isHalted: Bool { statusB & 0x80 != 0 }

    /// Nanoseconds between periodic events; 0 is off.
    fileprivate var period: UInt64 {
        let rate = UInt64(statusA & 0x0F)
        guard rate != 0, statusA & 0x60 != 0x60 else { return 0 }
        let ticks: UInt64 = 1 &<< ((rate <= 2 ? rate &+ 7 : rate) &- 1)
        return ticks &* 1_000_000_000 / 32768
    }

    fileprivate mutating func raise(_ flag: UInt8) {
        statusC |= flag
        if statusB & flag != 0 { statusC |= 0x80 }
    }

    fileprivate func seconds(_ wall: UInt64) -> Int64 {
        halted ?? Int64(truncatingIfNeeded: wall / 1_000_000_000) &+ offset
    }

    private func encode(_ value: Int64) -> UInt8 {
        let value = UInt8(truncatingIfNeeded: value)
        return isBinary ? value : (value / 10) &<< 4 | value % 10
    }

    private func decode(_ value: UInt8) -> Int64 { Int64(isBinary ? value : (value >> 4) &* 10 &+ (value & 15)) }

    private func encodeHour(_ hour: Int64) -> UInt8 {
        if is24Hour { return encode(hour) }
        return encode(hour % 12 == 0 ? 12 : hour % 12) | (hour >= 12 ? 0x80 : 0)
    }

    private func decodeHour(_ value: UInt8) -> Int64 {
        if is24Hour { return decode(value) }
        return decode(value & 0x7F) % 12 + (value & 0x80 != 0 ? 12 : 0)
    }

    /// Whether one of the seconds since the last time was the alarm's: the machine may have stood still meanwhile.
    fileprivate mutating func alarmHasCome(wall: UInt64) -> Bool {
        let second = seconds(wall)
        let day: Int64 = 86_400
        let last = compared.flatMap { second > $0 && second &- $0 < day ? $0 : nil } ?? second &- 1
        defer { compared = second }
        return (last &+ 1...second).contains(where: alarmMatches)
    }

    private func alarmMatches(_ second: Int64) -> Bool {
        let time = CalendarTime(seconds: second)
        let current = [encode(time.second), encode(time.minute), encodeHour(time.hour)]
        return (0..<3).allSatisfy { memory[1 + 2 * $0] >= 0xC0 || memory[1 + 2 * $0] == current[$0] }
    }

    fileprivate mutating func read(wall: UInt64) -> UInt8 {
        let time = CalendarTime(seconds: seconds(wall))
        switch index {
        case 0x00: return encode(time.second)
        case 0x02: return encode(time.minute)
        case 0x04: return encodeHour(time.hour)
        case 0x06: return encode(time.weekday)
        case 0x07: return encode(time.day)
        case 0x08: return encode(time.month)
        case 0x09: return encode(time.year % 100)
        case 0x32: return encode(time.year / 100)
        case 0x0A:
            // Up for the last 244 microseconds of each second.
            let isUpdating = !isHalted && wall % 1_000_000_000 >= 1_000_000_000 - 244_000
            return statusA & 0x7F | (isUpdating ? 0x80 : 0)
        case 0x0B: return statusB
        case 0x0C:
            let value = statusC
            statusC = 0
            return value
        case 0x0D: return 0x80
        default: return memory[Int(index & 0x7F)]
        }
    }

    fileprivate mutating func write(_ value: UInt8, wall: UInt64) {
        switch index {
        case 0x00, 0x02, 0x04, 0x07, 0x08, 0x09, 0x32: setTime(value, wall)
        case 0x06, 0x0C, 0x0D: break
        case 0x0A: statusA = value & 0x7F
        case 0x0B:
            let now = seconds(wall)
            statusB = value
            if value & 0x80 != 0 {
                statusB &= ~0x10
                halted = now
            } else {
                offset = now &- Int64(truncatingIfNeeded: wall / 1_000_000_000)
                halted = nil
            }
            // A flag already up interrupts as soon as its enable is.
            if statusC & statusB & 0x70 != 0 { statusC |= 0x80 } else { statusC &= 0x7F }
        default: memory[Int(index & 0x7F)] = value
        }
    }

    /// Replaces one field of the time.
    private mutating func setTime(_ value: UInt8, _ wall: UInt64) {
        var time = CalendarTime(seconds: seconds(wall))
        switch index {
        case 0x00: time.second = min(decode(value), 59)
        case 0x02: time.minute = min(decode(value), 59)
        case 0x04: time.hour = min(decodeHour(value), 23)
        case 0x07: time.day = max(1, min(decode(value), 31))
        case 0x08: time.month = max(1, min(decode(value), 12))
        case 0x09: time.year = time.year / 100 * 100 + min(decode(value), 99)
        default: time.year = decode(value) % 100 * 100 + time.year % 100
        }
        let new = time.seconds
        if isHalted { halted = new } else { offset = new &- Int64(truncatingIfNeeded: wall / 1_000_000_000) }
    }
}

/// A date of the proleptic Gregorian calendar, UTC.
struct CalendarTime {
    var second: Int64, minute: Int64, hour: Int64, day: Int64, month: Int64, year: Int64
    /// 1 is Sunday.
    var weekday: Int64

    /// From seconds since 1970, limited to the years 0 to 9999.
    init(seconds: Int64) {
        let limited = max(-62_167_219_200, min(seconds, 253_402_300_799))
        let days = (limited >= 0 ? limited : limited - 86399) / 86400
        let rest = limited - days * 86400
        (second, minute, hour) = (rest % 60, rest / 60 % 60, rest / 3600)
        weekday = (days % 7 + 11) % 7 + 1
        // Years begin in March: day 0 is 0000-03-01.
        let shifted = days + 719_468
        let era = (shifted >= 0 ? shifted : shifted - 146_096) / 146_097
        let dayOfEra = shifted - era * 146_097
        let yearOfEra = (dayOfEra - dayOfEra / 1460 + dayOfEra / 36524 - dayOfEra / 146_096) / 365
        let dayOfYear = dayOfEra - (365 * yearOfEra + yearOfEra / 4 - yearOfEra / 100)
        let shiftedMonth = (5 * dayOfYear + 2) / 153
        day = dayOfYear - (153 * shiftedMonth + 2) / 5 + 1
        month = shiftedMonth < 10 ? shiftedMonth + 3 : shiftedMonth - 9
        year = yearOfEra + era * 400 + (month <= 2 ? 1 : 0)
    }

    /// Seconds since 1970.
    var seconds: Int64 {
        let shiftedYear = month <= 2 ? year - 1 : year
        let era = (shiftedYear >= 0 ? shiftedYear : shiftedYear - 399) / 400
        let yearOfEra = shiftedYear - era * 400
        let dayOfYear = (153 * (month + (month > 2 ? -3 : 9)) + 2) / 5 + day - 1
        let dayOfEra = yearOfEra * 365 + yearOfEra / 4 - yearOfEra / 100 + dayOfYear
        return (era * 146_097 + dayOfEra - 719_468) * 86400 + hour * 3600 + minute * 60 + second
    }
}
