// Archive writer for initial RAM file systems: cpio "newc" (SVR4, no checksum).
//
// Manual: Documentation/driver-api/early-userspace/buffer-format.rst of Linux; cpio(5), "New ASCII Format".
//
//   offset  size  field (ASCII hexadecimal)
//   0       6     magic "070701"
//   6       8     inode            38  8  device major of the file system
//   14      8     mode             46  8  device minor of the file system
//   22      8     owner            54  8  device major (special files)
//   30      8     group            62  8  device minor (special files)
//   ...           links, time, size                   94  8  name length with its NUL    102  8  check (0)
//   110     …     name, NUL, padding to 4; then the contents, padding to 4
//
// The archive ends with an entry named TRAILER!!!.

/// A cpio archive in the form that Linux unpacks as an initramfs.
public struct CPIOArchive: Sendable {
    /// The archive as written so far, without its trailer.
    private var bytes: [UInt8] = []
    private var nextInode: UInt32 = 1
    private var directories: Set<String> = []

    /// Makes an empty archive.
    public init() {}

    /// Kinds of file, as in `st_mode`.
    private enum Kind {
        static let fifo: UInt32 = 0o010000
        static let characterDevice: UInt32 = 0o020000
        static let directory: UInt32 = 0o040000
        static let blockDevice: UInt32 = 0o060000
        static let regular: UInt32 = 0o100000
        static let symbolicLink: UInt32 = 0o120000
    }

    /// Adds a directory, and those above it, unless they are there.
    public mutating func addDirectory(_ path: String, mode: UInt32 = 0o755) {
        let name = Self.canonical(path)
        guard !name.isEmpty, directories.insert(name).inserted else { return }
        addParents(of: name)
        append(name: name, mode: Kind.directory | (mode & 0o7777), links: 2, contents: [])
    }

    /// Adds a regular file, and the directories above it.
    public mutating func addFile(_ path: String, contents: [UInt8], mode: UInt32 = 0o644) {
        let name = Self.canonical(path)
        addParents(of: name)
        append(name: name, mode: Kind.regular | (mode & 0o7777), contents: contents)
    }

    /// Adds a text file.
    public mutating func addFile(_ path: String, text: String, mode: UInt32 = 0o644) {
        addFile(path, contents: Array(text.utf8), mode: mode)
    }

    /// Adds a symbolic link.
    public mutating func addSymbolicLink(_ path: String, to target: String) {
        let name = Self.canonical(path)
        addParents(of: name)
        append(name: name, mode: Kind.symbolicLink | 0o777, contents: Array(target.utf8))
    }

    /// Adds a character device node.
    public mutating func addCharacterDevice(_ path: String, major: UInt32, minor: UInt32, mode: UInt32 = 0o600) {
        let name = Self.canonical(path)
        addParents(of: name)
        append(name: name, mode: Kind.characterDevice | (mode & 0o7777), device: (major, minor), contents: [])
    }

    /// The whole archive, trailer included, padded to 512 bytes as cpio(1) does.
    public func serialized() -> [UInt8] {
        var archive = self
        archive.append(name: "TRAILER!!!", mode: 0, inode: 0, contents: [])
        let padding = (512 - archive.bytes.count % 512) % 512
        archive.bytes.append(contentsOf: repeatElement(0, count: padding))
        return archive.bytes
    }

    private mutating func addParents(of name: String) {
        guard let slash = name.lastIndex(of: "/") else { return }
        addDirectory(String(name[..<slash]))
    }

    private mutating func append(
        name: String, mode: UInt32, links: UInt32 = 1, device: (major: UInt32, minor: UInt32) = (0, 0),
        inode: UInt32? = nil, contents: [UInt8]
    ) {
        let number = inode ?? nextInode
        if inode == nil { nextInode &+= 1 }
        bytes.append(contentsOf: "070701".utf8)
        let nameSize = UInt32(truncatingIfNeeded: name.utf8.count + 1)
        let size = UInt32(truncatingIfNeeded: contents.count)
        // Owner, group and time are zero: the same input gives the same archive.
        for field in [number, mode, 0, 0, links, 0, size, 0, 0, device.major, device.minor, nameSize, 0] {
            appendHexadecimal(field)
        }
        bytes.append(contentsOf: name.utf8)
        bytes.append(0)
        pad()
        bytes.append(contentsOf: contents)
        pad()
    }

    private mutating func appendHexadecimal(_ value: UInt32) {
        for shift in stride(from: UInt32(28), through: 0, by: -4) {
            let digit = UInt8(truncatingIfNeeded: (value &>> shift) & 0xF)
            bytes.append(digit < 10 ? 0x30 + digit : 0x41 + digit - 10)
        }
    }

    private mutating func pad() {
        while bytes.count % 4 != 0 { bytes.append(0) }
    }

    /// The path as an archive spells it: relative, no empty or dot components.
    private static func canonical(_ path: String) -> String {
        path.split(separator: "/").filter { $0 != "." && $0 != ".." }.joined(separator: "/")
    }
}
