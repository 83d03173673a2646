// One stream of the host's: a program that it runs, or one thing that it wants done.
internal import AgentProtocol
internal import CAgent
internal import Glibc

final class Session {
    /// The host writes nothing more: POLLRDHUP of <bits/poll.h>, which Swift doesn't import.
    private static let hangUp: Int32 = 0x2000
    /// Bytes that a terminal's driver holds at most.
    private static let terminalRoom = 1 << 20

    private let stream: Int32
    private var parser = MessageParser()
    /// What the host is to get, and how much of it has been sent.
    private var outgoing: [UInt8] = []
    private var sent = 0
    /// What the program is to get.
    private var input: [UInt8] = []
    private var given = 0
    private var inputEnds = false
    private var process: Int32 = 0
    private var program = roost_program(process: 0, input: -1, output: -1, errors: -1)
    private var isTerminal = false
    private var ending: ProgramEnd?
    private var hasToldEnd = false
    private(set) var isOver = false

    init(_ stream: Int32) {
        self.stream = stream
        send(.hello(version: AgentMessage.version))
    }

    /// What is worth waiting for now.
    var interests: [Interest] {
        var all: [Interest] = []
        let hasRoom = !hasToldEnd && outgoing.count - sent < 4 * AgentMessage.piece
        var events = Self.hangUp
        if takesInput { events |= POLLIN }
        if sent < outgoing.count { events |= POLLOUT }
        all.append(Interest(descriptor: stream, events: Int16(events)))
        if program.output >= 0, hasRoom || isTerminal && given < input.count {
            var events: Int32 = hasRoom ? POLLIN : 0
            if isTerminal && given < input.count { events |= POLLOUT }
            all.append(Interest(descriptor: program.output, events: Int16(events)))
        }
        if program.errors >= 0, hasRoom { all.append(Interest(descriptor: program.errors, events: Int16(POLLIN))) }
        if !isTerminal, program.input >= 0, given < input.count {
            all.append(Interest(descriptor: program.input, events: Int16(POLLOUT)))
        }
        return all
    }

    /// The program reads what it gets.
    private var takesInput: Bool { input.count - given < AgentMessage.piece }

    /// Does what can be done without waiting.
    func serve(_ ready: [Int32: Int16]) {
        let isOrEnds = Int16(POLLIN | POLLHUP | POLLERR)
        if let events = ready[stream] {
            // While the program reads nothing, what the host said last isn't read either: that it has gone counts.
            let counts = takesInput ? isOrEnds | Int16(Self.hangUp) : Int16(POLLHUP | POLLERR | Self.hangUp)
            if events & counts != 0 { if takesInput { receive() } else { close() } }
        }
        if isOver { return }
        // Nothing comes after the end, whatever a program in the background still writes.
        if hasToldEnd { return flush() }
        if let events = ready[program.output], program.output >= 0 {
            if events & isOrEnds != 0 { forward() }
            if isTerminal && events & Int16(POLLOUT) != 0 { giveInput() }
        }
        if program.errors >= 0, ready[program.errors] != nil { forward(isErrors: true) }
        if !isTerminal, program.input >= 0, ready[program.input] != nil { giveInput() }
        tellEnd()
        flush()
    }

    func childEnded(_ child: Int32, _ status: Int32) {
        guard child == process, process != 0 else { return }
        process = 0
        let signal = status & 0x7F
        ending = signal == 0 ? .exited(status >> 8 & 0xFF) : .killed(signal)
        tellEnd()
        flush()
    }

    // MARK: The host's side

    private func receive() {
        var buffer = [UInt8](repeating: 0, count: AgentMessage.piece)
        let count = read(stream, &buffer, buffer.count)
        if count < 0 && (errno == EAGAIN || errno == EINTR) { return }
        if count <= 0 { return close() }
        parser.append(buffer.prefix(count))
        do {
            while let message = try parser.next() { take(message) }
        } catch {
            close()
        }
    }

    private func take(_ message: AgentMessage) {
        switch message {
        case .start(let request) where process == 0 && ending == nil: start(request)
        case .input(let bytes) where !inputEnds:
            input += bytes
            giveInput()
        case .inputEnd:
            inputEnds = true
            giveInput()
        case .outputEnd(let isErrors):
            stopReading(isErrors: isErrors)
        case .signal(let number) where process > 0 && (1...64).contains(number): kill(-process, number)
        case .resize(let size) where isTerminal: roost_set_terminal_size(program.output, size.columns, size.rows)
        case .setClock, .addEntropy, .setIdentity, .setLinkAddress, .addresses, .powerOff, .reboot, .synchronizeMounts:
            send(GuestSystem.perform(message))
        default: break
        }
    }

    private func send(_ message: AgentMessage) {
        outgoing += message.bytes
        flush()
    }

    private func flush() {
        while sent < outgoing.count {
            let count = outgoing.withUnsafeBytes { write(stream, $0.baseAddress! + sent, $0.count - sent) }
            if count < 0 && errno == EINTR { continue }
            if count < 0 && errno == EAGAIN { return }
            if count <= 0 { return close() }
            sent += count
        }
        outgoing.removeAll(keepingCapacity: true)
        sent = 0
        if hasToldEnd { close() }
    }

    /// The host is gone, or has all: what still runs of the program ends with the stream.
    private func close() {
        if isOver { return }
        isOver = true
        if process > 0 { kill(-process, SIGHUP) }
        if process > 0 && !isTerminal { kill(-process, SIGTERM) }
        Glibc.close(stream)
        for descriptor in [program.input, program.output, program.errors] where descriptor >= 0 {
            if !(isTerminal && descriptor == program.input) { Glibc.close(descriptor) }
        }
    }

    // MARK: The program's side

    private func start(_ request: ProgramRequest) {
        do {
            program = try GuestProgram.start(request)
            process = program.process
            isTerminal = request.terminal != nil
            send(.started(process: process))
        } catch {
            send(.failed(error.errno, error.text))
            hasToldEnd = true
        }
    }

    private func giveInput() {
        let target = isTerminal ? program.output : program.input
        while target >= 0 && given < input.count {
            let count = input.withUnsafeBytes { write(target, $0.baseAddress! + given, $0.count - given) }
            if count < 0 && errno == EINTR { continue }
            if count < 0 && errno == EAGAIN { return }
            // Nobody reads it any more: the rest is for nobody.
            if count <= 0 { given = input.count } else { given += count }
        }
        guard given == input.count else { return }
        input.removeAll(keepingCapacity: true)
        given = 0
        guard inputEnds, target >= 0 else { return }
        if isTerminal {
            // ^D, as a person would.
            inputEnds = false
            input = [4]
            giveInput()
        } else {
            Glibc.close(program.input)
            program.input = -1
        }
    }

    /// Sends on what the program wrote, a piece at most; how many bytes that were.
    @discardableResult
    private func forward(isErrors: Bool = false, limit: Int = AgentMessage.piece) -> Int {
        var buffer = [UInt8](repeating: 0, count: min(limit, AgentMessage.piece))
        let count = read(isErrors ? program.errors : program.output, &buffer, buffer.count)
        if count > 0 {
            buffer.removeLast(buffer.count - count)
            send(isErrors ? .errors(buffer) : .output(buffer))
            return count
        }
        if count < 0 && (errno == EAGAIN || errno == EINTR) { return 0 }
        // A terminal whose last user has gone says EIO.
        stopReading(isErrors: isErrors)
        return 0
    }

    /// The program learns that nobody reads what it writes: by SIGPIPE, or because its terminal is gone.
    private func stopReading(isErrors: Bool) {
        let descriptor = isErrors ? program.errors : program.output
        if descriptor >= 0 { Glibc.close(descriptor) }
        if isErrors { program.errors = -1 } else { program.output = -1 }
    }

    /// Tells the end when all that the program wrote has been read; what its children still write isn't waited for.
    private func tellEnd() {
        guard let ending, !hasToldEnd, !isOver else { return }
        for isErrors in [false, true] { forwardRest(isErrors: isErrors) }
        if isOver { return }
        hasToldEnd = true
        send(.exited(ending))
    }

    /// Sends on what waits to be read now, and not what a program in the background goes on writing.
    private func forwardRest(isErrors: Bool) {
        let descriptor = isErrors ? program.errors : program.output
        guard descriptor >= 0 else { return }
        var left: Int32 = 0
        if isTerminal {
            // What is on its way through a terminal isn't counted there.
            left = Int32(Self.terminalRoom)
        } else if ioctl(descriptor, UInt(FIONREAD), &left) < 0 {
            return
        }
        while left > 0 && !isOver {
            let count = forward(isErrors: isErrors, limit: Int(left))
            if count == 0 { return }
            left -= Int32(count)
        }
    }
}
