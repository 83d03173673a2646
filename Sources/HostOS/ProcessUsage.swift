// What a process and its children use of the host (`proc(5)`).
internal import Glibc

/// Processor time, memory and transfers of a process with all its children.
public struct ProcessUsage: Sendable, Codable, Equatable {
    /// Processor time in nanoseconds.
    public var processorTime: UInt64 = 0
    /// Bytes of the host's memory, shared ones divided among those who share them where the kernel tells.
    public var memory: UInt64 = 0

    /// What a process uses now; nil if there is none of that number.
    public init?(of process: Int32) {
        guard Self.text("/proc/\(process)/stat") != nil else { return nil }
        add(process, depth: 0)
    }

    private mutating func add(_ process: Int32, depth: Int) {
        guard depth < 8, let line = Self.text("/proc/\(process)/stat"), let end = line.lastIndex(of: ")") else {
            return
        }
        let fields = line[line.index(after: end)...].split(separator: " ")
        // Fields 14 and 15, counted from the third.
        if fields.count > 12, let user = UInt64(fields[11]), let system = UInt64(fields[12]) {
            processorTime &+= (user &+ system) &* (1_000_000_000 / UInt64(max(1, sysconf(Int32(_SC_CLK_TCK)))))
        }
        memory &+= Self.memory(of: process)
        for thread in PrivateFolder.names(in: "/proc/\(process)/task") {
            let children = Self.text("/proc/\(process)/task/\(thread)/children") ?? ""
            for child in children.split(separator: " ") {
                if let number = Int32(child) { add(number, depth: depth + 1) }
            }
        }
    }

    private static func memory(of process: Int32) -> UInt64 {
        // VmRSS: the guest's memory is a shared mapping of the machine's own, and counts.
        for line in (text("/proc/\(process)/status") ?? "").split(separator: "\n") where line.hasPrefix("VmRSS:") {
            return (UInt64(line.split(separator: " ").dropFirst().first ?? "") ?? 0) &* 1024
        }
        return 0
    }

    private static func text(_ path: String) -> String? {
        guard let file = try? FileDescriptor.open(path, O_RDONLY) else { return nil }
        return String(decoding: ByteStream(writing: file.rawValue).read(limit: 65536), as: UTF8.self)
    }
}
