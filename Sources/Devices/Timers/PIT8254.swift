// Intel 8254 programmable interval timer (datasheet 231164) and port 61, system control port B.
//
// ports 40-42 R/W   counters 0 (IRQ 0), 1 (refresh), 2 (speaker)
// port 43 W         7:6 counter (3: read-back), 5:4 access (0: latch, 1 low, 2 high, 3 both), 3:1 mode, 0 BCD
//                   read-back: 5 not count, 4 not status, 3:1 counters
// port 61 R/W       0 gate of counter 2, 1 speaker, 3:2 parity enables; R: 4 refresh toggle, 5 output of counter 2
//
// Counts are computed from guest time at 1,193,182 Hz; nothing ticks.
public import DeviceModel
internal import Synchronization

/// The interval timer of a PC.
public final class PIT8254: BusDevice, Saveable {
    /// Input clock in Hz.
    public static let frequency: UInt64 = 1_193_182

    /// The chip's whole state.
    public struct State: Codable, Sendable {
        var version = 1
        var channels = [PITChannel(), PITChannel(), PITChannel(isGated: false)]
        var control: UInt8 = 0
        /// When counter 0's output next rises.
        var nextInterrupt: UInt64?
        /// Output of counter 0 as its wire shows it.
        var level = false
    }

    private struct Contents {
        var state = State()
        var timer: (any DoorTimer)?
    }

    private let contents = Mutex(Contents())
    private let door: any Door
    private let line: any InterruptLine

    /// Makes the timer; `line` is IRQ 0.
    public init(door: any Door, line: any InterruptLine) {
        self.door = door
        self.line = line
        let timer = door.makeTimer { [weak self] in self?.timerFired() }
        contents.withLock { $0.timer = timer }
    }

    /// Attaches ports 0x40 to 0x43 and 0x61.
    @discardableResult
    public func attach(to ports: Bus) -> Bool { ports.attachPorts(self, [(0x40, 4), (0x61, 1)]) }

    /// Power-on reset.
    public func reset() {
        contents.withLock { contents in
            contents.state = State()
            contents.timer?.disarm()
            line.set(false)
        }
    }

    // MARK: Counter 0 interrupts

    /// Finds when counter 0's output rises next and arms the timer; sets the wire to what it shows now.
    private func schedule(_ contents: inout Contents, _ now: UInt64) {
        let channel = contents.state.channels[0]
        setLevel(&contents, channel.output(now))
        contents.state.nextInterrupt = channel.nextRise(now)
        if let next = contents.state.nextInterrupt {
            contents.timer?.arm(at: next)
        } else {
            contents.timer?.disarm()
        }
    }

    private func setLevel(_ contents: inout Contents, _ level: Bool) {
        guard contents.state.level != level else { return }
        contents.state.level = level
        line.set(level)
    }

    /// The output rises: falls first where it was high, as in modes 2 and 3, whose low phase nobody sees.
    private func timerFired() {
        let now = door.now
        contents.withLock { contents in
            guard let next = contents.state.nextInterrupt else { return }
            guard next <= now else {
                contents.timer?.arm(at: next)
                return
            }
            setLevel(&contents, false)
            setLevel(&contents, true)
            contents.state.channels[0].didRise()
            contents.state.nextInterrupt = contents.state.channels[0].nextRise(now)
            if let next = contents.state.nextInterrupt { contents.timer?.arm(at: next) }
        }
    }

    // MARK: Ports (offsets are port numbers)

    /// Reads a port.
    public func read(offset: UInt64, size: Int) -> UInt64 {
        let now = door.now
        return readByteWise(offset, size) { port in
            contents.withLock { contents in
                switch port {
                case 0x40...0x42: return contents.state.channels[Int(port - 0x40)].read(now)
                case 0x61:
                    let speaker = contents.state.channels[2]
                    let refresh: UInt8 = (now / 15_085) & 1 == 0 ? 0 : 0x10
                    return contents.state.control & 0x0E | (speaker.isGated ? 1 : 0) | refresh
                        | (speaker.output(now) ? 0x20 : 0)
                default: return port == 0x43 ? 0 : 0xFF
                }
            }
        }
    }

    /// Writes a port.
    public func write(offset: UInt64, size: Int, value: UInt64) {
        let now = door.now
        writeByteWise(offset, size, value) { port, byte in
            contents.withLock { contents in
                switch port {
                case 0x40...0x42:
                    let index = Int(port - 0x40)
                    if contents.state.channels[index].write(byte, now), index == 0 { schedule(&contents, now) }
                case 0x43: writeControl(&contents, byte, now)
                case 0x61:
                    contents.state.control = byte & 0x0E
                    contents.state.channels[2].setGate(byte & 1 != 0, now)
                default: break
                }
            }
        }
    }

    private func writeControl(_ contents: inout Contents, _ value: UInt8, _ now: UInt64) {
        if value >> 6 == 3 {
            for index in 0..<3 where value & (2 &<< UInt8(index)) != 0 {
                if value & 0x10 == 0 { contents.state.channels[index].latchStatus(now) }
                if value & 0x20 == 0 { contents.state.channels[index].latchCount(now) }
            }
            return
        }
        let index = Int(value >> 6)
        if value & 0x30 == 0 { return contents.state.channels[index].latchCount(now) }
        contents.state.channels[index].program(value)
        if index == 0 { schedule(&contents, now) }
    }

    // MARK: State

    /// Takes the state.
    public func saveState() -> State { contents.withLock { $0.state } }

    /// Puts a state back and arms the timer.
    public func restoreState(_ state: State) throws {
        try requireVersion(state.version, 1, "8254")
        guard state.channels.count == 3, state.channels.allSatisfy(\.isValid) else {
            throw StateError("8254: channels")
        }
        contents.withLock { contents in
            contents.state = state
            if let next = state.nextInterrupt { contents.timer?.arm(at: next) } else { contents.timer?.disarm() }
        }
    }
}

/// One counter of the 8254.
struct PITChannel: Codable, Sendable {
    enum Access: UInt8, Codable { case none, low, high, both }

    var mode: UInt8 = 0
    var isBCD = false
    var access = Access.both
    /// The divisor: 1 to 65,536 ticks (10,000 in BCD).
    var reload: UInt64 = 65536
    /// Guest time when counting began; nil before the first count, or where a trigger is awaited.
    var start: UInt64?
    /// Ticks counted before the gate went low (modes 0 and 4).
    var paused: UInt64?
    var isGated = true
    var writeLatch: UInt8?
    var countLatch: UInt16?
    var statusLatch: UInt8?
    var readsHigh = false
    var isNull = true
    /// Modes 0, 1, 4 and 5 interrupt once.
    var hasRisen = false
    var isLoaded = false

    init(isGated: Bool = true) { self.isGated = isGated }

    var isValid: Bool { mode <= 5 && reload >= 1 && reload <= 65536 }

    private var isPeriodic: Bool { mode == 2 || mode == 3 }

    /// Ticks since counting began.
    private func ticks(_ now: UInt64) -> UInt64 {
        if let paused { return paused }
        guard let start, now > start else { return 0 }
        return scale(now &- start, by: PIT8254.frequency, over: 1_000_000_000)
    }

    private var isCounting: Bool { start != nil || paused != nil }

    /// Guest time of tick `tick` since the start, rounded up.
    private func time(_ tick: UInt64) -> UInt64? {
        guard let start else { return nil }
        return start &+ scale(tick, by: 1_000_000_000, over: PIT8254.frequency) &+ 1
    }

    /// The OUT pin.
    /// - Spec: 8254 datasheet, mode definitions.
    func output(_ now: UInt64) -> Bool {
        guard isCounting else { return mode != 0 }
        let ticks = ticks(now)
        switch mode {
        case 0, 1: return ticks >= reload
        case 2: return !isGated || reload == 1 || ticks % reload != reload &- 1
        case 3: return !isGated || ticks % reload < (reload &+ 1) / 2
        default: return ticks != reload
        }
    }

    /// When OUT next rises after `now`; periods too short to answer are coalesced.
    func nextRise(_ now: UInt64) -> UInt64? {
        guard isCounting, paused == nil, isGated || !isPeriodic, let start else { return nil }
        if isPeriodic {
            let shortest = scale(shortestInterruptPeriod, by: PIT8254.frequency, over: 1_000_000_000)
            let interval = reload < shortest ? (shortest / reload &+ 1) &* reload : reload
            // The smallest multiple of the interval that lies ahead, one more where rounding up puts it at `now`.
            let count = ticks(now) / interval &+ 1
            guard let next = time(count &* interval) else { return nil }
            return next > now ? next : time((count &+ 1) &* interval)
        }
        guard !hasRisen, let next = time(mode >= 4 ? reload &+ 1 : reload) else { return nil }
        return max(next, start &+ shortestInterruptPeriod / 8)
    }

    mutating func didRise() { if !isPeriodic { hasRisen = true } }

    /// The value in the counting element.
    private func count(_ now: UInt64) -> UInt16 {
        guard isCounting else { return encode(reload) }
        let ticks = ticks(now)
        let span: UInt64 = isBCD ? 10_000 : 65536
        switch mode {
        case 2: return encode(reload &- ticks % reload)
        case 3:
            // Counts by two; an odd count loses one at each reload.
            let even = reload & ~1
            guard even > 0 else { return encode(reload) }
            return encode(even &- (ticks &* 2) % even)
        default: return encode(reload &+ span &- ticks % span)
        }
    }

    private func encode(_ value: UInt64) -> UInt16 {
        guard isBCD else { return UInt16(truncatingIfNeeded: value) }
        let value = value % 10_000
        return UInt16(
            truncatingIfNeeded: (value / 1000) &<< 12 | (value / 100 % 10) &<< 8 | (value / 10 % 10) &<< 4 | value % 10)
    }

    private func decode(_ raw: UInt16) -> UInt64 {
        guard isBCD else { return raw == 0 ? 65536 : UInt64(raw) }
        let raw = UInt64(raw)
        let value = (raw >> 12) &* 1000 &+ (raw >> 8 & 15) &* 100 &+ (raw >> 4 & 15) &* 10 &+ (raw & 15)
        return value == 0 ? 10_000 : value
    }

    // MARK: Programming

    /// A control word: the counter waits for a count.
    mutating func program(_ value: UInt8) {
        let gate = isGated
        self = PITChannel(isGated: gate)
        mode = value >> 1 & 7
        if mode > 5 { mode &= 3 }
        isBCD = value & 1 != 0
        access = Access(rawValue: value >> 4 & 3) ?? .both
    }

    /// A byte of the count; true when the count is complete.
    mutating func write(_ value: UInt8, _ now: UInt64) -> Bool {
        switch access {
        case .none: return false
        case .low: load(UInt16(value), now)
        case .high: load(UInt16(value) &<< 8, now)
        case .both:
            guard let low = writeLatch else {
                writeLatch = value
                if mode == 0 { start = nil }
                return mode == 0
            }
            writeLatch = nil
            load(UInt16(low) | UInt16(value) &<< 8, now)
        }
        return true
    }

    private mutating func load(_ raw: UInt16, _ now: UInt64) {
        reload = decode(raw)
        isNull = false
        // In modes 1 and 5 the gate's rising edge starts the count.
        let isTriggered = mode == 1 || mode == 5
        if isTriggered {
            isLoaded = true
            return
        }
        isLoaded = true
        hasRisen = false
        start = now
        paused = isGated || isPeriodic ? nil : 0
    }

    mutating func setGate(_ level: Bool, _ now: UInt64) {
        guard level != isGated else { return }
        if mode == 0 || mode == 4 {
            if !level {
                paused = isCounting ? ticks(now) : nil
            } else if let done = paused {
                start = now &- scale(done, by: 1_000_000_000, over: PIT8254.frequency)
                paused = nil
            }
        } else if level && isLoaded {
            start = now
            hasRisen = false
        }
        isGated = level
    }

    // MARK: Reading

    mutating func latchCount(_ now: UInt64) {
        if countLatch == nil {
            countLatch = count(now)
            readsHigh = false
        }
    }

    mutating func latchStatus(_ now: UInt64) {
        guard statusLatch == nil else { return }
        statusLatch =
            (output(now) ? 0x80 : 0) | (isNull ? 0x40 : 0) | access.rawValue &<< 4 | mode &<< 1 | (isBCD ? 1 : 0)
    }

    mutating func read(_ now: UInt64) -> UInt8 {
        if let status = statusLatch {
            statusLatch = nil
            return status
        }
        let value = countLatch ?? count(now)
        let high: Bool
        switch access {
        case .low: high = false
        case .high: high = true
        case .none, .both:
            high = readsHigh
            readsHigh.toggle()
        }
        if access == .low || access == .high || high { countLatch = nil }
        return UInt8(truncatingIfNeeded: high ? value >> 8 : value)
    }
}
