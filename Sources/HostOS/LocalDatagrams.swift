// Datagrams between processes of one host (`unix(7)`), and the folder where their sockets are.
internal import Glibc

/// How sending a datagram went.
public enum DatagramResult: Sendable, Equatable {
    /// It is in the receiver's queue.
    case sent
    /// The receiver's queue is full.
    case full
    /// Nobody is there.
    case gone
}

/// A datagram socket that other processes reach by a path, or that leads to one.
public final class LocalDatagramSocket: Sendable {
    /// The descriptor, for waiting.
    public let descriptor: FileDescriptor

    private init() throws(HostError) {
        descriptor = FileDescriptor(
            owning: try retrying("socket") { socket(AF_UNIX, Int32(SOCK_DGRAM.rawValue | SOCK_CLOEXEC.rawValue), 0) })
    }

    /// A socket at a path, where nothing may be yet.
    public convenience init(at path: String) throws(HostError) {
        try self.init()
        try LocalAddress.with(path, "bind") { bind(descriptor.rawValue, $0, $1) }
    }

    /// A socket that leads to the one at a path; sending waits so long for room.
    public convenience init(to path: String, patience milliseconds: Int) throws(HostError) {
        try self.init()
        var time = timeval(tv_sec: milliseconds / 1000, tv_usec: milliseconds % 1000 * 1000)
        _ = setsockopt(descriptor.rawValue, SOL_SOCKET, SO_SNDTIMEO, &time, socklen_t(MemoryLayout<timeval>.size))
        var size: Int32 = 1 << 20
        _ = setsockopt(descriptor.rawValue, SOL_SOCKET, SO_SNDBUF, &size, 4)
        try LocalAddress.with(path, "connect") { connect(descriptor.rawValue, $0, $1) }
    }

    /// Sends one datagram.
    public func send(_ bytes: [UInt8], waits: Bool) -> DatagramResult {
        let flags = Int32(MSG_NOSIGNAL) | (waits ? 0 : Int32(MSG_DONTWAIT))
        let (sent, error) = bytes.withUnsafeBytes { buffer in
            let sent = Glibc.send(descriptor.rawValue, buffer.baseAddress, buffer.count, flags)
            return (sent, sent < 0 ? errno : 0)
        }
        if sent >= 0 { return .sent }
        return [EAGAIN, EWOULDBLOCK, ENOBUFS, EINTR, EMSGSIZE].contains(error) ? .full : .gone
    }

    /// Takes one datagram, cut to the buffer; the number of bytes, negative if there is none now.
    public func receive(into buffer: inout [UInt8]) -> Int {
        buffer.withUnsafeMutableBytes {
            recv(descriptor.rawValue, $0.baseAddress, $0.count, Int32(MSG_DONTWAIT))
        }
    }
}

/// Folders of this user's own.
public enum PrivateFolder {
    /// Where sockets of this user's processes belong: `XDG_RUNTIME_DIR`, else a folder in `/tmp`.
    public static var runtime: String {
        if let path = getenv("XDG_RUNTIME_DIR"), path.pointee != 0 { return String(cString: path) }
        return "/tmp/roost-\(getuid())"
    }

    /// Where this user's images and machines are: `ROOST_HOME`, else `roost` below `XDG_DATA_HOME` or `~/.local/share`.
    public static var data: String {
        func variable(_ name: String) -> String? {
            getenv(name).map { String(cString: $0) }.flatMap { $0.hasPrefix("/") ? $0 : nil }
        }
        if let home = variable("ROOST_HOME") { return home }
        return (variable("XDG_DATA_HOME") ?? (variable("HOME") ?? "/root") + "/.local/share") + "/roost"
    }

    /// Makes a folder that nobody else can enter, and those above it; one that is there must be like that.
    public static func make(_ path: String) throws(HostError) {
        if let slash = path.lastIndex(of: "/"), slash != path.startIndex {
            let parent = String(path[..<slash])
            if access(parent, F_OK) != 0 { try make(parent) }
        }
        if mkdir(path, 0o700) != 0, errno != EEXIST { throw HostError.last("make folder \(path)") }
        var status = stat()
        guard lstat(path, &status) == 0 else { throw HostError.last("look at \(path)") }
        guard status.st_mode & S_IFMT == S_IFDIR, status.st_uid == getuid(), status.st_mode & 0o077 == 0 else {
            throw HostError("use \(path), which others can enter", errno: EPERM)
        }
    }

    /// Names in a folder that don't begin with a dot, and when it was changed last in nanoseconds.
    public static func names(in path: String) -> [String] {
        guard let directory = opendir(path) else { return [] }
        defer { closedir(directory) }
        var names: [String] = []
        while let entry = readdir(directory), names.count < 4096 {
            let name = withUnsafeBytes(of: &entry.pointee.d_name) { bytes in
                String(decoding: bytes.prefix { $0 != 0 }, as: UTF8.self)
            }
            if !name.hasPrefix(".") { names.append(name) }
        }
        return names
    }

    /// When something was added to a folder or taken out last, in nanoseconds.
    public static func changed(_ path: String) -> Int {
        var status = stat()
        guard stat(path, &status) == 0 else { return 0 }
        return status.st_mtim.tv_sec &* 1_000_000_000 &+ status.st_mtim.tv_nsec
    }

    /// Makes a folder the one that this process's relative paths begin in.
    public static func enter(_ path: String) throws(HostError) {
        guard chdir(path) == 0 else { throw HostError.last("enter \(path)") }
    }

    /// Takes a name out of a folder.
    public static func remove(_ path: String) { unlink(path) }

    /// The path without symbolic links, as far as it is there.
    public static func canonical(_ path: String) -> String {
        guard let resolved = realpath(path, nil) else { return path }
        defer { free(resolved) }
        return String(cString: resolved)
    }

    /// The path from the root of the file system; what doesn't exist need not.
    public static func absolute(_ path: String) -> String {
        if path.hasPrefix("/") { return path }
        guard let folder = getcwd(nil, 0) else { return path }
        defer { free(folder) }
        return String(cString: folder) + "/" + path
    }

    /// Runs something while no other process does so for the same folder; waits at most five seconds for them.
    public static func alone<Result>(
        in path: String, _ body: () throws(HostError) -> Result
    ) throws(HostError) -> Result {
        let lock = try FileDescriptor.open(path + "/.lock", O_RDWR | O_CREAT | O_NOFOLLOW, mode: 0o600)
        var tries = 0
        while try !lock.lock(exclusive: true) {
            tries += 1
            if tries > 500 { throw HostError("lock \(path)", errno: EAGAIN) }
            usleep(10_000)
        }
        return try body()
    }
}
