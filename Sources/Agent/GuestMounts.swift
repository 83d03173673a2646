// The host's folders in the guest: one file system holds them all (virtio-fs, tag "roost"), and each is mounted from there
// at the path that the host wants.
//
//   /run/roost/folders/N      a folder of the host's
//   /run/roost/folders/N.at   a symbolic link to where it is to be
internal import AgentProtocol
internal import CAgent
internal import Glibc

enum GuestMounts {
    private static let top = "/run/roost/folders"
    private static let tag = "roost"
    /// Virtio's number of file systems, as sysfs has it.
    private static let deviceNumber = "0x001a"

    /// A mount of ours, as the kernel tells it.
    private struct Mount {
        var number: UInt64
        var path: String
    }

    /// Makes the mounts those that the host wants; `isForced` takes away what is in use too. All is tried; the first
    /// failure is told.
    static func synchronize(isForced: Bool) throws(AgentError) {
        try prepare()
        let wanted = wanted()
        var failure: AgentError?
        var there: Set<UInt64> = []
        for mount in mounts().reversed() {
            if wanted[mount.number] == mount.path {
                there.insert(mount.number)
            } else if umount2(mount.path, isForced ? Int32(MNT_DETACH) : 0) != 0 {
                failure = failure ?? error(mount.path)
            }
        }
        for (number, path) in wanted.sorted(by: { $0.key < $1.key }) where !there.contains(number) {
            do { try add(number, at: path) } catch { failure = failure ?? error }
        }
        if let failure { throw failure }
    }

    /// The same when the agent starts; nothing, where the machine has no such file system.
    static func start() {
        let devices = "/sys/bus/virtio/devices"
        let isThere = names(in: devices).contains { name in
            GuestFile.contents(of: "\(devices)/\(name)/device").hasPrefix(deviceNumber)
        }
        if isThere { try? synchronize(isForced: false) }
    }

    /// Has the file system that holds the folders, where nobody but root looks.
    private static func prepare() throws(AgentError) {
        if lines().contains(where: { $0.path == top }) { return }
        makeFolders(top, mode: 0o700)
        guard mount(tag, top, "virtiofs", UInt(MS_NOSUID | MS_NODEV), nil) == 0 else {
            throw error("mount \(tag)")
        }
    }

    private static func add(_ number: UInt64, at path: String) throws(AgentError) {
        makeFolders(path, mode: 0o755)
        guard mount("\(top)/\(number)", path, nil, UInt(MS_BIND), nil) == 0 else { throw error(path) }
    }

    private static func error(_ what: String) -> AgentError {
        let number = errno
        return AgentError(errno: number, text: "\(what): \(String(cString: strerror(number)))")
    }

    private static func makeFolders(_ path: String, mode: mode_t) {
        var made = ""
        for name in path.split(separator: "/") {
            made += "/" + name
            mkdir(made, mode)
        }
    }

    /// The folders by number, and where each is to be.
    private static func wanted() -> [UInt64: String] {
        var wanted: [UInt64: String] = [:]
        for name in names(in: top) {
            guard let number = UInt64(name) else { continue }
            var text = [CChar](repeating: 0, count: Int(PATH_MAX))
            let count = readlink("\(top)/\(name).at", &text, text.count)
            guard count > 0 else { continue }
            wanted[number] = String(decoding: text.prefix(count).map { UInt8(bitPattern: $0) }, as: UTF8.self)
        }
        return wanted
    }

    private static func names(in folder: String) -> [String] {
        guard let stream = opendir(folder) else { return [] }
        defer { closedir(stream) }
        var names: [String] = []
        while let entry = readdir(stream) {
            let name = withUnsafeBytes(of: &entry.pointee.d_name) { $0.prefix { $0 != 0 } }
            names.append(String(decoding: name, as: UTF8.self))
        }
        return names.filter { $0 != "." && $0 != ".." }
    }

    private static func mounts() -> [Mount] {
        lines().compactMap { line in
            // What the host has taken away has "//deleted" behind its name.
            guard let number = UInt64(line.root.dropFirst().prefix { $0.isNumber }), line.path != top else {
                return nil
            }
            return Mount(number: number, path: line.path)
        }
    }

    /// Mounts of the file system with the folders, in the order in which they were made (proc(5), /proc/PID/mountinfo).
    private static func lines() -> [(root: String, path: String)] {
        GuestFile.contents(of: "/proc/self/mountinfo").split(separator: "\n").compactMap { line in
            let words = line.split(separator: " ")
            guard words.count >= 9, let dash = words.firstIndex(of: "-"), dash + 2 < words.count,
                words[dash + 1] == "virtiofs", words[dash + 2] == tag
            else { return nil }
            return (plain(words[3]), plain(words[4]))
        }
    }

    /// A path as it is, without the kernel's octal escapes.
    private static func plain(_ text: Substring) -> String {
        var bytes: [UInt8] = []
        var rest = Array(text.utf8)[...]
        while let byte = rest.popFirst() {
            let digits = rest.prefix(3)
            if byte == UInt8(ascii: "\\"), digits.count == 3, digits.allSatisfy({ 0x30...0x37 ~= $0 }) {
                bytes.append(digits.reduce(0) { $0 << 3 | ($1 & 7) })
                rest = rest.dropFirst(3)
            } else {
                bytes.append(byte)
            }
        }
        return String(decoding: bytes, as: UTF8.self)
    }
}
