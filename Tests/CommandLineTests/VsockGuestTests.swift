// Sockets between a guest and its host, with Debian's own driver in the guest: GuestTests/sockets.c at both ends.
import Foundation
import Glibc
import HostOS
import Machine
import Testing

@Suite("Sockets to a guest", .serialized, .enabled("needs `make kernels` and gcc") { ScriptGuest.isPossible })
struct VsockGuestTests {
    private let guest: ScriptGuest

    init() throws { guest = try ScriptGuest(modules: ["vmw_vsock_virtio_transport"], programs: ["sockets"]) }

    @Test("carry 100 MiB each way, opened by the host or by the guest, each byte as it was")
    func transfers() throws {
        let output = try guest.shell(
            """
            guest 'sockets serve vsock:0:5000' --vsock v.sock >console & machine=$!
            until_there console serving
            ./sockets send connect:v.sock:5000 100; ./sockets receive connect:v.sock:5000 100
            ./sockets refused connect:v.sock:5001
            kill -9 $machine; wait $machine
            ./sockets serve unix:v.sock_7000 >server & until_there server serving
            (guest 'sockets send vsock:2:7000 100; sockets receive vsock:2:7000 100; sockets refused vsock:2:7001' \\
                --vsock v.sock,cid=77)
            """)
        for way in ["send 100 MB", "receive 100 MB", "refused"] {
            #expect(output.components(separatedBy: "SOCKETS \(way)").count == 3, "\(way): \(output.suffix(3000))")
        }
        #expect(!output.contains("FAIL"))
    }

    @Test("are many at once, each by itself")
    func many() throws {
        let output = try guest.shell(
            """
            guest 'sockets serve vsock:0:5000 & sleep 2; sockets many vsock:2:7000 200; wait' --vsock v.sock >console &
            ./sockets serve unix:v.sock_7000 >server &
            until_there console serving; ./sockets many connect:v.sock:5000 200
            until_there console 'many 200'; echo both
            """)
        #expect(output.contains("SOCKETS many 200"), "\(output.suffix(3000))")
        #expect(output.contains("both") && !output.contains("FAIL"), "\(output.suffix(3000))")
    }

    @Test("hold up a sender whose host doesn't read, and keep little of it")
    func slow() throws {
        let output = try guest.shell(
            """
            memory() { awk '/^RssAnon/ { print $2 }' /proc/$machine/status; }
            guest 'sockets serve vsock:0:5000' --vsock v.sock >console & machine=$!
            until_there console serving
            ./sockets receive connect:v.sock:5000 64; before=$(memory)
            ./sockets slow connect:v.sock:5000 64 & client=$!
            sleep 4; echo grown $(($(memory) - before)); wait $client
            ./sockets send connect:v.sock:5000 16
            """)
        #expect(
            output.contains("SOCKETS slow 64 MB") && output.contains("SOCKETS send 16 MB"), "\(output.suffix(3000))")
        let grown = output.split(separator: "\n").first { $0.hasPrefix("grown ") }.flatMap { Int($0.dropFirst(6)) }
        #expect(try #require(grown) < 8192, "KiB")
    }

    @Test("are open to Roost itself, both ways")
    func ownStreams() throws {
        var configuration = MachineConfiguration(
            boot: BootSource(
                kernel: guest.options(run: "")[2], initrd: guest.scratch + "/initramfs",
                commandLine: "console=ttyS0 quiet "
                    + "run=sockets+serve+vsock:0:5000&sleep+1;sockets+send+vsock:2:9+1;sockets+send+vsock:2:10+0"))
        configuration.engine = .translator
        configuration.networks = []
        configuration.console = .file(guest.scratch + "/console")
        configuration.sockets = VsockConfiguration()
        let machine = try Machine(configuration)
        let sockets = try #require(machine.sockets)
        let (arrived, done, finished) = (
            DispatchSemaphore(value: 0), DispatchSemaphore(value: 0), DispatchSemaphore(value: 0)
        )
        sockets.listen(on: 9) { stream in
            let descriptor = dup(stream.rawValue)
            Thread.detachNewThread {
                Self.takeAll(descriptor)
                arrived.signal()
            }
        }
        sockets.listen(on: 10) { stream in
            let descriptor = dup(stream.rawValue)
            Thread.detachNewThread {
                done.wait()
                Self.takeAll(descriptor)
            }
        }
        #expect(throws: (any Error).self, "the guest has no driver yet") { _ = try sockets.connect(to: 5000) }
        Thread.detachNewThread {
            _ = machine.run()
            finished.signal()
        }
        #expect(arrived.wait(timeout: .now() + 60) == .success)
        #expect(throws: (any Error).self, "nobody listens") { _ = try sockets.connect(to: 5001) }
        let stream = try sockets.connect(to: 5000)
        var line = Array("eHello".utf8)
        #expect(write(stream.rawValue, &line, 6) == 6)
        for byte in "Hello".utf8 { #expect(stream.readByte() == byte) }
        shutdown(stream.rawValue, Int32(SHUT_WR))
        #expect(stream.readByte() == nil)
        done.signal()
        #expect(finished.wait(timeout: .now() + 30) == .success)
        let console = try String(contentsOfFile: guest.scratch + "/console", encoding: .utf8)
        #expect(console.contains("SOCKETS send 1 MB"), "\(console.suffix(2000))")
    }

    /// Reads "r" and what follows to the end, and tells how much that was.
    private static func takeAll(_ descriptor: Int32) {
        var (buffer, total) = ([UInt8](repeating: 0, count: 65536), 0)
        while true {
            let got = read(descriptor, &buffer, buffer.count)
            if got <= 0 { break }
            total += got
        }
        var answer = UInt64(max(total, 1) - 1)
        _ = write(descriptor, &answer, 8)
        close(descriptor)
    }

    @Test("misspelled are refused with what was wanted; a path that is taken or can't be is said")
    func misspelled() throws {
        for word in ["", ",cid=3", "a,cid=2", "a,cid=4294967295", "a,cid=x", "a,b=3"] {
            let run = try RoostRun(["run", "--kernel", "/dev/null", "--vsock", word])
            #expect(run.status == 64 && run.error.contains("--vsock"), "\(word): \(run.status) \(run.error)")
        }
        let kernel = guest.options(run: "")[2]
        let bad = try RoostRun(["run", "--kernel", kernel, "--net", "none", "--vsock", "/nonexistent/v.sock"])
        #expect(bad.status == 76 && bad.error.contains("/nonexistent/v.sock"), "\(bad.status) \(bad.error)")
        let clock = try RoostRun(["run", "--kernel", kernel, "--vsock", guest.scratch + "/v", "--clock", "virtual"])
        #expect(clock.status != 0 && clock.error.contains("virtual time has no sockets"), "\(clock.error)")
    }
}
