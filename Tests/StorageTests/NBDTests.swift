// Disks on NBD servers: nbdkit and qemu-nbd.
import Foundation
import Glibc
import Storage
import Testing

/// A server that ends with its owner.
private final class Server {
    private let process: Process

    init(_ program: String, _ arguments: [String], socket: String) throws {
        unlink(socket)
        process = Process()
        process.executableURL = URL(fileURLWithPath: program)
        process.arguments = arguments
        process.standardOutput = FileHandle.nullDevice
        process.standardError = FileHandle.nullDevice
        try process.run()
        for _ in 0..<500 where access(socket, F_OK) != 0 { usleep(10_000) }
    }

    func kill() {
        Glibc.kill(process.processIdentifier, SIGKILL)
        process.waitUntilExit()
    }

    deinit { kill() }
}

private let nbdkit = "/usr/sbin/nbdkit"
private let qemuNBD = "/usr/bin/qemu-nbd"

@Suite(
    .enabled("needs nbdkit and qemu-nbd (`make setup`)") {
        [nbdkit, "/usr/bin/nbdkit"].contains { (path: String) in access(path, X_OK) == 0 } && access(qemuNBD, X_OK) == 0
    })
struct NBDTests {
    private let folder: Folder
    private var socket: String { folder.file("socket") }
    private var uri: String { "nbd+unix:///?socket=\(socket)" }
    private static let program = access(nbdkit, X_OK) == 0 ? nbdkit : "/usr/bin/nbdkit"

    init() throws { folder = try Folder(inMemory: true) }

    private func kit(_ arguments: String...) throws -> Server {
        try Server(Self.program, ["-f", "-U", socket] + arguments, socket: socket)
    }

    private func raw(_ size: Int) throws -> String {
        let path = folder.file("disk.raw")
        if access(path, F_OK) != 0 { try Disk.createRaw(path, size: UInt64(size)) }
        return path
    }

    @Test(arguments: ["nbdkit", "qemu-nbd", "nbdkit without zeroes", "nbdkit, small requests"])
    func `a disk on a server holds what is written`(kind: String) throws {
        let path = try raw(4 << 20)
        let server =
            switch kind {
            case "nbdkit": try kit("file", path)
            case "nbdkit, small requests":
                try kit(
                    "--filter=blocksize-policy", "file", path, "blocksize-maximum=65536", "blocksize-error-policy=error"
                )
            case "qemu-nbd":
                try Server(
                    qemuNBD, ["-f", "raw", "-k", socket, "--persistent", "--discard=unmap", "--shared=8", path],
                    socket: socket)
            default: try kit("--filter=nozero", "memory", "4M")
            }
        var (random, model) = (Seeded(5), Model(count: 4 << 20))
        let image = try openDisk(uri)
        #expect(image.byteCount == 4 << 20 && image.format == .raw)
        for _ in 0..<200 { try model.operate(image, &random) }
        #expect(try model.differences(image) == [])
        try image.flush()
        if !kind.hasPrefix("nbdkit without") { #expect(try model.matches(path, "raw", in: folder)) }
        withExtendedLifetime(server) {}
    }

    @Test func `a connection that breaks is made again, and lost writes are told once`() throws {
        let path = try raw(1 << 20)
        var server = try kit("file", path)
        let image = try openDisk(uri)
        try image.write([UInt8](repeating: 1, count: 512), at: 0)
        try image.flush()
        server.kill()
        server = try kit("file", path)
        // What was flushed is there; nothing is lost, so nothing is told.
        #expect(try image.read(at: 0, count: 512).allSatisfy { $0 == 1 })
        try image.flush()
        try image.write([UInt8](repeating: 2, count: 512), at: 0)
        server.kill()
        server = try kit("file", path)
        // Several connections may be open: each of them finds out.
        for _ in 0..<8 { _ = try image.read(at: 0, count: 512) }
        // No error of the host's, which might be waited out.
        #expect(throws: StorageError.self) { try image.flush() }
        try image.flush()
        try image.write([UInt8](repeating: 3, count: 512), at: 0)
        try image.flush()
        #expect(try image.read(at: 0, count: 512).allSatisfy { $0 == 3 })
    }

    @Test func `a flush tells of what a server lost, though another connection reaches the next one`() throws {
        let path = try raw(1 << 20)
        var server = try kit("file", path)
        let image = try openDisk(uri)
        try image.write([UInt8](repeating: 2, count: 512), at: 0)
        server.kill()
        server = try kit("file", path)
        // Nothing has been asked since, and the other connections have never been used.
        #expect(throws: StorageError.self) { try image.flush() }
        try image.flush()
        withExtendedLifetime(server) {}
    }

    @Test func `a flush that meets another one ends no earlier`() throws {
        let (begun, done) = (folder.file("begun"), folder.file("done"))
        let server = try kit(
            "eval", "get_size=echo 1M", "pread=head -c $3 /dev/zero", "pwrite=cat >/dev/null",
            "flush=touch \(begun); sleep 1; touch \(done)")
        let image = try openDisk(uri)
        try image.write([UInt8](repeating: 1, count: 512), at: 0)
        Thread.detachNewThread { try? image.flush() }
        for _ in 0..<5000 where access(begun, F_OK) != 0 { usleep(1000) }
        try image.flush()
        #expect(access(done, F_OK) == 0)
        withExtendedLifetime(server) {}
    }

    @Test func `what can't be opened is told in one line`() throws {
        func failure(_ uri: String, _ options: DiskOptions = DiskOptions()) -> StorageError? {
            do {
                _ = try Disk.open(uri, options)
                return nil
            } catch { return error }
        }
        #expect(failure("nbd+unix:///?socket=\(folder.file("none"))")?.description.contains("No such file") == true)
        #expect(failure("nbd://127.0.0.1:1/")?.code == .host)
        let server = try kit("-r", "memory", "1M")
        #expect(failure(uri)?.code == .notWritable)
        #expect(failure(uri, DiskOptions(isReadOnly: true)) == nil)
        #expect(failure(uri, DiskOptions(isReadOnly: true, format: .qcow2))?.code == .unsupported)
        withExtendedLifetime(server) {}
    }

    @Test func `an overlay keeps writes apart from a disk on a server, and disks are copied from there`() throws {
        let path = try raw(2 << 20)
        let server = try kit("file", path)
        do {
            let image = try openDisk(uri, DiskOptions(isTemporary: true))
            try image.write([UInt8](repeating: 9, count: 4096), at: 4096)
            #expect(try image.read(at: 4096, count: 4096).allSatisfy { $0 == 9 })
        }
        #expect(try openDisk(uri).read(at: 4096, count: 4096).allSatisfy { $0 == 0 })
        #expect(try report(uri).size == 2 << 20)
        let copy = folder.file("copy.qcow2")
        try DiskConverter.convert(
            try openDisk(uri, DiskOptions(isReadOnly: true)), to: copy, .qcow2(Qcow2Options(), isCompressed: false))
        #expect(try QEMU.run("qemu-img", ["compare", path, copy]).status == 0)
        withExtendedLifetime(server) {}
    }

    @Test(.enabled("needs certtool (`make setup`)") { access("/usr/bin/certtool", X_OK) == 0 })
    func `TLS: with certificates that fit, and not without`() throws {
        let keys = folder.file("keys")
        let script = """
            mkdir \(keys) && cd \(keys) || exit 1
            printf 'cn = test\\nca\\ncert_signing_key\\n' >ca.info
            printf 'organization = test\\ncn = localhost\\ntls_www_server\\nencryption_key\\nsigning_key\\ndns_name = localhost\\n' >server.info
            certtool --generate-privkey --key-type ecdsa --outfile ca-key.pem
            certtool --generate-self-signed --load-privkey ca-key.pem --template ca.info --outfile ca-cert.pem
            certtool --generate-privkey --key-type ecdsa --outfile server-key.pem
            certtool --generate-certificate --load-ca-certificate ca-cert.pem --load-ca-privkey ca-key.pem \\
                --load-privkey server-key.pem --template server.info --outfile server-cert.pem
            """
        let process = Process()
        process.executableURL = URL(fileURLWithPath: "/bin/bash")
        process.arguments = ["-c", script]
        process.standardError = FileHandle.nullDevice
        try process.run()
        process.waitUntilExit()
        try #require(process.terminationStatus == 0)
        let port = 20_000 + Int(getpid()) % 20_000
        let pid = folder.file("pid")
        let server = try Server(
            Self.program,
            [
                "-f", "-P", pid, "-p", "\(port)", "-i", "127.0.0.1", "--tls=require", "--tls-certificates=\(keys)",
                "memory", "1M",
            ],
            socket: pid)
        let image = try openDisk("nbds://localhost:\(port)/?tls-certificates=\(keys)")
        try image.write([UInt8](repeating: 4, count: 512), at: 512)
        #expect(try image.read(at: 512, count: 512).allSatisfy { $0 == 4 })
        #expect(throws: StorageError.self) { try Disk.open("nbd://localhost:\(port)/") }
        withExtendedLifetime(server) {}
    }
}
