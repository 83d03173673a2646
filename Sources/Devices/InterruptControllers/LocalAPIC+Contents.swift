// The local APIC's registers and timer as a plain value: everything that happens under its lock.
internal import DeviceModel

/// What a register write wants done after unlocking.
struct LocalAPICOutcome: Sendable {
    enum Target: Sendable { case none, own, everyone, others, addressed }

    var isFault = false
    var ended: UInt8?
    var target = Target.none
    var message = InterruptMessage(destination: 0, vector: 0)
}

/// What the vCPU is to be told after unlocking.
struct LocalAPICNotices: Sendable {
    var interrupt = false
    var nonMaskable = false
    var initialize = false
    var startup: UInt8?

    func tell(_ attention: @Sendable (LocalAPIC.Attention) -> Void) {
        if initialize { attention(.initialize) }
        if let startup { attention(.startup(vector: startup)) }
        if nonMaskable { attention(.nonMaskable) }
        if interrupt { attention(.interrupt) }
    }
}

/// Registers, timer and callbacks behind the lock.
struct LocalAPICContents: Sendable {
    enum TimerMode: UInt32 { case oneShot, periodic, deadline, reserved }

    var state: LocalAPIC.State
    let tscFrequency: UInt64
    let timeStampCounter: (@Sendable () -> UInt64)?
    let isBootstrap: Bool
    var timer: (any DoorTimer)?
    var attention: (@Sendable (LocalAPIC.Attention) -> Void)?
    var notices = LocalAPICNotices()
    /// The registers in force are an engine's: nothing but LINT0 counts here.
    var isHosted = false
    /// The vCPU has been told of a deliverable interrupt and hasn't taken one since.
    var isAnnounced = false

    init(id: UInt32, isBootstrap: Bool, tscFrequency: UInt64, timeStampCounter: (@Sendable () -> UInt64)?) {
        self.timeStampCounter = timeStampCounter
        self.isBootstrap = isBootstrap
        self.tscFrequency = tscFrequency
        state = LocalAPIC.State(id: id, base: 0)
        reset(keepBase: false)
    }

    mutating func reset(keepBase: Bool) {
        let old = state
        state = LocalAPIC.State(id: old.id, base: keepBase ? old.base : 0xFEE0_0800 | (isBootstrap ? 0x100 : 0))
        state.tscOffset = keepBase ? old.tscOffset : 0
        state.lint0 = old.lint0
        state.lint1 = old.lint1
        if isBootstrap && !keepBase {
            state.localVectors[3] = 0x700
            state.localVectors[4] = 0x400
        }
        isAnnounced = false
        timer?.disarm()
    }

    // MARK: Modes

    var isMemoryMapped: Bool { state.base & 0xC00 == 0x800 }
    var isX2: Bool { state.base & 0xC00 == 0xC00 }
    var isPresent: Bool { state.base & 0x800 != 0 }
    var isEnabled: Bool { isPresent && state.spurious & 0x100 != 0 }

    /// Transitions allowed by SDM 3A table 11-5; a reserved bit or a forbidden transition is #GP.
    mutating func writeBase(_ value: UInt64) -> Bool {
        guard value & ~0xF_FFFF_FD00 == 0 else { return false }
        let old = state.base & 0xC00
        let new = value & 0xC00
        if new == 0x400 || (old == 0xC00 && new == 0x800) || (old == 0 && new == 0xC00) { return false }
        if old != 0 && new == 0 { reset(keepBase: true) }
        state.base = value
        if old == 0x800 && new == 0xC00 { state.command = 0 }
        return true
    }

    // MARK: Priorities

    var processorPriority: UInt8 {
        let serving = (state.inService.highest ?? 0) & 0xF0
        return state.taskPriority & 0xF0 >= serving ? state.taskPriority : serving
    }

    var deliverableVector: UInt8? {
        guard isPresent, !isHosted, let vector = state.request.highest, vector & 0xF0 > processorPriority & 0xF0 else {
            return nil
        }
        return vector
    }

    var acceptsExternal: Bool { isHosted || !isPresent || state.localVectors[3] & 0x10700 == 0x700 }
    var externalPending: Bool { (state.lint0 && acceptsExternal) || state.externalLatched }
    var isDeliverable: Bool { externalPending || deliverableVector != nil }

    mutating func takeVector() -> UInt8? {
        isAnnounced = false
        guard let vector = deliverableVector else { return nil }
        state.request.remove(vector)
        state.inService.insert(vector)
        return vector
    }

    mutating func acknowledge() -> (external: Bool, vector: UInt8?) {
        if externalPending {
            isAnnounced = false
            state.externalLatched = false
            return (true, nil)
        }
        return (false, takeVector())
    }

    /// A deliverable interrupt is told of once, until one is acknowledged or none is deliverable.
    mutating func takeNotices() -> LocalAPICNotices {
        var result = notices
        notices = LocalAPICNotices()
        let deliverable = isDeliverable
        result.interrupt = deliverable && !isAnnounced
        isAnnounced = deliverable
        return result
    }

    // MARK: Accepting

    var logicalID: UInt32 {
        isX2 ? ((state.id >> 4) &<< 16) | (1 &<< (state.id & 15)) : state.logicalDestination >> 24
    }

    func matches(_ message: InterruptMessage) -> Bool {
        guard isPresent else { return false }
        let destination = message.destination
        if !message.isLogical { return destination == state.id }
        if isX2 {
            if destination == 0xFFFF_FFFF { return true }
            return destination >> 16 == logicalID >> 16 && destination & logicalID & 0xFFFF != 0
        }
        if destination == 0xFF { return true }
        if state.destinationFormat >> 28 == 0xF { return destination & logicalID & 0xFF != 0 }
        return destination >> 4 & 0xF == logicalID >> 4 && destination & logicalID & 0xF != 0
    }

    /// Takes a message; false when the APIC is off and drops it.
    @discardableResult
    mutating func accept(_ message: InterruptMessage) -> Bool {
        switch message.mode {
        case .fixed, .lowestPriority: return accept(message.vector, level: message.isLevel)
        case .nonMaskable: notices.nonMaskable = true
        case .initialize:
            reset(keepBase: true)
            notices.initialize = true
        case .startup: notices.startup = message.vector
        case .external: state.externalLatched = true
        case .systemManagement, .reserved: return false
        }
        return true
    }

    @discardableResult
    mutating func accept(_ vector: UInt8, level: Bool) -> Bool {
        guard isEnabled else { return false }
        guard vector >= 16 else {
            newError(1 << 6)
            return false
        }
        state.request.insert(vector)
        if level { state.trigger.insert(vector) } else { state.trigger.remove(vector) }
        return true
    }

    mutating func newError(_ bit: UInt32) {
        let isNew = state.newErrors & bit == 0
        state.newErrors |= bit
        let entry = state.localVectors[5]
        let vector = UInt8(truncatingIfNeeded: entry)
        if isNew, entry & 0x10000 == 0, vector >= 16, isEnabled {
            state.request.insert(vector)
            state.trigger.remove(vector)
        }
    }

    /// A local interrupt pin changes: `index` is its row of `localVectors`.
    mutating func setLINT(_ index: Int, _ level: Bool) {
        let old = index == 3 ? state.lint0 : state.lint1
        if index == 3 { state.lint0 = level } else { state.lint1 = level }
        let entry = state.localVectors[index]
        guard level, !old, entry & 0x10000 == 0, isPresent else { return }
        let mode = DeliveryMode(rawValue: UInt8(truncatingIfNeeded: entry >> 8) & 7) ?? .reserved
        guard mode != .external else { return }
        accept(InterruptMessage(destination: 0, mode: mode, vector: UInt8(truncatingIfNeeded: entry)))
    }

    // MARK: Registers

    func read(_ index: Int, _ now: UInt64) -> UInt64? {
        switch index {
        case 0x02: return UInt64(isX2 ? state.id : state.id &<< 24)
        case 0x03: return 0x0005_0014
        case 0x08: return UInt64(state.taskPriority)
        case 0x09, 0x0A: return UInt64(processorPriority)
        case 0x0B, 0x0C: return 0
        case 0x0D: return UInt64(isX2 ? logicalID : state.logicalDestination)
        case 0x0E: return UInt64(state.destinationFormat)
        case 0x0F: return UInt64(state.spurious)
        case 0x10...0x17: return state.inService.register(index)
        case 0x18...0x1F: return state.trigger.register(index)
        case 0x20...0x27: return state.request.register(index)
        case 0x28: return UInt64(state.errors)
        case 0x30: return state.command & 0xFFFF_FFFF
        case 0x31: return state.command >> 32
        case 0x32...0x37: return UInt64(state.localVectors[index - 0x32])
        case 0x38: return UInt64(state.initialCount)
        case 0x39: return UInt64(currentCount(now))
        case 0x3E: return UInt64(state.divide)
        default: return nil
        }
    }

    mutating func write(_ index: Int, _ value: UInt64, _ now: UInt64) -> LocalAPICOutcome {
        let word = UInt32(truncatingIfNeeded: value)
        switch index {
        case 0x02, 0x03, 0x09, 0x0A, 0x0C, 0x10...0x27, 0x39: break
        case 0x08: state.taskPriority = UInt8(truncatingIfNeeded: value)
        case 0x0B: return endOfInterrupt()
        case 0x0D: state.logicalDestination = word & 0xFF00_0000
        case 0x0E: state.destinationFormat = word | 0x0FFF_FFFF
        case 0x0F:
            state.spurious = word & 0x1FF
            if word & 0x100 == 0 { state.localVectors |= SIMD8(repeating: 0x10000) }
        case 0x28:
            state.errors = state.newErrors
            state.newErrors = 0
        case 0x30:
            state.command = (state.command & 0xFFFF_FFFF_0000_0000) | UInt64(word & 0xCCFFF)
            return command(UInt32(truncatingIfNeeded: state.command >> 56))
        case 0x31: state.command = (state.command & 0xFFFF_FFFF) | (UInt64(word & 0xFF00_0000) &<< 32)
        case 0x32...0x37: writeLocalVector(index - 0x32, word)
        case 0x38:
            guard timerMode != .deadline else { break }
            state.initialCount = word
            startTimer(now)
        case 0x3E: writeDivide(word & 0xB, now)
        default: return LocalAPICOutcome(isFault: true)
        }
        return LocalAPICOutcome()
    }

    /// - Spec: SDM 3A 11.12.1.2 and 11.12.1.3: reserved bits and read-only registers are #GP.
    mutating func writeX2(_ index: Int, _ value: UInt64, _ now: UInt64) -> LocalAPICOutcome {
        let allowed: UInt64
        switch index {
        case 0x08: allowed = 0xFF
        case 0x0B, 0x28: allowed = 0
        case 0x0F: allowed = 0x3FF
        case 0x30: allowed = 0xFFFF_FFFF_000C_DFFF
        case 0x32...0x37: allowed = UInt64(Self.localVectorMasks[index - 0x32]) | 0x5000
        case 0x38: allowed = 0xFFFF_FFFF
        case 0x3E: allowed = 0xB
        case 0x3F: allowed = 0xFF
        default: return LocalAPICOutcome(isFault: true)
        }
        guard value & ~allowed == 0 else { return LocalAPICOutcome(isFault: true) }
        switch index {
        case 0x30:
            state.command = value & ~0x1000
            return command(UInt32(truncatingIfNeeded: value >> 32))
        case 0x3F:
            return LocalAPICOutcome(
                target: .own, message: InterruptMessage(destination: 0, vector: UInt8(truncatingIfNeeded: value)))
        default: return write(index, value, now)
        }
    }

    mutating func endOfInterrupt() -> LocalAPICOutcome {
        guard let vector = state.inService.highest else { return LocalAPICOutcome() }
        state.inService.remove(vector)
        return LocalAPICOutcome(ended: state.trigger.contains(vector) ? vector : nil)
    }

    /// The interrupt command register was written: an IPI.
    mutating func command(_ destination: UInt32) -> LocalAPICOutcome {
        let word = UInt32(truncatingIfNeeded: state.command)
        let mode = DeliveryMode(rawValue: UInt8(truncatingIfNeeded: word >> 8) & 7) ?? .reserved
        let vector = UInt8(truncatingIfNeeded: word)
        if mode == .initialize && word & 0xC000 == 0x8000 { return LocalAPICOutcome() }
        if (mode == .fixed || mode == .lowestPriority) && vector < 16 {
            newError(1 << 5)
            return LocalAPICOutcome()
        }
        let message = InterruptMessage(
            destination: destination, isLogical: word & 0x800 != 0, mode: mode, vector: vector)
        switch word >> 18 & 3 {
        case 1: return LocalAPICOutcome(target: mode == .fixed ? .own : .none, message: message)
        case 2: return LocalAPICOutcome(target: .everyone, message: message.toAll)
        case 3: return LocalAPICOutcome(target: .others, message: message.toAll)
        default: return LocalAPICOutcome(target: .addressed, message: message)
        }
    }

    static let localVectorMasks: [UInt32] = [0x700FF, 0x107FF, 0x107FF, 0x1A7FF, 0x1A7FF, 0x100FF]

    mutating func writeLocalVector(_ index: Int, _ value: UInt32) {
        let old = timerMode
        state.localVectors[index] = value & Self.localVectorMasks[index] | (isEnabled ? 0 : 0x10000)
        if index == 0, (old == .deadline) != (timerMode == .deadline) {
            stopTimer()
            state.initialCount = 0
            state.deadlineTSC = 0
        }
    }

    // MARK: Timer

    var timerMode: TimerMode { TimerMode(rawValue: state.localVectors[0] >> 17 & 3) ?? .oneShot }
    var divisor: UInt64 { 1 &<< UInt64((((state.divide & 3) | (state.divide >> 1 & 4)) + 1) & 7) }
    var period: UInt64 { UInt64(state.initialCount) &* divisor }

    mutating func stopTimer() {
        state.timerNext = nil
        timer?.disarm()
    }

    mutating func arm(at next: UInt64) {
        state.timerNext = next
        timer?.arm(at: next)
    }

    mutating func startTimer(_ now: UInt64) {
        guard state.initialCount != 0 else { return stopTimer() }
        state.timerStart = now
        arm(at: now &+ period)
    }

    func currentCount(_ now: UInt64) -> UInt32 {
        guard timerMode != .deadline, state.timerNext != nil, period > 0 else { return 0 }
        let elapsed = now &- state.timerStart
        if timerMode == .periodic { return UInt32(truncatingIfNeeded: (period &- elapsed % period) / divisor) }
        return elapsed >= period ? 0 : UInt32(truncatingIfNeeded: (period &- elapsed) / divisor)
    }

    /// A running count goes on from where it stands, at the new rate.
    mutating func writeDivide(_ value: UInt32, _ now: UInt64) {
        let count = UInt64(currentCount(now))
        state.divide = value
        guard count > 0 else { return }
        let next = now &+ count &* divisor
        state.timerStart = next &- period
        arm(at: next)
    }

    mutating func writeDeadline(_ value: UInt64, _ now: UInt64) {
        guard timerMode == .deadline else { return }
        state.deadlineTSC = value
        if value == 0 { stopTimer() } else { armDeadline(now) }
    }

    private func counter(_ now: UInt64) -> UInt64 {
        timeStampCounter?() ?? (scale(now, by: tscFrequency, over: 1_000_000_000) &+ state.tscOffset)
    }

    mutating func armDeadline(_ now: UInt64) {
        let counter = counter(now)
        guard state.deadlineTSC > counter else {
            state.timerNext = now
            return timerFired(now)
        }
        let wait = scale(state.deadlineTSC &- counter, by: 1_000_000_000, over: tscFrequency)
        let (next, overflow) = now.addingReportingOverflow(wait == .max ? wait : wait &+ 1)
        arm(at: overflow ? .max : next)
    }

    mutating func timerFired(_ now: UInt64) {
        guard let next = state.timerNext else { return }
        guard next <= now else {
            timer?.arm(at: next)
            return
        }
        // The counter and guest time may drift apart: never early.
        if timerMode == .deadline, state.deadlineTSC > counter(now) { return armDeadline(now) }
        state.timerNext = nil
        if timerMode == .periodic, period > 0 {
            let interval = max(period, shortestInterruptPeriod)
            let count = (now &- state.timerStart) / interval &+ 1
            arm(at: state.timerStart &+ count &* interval)
        }
        if timerMode == .deadline {
            state.deadlineTSC = 0
            timer?.disarm()
        }
        let entry = state.localVectors[0]
        if entry & 0x10000 == 0 { accept(UInt8(truncatingIfNeeded: entry), level: false) }
    }
}

extension InterruptMessage {
    var toAll: InterruptMessage {
        var message = self
        message.destination = 0xFFFF_FFFF
        message.isLogical = false
        if message.mode == .lowestPriority { message.mode = .fixed }
        return message
    }
}
