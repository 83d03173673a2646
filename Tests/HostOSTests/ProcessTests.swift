// Threads, waking, timers, terminals, memory and child processes.
import Foundation
import Glibc
import HostOS
import Synchronization
import Testing

@Suite("Threads and events") struct ThreadTests {
    @Test("A thread has its name and takes no signals; join waits for its end")
    func threads() throws {
        let seen = Mutex((name: "", blocked: false))
        let thread = try HostThread(name: "roost-a-long-name-indeed") {
            let name = (try? String(contentsOfFile: "/proc/thread-self/comm", encoding: .utf8)) ?? ""
            var mask = sigset_t()
            pthread_sigmask(SIG_SETMASK, nil, &mask)
            seen.withLock { $0 = (name, sigismember(&mask, SIGINT) == 1 && sigismember(&mask, SIGSEGV) == 0) }
        }
        thread.join()
        #expect(seen.withLock { $0.name } == "roost-a-long-na\n")
        #expect(seen.withLock { $0.blocked })
    }

    @Test("A flag raised twice is raised once; one raised before the wait isn't lost")
    func flags() throws {
        let (flag, answer) = (WakeFlag(), WakeFlag())
        flag.raise()
        flag.raise()
        flag.wait()
        let thread = try HostThread(name: "waiter") {
            flag.wait()
            answer.raise()
        }
        flag.raise()
        answer.wait()
        thread.join()
    }

    @Test("An event counter is ready from its signal until it is drained")
    func events() throws {
        let event = try FileDescriptor.eventCounter()
        func isReady() -> Bool {
            var polled = pollfd(fd: event.rawValue, events: Int16(POLLIN), revents: 0)
            return poll(&polled, 1, 0) == 1
        }
        #expect(!isReady())
        event.signal()
        event.signal()
        #expect(isReady())
        event.drain()
        #expect(!isReady())
        #expect(
            FileDescriptor.waitForInput(
                -1,
                {
                    event.signal(); return event.rawValue
                }()) == (false, true))
    }

    @Test("A timer fires at its time, at once when that is past, never when disarmed")
    func timers() throws {
        let timer = try FileDescriptor.timer()
        func fires(within milliseconds: Int32) -> Bool {
            var polled = pollfd(fd: timer.rawValue, events: Int16(POLLIN), revents: 0)
            return poll(&polled, 1, milliseconds) == 1
        }
        timer.arm(at: 1)
        #expect(fires(within: 10_000))
        timer.drain()
        let deadline = HostClock.monotonic + 20_000_000
        timer.arm(at: deadline)
        #expect(fires(within: 10_000))
        #expect(HostClock.monotonic >= deadline)
        timer.arm(at: HostClock.monotonic + 1_000_000)
        timer.arm(at: nil)
        timer.drain()
        #expect(!fires(within: 20))
    }
}

@Suite("Children") struct ChildTests {
    private let environment = ["PATH": "/usr/bin:/bin", "WORD": "given"]

    @Test("Output comes by lines, errors too; status and signal are told apart")
    func output() throws {
        var lines: [String] = []
        let ending = try ChildProcess.run(
            "/bin/sh", ["-c", "echo $WORD; echo wrong >&2; printf unended; exit 7"], environment: environment,
            line: { lines.append($0) }, proceed: { true })
        #expect(ending == .exited(7))
        #expect(lines.sorted() == ["given", "unended", "wrong"])
        let killed = try ChildProcess.run(
            "/bin/sh", ["-c", "kill -9 $$"], environment: environment, line: { _ in }, proceed: { true })
        #expect(killed == .signaled(9))
    }

    @Test("Standard input is empty, and a program that isn't there is an error")
    func edges() throws {
        let ending = try ChildProcess.run(
            "/bin/cat", [], environment: environment, line: { _ in }, proceed: { true })
        #expect(ending == .exited(0))
        #expect(throws: HostError.self) {
            try ChildProcess.run("/nonexistent", [], environment: [:], line: { _ in }, proceed: { true })
        }
    }
}

@Suite("Terminals and memory") struct TerminalTests {
    @Test("A pseudo-terminal carries bytes unchanged both ways")
    func pseudoTerminal() throws {
        let pair = try PseudoTerminal.make()
        let user = try FileDescriptor.open(pair.path, O_RDWR | O_NOCTTY)
        let bytes = (0...255).map { UInt8($0) }
        #expect(ByteStream(writing: pair.controller.rawValue).write(bytes) == nil)
        #expect(ByteStream(writing: user.rawValue).read(limit: 256) == bytes)
        #expect(ByteStream(writing: user.rawValue).write([3, 4, 17]) == nil)
        #expect(ByteStream(writing: pair.controller.rawValue).read(limit: 256) == [3, 4, 17])
        #expect(Terminal.isTerminal(user.rawValue))
    }

    @Test("A terminal that isn't ours, or none, is left alone")
    func notOurs() throws {
        let scratch = try Scratch()
        let file = try FileDescriptor.open(try scratch.file("plain"), O_RDONLY)
        #expect(!Terminal.isTerminal(file.rawValue))
        #expect(!Terminal.makeRaw(file.rawValue))
        #expect(Terminal.size(file.rawValue) == nil)
        #expect(!Terminal.isRaw)
    }

    @Test("A full pipe that drops loses the rest and goes on; one whose reader is gone is an error")
    func pipes() throws {
        var ends: [Int32] = [0, 0]
        try #require(pipe(&ends) == 0)
        let input = FileDescriptor(owning: ends[1])
        do {
            let output = FileDescriptor(owning: ends[0])
            _ = fcntl(input.rawValue, F_SETFL, O_NONBLOCK)
            let many = [UInt8](repeating: 1, count: 1 << 20)
            #expect(ByteStream(writing: input.rawValue, dropsWhenFull: true).write(many) == nil)
            #expect(ByteStream(writing: output.rawValue).read(limit: 10).count == 10)
        }
        Terminal.prepareStandardStreams()
        #expect(ByteStream(writing: input.rawValue).write([1])?.errno == EPIPE)
    }

    @Test("The same memory through two mappings; code written here runs there")
    func mappings() throws {
        let memory = try SharedMemory(name: "test", size: 8192, span: 16384)
        try memory.map(offset: 0, fileOffset: 4096, length: 4096)
        try memory.map(offset: 8192, fileOffset: 4096, length: 4096, writable: false)
        memory.base.storeBytes(of: 0x1234, as: UInt32.self)
        #expect((memory.base + 8192).load(as: UInt32.self) == 0x1234)
        let code = try CodeMemory(size: 4096)
        // mov eax, 42; ret
        for (n, byte) in ([0xB8, 42, 0, 0, 0, 0xC3] as [UInt8]).enumerated() { code.writable[n] = byte }
        let function = unsafeBitCast(code.executable, to: (@convention(c) () -> Int32).self)
        #expect(function() == 42)
    }

    @Test("The clock goes on, the host has memory")
    func facts() {
        let first = HostClock.monotonic
        #expect(HostClock.monotonic >= first)
        #expect(HostClock.realTime > 1_700_000_000_000_000_000)
        #expect(HostMemory.total > 1 << 28)
        #expect(HostMemory.total % 4096 == 0)
    }
}
