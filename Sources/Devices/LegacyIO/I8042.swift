// Intel 8042 keyboard controller (PS/2), with a keyboard and a mouse that nobody touches, and port 92.
//
// port 60 R output buffer; W data for the controller's last command or the keyboard
// port 64 R status: 0 output full, 1 input full, 2 system flag, 3 last write was a command, 5 output is from the mouse
//         W commands: 20/60 read/write configuration byte, A7/A8 mouse off/on, A9 mouse test, AA self-test,
//           AB keyboard test, AD/AE keyboard off/on, C0 input port, D0/D1 read/write output port, D2/D3 write output
//           buffer as keyboard/mouse, D4 to the mouse, DD/DF A20 off/on, E0 test inputs, F0-FF pulse (bit 0: reset)
// configuration byte: 0 keyboard interrupt, 1 mouse interrupt, 2 system flag, 4 keyboard off, 5 mouse off, 6 translation
// port 92 R/W: 1 A20, 0 fast reset
//
// - Quirk: the A20 gate is remembered but never masks an address.
public import DeviceModel
internal import Synchronization

/// The keyboard controller; its reset line ends the guest's session.
public final class I8042: BusDevice, Saveable {
    /// The controller and its two devices.
    public struct State: Codable, Sendable {
        var version = 1
        var configuration: UInt8 = 0x05
        var outputPort: UInt8 = 0xDF
        /// The command that awaits a data byte.
        var command: UInt8?
        var lastWasCommand = false
        var output: [OutputByte] = []
        /// The device command that awaits its parameter.
        var keyboardCommand: UInt8?
        var mouseCommand: UInt8?
        var scanCodeSet: UInt8 = 2

        struct OutputByte: Codable, Sendable, Equatable {
            var value: UInt8
            var isMouse: Bool
        }
    }

    private struct Contents {
        var state = State()
        var keyboardLevel = false
        var mouseLevel = false
        var resets = false
    }

    private let contents = Mutex(Contents())
    private let keyboardLine: any InterruptLine
    private let mouseLine: any InterruptLine
    private let power: any PowerControl

    /// Makes the controller; the lines are IRQ 1 and IRQ 12.
    public init(keyboardLine: any InterruptLine, mouseLine: any InterruptLine, power: any PowerControl) {
        self.keyboardLine = keyboardLine
        self.mouseLine = mouseLine
        self.power = power
    }

    /// Attaches ports 0x60, 0x64 and 0x92.
    @discardableResult
    public func attach(to ports: Bus) -> Bool { ports.attachPorts(self, [(0x60, 1), (0x64, 1), (0x92, 1)]) }

    /// Power-on reset.
    public func reset() { update { $0.state = State() } }

    @discardableResult
    private func update<R: Sendable>(_ body: (inout Contents) -> R) -> R {
        let (result, resets) = contents.withLock { contents in
            let result = body(&contents)
            let first = contents.state.output.first
            let enable = contents.state.configuration
            let keyboard = first.map { !$0.isMouse } == true && enable & 1 != 0
            let mouse = first.map { $0.isMouse } == true && enable & 2 != 0
            if keyboard != contents.keyboardLevel {
                contents.keyboardLevel = keyboard
                keyboardLine.set(keyboard)
            }
            if mouse != contents.mouseLevel {
                contents.mouseLevel = mouse
                mouseLine.set(mouse)
            }
            let resets = contents.resets
            contents.resets = false
            return (result, resets)
        }
        if resets { power.request(.reset) }
        return result
    }

    // MARK: Ports (offsets are port numbers)

    /// Reads a port.
    public func read(offset: UInt64, size: Int) -> UInt64 {
        let value: UInt8 =
            switch offset {
            case 0x60:
                update { contents in
                    // The edge for the next byte needs the line to fall between two bytes.
                    contents.state.output.isEmpty ? 0 : popOutput(&contents)
                }
            case 0x64: update { $0.state.status }
            case 0x92: update { $0.state.outputPort & 2 }
            default: 0xFF
            }
        return UInt64(value)
    }

    private func popOutput(_ contents: inout Contents) -> UInt8 {
        let byte = contents.state.output.removeFirst()
        if contents.keyboardLevel {
            contents.keyboardLevel = false
            keyboardLine.set(false)
        }
        if contents.mouseLevel {
            contents.mouseLevel = false
            mouseLine.set(false)
        }
        return byte.value
    }

    /// Writes a port.
    public func write(offset: UInt64, size: Int, value: UInt64) {
        let byte = UInt8(truncatingIfNeeded: value)
        update { contents in
            switch offset {
            case 0x60: contents.resets = contents.state.writeData(byte)
            case 0x64: contents.resets = contents.state.writeCommand(byte)
            case 0x92:
                contents.state.outputPort = contents.state.outputPort & ~2 | byte & 2
                contents.resets = byte & 1 != 0
            default: break
            }
        }
    }

    // MARK: State

    /// Takes the state.
    public func saveState() -> State { contents.withLock { $0.state } }

    /// Puts a state back.
    public func restoreState(_ state: State) throws {
        try requireVersion(state.version, 1, "i8042")
        guard state.output.count <= 64 else { throw StateError("i8042: output buffer too long") }
        update { $0.state = state }
    }
}

extension I8042.State {
    var status: UInt8 {
        var value: UInt8 = configuration & 4 | 0x10
        if let first = output.first { value |= first.isMouse ? 0x21 : 0x01 }
        if lastWasCommand { value |= 8 }
        return value
    }

    private mutating func put(_ bytes: [UInt8], isMouse: Bool = false) {
        guard output.count + bytes.count <= 64 else { return }
        output.append(contentsOf: bytes.map { OutputByte(value: $0, isMouse: isMouse) })
    }

    /// A write to port 64; true pulses the reset line.
    mutating func writeCommand(_ value: UInt8) -> Bool {
        lastWasCommand = true
        command = nil
        switch value {
        case 0x20: put([configuration])
        case 0xA7: configuration |= 0x20
        case 0xA8: configuration &= ~0x20
        case 0xA9, 0xAB: put([0x00])
        case 0xAA:
            output.removeAll()
            configuration |= 4
            put([0x55])
        case 0xAD: configuration |= 0x10
        case 0xAE: configuration &= ~0x10
        case 0xC0: put([0xBF])
        case 0xD0: put([outputPort & 0xCF | (output.isEmpty ? 0 : 0x10)])
        case 0xDD: outputPort &= ~2
        case 0xDF: outputPort |= 2
        case 0xE0: put([0x03])
        case 0x60, 0xD1...0xD4: command = value
        case 0xF0...0xFF: return value & 1 == 0
        default: break
        }
        return false
    }

    /// A write to port 60; true pulses the reset line.
    mutating func writeData(_ value: UInt8) -> Bool {
        lastWasCommand = false
        let target = command
        command = nil
        switch target {
        case 0x60: configuration = value & 0x77
        case 0xD1:
            outputPort = value
            return value & 1 == 0
        case 0xD2: put([value])
        case 0xD3: put([value], isMouse: true)
        case 0xD4: toMouse(value)
        default: toKeyboard(value)
        }
        return false
    }

    /// A byte for the keyboard: acknowledged with FA, unknown commands with FE (resend).
    private mutating func toKeyboard(_ value: UInt8) {
        configuration &= ~0x10
        if let awaiting = keyboardCommand {
            keyboardCommand = nil
            if awaiting == 0xF0 && value == 0 { return put([0xFA, scanCodeSet]) }
            if awaiting == 0xF0 && value <= 3 { scanCodeSet = value }
            return put([0xFA])
        }
        switch value {
        case 0xED, 0xF0, 0xF3:  // LEDs, scan code set, typematic rate
            keyboardCommand = value
            put([0xFA])
        case 0xEE: put([0xEE])
        case 0xF2: put([0xFA, 0xAB, configuration & 0x40 != 0 ? 0x41 : 0x83])
        case 0xF4...0xF6: put([0xFA])
        case 0xFF:
            scanCodeSet = 2
            put([0xFA, 0xAA])
        default: put([0xFE])
        }
    }

    private mutating func toMouse(_ value: UInt8) {
        configuration &= ~0x20
        if mouseCommand != nil {
            mouseCommand = nil
            return put([0xFA], isMouse: true)
        }
        switch value {
        case 0xE8, 0xF3:  // resolution, sample rate
            mouseCommand = value
            put([0xFA], isMouse: true)
        case 0xE6, 0xE7, 0xEA, 0xF0, 0xF4, 0xF5, 0xF6: put([0xFA], isMouse: true)
        case 0xE9: put([0xFA, 0x00, 0x02, 0x64], isMouse: true)
        case 0xEB: put([0xFA, 0x08, 0x00, 0x00], isMouse: true)
        case 0xF2: put([0xFA, 0x00], isMouse: true)
        case 0xFF: put([0xFA, 0xAA, 0x00], isMouse: true)
        default: put([0xFE], isMouse: true)
        }
    }
}
