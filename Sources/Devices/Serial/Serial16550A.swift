// National Semiconductor PC16550D UART with FIFOs (datasheet TL/C/8652).
//
//   0 RBR R, THR W       (DLAB: DLL)
//   1 IER R/W            0 received data, 1 transmitter empty, 2 line status, 3 modem status (DLAB: DLM)
//   2 IIR R              0 none pending, 3:1 cause, 7:6 FIFOs on;  FCR W 0 enable, 1/2 clear, 7:6 trigger level
//   3 LCR R/W            1:0 length, 2 stop, 5:3 parity, 6 break, 7 DLAB
//   4 MCR R/W            0 DTR, 1 RTS, 2 OUT1, 3 OUT2 (gates the interrupt), 4 loopback
//   5 LSR R              0 data ready, 1 overrun, 4 break, 5 THR empty, 6 transmitter empty
//   6 MSR R              3:0 changes, 4 CTS, 5 DSR, 6 RI, 7 DCD
//   7 SCR R/W
//
// - Quirk: bytes leave at once, whatever the divisor; received bytes below the trigger level time out at once.
public import DeviceModel
internal import Synchronization

/// A 16550A serial port.
public final class Serial16550A: BusDevice, Saveable {
    /// The chip's whole state, and the bytes the host has sent that the guest has not read.
    public struct State: Codable, Sendable {
        var version = 1
        var divisor: UInt16 = 12
        var interruptEnable: UInt8 = 0
        var fifoControl: UInt8 = 0
        var lineControl: UInt8 = 0
        var modemControl: UInt8 = 0
        var lineErrors: UInt8 = 0
        var modemStatus: UInt8 = 0xB0
        var scratch: UInt8 = 0
        var transmitterEmptyPending = false
        /// The byte received last without FIFOs, which an empty receiver shows again.
        var receiveBuffer: UInt8 = 0
        /// What the guest may read: 16 bytes with FIFOs, 1 without.
        var fifo: [UInt8] = []
        /// What the host has sent beyond that.
        var backlog: [UInt8] = []
    }

    /// Bytes the host may send ahead of the guest.
    public static let inputCapacity = 65536

    private struct Contents {
        var state = State()
        var level = false
        var isFull = false
        var drained: (@Sendable () -> Void)?
        var transmitterWatch: (@Sendable () -> Void)?

        /// The guest waits for interrupts of the transmitter.
        var waitsForTransmitter: Bool { state.interruptEnable & 2 != 0 && state.modemControl & 0x18 == 0x08 }
    }

    private let contents = Mutex(Contents())
    private let line: any InterruptLine
    private let output: @Sendable ([UInt8]) -> Void

    /// Makes a port. `output` gets what the guest sends, on its vCPU's thread, with no lock held.
    public init(line: any InterruptLine, output: @escaping @Sendable ([UInt8]) -> Void) {
        self.line = line
        self.output = output
    }

    // MARK: The host's side

    /// Bytes that `receive` would take now.
    public var roomForInput: Int {
        contents.withLock { max(0, Self.inputCapacity - $0.state.backlog.count) }
    }

    /// Sets what is called, with no lock held, when the guest has read all after there was no room left.
    public func onInputDrained(_ body: @escaping @Sendable () -> Void) { contents.withLock { $0.drained = body } }

    /// Has `body` called, once, when the guest begins to wait for interrupts of the transmitter: from then on each byte must
    /// arrive when it is written. False, and nothing is called, if it does already.
    public func onTransmitterInterrupts(_ body: (@Sendable () -> Void)?) -> Bool {
        contents.withLock { contents in
            if contents.waitsForTransmitter { return false }
            contents.transmitterWatch = body
            return true
        }
    }

    /// Brings bytes from the host (admitted through the door by the caller); returns how many were taken.
    @discardableResult
    public func receive(_ bytes: [UInt8]) -> Int {
        update { contents in
            let count = min(bytes.count, max(0, Self.inputCapacity - contents.state.backlog.count))
            contents.state.backlog.append(contentsOf: bytes.prefix(count))
            if contents.state.backlog.count >= Self.inputCapacity { contents.isFull = true }
            contents.state.fill()
            return count
        }
    }

    /// A break condition on the receiver.
    public func receiveBreak() {
        update { $0.state.lineErrors |= 0x10 }
    }

    /// Power-on reset; bytes from the host are kept.
    public func reset() {
        update { contents in
            let waiting = contents.state.fifo + contents.state.backlog
            contents.state = State()
            contents.state.backlog = waiting
            contents.state.fill()
        }
    }

    @discardableResult
    private func update<R: Sendable>(_ body: (inout Contents) -> R) -> R {
        let (result, drained, watch) = contents.withLock { contents in
            let result = body(&contents)
            var watch: (@Sendable () -> Void)?
            if contents.waitsForTransmitter { swap(&watch, &contents.transmitterWatch) }
            let level = contents.state.cause != nil && contents.state.modemControl & 0x18 == 0x08
            if level != contents.level {
                contents.level = level
                line.set(level)
            }
            var drained: (@Sendable () -> Void)?
            if contents.isFull && contents.state.backlog.isEmpty {
                contents.isFull = false
                drained = contents.drained
            }
            return (result, drained, watch)
        }
        drained?()
        watch?()
        return result
    }

    // MARK: Registers

    /// Reads a register.
    public func read(offset: UInt64, size: Int) -> UInt64 {
        readByteWise(offset, size) { register in update { $0.state.read(register) } }
    }

    /// Writes a register.
    public func write(offset: UInt64, size: Int, value: UInt64) {
        writeByteWise(offset, size, value) { register, byte in
            if let sent = update({ $0.state.write(register, byte) }) { output([sent]) }
        }
    }

    // MARK: State

    /// Takes the state.
    public func saveState() -> State { contents.withLock { $0.state } }

    /// Puts a state back.
    public func restoreState(_ state: State) throws {
        try requireVersion(state.version, 1, "16550A")
        guard state.fifo.count <= 16, state.backlog.count <= Self.inputCapacity + 16 else {
            throw StateError("16550A: more input than it holds")
        }
        contents.withLock {
            $0.state = state
            $0.level = state.cause != nil && state.modemControl & 0x18 == 0x08
            $0.isFull = state.fifo.count + state.backlog.count >= Self.inputCapacity
        }
    }
}

extension Serial16550A.State {
    private var hasFIFO: Bool { fifoControl & 1 != 0 }
    private var isLoopback: Bool { modemControl & 0x10 != 0 }
    private var isDivisorAccess: Bool { lineControl & 0x80 != 0 }

    /// Moves what fits from the backlog to the FIFO; in loopback the line is cut.
    mutating func fill() {
        guard !isLoopback else { return }
        let count = min(backlog.count, (hasFIFO ? 16 : 1) - fifo.count)
        guard count > 0 else { return }
        fifo.append(contentsOf: backlog.prefix(count))
        if !hasFIFO { receiveBuffer = backlog[0] }
        backlog.removeFirst(count)
    }

    private var triggerLevel: Int {
        guard hasFIFO else { return 1 }
        switch fifoControl >> 6 {
        case 0: return 1
        case 1: return 4
        case 2: return 8
        default: return 14
        }
    }

    /// The highest pending cause as IIR bits 3:0, nil if none.
    var cause: UInt8? {
        if interruptEnable & 4 != 0, lineErrors & 0x1E != 0 { return 0x06 }
        if interruptEnable & 1 != 0, !fifo.isEmpty { return fifo.count >= triggerLevel ? 0x04 : 0x0C }
        if interruptEnable & 2 != 0, transmitterEmptyPending { return 0x02 }
        if interruptEnable & 8 != 0, modemStatus & 0x0F != 0 { return 0x00 }
        return nil
    }

    mutating func read(_ register: UInt64) -> UInt8 {
        switch register {
        case 0:
            if isDivisorAccess { return UInt8(truncatingIfNeeded: divisor) }
            let byte = fifo.isEmpty ? (hasFIFO ? 0 : receiveBuffer) : fifo.removeFirst()
            fill()
            return byte
        case 1: return isDivisorAccess ? UInt8(truncatingIfNeeded: divisor >> 8) : interruptEnable
        case 2:
            let now = cause
            if now == 0x02 { transmitterEmptyPending = false }
            return (now ?? 0x01) | (hasFIFO ? 0xC0 : 0)
        case 3: return lineControl
        case 4: return modemControl
        case 5:
            let value = (fifo.isEmpty ? 0 : 1) | lineErrors | 0x60
            lineErrors = 0
            return value
        case 6:
            let value = modemStatus
            modemStatus &= 0xF0
            return value
        default: return register == 7 ? scratch : 0xFF
        }
    }

    /// Writes a register; returns a byte that leaves on the wire.
    mutating func write(_ register: UInt64, _ value: UInt8) -> UInt8? {
        switch register {
        case 0:
            if isDivisorAccess {
                divisor = (divisor & 0xFF00) | UInt16(value)
                return nil
            }
            return transmit(value)
        case 1:
            if isDivisorAccess {
                divisor = (divisor & 0x00FF) | UInt16(value) &<< 8
                return nil
            }
            // Enabling the transmitter interrupt while THR is empty raises it.
            if value & 2 != 0 && interruptEnable & 2 == 0 { transmitterEmptyPending = true }
            interruptEnable = value & 0x0F
        case 2: writeFIFOControl(value)
        case 3: lineControl = value
        case 4: writeModemControl(value & 0x1F)
        case 7: scratch = value
        default: break
        }
        return nil
    }

    private mutating func transmit(_ value: UInt8) -> UInt8? {
        transmitterEmptyPending = true
        guard isLoopback else { return value }
        if !hasFIFO { receiveBuffer = value }
        if fifo.count < (hasFIFO ? 16 : 1) {
            fifo.append(value)
        } else {
            lineErrors |= 2
            if !hasFIFO { fifo = [value] }
        }
        return nil
    }

    /// Clearing drops what has arrived in the FIFO; what the host has sent beyond it arrives next.
    private mutating func writeFIFOControl(_ value: UInt8) {
        let switches = (value ^ fifoControl) & 1 != 0
        if switches || value & 2 != 0 { fifo.removeAll() }
        if switches || value & 4 != 0 { transmitterEmptyPending = true }
        fifoControl = value & 1 != 0 ? value & 0xC9 : 0
        fill()
    }

    private mutating func writeModemControl(_ value: UInt8) {
        modemControl = value
        let old = modemStatus
        var new: UInt8 = 0xB0
        if isLoopback {
            // DTR to DSR, RTS to CTS, OUT1 to RI, OUT2 to DCD.
            new = (value & 2) &<< 3 | (value & 1) &<< 5 | (value & 4) &<< 4 | (value & 8) &<< 4
        }
        var changes = (old ^ new) >> 4
        if old & 0x40 == 0 { changes &= ~4 }
        modemStatus = new | ((old | changes) & 0x0F)
        fill()
    }
}
